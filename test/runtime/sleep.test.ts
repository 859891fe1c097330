// What a node and a core still know when they wake, and what becomes of what was lost in a crash.

import { runInDurableObject } from "cloudflare:test";
import { describe, expect, test, vi } from "vitest";
import { Coordinator } from "../../durable-objects/coordinator/coordinator.ts";
import { limits } from "../../mqtt/limits.ts";
import {
  converse,
  coreName,
  crash,
  durable,
  newNode,
  nodeStub,
  publish,
  publishAndWait,
  rows,
  sessionRow,
  sleep,
  subscribe,
} from "./conversation.ts";
import { patience } from "../support/patience.ts";

/** A client on a node that sleeps, one on a node that does not, and a topic of theirs. */
async function meet(fields: Parameters<typeof converse>[1] = {}) {
  const node = newNode();
  const client = await converse(node, { clientId: `client-of-${node}`, ...fields });
  const other = await converse(newNode());
  return { node, client, other, topic: `sleep/${node}` };
}

function countRows(name: string, table: string, where: string, ...bindings: SqlStorageValue[]): Promise<number> {
  return rows<{ n: number }>(name, `SELECT count(*) AS n FROM ${table} WHERE ${where}`, ...bindings).then(
    ([row]) => row!.n,
  );
}

describe("a node wakes and knows", () => {
  test.concurrent("its clients' subscriptions and their options", async () => {
    const { node, client, other, topic } = await meet();
    await subscribe(client, `${topic}/plain`, { qos: 0, id: 11 });
    await subscribe(client, [`${topic}/own`], { qos: 1, nl: true });
    await subscribe(client, [`${topic}/retain/+`], { qos: 2, rap: true, id: 268_435_455 });
    await sleep(node);
    other.send(publish(`${topic}/plain`, "1", 2, { messageId: 1 }));
    await client.expectMessage("1", { qos: 0, properties: { subscriptionIdentifier: 11 } });
    client.send(publish(`${topic}/own`, "2", 0));
    await client.expectNothing();
    other.send(publish(`${topic}/retain/x`, "3", 2, { messageId: 2, retain: true }));
    await client.expectMessage("3", { qos: 2, retain: true, properties: { subscriptionIdentifier: 268_435_455 } });
  });

  test.concurrent("an UNSUBSCRIBE", async () => {
    const { node, client, other, topic } = await meet();
    await subscribe(client, [`${topic}/1`, `${topic}/2`]);
    client.send({ cmd: "unsubscribe", messageId: 5, unsubscriptions: [`${topic}/1`] });
    await client.expect("unsuback", { messageId: 5 });
    await sleep(node);
    await publishAndWait(other, `${topic}/1`, "unwanted");
    await publishAndWait(other, `${topic}/2`, "wanted");
    await client.expectMessage("wanted");
    await client.expectNothing();
  });

  test.concurrent("the topic aliases that the client has set, as last set [MQTT-3.3.2-12]", async () => {
    const { node, client, other, topic } = await meet();
    await subscribe(other, `${topic}/+`);
    client.send(publish(`${topic}/1`, "1", 0, { properties: { topicAlias: 1 } }));
    client.send(publish(`${topic}/2`, "2", 0, { properties: { topicAlias: 2 } }));
    client.send(publish(`${topic}/3`, "3", 0, { properties: { topicAlias: 1 } }));
    await client.expectNothing();
    await sleep(node);
    client.send(publish("", "4", 0, { properties: { topicAlias: 1 } }));
    client.send(publish("", "5", 0, { properties: { topicAlias: 2 } }));
    for (const payload of ["1", "2", "3"]) await other.expectMessage(payload);
    await other.expectMessage("4", { topic: `${topic}/3` });
    await other.expectMessage("5", { topic: `${topic}/2` });
    await sleep(node);
    client.send(publish("", "6", 0, { properties: { topicAlias: 3 } }));
    await client.expect("disconnect", { reasonCode: 0x82 });
  });

  test.concurrent("that it may not know its own topic aliases: they are set again [MQTT-3.3.2-12]", async () => {
    const { node, client, other, topic } = await meet({ properties: { topicAliasMaximum: 2 } });
    await subscribe(client, `${topic}/+`, { qos: 0 });
    other.send(publish(`${topic}/1`, "1"), publish(`${topic}/1`, "2"));
    await client.expectMessage("1", { topic: `${topic}/1`, properties: { topicAlias: 1 } });
    await client.expectMessage("2", { topic: "", properties: { topicAlias: 1 } });
    await sleep(node);
    other.send(publish(`${topic}/2`, "3"), publish(`${topic}/1`, "4"), publish(`${topic}/1`, "5"));
    await client.expectMessage("3", { topic: `${topic}/2`, properties: { topicAlias: 1 } });
    await client.expectMessage("4", { topic: `${topic}/1`, properties: { topicAlias: 2 } });
    await client.expectMessage("5", { topic: "", properties: { topicAlias: 2 } });
  });

  test.concurrent("the client's Maximum Packet Size [MQTT-3.1.2-24]", async () => {
    const { node, client, other, topic } = await meet({ properties: { maximumPacketSize: 100 } });
    await subscribe(client, topic);
    await sleep(node);
    await publishAndWait(other, topic, "x".repeat(100), "small");
    await client.expectMessage("small");
    await client.expectNothing();
  });

  test.concurrent("the client's Receive Maximum and what it has used of it [MQTT-3.3.4-9]", async () => {
    const { node, client, other, topic } = await meet({ properties: { receiveMaximum: 2 } });
    await subscribe(client, topic);
    await publishAndWait(other, topic, "1", "2", "3", "4", "5");
    const first = await client.expectMessage("1");
    const second = await client.expectMessage("2");
    await client.expectNothing();
    await sleep(node);
    await client.expectNothing();
    client.send({ cmd: "puback", messageId: first.messageId! });
    const third = await client.expectMessage("3");
    expect([first.messageId, second.messageId]).not.toContain(third.messageId); // [MQTT-2.2.1-4]
    await client.expectNothing();
    await sleep(node);
    client.send({ cmd: "puback", messageId: second.messageId! }, { cmd: "puback", messageId: third.messageId! });
    await client.expectMessage("4");
    await client.expectMessage("5");
    await client.expectNothing();
  });

  test.concurrent("what the client has used of the broker's Receive Maximum [MQTT-3.3.4-7]", async () => {
    const { node, client, topic } = await meet();
    const receiveMaximum = client.connack.properties!.receiveMaximum!;
    for (let messageId = 1; messageId < receiveMaximum; messageId++) {
      client.send(publish(topic, "x", 2, { messageId }));
      await client.expect("pubrec", { messageId });
    }
    await sleep(node);
    client.send(publish(topic, "x", 2, { messageId: receiveMaximum }));
    await client.expect("pubrec", { messageId: receiveMaximum });
    await sleep(node);
    client.send(publish(topic, "x", 2, { messageId: receiveMaximum + 1 }));
    await client.expect("disconnect", { reasonCode: 0x93 });
  });

  test.concurrent("what of a resumed session it has not sent again yet [MQTT-4.4.0-1] [MQTT-3.3.4-9]", async () => {
    const { node, client, other, topic } = await meet(durable);
    await subscribe(client, topic);
    await publishAndWait(other, topic, "1", "2", "3");
    for (const payload of ["1", "2", "3"]) await client.expectMessage(payload);
    await client.drop();
    const again = await converse(node, {
      ...durable,
      clientId: client.clientId,
      properties: { ...durable.properties, receiveMaximum: 1 },
    });
    const first = await again.expectMessage("1", { dup: true });
    await again.expectNothing();
    await sleep(node);
    again.send({ cmd: "puback", messageId: first.messageId! });
    const second = await again.expectMessage("2", { dup: true });
    await sleep(node);
    again.send({ cmd: "puback", messageId: second.messageId! });
    const third = await again.expectMessage("3", { dup: true });
    again.send({ cmd: "puback", messageId: third.messageId! });
    await publishAndWait(other, topic, "4");
    await again.expectMessage("4", { dup: false });
  });

  test.concurrent("which version its clients speak", async () => {
    const { node, client, other, topic } = await meet({ version: 4 });
    await subscribe(client, topic);
    await sleep(node);
    other.send(publish(topic, "1", 1, { messageId: 1, properties: { contentType: "text/plain" } }));
    const { messageId } = await client.expectMessage("1", { qos: 1 });
    client.send({ cmd: "puback", messageId: messageId! });
    client.send(publish(topic, "2", 1, { messageId: 2 }));
    await client.expectMessage("2");
    await client.expect("puback", { messageId: 2 });
  });

  test.concurrent("the rest of a retained read, page by page", async () => {
    const { node, client, topic } = await meet({ properties: { receiveMaximum: 20 } });
    // 3.1.1, whose clients have no Receive Maximum to keep to; more messages than one page holds.
    const publisher = await converse(newNode(), { version: 4 });
    const count = 700;
    for (let messageId = 1; messageId <= count; messageId++)
      publisher.send(publish(`${topic}/${messageId}`, "x", 1, { messageId, retain: true }));
    for (let messageId = 1; messageId <= count; messageId++) await publisher.expect("puback", { messageId });

    await subscribe(client, `${topic}/+`, { qos: 1 });
    const topics = new Set<string>();
    for (let received = 1; received <= count; received++) {
      const message = await client.expect("publish", { retain: true, dup: false });
      topics.add(message.topic);
      if (received === 10 || received === 490 || received === 510) await sleep(node);
      client.send({ cmd: "puback", messageId: message.messageId! });
    }
    expect(topics.size).toBe(count);
    await client.expectNothing();
    await sleep(node);
    await client.expectNothing();
  });

  test.concurrent("the will, until DISCONNECT takes it away [MQTT-3.1.2-8] [MQTT-3.14.4-3]", async () => {
    const node = newNode();
    const topic = `sleep/${node}`;
    const will = {
      topic,
      payload: "gone",
      qos: 1 as const,
      retain: true,
      properties: { contentType: "text/plain", userProperties: { a: "b" } },
    };
    const heir = await converse(newNode());
    await subscribe(heir, topic, { rap: true });
    const lost = await converse(node, { will });
    const polite = await converse(node, { will: { ...will, payload: "not sent" } });
    await sleep(node);
    await lost.drop();
    await heir.expectMessage("gone", {
      qos: 1,
      retain: true,
      properties: { contentType: "text/plain", userProperties: { a: "b" } },
    });
    await sleep(node);
    await polite.leave();
    await heir.expectNothing();
  });

  test.concurrent("that a DISCONNECT has changed the session's expiry [MQTT-3.14.2-2]", async () => {
    const { node, client } = await meet(durable);
    await sleep(node);
    client.send({ cmd: "disconnect", reasonCode: 0, properties: { sessionExpiryInterval: 0 } });
    await client.expectClosed();
    const again = await converse(node, { ...durable, clientId: client.clientId });
    expect(again.connack.sessionPresent).toBe(false);
  });

  test.concurrent("which client ids it has: a second connection ends the first [G4]", async () => {
    const { node, client } = await meet();
    await sleep(node);
    await converse(node, { clientId: client.clientId });
    await client.expect("disconnect", { reasonCode: 0x8e });
    await client.expectClosed();
  });

  test.concurrent("a session that another node takes over [G1] [G4]", async () => {
    const { node, client, other, topic } = await meet(durable);
    await subscribe(client, topic);
    await publishAndWait(other, topic, "1", "2");
    const { messageId } = await client.expectMessage("1");
    await client.expectMessage("2");
    await sleep(node);
    const elsewhere = newNode();
    const again = await converse(elsewhere, { ...durable, clientId: client.clientId });
    expect(again.connack.sessionPresent).toBe(true);
    await client.expect("disconnect", { reasonCode: 0x8e });
    await again.expectMessage("1", { dup: true, messageId });
    await again.expectMessage("2", { dup: true });
    await sleep(elsewhere);
    await publishAndWait(other, topic, "3");
    await again.expectMessage("3");
    await again.expectNothing();
  });
});

describe("the core wakes and knows", () => {
  test("the routes [G3]", async () => {
    const { client, other, topic } = await meet();
    await subscribe(client, `${topic}/+/#`);
    await sleep(coreName);
    other.send(publish(`${topic}/a/b`, "1"));
    await client.expectMessage("1");
    client.send({ cmd: "unsubscribe", messageId: 5, unsubscriptions: [`${topic}/+/#`] });
    await client.expect("unsuback");
    await sleep(coreName);
    other.send(publish(`${topic}/a/b`, "2", 1, { messageId: 1 }));
    await other.expect("puback", { messageId: 1, reasonCode: 0x10 });
  });

  test("the routes of nodes that sleep too [G3]", async () => {
    const { node, client, other, topic } = await meet();
    await subscribe(client, topic);
    await sleep(node);
    await sleep(coreName);
    other.send(publish(topic, "1", 1, { messageId: 1 }));
    await other.expect("puback", { messageId: 1, reasonCode: 0 });
    await client.expectMessage("1");
  });

  test("the retained messages", async () => {
    const { client, other, topic } = await meet();
    other.send(publish(topic, "kept", 1, { messageId: 1, retain: true }));
    await other.expect("puback", { messageId: 1 });
    await sleep(coreName);
    await subscribe(client, topic);
    await client.expectMessage("kept", { retain: true });
  });

  test("the client ids [G4]", async () => {
    const { client } = await meet();
    await sleep(coreName);
    await converse(newNode(), { clientId: client.clientId });
    await client.expect("disconnect", { reasonCode: 0x8e });
  });

  test("which nodes have connected members of a share group", async () => {
    const { client, other, topic } = await meet();
    const key = `$share/g/${topic}`;
    await subscribe(client, key);
    const offline = await converse(newNode(), durable);
    await subscribe(offline, key);
    await offline.leave();
    await sleep(coreName);
    await publishAndWait(other, topic, "1", "2", "3", "4");
    for (const payload of ["1", "2", "3", "4"]) await client.expectMessage(payload);
  });
});

/** Until the core has heard how many connected members of the share group the node has. */
async function untilMembers(node: string, key: string, count: number): Promise<void> {
  const read = () =>
    rows<{ members: number }>(coreName, "SELECT members FROM route WHERE key = ? AND node = ?", key, node);
  await vi
    .waitUntil(async () => (await read())[0]?.members === count, patience)
    .catch(async () => expect(await read()).toEqual([{ members: count }]));
}

describe("a node that has slept keeps the counts of a share group right", () => {
  test.concurrent("members that are there", async () => {
    const { node, client, other, topic } = await meet();
    const second = await converse(newNode());
    const key = `$share/g/${topic}`;
    await subscribe(client, key);
    await subscribe(second, key);
    await sleep(node);
    await publishAndWait(other, topic, "1", "2", "3", "4");
    // round_robin: one after the other
    await client.expect("publish");
    await second.expect("publish");
    await client.expect("publish");
    await second.expect("publish");
  });

  test.concurrent("a member that goes while the node sleeps", async () => {
    const { node, client, other, topic } = await meet(durable);
    const second = await converse(newNode());
    const key = `$share/g/${topic}`;
    await subscribe(client, key);
    await subscribe(second, key);
    await sleep(node);
    await client.drop();
    await untilMembers(node, key, 0);
    await publishAndWait(other, topic, "1", "2", "3", "4");
    for (const payload of ["1", "2", "3", "4"]) await second.expectMessage(payload);
  });

  test.concurrent.for([
    ["durable", durable],
    ["transient", {}],
  ] as const)("%s members that a crash took", async ([, fields]) => {
    const { node, client, other, topic } = await meet(fields);
    const key = `$share/g/${topic}`;
    await subscribe(client, key);
    // Keeps the group on this node when the transient one is forgotten.
    const offline = await converse(node, durable);
    await subscribe(offline, key);
    await offline.leave();
    const second = await converse(newNode());
    await subscribe(second, key);
    await crash(node);
    // The node hears of its crash when something wakes it.
    await converse(node);
    await untilMembers(node, key, 0);
    await publishAndWait(other, topic, "1", "2", "3", "4");
    for (const payload of ["1", "2", "3", "4"]) await second.expectMessage(payload);
  });
});

describe("a session that disk calls connected and that has no socket", () => {
  test.concurrent("transient: its will is published, and all of it is gone", async () => {
    const { node, other, topic } = await meet();
    const lost = await converse(node, { will: { topic: `${topic}/will`, payload: "gone", qos: 1 } });
    await subscribe(lost, `${topic}/1`);
    await subscribe(other, `${topic}/will`);
    await crash(node);
    await lost.expectClosed();
    await converse(node);
    await other.expectMessage("gone");
    await other.expectNothing();
    expect(await sessionRow(node, lost.clientId)).toBeUndefined();
    expect(await countRows(node, "subscription", "filter = ?", `${topic}/1`)).toBe(0);
    await vi.waitUntil(async () => (await countRows(coreName, "route", "key = ?", `${topic}/1`)) === 0, patience);
    await vi.waitUntil(
      async () => (await countRows(coreName, "claim", "client_id = ?", lost.clientId)) === 0,
      patience,
    );
  });

  test.concurrent("durable: its will is published, and it waits for its client", async () => {
    const { node, other, topic } = await meet();
    const lost = await converse(node, { ...durable, will: { topic: `${topic}/will`, payload: "gone", qos: 1 } });
    await subscribe(lost, `${topic}/1`);
    await subscribe(other, `${topic}/will`);
    await crash(node);
    await publishAndWait(other, `${topic}/1`, "meanwhile");
    await other.expectMessage("gone");
    const row = await sessionRow(node, lost.clientId);
    expect(row).toMatchObject({ connected: 0 });
    expect(row!.expires_at).toBeGreaterThan(Date.now());
    const again = await converse(node, { ...durable, clientId: lost.clientId });
    expect(again.connack.sessionPresent).toBe(true);
    await again.expectMessage("meanwhile");
  });

  test.concurrent("lost twice is lost once: one will", async () => {
    const { node, other, topic } = await meet();
    await converse(node, { ...durable, will: { topic, payload: "gone", qos: 1 } });
    await subscribe(other, topic);
    await crash(node);
    await converse(node);
    await other.expectMessage("gone");
    await sleep(node);
    await crash(node);
    await converse(node);
    await sleep(node);
    await other.expectNothing();
  });
});

describe("nothing is left behind", () => {
  test.concurrent("by a SUBSCRIBE whose session ends before the cluster has answered [G9]", async () => {
    const { node, client, other, topic } = await meet();
    client.send(
      { cmd: "subscribe", messageId: 1, subscriptions: [{ topic, qos: 1 }] },
      { cmd: "disconnect", reasonCode: 0 },
    );
    await client.expectClosed();
    await vi.waitUntil(
      async () => (await countRows(coreName, "claim", "client_id = ?", client.clientId)) === 0,
      patience,
    );
    await sleep(node);
    expect(await countRows(node, "subscription", "true")).toBe(0);
    // Another client, whose session gets the same number.
    const next = await converse(node);
    await publishAndWait(other, topic, "not yours");
    await next.expectNothing();
    await sleep(node);
    await publishAndWait(other, topic, "not yours either");
    await next.expectNothing();
  });

  test.concurrent("by a long queue of a session that ends before its SUBSCRIBE is answered", async () => {
    const { node, client, other, topic } = await meet();
    const answered = Promise.withResolvers<void>();
    // oxlint-disable-next-line typescript/unbound-method -- it is called with the object that it was called on
    const { route } = Coordinator.prototype;
    const held = vi.spyOn(Coordinator.prototype, "route").mockImplementation(async function (
      this: Coordinator,
      ...args
    ) {
      const answer = await route.apply(this, args);
      if (args[0] === node) await answered.promise;
      return answer;
    });
    client.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic, qos: 1 }] });
    await vi.waitUntil(async () => (await countRows(coreName, "route", "key = ?", topic)) === 1, patience);
    // More than its window, and what is held in memory of a queue.
    const payloadBytes = 10_000;
    const count = 32 + Math.ceil(limits.queueHeldBytesMax / payloadBytes) + 2;
    const payloads = Array.from({ length: count }, (_, index) => String(index).padEnd(payloadBytes));
    await publishAndWait(other, topic, ...payloads);
    for (const payload of payloads.slice(0, 32)) await client.expectMessage(payload);
    client.send({ cmd: "disconnect", reasonCode: 0 });
    await client.expectClosed();
    answered.resolve();
    held.mockRestore();
    await vi.waitUntil(
      async () => (await countRows(coreName, "claim", "client_id = ?", client.clientId)) === 0,
      patience,
    );
    await sleep(node);
    expect(await countRows(node, "queue", "true")).toBe(0);
  });

  test.concurrent("by acknowledged messages", async () => {
    const { node, client, other, topic } = await meet(durable);
    await subscribe(client, topic);
    await publishAndWait(other, topic, "1", "2", "3");
    for (const payload of ["1", "2", "3"]) {
      const { messageId } = await client.expectMessage(payload);
      client.send({ cmd: "puback", messageId: messageId! });
    }
    await client.expectNothing();
    await sleep(node);
    expect(await countRows(node, "log", "true")).toBe(0);
    expect(await countRows(node, "queue", "true")).toBe(0);
  });

  test.concurrent("by a session that ended", async () => {
    const { node, client, other, topic } = await meet(durable);
    await subscribe(client, topic);
    await publishAndWait(other, topic, "1", "2", "3");
    await client.drop();
    const clean = await converse(node, { clientId: client.clientId });
    expect(clean.connack.sessionPresent).toBe(false);
    await clean.leave();
    await vi.waitUntil(async () => (await sessionRow(node, client.clientId)) === undefined, patience);
    for (const table of ["session", "connection", "subscription", "queue"])
      expect(await countRows(node, table, "true")).toBe(0);
    await vi.waitUntil(async () => (await countRows(node, "log", "true")) === 0, patience);
    await vi.waitUntil(async () => (await countRows(coreName, "route", "key = ?", topic)) === 0, patience);
  });
});

test("a node is not woken for a session that never expires", async () => {
  const { node, client } = await meet({ clean: false, properties: { sessionExpiryInterval: 0xffff_ffff } });
  await client.drop();
  await sleep(node);
  const witness = await converse(node);
  await witness.leave();
  await sleep(node);
  expect(await runInDurableObject(nodeStub(node), (_, state) => state.storage.getAlarm())).toBeNull();
  const again = await converse(node, { ...durable, clientId: client.clientId });
  expect(again.connack.sessionPresent).toBe(true);
});
