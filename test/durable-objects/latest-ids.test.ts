import { describe, expect, test } from "vitest";
import { LatestIds } from "../../durable-objects/coordinator/latest-ids.ts";
import { limits } from "../../mqtt/limits.ts";
import { messageIdOf } from "../../mqtt/message-id-set.ts";
import { random } from "../support/random.ts";

const lives = ["4f1c09d2a6b3", "0123456789ab"] as const;

function message(number: number, topic = "t", life: string = lives[0]) {
  return { id: messageIdOf(life, number), topic };
}

describe("the latest message of a life on a topic", () => {
  test("is told to another one of them, and to no other", () => {
    const latest = new LatestIds();
    latest.add(message(40));
    expect(latest.get(message(1))).toBe(message(40).id);
    expect(latest.get(message(50))).toBe(message(40).id);
    expect(latest.get(message(1, "u"))).toBeUndefined();
    expect(latest.get(message(1, "t", lives[1]))).toBeUndefined();
  });

  test("seeded: is the one with the highest number, in whatever order they come", () => {
    for (let seed = 1; seed <= 20; seed++) {
      const next = random(seed);
      const latest = new LatestIds();
      const highest = new Map<string, number>();
      for (let step = 0; step < 100; step++) {
        const [topic, life] = [`t${Math.floor(next() * 3)}`, lives[Math.floor(next() * 2)]!];
        const number = Math.floor(next() * 2_000);
        latest.add(message(number, topic, life));
        highest.set(topic + life, Math.max(highest.get(topic + life) ?? 0, number));
        expect({ seed, step, id: latest.get(message(0, topic, life)) }).toEqual({
          seed,
          step,
          id: messageIdOf(life, highest.get(topic + life)!),
        });
      }
    }
  });

  test.each([0, 60_000])(
    "[G6] topics with %i bytes more: the memory is bounded, and forgets the oldest first",
    (more) => {
      const latest = new LatestIds();
      const tail = "x".repeat(more);
      const countMax = Math.ceil(limits.latestIdsBytesMax / (2 * more + 64));
      const count = countMax + 10;
      for (let number = 0; number < count; number++) {
        latest.add(message(number, `${number}${tail}`));
        // One that is heard of again and again stays.
        latest.add(message(number, `busy${tail}`));
      }
      const known = Array.from(
        { length: count },
        (_, number) => latest.get(message(0, `${number}${tail}`)) !== undefined,
      );
      const first = known.indexOf(true);
      expect(first).toBeGreaterThan(0);
      expect(known.slice(first)).not.toContain(false);
      expect(latest.get(message(0, `busy${tail}`))).toBe(message(count - 1).id);
      // Nor is it far below its bound.
      expect(count - first).toBeGreaterThan(countMax / 6);
    },
  );
});
