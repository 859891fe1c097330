import type { QoS } from "mqtt-packet";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connect, slot, versions } from "../support/client.ts";
import type { Client } from "../support/client.ts";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker();
});

afterAll(() => broker.stop());

async function twoNodes(): Promise<[publisher: Client, subscriber: Client]> {
  return [await connect(broker.urlOf(slot(0))), await connect(broker.urlOf(slot(1)))];
}

describe.each(versions)("version %i", (protocolVersion) => {
  test.each([0, 1, 2] as const)("[MQTT-3.3.1-5] a message retained at QoS %i waits for all who come", async (qos) => {
    const topic = `kept/${protocolVersion}/${qos}`;
    const publisher = await connect(broker.urlOf(slot(0)), { protocolVersion });
    await publisher.publish(topic, "old", { qos, retain: true });
    await publisher.publish(topic, "new", { qos, retain: true });
    // On the same path, so that the one at QoS 0 has arrived.
    await publisher.publish("other", "", { qos: 1 });
    await publisher.leave();
    for (const number of [0, 1, 2]) {
      const subscriber = await connect(broker.urlOf(slot(number)), { protocolVersion });
      await subscriber.subscribe(topic, { qos: 2 });
      expect(await subscriber.next()).toMatchObject({ topic, payload: "new", qos, retain: true });
      await subscriber.expectNothing();
    }
  });

  test("[MQTT-3.3.1-6] [MQTT-3.3.1-7] an empty one clears its topic, and is not retained itself", async () => {
    const topic = `cleared/${protocolVersion}`;
    const publisher = await connect(broker.urlOf(slot(0)), { protocolVersion });
    const there = await connect(broker.urlOf(slot(1)), { protocolVersion });
    await publisher.publish(topic, "x", { qos: 1, retain: true });
    await there.subscribe(topic);
    expect(await there.next()).toMatchObject({ payload: "x", retain: true });
    await publisher.publish(topic, "", { qos: 1, retain: true });
    expect(await there.next()).toMatchObject({ payload: "", retain: false });
    const late = await connect(broker.urlOf(slot(2)), { protocolVersion });
    await late.subscribe(topic);
    await publisher.publish(topic, "marker", { qos: 1 });
    expect(await late.payloads(1)).toEqual(["marker"]);
  });

  test("[MQTT-3.3.1-8] a message without RETAIN leaves the retained one in place", async () => {
    const topic = `beside/${protocolVersion}`;
    const publisher = await connect(broker.urlOf(slot(0)), { protocolVersion });
    await publisher.publish(topic, "retained", { qos: 1, retain: true });
    await publisher.publish(topic, "passing", { qos: 1 });
    const late = await connect(broker.urlOf(slot(1)), { protocolVersion });
    await late.subscribe(topic);
    expect(await late.next()).toMatchObject({ payload: "retained", retain: true });
  });
});

test("wildcards find all that match, and no more, in whatever number", async () => {
  const [publisher, subscriber] = await twoNodes();
  const count = 1200; // More than a page.
  const topics = Array.from({ length: count }, (_, n) => `many/${n}/x`);
  for (let at = 0; at < count; at += 30) {
    const some = topics.slice(at, at + 30);
    await Promise.all(some.map((topic) => publisher.publish(topic, topic, { qos: 1, retain: true })));
  }
  for (const topic of ["many", "manyx/1/x", "many/1", "many/1/x/y", "$many/1/x"])
    await publisher.publish(topic, topic, { qos: 1, retain: true });
  await subscriber.subscribe("many/+/x", { qos: 1 });
  const received = await subscriber.payloads(count);
  expect(new Set(received)).toEqual(new Set(topics));
  await subscriber.subscribe("$many/#");
  expect(await subscriber.payloads(1)).toEqual(["$many/1/x"]);
  const other = await connect(broker.urlOf(slot(2)));
  await other.subscribe("many/1/#");
  expect((await other.payloads(3)).sort()).toEqual(["many/1", "many/1/x", "many/1/x/y"]);
  await other.subscribe("+/1/x", { rh: 0 });
  expect((await other.payloads(2)).sort()).toEqual(["many/1/x", "manyx/1/x"]);
  await other.expectNothing();
});

describe("[MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11] retain handling", () => {
  test.each([
    [0, true, true],
    [1, true, false],
    [2, false, false],
  ] as const)("%i: sent at first %s, sent again %s", async (rh, first, again) => {
    const [publisher, subscriber] = await twoNodes();
    const topic = `handling/${rh}`;
    await publisher.publish(topic, "retained", { qos: 1, retain: true });
    for (const expected of [first, again]) {
      expect(await subscriber.subscribe(topic, { qos: 1, rh })).toEqual([1]);
      // What is retained comes before what is published after it was read, and a later read is behind both.
      await subscriber.subscribe("handling/marker", { qos: 1 });
      await publisher.publish("handling/marker", "marker", { qos: 1, retain: true });
      const received: string[] = [];
      while (received.at(-1) !== "marker") received.push((await subscriber.next()).payload);
      expect(received.includes("retained")).toBe(expected);
      await subscriber.unsubscribe("handling/marker");
      await publisher.publish("handling/marker", "", { qos: 1, retain: true });
    }
  });

  test("a subscription that was given up and is made again is new", async () => {
    const [publisher, subscriber] = await twoNodes();
    await publisher.publish("anew", "retained", { qos: 1, retain: true });
    for (const _ of [1, 2]) {
      await subscriber.subscribe("anew", { rh: 1 });
      expect(await subscriber.payloads(1)).toEqual(["retained"]);
      await subscriber.unsubscribe("anew");
    }
  });
});

test("[MQTT-3.8.4-4] each subscription brings what it matches, with its own QoS and identifier", async () => {
  const [publisher, subscriber] = await twoNodes();
  await publisher.publish("own/t", "x", { qos: 2, retain: true });
  for (const [filter, qos, subscriptionIdentifier] of [
    ["own/t", 0, 5],
    ["own/+", 1, 6],
  ] as const) {
    await subscriber.subscribe(filter, { qos, properties: { subscriptionIdentifier } });
    const { payload, retain, qos: got, properties } = await subscriber.next();
    expect({ payload, retain, qos: got, properties }).toMatchObject({
      payload: "x",
      retain: true,
      qos,
      properties: { subscriptionIdentifier },
    });
  }
  await subscriber.expectNothing();
});

test("[MQTT-3.3.1-13] to a new subscription RETAIN is set, whatever retain-as-published says", async () => {
  const [publisher, subscriber] = await twoNodes();
  await publisher.publish("flag", "x", { qos: 1, retain: true });
  await subscriber.subscribe("flag", { rap: false });
  expect((await subscriber.next()).retain).toBe(true);
  await subscriber.subscribe("+", { rap: true, rh: 0 });
  let received = await subscriber.next();
  while (received.topic !== "flag") received = await subscriber.next();
  expect(received.retain).toBe(true);
});

test("shared subscriptions get nothing that is retained", async () => {
  const [publisher, subscriber] = await twoNodes();
  await publisher.publish("shared/kept", "retained", { qos: 1, retain: true });
  await subscriber.subscribe("$share/g/shared/kept", { qos: 1 });
  await subscriber.subscribe("$queue/shared/kept", { qos: 1 });
  await publisher.publish("shared/kept", "live", { qos: 1 });
  expect(await subscriber.payloads(2)).toEqual(["live", "live"]);
  await subscriber.expectNothing();
});

test("all properties are retained, and the expiry interval goes on", async () => {
  const [publisher, subscriber] = await twoNodes();
  const properties = {
    contentType: "a/b",
    responseTopic: "r",
    correlationData: Buffer.from("c"),
    userProperties: { k: "v" },
  };
  const qos: QoS = 1;
  await publisher.publish("with", "x", {
    qos,
    retain: true,
    properties: { ...properties, messageExpiryInterval: 500 },
  });
  await publisher.publish("gone", "x", { qos, retain: true, properties: { messageExpiryInterval: 1 } });
  await new Promise((resolve) => setTimeout(resolve, 1100)); // The second that it lives.
  await subscriber.subscribe(["with", "gone"], { qos });
  const received = await subscriber.next();
  expect(received).toMatchObject({ topic: "with", properties });
  expect(received.properties.messageExpiryInterval).toBeLessThan(500);
  await publisher.publish("gone", "marker", { qos });
  expect(await subscriber.payloads(1)).toEqual(["marker"]);
});
