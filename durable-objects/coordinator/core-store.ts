/**
 * A core's disk.
 *
 *   member    the nodes of the cluster
 *   route     what each node has told of its subscriptions; `members` counts a share group's connected members
 *   claim     which node has which client id, and which nodes may still hold a session of it: the session registry
 *   retained  one message per topic
 *   delayed   messages whose time has not come
 *   counter   how many rows `retained` and `delayed` have
 *   parked    records for nodes that cannot be reached (parked-store.ts)
 */
import type { NodeName } from "../../cluster/name.ts";
import { limits } from "../../mqtt/limits.ts";
import type { Holder } from "../rpc.ts";
import { migrate, type Database, type Migration, type Sql } from "../schema.ts";
import { RetainedStore } from "./retained-store.ts";
import { RowCount } from "./row-count.ts";

const migrations: readonly Migration[] = [
  `
CREATE TABLE IF NOT EXISTS member (name TEXT PRIMARY KEY, joined_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS route (
  key TEXT NOT NULL,
  node TEXT NOT NULL,
  members INTEGER NOT NULL,
  PRIMARY KEY (key, node)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claim (
  client_id TEXT PRIMARY KEY,
  node TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  holders TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS retained (
  topic TEXT PRIMARY KEY,
  expires_at INTEGER NOT NULL,
  message BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS delayed (id INTEGER PRIMARY KEY, due_at INTEGER NOT NULL, message BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS delayed_due ON delayed (due_at);
`,
  `
ALTER TABLE retained RENAME TO retained_by_topic;
CREATE TABLE retained (
  id INTEGER PRIMARY KEY,
  topic TEXT NOT NULL UNIQUE,
  expires_at INTEGER NOT NULL,
  message BLOB NOT NULL
);
CREATE INDEX retained_expiry ON retained (expires_at) WHERE expires_at > 0;
INSERT INTO retained (topic, expires_at, message) SELECT topic, expires_at, message FROM retained_by_topic;
DROP TABLE retained_by_topic;
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter SELECT 'retained', count(*) FROM retained;
INSERT INTO counter SELECT 'delayed', count(*) FROM delayed;
ALTER TABLE route ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
CREATE TABLE parked (
  node TEXT NOT NULL,
  seq INTEGER NOT NULL,
  at INTEGER NOT NULL,
  messages INTEGER NOT NULL,
  records BLOB NOT NULL,
  PRIMARY KEY (node, seq)
) WITHOUT ROWID;
`,
];

/** The claimer is the first of the holders, then the latest first. */
export interface StoredClaim {
  readonly epoch: number;
  readonly holders: readonly Holder[];
}

export class CoreStore {
  readonly #sql: Sql;
  readonly retained: RetainedStore;
  readonly #delayedCount: RowCount;

  constructor(database: Database) {
    this.#sql = database.sql;
    migrate(database, migrations);
    this.retained = new RetainedStore(this.#sql);
    this.#delayedCount = new RowCount(this.#sql, "delayed");
  }

  // ---- members and routes -----------------------------------------------------------------------------------------

  members(): NodeName[] {
    const rows = this.#sql.exec<{ name: string }>("SELECT name FROM member ORDER BY joined_at, name");
    return [...rows].map((row) => row.name);
  }

  addMember(node: NodeName, joinedAt: number): void {
    this.#sql.exec("INSERT OR IGNORE INTO member VALUES (?, ?)", node, joinedAt);
  }

  routes(): Iterable<{ node: NodeName; key: string; members: number }> {
    return this.#sql.exec<{ node: string; key: string; members: number }>("SELECT node, key, members FROM route");
  }

  /** Of the node's last change of it; 0: there is no such route. */
  routeVersion(node: NodeName, key: string): number {
    const query = "SELECT version FROM route WHERE key = ? AND node = ?";
    return this.#sql.exec<{ version: number }>(query, key, node).toArray()[0]?.version ?? 0;
  }

  putRoute(node: NodeName, key: string, members: number, version: number): void {
    this.#sql.exec("INSERT OR REPLACE INTO route VALUES (?, ?, ?, ?)", key, node, members, version);
  }

  deleteRoute(node: NodeName, key: string): void {
    this.#sql.exec("DELETE FROM route WHERE key = ? AND node = ?", key, node);
  }

  // ---- registry ---------------------------------------------------------------------------------------------------

  claimOf(clientId: string): StoredClaim | undefined {
    const row = this.#sql
      .exec<{ node: string; epoch: number; holders: string }>(
        "SELECT node, epoch, holders FROM claim WHERE client_id = ?",
        clientId,
      )
      .toArray()[0];
    return row && { epoch: row.epoch, holders: readHolders(row.node, row.holders) };
  }

  putClaim(clientId: string, { epoch, holders }: StoredClaim): void {
    const text = holders.map(({ node, since }) => `${node}/${since}`).join(" ");
    this.#sql.exec("INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?)", clientId, holders[0]!.node, epoch, text);
  }

  deleteClaim(clientId: string, epoch: number): void {
    this.#sql.exec("DELETE FROM claim WHERE client_id = ? AND epoch = ?", clientId, epoch);
  }

  claimCount(): number {
    return this.#sql.exec<{ n: number }>("SELECT count(*) AS n FROM claim").one().n;
  }

  // ---- delayed ----------------------------------------------------------------------------------------------------

  delay(bytes: Uint8Array, dueAt: number): void {
    this.#sql.exec("INSERT INTO delayed (due_at, message) VALUES (?, ?)", dueAt, bytes);
    this.#delayedCount.add(1);
  }

  /** One page of what is due, at least one message if there is any. */
  delayedUntil(now: number): { id: number; bytes: Uint8Array }[] {
    const page: { id: number; bytes: Uint8Array }[] = [];
    let bytes = 0;
    const rows = this.#sql.exec<{ id: number; message: ArrayBuffer }>(
      "SELECT id, message FROM delayed WHERE due_at <= ? ORDER BY due_at, id LIMIT ?",
      now,
      limits.pageMessagesMax,
    );
    for (const { id, message } of rows) {
      page.push({ id, bytes: new Uint8Array(message) });
      bytes += message.byteLength;
      if (bytes >= limits.pageBytesMax) break;
    }
    return page;
  }

  forgetDelayed(id: number): void {
    const deleted = this.#sql.exec("DELETE FROM delayed WHERE id = ? RETURNING id", id).toArray();
    this.#delayedCount.add(-deleted.length);
  }

  nextDelayed(): number | undefined {
    return this.#sql.exec<{ at: number | null }>("SELECT min(due_at) AS at FROM delayed").one().at ?? undefined;
  }

  delayedCount(): number {
    return this.#delayedCount.value;
  }
}

/** Rows that were written before epochs were remembered name the nodes alone, and not the claimer. */
function readHolders(claimer: NodeName, text: string): Holder[] {
  const holders = text
    .split(" ")
    .filter((each) => each !== "")
    .map((each) => {
      const [node, since] = each.split("/");
      return { node: node!, since: Number(since ?? 0) };
    });
  return holders[0]?.node === claimer ? holders : [{ node: claimer, since: 0 }, ...holders];
}
