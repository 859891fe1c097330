/**
 * The sessions of a node: loaded, saved, ended.
 *
 * Memory is a cache: a session is loaded when something happens to it, and let go when nothing of it is in memory alone.
 * A durable session is written (checkpointed) at most `checkpointDelayMs` after a change, and at once where the protocol
 * says so (`urgent`). A transient session has nothing to survive but sleep: it is written when it has been quiet from one
 * look to the next.
 */
import type { RouteChange } from "../../cluster/subscription-table.ts";
import { limits } from "../../mqtt/limits.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import { atNoTime, Session } from "../../mqtt/session.ts";
import { releaseRecord } from "../rpc.ts";
import type { Broker } from "./broker.ts";

export class Sessions {
  readonly #broker: Broker;
  readonly #loaded = new Map<number, Session>();
  readonly #idOf = new Map<string, number>();
  /** Changed sessions, and the revision at the last look. */
  readonly #dirty = new Map<Session, number>();
  readonly #urgent = new Set<Session>();
  #saving: ReturnType<typeof setTimeout> | undefined;
  #nextId = 0;

  constructor(broker: Broker) {
    this.#broker = broker;
  }

  byId(id: number): Session | undefined {
    return this.#loaded.get(id) ?? this.#keep(this.#broker.store.loadById(id));
  }

  /** Whether it is this node's session still. */
  has(session: Session): boolean {
    return this.#loaded.get(session.id) === session;
  }

  byClientId(clientId: string): Session | undefined {
    const id = this.#idOf.get(clientId);
    return id === undefined ? this.#keep(this.#broker.store.load(clientId)) : this.byId(id);
  }

  #keep(session: Session | undefined): Session | undefined {
    if (!session) return undefined;
    this.#loaded.set(session.id, session);
    this.#idOf.set(session.clientId, session.id);
    return session;
  }

  /** A session that is not on disk yet. */
  create(clientId: string): Session {
    const { store } = this.#broker;
    this.#nextId = Math.max(this.#nextId, store.nextId());
    store.clear(this.#nextId);
    return this.#keep(new Session(this.#nextId++, clientId))!;
  }

  /** The session's connection on this node, if any, makes room. [MQTT-3.1.4-3] */
  closeConnection(session: Session): void {
    const connection = this.#broker.connectionOf(session.id);
    if (!connection) return this.handleLost([session.id]);
    this.#broker.metrics.add("session.takenover");
    connection.fail(takenOver());
  }

  // ---- the end of connections and sessions ------------------------------------------------------------------------

  handleDisconnected(session: Session): void {
    const now = Date.now();
    session.detach(now);
    this.#settle(session, now);
  }

  /** Disk says connected, but no socket is there: the node crashed or was deployed. Some at a time. */
  handleLost(ids: readonly number[]): void {
    const now = Date.now();
    for (const id of ids.slice(0, limits.pageMessagesMax)) {
      const session = this.byId(id);
      if (!session?.connected || this.#broker.connectionOf(id)) continue;
      session.detach(now);
      this.#settle(session, now);
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
    if (this.publishDueWill(session, now)) return this.end(session);
    const changes: RouteChange[] = broker.table.setConnected(session.id, session.subscriptions.keys(), false);
    broker.changeRoutes(changes);
    this.#trySave(session);
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
    const broker = this.#broker;
    const load = (seq: number) => broker.store.loadDelivery(session.id, seq);
    if (session.will) broker.publishWill(session.clientId, session.will, Date.now());
    const left = [...session.redispatchable(load)];
    this.forget(session);
    for (const delivery of left) broker.passOn(delivery);
    this.#release(session.clientId, session.epoch);
    broker.metrics.add("session.terminated");
  }

  #release(clientId: string, epoch: number): void {
    this.#broker.core.outbox.add(releaseRecord(clientId, epoch), (reasonCode) => {
      if (reasonCode === undefined) this.#release(clientId, epoch);
    });
  }

  forget(session: Session): void {
    const broker = this.#broker;
    for (const filter of session.subscriptions.keys()) broker.changeRoutes([broker.table.remove(session.id, filter)]);
    broker.store.delete(session.id);
    this.#loaded.delete(session.id);
    if (this.#idOf.get(session.clientId) === session.id) this.#idOf.delete(session.clientId);
    this.#dirty.delete(session);
    this.#urgent.delete(session);
  }

  // ---- saving -----------------------------------------------------------------------------------------------------

  touch(session: Session): void {
    // One that is being adopted is on disk when it is whole, and not before.
    if (!session.dirty || session.adopting || !this.has(session)) return;
    if (!this.#dirty.has(session)) this.#dirty.set(session, -1);
    if (session.urgent) this.#urgent.add(session);
    this.saveSoon();
  }

  /** What must be on disk before anything else is sent. */
  saveUrgent(): void {
    for (const session of this.#urgent) this.#trySave(session);
  }

  /** A timer while anything is unwritten: it also keeps the object from sleeping. */
  saveSoon(): void {
    this.#saving ??= setTimeout(() => {
      this.#saving = undefined;
      this.#broker.saveConnections();
      for (const [session, revision] of this.#dirty) {
        if (session.durable || session.revision === revision) this.#trySave(session);
        else this.#dirty.set(session, session.revision);
      }
      if (this.#dirty.size > 0) this.saveSoon();
    }, limits.checkpointDelayMs);
  }

  /** One session that cannot be written is not the others' trouble: it loses its connection (G5). */
  #trySave(session: Session): void {
    try {
      this.save(session);
    } catch (error) {
      console.error(`${session.clientId} could not be saved: ${String(error)}`);
      this.#dirty.delete(session);
      this.#urgent.delete(session);
      this.#broker.connectionOf(session.id)?.fail(error);
    }
    if (session.atRest && !this.#broker.claims.isOpening(session.clientId)) this.unload(session);
  }

  /** Memory is a cache. */
  unload(session: Session): void {
    this.#loaded.delete(session.id);
    this.#idOf.delete(session.clientId);
  }

  save(session: Session): void {
    const { store } = this.#broker;
    for (const { seq, delivery } of session.unwritten()) store.putDelivery(session.id, seq, delivery);
    store.deleteDeliveriesBelow(session.id, session.lowestSeq);
    store.save(session);
    this.#dirty.delete(session);
    this.#urgent.delete(session);
  }
}

/** What a connection is told whose client id another one has. */
export function takenOver(): MqttError {
  return new MqttError(ReasonCode.SessionTakenOver, "another connection has this client identifier"); // [MQTT-3.1.4-3]
}
