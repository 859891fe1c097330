/**
 * The sessions of a node: loaded, saved, ended.
 *
 * Memory is a cache: a session is loaded when something happens to it, and let go when nothing of it is in memory alone.
 * A durable session is written (checkpointed) at most `checkpointDelayMs` after a change, and at once where the protocol
 * says so (`urgent`). A transient session has nothing to survive but sleep: it is written when it has been quiet from one
 * look to the next, and one that ends before that has never been on disk. When checkpoints have moved on, the log is
 * trimmed of what nobody needs any more.
 */
import { limits } from "../../mqtt/limits.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import { atNoTime, Session, type Place, type Waiting } from "../../mqtt/session.ts";
import { matches } from "../../mqtt/topic.ts";
import { releaseRecord } from "../rpc.ts";
import type { Broker } from "./broker.ts";
import type { Reader } from "./message-log.ts";

export class Sessions {
  readonly #broker: Broker;
  readonly #loaded = new Map<number, Session>();
  readonly #idOf = new Map<string, number>();
  /** Changed sessions, and the revision at the last look. */
  readonly #dirty = new Map<Session, number>();
  readonly #urgent = new Set<Session>();
  /** Their connections have ended in this turn. */
  readonly #disconnected = new Set<Session>();
  /** Saved since the log was trimmed. */
  readonly #moved = new Set<number>();
  #saving: ReturnType<typeof setTimeout> | undefined;
  /** The next free short name; undefined: not looked for in this life. */
  #nextId: number | undefined;

  constructor(broker: Broker) {
    this.#broker = broker;
  }

  byId(id: number): Session | undefined {
    return this.#loaded.get(id) ?? this.#loadedNow(this.#broker.store.loadById(id, Date.now()));
  }

  /** One that is in memory. */
  loaded(id: number): Session | undefined {
    return this.#loaded.get(id);
  }

  /** Whether it is this node's session still. */
  has(session: Session): boolean {
    return this.#loaded.get(session.id) === session;
  }

  byClientId(clientId: string): Session | undefined {
    const id = this.#idOf.get(clientId);
    return id === undefined ? this.#loadedNow(this.#broker.store.load(clientId, Date.now())) : this.byId(id);
  }

  /** While it was away nobody counted what waits for it. */
  #loadedNow(session: Session | undefined): Session | undefined {
    if (!session) return undefined;
    const known = this.#loaded.get(session.id);
    if (known) return this.#keep(known);
    this.#keep(session);
    const { max_mqueue_len: lengthMax } = this.#broker.settings.mqtt;
    this.handleDropped(session, session.makeRoom(lengthMax, limits.mqueueBytesMax));
    if (session.dirty) this.touch(session);
    return session;
  }

  #keep(session: Session): Session {
    this.#loaded.set(session.id, session);
    this.#idOf.set(session.clientId, session.id);
    return session;
  }

  /** Its queue had no room for these. */
  handleDropped(session: Session, dropped: readonly Place[]): void {
    if (dropped.length === 0) return;
    this.#broker.metrics["delivery.dropped.queue_full"] += dropped.length;
    this.#broker.store.deleteDeliveries(session.id, dropped);
  }

  /** A session that is not on disk yet. */
  create(clientId: string): Session {
    const id = this.#findNextId();
    this.#nextId = id + 1;
    return this.#keep(new Session(id, clientId, this.#broker.queueMemory));
  }

  /** Whether another session has room; they are counted only when there may be too many. */
  hasRoom(): boolean {
    return this.#findNextId() <= limits.sessionsPerNodeMax || this.#broker.store.count() < limits.sessionsPerNodeMax;
  }

  #findNextId(): number {
    if (this.#nextId !== undefined) return this.#nextId;
    const { store } = this.#broker;
    this.#nextId = store.nextId();
    store.clearFrom(this.#nextId);
    return this.#nextId;
  }

  /** The session's connection on this node, if any, makes room. [MQTT-3.1.4-3] */
  closeConnection(session: Session): void {
    const connection = this.#broker.connectionOf(session.id);
    if (connection) {
      this.#broker.metrics["session.takenover"]++;
      connection.fail(takenOver());
    }
    this.#settleWithoutSocket(session);
    // Also one that has ended in this turn: before the next one is let in. [MQTT-3.1.4-3]
    this.#broker.closeSockets();
  }

  // ---- the end of connections and sessions ------------------------------------------------------------------------

  /** Its connection has ended: it is settled at the end of the turn, or before when its client is back. */
  handleDisconnected(session: Session): void {
    this.#disconnected.add(session);
  }

  /** A commit costs more than the end of a session. @returns how many there were. */
  settleDisconnected(): number {
    const { size } = this.#disconnected;
    for (const session of this.#disconnected) {
      try {
        this.#settleWithoutSocket(session);
      } catch (error) {
        console.error(`the end of the connection of ${session.clientId} could not be handled: ${String(error)}`);
      }
    }
    this.#disconnected.clear();
    return size;
  }

  #settleWithoutSocket(session: Session): void {
    if (!this.has(session) || !session.connected || this.#broker.connectionOf(session.id)) return;
    const now = Date.now();
    session.detach(now);
    this.#settle(session, now);
  }

  /** Disk says connected, but no socket is there: the node crashed or was deployed. Some at a time. */
  handleLost(ids: readonly number[]): void {
    for (const id of ids.slice(0, limits.pageMessagesMax)) {
      const session = this.byId(id);
      if (session) this.#settleWithoutSocket(session);
    }
    const rest = ids.slice(limits.pageMessagesMax);
    if (rest.length > 0) setImmediate(() => this.handleLost(rest));
  }

  /** @returns whether the session has ended by its expiry. */
  publishDueWill(session: Session, now: number): boolean {
    const { will, ended } = session.due(now);
    if (will) this.#broker.publishWill(session.clientId, will, now);
    return ended;
  }

  /** What is due of a session without a connection. */
  #settle(session: Session, now: number): void {
    const broker = this.#broker;
    if (session.connected || session.adopting || !this.has(session)) return;
    if (this.publishDueWill(session, now))
      // While its client is being let in, its claim is the new session's.
      return broker.claims.isOpening(session.clientId) ? this.discard(session) : this.end(session);
    broker.changeRoutes(broker.table.connectionChanged(session.subscriptions.keys()));
    this.save([session]);
    for (const at of [session.willAt, session.expiresAt]) if (at > 0 && at !== atNoTime) broker.host.ringAt(at);
  }

  /** Settles what is due by now. @returns when the next is, in ms since the epoch, or Infinity. */
  handleDue(now: number): number {
    for (const id of this.#broker.store.dueAt(now)) {
      const session = this.byId(id);
      if (session) this.#settle(session, now);
    }
    return this.#broker.store.nextDue() ?? Infinity;
  }

  /** The session is over: its subscriptions, its messages, its claim. */
  end(session: Session): void {
    this.discard(session);
    this.#broker.core.add(releaseRecord(session.clientId, session.epoch), () => {});
  }

  /** ... but for its claim. */
  discard(session: Session): void {
    const broker = this.#broker;
    const now = Date.now();
    if (session.will) broker.publishWill(session.clientId, session.will, now);
    const left = [...session.redispatchable(broker.dispatcher.load(session, now))];
    this.forget(session);
    for (const delivery of left) broker.passOn(delivery);
    broker.metrics["session.terminated"]++;
  }

  forget(session: Session): void {
    const broker = this.#broker;
    for (const filter of session.subscriptions.keys()) broker.changeRoutes([broker.table.remove(filter, session.id)]);
    if (session.onDisk) broker.store.delete(session);
    if (session.durable) for (const filter of session.subscriptions.keys()) broker.log.handleReaderLeft(filter);
    if (broker.log.hasUnexamined) this.saveSoon();
    this.unload(session);
    this.#dirty.delete(session);
    this.#urgent.delete(session);
  }

  // ---- the log ----------------------------------------------------------------------------------------------------

  /** The durable sessions that subscribe by a filter, as the log sees them. */
  *readersOf(filter: string): Generator<Reader> {
    const { table, store } = this.#broker;
    for (const { sessionId, since, isLogged } of table.subscribers(filter)) {
      if (!isLogged) continue;
      const neededFrom = this.#loaded.get(sessionId)?.neededFrom ?? store.neededFrom(sessionId);
      yield { sessionId, neededFrom: Math.max(neededFrom, since + 1) };
    }
  }

  /**
   * The log keeps these messages of a stream no longer, the numbers rising. What a client was sent and has not
   * acknowledged becomes the session's own; what still waits is beyond the length of a queue, and dropped.
   */
  handleCut(filter: string, seqs: readonly number[]): void {
    const last = seqs.at(-1)!;
    for (const { sessionId, neededFrom } of this.readersOf(filter)) {
      if (neededFrom > last) continue;
      const loaded = this.#loaded.get(sessionId);
      const session = loaded ?? (this.#broker.store.hasInflight(sessionId, last) ? this.byId(sessionId) : undefined);
      if (session) {
        this.#keepOwn(session, filter, last);
        this.#letGo(session);
      } else {
        const lost = seqs.filter((seq) => seq >= neededFrom).length;
        this.#broker.metrics["delivery.dropped.queue_full"] += lost;
      }
    }
  }

  /** What the session finds under a filter in the log, up to a number, it has on its own from now on. */
  #keepOwn(session: Session, filter: string, upTo: number): void {
    this.#keepOwnWhere(session, (entry) => entry.filter === filter && entry.seq <= upTo);
  }

  /** A subscription changes: what waits by it, or would by the new one, is sent as it was subscribed when it came. */
  keepAsSubscribed(session: Session, filter: string): void {
    this.#keepOwnWhere(session, (entry, topic) => entry.filter === filter || matches(filter, topic));
  }

  #keepOwnWhere(session: Session, isMeant: (entry: Waiting, topic: string) => boolean): void {
    const { store, dispatcher } = this.#broker;
    const load = dispatcher.load(session, Date.now());
    for (const entry of session.waiting()) {
      if (entry.filter === undefined) continue;
      const delivery = entry.delivery ?? load(entry);
      if (!delivery || !isMeant(entry, delivery.message.topic)) continue;
      store.putDelivery(session.id, entry.seq, delivery);
      session.own(entry);
    }
  }

  // ---- saving -----------------------------------------------------------------------------------------------------

  touch(session: Session): void {
    // One that is being adopted is on disk when it is whole, and not before.
    if ((!session.dirty && !session.rowDirty) || session.adopting || !this.has(session)) return;
    if (!this.#dirty.has(session)) this.#dirty.set(session, -1);
    if (session.urgent) this.#urgent.add(session);
    this.saveSoon();
  }

  /** What must be on disk before anything else is sent. */
  saveUrgent(): void {
    if (this.#urgent.size > 0) this.save([...this.#urgent]);
  }

  /** A timer while anything is unwritten: it also keeps the object from sleeping. */
  saveSoon(): void {
    this.#saving ??= setTimeout(() => {
      this.#saving = undefined;
      this.#broker.saveConnections();
      const quiet: Session[] = [];
      for (const [session, revision] of this.#dirty) {
        if (session.durable || session.revision === revision) quiet.push(session);
        else this.#dirty.set(session, session.revision);
      }
      this.save(quiet);
      this.#broker.log.trim(this.#moved);
      this.#moved.clear();
      if (this.#dirty.size > 0) this.saveSoon();
    }, limits.checkpointDelayMs);
  }

  /** Who reads of all sessions on disk finds all. */
  saveNew(): void {
    this.save([...this.#dirty.keys()].filter((session) => !session.onDisk));
  }

  save(sessions: readonly Session[]): void {
    const { store } = this.#broker;
    const whole = sessions.filter((session) => this.#savesOwn(session));
    store.putCheckpoints(whole.filter((session) => session.dirty));
    for (const session of whole) {
      this.#dirty.delete(session);
      this.#urgent.delete(session);
      if (session.durable) this.#moved.add(session.id);
      this.#letGo(session);
    }
  }

  /** One session that cannot be written is not the others' trouble: it loses its connection (G5). */
  #savesOwn(session: Session): boolean {
    const { store } = this.#broker;
    try {
      for (const { seq, delivery } of session.unwritten()) store.putDelivery(session.id, seq, delivery);
      if (session.hasRows) store.deleteDeliveriesBelow(session.id, session.lowestSeq);
      if (session.rowDirty) {
        store.put(session);
        this.#broker.connectionOf(session.id)?.write();
      }
      return true;
    } catch (error) {
      console.error(`${session.clientId} could not be saved: ${String(error)}`);
      this.#dirty.delete(session);
      this.#urgent.delete(session);
      this.#broker.connectionOf(session.id)?.fail(error);
      return false;
    }
  }

  #letGo(session: Session): void {
    if (session.atRest && !this.#broker.claims.isOpening(session.clientId)) this.unload(session);
  }

  /** Memory is a cache. */
  unload(session: Session): void {
    session.release();
    this.#loaded.delete(session.id);
    if (this.#idOf.get(session.clientId) === session.id) this.#idOf.delete(session.clientId);
  }
}

/** What a connection is told whose client id another one has. */
export function takenOver(): MqttError {
  return new MqttError(ReasonCode.SessionTakenOver, "another connection has this client identifier"); // [MQTT-3.1.4-3]
}
