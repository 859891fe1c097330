import { describe, expect, it } from "vitest";
import { KeyHash } from "../../cluster/packed-map.ts";
import { TopicTrie } from "../../cluster/trie.ts";
import { random } from "../support/random.ts";

/** MQTT 4.7, said as plainly as possible. */
function naiveMatch(filter: string, topic: string): boolean {
  if (topic.startsWith("$") && (filter.startsWith("+") || filter.startsWith("#"))) return false;
  const f = filter.split("/");
  const t = topic.split("/");
  const many = f.at(-1) === "#";
  if (many) f.pop();
  if (many ? t.length < f.length : t.length !== f.length) return false;
  return f.every((level, i) => level === "+" || level === t[i]);
}

function newTrie(): TopicTrie {
  return new TopicTrie(new KeyHash(1));
}

function trieOf(...filters: string[]): TopicTrie {
  const trie = newTrie();
  for (const filter of filters) trie.set(filter, 1);
  return trie;
}

function matched(trie: TopicTrie, topic: string): string[] {
  const filters: string[] = [];
  trie.match(topic, (filter) => filters.push(filter));
  return filters.sort();
}

describe("topic trie", () => {
  it.each([
    ["[MQTT-4.7.1-2]", "sport/#", "sport", true],
    ["[MQTT-4.7.1-2]", "sport/#", "sport/", true],
    ["[MQTT-4.7.1-2]", "sport/#", "sport/tennis/player1/ranking", true],
    ["[MQTT-4.7.1-2]", "sport/tennis/#", "sport", false],
    ["[MQTT-4.7.1-2]", "#", "a/b/c", true],
    ["[MQTT-4.7.1-3]", "sport/tennis/+", "sport/tennis/player1", true],
    ["[MQTT-4.7.1-3]", "sport/tennis/+", "sport/tennis/player1/ranking", false],
    ["[MQTT-4.7.1-3]", "sport/+", "sport", false],
    ["[MQTT-4.7.1-3]", "sport/+", "sport/", true],
    ["[MQTT-4.7.1-3]", "+/+", "/finance", true],
    ["[MQTT-4.7.1-3]", "/+", "/finance", true],
    ["[MQTT-4.7.1-3]", "+", "/finance", false],
    ["[MQTT-4.7.2-1]", "#", "$SYS/monitor/Clients", false],
    ["[MQTT-4.7.2-1]", "+/monitor/Clients", "$SYS/monitor/Clients", false],
    ["[MQTT-4.7.2-1]", "+", "$SYS", false],
    ["[MQTT-4.7.2-1]", "$SYS/#", "$SYS/monitor/Clients", true],
    ["[MQTT-4.7.2-1]", "$SYS/monitor/+", "$SYS/monitor/Clients", true],
    ["[MQTT-4.7.3-4]", "Accounts/+", "ACCOUNTS/a", false],
  ])("%s %s against %s: %s", (_clause, filter, topic, matches) => {
    expect(matched(trieOf(filter), topic)).toEqual(matches ? [filter] : []);
  });

  it("visits every filter that matches, once", () => {
    const trie = trieOf("a/b/#", "a/+/c", "a/b/+", "+/b/c", "#", "a/b/c/#", "a/c/#", "+");
    expect(matched(trie, "a/b/c")).toEqual(["#", "+/b/c", "a/+/c", "a/b/#", "a/b/+", "a/b/c/#"]);
  });

  it("replaces a value that is set again", () => {
    const trie = trieOf("a/+");
    trie.set("a/+", 7);
    expect(trie.size).toBe(1);
    expect(trie.get("a/+")).toBe(7);
    const values: number[] = [];
    trie.match("a/b", (_filter, value) => values.push(value));
    expect(values).toEqual([7]);
  });

  it("tells apart what was set from what leads there", () => {
    const trie = trieOf("a/b/+/#");
    expect(trie.get("a/b/+")).toBe(0);
    expect(trie.get("a/b/#")).toBe(0);
    expect(matched(trie, "a/b/c")).toEqual(["a/b/+/#"]);
    expect(trie.delete("a/b/+")).toBe(false);
    expect(trie.delete("a/b")).toBe(false);
    expect(trie.delete("x/y/#")).toBe(false);
    expect(trie.size).toBe(1);
  });

  it("[G6] keeps no branch that leads to no filter", () => {
    const trie = trieOf("a/+/c/+", "a/+/#", "a/b/#", "x/+");
    expect(trie.branches).toBe(1);
    for (const filter of ["a/+/x/+", "+/+/+/#", "#", "/+", "//+", "a/b/y/+/z"]) {
      trie.set(filter, 1);
      expect(trie.delete(filter)).toBe(true);
      expect(trie.branches).toBe(1);
    }
    expect(trie.delete("a/+/c/+")).toBe(true);
    expect(trie.branches).toBe(1);
    expect(trie.delete("a/+/#")).toBe(true);
    expect(trie.branches).toBe(0);
  });

  it("matches a topic of very many levels against a shallow trie", () => {
    const trie = trieOf("a/#", "+/+", "a/a/a/a/+");
    expect(matched(trie, "a/".repeat(30_000))).toEqual(["a/#"]);
  });

  it.each([1, 2, 3, 4, 5, 6])("agrees with the naive matcher, seed %d", (seed) => {
    const next = random(seed);
    const pick = (names: readonly string[]): string => names[Math.floor(next() * names.length)] ?? "";
    const levels = (names: readonly string[]): string[] =>
      Array.from({ length: 1 + Math.floor(next() * 5) }, () => pick(names));
    const names = ["a", "b", "", "ü€", "😀", "$SYS"];
    const trie = new TopicTrie(new KeyHash(seed));
    const model = new Set<string>();
    let hits = 0;
    for (let i = 0; i < 2000; i++) {
      const filter = levels([...names, "+", "+"]);
      if (next() < 0.3) filter.push("#");
      const text = filter.join("/") || "+";
      // The set grows and shrinks in turn, so that it is emptied a few times.
      if (next() < (i % 1000 < 500 ? 0.75 : 0.2)) {
        trie.set(text, 1 + i);
        expect(trie.get(text)).toBe(1 + i);
        model.add(text);
      } else {
        const victim = next() < 0.8 ? ([...model][Math.floor(next() * model.size)] ?? text) : text;
        expect(trie.delete(victim)).toBe(model.delete(victim));
      }
      const topic = levels(names).join("/") || "a";
      const expected = [...model].filter((each) => naiveMatch(each, topic)).sort();
      hits += expected.length;
      expect(matched(trie, topic)).toEqual(expected);
      expect(trie.get(text) > 0).toBe(model.has(text));
      expect(trie.size).toBe(model.size);
    }
    expect(hits).toBeGreaterThan(500);
    expect([...trie.entries()].map(([filter]) => filter).sort()).toEqual([...model].sort());
    for (const filter of model) trie.delete(filter);
    expect([trie.size, trie.branches]).toEqual([0, 0]);
  });
});
