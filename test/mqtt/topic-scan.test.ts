import { describe, expect, test } from "vitest";
import { runEnd, seekAfter } from "../../mqtt/topic-scan.ts";
import { matches } from "../../mqtt/topic.ts";
import { random } from "../support/random.ts";

/** Topics as an index has them: once each, by their UTF-8 bytes. */
class Index {
  readonly topics: readonly string[];
  readonly #bytes: readonly Buffer[];

  constructor(topics: Iterable<string>) {
    this.#bytes = [...new Set(topics)].map((topic) => Buffer.from(topic)).sort(Buffer.compare);
    this.topics = this.#bytes.map(String);
  }

  /** The place of the first topic that is not before `from`. */
  placeOf(from: string): number {
    const bytes = Buffer.from(from);
    let low = 0;
    let high = this.topics.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (Buffer.compare(this.#bytes[middle]!, bytes) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** All behind `after` that match, and how many topics were looked at for them. */
  scan(filter: string, after = ""): { found: string[]; looked: number } {
    const found: string[] = [];
    let looked = 0;
    let last = -1;
    for (let from = seekAfter(filter, after); from !== undefined; looked++) {
      const place = this.placeOf(from);
      const topic = this.topics[place];
      if (topic === undefined) break;
      if (place <= last) throw new Error(`${filter} looks at ${topic} again`);
      last = place;
      if (matches(filter, topic)) found.push(topic);
      from = seekAfter(filter, topic);
    }
    return { found, looked };
  }

  /** The same, by looking at all. */
  naive(filter: string, after = ""): string[] {
    const bytes = Buffer.from(after);
    return this.topics.filter(
      (topic, place) => Buffer.compare(this.#bytes[place]!, bytes) > 0 && matches(filter, topic),
    );
  }
}

/** How many values the `+` of a filter take: levels of the topics that match as far as that. */
function plusValues(filter: string, topics: readonly string[]): number {
  const values = new Set<string>();
  const filterLevels = filter.split("/");
  for (const topic of topics) {
    const levels = topic.split("/");
    for (const [depth, level] of filterLevels.entries()) {
      const front = levels.slice(0, depth + 1).join("/");
      if (level === "+" && levels.length > depth && matches(filterLevels.slice(0, depth + 1).join("/"), front))
        values.add(`${depth} ${front}`);
    }
  }
  return values.size;
}

describe("what a filter finds", () => {
  test.each([
    ["[MQTT-4.7.1-2] below, and the parent", "a/#", ["a", "a!", "a/", "a/b", "a/b/c", "a0", "b"]],
    ["[MQTT-4.7.1-2] below a level", "+/b/#", ["a/b", "a/b!", "a/b/", "a/b/c", "a/bc", "b/b"]],
    ["[MQTT-4.7.1-3] one level", "a/+", ["a", "a/", "a/!", "a/b", "a/b/c", "a/c", "a0"]],
    ["[MQTT-4.7.1-3] a level in the middle", "+/b", ["!/b", "/b", "a", "a!/b", "a/a", "a/b", "a/b/c", "a0/b"]],
    ["[MQTT-4.7.1-3] empty levels", "+/+/+", ["/", "//", "///", "a//", "//a", "a/b/c"]],
    ["[MQTT-4.7.2-1] not what begins with $", "#", ["!", "$", "$SYS/a", "%", "/", "a"]],
    ["[MQTT-4.7.2-1] nor one level of it", "+/a", ["!/a", "$/a", "$SYS/a", "%/a", "/a"]],
    ["[MQTT-4.7.2-1] but by its name", "$SYS/+", ["$SYS", "$SYS/a", "$SYS/b/c", "$SYS/d"]],
    ["a $ further down", "a/+/b", ["a/!/b", "a/$/b", "a/$SYS/b", "a/%/b"]],
    ["[MQTT-4.7.3-4] a name", "a/b", ["a", "a/a", "a/b", "a/b/c", "a/c"]],
    ["characters of the astral planes", "+/\u{1F600}", ["\uE000/\u{1F600}", "\u{1F600}/\uE000", "\u{1F600}/\u{1F600}"]],
    ["halves of them", "+/\u{1F600}", ["a/\u{1F5FF}", "a/\u{1F600}", "a/\u{1F601}", "b/\u{1F600}"]],
  ])("%s: %s", (_what, filter, topics) => {
    const index = new Index(topics);
    const found = index.naive(filter);
    expect(found).not.toEqual([]);
    expect(index.scan(filter).found).toEqual(found);
  });

  const levels = ["", "a", "b", "ab", "a!", "!", " ", "$", "$SYS", "0", "\u0001", "é", "\uE000", "\uFFFD"];
  const plane = ["\u{10000}", "\u{1F600}", "\u{1F601}", "a\u{1F600}", "a\uFFFD", "\u{10FFFF}"];

  test.each(Array.from({ length: 20 }, (_, seed) => seed))(
    "is what the naive matcher finds, in order: seed %i",
    (seed) => {
      const next = random(seed);
      const some = [...levels, ...plane].filter(() => next() < 0.4);
      const pick = (): string => some[Math.floor(next() * some.length)] ?? "a";
      const join = (): string => Array.from({ length: 1 + Math.floor(next() * 4) }, pick).join("/") || "/";
      const index = new Index(Array.from({ length: 200 }, join));
      for (let count = 0; count < 60; count++) {
        const levelsOfFilter = join()
          .split("/")
          .map((level) => (next() < 0.4 ? "+" : level));
        const filter = [...levelsOfFilter, ...(next() < 0.4 ? ["#"] : [])].join("/");
        const { found, looked } = index.scan(filter);
        expect({ filter, found }).toEqual({ filter, found: index.naive(filter) });
        expect(looked).toBeLessThanOrEqual(found.length + 4 * plusValues(filter, index.topics) + 2);
        for (const topic of found) {
          const end = runEnd(filter, topic);
          if (end === undefined) continue;
          const run = index.topics.slice(index.placeOf(topic), index.placeOf(end));
          expect({ filter, topic, run }).toEqual({ filter, topic, run: run.filter((each) => matches(filter, each)) });
          expect(run).toContain(topic);
        }
        // A page begins behind any topic, also one that has been deleted since.
        for (const after of [join(), index.topics[Math.floor(next() * index.topics.length)] ?? ""])
          expect({ filter, after, found: index.scan(filter, after).found }).toEqual({
            filter,
            after,
            found: index.naive(filter, after),
          });
      }
    },
  );
});

describe("a run is all that matches without a gap", () => {
  const index = new Index(["!", "#", "$", "$SYS/a", "/", "/b", "a", "a!", "a/", "a/b", "a/b/c", "a/b/d/e", "a0", "é"]);

  test.each([
    ["#", "!", ["!", "#"]],
    ["#", "a/b", ["a/b", "a/b/c", "a/b/d/e", "a0", "é"]],
    ["a/#", "a/", ["a/", "a/b", "a/b/c", "a/b/d/e"]],
    ["+/b/#", "a/b/c", ["a/b/c", "a/b/d/e"]],
    ["+/#", "/", ["/", "/b"]],
    ["$SYS/#", "$SYS/a", ["$SYS/a"]],
    ["a/#", "a", undefined],
    ["a/+", "a/b", undefined],
    ["a", "a", undefined],
  ])("%s, from %s", (filter, from, run) => {
    const end = runEnd(filter, from);
    expect(end && index.topics.slice(index.placeOf(from), index.placeOf(end))).toEqual(run);
  });
});

describe("[G6] what it looks at, among 100,002 topics", () => {
  const devices = 33_334;
  const numbers = Array.from({ length: devices }, (_, number) => number);
  const index = new Index(numbers.flatMap((number) => ["a", "b", "c"].map((leaf) => `d/${number}/${leaf}`)));

  test.each([
    ["d/7777/c", 1, 1],
    ["d/77777/c", 0, 1],
    ["d/7777/+", 3, 4],
    ["d/7777/#", 3, 4],
    ["d/77777/#", 0, 1],
    ["+/7777/c", 1, 2],
    ["+/77777/c", 0, 2],
    ["+/+/x", 0, devices],
    ["d/+/a", devices, devices],
    ["d/+/c", devices, 2 * devices],
    ["d/+/c/#", devices, 2 * devices],
    ["#", 3 * devices, 3 * devices],
    ["e/#", 0, 0],
    ["+/+", 0, devices],
  ])("%s: finds %i and looks at %i", (filter, found, looked) => {
    const scanned = index.scan(filter);
    expect({ found: scanned.found.length, looked: scanned.looked }).toEqual({ found, looked });
  });
});
