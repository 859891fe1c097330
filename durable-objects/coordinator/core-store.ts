/**
 * A core's disk.
 *
 *   member    who is, or was, in the cluster (cluster/membership.ts)
 *   route     what each node has told of its subscriptions (route-store.ts)
 *   writer    up to where what each member writes is here (versions.ts)
 *   fact      single values: whether the core replicates, whose claims it keeps
 *   claim     which node has which client id, and which nodes may still hold a session of it: the session registry
 *   retained  one message per topic (retained-store.ts)
 *   delayed   messages whose time has not come
 *   counter   how many rows `retained` and `delayed` have
 *   parked    records for nodes that cannot be reached (parked-store.ts)
 */
import type { Member, Role } from "../../cluster/membership.ts";
import type { NodeName } from "../../cluster/name.ts";
import { limits } from "../../mqtt/limits.ts";
import type { Holder } from "../rpc.ts";
import { firstPage } from "../page.ts";
import { migrate, type Database, type Migration, type Sql } from "../schema.ts";
import { RetainedStore } from "./retained-store.ts";
import { RouteStore } from "./route-store.ts";
import { RowCount } from "./row-count.ts";
import { Versions } from "./versions.ts";

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
  `
ALTER TABLE member RENAME TO member_before;
CREATE TABLE member (
  name TEXT PRIMARY KEY,
  role TEXT NOT NULL,
  domain TEXT NOT NULL,
  home TEXT NOT NULL,
  term INTEGER NOT NULL,
  joined_at INTEGER NOT NULL,
  state TEXT NOT NULL,
  changed_at INTEGER NOT NULL,
  down_at INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
INSERT INTO member SELECT name, 'replicant', '', '?', 0, joined_at, 'in', joined_at, 0 FROM member_before;
DROP TABLE member_before;
ALTER TABLE route RENAME COLUMN version TO sent;
ALTER TABLE route ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
CREATE TABLE removed (
  key TEXT NOT NULL,
  node TEXT NOT NULL,
  sent INTEGER NOT NULL,
  version INTEGER NOT NULL,
  PRIMARY KEY (key, node)
) WITHOUT ROWID;
ALTER TABLE retained ADD COLUMN writer TEXT NOT NULL DEFAULT '';
ALTER TABLE retained ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
CREATE TABLE cleared (topic TEXT PRIMARY KEY, writer TEXT NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE writer (name TEXT PRIMARY KEY, version INTEGER NOT NULL, floor INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
`,
];

/** The claimer is the first of the holders, then the latest first. */
export interface StoredClaim {
  readonly epoch: number;
  readonly holders: readonly Holder[];
}

type MemberRow = {
  name: string;
  role: Role;
  domain: string;
  home: string;
  term: number;
  joined_at: number;
  state: Member["state"];
  changed_at: number;
  down_at: number;
};

export class CoreStore {
  readonly #sql: Sql;
  readonly versions: Versions;
  readonly routes: RouteStore;
  readonly retained: RetainedStore;
  readonly #delayedCount: RowCount;

  constructor(database: Database) {
    this.#sql = database.sql;
    migrate(database, migrations);
    this.versions = new Versions(this.#sql);
    this.routes = new RouteStore(this.#sql, this.versions);
    this.retained = new RetainedStore(this.#sql, this.versions);
    this.#delayedCount = new RowCount(this.#sql, "delayed");
  }

  // ---- members ----------------------------------------------------------------------------------------------------

  /** @param domain of members that were there before domains were written down. */
  members(domain: string): Member[] {
    const rows = this.#sql.exec<MemberRow>("SELECT * FROM member").toArray();
    return rows.map((row) => ({
      name: row.name,
      role: row.role,
      domain: row.domain || domain,
      home: row.home,
      term: row.term,
      joinedAt: row.joined_at,
      state: row.state,
      changedAt: row.changed_at,
    }));
  }

  putMember({ name, role, domain, home, term, joinedAt, state, changedAt }: Member): void {
    this.#sql.exec(
      "INSERT OR REPLACE INTO member VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
      ...[name, role, domain, home, term, joinedAt, state, changedAt],
    );
  }

  deleteMember(name: NodeName): void {
    this.#sql.exec("DELETE FROM member WHERE name = ?", name);
  }

  /** Since when members cannot be reached, in ms since the epoch. */
  downMembers(): Map<NodeName, number> {
    const rows = this.#sql.exec<{ name: string; down_at: number }>(
      "SELECT name, down_at FROM member WHERE down_at > 0",
    );
    return new Map([...rows].map((row) => [row.name, row.down_at]));
  }

  /** Those of them that are nodes in the cluster. */
  downNodes(): { readonly node: NodeName; readonly since: number }[] {
    const query = "SELECT name AS node, down_at AS since FROM member WHERE down_at > 0 AND home <> '' AND state = 'in'";
    return this.#sql.exec<{ node: string; since: number }>(query).toArray();
  }

  /** @param downAt 0: it is there. */
  putDownAt(name: NodeName, downAt: number): void {
    this.#sql.exec("UPDATE member SET down_at = ? WHERE name = ?", downAt, name);
  }

  // ---- single values ----------------------------------------------------------------------------------------------

  fact(name: string): string | undefined {
    return this.#sql.exec<{ value: string }>("SELECT value FROM fact WHERE name = ?", name).toArray()[0]?.value;
  }

  putFact(name: string, value: string): void {
    this.#sql.exec("INSERT OR REPLACE INTO fact VALUES (?, ?)", name, value);
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

  /** Unless there is a later one. */
  deleteClaim(clientId: string, epoch: number): void {
    this.#sql.exec("DELETE FROM claim WHERE client_id = ? AND epoch <= ?", clientId, epoch);
  }

  /** A page of the claims, ordered by client id. */
  claims(after: string): { clientId: string; claim: StoredClaim }[] {
    const rows = this.#sql.exec<{ client_id: string; node: string; epoch: number; holders: string }>(
      "SELECT client_id, node, epoch, holders FROM claim WHERE client_id > ? ORDER BY client_id LIMIT ?",
      ...[after, limits.pageEntriesMax],
    );
    return firstPage(rows, (row) => row.client_id).items.map((row) => ({
      clientId: row.client_id,
      claim: { epoch: row.epoch, holders: readHolders(row.node, row.holders) },
    }));
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
