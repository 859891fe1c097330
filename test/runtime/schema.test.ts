// The tables of an object on real storage: as they were, as they become, and what must not happen to them.

import { env as bindings, evictDurableObject, runInDurableObject } from "cloudflare:test";
import { describe, expect, test, vi } from "vitest";
import { readSettings } from "../../cluster/config.ts";
import { CoreStore } from "../../durable-objects/coordinator/core-store.ts";
import { Metrics } from "../../durable-objects/metrics.ts";
import { Broker } from "../../durable-objects/node/broker.ts";
import { addRouteRecord, joinRecords, publishRecord } from "../../durable-objects/rpc.ts";
import { migrate } from "../../durable-objects/schema.ts";
import type { Database, Migration } from "../../durable-objects/schema.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import {
  converse,
  coreName,
  coreStub,
  durable,
  newNode,
  nodeStub,
  publish,
  publishAndWait,
  rows,
  sessionRow,
  subscribe,
} from "./conversation.ts";
import { countedSql } from "./counted-sql.ts";
import { patience } from "../support/patience.ts";

const env = bindings as unknown as Env;

let objects = 0;

/** Runs on the storage of a new object, emptied. */
async function onEmptyStorage<R>(run: (storage: DurableObjectStorage) => R): Promise<R> {
  return runInDurableObject(
    env.NODE.getByName(`empty-${++objects}@local.emqxcl`),
    async (_: unknown, { storage }: DurableObjectState) => {
      await storage.deleteAll();
      return run(storage);
    },
  );
}

/** All tables but those of the runtime, with their rows. */
function dump(sql: SqlStorage): Record<string, unknown[][]> {
  const tables = sql.exec<{ name: string }>(
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB '_cf_*' ORDER BY name",
  );
  return Object.fromEntries([...tables].map(({ name }) => [name, [...sql.exec(`SELECT * FROM ${name}`).raw()]]));
}

/** What `run` costs in rows written. */
function rowsWritten(storage: DurableObjectStorage, run: (database: Database) => void): number {
  const { sql, rows } = countedSql(storage.sql);
  run({ sql, transactionSync: (callback) => storage.transactionSync(callback) });
  return rows().written;
}

const first = "CREATE TABLE IF NOT EXISTS a (x INTEGER PRIMARY KEY)";
const second = "ALTER TABLE a ADD COLUMN y TEXT NOT NULL DEFAULT ''";
const third: Migration = (sql) => void sql.exec("UPDATE a SET y = 'x' || x");

describe("migrations", () => {
  test("all run for a new database, and none again", async () => {
    await onEmptyStorage((storage) => {
      migrate(storage, [first, second, third]);
      expect(dump(storage.sql)).toEqual({ a: [], schema_version: [[3]] });
      expect(rowsWritten(storage, (database) => migrate(database, [first, second, third]))).toBe(0);
    });
  });

  test("those that are new run once, in order", async () => {
    await onEmptyStorage((storage) => {
      migrate(storage, [first]);
      storage.sql.exec("INSERT INTO a VALUES (7)");
      migrate(storage, [first, second, third]);
      storage.sql.exec("UPDATE a SET y = 'later'");
      migrate(storage, [first, second, third]);
      expect(dump(storage.sql)).toEqual({ a: [[7, "later"]], schema_version: [[1], [3]] });
    });
  });

  test("a database from before versions were written down keeps its rows", async () => {
    await onEmptyStorage((storage) => {
      storage.sql.exec(first);
      storage.sql.exec("INSERT INTO a VALUES (7)");
      migrate(storage, [first, second]);
      expect(dump(storage.sql)).toEqual({ a: [[7, ""]], schema_version: [[2]] });
    });
  });

  test.each<[string, Migration]>([
    ["a statement", "INSERT INTO nowhere VALUES (1)"],
    [
      "a function",
      () => {
        throw new Error("no such table");
      },
    ],
  ])("one that fails half-way leaves the database as it was: %s", async (_, failing) => {
    await onEmptyStorage((storage) => {
      migrate(storage, [first]);
      storage.sql.exec("INSERT INTO a VALUES (7)");
      const before = dump(storage.sql);
      expect(() => migrate(storage, [first, second, "CREATE TABLE b (x)", third, failing])).toThrow("no such table");
      expect(dump(storage.sql)).toEqual(before);
      migrate(storage, [first, second]);
      expect(dump(storage.sql)).toEqual({ a: [[7, ""]], schema_version: [[1], [2]] });
    });
  });

  test("a database of newer code is refused and not touched", async () => {
    await onEmptyStorage((storage) => {
      migrate(storage, [first, second, third]);
      const before = dump(storage.sql);
      expect(() => migrate(storage, [first, "DROP TABLE a"])).toThrow(
        "the database has schema version 3 and this code knows 2: deploy the newer code",
      );
      expect(dump(storage.sql)).toEqual(before);
    });
  });
});

/** Message records on "a", "a/b" and "é". */
const retainedOfOld = [
  "000000000000000000000161000000000000000000020102",
  "0003a35294400000000003612f620000000000000000000103",
  "0000000000000000000002c3a90000000000000000000104",
];

/** What cores have on disk that were deployed before there were versions. */
const coreOfOld = `
CREATE TABLE member (name TEXT PRIMARY KEY, joined_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE route (
  key TEXT NOT NULL,
  node TEXT NOT NULL,
  members INTEGER NOT NULL,
  PRIMARY KEY (key, node)
) WITHOUT ROWID;
CREATE TABLE claim (
  client_id TEXT PRIMARY KEY,
  node TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  holders TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE retained (
  topic TEXT PRIMARY KEY,
  expires_at INTEGER NOT NULL,
  message BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE delayed (id INTEGER PRIMARY KEY, due_at INTEGER NOT NULL, message BLOB NOT NULL);
CREATE INDEX delayed_due ON delayed (due_at);
INSERT INTO member VALUES ('node-1@local.emqxcl', 1700000000000), ('node-2@local.emqxcl', 1700000000001);
INSERT INTO route VALUES ('a/+', 'node-1@local.emqxcl', 0), ('$share/g/b', 'node-2@local.emqxcl', 3);
INSERT INTO claim VALUES ('alice', 'node-1@local.emqxcl', 1700000000002, ''),
  ('bob', 'node-2@local.emqxcl', 1700000000003, 'node-1@local.emqxcl node-3@local.emqxcl');
INSERT INTO retained VALUES ('a', 0, x'${retainedOfOld[0]}'), ('a/b', 4000000000000, x'${retainedOfOld[1]}'),
  ('é', 0, x'${retainedOfOld[2]}');
INSERT INTO delayed VALUES (1, 4000000000000, x'05'), (4, 3900000000000, x'06');
`;

describe("a core", () => {
  test("has all that a core without versions has left", async () => {
    const core = coreStub();
    const dumped = (_: unknown, { storage }: DurableObjectState) => dump(storage.sql);
    const before = await runInDurableObject(core, async (_: unknown, { storage }: DurableObjectState) => {
      await storage.deleteAll();
      storage.sql.exec(coreOfOld);
      return dump(storage.sql);
    });
    expect(Object.keys(before)).toEqual(["claim", "delayed", "member", "retained", "route"]);
    await evictDurableObject(core);
    expect(await runInDurableObject(core, dumped)).toMatchObject({
      ...before,
      member: [
        [coreName, "core", "emqxcl", "", 0, expect.any(Number), "in", expect.any(Number), 0],
        // Their home is not known: they say what they have when they come.
        ...before["member"]!.map(([name, joinedAt]) => [name, "replicant", "", "?", 0, joinedAt, "in", joinedAt, 0]),
      ],
      route: before["route"]!.map((row) => [...row, 0, 0]),
      retained: before["retained"]!.map((row, index) => [index + 1, ...row, "", 0]),
      counter: [
        ["delayed", 2],
        ["retained", 3],
      ],
    });
    expect(await core.claim("bob", "node-1@local.emqxcl", 0)).toMatchObject({
      holders: [
        { node: "node-2@local.emqxcl", since: 0 },
        { node: "node-3@local.emqxcl", since: 0 },
      ],
    });
    const { messages } = await core.retained("#", undefined, 10);
    expect(Buffer.from(messages).toString("hex")).toBe(retainedOfOld.join(""));
  });

  test("knows how many messages are delayed", async () => {
    await onEmptyStorage((storage) => {
      const store = new CoreStore(storage);
      for (const at of [1, 2, 3]) store.delay(Uint8Array.of(at), at);
      store.forgetDelayed(2);
      store.forgetDelayed(2);
      expect(store.delayedCount()).toBe(2);
    });
  });

  test("writes few rows when it is new, and none when it wakes", async () => {
    await onEmptyStorage((storage) => {
      expect(rowsWritten(storage, (database) => new CoreStore(database))).toBe(68);
      expect(rowsWritten(storage, (database) => new CoreStore(database))).toBe(0);
    });
  });
});

/** The tables of nodes that were deployed before there were versions. */
const nodeOfOld = `
CREATE TABLE session (
  id INTEGER PRIMARY KEY,
  client_id TEXT NOT NULL UNIQUE,
  epoch INTEGER NOT NULL,
  username TEXT,
  connected INTEGER NOT NULL,
  expiry_interval INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  will_at INTEGER NOT NULL,
  due_at INTEGER,
  will BLOB,
  checkpoint TEXT NOT NULL,
  connection TEXT
);
CREATE INDEX session_due ON session (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE subscription (
  session INTEGER NOT NULL,
  filter TEXT NOT NULL,
  options INTEGER NOT NULL,
  subscription_id INTEGER NOT NULL,
  PRIMARY KEY (session, filter)
) WITHOUT ROWID;
CREATE TABLE queue (
  session INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  qos INTEGER NOT NULL,
  shared INTEGER NOT NULL,
  delivery BLOB NOT NULL,
  PRIMARY KEY (session, seq)
) WITHOUT ROWID;
CREATE TABLE known (
  session INTEGER NOT NULL,
  key TEXT NOT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY (session, key)
) WITHOUT ROWID;
`;

const utf8 = new TextEncoder();

/** Of a node's earlier life. */
const lifeOfOld = "4f1c09d2a6b3";

const noExchanges = `"inflight":[],"unsent":[],"received":[],"retainedReads":[]`;

type Row = (string | number | Uint8Array | null)[];

interface OldDelivery {
  readonly id: string;
  readonly topic: string;
  readonly payload: string;
  readonly qos: 1 | 2;
  readonly subscriptionIds?: readonly number[];
  readonly shared?: string;
}

/** A queue row's delivery: flags, subscription identifiers, the share group's filter; then the message. */
function deliveryOfOld({ id, topic, payload, qos, subscriptionIds = [], shared }: OldDelivery): Uint8Array {
  const writer = new ByteWriter().u8(qos | (shared === undefined ? 0 : 8)).u16(subscriptionIds.length);
  for (const each of subscriptionIds) writer.u32(each);
  if (shared !== undefined) writer.string(shared);
  writer.u8(qos).u48(0).string(id).string(topic).string("a publisher");
  return writer.blob(new Uint8Array()).blob(utf8.encode(payload)).take();
}

/** Flags (QoS), message expiry, delay; topic, properties, payload. */
function willOfOld(topic: string, payload: string): Uint8Array {
  return new ByteWriter().u8(1).u32(0).u32(0).string(topic).blob(new Uint8Array()).blob(utf8.encode(payload)).take();
}

async function tellCore(node: string, record: Uint8Array): Promise<void> {
  await coreStub().route(node, { term: 0, id: 1 }, joinRecords([record], record.length));
}

/**
 * A node whose database is of the first version, with all that such a one can hold; what wakes it, wakes today's code.
 *
 *   1 away       a window, some queued, and QoS 2 in both directions
 *   2 idle       has acknowledged everything, up to a number that is not on disk otherwise
 *   3 lost       connected, its checkpoint older than its queue, up to number 1200
 *   4 transient  connected
 */
async function nodeWithOldDisk(idleUpTo = 899) {
  const node = newNode();
  const topic = `old/${node}`;
  const group = `$share/g/${topic}/s`;
  const now = Date.now();
  const later = now + 3_600_000;
  const clients = { away: `away-${node}`, idle: `idle-${node}`, lost: `lost-${node}`, transient: `transient-${node}` };
  const { away, idle, lost, transient } = clients;
  const epochs: number[] = [];
  for (const clientId of [away, idle, lost, transient]) epochs.push((await coreStub().claim(clientId, node, 0)).epoch);
  for (const each of ["a", "b", "c", "0", "r/+"]) await tellCore(node, addRouteRecord(`${topic}/${each}`, 0, 1));
  await tellCore(node, addRouteRecord(group, 0, 1));

  const checkpoint = (nextSeq: number, sentUpTo: number, rest = noExchanges) =>
    `{"nextSeq":${nextSeq},"sentUpTo":${sentUpTo},"nextPacketId":100,${rest}}`;
  const connection = (clientId: string) =>
    `{"facts":{"version":5,"clientId":"${clientId}","keepAlive":60,"receiveMaximum":65535,` +
    `"maximumPacketSize":268435455,"topicAliasMaximum":0},"aliases":[[1,"${topic}"]]}`;
  const willOf = (clientId: string) => willOfOld(`${topic}/will`, clientId);
  const [a, b] = [`${topic}/a`, `${topic}/b`];
  const checkpointOfAway = checkpoint(
    10,
    5,
    `"inflight":[{"packetId":2,"seq":2,"state":"publish"},{"packetId":3,"seq":3,"state":"publish"},
       {"packetId":4,"seq":4,"state":"pubrel"},{"packetId":5,"seq":5,"state":"publish"}],"unsent":[5],
     "receiving":[{"packetId":21,"messageId":"${lifeOfOld}1z","digest":3844406961}],"received":[20],
     "retainedReads":[{"subscription":{"filter":"${topic}/r/+","qos":1,"noLocal":false,"retainAsPublished":false,
       "retainHandling":0,"subscriptionId":0},"after":"${topic}/r/1"}]`,
  );
  const checkpointOfLost = checkpoint(
    1100,
    1098,
    `"inflight":[{"packetId":9,"seq":1098,"state":"publish"}],"unsent":[],"received":[],"retainedReads":[]`,
  );
  const sessions: Row[] = [
    [1, away, epochs[0]!, null, 0, 3600, later, 0, later, null, checkpointOfAway, connection(away)],
    [2, idle, epochs[1]!, null, 0, 3600, later, 0, later, null, checkpoint(idleUpTo + 1, idleUpTo), null],
    [3, lost, epochs[2]!, null, 1, 3600, 0, 0, null, willOf(lost), checkpointOfLost, connection(lost)],
    [4, transient, epochs[3]!, null, 1, 0, 0, 0, null, willOf(transient), checkpoint(1, 0), connection(transient)],
  ];
  // Options: QoS, 4 for no local, 8 for retain as published, 16 for a retain handling of 1.
  const subscriptions: Row[] = [
    [1, a, 2 | 8 | 16, 7],
    [1, group, 1, 0],
    [1, `${topic}/0`, 0, 0],
    [1, `${topic}/r/+`, 1, 0],
    [2, a, 1 | 4, 0],
    [3, b, 1, 0],
    [4, `${topic}/c`, 1, 0],
    [99, `${topic}/nobody`, 1, 0],
  ];
  const queue: [session: number, seq: number, delivery: Omit<OldDelivery, "id">][] = [
    [1, 1, { topic: a, payload: "acknowledged", qos: 1 }],
    [1, 2, { topic: a, payload: "2", qos: 1, subscriptionIds: [7] }],
    [1, 3, { topic: a, payload: "3", qos: 2, subscriptionIds: [7] }],
    [1, 4, { topic: a, payload: "released", qos: 2 }],
    [1, 5, { topic: a, payload: "5", qos: 1 }],
    [1, 6, { topic: a, payload: "6", qos: 2 }],
    [1, 7, { topic: `${topic}/s`, payload: "7", qos: 1, shared: group }],
    [1, 9, { topic: a, payload: "9", qos: 1 }],
    [3, 1098, { topic: b, payload: "1098", qos: 1 }],
    [3, 1099, { topic: b, payload: "1099", qos: 1 }],
    [3, 1200, { topic: b, payload: "1200", qos: 1 }],
  ];

  await runInDurableObject(nodeStub(node), async (_: unknown, { storage }: DurableObjectState) => {
    await storage.deleteAll();
    const { sql } = storage;
    sql.exec(nodeOfOld);
    for (const row of sessions) sql.exec("INSERT INTO session VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", ...row);
    for (const row of subscriptions) sql.exec("INSERT INTO subscription VALUES (?, ?, ?, ?)", ...row);
    for (const [session, seq, delivery] of queue) {
      const bytes = deliveryOfOld({ ...delivery, id: lifeOfOld + seq.toString(36) });
      const shared = delivery.shared === undefined ? 0 : 1;
      sql.exec("INSERT INTO queue VALUES (?, ?, ?, ?, ?, ?)", session, seq, 100, delivery.qos, shared, bytes);
    }
    for (const seq of [3, 4, 6]) sql.exec("INSERT INTO known VALUES (1, ?, ?)", `${lifeOfOld}${seq} `, now);
  });
  await evictDurableObject(nodeStub(node));
  return { node, topic, group, later, ...clients };
}

/** Whoever still connects by this client id finds a session. */
async function comeBack(node: string, clientId: string) {
  const client = await converse(node, { ...durable, clientId });
  expect(client.connack.sessionPresent).toBe(true);
  return client;
}

describe("a node", () => {
  test("[G1] gives a session of old what it waits for, in order and again where it was sent, then what is new", async () => {
    const { node, topic, away } = await nodeWithOldDisk();
    const publisher = await converse(newNode());
    publisher.send(publish(`${topic}/a`, "10", 2, { messageId: 1, retain: true }));
    await publisher.expect("pubrec", { reasonCode: 0 });
    publisher.send(
      publish(`${topic}/s`, "11", 1, { messageId: 2 }),
      publish(`${topic}/0`, "nobody waits", 1, { messageId: 3 }),
    );
    await publisher.expect("puback", { messageId: 2, reasonCode: 0 });
    await publisher.expect("puback", { messageId: 3, reasonCode: 0 });
    // What has one number for all sessions is behind what each of them has.
    const [log] = await rows<{ n: number; first: number }>(node, "SELECT count(*) AS n, min(last) AS first FROM log");
    expect(log!.n).toBe(1);
    expect(log!.first).toBeGreaterThan(1200);
    expect(
      await rows(node, "SELECT session, filter FROM subscription WHERE logged = 1 ORDER BY session, filter"),
    ).toEqual([
      { session: 1, filter: `${topic}/a` },
      { session: 1, filter: `${topic}/r/+` },
      { session: 2, filter: `${topic}/a` },
      { session: 3, filter: `${topic}/b` },
    ]);

    const client = await comeBack(node, away);
    await client.expectMessage("2", { messageId: 2, qos: 1, dup: true, properties: { subscriptionIdentifier: 7 } });
    await client.expectMessage("3", { messageId: 3, qos: 2, dup: true, properties: { subscriptionIdentifier: 7 } });
    await client.expect("pubrel", { messageId: 4 });
    await client.expectMessage("5", { messageId: 5, qos: 1, dup: true });
    const sixth = await client.expectMessage("6", { messageId: 100, qos: 2, dup: false });
    await client.expectMessage("7", { qos: 1, dup: false, topic: `${topic}/s` });
    await client.expectMessage("9", { qos: 1, dup: false });
    await client.expectMessage("10", { qos: 2, dup: false, retain: true, properties: { subscriptionIdentifier: 7 } });
    await client.expectMessage("11", { qos: 1, dup: false, topic: `${topic}/s` });
    await client.expectNothing();

    client.send({ cmd: "pubcomp", messageId: 4 }, { cmd: "pubrec", messageId: 3 });
    await client.expect("pubrel", { messageId: 3 });
    client.send({ cmd: "pubrec", messageId: sixth.messageId! });
    await client.expect("pubrel", { messageId: sixth.messageId! });
    publisher.send(publish(`${topic}/0`, "12", 1, { messageId: 4 }));
    await client.expectMessage("12", { qos: 0 });
    await client.expectNothing();
  });

  test("[G1] gives new messages to a session of old that has acknowledged all of a longer past", async () => {
    const { node, topic, idle } = await nodeWithOldDisk(4999);
    const publisher = await converse(newNode());
    await publishAndWait(publisher, `${topic}/a`, "1", "2");
    const client = await comeBack(node, idle);
    await client.expectMessage("1", { messageId: 100, dup: false });
    await client.expectMessage("2", { messageId: 101, dup: false });
    await publishAndWait(client, `${topic}/a`, "its own");
    await publishAndWait(publisher, `${topic}/a`, "3");
    await client.expectMessage("3");
    await client.expectNothing();
  });

  test("[G1] [MQTT-4.3.3-10] publishes once what came at QoS 2 before, and comes again", async () => {
    const { node, topic, away } = await nodeWithOldDisk();
    const subscriber = await converse(newNode(), durable);
    await subscribe(subscriber, `${topic}/in`);
    // What the earlier life sent before it ended, not answered.
    const message = {
      id: `${lifeOfOld}1z`,
      topic: `${topic}/in`,
      payload: utf8.encode("in 1"),
      qos: 2 as const,
      retain: false,
      properties: new Uint8Array(),
      expiresAt: 0,
      from: away,
    };
    await tellCore(node, publishRecord(new ByteWriter(), { message, delaySeconds: 0, only: "" }));
    await subscriber.expectMessage("in 1");

    const client = await converse(node, {
      ...durable,
      clientId: away,
      properties: { ...durable.properties, receiveMaximum: 1 },
    });
    expect(client.connack.sessionPresent).toBe(true);
    await client.expectMessage("2");
    await client.expect("pubrel");
    for (const messageId of [20, 21]) {
      client.send(publish(`${topic}/in`, "in 1", 2, { messageId, dup: true }));
      await client.expect("pubrec", { messageId, reasonCode: 0 });
    }
    client.send({ cmd: "pubrel", messageId: 20 });
    await client.expect("pubcomp", { messageId: 20, reasonCode: 0 });
    await subscriber.expectNothing();
    client.send(publish(`${topic}/in`, "in 2", 2, { messageId: 20 }));
    await client.expect("pubrec", { messageId: 20, reasonCode: 0 });
    await subscriber.expectMessage("in 2");
    await subscriber.expectNothing();
  });

  test("treats connections of old as lost: their wills, and what is left of their sessions", async () => {
    const { node, topic, away, lost, transient, later } = await nodeWithOldDisk();
    const heir = await converse(newNode());
    await subscribe(heir, `${topic}/will`);
    await publishAndWait(await converse(newNode()), `${topic}/b`, "1201");
    const wills = [await heir.expect("publish"), await heir.expect("publish")];
    expect(wills.map(({ payload }) => payload.toString()).sort()).toEqual([lost, transient].sort());
    await heir.expectNothing();

    expect(await sessionRow(node, transient)).toBeUndefined();
    expect(await rows(node, "SELECT * FROM connection")).toEqual([]);
    const routes = () => rows(coreName, "SELECT members FROM route WHERE key = ?", `${topic}/c`);
    await vi.waitUntil(async () => (await routes()).length === 0, patience);
    expect((await sessionRow(node, lost))!.expires_at).toBeGreaterThan(Date.now());
    expect((await sessionRow(node, away))!.expires_at).toBe(later);
    const client = await comeBack(node, lost);
    await client.expectMessage("1098", { messageId: 9, dup: true });
    await client.expectMessage("1099", { messageId: 100, dup: false });
    await client.expectMessage("1200", { dup: false });
    await client.expectMessage("1201", { dup: false });
    await client.expectNothing();
  });

  test("goes on with a read of retained messages where a session of old had got to", async () => {
    const { node, topic, away } = await nodeWithOldDisk();
    const publisher = await converse(newNode());
    for (const each of [1, 2, 3]) {
      publisher.send(publish(`${topic}/r/${each}`, `retained ${each}`, 1, { messageId: each, retain: true }));
      await publisher.expect("puback", { messageId: each });
    }
    const client = await comeBack(node, away);
    for (const payload of ["2", "3"]) await client.expectMessage(payload);
    await client.expect("pubrel");
    // The three have come by the subscription, too.
    for (const payload of ["5", "6", "7", "9"]) await client.expectMessage(payload);
    for (const each of [1, 2, 3]) await client.expectMessage(`retained ${each}`, { retain: false });
    for (const each of [2, 3]) await client.expectMessage(`retained ${each}`, { retain: true });
    await client.expectNothing();
  });

  test("[MQTT-4.8.2-5] gives another member what a session of old leaves of its share group", async () => {
    const { node, group, away } = await nodeWithOldDisk();
    const member = await converse(newNode());
    await subscribe(member, group);
    const client = await converse(node, { clientId: away });
    expect(client.connack.sessionPresent).toBe(false);
    await member.expectMessage("7");
    await member.expectNothing();
    await client.expectNothing();
  });

  test("writes few rows when it is new, and none when it wakes", async () => {
    await onEmptyStorage((storage) => {
      const noCall = () => {
        throw new Error("a node called another object");
      };
      const wake = (database: Database) =>
        new Broker("node-0@local.emqxcl", readSettings(bindings as unknown as Record<string, unknown>), {
          metrics: new Metrics(),
          storage: database,
          sockets: [],
          coreAt: noCall,
          nodeAt: noCall,
          ringAt: noCall,
        });
      expect(rowsWritten(storage, wake)).toBe(118);
      expect(rowsWritten(storage, wake)).toBe(0);
    });
  });
});
