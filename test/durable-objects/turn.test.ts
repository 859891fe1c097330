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

  test("ends once for many events, also in the waves that follow, and for each again when they were few for a while", async () => {
    for (let events = 0; events < 100; events++) await event();
    expect(ends).toBeLessThanOrEqual(limits.turnWorkMax / 2);
    await look();
    const before = ends;
    for (let waves = 1; waves <= 3; waves++) {
      await vi.advanceTimersByTimeAsync(limits.turnGathersMs - 1);
      for (let events = 0; events < 100; events++) await event();
      expect(ends).toBe(before + waves - 1);
      await look();
      expect(ends).toBe(before + waves);
    }
    await vi.advanceTimersByTimeAsync(limits.turnGathersMs);
    await event();
    expect(ends).toBe(before + 4);
  });

  test("gathers, too, when there was much to do at the end of one event", async () => {
    turn = new Turn(() => (ends++, limits.turnWorkMax));
    await event();
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
    const logged = vi.spyOn(console, "error").mockImplementation(() => {});
    await event();
    expect(logged).toHaveBeenCalledOnce();
    logged.mockRestore();
    fails = false;
    await event();
    await look();
    expect(ends).toBe(1);
  });
});
