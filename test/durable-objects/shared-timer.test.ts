import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { SharedTimer } from "../../durable-objects/shared-timer.ts";

let late: string[];
let timer: SharedTimer<string>;

beforeEach(() => {
  vi.useFakeTimers({ now: 1_000 });
  late = [];
  timer = new SharedTimer<string>(100, (item) => late.push(item));
});
afterEach(() => {
  vi.useRealTimers();
});

const start = (item: string) => timer.start(item, Date.now());

test("each item has its own time, and all of them have one timer", () => {
  start("a");
  vi.advanceTimersByTime(60);
  start("b");
  start("a");
  expect(vi.getTimerCount()).toBe(1);
  vi.advanceTimersByTime(39);
  expect(late).toEqual([]);
  vi.advanceTimersByTime(1);
  expect(late).toEqual(["a"]);
  expect(vi.getTimerCount()).toBe(1);
  vi.advanceTimersByTime(59);
  expect(late).toEqual(["a"]);
  vi.advanceTimersByTime(1);
  expect(late).toEqual(["a", "b"]);
});

test("an item that is stopped is not late, and those behind it are in their time", () => {
  start("a");
  vi.advanceTimersByTime(50);
  start("b");
  timer.stop("a");
  vi.advanceTimersByTime(99);
  expect(late).toEqual([]);
  vi.advanceTimersByTime(1);
  expect(late).toEqual(["b"]);
});

test("[G7] no timer is pending while nothing is awaited", () => {
  start("a");
  start("b");
  timer.stop("a");
  expect(vi.getTimerCount()).toBe(1);
  timer.stop("b");
  expect(vi.getTimerCount()).toBe(0);
  start("c");
  vi.advanceTimersByTime(100);
  expect(late).toEqual(["c"]);
  expect(vi.getTimerCount()).toBe(0);
});

test("an item that is late may begin again, and stop others", () => {
  timer = new SharedTimer<string>(100, (item) => {
    late.push(item);
    timer.stop("b");
    if (late.length === 1) start("a");
  });
  start("a");
  start("b");
  vi.advanceTimersByTime(100);
  expect(late).toEqual(["a"]);
  expect(vi.getTimerCount()).toBe(1);
  vi.advanceTimersByTime(100);
  expect(late).toEqual(["a", "a"]);
  expect(vi.getTimerCount()).toBe(0);
});
