import { randomUUID } from "node:crypto";
import type { IPublishPacket, ISubscribePacket, QoS } from "mqtt-packet";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { connect4, text } from "../mqtt/malformed.ts";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import {
  connect,
  connectPacket,
  converse,
  converseConnected,
  hadSession,
  range,
  slot,
  versions,
} from "../support/client.ts";
import type { Client, Conversation } from "../support/client.ts";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker();
});

afterAll(() => broker.stop());

/** Options of a session that lasts, in each version's own terms. */
function lasting(version: 4 | 5, clientId: string) {
  return version === 5
    ? { version, clientId, clean: false, properties: { sessionExpiryInterval: 100 } }
    : { version, clientId, clean: false };
}

function subscribe(filter: string, qos: QoS): ISubscribePacket {
  return { cmd: "subscribe", messageId: 1, subscriptions: [{ topic: filter, qos }] };
}

describe.each(versions)("a session of version %i", (version) => {
  test("[MQTT-3.1.2-5] [MQTT-3.2.2-2] lasts: subscriptions and messages wait for its client", async () => {
    const session = lasting(version, `lasting-${version}`);
    const first = await converseConnected(broker.urlOf(slot(1)), session);
    expect(first.connack.sessionPresent).toBe(false);
    first.send(subscribe("wait/+", 2));
    await first.expect("suback");
    await first.drop();

    const publisher = await connect(broker.urlOf(slot(0)));
    for (const n of range(50)) await publisher.publish(`wait/${n % 2}`, `${n}`, { qos: n % 2 === 0 ? 1 : 2 });
    await publisher.publish("wait/qos0", "not kept", { qos: 0 });

    const second = await connect(broker.urlOf(slot(1)), { ...session, protocolVersion: version });
    expect(second.connack.sessionPresent).toBe(true);
    const received = await second.payloads(50);
    // MQTT.js shows a QoS 2 message when it is released: each QoS has an order of its own.
    for (const rest of [0, 1])
      expect(received.filter((payload) => Number(payload) % 2 === rest)).toEqual(
        range(25).map((n) => `${2 * n + rest}`),
      );
    await publisher.publish("wait/on", "on", { qos: 1 });
    expect(await second.payloads(1)).toEqual(["on"]);
    await second.expectNothing();
  });

  test("[MQTT-3.1.2-4] [MQTT-3.2.2-3] a clean start discards it", async () => {
    const session = lasting(version, `clean-${version}`);
    const first = await converseConnected(broker.urlOf(slot(1)), session);
    first.send(subscribe("discarded", 1));
    await first.expect("suback");
    await first.drop();
    const publisher = await connect(broker.urlOf(slot(0)));
    await publisher.publish("discarded", "x", { qos: 1 });
    const second = await converseConnected(broker.urlOf(slot(1)), { ...session, clean: true });
    expect(second.connack.sessionPresent).toBe(false);
    await publisher.publish("discarded", "y", { qos: 1 });
    await second.expectNothing();
  });

  test("ends with its connection when it does not last", async () => {
    const session = { version, clientId: `passing-${version}`, clean: true };
    const first = await converseConnected(broker.urlOf(slot(1)), session);
    first.send(subscribe("passing", 1));
    await first.expect("suback");
    await first.drop();
    const second = await converseConnected(broker.urlOf(slot(1)), { ...session, clean: false });
    expect(second.connack.sessionPresent).toBe(false);
  });

  test("[MQTT-4.4.0-1] what was not acknowledged comes again, in order, with DUP and its packet identifier", async () => {
    const session = lasting(version, `again-${version}`);
    const url = broker.urlOf(slot(1));
    const first = await converseConnected(url, session);
    first.send(subscribe(`again/${version}`, 2));
    await first.expect("suback");
    const publisher = await connect(broker.urlOf(slot(0)));
    const qualities: readonly QoS[] = [1, 2, 1, 2];
    for (const [n, qos] of qualities.entries()) await publisher.publish(`again/${version}`, `${n}`, { qos });
    const before: IPublishPacket[] = [];
    for (const _ of qualities) before.push(await first.expect("publish"));
    expect(before.map(({ dup }) => dup)).toEqual([false, false, false, false]);
    // The first is acknowledged, the last is half way.
    const released = before[3]?.messageId ?? 0;
    first.send({ cmd: "puback", messageId: before[0]?.messageId ?? 0 }, { cmd: "pubrec", messageId: released });
    expect(await first.expect("pubrel")).toMatchObject({ messageId: released });
    await first.drop();

    const second = await converseConnected(url, session);
    expect(second.connack.sessionPresent).toBe(true);
    for (const n of [1, 2]) {
      const { messageId = 0, payload, qos, dup } = await second.expect("publish");
      expect({ messageId, payload: payload.toString(), qos, dup }).toEqual({
        messageId: before[n]?.messageId,
        payload: `${n}`,
        qos: qualities[n],
        dup: true,
      });
      second.send({ cmd: qos === 1 ? "puback" : "pubrec", messageId });
    }
    expect(await second.expect("pubrel")).toMatchObject({ messageId: released });
    expect(await second.expect("pubrel")).toMatchObject({ messageId: before[1]?.messageId });
    second.send({ cmd: "pubcomp", messageId: released }, { cmd: "pubcomp", messageId: before[1]?.messageId ?? 0 });
    await second.expectNothing();
    await second.drop();

    const third = await converseConnected(url, session);
    await third.expectNothing();
  });

  test("[MQTT-4.3.3-10] a QoS 2 publish that is sent again on a new connection is published once", async () => {
    const session = lasting(version, `once-${version}`);
    const url = broker.urlOf(slot(1));
    const subscriber = await connect(broker.urlOf(slot(0)));
    await subscriber.subscribe(`once/${version}`, { qos: 2 });
    const publish = {
      cmd: "publish",
      topic: `once/${version}`,
      payload: "x",
      qos: 2,
      messageId: 7,
      retain: false,
    } as const;
    const first = await converseConnected(url, session);
    first.send({ ...publish, dup: false });
    await first.expect("pubrec");
    await first.drop();
    const second = await converseConnected(url, session);
    second.send({ ...publish, dup: true });
    expect(await second.expect("pubrec")).toMatchObject({ messageId: 7 });
    second.send({ cmd: "pubrel", messageId: 7 });
    expect(await second.expect("pubcomp")).toMatchObject({ messageId: 7 });
    // The identifier is free: this is another message.
    second.send({ ...publish, payload: "y", dup: false });
    await second.expect("pubrec");
    expect(await subscriber.payloads(2)).toEqual(["x", "y"]);
    await subscriber.expectNothing();
  });
});

describe("session expiry", () => {
  test("[MQTT-3.1.2-23] a session is there until its interval is over, and gone after", async () => {
    const options = { clientId: "expires", clean: false, properties: { sessionExpiryInterval: 1 } };
    const isThere = (): Promise<boolean> => hadSession(broker.urlOf(slot(1)), options);
    // A busy machine may take longer than it lives to come back, or take the end of a connection in late.
    await expect.poll(isThere).toBe(true);
    await expect.poll(isThere, { interval: 1200 }).toBe(false);
  });

  test.each([
    ["given up", 100, 0, false],
    ["kept", 100, undefined, true],
    ["prolonged", 1, 100, true],
  ])("%s at DISCONNECT", async (name, atConnect, atDisconnect, present) => {
    const clientId = `disconnect-${name}`;
    const first = await converseConnected(broker.urlOf(slot(1)), {
      clientId,
      properties: { sessionExpiryInterval: atConnect },
    });
    first.send({
      cmd: "disconnect",
      reasonCode: 0,
      ...(atDisconnect !== undefined && { properties: { sessionExpiryInterval: atDisconnect } }),
    });
    await first.expectClose();
    if (atConnect === 1) await new Promise((resolve) => setTimeout(resolve, 1200)); // The second it had.
    const second = await converseConnected(broker.urlOf(slot(1)), { clientId, clean: false });
    expect(second.connack.sessionPresent).toBe(present);
  });

  test("[MQTT-3.14.2-2] a session without one cannot get one at DISCONNECT", async () => {
    const client = await converseConnected(broker.url);
    client.send({ cmd: "disconnect", reasonCode: 0, properties: { sessionExpiryInterval: 5 } });
    expect(await client.expect("disconnect")).toMatchObject({ reasonCode: 0x82 });
    await client.expectClose();
  });

  test("0xFFFFFFFF: the session never expires", async () => {
    const options = { clientId: "never", properties: { sessionExpiryInterval: 0xffff_ffff } };
    const first = await converseConnected(broker.urlOf(slot(1)), options);
    await first.drop();
    const second = await converseConnected(broker.urlOf(slot(1)), { ...options, clean: false });
    expect(second.connack.sessionPresent).toBe(true);
    second.send({ cmd: "disconnect", reasonCode: 0, properties: { sessionExpiryInterval: 0 } });
    await second.expectClose();
  });
});

describe("[G4] one client id, one session", () => {
  describe.each([
    ["the same node", 1, 1],
    ["another node", 1, 2],
  ])("taken over on %s", (_name, before, after) => {
    test.each(versions)(
      "[MQTT-3.1.4-3] version %i: the older connection is closed, and nothing is lost",
      async (version) => {
        const session = lasting(version, `taken-${version}-${after}`);
        const topic = `taken/${version}/${after}`;
        const publisher = await connect(broker.urlOf(slot(0)));
        const first = await converseConnected(broker.urlOf(slot(before)), session);
        first.send(subscribe(topic, 2));
        await first.expect("suback");
        await publisher.publish(topic, "one", { qos: 1 });
        await publisher.publish(topic, "two", { qos: 2 });
        const pending = [await first.expect("publish"), await first.expect("publish")];

        const second = await converse(broker.urlOf(slot(after)), session);
        second.send(connectPacket(session));
        if (version === 5) expect(await first.expect("disconnect")).toMatchObject({ reasonCode: 0x8e });
        await first.expectClose();
        expect(await second.expect("connack")).toMatchObject({ sessionPresent: true });
        for (const { messageId = 0, payload, qos } of pending) {
          const again = await second.expect("publish");
          expect(again).toMatchObject({ messageId, payload, qos, dup: true });
          second.send({ cmd: qos === 1 ? "puback" : "pubrec", messageId });
        }
        await second.expect("pubrel");
        second.send({ cmd: "pubcomp", messageId: pending[1]?.messageId ?? 0 });
        await publisher.publish(topic, "three", { qos: 1 });
        const third = await second.expect("publish");
        expect(third.payload.toString()).toBe("three");
        second.send({ cmd: "puback", messageId: third.messageId ?? 0 });
        await second.expectNothing();
      },
    );

    test("[MQTT-3.1.2-4] by a clean start: the older connection is closed, and its session is gone", async () => {
      const session = lasting(5, `clean-taken-${after}`);
      const first = await converseConnected(broker.urlOf(slot(before)), session);
      first.send(subscribe("clean/taken", 1));
      await first.expect("suback");
      const second = await converseConnected(broker.urlOf(slot(after)), { ...session, clean: true });
      expect(await first.expect("disconnect")).toMatchObject({ reasonCode: 0x8e });
      await first.expectClose();
      expect(second.connack.sessionPresent).toBe(false);
      const publisher = await connect(broker.urlOf(slot(0)));
      await publisher.publish("clean/taken", "x", { qos: 1 });
      await second.expectNothing();
    });
  });

  test("a session that waits on one node follows its client to another, and back, with all that came meanwhile", async () => {
    const session = { clientId: "wanderer", clean: false, properties: { sessionExpiryInterval: 100 } };
    const publisher = await connect(broker.urlOf(slot(0)));
    const first = await connect(broker.urlOf(slot(1)), session);
    await first.subscribe("wander/#", { qos: 2 });
    await first.drop();
    for (const [round, number] of [2, 3, 1, 1, 2].entries()) {
      const payloads = range(40).map((n) => `${round}-${n}`);
      for (const payload of payloads) await publisher.publish("wander/t", payload, { qos: 2 });
      const client = await connect(broker.urlOf(slot(number)), session);
      expect(client.connack.sessionPresent).toBe(true);
      expect(await client.payloads(40)).toEqual(payloads);
      await client.expectNothing();
      await client.drop();
    }
  });

  test.each([1, 2] as const)(
    "[G1] at QoS %i, a client that moves from node to node under load gets every message",
    async (qos) => {
      const clientId = `mover-${qos}`;
      const topic = `move/${qos}`;
      const session = { clientId, clean: false, properties: { sessionExpiryInterval: 100 } };
      const received: string[] = [];
      /** What an MQTT client keeps of QoS 2, across its connections. */
      const held = new Set<number>();
      const receive = async (client: Conversation, enough: (payload: string) => boolean): Promise<void> => {
        for (;;) {
          const packet = await client.next();
          const { messageId = 0 } = packet;
          if (packet.cmd === "pubrel") {
            held.delete(messageId);
            client.send({ cmd: "pubcomp", messageId });
          }
          if (packet.cmd !== "publish") continue;
          if (qos === 1 || !held.has(messageId)) received.push(packet.payload.toString());
          if (qos === 2) held.add(messageId);
          client.send({ cmd: qos === 1 ? "puback" : "pubrec", messageId });
          if (enough(packet.payload.toString())) return;
        }
      };

      let client: Conversation = await converseConnected(broker.urlOf(slot(1)), session);
      client.send(subscribe(topic, qos));
      await client.expect("suback");
      const publisher = await connect(broker.urlOf(slot(0)));
      const count = 300;
      const published = (async () => {
        for (const n of range(count)) await publisher.publish(topic, `${n}`, { qos });
      })();
      for (const number of [2, 3, 1, 2, 1]) {
        let left = 20;
        await receive(client, () => --left === 0);
        client = await converseConnected(broker.urlOf(slot(number)), session);
      }
      const missing = new Set(range(count).map(String));
      for (const payload of received) missing.delete(payload);
      if (missing.size > 0)
        await receive(client, (payload) => {
          missing.delete(payload);
          return missing.size === 0;
        });
      await published;
      expect(new Set(received)).toEqual(new Set(range(count).map(String)));
      if (qos === 2) expect(received).toHaveLength(count);
    },
  );

  test("of 16 connections at once on four nodes one is left, and it works", async () => {
    const session = lasting(5, "contended");
    const conversations = await Promise.all(range(16).map((n) => converse(broker.urlOf(slot(n % 4)))));
    for (const conversation of conversations) conversation.send(connectPacket(session));
    const open = new Set(conversations);
    const decided = Promise.withResolvers<void>();
    const leave = async (conversation: Conversation): Promise<void> => {
      await conversation.closed;
      open.delete(conversation);
      if (open.size === 1) decided.resolve();
    };
    for (const conversation of conversations) void leave(conversation);
    await decided.promise;
    const [winner] = open;
    expect(await winner?.expect("connack")).toMatchObject({ reasonCode: 0 });
    winner?.send(subscribe("contended", 1));
    await winner?.expect("suback");
    const publisher = await connect(broker.urlOf(slot(0)));
    await publisher.publish("contended", "x", { qos: 1 });
    expect(await winner?.expect("publish")).toMatchObject({ topic: "contended" });
  });

  test("another client id is another session", async () => {
    const clients: Client[] = [];
    for (const number of [1, 1, 2]) clients.push(await connect(broker.urlOf(slot(number))));
    for (const client of clients) await client.expectNothing();
  });
});

describe("client identifiers", () => {
  test("[MQTT-3.2.2-16] 5.0: one is assigned to a client that has none, and it is its session's", async () => {
    const first = await converseConnected(broker.urlOf(slot(1)), {
      clientId: "",
      properties: { sessionExpiryInterval: 100 },
    });
    const second = await converseConnected(broker.urlOf(slot(1)), { clientId: "" });
    const assigned = first.connack.properties?.assignedClientIdentifier ?? "";
    expect(assigned).toMatch(/^[\x21-\x7e]+$/);
    expect(second.connack.properties?.assignedClientIdentifier).not.toBe(assigned);
    await first.drop();
    const again = await converseConnected(broker.urlOf(slot(1)), { clientId: assigned, clean: false });
    expect(again.connack).toMatchObject({ sessionPresent: true });
    expect(again.connack.properties?.assignedClientIdentifier).toBeUndefined();
  });

  test("[MQTT-3.1.3-7] 3.1.1: none at all is fine for a clean session", async () => {
    const clients = [1, 2].map(() => converseConnected(broker.urlOf(slot(1)), { version: 4, clientId: "" }));
    for (const client of await Promise.all(clients)) await client.expectNothing();
  });

  test("[MQTT-3.1.3-8] 3.1.1: none at all for a session that is to last is refused with 2", async () => {
    const client = await converse(broker.url, { version: 4 });
    client.sendFrame(connect4(0x00, text("")));
    expect(await client.expect("connack")).toMatchObject({ returnCode: 2, sessionPresent: false });
    await client.expectClose();
  });

  test("long ones and strange ones are taken as they are", async () => {
    for (const clientId of ["a".repeat(1000), "Grüße/+/#", "$SYS", " ", randomUUID()]) {
      const session = { clientId, properties: { sessionExpiryInterval: 100 } };
      const first = await converseConnected(broker.urlOf(slot(1)), session);
      await first.drop();
      const second = await converseConnected(broker.urlOf(slot(2)), { ...session, clean: false });
      expect(second.connack.sessionPresent).toBe(true);
    }
  });
});

describe("keep alive", () => {
  test.each(versions)(
    "[MQTT-3.1.2-22] version %i: silence ends the connection, whatever is sent to the client",
    async (version) => {
      const publisher = await connect(broker.urlOf(slot(0)));
      const silent = await converseConnected(broker.urlOf(slot(1)), { version, keepalive: 3 });
      silent.send(subscribe(`silent/${version}`, 0));
      await silent.expect("suback");
      await publisher.publish(`silent/${version}`, "hello?");
      await silent.expect("publish");
      if (version === 5) expect(await silent.expect("disconnect")).toMatchObject({ reasonCode: 0x8d });
      await silent.expectClose();
    },
  );

  test("a client that pings stays, and one that asks for none is not missed", async () => {
    const silent = await converseConnected(broker.urlOf(slot(1)), { keepalive: 3 });
    const pinging = await converseConnected(broker.urlOf(slot(1)), { keepalive: 3 });
    const without = await converseConnected(broker.urlOf(slot(1)), { keepalive: 0 });
    const pings = setInterval(() => pinging.send({ cmd: "pingreq" }), 300);
    await silent.closed;
    clearInterval(pings);
    pinging.send(subscribe("pinging", 0));
    let packet = await pinging.next();
    while (packet.cmd === "pingresp") packet = await pinging.next();
    expect(packet).toMatchObject({ cmd: "suback" });
    await without.expectNothing();
  });
});
