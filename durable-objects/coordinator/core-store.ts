/**
 * A core's disk.
 *
 *   member    the nodes of the cluster
 *   route     what each node has told of its subscriptions; `members` counts a share group's connected members
 *   claim     which node has which client id: the session registry
 *   retained  one message per topic
 *   delayed   messages whose time has not come
 */
import type { NodeName } from "../../cluster/name.ts";
import { limits } from "../../mqtt/limits.ts";
import type { Message } from "../../mqtt/message.ts";
import { hasWildcard, matches } from "../../mqtt/topic.ts";
import type { RetainedPage } from "../rpc.ts";

const schema = `
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
  epoch INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS retained (
  topic TEXT PRIMARY KEY,
  expires_at INTEGER NOT NULL,
  message BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS delayed (id INTEGER PRIMARY KEY, due_at INTEGER NOT NULL, message BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS delayed_due ON delayed (due_at);
`;

/** Behind every topic that starts with the prefix: U+10FFFF is in none. */
const lastCharacter = "\u{10FFFF}";

export class CoreStore {
  readonly #sql: SqlStorage;

  constructor(sql: SqlStorage) {
    this.#sql = sql;
    sql.exec(schema);
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

  putRoute(node: NodeName, key: string, members: number): void {
    this.#sql.exec("INSERT OR REPLACE INTO route VALUES (?, ?, ?)", key, node, members);
  }

  deleteRoute(node: NodeName, key: string): void {
    this.#sql.exec("DELETE FROM route WHERE key = ? AND node = ?", key, node);
  }

  // ---- registry ---------------------------------------------------------------------------------------------------

  claimOf(clientId: string): { node: NodeName; epoch: number } | undefined {
    return this.#sql
      .exec<{ node: string; epoch: number }>("SELECT node, epoch FROM claim WHERE client_id = ?", clientId)
      .toArray()[0];
  }

  claim(clientId: string, node: NodeName, epoch: number): void {
    this.#sql.exec("INSERT OR REPLACE INTO claim VALUES (?, ?, ?)", clientId, node, epoch);
  }

  /** Only the latest claim can be released. */
  release(clientId: string, epoch: number): void {
    this.#sql.exec("DELETE FROM claim WHERE client_id = ? AND epoch = ?", clientId, epoch);
  }

  claimCount(): number {
    return this.#sql.exec<{ n: number }>("SELECT count(*) AS n FROM claim").one().n;
  }

  // ---- retained ---------------------------------------------------------------------------------------------------

  /** The message takes the place of its topic's last one; without a payload it only clears it. */
  retain({ topic, payload, expiresAt }: Message, bytes: Uint8Array): void {
    if (payload.length === 0) this.#sql.exec("DELETE FROM retained WHERE topic = ?", topic);
    else this.#sql.exec("INSERT OR REPLACE INTO retained VALUES (?, ?, ?)", topic, expiresAt, bytes);
  }

  retainedPage(filter: string, after: string | undefined, now: number): RetainedPage {
    const found: Uint8Array[] = [];
    let bytes = 0;
    let next: string | undefined;
    for (const row of this.#retainedRows(filter, after)) {
      if (row.expires_at !== 0 && row.expires_at <= now) continue;
      if (!matches(filter, row.topic)) continue;
      const message = new Uint8Array(row.message);
      found.push(message);
      bytes += message.length;
      if (bytes < limits.pageBytesMax && found.length < limits.pageMessagesMax) continue;
      next = row.topic;
      break;
    }
    return { messages: concatenate(found, bytes), next };
  }

  /** In the order of their topics, only those that begin as the filter does. */
  #retainedRows(filter: string, after: string | undefined) {
    type Row = { topic: string; expires_at: number; message: ArrayBuffer };
    if (!hasWildcard(filter))
      return this.#sql.exec<Row>(
        "SELECT topic, expires_at, message FROM retained WHERE topic = ? AND topic > ?",
        filter,
        after ?? "",
      );
    const wildcard = filter.search(/[+#]/);
    // "a/#" matches "a" too: the slash is not part of what all have in common. [MQTT-4.7.1-2]
    const prefix = filter.slice(0, filter[wildcard] === "#" ? Math.max(0, wildcard - 1) : wildcard);
    return this.#sql.exec<Row>(
      "SELECT topic, expires_at, message FROM retained WHERE topic >= ? AND topic > ? AND topic < ? ORDER BY topic",
      prefix,
      after ?? "",
      prefix + lastCharacter,
    );
  }

  retainedCount(): number {
    return this.#sql.exec<{ n: number }>("SELECT count(*) AS n FROM retained").one().n;
  }

  // ---- delayed ----------------------------------------------------------------------------------------------------

  delay(bytes: Uint8Array, dueAt: number): void {
    this.#sql.exec("INSERT INTO delayed (due_at, message) VALUES (?, ?)", dueAt, bytes);
  }

  delayedUntil(now: number): { id: number; bytes: Uint8Array }[] {
    const rows = this.#sql.exec<{ id: number; message: ArrayBuffer }>(
      "SELECT id, message FROM delayed WHERE due_at <= ? ORDER BY due_at, id LIMIT ?",
      now,
      limits.pageMessagesMax,
    );
    return [...rows].map(({ id, message }) => ({ id, bytes: new Uint8Array(message) }));
  }

  forgetDelayed(id: number): void {
    this.#sql.exec("DELETE FROM delayed WHERE id = ?", id);
  }

  nextDelayed(): number | undefined {
    return this.#sql.exec<{ at: number | null }>("SELECT min(due_at) AS at FROM delayed").one().at ?? undefined;
  }

  delayedCount(): number {
    return this.#sql.exec<{ n: number }>("SELECT count(*) AS n FROM delayed").one().n;
  }
}

function concatenate(parts: readonly Uint8Array[], bytes: number): Uint8Array {
  const joined = new Uint8Array(bytes);
  let offset = 0;
  for (const part of parts) {
    joined.set(part, offset);
    offset += part.length;
  }
  return joined;
}
