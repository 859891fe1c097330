// What a node's sessions find in its log: the right messages, in order, as they were subscribed, within bounds, and no
// longer on disk than somebody needs them. See message-log.ts and checkpoints.ts.

import { env as bindings, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Coordinator } from "../../durable-objects/coordinator/coordinator.ts";
import type { MetricName } from "../../durable-objects/metrics.ts";
import { Checkpoints, emptyCheckpoint } from "../../durable-objects/node/checkpoints.ts";
import { forwardRecord, joinRecords, matchedBytes } from "../../durable-objects/rpc.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { writeMessage } from "../../mqtt/message.ts";
import { messageIdOf } from "../../mqtt/message-id-set.ts";
import {
  checkpointOf,
  converse,
  coreName,
  coreStub,
  crash,
  durable,
  holdWrites,
  knock,
  newNode,
  nodeStub,
  publish,
  publishAndWait,
  rows,
  sleep,
  subscribe,
  type ConnectFields,
  type Conversation,
} from "./conversation.ts";
import { patience } from "../support/patience.ts";

/** What nodes read when they wake. */
const settings = bindings as unknown as Record<"mqtt" | "durable_sessions" | "authorization", unknown>;
const before = { settings: { ...settings }, limits: { ...limits } };

beforeEach(() => {
  Object.assign(limits, { checkpointDelayMs: 50 });
});

afterEach(() => {
  Object.assign(settings, before.settings);
  Object.assign(limits, before.limits);
  vi.restoreAllMocks();
  vi.useRealTimers();
});

/** A node with a durable client, a topic, and a publisher on another node. */
async function meet(fields: ConnectFields = {}) {
  const node = newNode();
  const again = { ...durable, clientId: `client-of-${node}`, ...fields };
  const client = await converse(node, again);
  const publisher = await converse(newNode());
  return { node, topic: `log/${node}`, publisher, client, again };
}

/** At QoS 1, in one frame: they come to the other nodes as one batch. */
async function publishTogether(publisher: Conversation, topic: string, ...payloads: string[]): Promise<void> {
  publisher.send(...payloads.map((payload, index) => publish(topic, payload, 1, { messageId: index + 1 })));
  for (const _ of payloads) await publisher.expect("puback");
}

async function acknowledge(client: Conversation, ...payloads: string[]): Promise<void> {
  for (const payload of payloads) {
    const { messageId } = await client.expectMessage(payload, { qos: 1 });
    client.send({ cmd: "puback", messageId: messageId! });
  }
}

const logged = async (node: string, filter: string): Promise<number> =>
  (
    await rows<{ n: number }>(
      node,
      "SELECT coalesce(sum(length(entries)), 0) / 10 AS n FROM log WHERE filter = ?",
      filter,
    )
  )[0]!.n;

const count = async (node: string, table: string): Promise<number> =>
  (await rows<{ n: number }>(node, `SELECT count(*) AS n FROM ${table}`))[0]!.n;

/** Since the node woke. */
async function counted(node: string, metric: MetricName): Promise<number> {
  return (await nodeStub(node).stats()).metrics[metric] ?? 0;
}

/** What is written behind is on disk a little later. */
async function eventually<T>(read: () => Promise<T>, expected: T): Promise<void> {
  await vi.waitFor(async () => expect(await read()).toEqual(expected), patience);
}

/** Until what is written behind has been written: a node put to sleep in that very turn would lose it. */
async function quiet(): Promise<void> {
  await new Promise((resolve) => void setTimeout(resolve, limits.checkpointDelayMs * 4));
}

const numbers = (from: number, to: number): string[] =>
  Array.from({ length: to - from + 1 }, (_, index) => String(from + index));

// What may happen to a node while a client is away, or slow.
const events = {
  "at once": async () => {},
  "after sleep": sleep,
  "after a crash": crash,
} as const;
const moments = Object.keys(events) as (keyof typeof events)[];

describe.for(moments)("[G1] a session that was away gets from the log, %s,", (moment) => {
  test("what matches several of its filters once, with the highest QoS and all identifiers [MQTT-3.3.4-2]", async () => {
    const { node, topic, publisher, client, again } = await meet();
    await subscribe(client, `${topic}/+`, { qos: 1, id: 1 });
    await subscribe(client, `${topic}/#`, { qos: 2, id: 2 });
    await subscribe(client, `${topic}/0`, { qos: 0, id: 3 });
    await client.drop();
    publisher.send(publish(`${topic}/0`, "1", 2, { messageId: 1 }));
    await publisher.expect("pubrec");
    await publishAndWait(publisher, `${topic}/1`, "2");
    await events[moment](node);
    const back = await converse(node, again);
    const first = await back.expectMessage("1", { qos: 2, dup: false });
    expect(new Set([first.properties!.subscriptionIdentifier].flat())).toEqual(new Set([1, 2, 3]));
    const second = await back.expectMessage("2", { qos: 1, dup: false });
    expect(new Set([second.properties!.subscriptionIdentifier].flat())).toEqual(new Set([1, 2]));
    await back.expectNothing();
  });

  test("with RETAIN as published where it asked for that [MQTT-3.3.1-12] [MQTT-3.3.1-13]", async () => {
    const { node, topic, publisher, client, again } = await meet();
    await subscribe(client, `${topic}/1`, { rap: true, rh: 2 });
    await subscribe(client, `${topic}/2`, { rap: false, rh: 2 });
    await client.drop();
    for (const number of [1, 2]) {
      publisher.send(publish(`${topic}/${number}`, `${number}`, 1, { messageId: number, retain: true }));
      await publisher.expect("puback");
    }
    await events[moment](node);
    const back = await converse(node, again);
    await back.expectMessage("1", { retain: true });
    await back.expectMessage("2", { retain: false });
    await back.expectNothing();
  });

  test("nothing that it must not see by today's rules [G9]", async () => {
    settings.authorization = [
      { permission: "deny", action: "subscribe", topics: ["log/+/secret"] },
      { permission: "allow", action: "all" },
    ];
    const { node, topic, publisher, client, again } = await meet();
    await subscribe(client, `${topic}/#`);
    await client.drop();
    await publishAndWait(publisher, `${topic}/open`, "1");
    await publishAndWait(publisher, `${topic}/secret`, "2");
    await publishAndWait(publisher, `${topic}/open`, "3");
    await events[moment](node);
    const back = await converse(node, again);
    await back.expectMessage("1");
    await back.expectMessage("3");
    await back.expectNothing();
    expect(await counted(node, "delivery.dropped.not_authorized")).toBeGreaterThan(0);
  });

  test("all in order, out of rows that hold several and several filters [G2]", async () => {
    const { node, topic, publisher, client, again } = await meet();
    await subscribe(client, [`${topic}/#`, `${topic}/odd`, `${topic}/+`]);
    await client.drop();
    publisher.send(
      ...numbers(1, 20).map((payload, index) =>
        publish(`${topic}/${index % 2 === 0 ? "odd" : "even"}`, payload, 1, { messageId: index + 1 }),
      ),
    );
    for (const _ of numbers(1, 20)) await publisher.expect("puback");
    await publishTogether(publisher, `${topic}/odd`, ...numbers(21, 25));
    const [row] = await rows<{ n: number }>(node, "SELECT count(*) AS n FROM log");
    expect(await logged(node, `${topic}/#`)).toBe(25);
    expect(row!.n).toBeLessThan(25);
    await events[moment](node);
    const back = await converse(node, again);
    await acknowledge(back, ...numbers(1, 25));
    await back.expectNothing();
  });

  test("what it had not acknowledged again, under the packet ids it had, before the rest [MQTT-4.4.0-1]", async () => {
    const { node, topic, publisher, client, again } = await meet({
      properties: { ...durable.properties, receiveMaximum: 2 },
    });
    await subscribe(client, topic);
    await publishTogether(publisher, topic, ...numbers(1, 4));
    const ids = [(await client.expectMessage("1")).messageId, (await client.expectMessage("2")).messageId];
    await client.drop();
    await publishTogether(publisher, topic, ...numbers(5, 6));
    await events[moment](node);
    const back = await converse(node, again);
    await back.expectMessage("1", { dup: true, messageId: ids[0] });
    await back.expectMessage("2", { dup: true, messageId: ids[1] });
    back.send(...ids.map((messageId) => ({ cmd: "puback" as const, messageId: messageId! })));
    await acknowledge(back, ...numbers(3, 6));
    await back.expectNothing();
  });
});

describe.for(moments)("a session that is slow, %s,", (moment) => {
  const slow = { properties: { ...durable.properties, receiveMaximum: 1 } };

  test("does not get what it published itself under no-local [MQTT-3.8.3-3]", async () => {
    const { node, topic, publisher, client, again } = await meet(slow);
    await subscribe(client, topic, { qos: 1, nl: true });
    await publishAndWait(publisher, topic, "1");
    await publishAndWait(publisher, topic, "2");
    const { messageId } = await client.expectMessage("1");
    await publishAndWait(client, topic, "own");
    await publishAndWait(publisher, topic, "3");
    await events[moment](node);
    const back = moment === "after a crash" ? await converse(node, again) : client;
    if (back === client) back.send({ cmd: "puback", messageId: messageId! });
    else await acknowledge(back, "1");
    await acknowledge(back, "2", "3");
    await back.expectNothing();
  });

  test("goes on with an exchange at the QoS that it began with, whatever it has subscribed since", async () => {
    const { node, topic, publisher, client, again } = await meet(slow);
    await subscribe(client, `${topic}/+`, { qos: 1 });
    await subscribe(client, `${topic}/2`, { qos: 2 });
    const first = publish(`${topic}/1`, "1", 2, { messageId: 1 });
    const second = publish(`${topic}/2`, "2", 2, { messageId: 2 });
    publisher.send(first);
    await publisher.expect("pubrec");
    await client.expectMessage("1", { qos: 1 });
    await subscribe(client, `${topic}/#`, { qos: 2 });
    await client.drop();
    await events[moment](node);
    const back = await converse(node, again);
    const { messageId } = await back.expectMessage("1", { qos: 1, dup: true });
    publisher.send(second);
    await publisher.expect("pubrec");
    back.send({ cmd: "puback", messageId: messageId! });
    await back.expectMessage("2", { qos: 2 });
    back.send({ cmd: "unsubscribe", messageId: 5, unsubscriptions: [`${topic}/2`, `${topic}/#`] });
    await back.expect("unsuback");
    await back.drop();
    await events[moment](node);
    const last = await converse(node, again);
    const { messageId: exact } = await last.expectMessage("2", { qos: 2, dup: true });
    last.send({ cmd: "pubrec", messageId: exact! });
    await last.expect("pubrel", { messageId: exact! });
  });

  test("gets what was queued as it was subscribed, though it unsubscribes or subscribes anew [G1]", async () => {
    const { node, topic, publisher, client, again } = await meet(slow);
    await subscribe(client, [`${topic}/1`, `${topic}/2`, `${topic}/3`], { qos: 1, id: 7 });
    await publishAndWait(publisher, `${topic}/0`, "nobody's");
    for (const number of [1, 2, 3]) await publishAndWait(publisher, `${topic}/${number}`, `${number}`);
    await client.expectMessage("1", { properties: { subscriptionIdentifier: 7 } });
    client.send({ cmd: "unsubscribe", messageId: 5, unsubscriptions: [`${topic}/1`, `${topic}/2`] });
    await client.expect("unsuback", { messageId: 5 });
    await subscribe(client, `${topic}/3`, { qos: 0, id: 8 });
    for (const number of [1, 2]) await publishAndWait(publisher, `${topic}/${number}`, "unwanted");
    await client.drop();
    await events[moment](node);
    const back = await converse(node, again);
    for (const [payload, dup] of [
      ["1", true],
      ["2", false],
      ["3", false],
    ] as const) {
      const { messageId } = await back.expectMessage(payload, {
        qos: 1,
        dup,
        properties: { subscriptionIdentifier: 7 },
      });
      back.send({ cmd: "puback", messageId: messageId! });
    }
    await publishAndWait(publisher, `${topic}/3`, "4");
    await back.expectMessage("4", { qos: 0, properties: { subscriptionIdentifier: 8 } });
    await back.expectNothing();
  });
});

describe("[G6] a session's queue is bounded, and what is dropped is counted:", () => {
  const shortQueue = (length: number): void => {
    settings.mqtt = { ...(before.settings.mqtt as object), max_mqueue_len: length };
  };

  test("by `mqtt.max_mqueue_len`, the oldest first, for one that is away", async () => {
    shortQueue(10);
    const { node, topic, publisher, client, again } = await meet();
    await subscribe(client, topic);
    await client.drop();
    await publishAndWait(publisher, topic, ...numbers(1, 12));
    const back = await converse(node, again);
    await acknowledge(back, ...numbers(3, 12));
    await back.expectNothing();
    expect(await counted(node, "delivery.dropped.queue_full")).toBe(2);
  });

  test("by `mqtt.max_mqueue_len`, the oldest first, for one that is slow; what it was sent stays", async () => {
    shortQueue(10);
    const { node, topic, publisher, client } = await meet({
      properties: { ...durable.properties, receiveMaximum: 2 },
    });
    await subscribe(client, topic);
    await publishAndWait(publisher, topic, ...numbers(1, 30));
    expect(await counted(node, "delivery.dropped.queue_full")).toBe(18);
    await acknowledge(client, "1", "2", ...numbers(21, 30));
    await client.expectNothing();
  });

  test("by bytes", async () => {
    Object.assign(limits, { mqueueBytesMax: 10_000 });
    const { node, topic, publisher, client, again } = await meet();
    await subscribe(client, topic);
    await client.drop();
    const payloads = numbers(1, 40).map((number) => number.padStart(1000, "0"));
    await publishAndWait(publisher, topic, ...payloads);
    expect(await logged(node, topic)).toBeLessThanOrEqual(13);
    const back = await converse(node, again);
    await acknowledge(back, ...payloads.slice(-9));
    await back.expectNothing();
    expect(await counted(node, "delivery.dropped.queue_full")).toBe(31);
  });

  test("in memory, with all of its node: what is more waits on disk, also for one that ends with its connection", async () => {
    Object.assign(limits, { queuesHeldBytesMax: 10_000, checkpointDelayMs: 60_000 });
    const node = newNode();
    const topic = `log/${node}`;
    const publisher = await converse(newNode());
    const quick = await converse(node);
    await subscribe(quick, topic);
    const payloads = numbers(1, 30).map((number) => number.padStart(1000, "0"));
    const meetSlow = async (): Promise<Conversation> => {
      const slow = await converse(node, { properties: { receiveMaximum: 1 } });
      await subscribe(slow, topic);
      for (const payload of payloads) {
        await publishAndWait(publisher, topic, payload);
        await acknowledge(quick, payload);
      }
      // One was sent, six are held, and the quick one's never waited.
      expect(await count(node, "queue")).toBe(30 - 1 - 6);
      return slow;
    };
    const one = await meetSlow();
    await one.drop();
    await eventually(() => count(node, "queue"), 0);
    const other = await meetSlow();
    await acknowledge(other, ...payloads);
    await other.expectNothing();
  });

  describe.for(moments)("and the log with it, %s:", (moment) => {
    test("it is cut, whoever is away", async () => {
      shortQueue(20);
      const { node, topic, publisher, client, again } = await meet();
      await subscribe(client, topic);
      await client.drop();
      await events[moment](node);
      for (let first = 1; first <= 100; first += 10) {
        await publishTogether(publisher, topic, ...numbers(first, first + 9));
        expect(await logged(node, topic)).toBeLessThanOrEqual(30);
      }
      const back = await converse(node, again);
      await acknowledge(back, ...numbers(81, 100));
      await back.expectNothing();
      expect(await counted(node, "delivery.dropped.queue_full")).toBe(80);
    });

    test("what a client was sent survives the cut, whether it is slow or away, and comes once at QoS 2 [G1]", async () => {
      shortQueue(4);
      const { node, topic, publisher, client, again } = await meet({
        properties: { ...durable.properties, receiveMaximum: 2 },
      });
      await subscribe(client, topic);
      const exactly = publish(topic, "1", 2, { messageId: 50 });
      publisher.send(exactly, publish(topic, "2", 1, { messageId: 51 }));
      await publisher.expect("pubrec");
      await publisher.expect("puback");
      await client.expectMessage("1");
      await client.expectMessage("2");
      await publishAndWait(publisher, topic, ...numbers(3, 20));
      await events[moment](node);
      await publishAndWait(publisher, topic, ...numbers(21, 40));
      if (moment !== "after a crash") await client.drop();
      await events[moment](node);
      await publishAndWait(publisher, topic, ...numbers(41, 60));
      expect(await logged(node, topic)).toBeLessThanOrEqual(5);
      const back = await converse(node, again);
      const { messageId: first } = await back.expectMessage("1", { qos: 2, dup: true });
      const { messageId: second } = await back.expectMessage("2", { qos: 1, dup: true });
      back.send({ cmd: "pubrec", messageId: first! }, { cmd: "puback", messageId: second! });
      await back.expect("pubrel", { messageId: first! });
      await back.expectMessage("57").then(({ messageId }) => back.send({ cmd: "puback", messageId: messageId! }));
      back.send({ cmd: "pubcomp", messageId: first! });
      await acknowledge(back, ...numbers(58, 60));
      await back.expectNothing();
      await eventually(() => Promise.all([count(node, "log"), count(node, "queue")]), [0, 0]);
    });
  });

  test("by `durable_sessions.message_retention_period`, for those that are read from disk", async () => {
    settings.durable_sessions = { message_retention_period: "1h" };
    vi.setSystemTime(Date.now());
    const pass = (minutes: number): void => void vi.setSystemTime(Date.now() + minutes * 60_000);
    const { node, topic, publisher, client, again } = await meet({ properties: { sessionExpiryInterval: 86_400 } });
    await subscribe(client, topic);
    await client.drop();
    await publishAndWait(publisher, topic, "1", "2");
    pass(30);
    await publishAndWait(publisher, topic, "3");
    pass(31);
    await sleep(node);
    const back = await converse(node, again);
    await acknowledge(back, "3");
    await back.expectNothing();
    expect(await counted(node, "delivery.dropped.expired")).toBe(2);
    await eventually(() => count(node, "log"), 0);
  });
});

describe("the log holds a message no longer than somebody needs it:", () => {
  const slow = { ...durable, properties: { ...durable.properties, receiveMaximum: 1 } };

  /** A client that has acknowledged what was published, and one that has got "1" and not acknowledged it. */
  async function meetHolder() {
    const { node, topic, publisher, client } = await meet();
    const holder = await converse(node, { ...slow, clientId: `holder-of-${node}` });
    await subscribe(client, topic);
    await subscribe(holder, topic);
    await publishAndWait(publisher, topic, "1", "2", "3");
    await acknowledge(client, "1", "2", "3");
    await holder.expectMessage("1");
    await sleep(node);
    expect(await logged(node, topic)).toBe(3);
    return { node, topic, publisher, client, holder };
  }

  test("until the last of its readers has acknowledged it", async () => {
    const { node, topic, publisher, client } = await meet();
    const other = await converse(node, slow);
    const away = await converse(node, durable);
    for (const each of [client, other, away]) await subscribe(each, topic);
    await away.drop();
    await publishAndWait(publisher, topic, "1", "2", "3");
    await acknowledge(client, "1", "2", "3");
    await sleep(node);
    expect(await logged(node, topic)).toBe(3);
    const back = await converse(node, { ...durable, clientId: away.clientId });
    await acknowledge(back, "1", "2", "3");
    await acknowledge(other, "1");
    await other.expectMessage("2");
    await eventually(() => logged(node, topic), 2);
  });

  test("though messages of other filters wait for the same reader, or a slow one", async () => {
    const { node, topic, publisher, client } = await meet();
    const holder = await converse(node, slow);
    await subscribe(client, [`${topic}/1`, `${topic}/2`]);
    await subscribe(holder, `${topic}/1`);
    for (const number of [1, 2, 1, 2]) await publishAndWait(publisher, `${topic}/${number}`, `${number}`);
    await acknowledge(client, "1", "2", "1", "2");
    await holder.expectMessage("1");
    await eventually(() => Promise.all([1, 2].map((number) => logged(node, `${topic}/${number}`))), [2, 0]);
  });

  test("a new subscriber does not get what came before it, and does not hold it", async () => {
    const { node, topic, publisher, client, holder } = await meetHolder();
    const late = await converse(node, { ...durable, clientId: `late-${node}` });
    await subscribe(late, topic);
    await late.drop();
    await sleep(node);
    const back = await converse(node, { ...durable, clientId: late.clientId });
    await back.expectNothing();
    await publishAndWait(publisher, topic, "4");
    await acknowledge(back, "4");
    await acknowledge(client, "4");
    await back.drop();
    holder.send({ cmd: "puback", messageId: 1 });
    await acknowledge(holder, "2", "3", "4");
    await holder.expectNothing();
    await eventually(() => logged(node, topic), 0);
  });

  const releases: Record<string, (holder: Conversation, node: string) => Promise<unknown>> = {
    UNSUBSCRIBE: async (holder) => {
      holder.send({ cmd: "unsubscribe", messageId: 5, unsubscriptions: [`log/${holder.clientId.slice(10)}`] });
      await holder.expect("unsuback", { messageId: 5 });
    },
    "SUBSCRIBE at QoS 0": (holder) => subscribe(holder, `log/${holder.clientId.slice(10)}`, { qos: 0, rh: 2 }),
    "a session's end": async (holder) => {
      holder.send({ cmd: "disconnect", reasonCode: 0, properties: { sessionExpiryInterval: 0 } });
      await holder.expectClosed();
    },
    "Clean Start": async (holder, node) => {
      await holder.leave();
      await converse(node, { clientId: holder.clientId, clean: true });
    },
    "a session's expiry": async (holder, node) => {
      await holder.leave();
      vi.setSystemTime(Date.now() + 3600_000);
      await runDurableObjectAlarm(nodeStub(node));
    },
    "a move to another node": async (holder) => {
      const moved = await converse(newNode(), { ...durable, clientId: holder.clientId });
      for (const payload of ["1", "2", "3"]) await moved.expectMessage(payload);
    },
  };

  for (const [name, release] of Object.entries(releases))
    for (const moment of ["at once", "after sleep"] as const)
      test(`${name} releases it, ${moment}`, async () => {
        const { node, topic, holder } = await meetHolder();
        if (moment === "at once") {
          // Its session is loaded, and all is written.
          await holder.expectNothing();
          await quiet();
        }
        await release(holder, node);
        await eventually(() => logged(node, topic), 0);
      });

  test("a crash that comes before a trim is made up for", async () => {
    Object.assign(limits, { checkpointDelayMs: 60_000 });
    const { node, topic, publisher, client } = await meet();
    await subscribe(client, topic);
    publisher.send(publish(topic, "1", 2, { messageId: 1 }));
    await publisher.expect("pubrec");
    const { messageId } = await client.expectMessage("1", { qos: 2 });
    client.send({ cmd: "pubrec", messageId: messageId! });
    await client.expect("pubrel");
    client.send({ cmd: "pubcomp", messageId: messageId! });
    await client.expectNothing();
    Object.assign(limits, { checkpointDelayMs: 50 });
    await crash(node);
    // Somebody wakes it.
    await nodeStub(node).stats();
    await eventually(() => logged(node, topic), 0);
  });
});

describe("[G7] memory is a cache:", () => {
  /** All that a node reads from its disk from now on, in its next lives too. */
  async function watchReads(): Promise<() => number> {
    const core = await runInDurableObject(coreStub(), (_, { storage }) => storage.sql);
    const prototype = Object.getPrototypeOf(core) as SqlStorage;
    // oxlint-disable-next-line typescript/unbound-method -- it is called with the object that it was called on
    const { exec } = prototype;
    const cursors: SqlStorageCursor<Record<string, SqlStorageValue>>[] = [];
    vi.spyOn(prototype, "exec").mockImplementation(function (this: SqlStorage, query, ...values) {
      const cursor = exec.call(this, query, ...values);
      if (this !== core) cursors.push(cursor);
      return cursor;
    });
    return () => cursors.reduce((sum, { rowsRead }) => sum + rowsRead, 0);
  }

  /** Durable sessions that are away, each with a filter of its own and one that all have. */
  async function addSleepers(node: string, number: number): Promise<void> {
    await runInDurableObject(nodeStub(node), (_, { storage: { sql } }) => {
      const ids = "WITH RECURSIVE n (id) AS (SELECT 1000 UNION ALL SELECT id + 1 FROM n WHERE id < 999 + ?)";
      sql.exec(
        `${ids} INSERT INTO session (id, client_id, epoch, durable, expiry_interval, expires_at, will_at, due_at)
         SELECT id, 'sleeper-' || id, 1, 1, 3600, ?, 0, ? FROM n`,
        number,
        Date.now() + 3600_000,
        Date.now() + 3600_000,
      );
      sql.exec(`${ids} INSERT INTO subscription SELECT 'sleeper/' || id, id, 1, 0, 0, 1 FROM n`, number);
      sql.exec(`${ids} INSERT INTO subscription SELECT 'sleepers', id, 1, 0, 0, 1 FROM n`, number);
      const checkpoints = new Checkpoints(sql);
      for (let id = 1000; id < 1000 + number; id++) checkpoints.put([[id, emptyCheckpoint]]);
    });
    await sleep(node);
  }

  /** The rows that a node reads for one client, and for a message to few, beside so many sleepers. */
  async function readsBeside(sleepers: number): Promise<Record<string, number>> {
    const { node, topic, publisher, client, again } = await meet();
    const other = await converse(node, durable);
    for (const each of [client, other]) await subscribe(each, topic);
    await client.leave();
    await addSleepers(node, sleepers);
    // Else what is written behind of all that falls into the first step, or not.
    await quiet();
    const reads: Record<string, number> = {};
    const note = async (what: string, act: () => Promise<unknown>): Promise<void> => {
      const read = await watchReads();
      // Each look at what is unwritten reads, and how many there are depends on how long this takes.
      const write = holdWrites();
      await act();
      write();
      await quiet();
      await sleep(node);
      reads[what] = read();
      vi.restoreAllMocks();
    };
    await note("a message to two", () => publishAndWait(publisher, topic, "1"));
    await note("one comes back, and takes it", async () => {
      const back = await converse(node, again);
      await acknowledge(back, "1");
      await back.leave();
    });
    await note("the other takes it, and it goes", () => acknowledge(other, "1"));
    await note("the other unsubscribes", async () => {
      other.send({ cmd: "unsubscribe", messageId: 5, unsubscriptions: [topic] });
      await other.expect("unsuback", { messageId: 5 });
    });
    await note("a ping", () => other.expectNothing());
    await note("an alarm", () => runDurableObjectAlarm(nodeStub(node)));
    return reads;
  }

  test("a node with 10,000 sleeping sessions reads as much for one client as one with ten", async () => {
    const [few, many] = [await readsBeside(10), await readsBeside(10_000)];
    expect(many).toEqual(few);
    for (const rowsRead of Object.values(many)) expect(rowsRead).toBeLessThan(100);
  });
});

/** Takes all that comes, and ends every exchange. @returns the payloads, in order. */
async function drain(client: Conversation): Promise<string[]> {
  const payloads: string[] = [];
  for (let isQuiet = false; !isQuiet;) {
    client.send({ cmd: "pingreq" });
    isQuiet = true;
    for (let packet = await client.next(); packet.cmd !== "pingresp"; packet = await client.next()) {
      isQuiet = false;
      if (packet.cmd === "publish") {
        payloads.push(packet.payload.toString());
        client.send({ cmd: packet.qos === 1 ? "puback" : "pubrec", messageId: packet.messageId! });
      } else if (packet.cmd === "pubrel") client.send({ cmd: "pubcomp", messageId: packet.messageId! });
      else throw new Error(`an unexpected ${packet.cmd} came`);
    }
  }
  return payloads;
}

describe("[G1] a share group's members", () => {
  test("that are away have what they were given, over a crash, and their group gets it when they end", async () => {
    const { node, topic, publisher, client, again } = await meet();
    const other = await converse(newNode(), durable);
    await subscribe(client, `$share/g/${topic}`);
    await client.drop();
    await publishAndWait(publisher, topic, "1", "2", "3");
    await crash(node);
    await subscribe(other, `$share/g/${topic}`);
    const back = await converse(node, again);
    await acknowledge(back, "1");
    await back.expectMessage("2");
    await back.expectMessage("3");
    back.send({ cmd: "disconnect", reasonCode: 0, properties: { sessionExpiryInterval: 0 } });
    await back.expectClosed();
    await acknowledge(other, "2", "3");
    await other.expectNothing();
  });

  test.for(moments)("that move take their backlog along, %s", async (moment) => {
    const { node, topic, publisher, client, again } = await meet({
      properties: { ...durable.properties, receiveMaximum: 2 },
    });
    await subscribe(client, [`$share/g/${topic}`, `${topic}/all`]);
    publisher.send(publish(topic, "1", 2, { messageId: 1 }));
    await publisher.expect("pubrec");
    await publishAndWait(publisher, topic, "2", "3");
    await publishAndWait(publisher, `${topic}/all`, "4");
    await client.expectMessage("1");
    await client.expectMessage("2");
    await client.drop();
    await publishAndWait(publisher, topic, "5");
    await events[moment](node);
    const moved = await converse(newNode(), again);
    expect(await drain(moved)).toEqual(["1", "2", "3", "4", "5"]);
    for (const table of ["session", "queue", "log", "checkpoint"]) await eventually(() => count(node, table), 0);
  });
});

describe("[G1] a QoS 2 batch that comes again", () => {
  const encode = new TextEncoder();

  /** As a core forwards it. */
  async function forward(node: string, key: string, number: number, topic = key): Promise<void> {
    const writer = new ByteWriter();
    writeMessage(writer, {
      id: messageIdOf("0123456789ab", number),
      topic,
      payload: encode.encode(String(number)),
      qos: 2,
      retain: false,
      properties: new Uint8Array(),
      expiresAt: 0,
      from: "",
    });
    const record = forwardRecord(new ByteWriter(), matchedBytes([{ key, ordinal: 0 }]), writer.take());
    expect(await nodeStub(node).forward(joinRecords([record], record.length))).toEqual(Uint8Array.of(0));
  }

  test.for(moments)("is known, %s, to a session and to a share group", async (moment) => {
    const { node, topic, client, again } = await meet();
    const key = `$share/g/${topic}/shared`;
    await subscribe(client, [topic, key]);
    await client.drop();
    await forward(node, topic, 1);
    await forward(node, key, 2, `${topic}/shared`);
    await events[moment](node);
    await forward(node, topic, 1);
    await forward(node, key, 2, `${topic}/shared`);
    const back = await converse(node, again);
    expect(await drain(back)).toEqual(["1", "2"]);
    await events[moment](node);
    const last = moment === "after a crash" ? await converse(node, again) : back;
    await forward(node, topic, 1);
    await forward(node, key, 2, `${topic}/shared`);
    expect(await drain(last)).toEqual([]);
  });

  test.for(moments)(
    "reaches a session that has come since and did not have it, and only that one, %s",
    async (moment) => {
      const { node, topic, client, again } = await meet();
      const elsewhere = newNode();
      const mover = { ...durable, clientId: `mover-${node}` };
      const moving = await converse(elsewhere, mover);
      await subscribe(client, topic);
      await subscribe(moving, topic);
      // The other node's copy was lost with the node; it had another one.
      await forward(node, topic, 1);
      await forward(elsewhere, topic, 2);
      expect(await drain(moving)).toEqual(["2"]);
      expect(await drain(client)).toEqual(["1"]);
      const moved = await converse(node, mover);
      await events[moment](node);
      const [back, there] =
        moment === "after a crash" ? [await converse(node, again), await converse(node, mover)] : [client, moved];
      for (const _ of [1, 2]) {
        await forward(node, topic, 1);
        await forward(node, topic, 2);
      }
      expect(await drain(there)).toEqual(["1"]);
      // The second one comes here for the first time.
      expect(await drain(back)).toEqual(["2"]);
    },
  );
});

describe("[G1] what a node publishes itself at QoS 2 comes once,", () => {
  const crashes = [
    { victim: "node", when: "before" },
    { victim: "node", when: "behind" },
    { victim: "core", when: "before" },
    { victim: "core", when: "behind" },
  ] as const;

  /** The victim crashes when the node's next batches reach the core: at each await until it is answered. */
  function crashAtRoute(node: string, { victim, when }: (typeof crashes)[number], times: number): () => number {
    let left = times;
    // oxlint-disable-next-line typescript/unbound-method -- it is called with the object that it was called on
    const { route } = Coordinator.prototype;
    vi.spyOn(Coordinator.prototype, "route").mockImplementation(async function (this: Coordinator, from, term, batch) {
      if (from !== node || left === 0) return route.call(this, from, term, batch);
      left--;
      const act = (): Promise<void> => crash(victim === "node" ? node : coreName);
      if (when === "before") await act();
      const answer = await route.call(this, from, term, batch);
      if (when === "behind") await act();
      return answer;
    });
    return () => left;
  }

  /** Each look wakes the node. */
  async function untilNothingIsOwn(node: string, crashesLeft: () => number): Promise<void> {
    const left = (): Promise<number> => count(node, "own").catch(() => 1);
    await vi.waitUntil(async () => (await left()) === 0 && crashesLeft() === 0, patience);
  }

  test.for(crashes)("a will, though the $victim crashes twice $when its route", async (moment) => {
    const { topic, client: watcher } = await meet();
    await subscribe(watcher, topic);
    const home = newNode();
    const client = await converse(home, { will: { topic, payload: Buffer.from("gone"), qos: 2, retain: false } });
    const crashesLeft = crashAtRoute(home, moment, 2);
    client.send({ cmd: "disconnect", reasonCode: 4 });
    await untilNothingIsOwn(home, crashesLeft);
    expect(await drain(watcher)).toEqual(["gone"]);
  });

  test.for(crashes)("a group's message, though the $victim crashes twice $when its route", async (moment) => {
    const { topic, client: other } = await meet();
    const home = newNode();
    const member = await converse(home, durable);
    const publisher = await converse(newNode());
    await subscribe(member, `$share/g/${topic}`);
    await member.drop();
    publisher.send(publish(topic, "1", 2, { messageId: 1 }));
    await publisher.expect("pubrec");
    await subscribe(other, `$share/g/${topic}`);
    const crashesLeft = crashAtRoute(home, moment, 2);
    await knock(home, { clientId: member.clientId, clean: true });
    await untilNothingIsOwn(home, crashesLeft);
    expect(await drain(other)).toEqual(["1"]);
  });

  test("and wakes the node by its alarm until then, though each of its lives crashes", async () => {
    const { topic, client: watcher } = await meet();
    await subscribe(watcher, topic);
    const home = newNode();
    const client = await converse(home, { will: { topic, payload: Buffer.from("gone"), qos: 2, retain: false } });
    const crashesLeft = crashAtRoute(home, { victim: "node", when: "before" }, 2);
    client.send({ cmd: "disconnect", reasonCode: 4 });
    for (const left of [1, 0]) {
      await vi.waitUntil(() => crashesLeft() === left, patience);
      await vi.waitUntil(() => runDurableObjectAlarm(nodeStub(home)).catch(() => false), patience);
    }
    await watcher.expectMessage("gone");
  });
});

test("[G1] a checkpoint that has grown large has a row of its own, and goes back among its neighbours'", async () => {
  settings.mqtt = { ...(before.settings.mqtt as object), max_inflight: 2000, max_mqueue_len: 2000 };
  const { node, topic, publisher, client, again } = await meet();
  const neighbour = await converse(node, durable);
  await subscribe(client, topic);
  await subscribe(neighbour, `${topic}/neighbour`);
  const payloads = numbers(1, 1500);
  for (let first = 0; first < payloads.length; first += 30)
    await publishTogether(publisher, topic, ...payloads.slice(first, first + 30));
  for (const payload of payloads) await client.expectMessage(payload);
  await publishAndWait(publisher, `${topic}/neighbour`, "n");
  await neighbour.expectMessage("n");
  await sleep(node);
  const pages = (): Promise<{ page: number }[]> => rows(node, "SELECT page FROM checkpoint ORDER BY page");
  await eventually(pages, [{ page: -1 }, { page: 0 }]);
  expect((await checkpointOf(node, client.clientId)).inflight).toHaveLength(1500);
  expect((await checkpointOf(node, neighbour.clientId)).inflight).toHaveLength(1);
  await crash(node);
  const back = await converse(node, again);
  for (const payload of payloads) await back.expectMessage(payload, { dup: true });
  back.send(...payloads.map((payload) => ({ cmd: "puback" as const, messageId: Number(payload) })));
  await back.expectNothing();
  await eventually(pages, [{ page: 0 }]);
  expect((await checkpointOf(node, client.clientId)).inflight).toEqual([]);
  expect((await checkpointOf(node, neighbour.clientId)).inflight).toHaveLength(1);
});
