import { describe, expect, test } from "vitest";
import { SubscriptionTable, type Dispatched, type RouteChange } from "../../cluster/subscription-table.ts";
import type { Message, QoS } from "../../mqtt/message.ts";
import type { Subscription } from "../../mqtt/session.ts";
import { random } from "../support/random.ts";

function subscriptionTo(filter: string, options: Partial<Subscription> = {}): Subscription {
  return {
    filter,
    qos: 2,
    noLocal: false,
    retainAsPublished: false,
    retainHandling: 0,
    subscriptionId: 0,
    ...options,
  };
}

function messageOf(fields: Partial<Message> = {}): Message {
  return {
    id: "m",
    topic: "t",
    payload: new Uint8Array(0),
    qos: 2,
    retain: false,
    properties: new Uint8Array(0),
    expiresAt: 0,
    from: "publisher",
    ...fields,
  };
}

const clientOf = (id: number) => ({ id, clientId: `c${id}` });
const matched = (...keys: string[]) => keys.map((key) => ({ key, ordinal: 0 }));

/** Who gets it, as "id QoS [ids]", `retain` and the group behind it where there are any. */
function dispatch(
  table: SubscriptionTable,
  message: Message,
  to: readonly { key: string; ordinal: number }[],
): string[] {
  const got: string[] = [];
  table.dispatch(message, to, (each) => got.push(show(each)));
  return got;
}

function show({ subscriber, qos, retain, subscriptionIds, shared }: Dispatched): string {
  const parts = [`${subscriber.id} QoS ${qos}`];
  if (subscriptionIds.length > 0) parts.push(`[${subscriptionIds.join(" ")}]`);
  if (retain) parts.push("retain");
  if (shared !== undefined) parts.push(shared);
  return parts.join(" ");
}

describe("routes", () => {
  test("the first subscriber of a filter adds its route, the last one removes it", () => {
    const table = new SubscriptionTable();
    expect(table.add(clientOf(1), subscriptionTo("a/+"), true)).toEqual({ kind: "add", key: "a/+", members: 0 });
    expect(table.add(clientOf(2), subscriptionTo("a/+"), false)).toBeUndefined();
    expect(table.has("a/+")).toBe(true);
    expect(table.remove(1, "a/+")).toBeUndefined();
    expect(table.remove(1, "a/+")).toBeUndefined();
    expect(table.remove(2, "a/+")).toEqual({ kind: "remove", key: "a/+" });
    expect(table.has("a/+")).toBe(false);
    expect(table.remove(2, "a/+")).toBeUndefined();
    expect(table.add(clientOf(2), subscriptionTo("a/+"), true)).toEqual({ kind: "add", key: "a/+", members: 0 });
  });

  test("a connection that comes or goes changes no route of a plain filter", () => {
    const table = new SubscriptionTable();
    table.add(clientOf(1), subscriptionTo("a"), true);
    expect(table.setConnected(1, ["a"], false)).toEqual([]);
  });

  test("a share group tells how many of its members are connected, at each change", () => {
    const table = new SubscriptionTable();
    const key = "$share/g/a/+";
    const group = subscriptionTo(key);
    const told = (members: number): RouteChange => ({ kind: "add", key, members });
    expect(table.add(clientOf(1), group, false)).toEqual(told(0));
    expect(table.add(clientOf(2), group, true)).toEqual(told(1));
    expect(table.add(clientOf(3), group, false)).toBeUndefined();
    expect(table.add(clientOf(4), group, true)).toEqual(told(2));
    expect(table.setConnected(1, [key], true)).toEqual([told(3)]);
    expect(table.setConnected(1, [key], true)).toEqual([]);
    expect(table.setConnected(2, [key], false)).toEqual([told(2)]);
    expect(table.remove(3, key)).toBeUndefined();
    expect(table.remove(2, key)).toBeUndefined();
    expect(table.remove(4, key)).toEqual(told(1));
    expect(table.remove(1, key)).toEqual({ kind: "remove", key });
  });

  test("of a session's keys those of its groups count, and only those it has", () => {
    const table = new SubscriptionTable();
    table.add(clientOf(1), subscriptionTo("a"), true);
    table.add(clientOf(1), subscriptionTo("$share/g/a"), true);
    table.add(clientOf(2), subscriptionTo("$share/h/a"), true);
    expect(table.setConnected(1, ["a", "$share/g/a", "$share/h/a", "$share/none/a"], false)).toEqual([
      { kind: "add", key: "$share/g/a", members: 0 },
    ]);
  });

  test("a filter is a key of its own for each group", () => {
    const table = new SubscriptionTable();
    const keys = ["a", "$share/g/a", "$share/h/a", "$queue/a"];
    for (const key of keys)
      expect(table.add(clientOf(1), subscriptionTo(key), true)).toEqual({
        kind: "add",
        key,
        members: key === "a" ? 0 : 1,
      });
    expect([table.size, table.sharedSize]).toEqual([4, 3]);
    for (const key of keys) expect(table.remove(1, key)).toEqual({ kind: "remove", key });
    expect([table.size, table.sharedSize]).toEqual([0, 0]);
  });

  test("[MQTT-3.8.4-3] a subscription made again takes the place of the old one, and changes no route", () => {
    const table = new SubscriptionTable();
    table.add(clientOf(1), subscriptionTo("a", { qos: 0, subscriptionId: 1 }), true);
    expect(table.add(clientOf(1), subscriptionTo("a", { qos: 1, subscriptionId: 2 }), true)).toBeUndefined();
    expect(dispatch(table, messageOf(), matched("a"))).toEqual(["1 QoS 1 [2]"]);
    expect(table.size).toBe(1);
  });
});

describe("dispatching", () => {
  test("[MQTT-3.8.4-8] the QoS is the smaller of the message's and the subscription's", () => {
    for (const published of [0, 1, 2] as QoS[])
      for (const granted of [0, 1, 2] as QoS[]) {
        const table = new SubscriptionTable();
        table.add(clientOf(1), subscriptionTo("t", { qos: granted }), true);
        table.add(clientOf(2), subscriptionTo("$share/g/t", { qos: granted }), true);
        const qos = Math.min(published, granted);
        expect(dispatch(table, messageOf({ qos: published }), matched("t", "$share/g/t")).sort()).toEqual([
          `1 QoS ${qos}`,
          `2 QoS ${qos} $share/g/t`,
        ]);
      }
  });

  test("everyone with the filter gets it, connected or not; other filters do not", () => {
    const table = new SubscriptionTable();
    table.add(clientOf(1), subscriptionTo("t"), true);
    table.add(clientOf(2), subscriptionTo("t"), false);
    table.add(clientOf(3), subscriptionTo("#"), true);
    expect(dispatch(table, messageOf(), matched("t"))).toEqual(["1 QoS 2", "2 QoS 2"]);
    expect(dispatch(table, messageOf(), matched("gone"))).toEqual([]);
    expect(dispatch(table, messageOf(), [])).toEqual([]);
  });

  test("[MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-5] overlapping subscriptions: once, with the highest QoS and all identifiers", () => {
    const table = new SubscriptionTable();
    table.add(clientOf(1), subscriptionTo("t", { qos: 0, subscriptionId: 7 }), true);
    table.add(clientOf(1), subscriptionTo("+", { qos: 1, subscriptionId: 8 }), true);
    table.add(clientOf(1), subscriptionTo("#", { qos: 0 }), true);
    table.add(clientOf(2), subscriptionTo("#", { qos: 2, subscriptionId: 7 }), true);
    expect(dispatch(table, messageOf(), matched("t", "+", "#"))).toEqual(["1 QoS 1 [7 8]", "2 QoS 2 [7]"]);
    // The subscriptions are as before: what was merged was merged for one message.
    expect(dispatch(table, messageOf(), matched("t"))).toEqual(["1 QoS 0 [7]"]);
  });

  test("[MQTT-3.8.3-3] with no local the publisher does not get its own message", () => {
    const table = new SubscriptionTable();
    table.add(clientOf(1), subscriptionTo("t", { noLocal: true }), true);
    table.add(clientOf(2), subscriptionTo("t", { noLocal: true }), true);
    expect(dispatch(table, messageOf({ from: "c1" }), matched("t"))).toEqual(["2 QoS 2"]);
  });

  test("[MQTT-3.8.3-3] an overlapping subscription without no local still brings it, in its own terms", () => {
    const table = new SubscriptionTable();
    table.add(clientOf(1), subscriptionTo("t", { noLocal: true, qos: 2, subscriptionId: 1 }), true);
    table.add(clientOf(1), subscriptionTo("#", { qos: 1, subscriptionId: 2 }), true);
    expect(dispatch(table, messageOf({ from: "c1" }), matched("t", "#"))).toEqual(["1 QoS 1 [2]"]);
    expect(dispatch(table, messageOf({ from: "c9" }), matched("t", "#"))).toEqual(["1 QoS 2 [1 2]"]);
  });

  test("[MQTT-3.3.1-12] [MQTT-3.3.1-13] RETAIN is cleared, unless the subscription asks for it as published", () => {
    const table = new SubscriptionTable();
    table.add(clientOf(1), subscriptionTo("t"), true);
    table.add(clientOf(2), subscriptionTo("t", { retainAsPublished: true }), true);
    table.add(clientOf(3), subscriptionTo("$share/g/t", { retainAsPublished: true }), true);
    const all = matched("t", "$share/g/t");
    expect(dispatch(table, messageOf({ retain: true }), all).sort()).toEqual([
      "1 QoS 2",
      "2 QoS 2 retain",
      "3 QoS 2 retain $share/g/t",
    ]);
    expect(dispatch(table, messageOf(), all).some((each) => each.includes("retain"))).toBe(false);
    table.add(clientOf(2), subscriptionTo("#"), true);
    for (const keys of [matched("t", "#"), matched("#", "t")])
      expect(dispatch(table, messageOf({ retain: true }), keys)).toContain("2 QoS 2 retain");
  });
});

describe("share groups", () => {
  const key = "$share/g/t";
  const pick = (table: SubscriptionTable, ordinal: number) => dispatch(table, messageOf(), [{ key, ordinal }]);

  test("[MQTT-4.8.2-4] one member gets it: the connected one with the ordinal, in the order of joining", () => {
    const table = new SubscriptionTable();
    for (const id of [5, 3, 4]) table.add(clientOf(id), subscriptionTo(key, { subscriptionId: id }), true);
    expect([0, 1, 2].map((ordinal) => pick(table, ordinal))).toEqual([
      ["5 QoS 2 [5] $share/g/t"],
      ["3 QoS 2 [3] $share/g/t"],
      ["4 QoS 2 [4] $share/g/t"],
    ]);
    table.setConnected(3, [key], false);
    expect(pick(table, 1)).toEqual(["4 QoS 2 [4] $share/g/t"]);
  });

  test("an ordinal from before members left still finds one", () => {
    const table = new SubscriptionTable();
    for (const id of [1, 2]) table.add(clientOf(id), subscriptionTo(key), true);
    for (const ordinal of [2, 7, 4_294_967_295]) expect(pick(table, ordinal)).toHaveLength(1);
  });

  test("[G1] without any connected member one that is away gets it, rather than nobody", () => {
    const table = new SubscriptionTable();
    for (const id of [1, 2]) table.add(clientOf(id), subscriptionTo(key), false);
    expect([0, 1, 2].map((ordinal) => pick(table, ordinal)[0])).toEqual([
      "1 QoS 2 $share/g/t",
      "2 QoS 2 $share/g/t",
      "1 QoS 2 $share/g/t",
    ]);
    expect(dispatch(table, messageOf(), matched("$share/gone/t"))).toEqual([]);
  });

  test("[MQTT-4.8.2-4] the group's copy comes besides a subscription of the member's own, and each group's own", () => {
    const table = new SubscriptionTable();
    table.add(clientOf(1), subscriptionTo("t", { subscriptionId: 1 }), true);
    table.add(clientOf(1), subscriptionTo(key, { subscriptionId: 2 }), true);
    table.add(clientOf(1), subscriptionTo("$share/h/t", { subscriptionId: 3 }), true);
    expect(dispatch(table, messageOf(), matched("t", key, "$share/h/t")).sort()).toEqual([
      "1 QoS 2 [1]",
      "1 QoS 2 [2] $share/g/t",
      "1 QoS 2 [3] $share/h/t",
    ]);
  });
});

describe("seeded, against lists", () => {
  test("routes and dispatching are what a list of subscriptions gives", () => {
    const keys = ["a", "b", "+", "$share/g/a", "$share/h/a", "$queue/b"];
    for (let seed = 1; seed <= 60; seed++) {
      const next = random(seed);
      const chance = (below: number) => Math.floor(next() * below);
      const table = new SubscriptionTable();
      let list: { id: number; subscription: Subscription; connected: boolean }[] = [];
      /** What the node's routes are, told change by change. */
      const routes = new Map<string, number>();
      const note = (changes: readonly (RouteChange | undefined)[]) => {
        for (const change of changes)
          if (change?.kind === "add") routes.set(change.key, change.members);
          else if (change) routes.delete(change.key);
      };
      const connected = new Map<number, boolean>();
      for (let step = 0; step < 120; step++) {
        const id = 1 + chance(5);
        const key = keys[chance(keys.length)]!;
        const isConnected = connected.get(id) ?? false;
        const at = list.findIndex((each) => each.id === id && each.subscription.filter === key);
        if (next() < 0.5) {
          const subscription = subscriptionTo(key, { qos: chance(3) as QoS, subscriptionId: chance(3) });
          note([table.add(clientOf(id), subscription, isConnected)]);
          if (at >= 0) list[at] = { ...list[at]!, subscription };
          else list.push({ id, subscription, connected: isConnected });
        } else if (next() < 0.6) {
          note([table.remove(id, key)]);
          list = list.filter((_, index) => index !== at);
        } else {
          connected.set(id, !isConnected);
          const own = list.filter((each) => each.id === id);
          note(
            table.setConnected(
              id,
              own.map((each) => each.subscription.filter),
              !isConnected,
            ),
          );
          for (const each of own) each.connected = !isConnected;
        }

        const expectedRoutes = new Map<string, number>();
        for (const { subscription, connected: counts } of list) {
          const isShared = subscription.filter.startsWith("$");
          const before = expectedRoutes.get(subscription.filter) ?? 0;
          expectedRoutes.set(subscription.filter, before + (isShared && counts ? 1 : 0));
        }
        expect(routes).toEqual(expectedRoutes);
        expect(table.size).toBe(list.length);
        expect(table.sharedSize).toBe(list.filter((each) => each.subscription.filter.startsWith("$")).length);

        const asked = keys.filter(() => next() < 0.5).map((each) => ({ key: each, ordinal: chance(4) }));
        const message = messageOf({ qos: chance(3) as QoS });
        const expected: string[] = [];
        const plain = new Map<number, { qos: number; ids: number[] }>();
        for (const { key: each, ordinal } of asked) {
          const members = list.filter(({ subscription }) => subscription.filter === each);
          if (!each.startsWith("$")) {
            for (const { id: member, subscription } of members) {
              const merged = plain.get(member) ?? { qos: 0, ids: [] };
              merged.qos = Math.max(merged.qos, Math.min(subscription.qos, message.qos));
              if (subscription.subscriptionId > 0) merged.ids.push(subscription.subscriptionId);
              plain.set(member, merged);
            }
            continue;
          }
          const there = members.filter((member) => member.connected);
          const candidates = there.length > 0 ? there : members;
          const picked = candidates[ordinal % candidates.length];
          if (!picked) continue;
          const { qos, subscriptionId } = picked.subscription;
          const ids = subscriptionId > 0 ? ` [${subscriptionId}]` : "";
          expected.push(`${picked.id} QoS ${Math.min(qos, message.qos)}${ids} ${each}`);
        }
        for (const [member, { qos, ids }] of plain)
          expected.push(`${member} QoS ${qos}${ids.length > 0 ? ` [${ids.join(" ")}]` : ""}`);
        expect({ seed, step, got: dispatch(table, message, asked).sort() }).toEqual({
          seed,
          step,
          got: expected.sort(),
        });
      }
    }
  });
});
