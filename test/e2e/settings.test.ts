// Settings from the environment, as an operator gives them. Each group restarts the broker with its own.

import type { IConnackPacket, Packet } from "mqtt-packet";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { connect4, packet, properties, text } from "../mqtt/malformed.ts";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connect, connectPacket, converse, converseConnected, hadSession, slot, versions } from "../support/client.ts";
import type { Conversation } from "../support/client.ts";

let broker: Broker;

afterAll(() => broker.stop());

beforeAll(async () => {
  broker = await startBroker();
});

/** Settings for the tests of one group. */
function settings(env: Readonly<Record<string, string>>): void {
  beforeAll(() => broker.restart(env));
}

async function connackProperties(): Promise<IConnackPacket["properties"]> {
  return (await converseConnected(broker.urlOf(slot(1)))).connack.properties ?? {};
}

async function granted(client: Conversation, filter: string, qos: 0 | 1 | 2 = 0): Promise<number | undefined> {
  client.send({ cmd: "subscribe", messageId: 9, subscriptions: [{ topic: filter, qos }] });
  return ((await client.expect("suback")).granted as number[])[0];
}

function publish(topic: string, fields: Partial<Extract<Packet, { cmd: "publish" }>> = {}): Packet {
  return { cmd: "publish", topic, payload: "", qos: 0, dup: false, retain: false, ...fields };
}

async function expectDisconnect(client: Conversation, reasonCode: number): Promise<void> {
  expect(await client.expect("disconnect")).toMatchObject({ reasonCode });
  await client.expectClose();
}

describe("by default", () => {
  settings({});

  test("[MQTT-3.2.2-9] CONNACK names what is bounded, and leaves out what is not", async () => {
    expect(await connackProperties()).toMatchObject({
      receiveMaximum: 32,
      maximumPacketSize: 1024 * 1024,
      topicAliasMaximum: 65_535,
    });
    const absent = ["maximumQoS", "serverKeepAlive", "assignedClientIdentifier"];
    for (const name of absent) expect(await connackProperties()).not.toHaveProperty(name);
    for (const name of ["retainAvailable", "wildcardSubscriptionAvailable", "sharedSubscriptionAvailable"] as const)
      expect((await connackProperties())?.[name]).not.toBe(false);
  });

  test("[MQTT-3.3.4-7] more than Receive Maximum at once: 0x93", async () => {
    const client = await converseConnected(broker.urlOf(slot(1)));
    const packets = Array.from({ length: 33 }, (_, n) => publish("many", { qos: 2, messageId: n + 1 }));
    client.send(...packets);
    let last = await client.next();
    while (last.cmd === "pubrec") last = await client.next();
    expect(last).toMatchObject({ cmd: "disconnect", reasonCode: 0x93 });
    await client.expectClose();
  });

  test.each(versions)(
    "a client that runs ahead of its acknowledgements is held back, not cut, version %i",
    async (protocolVersion) => {
      const publisher = await connect(broker.urlOf(slot(1)), { protocolVersion });
      const subscriber = await connect(broker.urlOf(slot(2)), { protocolVersion });
      await subscriber.subscribe(`ahead/${protocolVersion}/#`, { qos: 1 });
      // MQTT.js knows of no Receive Maximum: it sends them all at once.
      const payloads = Array.from({ length: 500 }, (_, n) => String(n));
      await Promise.all(
        payloads.map((payload) => publisher.publish(`ahead/${protocolVersion}/1`, payload, { qos: 1 })),
      );
      expect(await subscriber.payloads(500)).toEqual(payloads);
      // At QoS 2 a 5.0 client spends its Receive Maximum until it releases: more at once is its error.
      if (protocolVersion === 5) return;
      await Promise.all(
        payloads.map((payload) => publisher.publish(`ahead/${protocolVersion}/2`, payload, { qos: 2 })),
      );
      expect(await subscriber.payloads(500)).toEqual(payloads);
    },
  );

  test("as many as Receive Maximum at once, again and again, are fine", async () => {
    const client = await converseConnected(broker.urlOf(slot(1)));
    for (const qos of [1, 2, 1] as const) {
      client.send(...Array.from({ length: 32 }, (_, n) => publish("many", { qos, messageId: n + 1 })));
      for (let n = 1; n <= 32; n++)
        expect(await client.expect(qos === 1 ? "puback" : "pubrec")).toMatchObject({ messageId: n });
      if (qos === 1) continue;
      client.send(...Array.from({ length: 32 }, (_, n): Packet => ({ cmd: "pubrel", messageId: n + 1 })));
      for (let n = 1; n <= 32; n++) expect(await client.expect("pubcomp")).toMatchObject({ messageId: n });
    }
  });
});

describe("mqtt.max_qos_allowed = 1", () => {
  settings({ TRELLIS_MQTT__MAX_QOS_ALLOWED: "1" });

  test("[MQTT-3.2.2-9] [MQTT-3.2.2-10] is announced, and subscriptions get at most that", async () => {
    expect(await connackProperties()).toMatchObject({ maximumQoS: 1 });
    const client = await converseConnected(broker.urlOf(slot(1)));
    for (const [asked, given] of [
      [2, 1],
      [1, 1],
      [0, 0],
    ] as const)
      expect(await granted(client, "q", asked)).toBe(given);
    client.send(publish("q", { qos: 2, messageId: 1 }));
    await expectDisconnect(client, 0x9b);
  });

  test("[MQTT-3.2.2-12] a will above it is refused", async () => {
    const client = await converse(broker.urlOf(slot(1)));
    client.send(connectPacket({ will: { topic: "w", payload: "", qos: 2, retain: false } }));
    expect(await client.expect("connack")).toMatchObject({ reasonCode: 0x9b });
    await client.expectClose();
  });
});

describe("retain, wildcards and shared subscriptions off", () => {
  settings({
    TRELLIS_MQTT__RETAIN_AVAILABLE: "false",
    TRELLIS_MQTT__WILDCARD_SUBSCRIPTION: "false",
    TRELLIS_MQTT__SHARED_SUBSCRIPTION: "false",
  });

  test("is announced, and refused when used all the same", async () => {
    expect(await connackProperties()).toMatchObject({
      retainAvailable: false,
      wildcardSubscriptionAvailable: false,
      sharedSubscriptionAvailable: false,
    });
    const client = await converseConnected(broker.urlOf(slot(1)));
    expect(await granted(client, "a/#")).toBe(0xa2);
    expect(await granted(client, "$share/g/a")).toBe(0x9e);
    expect(await granted(client, "a")).toBe(0);
    client.send(publish("a", { payload: "x", retain: true }));
    await expectDisconnect(client, 0x9a);
    const will = await converse(broker.urlOf(slot(1)));
    will.send(connectPacket({ will: { topic: "w", payload: "", qos: 0, retain: true } }));
    expect(await will.expect("connack")).toMatchObject({ reasonCode: 0x9a });
    await will.expectClose();
  });

  test("3.1.1: refused filters get 0x80", async () => {
    const client = await converseConnected(broker.urlOf(slot(1)), { version: 4 });
    expect(await granted(client, "a/#")).toBe(0x80);
    expect(await granted(client, "a")).toBe(0);
  });
});

describe("small bounds", () => {
  settings({
    TRELLIS_MQTT__MAX_PACKET_SIZE: "1KB",
    TRELLIS_MQTT__MAX_TOPIC_LEVELS: "6",
    TRELLIS_MQTT__MAX_TOPIC_ALIAS: "2",
    TRELLIS_MQTT__MAX_INFLIGHT: "2",
    TRELLIS_MQTT__MAX_MQUEUE_LEN: "3",
    TRELLIS_MQTT__SESSION_EXPIRY_INTERVAL: "1s",
  });

  test("are announced", async () => {
    expect(await connackProperties()).toMatchObject({
      maximumPacketSize: 1024,
      topicAliasMaximum: 2,
      receiveMaximum: 2,
    });
  });

  test("max_packet_size: in place of CONNECT too", async () => {
    const client = await converseConnected(broker.urlOf(slot(1)));
    client.send(publish("big", { payload: "x".repeat(1024) }));
    await expectDisconnect(client, 0x95);
    const large = await converse(broker.urlOf(slot(1)), { version: 4 });
    large.sendFrame(connect4(0x02, text("c".repeat(1024))));
    await large.expectClose();
  });

  test("max_topic_levels: 0x8F for a filter, 0x90 for a name", async () => {
    const client = await converseConnected(broker.urlOf(slot(1)));
    expect(await granted(client, "1/2/3/4/5/6")).toBe(0);
    expect(await granted(client, "1/2/3/4/5/6/7")).toBe(0x8f);
    expect(await granted(client, "$share/g/1/2/3/4/5/6")).toBe(0);
    client.send(publish("1/2/3/4/5/6/7"));
    await expectDisconnect(client, 0x90);
  });

  test("[MQTT-3.3.2-9] max_topic_alias: 0x94 above it", async () => {
    const client = await converseConnected(broker.urlOf(slot(1)));
    client.send(publish("a", { properties: { topicAlias: 2 } }));
    await client.expectNothing();
    client.sendFrame(packet(0x30, text("a"), properties(0x23, 0, 3)));
    await expectDisconnect(client, 0x94);
  });

  test("max_inflight: what a client gets at once, whatever it could take", async () => {
    for (const version of versions) {
      const subscriber = await converseConnected(broker.urlOf(slot(1)), { version });
      expect(await granted(subscriber, `in/${version}`, 1)).toBe(1);
      const publisher = await connect(broker.urlOf(slot(0)));
      for (const payload of ["0", "1", "2"]) await publisher.publish(`in/${version}`, payload, { qos: 1 });
      const { messageId = 0 } = await subscriber.expect("publish");
      await subscriber.expect("publish");
      await subscriber.expectNothing();
      subscriber.send({ cmd: "puback", messageId });
      expect((await subscriber.expect("publish")).payload.toString()).toBe("2");
    }
  });

  test("max_mqueue_len: retained messages come as there is room, and make none", async () => {
    const publisher = await connect(broker.urlOf(slot(0)));
    const topics = Array.from({ length: 20 }, (_, number) => `kept/${String(number).padStart(2, "0")}`);
    for (const topic of topics) await publisher.publish(topic, topic, { qos: 1, retain: true });
    for (const properties of [{}, { sessionExpiryInterval: 60 }]) {
      const subscriber = await converseConnected(broker.urlOf(slot(1)), { properties });
      expect(await granted(subscriber, "kept/#", 1)).toBe(1);
      for (const topic of topics) {
        const message = await subscriber.expect("publish");
        expect(message).toMatchObject({ topic, retain: true });
        subscriber.send({ cmd: "puback", messageId: message.messageId! });
      }
      await subscriber.expectNothing();
    }
  });

  test("[G6] max_mqueue_len: the oldest make room, and are counted", async () => {
    const session = { clientId: "queue", clean: false, properties: { sessionExpiryInterval: 100 } };
    const first = await connect(broker.urlOf(slot(1)), session);
    await first.subscribe("queue", { qos: 1 });
    await first.leave();
    const publisher = await connect(broker.urlOf(slot(0)));
    for (let n = 0; n < 10; n++) await publisher.publish("queue", `${n}`, { qos: 1 });
    const second = await connect(broker.urlOf(slot(1)), session);
    expect(await second.payloads(3)).toEqual(["7", "8", "9"]);
    await second.expectNothing();
    const watcher = await connect(broker.urlOf(slot(0)));
    await watcher.subscribe("$SYS/brokers/+/metrics/#");
    let received = await watcher.next();
    while (received.topic !== `$SYS/brokers/${slot(1)}/metrics/delivery/dropped/queue_full`)
      received = await watcher.next();
    expect(received.payload).toBe("7");
  });

  test("session_expiry_interval: how long a session of 3.1.1 lasts", async () => {
    const session = { version: 4, clientId: "3.1.1", clean: false } as const;
    const isThere = (): Promise<boolean> => hadSession(broker.urlOf(slot(1)), session);
    // A busy machine may take longer than it lasts to come back, or take the end of a connection in late.
    await expect.poll(isThere).toBe(true);
    await expect.poll(isThere, { interval: 1200 }).toBe(false);
  });
});

describe("mqtt.server_keepalive = 1, cluster.name = other, node.slots as a number", () => {
  settings({
    TRELLIS_MQTT__SERVER_KEEPALIVE: "1",
    TRELLIS_CLUSTER__NAME: "other",
    TRELLIS_NODE: '{"slots":1,"max_connections":3}',
  });

  test("[MQTT-3.1.2-21] the broker's keep alive is announced and holds, whatever the client asked for", async () => {
    const client = await converseConnected(broker.url, { keepalive: 600 });
    expect(client.connack.properties).toMatchObject({ serverKeepAlive: 1 });
    expect(await client.expect("disconnect")).toMatchObject({ reasonCode: 0x8d });
    await client.expectClose();
  });

  test("clusters are told apart by their names: nodes of another one are refused", async () => {
    const client = await connect(broker.urlOf("node-5@local.other"));
    await client.publish("kept", "other", { qos: 1, retain: true });
    await expect(connect(broker.urlOf(slot(1)))).rejects.toThrow(/400|closed/);
  });
});

describe("node.name with a port, and a second core", () => {
  const domain = "127.0.0.1:8084";
  settings({
    TRELLIS_NODE__NAME: `core@${domain}`,
    TRELLIS_CLUSTER__CORE_NODES: `core@${domain},core@weur.${domain}`,
  });

  test("clients connect to the nodes of its domain, and to no core", async () => {
    const subscriber = await connect(broker.urlOf(`node-0@local.${domain}`));
    const publisher = await connect(broker.urlOf(`node-1@local.${domain}`));
    await subscriber.subscribe("t/#");
    await publisher.publish("t/a", "over there", { qos: 1 });
    expect(await subscriber.payloads(1)).toEqual(["over there"]);
    for (const name of [slot(1), `core@${domain}`, `core@weur.${domain}`, `node-0@${domain}`]) {
      await expect(connect(broker.urlOf(name))).rejects.toThrow(/400|closed/);
    }
  });
});

describe("clusters on one disk", () => {
  settings({});

  test("know nothing of one another", async () => {
    const client = await connect(broker.urlOf(slot(5)));
    await client.subscribe("kept");
    await client.publish("kept", "ours", { qos: 1, retain: true });
    expect(await client.payloads(1)).toEqual(["ours"]);
    await client.expectNothing();
  });
});

test("what is wrong in the settings is answered with 500 and told in the log", async () => {
  const wrong = await startBroker({ env: { TRELLIS_MQTT__MAX_QOS_ALOWED: "1" } });
  onTestFinished(() => wrong.stop());
  const response = await fetch(`http://127.0.0.1:${wrong.port}/mqtt`);
  expect(response.status).toBe(500);
  await expect
    .poll(() => wrong.output())
    .toMatch(/TRELLIS_MQTT__MAX_QOS_ALOWED.*did you mean TRELLIS_MQTT__MAX_QOS_ALLOWED/);
});
