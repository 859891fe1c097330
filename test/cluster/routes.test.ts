import { describe, expect, it } from "vitest";
import { RouteTable } from "../../cluster/routes.ts";
import type { Route } from "../../cluster/routes.ts";
import { random } from "../support/random.ts";

const [a, b] = ["node-0@weur.emqxcl", "node-1@weur.emqxcl"] as const;

function matched(table: RouteTable, topic: string): Route[] {
  const routes: Route[] = [];
  table.match(topic, (route) => routes.push(route));
  return routes;
}

/** Every entry as a line, in order. */
function lines(table: RouteTable): string[] {
  return [...table.entries()]
    .map((entry) =>
      entry.group === undefined
        ? `${entry.filter} ${entry.node}`
        : `$share/${entry.group}/${entry.filter} ${entry.node} ${entry.members}`,
    )
    .sort();
}

describe("route table", () => {
  it("matches a topic with the filters and nodes that it has", () => {
    const table = new RouteTable(1);
    table.add(a, "a/b");
    table.add(b, "a/+");
    table.add(a, "a/+");
    table.add(a, "c");
    const routes = matched(table, "a/b");
    expect(new Map(routes.map(({ filter, nodes }) => [filter, [...nodes]]))).toEqual(
      new Map([
        ["a/b", [a]],
        ["a/+", [b, a]],
      ]),
    );
    expect(table.size).toBe(3);
  });

  it("counts a subscriber once, however often it is told", () => {
    const table = new RouteTable(1);
    for (const filter of ["a", "a/+"]) {
      table.add(a, filter);
      table.add(a, filter);
      table.add(b, filter);
      table.remove(a, filter);
      table.remove(a, filter);
    }
    expect(lines(table)).toEqual([`a ${b}`, `a/+ ${b}`].sort());
    table.remove(b, "a");
    table.remove(b, "a/+");
    table.remove(b, "never/there");
    table.removeShared(b, "g", "never/there");
    expect(table.size).toBe(0);
  });

  it("keeps share groups beside ordinary subscribers", () => {
    const table = new RouteTable(1);
    table.setShared(a, "g", "t/#", 2);
    table.setShared(b, "g", "t/#", 0);
    table.setShared(b, "h", "t/#", 1);
    table.add(a, "t/#");
    expect(lines(table)).toEqual([`$share/g/t/# ${a} 2`, `$share/g/t/# ${b} 0`, `$share/h/t/# ${b} 1`, `t/# ${a}`]);
    table.remove(a, "t/#");
    const [route] = matched(table, "t");
    expect(route?.nodes).toEqual([]);
    expect([...(route?.groups?.keys() ?? [])]).toEqual(["g", "h"]);
    table.setShared(a, "g", "t/#", 1);
    expect(lines(table)).toContain(`$share/g/t/# ${a} 1`);
    table.removeShared(a, "g", "t/#");
    table.removeShared(a, "g", "t/#");
    table.removeShared(b, "g", "t/#");
    table.removeShared(b, "h", "t/#");
    expect(matched(table, "t")).toEqual([]);
    expect(table.size).toBe(0);
  });

  it("leaves a list of nodes alone that was handed out", () => {
    const table = new RouteTable(1);
    table.add(a, "t");
    const before = matched(table, "t")[0]?.nodes;
    table.add(b, "t");
    const between = matched(table, "t")[0]?.nodes;
    table.remove(a, "t");
    expect([before, between, matched(table, "t")[0]?.nodes]).toEqual([[a], [a, b], [b]]);
  });

  it("drops a node everywhere", () => {
    const table = new RouteTable(1);
    for (const filter of ["x", "y", "x/+", "y/#", "#"]) {
      table.add(a, filter);
      table.setShared(a, "g", filter, 1);
    }
    table.add(b, "x");
    table.add(b, "y/#");
    table.setShared(b, "g", "#", 3);
    table.dropNode(a);
    expect(lines(table)).toEqual([`$share/g/# ${b} 3`, `x ${b}`, `y/# ${b}`]);
    expect(table.size).toBe(3);
    table.dropNode(a);
    expect(table.size).toBe(3);
  });

  it("drops a node of many", () => {
    const table = new RouteTable(1);
    for (let i = 0; i < 20_000; i++) {
      table.add(i % 3 === 0 ? b : a, `devices/${i}/#`);
      if (i % 5 === 0) table.add(i % 3 === 0 ? a : b, `devices/${i}/#`);
    }
    table.dropNode(a);
    const kept = Array.from({ length: 20_000 }, (_, i) => i).filter((i) => i % 3 === 0 || i % 5 === 0);
    expect(lines(table)).toEqual(kept.map((i) => `devices/${i}/# ${b}`).sort());
    table.dropNode(b);
    expect(table.size).toBe(0);
  });

  it("knows whether anyone listens under $SYS", () => {
    const table = new RouteTable(1);
    table.add(a, "#");
    table.add(a, "$other/#");
    table.add(a, "sys/$SYS/x");
    table.add(a, "$SYS");
    expect(table.hasFilterUnder("$SYS/")).toBe(false);
    table.add(a, "$SYS/#");
    table.add(a, "$SYS/#");
    table.setShared(b, "g", "$SYS/brokers", 1);
    expect(table.hasFilterUnder("$SYS/")).toBe(true);
    table.remove(a, "$SYS/#");
    table.remove(a, "$SYS/#");
    expect(table.hasFilterUnder("$SYS/")).toBe(true);
    table.removeShared(b, "g", "$SYS/brokers");
    expect(table.hasFilterUnder("$SYS/")).toBe(false);
    expect(matched(table, "$SYS")).toHaveLength(1);
  });

  it("says by its version whether what a topic matched may be used again", () => {
    const table = new RouteTable(1);
    const isChangedBy = (change: () => void): boolean => {
      const before = table.version;
      change();
      return table.version !== before;
    };
    expect(isChangedBy(() => table.add(a, "t"))).toBe(true);
    expect(isChangedBy(() => table.add(a, "t"))).toBe(false);
    expect(isChangedBy(() => table.add(b, "t"))).toBe(true);
    expect(isChangedBy(() => table.setShared(a, "g", "t", 1))).toBe(true);
    // The same group still picks: it knows its members.
    expect(isChangedBy(() => table.setShared(b, "g", "t", 1))).toBe(false);
    expect(isChangedBy(() => table.removeShared(b, "g", "t"))).toBe(false);
    expect(isChangedBy(() => table.removeShared(a, "g", "t"))).toBe(true);
    expect(isChangedBy(() => table.remove(a, "other"))).toBe(false);
    expect(isChangedBy(() => table.remove(a, "t"))).toBe(true);
    expect(isChangedBy(() => table.dropNode(b))).toBe(true);
    expect(isChangedBy(() => table.dropNode(b))).toBe(false);
  });

  it.each([1, 2, 3])("agrees with a plain set of entries, seed %d", (seed) => {
    const next = random(seed);
    const pick = <T>(of: readonly [T, ...T[]]): T => of[Math.floor(next() * of.length)] ?? of[0];
    const table = new RouteTable(seed);
    const model = new Map<string, string>();
    for (let i = 0; i < 3000; i++) {
      const node = pick(["n0", "n1", "n2"]);
      const filter = pick(["a", "a/b", "+", "a/+", "#", "a/#", "$SYS/#", "$SYS/a"]);
      const group = pick(["g", "h"]);
      const shared = `$share/${group}/${filter} ${node}`;
      const plain = `${filter} ${node}`;
      const roll = next();
      if (roll < 0.3) {
        table.add(node, filter);
        model.set(plain, plain);
      } else if (roll < 0.6) {
        table.remove(node, filter);
        model.delete(plain);
      } else if (roll < 0.78) {
        const members = Math.floor(next() * 3);
        table.setShared(node, group, filter, members);
        model.set(shared, `${shared} ${members}`);
      } else if (roll < 0.99) {
        table.removeShared(node, group, filter);
        model.delete(shared);
      } else {
        table.dropNode(node);
        for (const key of [...model.keys()]) if (key.endsWith(` ${node}`)) model.delete(key);
      }
      expect(lines(table)).toEqual([...model.values()].sort());
      const filters = new Set([...model.keys()].map((key) => key.replace(/^\$share\/.\//, "").split(" ")[0] ?? ""));
      expect(table.size).toBe(filters.size);
      expect(table.hasFilterUnder("$SYS/")).toBe([...filters].some((each) => each.startsWith("$SYS/")));
    }
  });
});
