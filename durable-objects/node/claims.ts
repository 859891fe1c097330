/**
 * How a connection comes to its session.
 *
 * One client id, one session, in the whole cluster (G4). A connection first claims its client id at the core, which
 * numbers the claims (`epoch`) and names the nodes that may hold a session of it; they close its connection and hand
 * the session over. Of two claims the later one wins, whatever the order in which their messages arrive: a node that is
 * asked for a session waits for its own older claim of it and refuses when its own is newer. So waiting only ever goes
 * from newer claims to older ones, and cannot go round.
 *
 * The taker adds the session's routes before it asks for the messages, and the giver forgets last: make before break.
 */
import type { NodeName } from "../../cluster/name.ts";
import type { OpenRequest } from "../../mqtt/channel.ts";
import { limits } from "../../mqtt/limits.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import { atNoTime, type Session } from "../../mqtt/session.ts";
import {
  fenceRecord,
  openedRecord,
  rpcVersion,
  type Claim,
  type MovedSession,
  type StoredDelivery,
  type TakenOver,
} from "../rpc.ts";
import type { Broker } from "./broker.ts";
import type { Connection } from "./connection.ts";
import { deliveryKey, readDelivery } from "./session-store.ts";
import { takenOver, type Sessions } from "./sessions.ts";

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

export class Claims {
  readonly #broker: Broker;
  readonly #openings = new Map<string, Opening>();

  constructor(broker: Broker) {
    this.#broker = broker;
  }

  get #sessions(): Sessions {
    return this.#broker.sessions;
  }

  isOpening(clientId: string): boolean {
    return this.#openings.has(clientId);
  }

  async open(connection: Connection, request: OpenRequest): Promise<void> {
    const { clientId } = request.facts;
    if (!this.#sessions.byClientId(clientId) && this.#broker.store.count() >= limits.sessionsPerNodeMax)
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
    const { facts } = request;
    const { clientId, username } = facts;
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
      const own = this.#sessions.byClientId(clientId);
      // A copy is older when it was taken over before and its giver did not hear that it was done.
      const isNewer = !own || own.epoch < taken.session.epoch;
      const lastSeq = isNewer ? await this.#adopt(clientId, epoch, holder, taken.session) : Infinity;
      if (!(await this.#dismiss(holder, clientId, epoch, lastSeq))) isAllHere = false;
      resume = false;
    }
    if (opening.superseded) return connection.fail(takenOver());
    const existing = this.#sessions.byClientId(clientId);
    if (existing) this.#sessions.closeConnection(existing);
    const session = this.#resumeOrCreate(request);
    session.epoch = epoch;
    if (connection.closed) {
      // The client left while its session was sought: what there is stays, as after any lost connection.
      if (session.detached) broker.store.save(session);
      else this.#sessions.end(session);
      return;
    }
    const sessionPresent = session.detached;
    broker.metrics.add("client.connected");
    broker.metrics.add(sessionPresent ? "session.resumed" : "session.created");
    session.username = username;
    session.expiryInterval = request.expiryInterval;
    session.will = request.will;
    session.attach(facts.receiveMaximum);
    broker.bind(session, connection, facts);
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
  #resumeOrCreate({ facts: { clientId, username }, cleanStart }: OpenRequest): Session {
    const existing = this.#sessions.byClientId(clientId);
    if (existing) {
      const ended = this.#sessions.publishDueWill(existing, Date.now());
      // A session is its user's: whoever else has the client id does not get what was meant for them (G9).
      if (!cleanStart && !ended && existing.username === username) return existing; // [MQTT-3.1.2-5]
      this.#sessions.end(existing); // [MQTT-3.1.2-4]
    }
    return this.#sessions.create(clientId);
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
    const connected = this.#sessions.byClientId(clientId);
    if (connected && connected.epoch > epoch) return { kind: "superseded" };
    if (connected) this.#sessions.closeConnection(connected);
    // A transient session has ended with its connection.
    const session = this.#sessions.byClientId(clientId);
    if (!session) return { kind: "none" };
    const ended = this.#sessions.publishDueWill(session, Date.now());
    if (!resume || ended) {
      this.#sessions.end(session);
      return { kind: "none" };
    }
    // The new connection comes before the will's delay is over. [MQTT-3.1.3-9]
    session.will = undefined;
    this.#sessions.save(session);
    return {
      kind: "session",
      session: {
        version: rpcVersion,
        epoch: session.epoch,
        expiryInterval: session.expiryInterval,
        username: session.username,
        subscriptions: [...session.subscriptions.values()],
        checkpoint: session.checkpoint(),
      },
    };
  }

  takeOverKnown(clientId: string, epoch: number): string[] {
    const session = this.#sessions.byClientId(clientId);
    return !session || session.epoch > epoch ? [] : this.#broker.store.knownKeys(session.id);
  }

  takeOverMessages(clientId: string, epoch: number, afterSeq: number): StoredDelivery[] {
    const session = this.#sessions.byClientId(clientId);
    if (!session || session.epoch > epoch) return [];
    return this.#broker.store.page(session.id, afterSeq, limits.pageBytesMax);
  }

  takeOverDone(clientId: string, epoch: number, afterSeq: number): void {
    const session = this.#sessions.byClientId(clientId);
    if (!session || session.connected || session.epoch >= epoch) return;
    const { store } = this.#broker;
    const late = store.page(session.id, afterSeq, Infinity).map(({ delivery }) => readDelivery(delivery));
    this.#sessions.forget(session);
    for (const delivery of late) this.#broker.passOn(delivery);
  }

  /**
   * Takes the session in, its routes first: what is published meanwhile comes here too, numbered behind all that the
   * previous node can have, and what came to both is told by its message id.
   * @returns the number of the last message that the previous node gave.
   */
  async #adopt(clientId: string, epoch: number, previous: NodeName, moved: MovedSession): Promise<number> {
    if (moved.version !== rpcVersion)
      throw new Error(`${previous} gives sessions of version ${moved.version}, ${rpcVersion} is taken here`);
    const broker = this.#broker;
    const old = this.#sessions.byClientId(clientId);
    if (old) this.#sessions.forget(old);
    const arrivalsFrom = moved.checkpoint.nextSeq + limits.seqsPerMove;
    const session = this.#sessions.create(clientId);
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
      this.#sessions.forget(session);
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
    await broker.core.outbox.addAndWait(fenceRecord());
    await broker.core.settled(previous);
    const node = broker.host.nodeAt(previous);
    // Before the messages: what is known later is in a page, or comes here by the new route.
    const known = await node.takeOverKnown(clientId, epoch);
    const given = new Set<string>();
    let afterSeq = 0;
    for (;;) {
      const page = await node.takeOverMessages(clientId, epoch, afterSeq);
      if (page.length === 0) break;
      for (const stored of page) given.add(broker.store.putStored(session.id, stored));
      afterSeq = page.at(-1)!.seq;
    }
    // All that came to both nodes has come here too when what was routed by now is here.
    await broker.core.settled(broker.name);
    const now = Date.now();
    for (const key of known) if (!broker.store.addKnown(session.id, key, now)) given.add(key);
    for (const { seq, delivery } of broker.store.page(session.id, arrivalsFrom - 1, Infinity))
      if (given.has(deliveryKey(readDelivery(delivery)))) broker.store.deleteDeliveries(session.id, [seq]);
    for (const subscription of moved.subscriptions) broker.store.putSubscription(session.id, subscription);
    broker.store.insert(session);
    if (session.expiresAt !== atNoTime) broker.host.ringAt(session.expiresAt);
    this.#sessions.unload(session); // to be loaded anew, with all its messages
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
}

function supersede(opening: Opening): void {
  opening.superseded = true;
  opening.connection.fail(takenOver());
}
