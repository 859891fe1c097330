import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { sharedStrategies } from "../../cluster/shared-sub.ts";
import type { SharedStrategy } from "../../cluster/shared-sub.ts";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connect, converseConnected, range, slot, versions } from "../support/client.ts";
import type { Client } from "../support/client.ts";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker();
});

afterAll(() => broker.stop());

/** Members of a group, one for each slot named. */
async function members(filter: string, slots: readonly number[], protocolVersion: 4 | 5 = 5): Promise<Client[]> {
  const clients: Client[] = [];
  for (const number of slots) {
    const client = await connect(broker.urlOf(slot(number)), { protocolVersion });
    await client.subscribe(filter, { qos: 2 });
    clients.push(client);
  }
  return clients;
}

/** What each has got, once `count` messages have come to all of them together. */
async function shares(clients: readonly Client[], count: number): Promise<string[][]> {
  const got: string[][] = clients.map(() => []);
  let left = count;
  const all = Promise.withResolvers<void>();
  for (const [index, client] of clients.entries())
    client.mqtt.on("message", (_topic, payload) => {
      got[index]?.push(payload.toString());
      if (--left === 0) all.resolve();
    });
  await all.promise;
  return got;
}

describe.each(versions)("[MQTT-4.8.2-4] a group of clients of version %i on three nodes", (version) => {
  test.each([0, 1, 2] as const)("gets each message exactly once, at QoS %i", async (qos) => {
    const topic = `group/${version}/${qos}`;
    const group = await members(`$share/g/${topic}`, [0, 1, 1, 2], version);
    const publisher = await connect(broker.urlOf(slot(3)), { protocolVersion: version });
    const done = shares(group, 90);
    for (const n of range(90)) await publisher.publish(topic, `${n}`, { qos });
    const got = await done;
    // What was on its way to a member has come before the answer to its own publish.
    for (const client of group) await client.publish("elsewhere", "", { qos: 1 });
    expect(got.flat()).toHaveLength(90);
    expect(new Set(got.flat())).toEqual(new Set(range(90).map(String)));
    for (const share of got) expect(share.length).toBeGreaterThan(0);
  });
});

test("two groups, a queue and a plain subscription each get their own copy", async () => {
  const groups = [
    await members("$share/one/copies/+", [0, 1]),
    await members("$share/two/copies/#", [1, 2]),
    await members("$queue/copies/t", [0, 2]),
  ];
  const [plain] = await members("copies/t", [2]);
  const publisher = await connect(broker.urlOf(slot(3)));
  const done = groups.map((group) => shares(group, 20));
  for (const n of range(20)) await publisher.publish("copies/t", `${n}`, { qos: 1 });
  for (const got of await Promise.all(done)) {
    expect(got.flat()).toHaveLength(20);
    expect(new Set(got.flat())).toEqual(new Set(range(20).map(String)));
  }
  expect(await plain?.payloads(20)).toEqual(range(20).map(String));
});

test("one client, alone and in a group, gets both copies", async () => {
  const client = await connect(broker.urlOf(slot(0)));
  await client.subscribe("both", { qos: 1, properties: { subscriptionIdentifier: 1 } });
  await client.subscribe("$share/g/both", { qos: 1, properties: { subscriptionIdentifier: 2 } });
  const publisher = await connect(broker.urlOf(slot(1)));
  await publisher.publish("both", "x", { qos: 1 });
  const received = [await client.next(), await client.next()];
  expect(new Set(received.map(({ properties }) => properties.subscriptionIdentifier))).toEqual(new Set([1, 2]));
  await client.expectNothing();
});

test("members that come, leave and are cut off: the others get what is published then", async () => {
  const [first, second] = await members("$share/g/change", [0, 1]);
  const publisher = await connect(broker.urlOf(slot(2)));
  await second?.unsubscribe("$share/g/change");
  // UNSUBACK is an answer of its node; a publish of its own goes the same way to the core.
  await second?.publish("elsewhere", "", { qos: 1 });
  for (const n of range(10)) await publisher.publish("change", `${n}`, { qos: 1 });
  expect(await first?.payloads(10)).toEqual(range(10).map(String));
  await second?.subscribe("$share/g/change", { qos: 1 });
  await first?.drop();
  const other = await connect(broker.urlOf(slot(0)));
  await other.publish("elsewhere", "", { qos: 1 });
  for (const n of range(10)) await publisher.publish("change", `${n}`, { qos: 1 });
  expect(await second?.payloads(10)).toEqual(range(10).map(String));
});

test("a member that is away gets nothing while another is there, and all of it when none is", async () => {
  const session = { clientId: "away", clean: false, properties: { sessionExpiryInterval: 100 } };
  const away = await connect(broker.urlOf(slot(0)), session);
  await away.subscribe("$share/g/away", { qos: 1 });
  const [there] = await members("$share/g/away", [1]);
  await away.leave();
  const publisher = await connect(broker.urlOf(slot(0)));
  for (const n of range(10)) await publisher.publish("away", `${n}`, { qos: 1 });
  expect(await there?.payloads(10)).toEqual(range(10).map(String));
  await there?.leave();
  const witness = await connect(broker.urlOf(slot(1)));
  await witness.publish("elsewhere", "", { qos: 1 });
  for (const n of range(10)) await publisher.publish("away", `late ${n}`, { qos: 1 });
  const back = await connect(broker.urlOf(slot(0)), session);
  expect(await back.payloads(10)).toEqual(range(10).map((n) => `late ${n}`));
  await back.expectNothing();
});

test("[MQTT-4.8.2-5] what a member did not acknowledge goes to another when its session ends", async () => {
  const failing = await converseConnected(broker.urlOf(slot(0)), { properties: { receiveMaximum: 3 } });
  failing.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "$share/g/failing", qos: 1 }] });
  await failing.expect("suback");
  const publisher = await connect(broker.urlOf(slot(2)));
  for (const n of range(10)) await publisher.publish("failing", `${n}`, { qos: 1 });
  const first = await failing.expect("publish");
  failing.send({ cmd: "puback", messageId: first.messageId ?? 0 });
  const [other] = await members("$share/g/failing", [1]);
  await failing.drop();
  const received = await other?.payloads(9);
  expect(new Set(received)).toEqual(new Set(range(9).map((n) => `${n + 1}`)));
  await other?.expectNothing();
});

describe("strategies", () => {
  /** 40 messages by two publishers on two nodes, to a group of 4 on two nodes. */
  async function deal(strategy: SharedStrategy): Promise<{ byPublisher: string[][][]; byTopic: string[][] }> {
    await broker.restart({ TRELLIS_MQTT__SHARED_SUBSCRIPTION_STRATEGY: strategy });
    const group = await members("$share/g/s/+", [0, 0, 1, 1]);
    const publishers = [
      await connect(broker.urlOf(slot(0)), { clientId: "publisher-0" }),
      await connect(broker.urlOf(slot(1)), { clientId: "publisher-1" }),
    ];
    const done = shares(group, 40);
    for (const n of range(20))
      for (const [p, publisher] of publishers.entries())
        await publisher.publish(`s/${n % 5}`, `${p} ${n % 5} ${n}`, { qos: 1 });
    const got = await done;
    expect(new Set(got.flat()).size).toBe(40);
    return {
      byPublisher: [0, 1].map((p) => got.map((share) => share.filter((payload) => payload.startsWith(`${p} `)))),
      byTopic: range(5).map((t) =>
        got.filter((share) => share.some((each) => each.split(" ")[1] === `${t}`)).map(String),
      ),
    };
  }

  const counts = (share: readonly string[][]): number[] => share.map(({ length }) => length);
  const expectations: Record<SharedStrategy, (dealt: Awaited<ReturnType<typeof deal>>) => void> = {
    round_robin: ({ byPublisher }) => {
      for (const each of byPublisher) expect(counts(each)).toEqual([5, 5, 5, 5]);
    },
    round_robin_per_group: ({ byPublisher: [one = [], other = []] }) => {
      expect(range(4).map((n) => (one[n]?.length ?? 0) + (other[n]?.length ?? 0))).toEqual([10, 10, 10, 10]);
    },
    random: ({ byPublisher: [one = [], other = []] }) => {
      // Of 40 draws all to one of four: it does not happen.
      expect(range(4).filter((n) => (one[n]?.length ?? 0) + (other[n]?.length ?? 0) > 0).length).toBeGreaterThan(1);
    },
    sticky: ({ byPublisher }) => {
      for (const each of byPublisher) expect(counts(each).sort((a, b) => a - b)).toEqual([0, 0, 0, 20]);
    },
    local: ({ byPublisher: [one = [], other = []] }) => {
      expect(counts(one).slice(2)).toEqual([0, 0]);
      expect(counts(other).slice(0, 2)).toEqual([0, 0]);
    },
    hash_clientid: ({ byPublisher }) => {
      for (const each of byPublisher) expect(counts(each).sort((a, b) => a - b)).toEqual([0, 0, 0, 20]);
    },
    hash_topic: ({ byTopic }) => {
      for (const each of byTopic) expect(each).toHaveLength(1);
    },
  };

  test.each(sharedStrategies)("%s", async (strategy) => {
    expectations[strategy](await deal(strategy));
  });
});
