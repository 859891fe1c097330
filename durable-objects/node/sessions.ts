/**
 * The sessions of a node: opened and claimed, moved, saved, ended.
 *
 * One client id, one session, in the whole cluster (G4). A connection first claims its client id at the core, which
 * numbers the claims (`epoch`) and names the node that had it before; that node closes its connection and hands the
 * session over. Of two claims the later one wins, whatever the order in which their messages arrive: a node that is
 * asked for a session waits for its own older claim of it and refuses when its own is newer. So waiting only ever goes
 * from newer claims to older ones, and cannot go round.
 *
 * Memory is a cache: a session is loaded when something happens to it. A durable session is written (checkpointed) at
 * most `checkpointDelayMs` after a change, and at once where the protocol says so (`urgent`). A transient session has
 * nothing to survive but sleep: it is written when it has been quiet from one look to the next.
 */
import type { NodeName } from "../../cluster/name.ts";
import type { RouteChange } from "../../cluster/subscription-table.ts";
import type { OpenRequest } from "../../mqtt/channel.ts";
import { limits } from "../../mqtt/limits.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import { atNoTime, Session } from "../../mqtt/session.ts";
import { fenceRecord, openedRecord, releaseRecord, type Claim, type MovedSession, type TakenOver } from "../rpc.ts";
import type { Broker } from "./broker.ts";
import type { Connection } from "./connection.ts";
import { deliveryKey, readDelivery, type StoredDelivery } from "./session-store.ts";

/** A connection on its way to its session. */
interface Opening {
  readonly connection: Connection;
  /** undefined: superseded before it claimed. */
  readonly claim: Promise<Claim | undefined>;
  readonly done: Promise<void>;
  /** The one that this one waits for before it claims. */
  before: Opening | undefined;
  superseded: boolean;
}

export class Sessions {
  readonly #broker: Broker;
  readonly #loaded = new Map<number, Session>();
  readonly #idOf = new Map<string, number>();
  readonly #openings = new Map<string, Opening>();
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

  // ---- opening ----------------------------------------------------------------------------------------------------

  async open(connection: Connection, request: OpenRequest): Promise<void> {
    const { clientId } = request;
    if (!this.byClientId(clientId) && this.#broker.store.count() >= limits.sessionsPerNodeMax)
      return connection.fail(new MqttError(ReasonCode.QuotaExceeded, "the node has no room for another session"));
    const before = this.#openings.get(clientId);
    if (before) supersede(before);
    const { promise: done, resolve } = Promise.withResolvers<void>();
    const claim = (before?.done ?? Promise.resolve()).then(() => {
      opening.before = undefined;
      return opening.superseded ? undefined : this.#broker.core.claim(clientId);
    });
    const opening: Opening = { connection, claim, done, before, superseded: false };
    this.#openings.set(clientId, opening);
    try {
      await this.#open(opening, request);
    } finally {
      if (this.#openings.get(clientId) === opening) this.#openings.delete(clientId);
      resolve();
    }
  }

  async #open(opening: Opening, request: OpenRequest): Promise<void> {
    const broker = this.#broker;
    const { connection } = opening;
    const { clientId } = request;
    const claim = await opening.claim;
    if (!claim) return;
    const { epoch, holders } = claim;
    // The latest session is the one to go on with; older ones, left by failures, end where they are.
    let resume = !request.cleanStart;
    let isAllHere = true;
    for (const holder of holders) {
      const taken = await broker.host.nodeAt(holder).takeOver(clientId, epoch, resume);
      if (taken.kind === "superseded") opening.superseded = true;
      if (opening.superseded) break;
      if (taken.kind !== "session") continue;
      const own = this.byClientId(clientId);
      // A copy is older when it was taken over before and its giver did not hear that it was done.
      const isNewer = !own || own.epoch < taken.session.epoch;
      const lastSeq = isNewer ? await this.#adopt(clientId, epoch, holder, taken.session) : Infinity;
      if (!(await this.#dismiss(holder, clientId, epoch, lastSeq))) isAllHere = false;
      resume = false;
    }
    if (opening.superseded) return connection.fail(takenOver());
    const existing = this.byClientId(clientId);
    if (existing) this.#closeConnection(existing);
    const username = connection.facts?.username;
    const session = this.#resumeOrCreate(request, username);
    session.epoch = epoch;
    if (connection.closed) {
      // The client left while its session was sought: what there is stays, as after any lost connection.
      if (session.detached) broker.store.save(session);
      else this.end(session);
      return;
    }
    const facts = connection.facts!;
    const sessionPresent = session.detached;
    broker.metrics.add("client.connected");
    broker.metrics.add(sessionPresent ? "session.resumed" : "session.created");
    session.username = username;
    session.expiryInterval = request.expiryInterval;
    session.will = request.will;
    session.attach(facts.receiveMaximum);
    broker.bind(session, connection);
    broker.changeRoutes(broker.table.setConnected(session.id, session.subscriptions.keys(), true));
    if (sessionPresent) broker.store.save(session);
    else broker.store.insert(session);
    broker.store.saveConnection(session.id, { facts, aliases: [] });
    if (holders.length > 0 && isAllHere) broker.core.outbox.add(openedRecord(clientId, epoch), () => {});
    connection.channel.handleOpened(session, sessionPresent);
    connection.perform();
    connection.process(Date.now());
  }

  /** The session to go on with. One that was there before has been detached, and so has a deadline. */
  #resumeOrCreate({ clientId, cleanStart }: OpenRequest, username: string | undefined): Session {
    const existing = this.byClientId(clientId);
    if (existing) {
      const { will, ended } = existing.due(Date.now());
      if (will) this.#broker.publishWill(clientId, will, Date.now());
      // A session is its user's: whoever else has the client id does not get what was meant for them (G9).
      if (!cleanStart && !ended && existing.username === username) return existing; // [MQTT-3.1.2-5]
      this.end(existing); // [MQTT-3.1.2-4]
    }
    return this.#create(clientId);
  }

  #create(clientId: string): Session {
    const { store } = this.#broker;
    this.#nextId = Math.max(this.#nextId, store.nextId());
    store.clear(this.#nextId);
    return this.#keep(new Session(this.#nextId++, clientId))!;
  }

  /** The session's connection on this node, if any, makes room. [MQTT-3.1.4-3] */
  #closeConnection(session: Session): void {
    const connection = this.#broker.connectionOf(session.id);
    if (!connection) return this.handleLost([session.id]);
    this.#broker.metrics.add("session.takenover");
    connection.fail(takenOver());
  }

  // ---- moving between nodes ---------------------------------------------------------------------------------------

  /** This node had the client id; another one has claimed it. */
  async takeOver(clientId: string, epoch: number, resume: boolean): Promise<TakenOver> {
    let opening = this.#openings.get(clientId);
    // The one that has claimed: who waits behind it will have a newer claim, and waiting for that could go round.
    while (opening?.before) opening = opening.before;
    if (opening) {
      const own = await opening.claim.catch(() => undefined);
      if (own && own.epoch > epoch) return { kind: "superseded" };
      supersede(opening);
      await opening.done;
    }
    const connected = this.byClientId(clientId);
    if (connected && connected.epoch > epoch) return { kind: "superseded" };
    if (connected) this.#closeConnection(connected);
    // A transient session has ended with its connection.
    const session = this.byClientId(clientId);
    if (!session) return { kind: "none" };
    const { will, ended } = session.due(Date.now());
    if (will) this.#broker.publishWill(clientId, will, Date.now());
    if (!resume || ended) {
      this.end(session);
      return { kind: "none" };
    }
    // The new connection comes before the will's delay is over. [MQTT-3.1.3-9]
    session.will = undefined;
    this.#save(session);
    return {
      kind: "session",
      session: {
        epoch: session.epoch,
        expiryInterval: session.expiryInterval,
        username: session.username,
        subscriptions: [...session.subscriptions.values()],
        checkpoint: session.checkpoint(),
      },
    };
  }

  takeOverMessages(clientId: string, epoch: number, afterSeq: number): StoredDelivery[] {
    const session = this.byClientId(clientId);
    if (!session || session.epoch > epoch) return [];
    return this.#broker.store.page(session.id, afterSeq, limits.pageBytesMax);
  }

  takeOverDone(clientId: string, epoch: number, afterSeq: number): void {
    const session = this.byClientId(clientId);
    if (!session || session.connected || session.epoch >= epoch) return;
    const { store } = this.#broker;
    const late = store.page(session.id, afterSeq, Infinity).map(({ delivery }) => readDelivery(delivery));
    this.#forget(session);
    for (const { message, shared } of late) if (shared !== undefined) this.#broker.publishOwn(message, shared);
  }

  /**
   * Takes the session in, its routes first: what is published meanwhile comes here too, numbered behind all that the
   * previous node can have, and what came to both is told by its message id.
   * @returns the number of the last message that the previous node gave.
   */
  async #adopt(clientId: string, epoch: number, previous: NodeName, moved: MovedSession): Promise<number> {
    const broker = this.#broker;
    const old = this.byClientId(clientId);
    if (old) this.#forget(old);
    const arrivalsFrom = moved.checkpoint.nextSeq + broker.settings.mqtt.max_mqueue_len * 1000;
    const session = this.#create(clientId);
    session.expiryInterval = moved.expiryInterval;
    session.username = moved.username;
    session.epoch = epoch;
    session.adopting = true;
    session.detach(Date.now());
    session.restore({ ...moved.checkpoint, nextSeq: arrivalsFrom }, []);
    for (const subscription of moved.subscriptions) {
      session.subscribe(subscription);
      broker.changeRoutes([broker.table.add(session, subscription, false)]);
    }
    try {
      return await this.#moveMessages(session, epoch, previous, moved, arrivalsFrom);
    } catch (error) {
      // Half a session is none: the registry remembers who has it whole.
      this.#forget(session);
      throw error;
    }
  }

  async #moveMessages(
    session: Session,
    epoch: number,
    previous: NodeName,
    moved: MovedSession,
    arrivalsFrom: number,
  ): Promise<number> {
    const broker = this.#broker;
    const { clientId } = session;
    await this.#fence();
    await broker.core.settled(previous);
    const node = broker.host.nodeAt(previous);
    const ids = new Set<string>();
    let afterSeq = 0;
    for (;;) {
      const page = await node.takeOverMessages(clientId, epoch, afterSeq);
      if (page.length === 0) break;
      for (const stored of page) ids.add(broker.store.putStored(session.id, stored));
      afterSeq = page.at(-1)!.seq;
    }
    for (const { seq, delivery } of broker.store.page(session.id, arrivalsFrom - 1, Infinity))
      if (ids.has(deliveryKey(readDelivery(delivery)))) broker.store.deleteDeliveries(session.id, [seq]);
    for (const subscription of moved.subscriptions) broker.store.putSubscription(session.id, subscription);
    broker.store.insert(session);
    this.#loaded.delete(session.id); // to be loaded anew, with all its messages
    return afterSeq;
  }

  /** The session is here now, whether the giver's answer comes or not. @returns whether it came. */
  #dismiss(giver: NodeName, clientId: string, epoch: number, lastSeq: number): Promise<boolean> {
    const done = this.#broker.host.nodeAt(giver).takeOverDone(clientId, epoch, lastSeq);
    return done.then(
      () => true,
      () => false,
    );
  }

  #fence(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#broker.core.outbox.add(fenceRecord(), (reasonCode) => {
        if (reasonCode === undefined) reject(new Error("the core does not answer"));
        else resolve();
      });
    });
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

  /** What is due of a session without a connection. */
  #settle(session: Session, now: number): void {
    const broker = this.#broker;
    if (session.connected || session.adopting || !this.has(session)) return;
    const { will, ended } = session.due(now);
    if (will) broker.publishWill(session.clientId, will, now);
    if (ended) return this.end(session);
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
    this.#forget(session);
    for (const { message, shared } of left) broker.publishOwn(message, shared!);
    this.#release(session.clientId, session.epoch);
    broker.metrics.add("session.terminated");
  }

  #release(clientId: string, epoch: number): void {
    this.#broker.core.outbox.add(releaseRecord(clientId, epoch), (reasonCode) => {
      if (reasonCode === undefined) this.#release(clientId, epoch);
    });
  }

  #forget(session: Session): void {
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
    if (!session.dirty || !this.has(session)) return;
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
      this.#save(session);
    } catch (error) {
      console.error(`${session.clientId} could not be saved: ${String(error)}`);
      this.#dirty.delete(session);
      this.#urgent.delete(session);
      this.#broker.connectionOf(session.id)?.fail(error);
    }
    if (session.atRest && !this.#openings.has(session.clientId)) this.#unload(session);
  }

  /** Memory is a cache. */
  #unload(session: Session): void {
    this.#loaded.delete(session.id);
    this.#idOf.delete(session.clientId);
  }

  #save(session: Session): void {
    const { store } = this.#broker;
    for (const { seq, delivery } of session.unwritten()) store.putDelivery(session.id, seq, delivery);
    store.deleteDeliveriesBelow(session.id, session.lowestSeq);
    store.save(session);
    this.#dirty.delete(session);
    this.#urgent.delete(session);
  }
}

function supersede(opening: Opening): void {
  opening.superseded = true;
  opening.connection.fail(takenOver());
}

function takenOver(): MqttError {
  return new MqttError(ReasonCode.SessionTakenOver, "another connection has this client identifier"); // [MQTT-3.1.4-3]
}
