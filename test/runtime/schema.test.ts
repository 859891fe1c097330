// The tables of an object on real storage: as they were, as they become, and what must not happen to them.

import { env as bindings, evictDurableObject, runInDurableObject } from "cloudflare:test";
import { describe, expect, test } from "vitest";
import { CoreStore } from "../../durable-objects/coordinator/core-store.ts";
import { migrate } from "../../durable-objects/schema.ts";
import type { Database, Migration } from "../../durable-objects/schema.ts";
import { countedSql } from "./counted-sql.ts";

const env = bindings as unknown as Env;

let objects = 0;

function newCore() {
  return env.COORDINATOR.getByName(`schema-${++objects}@local.emqxcl`);
}

/** Runs on the storage of a new object, emptied. */
async function onEmptyStorage<R>(run: (storage: DurableObjectStorage) => R): Promise<R> {
  return runInDurableObject(newCore(), async (_: unknown, { storage }: DurableObjectState) => {
    await storage.deleteAll();
    return run(storage);
  });
}

/** All tables but those of the runtime, with their rows. */
function dump(sql: SqlStorage): Record<string, unknown[]> {
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
INSERT INTO retained VALUES ('a', 0, x'0102'), ('a/b', 4000000000000, x'03'), ('é', 0, x'04');
INSERT INTO delayed VALUES (1, 4000000000000, x'05'), (4, 3900000000000, x'06');
`;

describe("a core", () => {
  test("has all that a core without versions has left", async () => {
    const core = newCore();
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
      retained: before["retained"]!.map((row, index) => [index + 1, ...(row as unknown[])]),
      counter: [
        ["delayed", 2],
        ["retained", 3],
      ],
    });
    expect(await core.claim("bob", "node-1@local.emqxcl")).toMatchObject({
      holders: [
        { node: "node-2@local.emqxcl", since: 0 },
        { node: "node-3@local.emqxcl", since: 0 },
      ],
    });
    const { messages } = await core.retained("#", undefined, 10);
    expect(messages).toEqual(Uint8Array.of(1, 2, 3, 4));
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
      expect(rowsWritten(storage, (database) => new CoreStore(database))).toBe(30);
      expect(rowsWritten(storage, (database) => new CoreStore(database))).toBe(0);
    });
  });
});
