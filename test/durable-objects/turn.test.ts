import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Turn } from "../../durable-objects/turn.ts";
import { limits } from "../../mqtt/limits.ts";

let ends: number;
let turn: Turn;
beforeEach(() => {
  vi.useFakeTimers();
  ends = 0;
  turn = new Turn(() => (ends++, 1));
});
afterEach(() => vi.useRealTimers());

/** An event of the runtime asks for the turn's end, as often as it likes. */
async function event(): Promise<void> {
  turn.endSoon();
  turn.endSoon();
  await Promise.resolve();
}

async function look(): Promise<void> {
  await vi.advanceTimersByTimeAsync(0);
}

describe("a turn", () => {
  test("ends once, at the end of its event, while there are few", async () => {
    turn.endSoon();
    expect(ends).toBe(0);
    await event();
    expect(ends).toBe(1);
    await event();
    expect(ends).toBe(2);
    await look();
    await look();
    expect(ends).toBe(2);
    expect(vi.getTimerCount()).toBe(0);
  });

  test("ends once for many events, and for each again when they are few", async () => {
    for (let events = 0; events <= limits.turnWorkMax; events++) await event();
    await look();
    const before = ends;
    for (let events = 0; events <= limits.turnWorkMax; events++) await event();
    expect(ends).toBe(before);
    await look();
    expect(ends).toBe(before + 1);
    await event();
    await look();
    await look();
    await event();
    expect(ends).toBe(before + 3);
  });

  test("gathers, too, when there was much to do at the end of one event", async () => {
    turn = new Turn(() => (ends++, limits.turnWorkMax));
    await event();
    await look();
    await event();
    expect(ends).toBe(1);
    await look();
    expect(ends).toBe(2);
  });

  test("goes on after an end that failed", async () => {
    let fails = true;
    turn = new Turn(() => {
      if (fails) throw new Error("disk full");
      return ++ends;
    });
    const failed = vi.fn<() => void>();
    process.once("uncaughtException", failed);
    await event();
    await vi.waitFor(() => expect(failed).toHaveBeenCalled());
    fails = false;
    await event();
    await look();
    expect(ends).toBe(1);
  });
});
