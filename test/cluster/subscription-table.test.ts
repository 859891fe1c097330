import { describe, expect, test } from "vitest";
import { SubscriptionTable, type RouteChange, type Subscriber } from "../../cluster/subscription-table.ts";
import { limits } from "../../mqtt/limits.ts";
import { isShared } from "../../mqtt/topic.ts";
import { random } from "../support/random.ts";

/** A subscription from a number on: one whose messages are logged, or one whose messages are not. */
const logged = (sessionId: number, since: number): Subscriber => ({ sessionId, since, isLogged: true });
const unlogged = (sessionId: number, since = 0): Subscriber => ({ sessionId, since, isLogged: false });

/** A node's disk and its connections, as the table sees them. */
class Node {
  readonly rows = new Map<string, Map<number, Subscriber>>();
  readonly connected = new Set<number>();
  /** Filters read from disk. */
  readonly loads: string[] = [];
  /** How often the table has asked whether a session is connected. */
  questions = 0;
  table = this.woken();

  /** The table of another life: nothing is in memory. */
  woken(): SubscriptionTable {
    return new SubscriptionTable({
      load: (key) => {
        this.loads.push(key);
        return [...(this.rows.get(key)?.values() ?? [])].sort((a, b) => a.sessionId - b.sessionId);
      },
      isConnected: (sessionId) => {
        this.questions++;
        return this.connected.has(sessionId);
      },
    });
  }

  put(key: string, subscriber: Subscriber): void {
    let rows = this.rows.get(key);
    if (!rows) this.rows.set(key, (rows = new Map()));
    rows.set(subscriber.sessionId, subscriber);
  }

  delete(key: string, sessionId: number): void {
    this.rows.get(key)?.delete(sessionId);
  }

  /** A subscription that is on disk at once. */
  subscribe(key: string, subscriber: Subscriber | number): RouteChange | undefined {
    if (typeof subscriber === "number") return this.subscribe(key, unlogged(subscriber));
    const change = this.table.add(key, subscriber);
    this.put(key, subscriber);
    this.table.saved(key);
    return change;
  }

  unsubscribe(key: string, sessionId: number): RouteChange | undefined {
    const change = this.table.remove(key, sessionId);
    this.delete(key, sessionId);
    return change;
  }

  subscribers(key: string): number[] {
    return [...this.table.subscribers(key)].map(({ sessionId }) => sessionId);
  }
}

const added = (key: string, members = 0): RouteChange => ({ kind: "add", key, members });

describe("routes", () => {
  test("the first subscriber of a filter adds its route, the last one removes it", () => {
    const node = new Node();
    expect(node.subscribe("a/+", 1)).toEqual(added("a/+"));
    expect(node.subscribe("a/+", 2)).toBeUndefined();
    expect(node.table.has("a/+")).toBe(true);
    expect(node.unsubscribe("a/+", 1)).toBeUndefined();
    expect(node.unsubscribe("a/+", 1)).toBeUndefined();
    expect(node.unsubscribe("a/+", 2)).toEqual({ kind: "remove", key: "a/+" });
    expect(node.table.has("a/+")).toBe(false);
    expect(node.unsubscribe("a/+", 2)).toBeUndefined();
    expect(node.subscribe("a/+", 2)).toEqual(added("a/+"));
  });

  test("after sleep too: the first is the first of all, and the last one the last of all", () => {
    const node = new Node();
    for (const id of [1, 2]) node.subscribe("a", id);
    node.table = node.woken();
    expect(node.subscribe("a", 3)).toBeUndefined();
    node.table = node.woken();
    for (const id of [1, 3]) expect(node.unsubscribe("a", id)).toBeUndefined();
    node.table = node.woken();
    expect(node.unsubscribe("a", 2)).toEqual({ kind: "remove", key: "a" });
    expect(node.table.routeOf("a")).toEqual({ kind: "remove", key: "a" });
  });

  test("a connection that comes or goes changes no route of a plain filter", () => {
    const node = new Node();
    node.connected.add(1);
    node.subscribe("a", 1);
    node.connected.delete(1);
    expect(node.table.connectionChanged(["a"])).toEqual([]);
  });

  test("a share group tells how many of its members are connected, at each change", () => {
    const node = new Node();
    const key = "$share/g/a/+";
    for (const id of [2, 4]) node.connected.add(id);
    expect(node.subscribe(key, 1)).toEqual(added(key, 0));
    expect(node.subscribe(key, 2)).toEqual(added(key, 1));
    expect(node.subscribe(key, 3)).toBeUndefined();
    expect(node.subscribe(key, 4)).toEqual(added(key, 2));
    node.connected.add(1);
    expect(node.table.connectionChanged([key])).toEqual([added(key, 3)]);
    node.connected.delete(2);
    expect(node.table.connectionChanged([key])).toEqual([added(key, 2)]);
    node.table = node.woken();
    expect(node.table.routeOf(key)).toEqual(added(key, 2));
    expect(node.unsubscribe(key, 3)).toEqual(added(key, 2));
    expect(node.unsubscribe(key, 2)).toEqual(added(key, 2));
    expect(node.unsubscribe(key, 4)).toEqual(added(key, 1));
    expect(node.unsubscribe(key, 1)).toEqual({ kind: "remove", key });
  });

  test("of a session's keys those of its groups count", () => {
    const node = new Node();
    for (const id of [1, 2]) node.connected.add(id);
    node.subscribe("a", 1);
    node.subscribe("$share/g/a", 1);
    node.subscribe("$share/g/a", 2);
    node.subscribe("$queue/a", 1);
    node.connected.delete(1);
    expect(node.table.connectionChanged(["a", "$share/g/a", "$queue/a"])).toEqual([
      added("$share/g/a", 1),
      added("$queue/a", 0),
    ]);
  });

  test("a filter is a key of its own for each group", () => {
    const node = new Node();
    node.connected.add(1);
    const keys = ["a", "$share/g/a", "$share/h/a", "$queue/a"];
    for (const key of keys) expect(node.subscribe(key, 1)).toEqual(added(key, key === "a" ? 0 : 1));
    for (const key of keys) expect(node.unsubscribe(key, 1)).toEqual({ kind: "remove", key });
  });

  test("[MQTT-3.8.4-3] a subscription made again takes the place of the old one, and changes no route", () => {
    const node = new Node();
    node.connected.add(1);
    for (const key of ["a", "$share/g/a"]) {
      for (const [first, second] of [
        [logged(1, 5), logged(1, 9)],
        [unlogged(1, 5), unlogged(1, 9)],
        [logged(1, 9), unlogged(1, 9)],
        [unlogged(1, 5), logged(1, 9)],
      ] as const) {
        expect(node.subscribe(key, first)).toBeDefined();
        expect(node.subscribe(key, second)).toBeUndefined();
        expect([...node.table.subscribers(key)]).toEqual([second]);
        expect(node.table.subscriber(key, 1)).toEqual(second);
        node.unsubscribe(key, 1);
      }
    }
  });
});

describe("who gets a message", () => {
  test("everyone with the filter, connected or not; other filters' subscribers do not", () => {
    const node = new Node();
    node.connected.add(1);
    node.subscribe("t", 1);
    node.subscribe("t", 2);
    node.subscribe("#", 3);
    expect(node.subscribers("t")).toEqual([1, 2]);
    expect(node.subscribers("gone")).toEqual([]);
    node.unsubscribe("t", 1);
    expect(node.subscribers("t")).toEqual([2]);
  });

  test("[G1] a filter is logged as long as one durable subscription has it, from its own number on", () => {
    const node = new Node();
    node.subscribe("t", 1);
    expect(node.table.isLogged("t")).toBe(false);
    node.subscribe("t", logged(2, 40));
    node.subscribe("t", logged(3, 0));
    expect(node.table.isLogged("t")).toBe(true);
    const found = [1, 2, 3, 4].map((id) => node.table.subscriber("t", id));
    expect(found).toEqual([unlogged(1), logged(2, 40), logged(3, 0), undefined]);
    node.unsubscribe("t", 2);
    expect(node.table.isLogged("t")).toBe(true);
    node.table = node.woken();
    expect(node.table.isLogged("t")).toBe(true);
    node.subscribe("t", unlogged(3, 45)); // at QoS 0 now
    expect(node.table.subscriber("t", 3)).toEqual(unlogged(3, 45));
    expect(node.table.isLogged("t")).toBe(false);
    node.subscribe("t", logged(3, 50));
    node.subscribe("t", logged(3, 60));
    node.unsubscribe("t", 3);
    expect(node.table.isLogged("t")).toBe(false);
    expect([node.table.isLogged("gone"), node.table.subscriber("gone", 1)]).toEqual([false, undefined]);
  });
});

describe("share groups", () => {
  const key = "$share/g/t";
  const groupOf = (...ids: readonly number[]) => {
    const node = new Node();
    for (const id of ids) node.subscribe(key, id);
    return node;
  };

  test("[MQTT-4.8.2-4] one member gets it: the connected one with the ordinal", () => {
    const node = groupOf(5, 3, 4);
    for (const id of [3, 4, 5]) node.connected.add(id);
    const picked = [0, 1, 2].map((ordinal) => node.table.member(key, ordinal));
    expect(new Set(picked)).toEqual(new Set([3, 4, 5]));
    expect([3, 4, 5].map((ordinal) => node.table.member(key, ordinal))).toEqual(picked);
    node.connected.delete(3);
    expect(new Set([0, 1].map((ordinal) => node.table.member(key, ordinal)))).toEqual(new Set([4, 5]));
  });

  test("whoever comes or goes is asked about, and not everybody at each message", () => {
    const ids = Array.from({ length: 500 }, (_, index) => index + 1);
    const node = groupOf(...ids);
    for (const id of ids.slice(0, 400)) node.connected.add(id);
    node.table.connectionChanged([key]);
    node.questions = 0;
    const pick = (count: number) =>
      new Set(Array.from({ length: count }, (_, ordinal) => node.table.member(key, ordinal)));
    expect(pick(1_000)).toEqual(new Set(ids.slice(0, 400)));
    expect(node.questions).toBe(1_000);
    node.connected.add(500);
    node.table.connectionChanged([key]);
    expect(pick(401)).toContain(500);
    node.unsubscribe(key, 500);
    expect(pick(401)).not.toContain(500);
    node.subscribe(key, 500);
    expect(pick(401)).toContain(500);
  });

  test("an ordinal from before members left still finds one", () => {
    const node = groupOf(1, 2);
    for (const id of [1, 2]) node.connected.add(id);
    for (const ordinal of [2, 7, 4_294_967_295]) expect([1, 2]).toContain(node.table.member(key, ordinal));
  });

  test("[G1] without any connected member one that is away gets it, rather than nobody", () => {
    const node = groupOf(1, 2);
    expect([0, 1, 2].map((ordinal) => node.table.member(key, ordinal))).toEqual([1, 2, 1]);
    expect(node.table.member("$share/gone/t", 0)).toBeUndefined();
    for (const id of [1, 2]) node.unsubscribe(key, id);
    expect(node.table.member(key, 0)).toBeUndefined();
  });
});

describe("a cache of the disk", () => {
  test("a filter is read when it is asked for, once, and the others are not", () => {
    const node = new Node();
    for (const key of ["a", "b", "$share/g/a"]) node.subscribe(key, logged(1, 0));
    node.table = node.woken();
    node.loads.length = 0;
    expect(node.subscribers("a")).toEqual([1]);
    expect([node.table.has("a"), node.table.isLogged("a")]).toEqual([true, true]);
    node.subscribe("a", 2);
    expect(node.subscribers("a")).toEqual([1, 2]);
    expect(node.loads).toEqual(["a"]);
    expect(node.table.member("$share/g/a", 0)).toBe(1);
    expect(node.loads).toEqual(["a", "$share/g/a"]);
  });

  test("a subscription counts before it is on disk, and what is on disk beside it does too", () => {
    const node = new Node();
    node.subscribe("a", 1);
    node.table = node.woken();
    expect(node.table.add("a", logged(2, 7))).toBeUndefined();
    expect(node.table.add("b", logged(2, 7))).toEqual(added("b"));
    expect([node.subscribers("a"), node.subscribers("b")]).toEqual([[1, 2], [2]]);
    expect(node.table.subscriber("a", 1)).toEqual(unlogged(1));
    for (const key of ["a", "b"]) expect(node.table.subscriber(key, 2)).toEqual(logged(2, 7));
  });

  test("one that was removed before it was on disk is gone, whether it is given up or not", () => {
    const node = new Node();
    node.table.add("a", unlogged(1));
    expect(node.table.remove("a", 1)).toEqual({ kind: "remove", key: "a" });
    expect([node.table.has("a"), node.table.isLogged("a"), node.subscribers("a")]).toEqual([false, false, []]);
    node.table.saved("a");
    node.table.saved("a");
    expect(node.table.has("a")).toBe(false);
    expect(node.table.add("a", unlogged(2))).toEqual(added("a"));
  });

  describe(`[G6] no more than ${limits.filtersLoadedMax} filters are held`, () => {
    const max = limits.filtersLoadedMax;
    const loadedSince = (node: Node, keys: readonly string[]) => {
      node.loads.length = 0;
      for (const key of keys) expect(node.table.has(key)).toBe(true);
      return [...node.loads];
    };

    test("those loaded first go, and are read again when they are asked for", () => {
      const node = new Node();
      for (let count = 0; count < max; count++) node.subscribe(`f${count}`, logged(1, count));
      expect(loadedSince(node, ["f0", "f1", "f2"])).toEqual([]);
      node.subscribe("g0", 1);
      node.subscribe("g1", 1);
      expect(loadedSince(node, ["g0", "g1", "f2", `f${max - 1}`])).toEqual([]);
      expect(node.table.subscriber("f1", 1)).toEqual(logged(1, 1));
      expect(node.loads).toEqual(["f1"]);
      expect(node.unsubscribe("f0", 1)).toEqual({ kind: "remove", key: "f0" });
      expect(node.subscribe("f0", 1)).toEqual(added("f0"));
    });

    test("[G1] those that are not on disk yet stay until they are", () => {
      const node = new Node();
      const unsaved = logged(1, 3);
      node.table.add("unsaved", unsaved);
      node.subscribe("twice", 1);
      node.table.add("twice", logged(1, 8));
      node.table.add("twice", logged(1, 9));
      node.table.saved("twice"); // one of the two
      for (let count = 0; count < max + 10; count++) node.subscribe(`f${count}`, 1);
      expect(node.table.subscriber("unsaved", 1)).toEqual(unsaved);
      expect(node.table.subscriber("twice", 1)).toEqual(logged(1, 9));
      node.put("unsaved", unsaved);
      node.table.saved("unsaved");
      node.subscribe("one more", 1);
      expect(loadedSince(node, ["unsaved"])).toEqual(["unsaved"]);
      expect(node.table.subscriber("twice", 1)).toEqual(logged(1, 9));
      expect(loadedSince(node, ["twice"])).toEqual([]);
    });
  });
});

interface Seen {
  readonly route: number | undefined;
  readonly routeOf: RouteChange;
  readonly subscribers: readonly Subscriber[];
  readonly isLogged: boolean;
  readonly members: readonly (number | undefined)[];
}

/** Of subscribers and members no order is promised, and none is left out. */
function show(key: string, { route, routeOf, subscribers, isLogged, members }: Seen): string {
  const told = routeOf.kind === "add" ? routeOf.members : "none";
  const all = subscribers
    .map(({ sessionId, since, isLogged: own }) => `${sessionId} ${own ? "logged" : "unlogged"} since ${since}`)
    .sort();
  return `${key}: ${route} ${told} [${all.join(" ")}] ${isLogged} [${[...new Set(members.map(String))].sort().join(" ")}]`;
}

describe("seeded, against lists", () => {
  test("routes, subscribers and members are what a list of subscriptions gives, over sleep", () => {
    const keys = ["a", "b", "+", "$share/g/a", "$share/h/a", "$queue/b"];
    for (let seed = 1; seed <= 60; seed++) {
      const next = random(seed);
      const pick = (below: number) => Math.floor(next() * below);
      const node = new Node();
      let list: { key: string; subscriber: Subscriber }[] = [];
      let unsaved: { key: string; subscriber: Subscriber }[] = [];
      /** What the node's routes are, told change by change. */
      const routes = new Map<string, number>();
      const note = (changes: readonly (RouteChange | undefined)[]) => {
        for (const change of changes)
          if (change?.kind === "add") routes.set(change.key, change.members);
          else if (change) routes.delete(change.key);
      };
      const saveAll = () => {
        for (const { key, subscriber } of unsaved) {
          if (list.some((each) => each.subscriber === subscriber)) node.put(key, subscriber);
          node.table.saved(key);
        }
        unsaved = [];
      };
      for (let step = 0; step < 120; step++) {
        const id = 1 + pick(5);
        const key = keys[pick(keys.length)]!;
        const dice = next();
        if (dice < 0.4) {
          const each = { key, subscriber: { sessionId: id, since: pick(100), isLogged: pick(2) === 0 } };
          note([node.table.add(key, each.subscriber)]);
          unsaved.push(each);
          const at = list.findIndex((one) => one.key === key && one.subscriber.sessionId === id);
          if (at >= 0) list[at] = each;
          else list.push(each);
        } else if (dice < 0.65) {
          note([node.unsubscribe(key, id)]);
          list = list.filter((each) => each.key !== key || each.subscriber.sessionId !== id);
        } else if (dice < 0.8) {
          if (!node.connected.delete(id)) node.connected.add(id);
          const own = list.filter((each) => each.subscriber.sessionId === id);
          note(node.table.connectionChanged(own.map((each) => each.key)));
        } else if (dice < 0.9) saveAll();
        else {
          saveAll();
          node.table = node.woken();
        }

        const expectedRoutes = new Map<string, number>();
        for (const { key: each, subscriber } of list) {
          const counts = each.startsWith("$") && node.connected.has(subscriber.sessionId);
          expectedRoutes.set(each, (expectedRoutes.get(each) ?? 0) + (counts ? 1 : 0));
        }
        const first = pick(4);
        const got = keys.map((asked) => {
          const { table } = node;
          const subscribers = [...table.subscribers(asked)];
          const members = isShared(asked) ? subscribers.map((_, index) => table.member(asked, first + index)) : [];
          return show(asked, {
            route: routes.get(asked),
            routeOf: table.routeOf(asked),
            subscribers,
            isLogged: table.isLogged(asked),
            members,
          });
        });
        const expected = keys.map((asked) => {
          const subscribers = list.filter((each) => each.key === asked).map((each) => each.subscriber);
          const ids = subscribers.map((each) => each.sessionId);
          const there = ids.filter((each) => node.connected.has(each));
          const route = expectedRoutes.get(asked);
          return show(asked, {
            route,
            routeOf: route === undefined ? { kind: "remove", key: asked } : added(asked, route),
            subscribers,
            isLogged: subscribers.some((each) => each.isLogged),
            members: !isShared(asked) ? [] : there.length > 0 ? there : ids,
          });
        });
        expect({ seed, step, got }).toEqual({ seed, step, got: expected });
      }
    }
  });
});
