/**
 * The sessions of a node on its disk.
 *
 *   session       one row each: who, when it is due, its will
 *   connection    one row per open connection: a session that has one and no socket has lost it in a crash
 *   subscription  one row per session and filter; messages from behind `since` are for it, in the node's log if `logged`
 *   adoption      one row per session that is on its way here from another node
 *   queue         one row per message that waits for one session alone: a share group's, a retained one, one that came
 *                 from another node, and what a transient session cannot hold in memory
 *
 * The rest of a session is in its checkpoint (checkpoints.ts) and the log (message-log.ts). A checkpoint may be older than
 * these: messages up to its `sentUpTo` count only when it names them as inflight, later ones are queued. So a message is
 * written once when it comes, and acknowledgements cost no row of their own.
 */
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import type { ConnectionFacts } from "../../mqtt/channel.ts";
import { limits } from "../../mqtt/limits.ts";
import { messageBytes, readMessage, writeMessage, type QoS } from "../../mqtt/message.ts";
import { MessageIdSet } from "../../mqtt/message-id-set.ts";
import type { Subscriber } from "../../cluster/subscription-table.ts";
import { firstPage, type FirstPage } from "../page.ts";
import type { Sql } from "../schema.ts";
import type { StoredDelivery } from "../rpc.ts";
import {
  atNoTime,
  neededFrom,
  type QueueMemory,
  Session,
  type Checkpoint,
  type Delivery,
  type Place,
  type StoredMessage,
  type Subscription,
  type Will,
} from "../../mqtt/session.ts";
import { Checkpoints } from "./checkpoints.ts";
import { newest, type MessageLog } from "./message-log.ts";

/** What a connection needs to go on after the object slept. */
export interface StoredConnection {
  readonly facts: ConnectionFacts;
  readonly aliases: readonly (readonly [number, string])[];
  readonly peer?: string | undefined;
}

export interface QueueBounds {
  readonly memory: QueueMemory;
  readonly queueLengthMax: number;
  /** So many messages of a session that was away are beyond its queue. */
  readonly countDropped: (count: number) => void;
}

type SessionRow = {
  id: number;
  client_id: string;
  epoch: number;
  username: string | null;
  durable: number;
  arrived_behind: number;
  expiry_interval: number;
  expires_at: number;
  will_at: number;
  will: ArrayBuffer | null;
  known: ArrayBuffer | null;
  connected: number;
};

export class SessionStore {
  readonly #sql: Sql;
  readonly #log: MessageLog;
  readonly #memory: QueueMemory;
  readonly #queueLengthMax: number;
  readonly #countDropped: (count: number) => void;
  readonly #checkpoints: Checkpoints;
  readonly #writer = new ByteWriter();

  constructor(sql: Sql, log: MessageLog, { memory, queueLengthMax, countDropped }: QueueBounds) {
    this.#sql = sql;
    this.#log = log;
    this.#memory = memory;
    this.#queueLengthMax = queueLengthMax;
    this.#countDropped = countDropped;
    this.#checkpoints = new Checkpoints(sql);
  }

  /** The next free short name of a session. */
  nextId(): number {
    return this.#sql.exec<{ id: number }>("SELECT coalesce(max(id), 0) + 1 AS id FROM session").one().id;
  }

  /** A page of the filters, and share groups, that sessions here subscribe by, in order. */
  filters(after: string): FirstPage<{ readonly filter: string }> {
    const query = "SELECT DISTINCT filter FROM subscription WHERE filter > ? ORDER BY filter LIMIT ?";
    const rows = this.#sql.exec<{ filter: string }>(query, after, limits.pageEntriesMax);
    return firstPage(rows, ({ filter }) => filter);
  }

  /** A page of the client ids that have a session here, in order, each with the epoch of its last opening. */
  clientIds(after: string): FirstPage<{ readonly clientId: string; readonly epoch: number }> {
    const query = "SELECT client_id AS clientId, epoch FROM session WHERE client_id > ? ORDER BY client_id LIMIT ?";
    const rows = this.#sql.exec<{ clientId: string; epoch: number }>(query, after, limits.pageEntriesMax);
    return firstPage(rows, ({ clientId }) => clientId);
  }

  /** Whatever a crash half-way left under names from this one on is not that of new sessions (G9). */
  clearFrom(id: number): void {
    this.#sql.exec("DELETE FROM queue WHERE session >= ?", id);
    this.#sql.exec("DELETE FROM subscription WHERE session >= ?", id);
    this.#sql.exec("DELETE FROM connection WHERE session >= ?", id);
    this.#checkpoints.deleteFrom(id);
  }

  #clear(id: number): void {
    this.#sql.exec("DELETE FROM queue WHERE session = ?", id);
    this.#sql.exec("DELETE FROM subscription WHERE session = ?", id);
    this.#sql.exec("DELETE FROM connection WHERE session = ?", id);
    this.#checkpoints.delete(id);
  }

  load(clientId: string, now: number): Session | undefined {
    return this.#load("client_id = ?", clientId, now);
  }

  loadById(id: number, now: number): Session | undefined {
    return this.#load("id = ?", id, now);
  }

  #load(where: string, binding: string | number, now: number): Session | undefined {
    const row = this.#sql
      .exec<SessionRow>(
        `SELECT session.*, connection.session IS NOT NULL AS connected
           FROM session LEFT JOIN connection ON connection.session = session.id WHERE ${where}`,
        binding,
      )
      .toArray()[0];
    if (!row) return undefined;
    const session = new Session(row.id, row.client_id, this.#memory);
    session.epoch = row.epoch;
    session.username = row.username ?? undefined;
    session.connected = row.connected === 1;
    session.durable = row.durable === 1;
    session.arrivedBehind = row.arrived_behind;
    session.expiryInterval = row.expiry_interval;
    session.expiresAt = row.expires_at;
    session.willAt = row.will_at;
    session.will = row.will ? readWill(new Uint8Array(row.will)) : undefined;
    session.known = row.known ? readKnown(new Uint8Array(row.known), now) : undefined;
    for (const subscription of this.#subscriptionsOf(row.id)) session.subscribe(subscription);
    const checkpoint = this.#checkpoints.get(row.id);
    const logged = this.#log.waiting(row.id, neededFrom(checkpoint), now);
    const own = [...this.#queued(row.id)];
    const { messages, dropped } = newest(own, logged, {
      lengthMax: this.#queueLengthMax,
      inflight: new Set(checkpoint.inflight.map(({ seq }) => seq)),
    });
    this.#countDropped(dropped);
    session.restore(checkpoint, messages);
    // Also when it has no use for any of them.
    session.hasRows = own.length > 0;
    session.rowDirty = session.dirty = false;
    session.onDisk = true;
    return session;
  }

  /** Writes a session's row, new or changed. */
  put(session: Session): void {
    const due = [session.willAt, session.expiresAt].filter((at) => at > 0 && at !== atNoTime);
    this.#sql.exec(
      `INSERT INTO session (id, client_id, epoch, username, durable, expiry_interval, expires_at, will_at, due_at, will)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, username = excluded.username,
         durable = excluded.durable, expiry_interval = excluded.expiry_interval, expires_at = excluded.expires_at,
         will_at = excluded.will_at, due_at = excluded.due_at, will = excluded.will`,
      session.id,
      session.clientId,
      session.epoch,
      session.username ?? null,
      session.durable ? 1 : 0,
      session.expiryInterval,
      session.expiresAt,
      session.willAt,
      session.connected || due.length === 0 ? null : Math.min(...due),
      session.will ? writeWill(this.#writer, session.will) : null,
    );
    if (!session.connected) this.#sql.exec("DELETE FROM connection WHERE session = ?", session.id);
    session.rowDirty = false;
    session.onDisk = true;
  }

  /** Where a session comes from, when it comes. */
  putArrival({ id, arrivedBehind, known }: Session, now: number): void {
    const bytes = known ? writeKnown(this.#writer, known, now) : null;
    this.#sql.exec("UPDATE session SET arrived_behind = ?, known = ? WHERE id = ?", arrivedBehind, bytes, id);
  }

  /** The sessions that subscribe by the filter and came from another node behind a number. */
  *arrivedSince(filter: string, seq: number): Generator<number> {
    const rows = this.#sql.exec<{ id: number }>(
      "SELECT id FROM subscription JOIN session ON id = session WHERE filter = ? AND arrived_behind >= ?",
      filter,
      seq,
    );
    for (const { id } of rows.toArray()) yield id;
  }

  putCheckpoints(sessions: readonly Session[]): void {
    const checkpoints = sessions.map((session) => [session.id, session.checkpoint()] as const);
    this.#checkpoints.put(checkpoints);
    for (const [index, session] of sessions.entries()) {
      session.neededFrom = neededFrom(checkpoints[index]![1]);
      session.dirty = session.urgent = false;
    }
  }

  /** What was written last of a session that is not in memory. */
  checkpoint(id: number): Checkpoint {
    return this.#checkpoints.get(id);
  }

  /** From which number on a session that is not in memory needs its messages on disk. */
  neededFrom(id: number): number {
    return neededFrom(this.#checkpoints.get(id));
  }

  /** Whether one that is not in memory has sent messages among these that its client has not acknowledged. */
  hasInflight(id: number, upTo: number): boolean {
    return this.#checkpoints.get(id).inflight.some(({ seq, state }) => state === "publish" && seq <= upTo);
  }

  putConnection(id: number, connection: StoredConnection): void {
    this.#sql.exec("INSERT OR REPLACE INTO connection VALUES (?, ?)", id, JSON.stringify(connection));
  }

  loadConnection(id: number): StoredConnection | undefined {
    const row = this.#sql.exec<{ facts: string }>("SELECT facts FROM connection WHERE session = ?", id).toArray()[0];
    return row && (JSON.parse(row.facts) as StoredConnection);
  }

  /** Statements cost, so tables in which it has nothing are left alone. */
  delete({ id, hasRows, adopting, subscriptions }: Session): void {
    if (hasRows || adopting) this.#sql.exec("DELETE FROM queue WHERE session = ?", id);
    if (subscriptions.size > 0) this.#sql.exec("DELETE FROM subscription WHERE session = ?", id);
    this.#sql.exec("DELETE FROM connection WHERE session = ?", id);
    this.#checkpoints.delete(id);
    this.#sql.exec("DELETE FROM session WHERE id = ?", id);
  }

  // ---- adoptions --------------------------------------------------------------------------------------------------

  /** A session is on its way here: what is written of it counts when it is whole. */
  putAdoption(session: Session): void {
    this.#sql.exec("INSERT INTO adoption VALUES (?)", session.id);
    session.onDisk = true;
  }

  deleteAdoption(id: number): void {
    this.#sql.exec("DELETE FROM adoption WHERE session = ?", id);
  }

  /** What a crash has left of sessions that were on their way here. */
  clearAdoptions(): void {
    const rows = this.#sql.exec<{ session: number }>("SELECT session FROM adoption").toArray();
    for (const { session } of rows) {
      this.#clear(session);
      this.deleteAdoption(session);
    }
    if (rows.length > 0) this.#log.deleteUnread();
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
    return [...this.#sql.exec<{ session: number }>("SELECT session FROM connection")].map((row) => row.session);
  }

  count(): number {
    return this.#sql.exec<{ n: number }>("SELECT count(*) AS n FROM session").one().n;
  }

  // ---- subscriptions ----------------------------------------------------------------------------------------------

  putSubscription(
    { filter, subscriptionId, ...options }: Subscription,
    { sessionId, since, isLogged }: Subscriber,
  ): void {
    const bits =
      options.qos | (options.noLocal ? 4 : 0) | (options.retainAsPublished ? 8 : 0) | (options.retainHandling << 4);
    this.#sql.exec(
      "INSERT OR REPLACE INTO subscription VALUES (?, ?, ?, ?, ?, ?)",
      filter,
      sessionId,
      bits,
      subscriptionId,
      since,
      isLogged ? 1 : 0,
    );
  }

  deleteSubscription(sessionId: number, filter: string): void {
    this.#sql.exec("DELETE FROM subscription WHERE filter = ? AND session = ?", filter, sessionId);
  }

  *subscribers(filter: string): Generator<Subscriber> {
    const rows = this.#sql.exec<{ session: number; since: number; logged: number }>(
      "SELECT session, since, logged FROM subscription WHERE filter = ?",
      filter,
    );
    for (const { session, since, logged } of rows) yield { sessionId: session, since, isLogged: logged === 1 };
  }

  *#subscriptionsOf(sessionId: number): Generator<Subscription> {
    const rows = this.#sql.exec<{ filter: string; options: number; subscription_id: number }>(
      "SELECT filter, options, subscription_id FROM subscription WHERE session = ?",
      sessionId,
    );
    for (const { filter, options, subscription_id } of rows)
      yield { filter, ...subscriptionOptions(options), subscriptionId: subscription_id };
  }

  /** Of all sessions. */
  subscriptionCounts(): { all: number; shared: number } {
    return this.#sql
      .exec<{ all: number; shared: number }>(
        `SELECT count(*) AS "all", count(*) FILTER (WHERE filter GLOB '$share/*' OR filter GLOB '$queue/*') AS shared
           FROM subscription`,
      )
      .one();
  }

  // ---- messages of one session alone ------------------------------------------------------------------------------

  putDelivery(sessionId: number, seq: number, delivery: Delivery): void {
    this.putStored(sessionId, { seq, delivery: writeDelivery(this.#writer, delivery) });
  }

  putStored(sessionId: number, { seq, delivery }: StoredDelivery): Delivery {
    const read = readDelivery(delivery);
    this.#sql.exec(
      "INSERT OR REPLACE INTO queue VALUES (?, ?, ?, ?, ?)",
      sessionId,
      seq,
      messageBytes(read.message),
      read.shared === undefined ? 0 : 1,
      delivery,
    );
    return read;
  }

  loadDelivery(sessionId: number, seq: number): Delivery | undefined {
    const row = this.#sql
      .exec<{ delivery: ArrayBuffer }>("SELECT delivery FROM queue WHERE session = ? AND seq = ?", sessionId, seq)
      .toArray()[0];
    return row && readDelivery(new Uint8Array(row.delivery));
  }

  /** What is dropped of a session's queue; what the log has of it goes with the log. */
  deleteDeliveries(sessionId: number, places: Iterable<Place>): void {
    for (const { seq, filter } of places)
      if (filter === undefined) this.#sql.exec("DELETE FROM queue WHERE session = ? AND seq = ?", sessionId, seq);
  }

  deleteDeliveriesBelow(sessionId: number, seq: number): void {
    const below = Math.min(seq, Number.MAX_SAFE_INTEGER);
    this.#sql.exec("DELETE FROM queue WHERE session = ? AND seq < ?", sessionId, below);
  }

  /** What waits for a session alone behind a number. */
  deliveriesBehind(sessionId: number, seq: number): StoredDelivery[] {
    const rows = this.#sql.exec<{ seq: number; delivery: ArrayBuffer }>(
      "SELECT seq, delivery FROM queue WHERE session = ? AND seq > ? ORDER BY seq",
      sessionId,
      seq,
    );
    return [...rows].map((row) => ({ seq: row.seq, delivery: new Uint8Array(row.delivery) }));
  }

  *#queued(sessionId: number): Generator<StoredMessage> {
    const rows = this.#sql.exec<{ seq: number; bytes: number; shared: number }>(
      "SELECT seq, bytes, shared FROM queue WHERE session = ?",
      sessionId,
    );
    for (const { seq, bytes, shared } of rows) yield { seq, filter: undefined, bytes, shared: shared === 1 };
  }
}

/** As in a row of `subscription`. */
export function subscriptionOptions(bits: number): Omit<Subscription, "filter" | "subscriptionId"> {
  return {
    qos: (bits & 3) as QoS,
    noLocal: (bits & 4) !== 0,
    retainAsPublished: (bits & 8) !== 0,
    retainHandling: (bits >> 4) as 0 | 1 | 2,
  };
}

/** flags u8 (QoS, retain, shared), count u16 and subscription ids u32, the share key if any, the message. */
export function writeDelivery(
  writer: ByteWriter,
  { qos, retain, subscriptionIds, shared, message }: Delivery,
): Uint8Array {
  writer.u8(qos | (retain ? 4 : 0) | (shared === undefined ? 0 : 8)).u16(subscriptionIds.length);
  for (const id of subscriptionIds) writer.u32(id);
  if (shared !== undefined) writer.string(shared);
  writeMessage(writer, message);
  return writer.take();
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

/** When it was given up u48, then the set: it is of no use any more when nobody repeats what it knows. */
export function writeKnown(writer: ByteWriter, known: MessageIdSet, now: number): Uint8Array {
  writer.u48(now + limits.knownMs);
  known.write(writer);
  return writer.take();
}

function readKnown(bytes: Uint8Array, now: number): MessageIdSet | undefined {
  const reader = new ByteReader(bytes);
  return reader.u48() > now ? MessageIdSet.read(reader) : undefined;
}
