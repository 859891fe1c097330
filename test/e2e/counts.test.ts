// What messages cost in frames, calls, rows and alarms, as the broker's objects count it: exact, whatever the machine does
// meanwhile.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { IPublishPacket, QoS } from "mqtt-packet";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { countFromNow } from "../../bench/counters.ts";
import { limits } from "../../mqtt/limits.ts";
import { startBroker, type Broker } from "../support/broker.ts";
import { converseConnected, range, slot, type Conversation } from "../support/client.ts";

const token = "an operator's token";
const core = "core@local.emqxcl";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker({ env: { TRELLIS_API_TOKEN: token } });
});

afterAll(() => broker.stop());

/** What each of these has counted from now until it is asked; what came before has left no line open. */
async function count(...names: string[]) {
  await sleep(3 * limits.lineQuietMs);
  const read = await countFromNow({ port: broker.port, token });
  return async () => {
    const all = await read();
    return names.map((name) => {
      const counts = all.get(name)!;
      return {
        in: counts["frames.received"],
        out: counts["frames.sent"],
        calls: counts["rpc.calls"],
        rows: counts["rows.written"],
        alarms: counts["alarms.set"],
        encoded: counts["packets.encoded"],
      };
    });
  };
}

function client(node: string, fields: Parameters<typeof converseConnected>[1] = {}) {
  return converseConnected(broker.urlOf(node), fields);
}

async function subscribe(to: Conversation, filter: string, qos: QoS): Promise<void> {
  to.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: filter, qos }] });
  await to.expect("suback");
}

function messages(topic: string, qos: QoS, length: number): IPublishPacket[] {
  return range(length).map((i) => ({
    cmd: "publish",
    topic,
    payload: String(i),
    qos,
    dup: false,
    retain: false,
    ...(qos > 0 && { messageId: i + 1 }),
  }));
}

/** Its acknowledgements, in one frame. */
function acknowledge(by: Conversation, cmd: "puback" | "pubrec" | "pubrel" | "pubcomp", length: number): void {
  by.send(...range(length).map((i) => ({ cmd, messageId: i + 1 })));
}

async function expectAll(
  of: Conversation,
  cmd: "publish" | "puback" | "pubrec" | "pubrel" | "pubcomp",
  length: number,
) {
  for (const i of range(length)) {
    const packet = await of.expect(cmd);
    if (packet.cmd === "publish") expect(packet.payload.toString()).toBe(String(i));
  }
}

describe("a frame of 16 messages is a frame on every hop, and a call between two objects", () => {
  test.each([
    { where: "on one node", to: slot(1) },
    { where: "on two nodes", to: slot(2) },
  ])("at QoS 0, $where", async ({ to }) => {
    const [publisher, subscriber] = [await client(slot(1)), await client(to)];
    const topic = randomUUID();
    await subscribe(subscriber, topic, 0);
    const counted = await count(slot(1), core);
    const framesBefore = subscriber.frames.length;
    publisher.send(...messages(topic, 0, 16));
    await expectAll(subscriber, "publish", 16);
    expect(subscriber.frames.length - framesBefore).toBe(1);
    const [node, onCore] = await counted();
    expect(node).toMatchObject({ in: 1, out: to === slot(1) ? 1 : 0, calls: 1, rows: 0 });
    expect(onCore).toMatchObject({ calls: 1, rows: 0 });
  });

  test("at QoS 1 and 2, where acknowledgements are a frame of their own", async () => {
    const [publisher, subscriber] = [await client(slot(1)), await client(slot(2))];
    const topic = randomUUID();
    await subscribe(subscriber, topic, 2);
    const once = await count(slot(1), slot(2), core);
    publisher.send(...messages(topic, 1, 16));
    await expectAll(subscriber, "publish", 16);
    await expectAll(publisher, "puback", 16);
    acknowledge(subscriber, "puback", 16);
    await subscriber.expectNothing();
    expect(await once()).toMatchObject([
      { in: 1, out: 1, calls: 1, rows: 0 },
      // ... and the PINGREQ.
      { in: 2, out: 2, calls: 0 },
      { calls: 1, rows: 0 },
    ]);
    const exactly = await count(slot(1), slot(2), core);
    publisher.send(...messages(topic, 2, 16));
    await expectAll(publisher, "pubrec", 16);
    acknowledge(publisher, "pubrel", 16);
    await expectAll(publisher, "pubcomp", 16);
    await expectAll(subscriber, "publish", 16);
    acknowledge(subscriber, "pubrec", 16);
    await expectAll(subscriber, "pubrel", 16);
    acknowledge(subscriber, "pubcomp", 16);
    await subscriber.expectNothing();
    expect(await exactly()).toMatchObject([
      { in: 2, out: 2, calls: 1 },
      { in: 3, out: 3, calls: 0 },
      { calls: 1, rows: 0 },
    ]);
  });

  test("to 100 subscribers: two calls, each message encoded once, and a frame to each", async () => {
    const publisher = await client(slot(1));
    const subscribers = await Promise.all(range(100).map(() => client(slot(2))));
    const topic = randomUUID();
    await Promise.all(subscribers.map((subscriber) => subscribe(subscriber, topic, 0)));
    const counted = await count(slot(1), slot(2), core);
    publisher.send(...messages(topic, 0, 16));
    await Promise.all(subscribers.map((subscriber) => expectAll(subscriber, "publish", 16)));
    expect(await counted()).toEqual([
      { in: 1, out: 0, calls: 1, rows: 0, alarms: 0, encoded: 0 },
      { in: 0, out: 100, calls: 0, rows: 0, alarms: 0, encoded: 16 },
      { in: 0, out: 0, calls: 1, rows: 0, alarms: 0, encoded: 0 },
    ]);
  });
});

test("messages that come one after another share a line: a few calls for all", async () => {
  const [publisher, subscriber] = [await client(slot(1)), await client(slot(2))];
  const topic = randomUUID();
  await subscribe(subscriber, topic, 0);
  const counted = await count(slot(1), core);
  let slow = 0;
  let sentAt = performance.now();
  for (const message of messages(topic, 0, 40)) {
    publisher.send(message);
    await subscriber.expect("publish");
    const now = performance.now();
    if (now - sentAt >= limits.lineQuietMs / 2) slow++;
    sentAt = now;
  }
  // A machine that stops for a moment closes the line, before a message that was slow or behind it: then it opens again.
  const callsMax = (limits.lineCallsMin + 1) * (1 + 2 * slow);
  const [{ calls: toCore }, { calls: toNode }] = (await counted()) as unknown as [{ calls: number }, { calls: number }];
  expect(toCore).toBeGreaterThanOrEqual(limits.lineCallsMin + 1);
  for (const calls of [toCore, toNode]) expect(calls).toBeLessThanOrEqual(callsMax);
});

test("a connection is a call to the core; keep alives share an alarm", async () => {
  await client(slot(4));
  const counted = await count(slot(4), core);
  await client(slot(4), { keepalive: 60 });
  await client(slot(4), { keepalive: 60 });
  expect(await counted()).toMatchObject([
    { in: 2, out: 2, calls: 2, alarms: 1 },
    { in: 0, out: 0, calls: 0, alarms: 0 },
  ]);
});

test("[G1] 16 messages to durable sessions that are away are a row, and PUBACK waits for no more", async () => {
  const topic = randomUUID();
  const fields = { version: 5, clean: false, properties: { sessionExpiryInterval: 3600 } } as const;
  for (const clientId of [randomUUID(), randomUUID()]) {
    const away = await client(slot(3), { ...fields, clientId });
    await subscribe(away, topic, 1);
    away.send({ cmd: "disconnect", reasonCode: 0 });
    await away.expectClose();
  }
  const publisher = await client(slot(1));
  // The first message of a node's life reserves numbers.
  publisher.send(...messages(topic, 1, 1));
  await expectAll(publisher, "puback", 1);
  const counted = await count(slot(1), slot(3), core);
  publisher.send(...messages(topic, 1, 16));
  await expectAll(publisher, "puback", 16);
  expect(await counted()).toMatchObject([
    { in: 1, out: 1, calls: 1, rows: 0 },
    { in: 0, out: 0, calls: 0, rows: 1 },
    { calls: 1, rows: 0 },
  ]);
});
