import type { IConnectPacket } from "mqtt-packet";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connect, connectPacket, converse, converseConnected, slot, versions } from "../support/client.ts";
import type { Client, Conversation } from "../support/client.ts";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker();
});

afterAll(() => broker.stop());

type Will = NonNullable<IConnectPacket["will"]>;

function will(topic: string, fields: Partial<Will> = {}): Will {
  return { topic, payload: Buffer.from("bye"), qos: 1, retain: false, ...fields };
}

async function listenTo(filter: string): Promise<Client> {
  const subscriber = await connect(broker.urlOf(slot(0)));
  await subscriber.subscribe(filter, { qos: 2 });
  return subscriber;
}

/** Its will comes after those of connections that ended before its own: their node sends them on in order. */
async function connectMarker(topic: string, delay = 0): Promise<Conversation> {
  return converseConnected(broker.urlOf(slot(1)), {
    properties: { sessionExpiryInterval: 100 },
    will: will(topic, { payload: Buffer.from("marker"), properties: { willDelayInterval: delay } }),
  });
}

async function markerWill(topic: string, delay?: number): Promise<void> {
  const marker = await connectMarker(topic, delay);
  await marker.drop();
}

describe.each(versions)("the will of a client of version %i", (version) => {
  test("[MQTT-3.1.2-8] is published when its connection is lost", async () => {
    const subscriber = await listenTo(`lost/${version}`);
    const client = await converseConnected(broker.urlOf(slot(1)), { version, will: will(`lost/${version}`) });
    await subscriber.expectNothing();
    await client.drop();
    expect(await subscriber.next()).toMatchObject({ payload: "bye", qos: 1, retain: false });
    await subscriber.expectNothing();
  });

  test("is published when the client breaks the protocol, and when it falls silent", async () => {
    const subscriber = await listenTo(`wrong/${version}/+`);
    const wrong = await converseConnected(broker.urlOf(slot(1)), { version, will: will(`wrong/${version}/a`) });
    wrong.sendFrame(Uint8Array.of(0xf0, 0xff, 0xff, 0xff, 0xff));
    expect((await subscriber.next()).topic).toBe(`wrong/${version}/a`);
    await converseConnected(broker.urlOf(slot(1)), { version, keepalive: 1, will: will(`wrong/${version}/b`) });
    expect((await subscriber.next()).topic).toBe(`wrong/${version}/b`);
  });

  test("[MQTT-3.14.4-3] is forgotten with DISCONNECT", async () => {
    const topic = `left/${version}`;
    const subscriber = await listenTo(topic);
    const client = await connect(broker.urlOf(slot(1)), { protocolVersion: version, will: will(topic) });
    await client.leave();
    await markerWill(topic);
    expect(await subscriber.payloads(1)).toEqual(["marker"]);
  });

  test("[MQTT-3.1.2-17] is retained when it says so", async () => {
    const topic = `retained/${version}`;
    const subscriber = await listenTo(topic);
    const client = await converseConnected(broker.urlOf(slot(1)), {
      version,
      will: will(topic, { retain: true, qos: 2 }),
    });
    await client.drop();
    expect(await subscriber.next()).toMatchObject({ payload: "bye", qos: 2, retain: false });
    const late = await listenTo(topic);
    expect(await late.next()).toMatchObject({ payload: "bye", qos: 2, retain: true });
  });

  test("at QoS 0, and empty", async () => {
    const topic = `empty/${version}`;
    const subscriber = await listenTo(topic);
    const empty = will(topic, { payload: Buffer.alloc(0), qos: 0 });
    const client = await converseConnected(broker.urlOf(slot(1)), { version, will: empty });
    await client.drop();
    expect(await subscriber.next()).toMatchObject({ payload: "", qos: 0 });
  });

  test("is published when another connection takes the session over", async () => {
    const topic = `taken/${version}`;
    const subscriber = await listenTo(topic);
    const fields = { version, clientId: `taken-will-${version}`, clean: true };
    await converseConnected(broker.urlOf(slot(1)), { ...fields, will: will(topic) });
    await converseConnected(broker.urlOf(slot(2)), fields);
    expect(await subscriber.payloads(1)).toEqual(["bye"]);
    await subscriber.expectNothing();
  });
});

describe("of 5.0", () => {
  test("DISCONNECT with 0x04 asks for the will", async () => {
    const subscriber = await listenTo("asked");
    const client = await converseConnected(broker.urlOf(slot(1)), { will: will("asked") });
    client.send({ cmd: "disconnect", reasonCode: 0x04 });
    await client.expectClose();
    expect(await subscriber.payloads(1)).toEqual(["bye"]);
  });

  test("[MQTT-3.1.3-10] its properties are forwarded", async () => {
    const subscriber = await listenTo("properties");
    const properties = {
      payloadFormatIndicator: true,
      contentType: "text/plain",
      responseTopic: "answer",
      correlationData: Buffer.from("c"),
      userProperties: { a: "1", b: ["2", "3"] },
    };
    const client = await converseConnected(broker.urlOf(slot(1)), {
      will: will("properties", { properties: { ...properties, messageExpiryInterval: 100, willDelayInterval: 0 } }),
    });
    await client.drop();
    const received = await subscriber.next();
    expect(received.properties).toMatchObject(properties);
    expect(received.properties.messageExpiryInterval).toBeLessThanOrEqual(100);
  });

  test("a delayed one comes when its delay is over", async () => {
    const subscriber = await listenTo("delayed/+");
    const client = await converseConnected(broker.urlOf(slot(1)), {
      properties: { sessionExpiryInterval: 100 },
      will: will("delayed/will", { properties: { willDelayInterval: 1 } }),
    });
    const marker = await connectMarker("delayed/marker");
    await client.drop();
    // One without a delay overtakes it.
    await marker.drop();
    expect(await subscriber.payloads(2)).toEqual(["marker", "bye"]);
  });

  test("[MQTT-3.1.3-9] a delayed one does not come when the client is back in time", async () => {
    const subscriber = await listenTo("cancelled");
    for (const [clientId, back] of [
      ["back-same-node", 1],
      ["back-other-node", 2],
    ] as const) {
      const session = { clientId, clean: false, properties: { sessionExpiryInterval: 100 } };
      const client = await converseConnected(broker.urlOf(slot(1)), {
        ...session,
        will: will("cancelled", { properties: { willDelayInterval: 3 } }),
      });
      await client.drop();
      const again = await converseConnected(broker.urlOf(slot(back)), session);
      expect(again.connack.sessionPresent).toBe(true);
    }
    // As long a delay that began later: what was to come before it has come.
    await markerWill("cancelled", 3);
    expect(await subscriber.payloads(1)).toEqual(["marker"]);
  });

  test("a delayed one comes at the end of its session, if that is first", async () => {
    const subscriber = await listenTo("ends/+");
    const client = await converseConnected(broker.urlOf(slot(1)), {
      properties: { sessionExpiryInterval: 1 },
      will: will("ends/expiry", { properties: { willDelayInterval: 1000 } }),
    });
    await client.drop();
    expect((await subscriber.next()).topic).toBe("ends/expiry");

    const passing = await converseConnected(broker.urlOf(slot(1)), {
      will: will("ends/at-once", { properties: { willDelayInterval: 1000 } }),
    });
    await passing.drop();
    expect((await subscriber.next()).topic).toBe("ends/at-once");

    const session = { clientId: "ends-clean", properties: { sessionExpiryInterval: 1000 } };
    const waiting = await converseConnected(broker.urlOf(slot(1)), {
      ...session,
      will: will("ends/clean", { properties: { willDelayInterval: 1000 } }),
    });
    await waiting.drop();
    await converseConnected(broker.urlOf(slot(2)), { ...session, clean: true });
    expect((await subscriber.next()).topic).toBe("ends/clean");
  });

  test("a new CONNECT brings a new will, or none", async () => {
    const subscriber = await listenTo("new/+");
    const session = { clientId: "new-will", clean: false, properties: { sessionExpiryInterval: 100 } };
    const first = await converseConnected(broker.urlOf(slot(1)), { ...session, will: will("new/one") });
    first.send({ cmd: "disconnect", reasonCode: 0 });
    await first.expectClose();
    const second = await converseConnected(broker.urlOf(slot(1)), { ...session, will: will("new/two") });
    await second.drop();
    expect((await subscriber.next()).topic).toBe("new/two");
    const third = await converseConnected(broker.urlOf(slot(1)), session);
    await third.drop();
    await markerWill("new/marker");
    expect((await subscriber.next()).topic).toBe("new/marker");
  });

  test("a topic with a wildcard is refused", async () => {
    const client = await converse(broker.url);
    client.send(connectPacket({ will: will("a/+") }));
    expect(await client.expect("connack")).toMatchObject({ reasonCode: 0x90, sessionPresent: false });
    await client.expectClose();
  });
});
