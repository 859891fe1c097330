// What an event costs: rows written, which is what Cloudflare bills most for, and timers, which keep an object awake.

import { runInDurableObject } from "cloudflare:test";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { limits } from "../../mqtt/limits.ts";
import {
  converse,
  coreName,
  coreStub,
  durable,
  holdWrites,
  newNode,
  nodeStub,
  publish,
  publishAndWait,
  sleep,
  subscribe,
} from "./conversation.ts";
import type { Conversation } from "./conversation.ts";
import { patience } from "../support/patience.ts";

/**
 * The rows that the object writes from now until it sleeps, index entries and deletions too, by table; `alarm` counts
 * how often the alarm is set, which costs a row each.
 */
async function watchRows(name: string): Promise<() => Promise<Record<string, number>>> {
  const cursors: { table: string; cursor: SqlStorageCursor<Record<string, SqlStorageValue>> }[] = [];
  let alarms = 0;
  const watch = (_: unknown, { storage }: DurableObjectState): void => {
    const { sql } = storage;
    const exec = sql.exec.bind(sql);
    sql.exec = ((query: string, ...bindings: SqlStorageValue[]) => {
      const cursor = exec(query, ...bindings);
      cursors.push({ table: /(?:INTO|UPDATE|FROM) (\w+)/.exec(query)?.[1] ?? query, cursor });
      return cursor;
    }) as typeof sql.exec;
    const setAlarm = storage.setAlarm.bind(storage);
    storage.setAlarm = (at, options) => {
      alarms++;
      return setAlarm(at, options);
    };
  };
  if (name === coreName) await runInDurableObject(coreStub(), watch);
  else await runInDurableObject(nodeStub(name), watch);
  return async () => {
    await sleep(name);
    const written: Record<string, number> = alarms > 0 ? { alarm: alarms } : {};
    for (const { table, cursor } of cursors)
      if (cursor.rowsWritten > 0) written[table] = (written[table] ?? 0) + cursor.rowsWritten;
    return written;
  };
}

async function acknowledge(client: Conversation, ...payloads: string[]): Promise<void> {
  const ids: number[] = [];
  for (const payload of payloads) ids.push((await client.expectMessage(payload)).messageId!);
  client.send(...ids.map((messageId) => ({ cmd: "puback" as const, messageId })));
  await client.expectNothing();
}

describe("rows written", () => {
  test("for a connection: its session and what a sleeping connection needs; its claim", async () => {
    const node = newNode();
    await converse(node);
    await sleep(node);
    const onNode = await watchRows(node);
    const onCore = await watchRows(coreName);
    const client = await converse(node, { keepalive: 60 });
    await client.expectNothing();
    // The row and its unique client id, and the facts of the connection.
    expect(await onNode()).toEqual({ session: 2, connection: 1, alarm: 1 });
    expect(await onCore()).toEqual({ claim: 1 });
  });

  test("for a connection that ends at once: its claim and the claim's end, and none on its node", async () => {
    const node = newNode();
    await converse(node);
    await sleep(node);
    const onNode = await watchRows(node);
    const onCore = await watchRows(coreName);
    const write = holdWrites();
    const client = await converse(node);
    await publishAndWait(client, `cost/${node}`, "1");
    await client.leave();
    write();
    expect(await onNode()).toEqual({});
    expect(await onCore()).toEqual({ claim: 2 });
  });

  test("for SUBSCRIBE: one and its index, and one on the core for the first subscriber of a filter only [G3]", async () => {
    const node = newNode();
    const first = await converse(node);
    const second = await converse(node);
    await sleep(node);
    const onNode = await watchRows(node);
    const onCore = await watchRows(coreName);
    await subscribe(first, ["cost/1", "cost/2"]);
    await subscribe(second, ["cost/1", "cost/2"]);
    // Route changes are numbered, and numbers reserved once in a node's life.
    expect(await onNode()).toEqual({ reserved: 1, subscription: 8 });
    expect(await onCore()).toEqual({ route: 2 });
  });

  test("for QoS 1 to durable sessions that are away: one a message, however many sessions", async () => {
    const node = newNode();
    const topic = `cost/${node}`;
    const publisher = await converse(newNode());
    const clients = [await converse(node, durable), await converse(node, durable), await converse(node, durable)];
    for (const client of clients) await subscribe(client, topic);
    for (const client of clients) await client.drop();
    await sleep(node);
    const onNode = await watchRows(node);
    const onCore = await watchRows(coreName);
    await publishAndWait(publisher, topic, "1", "2", "3", "4");
    // The numbers of its messages are reserved once in a node's life.
    expect(await onNode()).toEqual({ reserved: 1, log: 4 });
    expect(await onCore()).toEqual({});
  });

  test("for QoS 1 acknowledged by a durable session: a batch once and its deletion, and checkpoints", async () => {
    const node = newNode();
    const topic = `cost/${node}`;
    const publisher = await converse(newNode());
    const client = await converse(node, durable);
    await subscribe(client, topic);
    await sleep(node);
    const sent = await watchRows(node);
    publisher.send(...[1, 2, 3, 4, 5].map((messageId) => publish(topic, String(messageId), 1, { messageId })));
    for (const _ of [1, 2, 3, 4, 5]) await publisher.expect("puback");
    expect(await sent()).toEqual({ reserved: 1, log: 1, checkpoint: 1 });
    await client.expectMessage("1", { messageId: 1 });
    for (const payload of ["2", "3", "4", "5"]) await client.expectMessage(payload);
    const acknowledged = await watchRows(node);
    client.send(...[1, 2, 3, 4, 5].map((messageId) => ({ cmd: "puback" as const, messageId })));
    await client.expectNothing();
    expect(await acknowledged()).toEqual({ log: 1, checkpoint: 1 });
  });

  test("for QoS 1 acknowledged by a transient session at once: one checkpoint before it sleeps", async () => {
    const node = newNode();
    const topic = `cost/${node}`;
    const publisher = await converse(newNode());
    const client = await converse(node);
    await subscribe(client, topic);
    await sleep(node);
    const onNode = await watchRows(node);
    const write = holdWrites();
    publisher.send(publish(topic, "1", 1, { messageId: 1 }), publish(topic, "2", 1, { messageId: 2 }));
    await acknowledge(client, "1", "2");
    write();
    expect(await onNode()).toEqual({ reserved: 1, checkpoint: 1 });
  });

  test("for QoS 1 to 1,000 durable sessions: at most 4 until PUBACK, and a checkpoint for all PUBACKs", async () => {
    const node = newNode();
    const topic = `cost/${node}`;
    const publisher = await converse(newNode());
    const clients: Conversation[] = [];
    while (clients.length < 1000) {
      const some = await Promise.all(Array.from({ length: 20 }, () => converse(node, durable)));
      await Promise.all(some.map((client) => subscribe(client, topic)));
      clients.push(...some);
    }
    await sleep(node);
    // What a node counts itself says the same.
    const counted = async () => (await nodeStub(node).stats()).metrics["rows.written"]!;
    const onNode = await watchRows(node);
    // However slow the machine is, no row of checkpoints is written twice within this time.
    const looksSince = (at: number): number => Math.floor((Date.now() - at) / limits.checkpointDelayMs);
    const before = await counted();
    const publishedAt = Date.now();
    publisher.send(publish(topic, "1", 1, { messageId: 1 }));
    await publisher.expect("puback", { reasonCode: 0 });
    const atPuback = (await counted()) - before;
    expect(atPuback).toBeLessThanOrEqual(4 + 8 * looksSince(publishedAt));
    // Neighbours share a row that says what was sent and is not acknowledged.
    expect(await onNode()).toEqual({ reserved: 1, log: 1, checkpoint: 8 });
    const ids: number[] = [];
    for (const client of clients) ids.push((await client.expectMessage("1")).messageId!);
    const acknowledged = await watchRows(node);
    const acknowledgedAt = Date.now();
    for (const [index, client] of clients.entries()) client.send({ cmd: "puback", messageId: ids[index]! });
    for (const client of clients) await client.expectNothing();
    // The clients do not answer all at once: some rows are written at two looks.
    const looks = looksSince(acknowledgedAt) + 2;
    const { checkpoint, ...rest } = await acknowledged();
    expect(checkpoint).toBeLessThanOrEqual(8 * looks);
    // The message goes when nobody needs it any more.
    expect(rest).toEqual({ log: 1 });
    // A thousand clients, one after the other.
  }, 240_000);

  test("for QoS 0, PINGREQ and publishing at QoS 1: none", async () => {
    const node = newNode();
    const topic = `cost/${node}`;
    const publisher = await converse(newNode());
    const client = await converse(node, durable);
    await subscribe(client, topic);
    await sleep(node);
    const onNode = await watchRows(node);
    const onCore = await watchRows(coreName);
    publisher.send(publish(topic, "1"));
    await client.expectMessage("1");
    await publishAndWait(client, `${topic}/other`, "2", "3");
    await client.expectNothing();
    expect(await onNode()).toEqual({});
    expect(await onCore()).toEqual({});
  });

  test("for incoming QoS 2 to a durable session: one when it comes, one at PUBREC and one at PUBREL [G1]", async () => {
    const node = newNode();
    const client = await converse(node, durable);
    await sleep(node);
    const onNode = await watchRows(node);
    client.send(publish(`cost/${node}`, "1", 2, { messageId: 1 }));
    await client.expect("pubrec");
    client.send({ cmd: "pubrel", messageId: 1 });
    await client.expect("pubcomp");
    expect(await onNode()).toEqual({ checkpoint: 3 });
  });
});

describe("[G7] timers", () => {
  const pending = new Map<unknown, number | undefined>();
  let hasWaited: boolean;

  beforeEach(() => {
    pending.clear();
    hasWaited = false;
    const { setTimeout: set, clearTimeout: clear } = globalThis;
    vi.stubGlobal("setTimeout", (callback: (...args: unknown[]) => void, delay?: number, ...args: unknown[]) => {
      const timer = set(() => {
        pending.delete(timer);
        callback(...args);
      }, delay);
      pending.set(timer, delay);
      hasWaited = true;
      return timer;
    });
    vi.stubGlobal("clearTimeout", (timer: Parameters<typeof clear>[0]) => {
      pending.delete(timer);
      clear(timer);
    });
  });

  afterEach(() => {
    vi.unstubAllGlobals();
  });

  /** What holds an object longer than it takes to write is left over, and so is what never ends. */
  async function expectQuiet(): Promise<void> {
    const isWriting = (): boolean => [...pending.values()].some((delay = 0) => delay <= limits.checkpointDelayMs);
    await vi.waitUntil(() => !isWriting(), patience).catch(() => {});
    expect([...pending.values()]).toEqual([]);
    expect(hasWaited).toBe(true);
  }

  test("a quiet node has none, whatever its clients have done", async () => {
    const node = newNode();
    const topic = `cost/${node}`;
    const one = await converse(node, { ...durable, keepalive: 60 });
    const other = await converse(node);
    await subscribe(one, topic);
    await publishAndWait(other, topic, "1");
    await acknowledge(one, "1");
    other.send(publish(topic, "2", 2, { messageId: 2 }));
    await other.expect("pubrec");
    await one.expectMessage("2", { qos: 2 });
    await expectQuiet();
    await one.expectNothing();
    await expectQuiet();
  });

  test("none is left by packets that came in pieces", async () => {
    const client = await converse(newNode(), { version: 4 });
    for (const byte of [0x30, 3, 0, 1, 0x61]) client.sendBytes(Uint8Array.of(byte));
    client.sendBytes(Uint8Array.of(0xc0));
    client.sendBytes(Uint8Array.of(0));
    await client.expect("pingresp");
    await expectQuiet();
  });

  test("none is left by connections that ended", async () => {
    const node = newNode();
    const polite = await converse(node);
    await polite.leave();
    const lost = await converse(node);
    await lost.drop();
    const wrong = await converse(node);
    wrong.send({ cmd: "pubrel", messageId: 1 });
    wrong.sendBytes(Uint8Array.of(0, 0));
    await wrong.expect("pubcomp");
    await wrong.expect("disconnect");
    await wrong.expectClosed();
    const first = await converse(node);
    await converse(node, { clientId: first.clientId });
    await first.expect("disconnect", { reasonCode: 0x8e });
    await first.expectClosed();
    await expectQuiet();
  });

  test("none is left by a slow client, whose queue waits", async () => {
    const node = newNode();
    const topic = `cost/${node}`;
    const slow = await converse(node, { properties: { receiveMaximum: 1 } });
    await subscribe(slow, topic);
    await publishAndWait(await converse(newNode()), topic, "1", "2", "3");
    await slow.expectMessage("1");
    await expectQuiet();
  });
});
