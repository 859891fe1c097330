// What survives SIGKILL: everything that a client was promised.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connect, converseConnected, range, slot, versions } from "../support/client.ts";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker();
});

afterAll(() => broker.stop());

/** SIGKILL, and a start on the same port and data. */
async function crash(): Promise<void> {
  await broker.kill();
  await broker.restart();
}

/** Options of a session that lasts, in each version's own terms. */
function lasting(version: 4 | 5, clientId: string) {
  return version === 5
    ? { version, clientId, clean: false, properties: { sessionExpiryInterval: 1000 } }
    : { version, clientId, clean: false };
}

describe.each(versions)("[G1] version %i, after a crash", (version) => {
  test("a session, its subscriptions and its queue are there", async () => {
    const session = lasting(version, `queue-${version}`);
    const filters = [`crash/${version}/+`, `crash/${version}/#`, `$share/g/crash/${version}/shared`];
    const before = await connect(broker.urlOf(slot(1)), { ...session, protocolVersion: version });
    for (const filter of filters) await before.subscribe(filter, { qos: 2 });
    await before.leave();
    const publisher = await connect(broker.urlOf(slot(0)));
    for (const n of range(40))
      await publisher.publish(`crash/${version}/${n % 2}`, `${n}`, { qos: n % 2 === 0 ? 1 : 2 });
    await publisher.publish(`crash/${version}/shared`, "both", { qos: 1 });

    await crash();

    // Before its client is back: the routes are known.
    const second = await connect(broker.urlOf(slot(2)));
    await second.publish(`crash/${version}/0`, "40", { qos: 1 });
    const after = await connect(broker.urlOf(slot(1)), { ...session, protocolVersion: version });
    expect(after.connack.sessionPresent).toBe(true);
    const received = await after.payloads(43);
    expect(received.filter((payload) => payload === "both")).toHaveLength(2);
    const numbers = received.filter((payload) => payload !== "both").map(Number);
    // MQTT.js shows a QoS 2 message when it is released: each QoS has an order of its own.
    expect(numbers.filter((n) => n % 2 === 0)).toEqual(range(21).map((n) => 2 * n));
    expect(numbers.filter((n) => n % 2 === 1)).toEqual(range(20).map((n) => 2 * n + 1));
    await second.publish(`crash/${version}/deep/er`, "live", { qos: 1 });
    expect(await after.payloads(1)).toEqual(["live"]);
    await after.expectNothing();
  });

  test("a session that was connected is there, and what was on its way to it comes again", async () => {
    const session = lasting(version, `window-${version}`);
    const before = await converseConnected(broker.urlOf(slot(1)), session);
    before.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: `window/${version}`, qos: 2 }] });
    await before.expect("suback");
    const publisher = await connect(broker.urlOf(slot(0)));
    for (const [payload, qos] of [
      ["one", 1],
      ["two", 2],
      ["three", 2],
    ] as const)
      await publisher.publish(`window/${version}`, payload, { qos });
    const pending = [await before.expect("publish"), await before.expect("publish"), await before.expect("publish")];
    const [one = 0, two = 0, three = 0] = pending.map(({ messageId }) => messageId);
    before.send({ cmd: "pubrec", messageId: three });
    expect(await before.expect("pubrel")).toMatchObject({ messageId: three });

    await crash();

    const after = await converseConnected(broker.urlOf(slot(1)), session);
    expect(after.connack.sessionPresent).toBe(true);
    const again = [await after.next(), await after.next(), await after.next()];
    expect(again).toMatchObject([
      { cmd: "publish", messageId: one, qos: 1, dup: true, payload: Buffer.from("one") },
      { cmd: "publish", messageId: two, qos: 2, dup: true, payload: Buffer.from("two") },
      { cmd: "pubrel", messageId: three },
    ]);
    after.send(
      { cmd: "puback", messageId: one },
      { cmd: "pubrec", messageId: two },
      { cmd: "pubcomp", messageId: three },
    );
    expect(await after.expect("pubrel")).toMatchObject({ messageId: two });
    after.send({ cmd: "pubcomp", messageId: two });
    await after.expectNothing();
  });

  test("[MQTT-4.3.3-10] a QoS 2 publish that had its PUBREC is not published again", async () => {
    const session = lasting(version, `exactly-${version}`);
    const topic = `exactly/${version}`;
    const listener = { clientId: `listener-${version}`, clean: false, properties: { sessionExpiryInterval: 1000 } };
    const away = await connect(broker.urlOf(slot(2)), listener);
    await away.subscribe(topic, { qos: 2 });
    await away.leave();
    const publish = { cmd: "publish", topic, qos: 2, retain: false } as const;
    const before = await converseConnected(broker.urlOf(slot(1)), session);
    before.send({ ...publish, payload: "once", messageId: 5, dup: false });
    await before.expect("pubrec");

    await crash();

    const after = await converseConnected(broker.urlOf(slot(1)), session);
    expect(after.connack.sessionPresent).toBe(true);
    after.send({ ...publish, payload: "once", messageId: 5, dup: true });
    await after.expect("pubrec");
    after.send({ cmd: "pubrel", messageId: 5 });
    await after.expect("pubcomp");
    after.send({ ...publish, payload: "marker", messageId: 6, dup: false });
    await after.expect("pubrec");
    const back = await connect(broker.urlOf(slot(2)), listener);
    expect(await back.payloads(2)).toEqual(["once", "marker"]);
    await back.expectNothing();
  });

  test("all that was acknowledged under load is there", async () => {
    const session = lasting(version, `load-${version}`);
    const topic = `load/${version}`;
    const before = await connect(broker.urlOf(slot(1)), { ...session, protocolVersion: version });
    await before.subscribe(topic, { qos: 1 });
    await before.leave();
    const publisher = await connect(broker.urlOf(slot(0)), { protocolVersion: version });
    const acknowledged: string[] = [];
    const enough = Promise.withResolvers<void>();
    const publishSome = async (lane: number): Promise<void> => {
      for (const n of range(1000)) {
        await publisher.publish(topic, `${lane}-${n}`, { qos: lane % 2 === 0 ? 1 : 2 });
        acknowledged.push(`${lane}-${n}`);
        if (acknowledged.length === 200) enough.resolve();
      }
    };
    const lanes = Promise.allSettled(range(20).map(publishSome));
    await enough.promise;
    await broker.kill();
    publisher.mqtt.end(true);
    const promised = [...acknowledged];
    await broker.restart();

    const after = await connect(broker.urlOf(slot(1)), { ...session, protocolVersion: version });
    expect(after.connack.sessionPresent).toBe(true);
    const missing = new Set(promised);
    while (missing.size > 0) missing.delete((await after.next()).payload);
    void lanes;
  });
});

test("retained and delayed messages are there after a crash", async () => {
  const session = { clientId: "delayed", clean: false, properties: { sessionExpiryInterval: 1000 } };
  const before = await connect(broker.urlOf(slot(1)), session);
  await before.subscribe("delayed", { qos: 1 });
  await before.leave();
  const publisher = await connect(broker.urlOf(slot(0)));
  await publisher.publish("retained/a", "kept", { qos: 1, retain: true, properties: { contentType: "a/b" } });
  await publisher.publish("retained/b", "cleared", { qos: 1, retain: true });
  await publisher.publish("retained/b", "", { qos: 1, retain: true });
  await publisher.publish("$delayed/2/delayed", "later", { qos: 1 });

  await crash();

  const after = await connect(broker.urlOf(slot(1)), session);
  await after.subscribe("retained/#", { qos: 1 });
  // In this order unless the start has taken longer than the delay.
  const received = [await after.next(), await after.next()];
  expect(received.find(({ topic }) => topic === "retained/a")).toMatchObject({
    payload: "kept",
    retain: true,
    properties: { contentType: "a/b" },
  });
  expect(received.find(({ topic }) => topic === "delayed")).toMatchObject({ payload: "later" });
  await after.expectNothing();
});

describe("the will of a client that was connected at the crash", () => {
  const will = { topic: "wills/crash", payload: Buffer.from("bye"), qos: 1, retain: true } as const;

  test("is published when its node wakes: by its alarm for the keep alive, with no help", async () => {
    await converseConnected(broker.urlOf(slot(3)), { keepalive: 1, will: { ...will, topic: "wills/alarm" } });
    await crash();
    const listener = await connect(broker.urlOf(slot(1)));
    await listener.subscribe("wills/alarm", { qos: 1 });
    expect(await listener.payloads(1)).toEqual(["bye"]);
  });

  test("is published without a keep alive too, when another client comes to the node", async () => {
    await converseConnected(broker.urlOf(slot(3)), { will: { ...will, topic: "wills/none" } });
    await crash();
    const listener = await connect(broker.urlOf(slot(1)));
    await listener.subscribe("wills/none", { qos: 1 });
    await connect(broker.urlOf(slot(3)));
    expect(await listener.payloads(1)).toEqual(["bye"]);
  });

  test("is published when its delay is over", async () => {
    const properties = { sessionExpiryInterval: 1000 };
    const delayed = { ...will, topic: "wills/delayed", properties: { willDelayInterval: 1 } };
    await converseConnected(broker.urlOf(slot(3)), { keepalive: 1, properties, will: delayed });
    await crash();
    const listener = await connect(broker.urlOf(slot(1)));
    await listener.subscribe("wills/delayed", { qos: 1 });
    expect(await listener.payloads(1)).toEqual(["bye"]);
  });

  test("is forgotten when the client had left with DISCONNECT", async () => {
    const properties = { sessionExpiryInterval: 1000 };
    const session = { clientId: "left", properties };
    const client = await converseConnected(broker.urlOf(slot(3)), {
      ...session,
      will: { ...will, topic: "wills/left" },
    });
    client.send({ cmd: "disconnect", reasonCode: 0 });
    await client.expectClose();
    await crash();
    const back = await converseConnected(broker.urlOf(slot(3)), { ...session, clean: false });
    expect(back.connack.sessionPresent).toBe(true);
    await back.drop();
    const listener = await connect(broker.urlOf(slot(1)));
    await listener.subscribe("wills/left", { qos: 1 });
    await listener.publish("wills/left", "marker", { qos: 1 });
    expect(await listener.payloads(1)).toEqual(["marker"]);
  });
});

test("a session that ends with its connection is gone after a crash, with its routes", async () => {
  const client = await connect(broker.urlOf(slot(4)), { clientId: "passing" });
  await client.subscribe("passing", { qos: 1 });
  await crash();
  // Its node wakes with the message and has nobody for it; what it says of that is heard in the end.
  const publisher = await converseConnected(broker.urlOf(slot(0)));
  let reasonCode: number | undefined;
  for (let messageId = 1; reasonCode !== 0x10 && messageId < 100; messageId++) {
    publisher.send({ cmd: "publish", topic: "passing", payload: "", qos: 1, messageId, dup: false, retain: false });
    ({ reasonCode } = await publisher.expect("puback"));
  }
  expect(reasonCode).toBe(0x10);
  const back = await converseConnected(broker.urlOf(slot(4)), { clientId: "passing", clean: false });
  expect(back.connack.sessionPresent).toBe(false);
});

test("[G4] a client id that was on one node is found from another after a crash", async () => {
  const session = { clientId: "moves-after", clean: false, properties: { sessionExpiryInterval: 1000 } };
  const before = await connect(broker.urlOf(slot(1)), session);
  await before.subscribe("moves", { qos: 1 });
  await before.drop();
  const publisher = await connect(broker.urlOf(slot(0)));
  await publisher.publish("moves", "waiting", { qos: 1 });
  await crash();
  const after = await connect(broker.urlOf(slot(2)), session);
  expect(after.connack.sessionPresent).toBe(true);
  expect(await after.payloads(1)).toEqual(["waiting"]);
});

test("[G5] nothing was thrown in all of this", () => {
  expect(broker.output()).not.toMatch(/exception|uncaught/i);
});
