import { describe, expect, test } from "vitest";
import { isCoordinator, Membership, type Member } from "../../cluster/membership.ts";
import { limits } from "../../mqtt/limits.ts";
import { random } from "../support/random.ts";

function member(name: string, fields: Partial<Member> = {}): Member {
  const home = name.startsWith("core") ? "" : "core-a";
  const role = home === "" ? "core" : "replicant";
  return { name, role, domain: "emqxcl", home, term: 0, joinedAt: 1, state: "in", changedAt: 1, ...fields };
}

const names = (members: readonly Member[]) => members.map(({ name }) => name);

describe("members", () => {
  test("are in the order of their age, and of one moment by name", () => {
    const members = new Membership([
      member("node-1", { joinedAt: 5 }),
      member("core-b", { joinedAt: 3 }),
      member("core-a", { joinedAt: 3 }),
      member("edge", { home: "", joinedAt: 2 }),
    ]);
    expect(names(members.present())).toEqual(["edge", "core-a", "core-b", "node-1"]);
    expect(names(members.coordinators())).toEqual(["edge", "core-a", "core-b"]);
    expect(names(members.cores())).toEqual(["core-a", "core-b"]);
    expect(names(members.nodes())).toEqual(["node-1"]);
    expect(isCoordinator(member("node-1"))).toBe(false);
  });

  test("that have left are remembered, so that an older record does not bring them back", () => {
    const members = new Membership([member("node-1")]);
    expect(members.merge(member("node-1", { state: "left", changedAt: 2 }))).toBe(true);
    expect(members.has("node-1")).toBe(false);
    expect(members.present()).toEqual([]);
    expect(members.merge(member("node-1", { joinedAt: 9 }))).toBe(false);
    expect(members.has("node-1")).toBe(false);
    expect(members.merge(member("node-1", { joinedAt: 9, changedAt: 3 }))).toBe(true);
    expect(members.get("node-1")?.joinedAt).toBe(9);
  });

  test("change later than before, whatever the clock says", () => {
    const members = new Membership([member("node-1", { changedAt: 1000 })]);
    expect(members.nextChangeAt("node-1", 500)).toBe(1001);
    expect(members.nextChangeAt("node-1", 2000)).toBe(2000);
    expect(members.nextChangeAt("node-2", 500)).toBe(500);
  });

  test("[G8] are the same everywhere, in whatever order their records come", () => {
    const next = random(7);
    const pick = <T>(items: readonly T[]): T => items[Math.floor(next() * items.length)]!;
    const records = Array.from({ length: 200 }, () =>
      member(pick(["core-a", "core-b", "node-1", "node-2"]), {
        state: pick(["in", "left", "cleaned"]),
        home: pick(["core-a", "core-b"]),
        changedAt: Math.floor(next() * 20),
      }),
    );
    const merged = (order: readonly Member[]) => {
      const members = new Membership([]);
      for (const record of order) members.merge(record);
      return [...members.all()].sort((a, b) => (a.name < b.name ? -1 : 1));
    };
    const expected = merged(records);
    for (let round = 0; round < 20; round++) {
      const order = records.map((record) => [next(), record] as const).sort(([a], [b]) => a - b);
      expect(merged(order.map(([, record]) => record))).toEqual(expected);
    }
  });

  test("[G6] are bounded: who has left makes room", () => {
    const members = new Membership([]);
    for (let at = 0; at < limits.membersMax; at++) members.merge(member(`node-${at}`));
    expect(members.merge(member("one-more"))).toBe(false);
    expect(members.merge(member("node-3", { state: "left", changedAt: 2 }))).toBe(true);
    expect(members.merge(member("one-more"))).toBe(true);
    expect(members.get("node-3")).toBeUndefined();
  });
});
