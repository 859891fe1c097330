import { describe, expect, it } from "vitest";
import { ShareGroup, sharedStrategies } from "../../cluster/shared-sub.ts";
import type { SharedPick, SharedPublish, SharedStrategy } from "../../cluster/shared-sub.ts";
import { random } from "../support/random.ts";

const publish = { topic: "t", clientId: "publisher", node: "node-0@weur.emqxcl", isReachable: () => true };

function groupOf(members: Record<string, number>, publishersMax = 100): ShareGroup {
  const group = new ShareGroup(publishersMax);
  for (const [node, connected] of Object.entries(members)) group.set(node, connected);
  return group;
}

/** "node#ordinal" of each of `times` picks. */
function picks(
  group: ShareGroup,
  strategy: SharedStrategy,
  times: number,
  from: Partial<SharedPublish> = {},
  next = random(1),
): string[] {
  return Array.from({ length: times }, () => show(group.pick(strategy, { ...publish, ...from }, next)));
}

function show(pick: SharedPick | undefined): string {
  return pick === undefined ? "nobody" : `${pick.node}#${pick.ordinal}`;
}

const all = ["a#0", "a#1", "b#0", "c#0", "c#1", "c#2"];

describe("share group", () => {
  it.each(sharedStrategies)("%s: nobody in an empty group", (strategy) => {
    const group = groupOf({ a: 1 });
    group.delete("a");
    expect(picks(group, strategy, 1)).toEqual(["nobody"]);
    expect(group.size).toBe(0);
  });

  it.each(sharedStrategies)("%s: the only member there is", (strategy) => {
    expect(new Set(picks(groupOf({ a: 1 }), strategy, 5))).toEqual(new Set(["a#0"]));
  });

  it.each(sharedStrategies)("%s: offline members only when none is connected", (strategy) => {
    const group = groupOf({ a: 0, b: 2, c: 0 });
    const from = { node: "a" };
    expect(picks(group, strategy, 20, from).filter((pick) => !pick.startsWith("b#"))).toEqual([]);
    group.set("b", 0);
    expect(group.pick(strategy, { ...publish, ...from }, random(2))).toBeDefined();
    group.delete("b");
    expect(picks(group, strategy, 20, from).filter((pick) => !/^[ac]#/.test(pick))).toEqual([]);
  });

  it.each(sharedStrategies)("[G1] %s: members on nodes out of reach only when no other is in reach", (strategy) => {
    const group = groupOf({ a: 2, b: 0, c: 1 });
    const cut = new Set(["a"]);
    const from = { node: "a", isReachable: (node: string) => !cut.has(node) };
    expect(new Set(picks(group, strategy, 20, from))).toEqual(new Set(["c#0"]));
    cut.add("c");
    expect(picks(group, strategy, 20, from).filter((pick) => !pick.startsWith("b#"))).toEqual([]);
    cut.add("b");
    expect(picks(group, strategy, 20, from).filter((pick) => !/^[ac]#/.test(pick))).toEqual([]);
  });

  it.each(sharedStrategies)("%s: does not depend on the order in which nodes came", (strategy) => {
    const one = groupOf({ a: 2, b: 1, c: 3 });
    const other = groupOf({ c: 3, a: 2, b: 1 });
    expect(picks(one, strategy, 20)).toEqual(picks(other, strategy, 20));
  });

  it("round_robin: every member in turn, for each publisher, from a random start", () => {
    const group = groupOf({ a: 2, b: 1, c: 3 });
    const first = picks(group, "round_robin", 6, { clientId: "p1" }, () => 0);
    const second = picks(group, "round_robin", 6, { clientId: "p2" }, () => 3 / 0x1_0000_0000);
    expect(first).toEqual(all);
    expect(second).toEqual([...all.slice(3), ...all.slice(0, 3)]);
    expect(picks(group, "round_robin", 3, { clientId: "p1" })).toEqual(all.slice(0, 3));
  });

  it("[G6] round_robin: forgets the publisher that has been silent longest", () => {
    const group = groupOf({ a: 3 }, 2);
    const start = (clientId: string): string[] => picks(group, "round_robin", 1, { clientId }, () => 0);
    expect([start("p1"), start("p2"), start("p1")]).toEqual([["a#0"], ["a#0"], ["a#1"]]);
    expect(start("p3")).toEqual(["a#0"]);
    expect(start("p1")).toEqual(["a#2"]);
    expect(start("p2")).toEqual(["a#0"]);
  });

  it("round_robin_per_group: every member in turn, whoever publishes", () => {
    const group = groupOf({ a: 2, b: 1, c: 3 });
    const seen = [1, 2, 3, 4, 5, 6, 7].flatMap((n) => picks(group, "round_robin_per_group", 1, { clientId: `p${n}` }));
    expect(seen).toEqual([...all, "a#0"]);
  });

  it("round_robin_per_group: goes round the nodes, and round their members, where all are offline", () => {
    expect(picks(groupOf({ a: 0, b: 0 }), "round_robin_per_group", 5)).toEqual(["a#0", "b#0", "a#1", "b#1", "a#2"]);
  });

  it("random: every member about as often", () => {
    const counts = new Map<string, number>();
    for (const pick of picks(groupOf({ a: 2, b: 1, c: 3 }), "random", 6000)) {
      counts.set(pick, (counts.get(pick) ?? 0) + 1);
    }
    expect([...counts.keys()].sort()).toEqual(all);
    for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(150);
  });

  it("sticky: stays, for a publisher, until the node has no members", () => {
    const group = groupOf({ a: 2, b: 2, c: 2 });
    const next = random(3);
    const [stuck = ""] = picks(group, "sticky", 1, {}, next);
    expect(new Set(picks(group, "sticky", 50, {}, next))).toEqual(new Set([stuck]));
    const node = stuck.slice(0, 1);
    group.set("d", 5);
    expect(picks(group, "sticky", 1, {}, next)).toEqual([stuck]);
    group.set(node, 0);
    const [moved = ""] = picks(group, "sticky", 1, {}, next);
    expect(moved.startsWith(node)).toBe(false);
    group.set(node, 2);
    expect(picks(group, "sticky", 1, {}, next)).toEqual([moved]);
  });

  it("[G6] sticky: forgets the publisher that has been silent longest", () => {
    const group = groupOf({ a: 4 }, 1);
    expect(picks(group, "sticky", 1, { clientId: "p1" }, () => 0)).toEqual(["a#0"]);
    const third = (): number => 3 / 0x1_0000_0000;
    expect(picks(group, "sticky", 1, { clientId: "p1" }, third)).toEqual(["a#0"]);
    expect(picks(group, "sticky", 1, { clientId: "p2" }, () => 0)).toEqual(["a#0"]);
    expect(picks(group, "sticky", 1, { clientId: "p1" }, third)).toEqual(["a#3"]);
  });

  it("local: a member on the publisher's node, else any", () => {
    const group = groupOf({ a: 2, b: 1, c: 0 });
    expect(new Set(picks(group, "local", 50, { node: "a" }))).toEqual(new Set(["a#0", "a#1"]));
    expect(new Set(picks(group, "local", 50, { node: "c" }))).toEqual(new Set(["a#0", "a#1", "b#0"]));
    expect(new Set(picks(group, "local", 50, { node: "x" }))).toEqual(new Set(["a#0", "a#1", "b#0"]));
  });

  it.each([
    ["hash_clientid", "clientId", "topic"],
    ["hash_topic", "topic", "clientId"],
  ] as const)("%s: the same member for the same %s, every member for many", (strategy, by, other) => {
    const group = groupOf({ a: 2, b: 1, c: 3 });
    const seen = new Set<string>();
    for (let i = 0; i < 200; i++) {
      const [pick = ""] = picks(group, strategy, 1, { [by]: `x${i}` });
      expect(picks(group, strategy, 1, { [by]: `x${i}`, [other]: `y${i}` }, random(i))).toEqual([pick]);
      seen.add(pick);
    }
    expect([...seen].sort()).toEqual(all);
  });
});
