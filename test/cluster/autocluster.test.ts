import { describe, expect, it } from "vitest";
import { afterRound, dueAt, joinsOf, resumed, searching, sortOut } from "../../cluster/autocluster.ts";
import type { AutoclusterState, Peer, Problem, Round } from "../../cluster/autocluster.ts";
import { limits } from "../../mqtt/limits.ts";
import { random } from "../support/random.ts";

const self = "core@a.example.com";
const middle = (): number => 0.5;
const now = 1_000_000;

function round(problems: Partial<Record<Problem, string>>, rest: Partial<Round> = {}): Round {
  const entries = Object.entries(problems) as [Problem, string][];
  return { problems: new Map(entries), isWhole: true, holdsMs: undefined, ...rest };
}

/** One round after the other, and what was said in each. */
function rounds(...all: readonly Round[]): { state: AutoclusterState; news: readonly string[][] } {
  let state = searching("etcd", now);
  const news: string[][] = [];
  for (const each of all) {
    const next = afterRound(state, each, now, middle);
    state = next.state;
    news.push([...next.news]);
  }
  return { state, news };
}

const down = round({ discovery_failed: "no answer" }, { isWhole: false });

describe("the search", () => {
  it("is done when all who were discovered are inside", () => {
    const { state } = rounds(round({}));
    expect(state).toEqual({ phase: "done", strategy: "etcd" });
    expect(dueAt(state)).toBeUndefined();
  });

  it("goes on when a registration is to be renewed", () => {
    expect(rounds(round({}, { holdsMs: 20_000 })).state).toMatchObject({ phase: "registered", dueAt: now + 20_000 });
  });

  it("goes on while somebody is outside, also when nothing failed", () => {
    expect(rounds(round({}, { isWhole: false })).state).toMatchObject({ phase: "searching", failures: 1 });
  });

  it("renews a registration in time while somebody is outside", () => {
    const outside = round({ discovery_nodes_outside: "core@b.example.com" }, { isWhole: false, holdsMs: 2_000 });
    const { state } = rounds(...Array.from({ length: 20 }, () => outside));
    expect(state).toMatchObject({ phase: "searching", dueAt: now + 2_000, failures: 20 });
  });

  it("backs off, up to a minute, and not all at once", () => {
    const next = random(1);
    for (let failures = 1; failures < 2_000; failures++) {
      const state = { phase: "searching", strategy: "dns", dueAt: now, failures: failures - 1, said: [] } as const;
      const after = afterRound(state, down, now, next).state;
      const delay = (dueAt(after) ?? 0) - now;
      const most = Math.min(limits.discoveryRetryLastMs, limits.discoveryRetryFirstMs * 2 ** (failures - 1));
      expect(delay).toBeLessThanOrEqual(most);
      expect(delay).toBeGreaterThanOrEqual(most / 2);
    }
  });

  it("says a problem when it begins and that it has ended, each once", () => {
    const { news } = rounds(down, down, down, round({}, { holdsMs: 1 }), round({}, { holdsMs: 1 }), down);
    expect(news).toEqual([["discovery_failed"], [], [], ["recovered"], [], ["discovery_failed"]]);
  });

  it("does not take a problem for ended by a round that did not come so far", () => {
    const outside = round({ discovery_nodes_outside: "core@b.example.com" }, { isWhole: false });
    const { news } = rounds(outside, down, outside, round({}));
    expect(news).toEqual([["discovery_nodes_outside"], ["discovery_failed"], [], ["recovered"]]);
  });

  it("says names that are none once, and is done all the same", () => {
    const odd = round({ discovery_names_ignored: "x" }, { holdsMs: 5 });
    const { news, state } = rounds(odd, odd, down, odd, odd);
    expect(news).toEqual([["discovery_names_ignored"], [], ["discovery_failed"], ["recovered"], []]);
    expect(state.phase).toBe("registered");
  });

  it("does not begin again while disabled, whatever a round still says", () => {
    const disabled = { phase: "disabled" } as const;
    expect(afterRound(disabled, down, now, middle)).toEqual({ state: disabled, news: [] });
    expect(resumed(disabled, "dns", now)).toEqual(disabled);
  });

  it("is resumed where it was, and begins anew with another strategy", () => {
    const { state } = rounds(round({}));
    expect(resumed(state, "etcd", now + 5)).toEqual(state);
    expect(resumed(state, "dns", now + 5)).toEqual(searching("dns", now + 5));
    expect(resumed(undefined, "dns", now)).toMatchObject({ phase: "searching", dueAt: now });
  });
});

describe("what was discovered", () => {
  it("is each other node once, in order, and whether this one is among them", () => {
    const names = ["core@c.example.com", self, "core@b.example.com", "core@c.example.com"];
    expect(sortOut(names, self)).toEqual({
      others: ["core@b.example.com", "core@c.example.com"],
      includesSelf: true,
      ignored: undefined,
    });
    expect(sortOut([], self)).toEqual({ others: [], includesSelf: false, ignored: undefined });
  });

  it("ignores what is no name, and says one of it", () => {
    const found = sortOut(["core", "", "core@B.example.com", "core@b.example.com", "x".repeat(10_000)], self);
    expect(found.others).toEqual(["core@b.example.com"]);
    expect(found.ignored).toBe('4 that are no node names, as "core"');
    expect(sortOut(["x".repeat(10_000)], self).ignored?.length).toBeLessThan(200);
  });

  it("[G6] is bounded", () => {
    const names = Array.from({ length: 1_000 }, (_, i) => `core@n${i}.example.com`);
    const found = sortOut(names, self);
    expect(found.others).toHaveLength(limits.discoveredNodesMax);
    expect(found.ignored).toBe(`${1_000 - limits.discoveredNodesMax} beyond the first ${limits.discoveredNodesMax}`);
  });
});

describe("who joins whom", () => {
  const peer = (node: string, size: number, oldest: string): Peer => ({
    node: `core@${node}.example.com`,
    view: { size, oldest },
  });
  const joins = (self: Peer, ...others: readonly Peer[]): string[] =>
    joinsOf(self, others).map(({ joiner, target }) => `${joiner[5]} joins ${target[5]}`);

  it("the younger joins the older", () => {
    expect(joins(peer("b", 1, "2"), peer("a", 1, "1"))).toEqual(["b joins a"]);
    expect(joins(peer("a", 1, "1"), peer("b", 1, "2"))).toEqual(["b joins a"]);
  });

  it("the smaller joins the larger, though it is older", () => {
    expect(joins(peer("a", 1, "1"), peer("b", 2, "2"), peer("c", 2, "2"))).toEqual(["a joins b"]);
    expect(joins(peer("b", 2, "2"), peer("a", 1, "1"))).toEqual(["a joins b"]);
  });

  it("all others join the first", () => {
    const all = [peer("c", 1, "3"), peer("a", 1, "1"), peer("b", 1, "2")];
    expect(joins(all[1]!, all[0]!, all[2]!)).toEqual(["c joins a", "b joins a"]);
    expect(joins(all[0]!, all[1]!, all[2]!)).toEqual(["c joins a"]);
  });

  it("two that see one another never join crosswise", () => {
    const next = random(7);
    const draw = (most: number): number => 1 + Math.floor(next() * most);
    for (let i = 0; i < 1_000; i++) {
      const [a, b] = ["a", "b"].map((name) => peer(name, draw(3), `${draw(3)}`)) as [Peer, Peer];
      expect(joins(a, b)).toEqual(joins(b, a));
    }
  });
});
