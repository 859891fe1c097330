// Retained messages where they are, on the core's disk: what is looked at, what is written, and when they go.
// The clock is moved by hand, and so is the alarm.

import type { Packet } from "mqtt-packet";
import { runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { RetainedStore } from "../../durable-objects/coordinator/retained-store.ts";
import { Versions } from "../../durable-objects/coordinator/versions.ts";
import { joinRecords, publishRecord, type RetainedPage } from "../../durable-objects/rpc.ts";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { messageIdOf } from "../../mqtt/message-id-set.ts";
import { readMessage, writeMessage } from "../../mqtt/message.ts";
import type { Message } from "../../mqtt/message.ts";
import { matches } from "../../mqtt/topic.ts";
import { random } from "../support/random.ts";
import {
  converse,
  coreName,
  coreStub,
  crash,
  durable,
  newNode,
  publish,
  publishAndWait,
  rows,
  sleep,
  subscribe,
} from "./conversation.ts";
import type { Conversation } from "./conversation.ts";
import { countedSql } from "./counted-sql.ts";
import { inject, useFaults } from "./faults.ts";

beforeEach(() => {
  vi.setSystemTime(Date.now());
});

afterEach(() => {
  vi.useRealTimers();
});

function pass(seconds: number): void {
  vi.setSystemTime(Date.now() + seconds * 1000);
}

const life = "4f1c09d2a6b3";
let messages = 0;

function messageOf(topic: string, fields: Partial<Message> = {}): Message {
  const payload = new TextEncoder().encode(topic);
  const rest = {
    id: messageIdOf(life, messages++),
    qos: 1,
    retain: true,
    properties: new Uint8Array(),
    expiresAt: 0,
    from: "test",
  } as const;
  return { topic, payload, ...rest, ...fields };
}

const writer = new ByteWriter();

function recordOf(message: Message): Uint8Array {
  writeMessage(writer, message);
  return writer.take();
}

function topicsOf({ messages }: RetainedPage): string[] {
  const topics: string[] = [];
  for (const reader = new ByteReader(messages); !reader.done;) topics.push(readMessage(reader).topic);
  return topics;
}

/** Runs on the core's disk in one turn; the result, and the rows that were read and written. */
async function onDisk<R>(run: (store: RetainedStore) => R): Promise<{ result: R; read: number; written: number }> {
  return runInDurableObject(coreStub(), async (_: unknown, { storage }: DurableObjectState) => {
    const versions = new Versions(storage.sql);
    const { sql, rows } = countedSql(storage.sql);
    const result = run(new RetainedStore(sql, versions));
    await Promise.resolve();
    return { result, ...rows() };
  });
}

async function put(...messages: Message[]): Promise<{ written: number }> {
  return onDisk((store) => {
    for (const message of messages) store.put(message, recordOf(message));
  });
}

/** What the core reads of its retained messages from now on: topics looked at, and messages. */
async function watchReads(): Promise<() => { topics: number; messages: number }> {
  const cursors: { query: string; cursor: SqlStorageCursor<Record<string, SqlStorageValue>> }[] = [];
  await runInDurableObject(coreStub(), (_: unknown, { storage: { sql } }: DurableObjectState) => {
    const exec = sql.exec.bind(sql);
    sql.exec = ((query: string, ...bindings: SqlStorageValue[]) => {
      const cursor = exec(query, ...bindings);
      cursors.push({ query, cursor });
      return cursor;
    }) as typeof sql.exec;
  });
  const readBy = (start: string): number =>
    cursors.reduce((sum, { query, cursor }) => sum + (query.startsWith(start) ? cursor.rowsRead : 0), 0);
  return () => ({
    topics: readBy("SELECT id, topic FROM retained"),
    messages: readBy("SELECT expires_at, message FROM retained"),
  });
}

/** Counted by looking at all, and as it is kept. */
async function counts(): Promise<[number, number]> {
  const [all] = await rows<{ n: number }>(coreName, "SELECT count(*) AS n FROM retained");
  const { result } = await onDisk((store) => store.count);
  return [all!.n, result];
}

describe("among 100,002 topics", () => {
  const devices = 33_334;

  beforeAll(async () => {
    for (let from = 0; from < devices; from += 1_000)
      await put(
        ...Array.from({ length: Math.min(1_000, devices - from) }, (_, number) =>
          ["a", "b", "c"].map((leaf) => messageOf(`d/${from + number}/${leaf}`)),
        ).flat(),
      );
  });

  test.each([
    ["d/7777/c", 1, 1],
    ["d/77777/c", 0, 1],
    ["d/7777/+", 3, 4],
    // A topic of a run is looked at and read in one.
    ["d/7777/#", 3, 3],
    ["d/77777/#", 0, 1],
    ["+/7777/c", 1, 2],
    ["+/77777/c", 0, 2],
    ["nothing/#", 0, 0],
  ])("%s finds %i, and looks at %i topics [G6]", async (filter, found, looked) => {
    await sleep(coreName);
    const { result, read } = await onDisk((store) => store.page(filter, undefined, 500, Date.now()));
    expect(topicsOf(result)).toHaveLength(found);
    expect(result.next).toBeUndefined();
    // To find nothing behind the last topic counts, too.
    expect([looked + found, looked + found + 1]).toContain(read);
  });

  test("a message is read only where the topic matches", async () => {
    const { result, read } = await onDisk((store) => store.page("d/+/c", undefined, 100, Date.now()));
    expect(topicsOf(result)).toHaveLength(100);
    expect(read).toBe(2 * 100 + 100);
  });

  test("a page is bounded in topics looked at, and the next one goes on", async () => {
    await put(messageOf("d/9999/x"));
    const found: string[] = [];
    const looked: number[] = [];
    let after: string | undefined;
    do {
      const { result, read } = await onDisk((store) => store.page("d/+/x", after, 500, Date.now()));
      found.push(...topicsOf(result));
      looked.push(read - topicsOf(result).length);
      after = result.next;
    } while (after !== undefined);
    expect(found).toEqual(["d/9999/x"]);
    expect(looked.reduce((sum, each) => sum + each, 0)).toBe(devices + 2);
    expect(Math.max(...looked)).toBe(limits.pageTopicsMax);
  });

  test("SUBSCRIBE for one of them reads one, for a few of them these [G6]", async () => {
    await sleep(coreName);
    const reads = await watchReads();
    const client = await converse(newNode());
    await subscribe(client, "d/7777/c");
    await client.expectMessage("d/7777/c", { retain: true });
    await client.expectNothing();
    expect(reads()).toEqual({ topics: 1, messages: 1 });
    await subscribe(client, "d/8888/+");
    for (const leaf of ["a", "b", "c"]) await client.expectMessage(`d/8888/${leaf}`);
    await client.expectNothing();
    expect(reads()).toEqual({ topics: 1 + 4, messages: 1 + 3 });
  });

  test("SUBSCRIBE for all of them reads a page, and the next when the client has taken it [MQTT-3.3.4-9]", async () => {
    const page = limits.pageMessagesMax;
    const reads = await watchReads();
    const client = await converse(newNode(), { properties: { receiveMaximum: 10 } });
    await subscribe(client, "d/#", { qos: 1 });
    const came: string[] = [];
    const takeTen = async (): Promise<void> => {
      const acknowledgements: Packet[] = [];
      while (acknowledgements.length < 10) {
        const { topic, messageId } = await client.expect("publish", { qos: 1, retain: true });
        came.push(topic);
        acknowledgements.push({ cmd: "puback", messageId: messageId! });
      }
      await client.expectNothing();
      expect(reads().messages).toBeLessThanOrEqual(came.length + page);
      client.send(...acknowledgements);
    };
    await takeTen();
    expect(reads().messages).toBe(page);
    while (came.length < 2.5 * page) await takeTen();
    expect(reads().messages).toBe(3 * page);
    const inOrder = [...new Set(came)].map((topic) => Buffer.from(topic)).sort(Buffer.compare);
    expect(came).toEqual(inOrder.map(String));
    await client.drop();
    expect(reads().messages).toBe(3 * page);
  });

  test("a page is bounded in bytes", async () => {
    const payload = new Uint8Array(limits.pageBytesMax / 4);
    await put(...["1", "2", "3", "4", "5", "6"].map((number) => messageOf(`large/${number}`, { payload })));
    const first = await coreStub().retained("large/#", undefined, 500);
    expect(topicsOf(first)).toEqual(["large/1", "large/2", "large/3", "large/4"]);
    const second = await coreStub().retained("large/#", first.next, 500);
    expect(topicsOf(second)).toEqual(["large/5", "large/6"]);
  });
});

describe("on disk as in memory", () => {
  const levels = ["", "a", "a!", "b", " ", "$", "0", "é", "\uE000", "\uFFFD", "\u{10000}", "\u{1F600}"];

  test.each([1, 2, 3, 4])("a filter finds what the naive matcher finds, page by page: seed %i", async (seed) => {
    const next = random(seed);
    const pick = (): string => levels[Math.floor(next() * levels.length)]!;
    const join = (): string => Array.from({ length: 1 + Math.floor(next() * 3) }, pick).join("/");
    const topics = [...new Set(Array.from({ length: 200 }, () => `seed${seed}/${join()}`))];
    await put(...topics.map((topic) => messageOf(topic)));
    const bytes = topics.map((topic) => Buffer.from(topic)).sort(Buffer.compare);
    for (let count = 0; count < 30; count++) {
      const tail = join()
        .split("/")
        .map((level) => (next() < 0.5 ? "+" : level));
      const filter = [`seed${seed}`, ...tail, ...(next() < 0.3 ? ["#"] : [])].join("/");
      const found: string[] = [];
      let after: string | undefined;
      do {
        const page = await onDisk((store) => store.page(filter, after, 7, Date.now()));
        found.push(...topicsOf(page.result));
        after = page.result.next;
      } while (after !== undefined);
      const expected = bytes.map(String).filter((topic) => matches(filter, topic));
      expect({ filter, found }).toEqual({ filter, found: expected });
    }
  });
});

describe("rows written [G6]", () => {
  /** Puts a hundred in one turn. */
  const written = async (root: string, fields: Partial<Message> = {}): Promise<number> => {
    const messages = Array.from({ length: 100 }, (_, number) => messageOf(`${root}/${number}`, fields));
    return (await put(...messages)).written;
  };
  const soon = Date.now() + 3_600_000;

  test("one for a topic that has a message, two for a new one; one for the count, once a turn", async () => {
    expect(await written("rows/a")).toBe(201);
    expect(await written("rows/a")).toBe(100);
    expect(await written("rows/a", { payload: new Uint8Array() })).toBe(101);
    expect(await written("rows/a", { payload: new Uint8Array() })).toBe(0);
    expect(await written("rows/a")).toBe(201);
  });

  test("one more for a message that expires", async () => {
    expect(await written("rows/b", { expiresAt: soon })).toBe(301);
    expect(await written("rows/b", { expiresAt: soon + 1 })).toBe(200);
    expect(await written("rows/b")).toBe(100);
  });

  test("the count is right without counting, also after a crash", async () => {
    await put(...["1", "2", "2", "3"].map((topic) => messageOf(`rows/count/${topic}`)));
    await put(messageOf("rows/count/3", { payload: new Uint8Array() }));
    await crash(coreName);
    const [all, kept] = await counts();
    expect(all).toBeGreaterThan(2);
    expect(kept).toBe(all);
    expect((await onDisk((store) => store.count)).read).toBe(1);
  });

  test("the count is in one transaction with what it counts, though it is written behind it", async () => {
    await runInDurableObject(coreStub(), (_: unknown, state: DurableObjectState) => {
      const message = messageOf("rows/crash");
      queueMicrotask(() => state.abort("crash"));
      new RetainedStore(state.storage.sql, new Versions(state.storage.sql)).put(message, recordOf(message));
    }).catch(() => {});
    const [all, kept] = await counts();
    expect(kept).toBe(all);
    expect(await rows(coreName, "SELECT topic FROM retained WHERE topic = 'rows/crash'")).toEqual([]);
  });
});

describe("a message that expires", () => {
  const interval = (seconds: number) => ({ retain: true, properties: { messageExpiryInterval: seconds } });

  async function retain(client: Conversation, topic: string, seconds: number): Promise<void> {
    client.send(publish(topic, topic, 1, { messageId: 1, ...interval(seconds) }));
    await client.expect("puback", { messageId: 1 });
  }

  /** Seconds until the core's alarm. */
  async function secondsToAlarm(): Promise<number | undefined> {
    const at = await runInDurableObject(coreStub(), (_: unknown, { storage }: DurableObjectState) =>
      storage.getAlarm(),
    );
    return at === null ? undefined : (at - Date.now()) / 1000;
  }

  async function kept(topic: string): Promise<string[]> {
    const found = await rows<{ topic: string }>(coreName, "SELECT topic FROM retained WHERE topic GLOB ?", topic);
    return found.map((row) => row.topic);
  }

  test("[MQTT-3.3.2-5] is given to nobody from then on, and deleted by the alarm", async () => {
    const client = await converse(newNode());
    await retain(client, "expire/1", 100);
    await retain(client, "expire/2", 5_000);
    expect(await secondsToAlarm()).toBeGreaterThanOrEqual(100);
    expect(await secondsToAlarm()).toBeLessThanOrEqual(100 + limits.retainedSweepMs / 1000);
    pass(99);
    await subscribe(client, "expire/1");
    await client.expectMessage("expire/1", { properties: { messageExpiryInterval: 1 } });
    pass(1);
    await subscribe(client, "expire/#", { qos: 0 });
    await client.expectMessage("expire/2");
    await client.expectNothing();
    await sleep(coreName);
    pass(limits.retainedSweepMs / 1000);
    expect(await runDurableObjectAlarm(coreStub())).toBe(true);
    expect(await kept("expire/*")).toEqual(["expire/2"]);
    expect(await secondsToAlarm()).toBeGreaterThan(2_000);
    expect(await counts().then(([all, count]) => count - all)).toBe(0);
  });

  test("is deleted though the core crashes meanwhile", async () => {
    const client = await converse(newNode());
    await retain(client, "expire/crash", 100);
    await crash(coreName);
    pass(100 + limits.retainedSweepMs / 1000);
    expect(await runDurableObjectAlarm(coreStub())).toBe(true);
    expect(await kept("expire/crash")).toEqual([]);
  });

  test("lives as long as the latest of its topic says", async () => {
    const client = await converse(newNode());
    await retain(client, "expire/again", 100);
    await retain(client, "expire/again", 1_000);
    pass(500);
    await runDurableObjectAlarm(coreStub());
    expect(await kept("expire/again")).toEqual(["expire/again"]);
    await publishAndWait(client, "expire/again", "not retained");
    client.send(publish("expire/again", "for ever", 1, { messageId: 1, retain: true }));
    await client.expect("puback", { messageId: 1 });
    pass(5_000);
    await runDurableObjectAlarm(coreStub());
    await subscribe(client, "expire/again");
    await client.expectMessage("for ever");
  });

  test("goes with many others, a bounded number at a time [G6]", async () => {
    const expiresAt = Date.now() + 1;
    const count = limits.pageMessagesMax + 10;
    await put(...Array.from({ length: count }, (_, number) => messageOf(`expire/many/${number}`, { expiresAt })));
    pass(limits.retainedSweepMs / 1000);
    const { written } = await onDisk((store) => store.deleteExpired(Date.now()));
    expect(written).toBe(limits.pageMessagesMax + 1);
    expect(await kept("expire/many/*")).toHaveLength(10);
    expect(await onDisk((store) => store.nextSweep()).then(({ result }) => result)).toBeLessThanOrEqual(Date.now());
  });
});

describe("what cannot be retained", () => {
  const patience = { ...limits };
  afterEach(() => {
    Object.assign(limits, patience);
    vi.restoreAllMocks();
  });

  const causes: readonly (readonly [cause: string, prepare: () => Promise<void>])[] = [
    [
      "for want of room",
      async () => {
        await sleep(coreName);
        const [all] = await counts();
        Object.assign(limits, { retainedMessagesMax: all });
      },
    ],
    [
      "because the disk fails",
      async () => {
        vi.spyOn(RetainedStore.prototype, "put").mockImplementation(() => {
          throw new Error("SQLITE_FULL");
        });
      },
    ],
  ];

  test.each(causes)("%s: QoS 0 goes to those who are subscribed, QoS 1 and 2 are refused", async (cause, prepare) => {
    const topic = `full/${cause}`;
    const client = await converse(newNode());
    const watcher = await converse(newNode());
    await subscribe(watcher, topic, { rap: true });
    await prepare();
    client.send(publish(topic, "0", 0, { retain: true }));
    for (const qos of [1, 2] as const) {
      client.send(publish(topic, String(qos), qos, { messageId: qos, retain: true }));
      await client.expect(qos === 1 ? "puback" : "pubrec", { messageId: qos, reasonCode: 0x97 });
    }
    await publishAndWait(client, topic, "marker");
    await watcher.expectMessage("0", { qos: 0, retain: true });
    await watcher.expectMessage("marker", { retain: false });
    expect(await rows(coreName, "SELECT topic FROM retained WHERE topic = ?", topic)).toEqual([]);
  });
});

describe("a message that comes again, or late, does not take the place of a later one", () => {
  const otherLife = "0123456789ab";
  const encoder = new TextEncoder();

  /** A batch of one record, from a node. */
  async function route(record: Uint8Array): Promise<number> {
    const [code] = await coreStub().route(newNode(), { term: 0, id: 1 }, joinRecords([record], record.length));
    return code!;
  }

  /** An empty payload clears. */
  async function retain(topic: string, number: number, payload: string, ofLife = life): Promise<void> {
    const message = messageOf(topic, { id: messageIdOf(ofLife, number), payload: encoder.encode(payload) });
    expect(await route(publishRecord(writer, { message, delaySeconds: 0, only: "" }))).toBeLessThan(0x80);
  }

  async function retained(filter: string): Promise<string[]> {
    const { messages: found } = await coreStub().retained(filter, undefined, 500);
    const payloads: string[] = [];
    for (const reader = new ByteReader(found); !reader.done;)
      payloads.push(new TextDecoder().decode(readMessage(reader).payload));
    return payloads;
  }

  test("of the same life", async () => {
    // As text the second, 10, comes before the first, z.
    await retain("again/same", 35, "older");
    await retain("again/same", 36, "later");
    await retain("again/same", 35, "older");
    expect(await retained("again/same")).toEqual(["later"]);
    await retain("again/same", 37, "latest");
    expect(await retained("again/same")).toEqual(["latest"]);
  });

  test("also after a crash of the core", async () => {
    await retain("again/crash", 35, "older");
    await retain("again/crash", 36, "later");
    await crash(coreName);
    await retain("again/crash", 35, "older");
    await retain("again/crash", 34, "");
    expect(await retained("again/crash")).toEqual(["later"]);
  });

  test("nor of one that cleared the topic", async () => {
    await retain("again/cleared", 1, "older");
    await retain("again/cleared", 2, "");
    await retain("again/cleared", 1, "older");
    expect(await retained("again/cleared")).toEqual([]);
    await retain("again/cleared", 3, "later");
    await retain("again/cleared", 2, "");
    expect(await retained("again/cleared")).toEqual(["later"]);
  });

  test("nor of another node's, which took its place; between nodes the last to come counts", async () => {
    await retain("again/other", 7, "older");
    await retain("again/other", 1, "later", otherLife);
    await retain("again/other", 7, "older");
    expect(await retained("again/other")).toEqual(["later"]);
    await retain("again/other", 8, "latest");
    expect(await retained("again/other")).toEqual(["latest"]);
  });

  test("but a delayed message counts from when it is due", async () => {
    const delayed = messageOf("again/delayed", { id: messageIdOf(life, 1), payload: encoder.encode("delayed") });
    await route(publishRecord(writer, { message: delayed, delaySeconds: 10, only: "" }));
    await retain("again/delayed", 2, "meanwhile");
    expect(await retained("again/delayed")).toEqual(["meanwhile"]);
    pass(11);
    await runDurableObjectAlarm(coreStub());
    expect(await retained("again/delayed")).toEqual(["delayed"]);
  });

  describe("though its node crashes", () => {
    useFaults();

    test("[MQTT-4.3.3-10] QoS 2, unanswered and sent again behind one that was answered", async () => {
      const [node, stuck] = [newNode(), newNode()];
      const watcher = await converse(newNode());
      await subscribe(watcher, "again/qos2");
      const silent = await converse(stuck);
      await subscribe(silent, "stuck");
      let release = (): void => {};
      const released = new Promise<void>((resolve) => (release = resolve));
      inject(stuck, (call, name) => (name === "forward" ? released.then(call) : call()));

      const id = { clientId: "again-qos2", ...durable };
      const client = await converse(node, id);
      const older = publish("again/qos2", "older", 2, { messageId: 1, retain: true });
      const later = publish("again/qos2", "later", 2, { messageId: 2, retain: true });
      // One batch, whose answer waits for the node that is stuck.
      client.send(older, publish("stuck", "x", 1, { messageId: 9 }));
      await watcher.expectMessage("older");
      client.send(later);
      await watcher.expectMessage("later");
      // Behind it on all its ways: when this is answered, so is that.
      await publishAndWait(await converse(node), "again/qos2", "marker");
      await crash(node);

      const again = await converse(node, id);
      again.send({ ...older, dup: true }, { ...later, dup: true });
      await again.expect("pubrec", { messageId: 1 });
      await again.expect("pubrec", { messageId: 2 });
      expect(await retained("again/qos2")).toEqual(["later"]);
      release();
    });
  });
});
