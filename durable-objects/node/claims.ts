/**
 * How a connection comes to its session.
 *
 * One client id, one session, in the whole cluster (G4). A connection first claims its client id at the core, which
 * numbers the claims (`epoch`) and names the nodes that may hold a session of it; they close its connection and hand
 * the session over. Of two claims the later one wins, whatever the order in which their messages arrive: a node that is
 * asked for a session waits for its own older claim of it and refuses when its own is newer. So waiting only ever goes
 * from newer claims to older ones, and cannot go round.
 *
 * A holder that cannot be reached for a while is abandoned: the core will tell it, and the client gets a new session.
 *
 * The taker adds the session's routes before it asks for the messages, and the giver forgets last: make before break.
 */
import type { NodeName } from "../../cluster/name.ts";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import type { OpenRequest } from "../../mqtt/channel.ts";
import { limits } from "../../mqtt/limits.ts";
import { MessageIdSet } from "../../mqtt/message-id-set.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import { atNoTime, type Checkpoint, type Session, type Subscription } from "../../mqtt/session.ts";
import { parseShared } from "../../mqtt/topic.ts";
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
import { HolderLink, Unreachable } from "./holder-link.ts";
import { readDelivery, writeDelivery } from "./session-store.ts";
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

/** A session on its way here. */
interface Adoption {
  readonly session: Session;
  readonly epoch: number;
  readonly previous: HolderLink;
  readonly moved: MovedSession;
  /** Of the numbers kept free for what the previous node gives. */
  readonly firstSeq: number;
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
    if (!this.#sessions.byClientId(clientId) && !this.#broker.store.hasRoom())
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
    const { epoch, since, holders } = claim;
    this.#endStale(clientId, since);
    // The latest session is the one to go on with; older ones, left by failures, end where they are.
    let resume = !request.cleanStart;
    let isAllHere = true;
    for (const { node, since: holderSince } of holders) {
      const holder = new HolderLink(
        node,
        () => broker.host.nodeAt(node),
        () => !opening.superseded,
      );
      try {
        const taken = await holder.takeOver(clientId, epoch, resume);
        if (taken.kind === "superseded") opening.superseded = true;
        if (opening.superseded) break;
        if (taken.kind !== "session") continue;
        const own = this.#sessions.byClientId(clientId);
        const isStale = taken.session.epoch < holderSince;
        // A copy is older when it was taken over before and its giver did not hear that it was done.
        const isNewer = !isStale && (!own || own.epoch < taken.session.epoch);
        const lastSeq = isNewer ? await this.#adopt(clientId, epoch, holder, taken.session) : Infinity;
        if (!(await this.#dismiss(node, clientId, epoch, lastSeq))) isAllHere = false;
        if (!isStale) resume = false;
      } catch (error) {
        if (!(error instanceof Unreachable) || error.node !== node) throw error;
        if (!opening.superseded) opening.superseded = !(await broker.core.abandon(clientId, epoch, node));
        if (opening.superseded) break;
      }
    }
    if (opening.superseded) return connection.fail(takenOver());
    const existing = this.#sessions.byClientId(clientId);
    if (existing) this.#sessions.closeConnection(existing);
    const session = this.#resumeOrCreate(request);
    session.epoch = epoch;
    if (connection.closed) {
      // The client left while its session was sought: what there is stays, as after any lost connection.
      if (session.detached) this.#sessions.save([session]);
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
    broker.changeRoutes(broker.table.connectionChanged(session.subscriptions.keys()));
    this.#sessions.save([session]);
    broker.store.putConnection(session.id, { facts, aliases: [] });
    if (holders.length > 0 && isAllHere) broker.core.outbox.add(openedRecord(clientId, epoch), () => {});
    connection.channel.handleOpened(session, sessionPresent);
    connection.perform();
    connection.process(Date.now());
  }

  /** What is here from before the cluster went on without this node is never resumed. */
  #endStale(clientId: string, since: number): void {
    const stale = this.#sessions.byClientId(clientId);
    if (!stale || stale.epoch >= since) return;
    this.#sessions.closeConnection(stale);
    // A transient session has ended with its connection.
    const left = this.#sessions.byClientId(clientId);
    if (left) this.#sessions.end(left);
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
    // Its will stays until the session is gone from here: only a connection that is made calls it off. [MQTT-3.1.3-9]
    this.#sessions.save([session]);
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

  /** A later claim went on without this node: what is here ends, at once unless a connection is on its way to it. */
  handleEnded(clientId: string, epoch: number): void {
    this.takeOver(clientId, epoch, false).catch((error: unknown) => {
      console.error(`${clientId} could not be ended: ${String(error)}`);
    });
  }

  takeOverKnown(clientId: string, epoch: number): Uint8Array {
    const session = this.#sessions.byClientId(clientId);
    if (!session || session.epoch > epoch) return new Uint8Array();
    const known = this.#broker.known.latest(Date.now());
    if (session.known) known.addAll(session.known);
    const writer = new ByteWriter();
    known.write(writer);
    return writer.take();
  }

  takeOverMessages(clientId: string, epoch: number, afterSeq: number): StoredDelivery[] {
    const session = this.#sessions.byClientId(clientId);
    return !session || session.epoch > epoch ? [] : this.#page(session, afterSeq, limits.pageBytesMax);
  }

  /** What waits for a session behind a number, at least one message if there is any. */
  #page(session: Session, afterSeq: number, bytesMax: number): StoredDelivery[] {
    const load = this.#broker.dispatcher.load(session, Date.now());
    const page: StoredDelivery[] = [];
    let bytes = 0;
    for (const { seq, filter, delivery } of session.waiting()) {
      if (seq <= afterSeq) continue;
      const found = delivery ?? load({ seq, filter });
      if (!found) continue;
      const stored = { seq, delivery: writeDelivery(new ByteWriter(), found) };
      bytes += stored.delivery.length;
      if (page.length > 0 && bytes > bytesMax) break;
      page.push(stored);
    }
    return page;
  }

  takeOverDone(clientId: string, epoch: number, afterSeq: number): void {
    const session = this.#sessions.byClientId(clientId);
    if (!session || session.connected || session.epoch >= epoch) return;
    const late = this.#page(session, afterSeq, Infinity).map(({ delivery }) => readDelivery(delivery));
    this.#sessions.forget(session);
    for (const delivery of late) this.#broker.passOn(delivery);
  }

  /**
   * Takes the session in, its routes first: what is published meanwhile comes here too, numbered behind all that the
   * previous node gives, and what came to both is told by its message id.
   * @returns the number that the last message had on the previous node.
   */
  async #adopt(clientId: string, epoch: number, previous: HolderLink, moved: MovedSession): Promise<number> {
    if (moved.version !== rpcVersion)
      throw new Error(`${previous.node} gives sessions of version ${moved.version}, ${rpcVersion} is taken here`);
    const broker = this.#broker;
    const old = this.#sessions.byClientId(clientId);
    if (old) this.#sessions.forget(old);
    const session = this.#sessions.create(clientId);
    session.expiryInterval = moved.expiryInterval;
    session.durable = true;
    session.username = moved.username;
    session.epoch = epoch;
    session.adopting = true;
    session.detach(Date.now());
    const adoption: Adoption = { session, epoch, previous, moved, firstSeq: broker.sequence.take(limits.seqsPerMove) };
    for (const subscription of moved.subscriptions) {
      session.subscribe(subscription);
      // A share group's message goes to one member alone: it is to be one that is whole.
      if (parseShared(subscription.filter).group === undefined) this.#addToTable(session, subscription);
    }
    try {
      return await this.#moveMessages(adoption);
    } catch (error) {
      // Half a session is none: the registry remembers who has it whole.
      this.#sessions.forget(session);
      throw error;
    } finally {
      for (const { filter } of moved.subscriptions) broker.table.saved(filter);
    }
  }

  #addToTable(session: Session, subscription: Subscription): void {
    const { table } = this.#broker;
    const loggedSince = this.#broker.loggedSince(session, subscription);
    this.#broker.changeRoutes([table.add(subscription.filter, { sessionId: session.id, loggedSince })]);
  }

  async #moveMessages({ session, epoch, previous, moved, firstSeq }: Adoption): Promise<number> {
    const broker = this.#broker;
    const { clientId } = session;
    await broker.core.outbox.addAndWait(fenceRecord());
    await broker.core.settled(previous.node);
    // Before the messages: what is known later is in a page, or comes here by the new route.
    const known = MessageIdSet.read(new ByteReader(await previous.takeOverKnown(clientId, epoch)));
    /** Numbers there to numbers here. */
    const seqs = new Map<number, number>();
    let lastSeq = 0;
    for (;;) {
      const page = await previous.takeOverMessages(clientId, epoch, lastSeq);
      if (page.length === 0) break;
      for (const { seq, delivery } of page) {
        const here = firstSeq + seqs.size;
        seqs.set(seq, here);
        const { message, shared } = broker.store.putStored(session.id, { seq: here, delivery });
        known.add(message.id, shared);
        lastSeq = seq;
      }
    }
    // All that came to both nodes has come here too when what was routed by now is here.
    await broker.core.settled(broker.name);
    // What came here meanwhile is in the log, and told apart when it is read.
    session.known = known;
    session.restore(renumbered(moved.checkpoint, seqs, firstSeq), []);
    for (const subscription of session.subscriptions.values()) {
      if (parseShared(subscription.filter).group !== undefined) this.#addToTable(session, subscription);
      broker.store.putSubscription(session.id, subscription, broker.table.loggedSince(subscription.filter, session.id));
    }
    broker.store.put(session);
    broker.store.putKnown(session, Date.now());
    broker.store.putCheckpoints([session]);
    if (session.expiresAt !== atNoTime) broker.host.ringAt(session.expiresAt);
    this.#sessions.unload(session); // to be loaded anew, with all its messages
    return lastSeq;
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

/** A checkpoint with the numbers that a session's messages have here, the first of them `firstSeq`. */
function renumbered(checkpoint: Checkpoint, seqs: ReadonlyMap<number, number>, firstSeq: number): Checkpoint {
  const inflight = checkpoint.inflight.flatMap((entry) => {
    const seq = entry.state === "pubrel" ? firstSeq : seqs.get(entry.seq);
    return seq === undefined ? [] : [{ ...entry, seq }];
  });
  const sent = inflight.filter(({ state }) => state === "publish").map(({ seq }) => seq);
  return { ...checkpoint, inflight, sentUpTo: Math.max(firstSeq - 1, ...sent) };
}

function supersede(opening: Opening): void {
  opening.superseded = true;
  opening.connection.fail(takenOver());
}
