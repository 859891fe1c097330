/**
 * The sessions of a node on its disk.
 *
 *   session       one row each: who, when it is due, its checkpoint, and the facts of an open connection
 *   subscription  one row per filter
 *   queue         one row per message that a session has not acknowledged, by rising `seq`
 *   known         one row per QoS 2 message that a durable session has been given, acknowledged or not, for some time:
 *                 a batch whose answer was lost comes again, and so does what a publisher was not answered before a crash
 *
 * A checkpoint may be older than the queue: rows up to its `sentUpTo` count only when it names them as inflight, rows
 * beyond it are queued. So a message is written once when it comes and deleted some time after its acknowledgement, and
 * acknowledgements cost no row of their own.
 *
 * What is on disk may have been written by an older version: a new field of the checkpoint has a default where it is read.
 */
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import type { ConnectionFacts } from "../../mqtt/channel.ts";
import { limits } from "../../mqtt/limits.ts";
import { messageBytes, readMessage, writeMessage, type QoS } from "../../mqtt/message.ts";
import type { StoredDelivery } from "../rpc.ts";
import {
  atNoTime,
  Session,
  type Checkpoint,
  type Delivery,
  type StoredMessage,
  type Subscription,
  type Will,
} from "../../mqtt/session.ts";

/** What a connection needs to go on after the object slept. */
export interface StoredConnection {
  readonly facts: ConnectionFacts;
  readonly aliases: readonly (readonly [number, string])[];
}

const schema = `
CREATE TABLE IF NOT EXISTS session (
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
CREATE INDEX IF NOT EXISTS session_due ON session (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS subscription (
  session INTEGER NOT NULL,
  filter TEXT NOT NULL,
  options INTEGER NOT NULL,
  subscription_id INTEGER NOT NULL,
  PRIMARY KEY (session, filter)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queue (
  session INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  qos INTEGER NOT NULL,
  shared INTEGER NOT NULL,
  delivery BLOB NOT NULL,
  PRIMARY KEY (session, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS known (
  session INTEGER NOT NULL,
  key TEXT NOT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY (session, key)
) WITHOUT ROWID;
`;

type SessionRow = {
  id: number;
  client_id: string;
  epoch: number;
  username: string | null;
  connected: number;
  expiry_interval: number;
  expires_at: number;
  will_at: number;
  will: ArrayBuffer | null;
  checkpoint: string;
};

export class SessionStore {
  readonly #sql: SqlStorage;
  readonly #writer = new ByteWriter();
  #count: number | undefined;
  #forgotAt = 0;

  constructor(sql: SqlStorage) {
    this.#sql = sql;
    sql.exec(schema);
  }

  /** The next free short name of a session. */
  nextId(): number {
    return this.#sql.exec<{ id: number }>("SELECT coalesce(max(id), 0) + 1 AS id FROM session").one().id;
  }

  /** Whatever a crash half-way left under this name is not the new session's (G9). */
  clear(id: number): void {
    this.#sql.exec("DELETE FROM queue WHERE session = ?", id);
    this.#sql.exec("DELETE FROM subscription WHERE session = ?", id);
    this.#sql.exec("DELETE FROM known WHERE session = ?", id);
  }

  load(clientId: string): Session | undefined {
    return this.#load(this.#sql.exec<SessionRow>("SELECT * FROM session WHERE client_id = ?", clientId).toArray()[0]);
  }

  loadById(id: number): Session | undefined {
    return this.#load(this.#sql.exec<SessionRow>("SELECT * FROM session WHERE id = ?", id).toArray()[0]);
  }

  #load(row: SessionRow | undefined): Session | undefined {
    if (!row) return undefined;
    const session = new Session(row.id, row.client_id);
    session.epoch = row.epoch;
    session.username = row.username ?? undefined;
    session.connected = row.connected === 1;
    session.expiryInterval = row.expiry_interval;
    session.expiresAt = row.expires_at;
    session.willAt = row.will_at;
    session.will = row.will ? readWill(new Uint8Array(row.will)) : undefined;
    const checkpoint = JSON.parse(row.checkpoint) as Checkpoint;
    const stored = this.#sql.exec<{ seq: number; bytes: number; qos: number; shared: number }>(
      "SELECT seq, bytes, qos, shared FROM queue WHERE session = ? ORDER BY seq",
      row.id,
    );
    session.restore(checkpoint, storedMessages(stored));
    for (const { subscription } of this.#subscriptions("WHERE session = ?", row.id)) session.subscribe(subscription);
    session.dirty = false;
    return session;
  }

  /** Writes a new session's row. */
  insert(session: Session): void {
    const before = this.count();
    this.save(session);
    this.#count = before + 1;
  }

  /** Writes all of a session but its messages and subscriptions. */
  save(session: Session): void {
    const due = [session.willAt, session.expiresAt].filter((at) => at > 0 && at !== atNoTime);
    this.#sql.exec(
      `INSERT INTO session (id, client_id, epoch, username, connected, expiry_interval, expires_at, will_at, due_at, will, checkpoint)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, username = excluded.username,
         connected = excluded.connected, expiry_interval = excluded.expiry_interval, expires_at = excluded.expires_at,
         will_at = excluded.will_at, due_at = excluded.due_at, will = excluded.will, checkpoint = excluded.checkpoint`,
      session.id,
      session.clientId,
      session.epoch,
      session.username ?? null,
      session.connected ? 1 : 0,
      session.expiryInterval,
      session.expiresAt,
      session.willAt,
      session.connected || due.length === 0 ? null : Math.min(...due),
      session.will ? writeWill(this.#writer, session.will) : null,
      JSON.stringify(session.checkpoint()),
    );
    session.dirty = false;
    session.urgent = false;
  }

  saveConnection(id: number, connection: StoredConnection): void {
    this.#sql.exec("UPDATE session SET connection = ? WHERE id = ?", JSON.stringify(connection), id);
  }

  loadConnection(id: number): StoredConnection | undefined {
    const row = this.#sql
      .exec<{ connection: string | null }>("SELECT connection FROM session WHERE id = ?", id)
      .toArray()[0];
    return row?.connection ? (JSON.parse(row.connection) as StoredConnection) : undefined;
  }

  delete(id: number): void {
    const before = this.count();
    this.clear(id);
    const { rowsWritten } = this.#sql.exec("DELETE FROM session WHERE id = ?", id);
    if (rowsWritten > 0) this.#count = before - 1;
  }

  // ---- deadlines --------------------------------------------------------------------------------------------------

  /** ms since the epoch; undefined: no session waits for anything. */
  nextDue(): number | undefined {
    const row = this.#sql
      .exec<{ at: number | null }>("SELECT min(due_at) AS at FROM session WHERE due_at IS NOT NULL")
      .one();
    return row.at ?? undefined;
  }

  dueAt(now: number): number[] {
    const rows = this.#sql.exec<{ id: number }>(
      "SELECT id FROM session WHERE due_at <= ? LIMIT ?",
      now,
      limits.pageMessagesMax,
    );
    return [...rows].map((row) => row.id);
  }

  /** The sessions that disk calls connected. */
  connectedIds(): number[] {
    return [...this.#sql.exec<{ id: number }>("SELECT id FROM session WHERE connected = 1")].map((row) => row.id);
  }

  /** Sessions of this node: counted once, then kept. */
  count(): number {
    this.#count ??= this.#sql.exec<{ n: number }>("SELECT count(*) AS n FROM session").one().n;
    return this.#count;
  }

  // ---- subscriptions ----------------------------------------------------------------------------------------------

  putSubscription(sessionId: number, { filter, subscriptionId, ...options }: Subscription): void {
    const bits =
      options.qos | (options.noLocal ? 4 : 0) | (options.retainAsPublished ? 8 : 0) | (options.retainHandling << 4);
    this.#sql.exec("INSERT OR REPLACE INTO subscription VALUES (?, ?, ?, ?)", sessionId, filter, bits, subscriptionId);
  }

  deleteSubscription(sessionId: number, filter: string): void {
    this.#sql.exec("DELETE FROM subscription WHERE session = ? AND filter = ?", sessionId, filter);
  }

  /** Every subscription of the node, for its table. */
  *allSubscriptions(): Generator<{
    sessionId: number;
    clientId: string;
    connected: boolean;
    subscription: Subscription;
  }> {
    const sessions = new Map<number, { clientId: string; connected: boolean }>();
    for (const row of this.#sql.exec<{ id: number; client_id: string; connected: number }>(
      "SELECT id, client_id, connected FROM session",
    ))
      sessions.set(row.id, { clientId: row.client_id, connected: row.connected === 1 });
    for (const { sessionId, subscription } of this.#subscriptions("")) {
      const session = sessions.get(sessionId);
      if (session) yield { sessionId, ...session, subscription };
    }
  }

  *#subscriptions(where: string, ...bindings: number[]): Generator<{ sessionId: number; subscription: Subscription }> {
    const rows = this.#sql.exec<{ session: number; filter: string; options: number; subscription_id: number }>(
      `SELECT session, filter, options, subscription_id FROM subscription ${where}`,
      ...bindings,
    );
    for (const row of rows)
      yield {
        sessionId: row.session,
        subscription: {
          filter: row.filter,
          qos: (row.options & 3) as QoS,
          noLocal: (row.options & 4) !== 0,
          retainAsPublished: (row.options & 8) !== 0,
          retainHandling: (row.options >> 4) as 0 | 1 | 2,
          subscriptionId: row.subscription_id,
        },
      };
  }

  // ---- messages ---------------------------------------------------------------------------------------------------

  putDelivery(sessionId: number, seq: number, delivery: Delivery): void {
    this.putStored(sessionId, { seq, delivery: writeDelivery(this.#writer, delivery) });
  }

  /** @returns what tells the delivery from any other of the session: the message, and the share group it came by. */
  putStored(sessionId: number, { seq, delivery }: StoredDelivery): string {
    const { message, qos, shared } = readDelivery(delivery);
    this.#sql.exec(
      "INSERT OR REPLACE INTO queue VALUES (?, ?, ?, ?, ?, ?)",
      sessionId,
      seq,
      messageBytes(message),
      qos,
      shared === undefined ? 0 : 1,
      delivery,
    );
    return deliveryKey({ message, shared });
  }

  loadDelivery(sessionId: number, seq: number): Delivery | undefined {
    const row = this.#sql
      .exec<{ delivery: ArrayBuffer }>("SELECT delivery FROM queue WHERE session = ? AND seq = ?", sessionId, seq)
      .toArray()[0];
    return row && readDelivery(new Uint8Array(row.delivery));
  }

  deleteDeliveries(sessionId: number, seqs: Iterable<number>): void {
    for (const seq of seqs) this.#sql.exec("DELETE FROM queue WHERE session = ? AND seq = ?", sessionId, seq);
  }

  deleteDeliveriesBelow(sessionId: number, seq: number): void {
    this.#sql.exec("DELETE FROM queue WHERE session = ? AND seq < ?", sessionId, seq);
  }

  /** Whether the delivery is new to the session; it is known from then on. */
  addKnown(sessionId: number, key: string, now: number): boolean {
    if (now - this.#forgotAt > limits.knownMs) {
      this.#forgotAt = now;
      this.#sql.exec("DELETE FROM known WHERE at < ?", now - limits.knownMs);
    }
    const { rowsWritten } = this.#sql.exec("INSERT OR IGNORE INTO known VALUES (?, ?, ?)", sessionId, key, now);
    return rowsWritten > 0;
  }

  /** The latest that the session has been given, for a node that takes it over. */
  knownKeys(sessionId: number): string[] {
    const rows = this.#sql.exec<{ key: string }>(
      "SELECT key FROM known WHERE session = ? ORDER BY at DESC LIMIT ?",
      sessionId,
      limits.knownMovedMax,
    );
    return [...rows].map((row) => row.key);
  }

  /** One page of a session's messages by rising seq, at least one if there is any. */
  page(sessionId: number, afterSeq: number, bytesMax: number): StoredDelivery[] {
    const page: StoredDelivery[] = [];
    let bytes = 0;
    const rows = this.#sql.exec<{ seq: number; delivery: ArrayBuffer }>(
      "SELECT seq, delivery FROM queue WHERE session = ? AND seq > ? ORDER BY seq",
      sessionId,
      afterSeq,
    );
    for (const row of rows) {
      bytes += row.delivery.byteLength;
      if (page.length > 0 && bytes > bytesMax) break;
      page.push({ seq: row.seq, delivery: new Uint8Array(row.delivery) });
    }
    return page;
  }
}

function* storedMessages(
  rows: Iterable<{ seq: number; bytes: number; qos: number; shared: number }>,
): Generator<StoredMessage> {
  for (const { seq, bytes, qos, shared } of rows) yield { seq, bytes, qos: qos as QoS, shared: shared === 1 };
}

/** flags u8 (QoS, retain, shared), count u16 and subscription ids u32, the share key if any, the message. */
function writeDelivery(writer: ByteWriter, { qos, retain, subscriptionIds, shared, message }: Delivery): Uint8Array {
  writer.u8(qos | (retain ? 4 : 0) | (shared === undefined ? 0 : 8)).u16(subscriptionIds.length);
  for (const id of subscriptionIds) writer.u32(id);
  if (shared !== undefined) writer.string(shared);
  writeMessage(writer, message);
  return writer.take();
}

/** A message may come to a session twice, as a share group's member and by a subscription of its own. */
export function deliveryKey({ message, shared }: Pick<Delivery, "message" | "shared">): string {
  return `${message.id} ${shared ?? ""}`;
}

export function readDelivery(bytes: Uint8Array): Delivery {
  const reader = new ByteReader(bytes);
  const flags = reader.u8();
  const subscriptionIds: number[] = [];
  for (let count = reader.u16(); count > 0; count--) subscriptionIds.push(reader.u32());
  const shared = (flags & 8) === 0 ? undefined : reader.string();
  return { qos: (flags & 3) as QoS, retain: (flags & 4) !== 0, subscriptionIds, shared, message: readMessage(reader) };
}

function writeWill(writer: ByteWriter, will: Will): Uint8Array {
  return writer
    .u8(will.qos | (will.retain ? 4 : 0) | (will.messageExpiryInterval === undefined ? 0 : 8))
    .u32(will.messageExpiryInterval ?? 0)
    .u32(will.delaySeconds)
    .string(will.topic)
    .blob(will.properties)
    .blob(will.payload)
    .take();
}

function readWill(bytes: Uint8Array): Will {
  const reader = new ByteReader(bytes);
  const flags = reader.u8();
  const expiry = reader.u32();
  return {
    qos: (flags & 3) as QoS,
    retain: (flags & 4) !== 0,
    messageExpiryInterval: (flags & 8) === 0 ? undefined : expiry,
    delaySeconds: reader.u32(),
    topic: reader.string(),
    properties: reader.blob(),
    payload: reader.blob(),
  };
}
