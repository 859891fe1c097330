/**
 * A session moves from one node, the giver, to another, the taker, whose claim of its client id is newer.
 *
 *   taker                         giver
 *   adds the session's routes     has closed its connection (claims.ts)
 *   waits until the core and the giver have nothing under way
 *   asks for what it knows   -->  the QoS 2 messages that it has taken in
 *   asks for its messages    -->  page by page
 *   waits for its own copies
 *   writes the session, with what it was given where it was
 *   says that it is done     -->  forgets the session; what a share group has sent it since goes back to the group
 *
 * Make before break: what is published meanwhile comes to both nodes, and the taker tells it by its message id. A share
 * group's message goes to one member alone, so the taker is none before it has the session. A crash of either side, or of
 * the core, leaves the session with the giver: the registry remembers it as a holder until the taker says that it has it.
 */
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { MessageIdSet } from "../../mqtt/message-id-set.ts";
import { atNoTime, type Checkpoint, type Delivery, type Session, type Subscription } from "../../mqtt/session.ts";
import { isShared } from "../../mqtt/topic.ts";
import { fenceRecord, rpcVersion, type MovedSession, type StoredDelivery } from "../rpc.ts";
import type { Broker } from "./broker.ts";
import type { HolderLink } from "./holder-link.ts";
import { readDelivery, writeDelivery } from "./session-store.ts";

/** One node's part in one takeover. */
export class Takeover {
  readonly #broker: Broker;
  readonly #clientId: string;
  /** Of the taker's claim. */
  readonly #epoch: number;

  constructor(broker: Broker, clientId: string, epoch: number) {
    this.#broker = broker;
    this.#clientId = clientId;
    this.#epoch = epoch;
  }

  // ---- the giver --------------------------------------------------------------------------------------------------

  /** Throws when the session is not here any more: the taker must not go on with half of it. */
  #given(): Session {
    const session = this.#broker.sessions.byClientId(this.#clientId);
    if (session && !session.connected && session.epoch < this.#epoch) return session;
    throw new Error(`the session of ${this.#clientId} is not to be had here`);
  }

  known(): Uint8Array {
    const { known, arrivedBehind } = this.#given();
    const all = this.#broker.known.latest(arrivedBehind, Date.now());
    if (known) all.addAll(known);
    return written(all);
  }

  /**
   * What waits behind a number, at least one message if there is any. Only what had come when it was first asked for: later
   * messages come to the taker too, and while there are more and more of them it would never have all.
   */
  messages(afterSeq: number): StoredDelivery[] {
    const session = this.#given();
    if (session.giving?.epoch !== this.#epoch) session.giving = { epoch: this.#epoch, upTo: session.lastSeq };
    const { upTo } = session.giving;
    const page: StoredDelivery[] = [];
    let bytes = 0;
    for (const { seq, delivery } of this.#waiting(session, afterSeq, upTo)) {
      const stored = { seq, delivery: writeDelivery(new ByteWriter(), delivery) };
      bytes += stored.delivery.length;
      if (page.length > 0 && bytes > limits.pageBytesMax) break;
      page.push(stored);
    }
    return page;
  }

  /** Behind one number and up to another; only those are loaded. */
  *#waiting(session: Session, afterSeq = 0, upTo = Infinity): Generator<{ seq: number; delivery: Delivery }> {
    const load = this.#broker.dispatcher.load(session, Date.now());
    for (const { seq, filter, delivery } of session.waiting()) {
      if (seq <= afterSeq || seq > upTo) continue;
      const found = delivery ?? load({ seq, filter });
      if (found) yield { seq, delivery: found };
    }
  }

  /** @param known what the taker's session was given, a `MessageIdSet`: it has that, and all that came by the log. */
  done(known: Uint8Array): void {
    const session = this.#broker.sessions.byClientId(this.#clientId);
    if (!session || session.connected || session.epoch >= this.#epoch) return;
    for (const delivery of this.#forget(session, MessageIdSet.read(new ByteReader(known))))
      this.#broker.passOn(delivery);
  }

  /** @returns what a share group has given to this copy of the session alone: it goes back to the group. */
  #forget(copy: Session, known: MessageIdSet): Delivery[] {
    const left = [...this.#waiting(copy)].map(({ delivery }) => delivery);
    this.#broker.sessions.forget(copy);
    return left.filter(({ message, shared }) => shared !== undefined && !known.has(message.id, shared));
  }

  // ---- the taker --------------------------------------------------------------------------------------------------

  /** Takes the session in. An older copy of it, left here by a failure, ends when this one is whole. */
  async adopt(giver: HolderLink, moved: MovedSession): Promise<void> {
    if (moved.version !== rpcVersion)
      throw new Error(`${giver.node} gives sessions of version ${moved.version}, ${rpcVersion} is taken here`);
    const { sessions, sequence, store, table } = this.#broker;
    // Two sides of a cut may have let the client in, and this one before the other.
    const older = sessions.byClientId(this.#clientId);
    if (older?.connected) sessions.closeConnection(older);
    const copy = sessions.byClientId(this.#clientId);
    const session = sessions.create(this.#clientId);
    session.expiryInterval = moved.expiryInterval;
    session.durable = true;
    session.username = moved.username;
    session.epoch = this.#epoch;
    session.adopting = true;
    store.putAdoption(session);
    const firstSeq = sequence.take(limits.seqsPerMove);
    for (const subscription of moved.subscriptions) {
      session.subscribe(subscription);
      if (!isShared(subscription.filter)) this.#addToTable(session, subscription);
    }
    try {
      await this.#pull(giver, session, moved.checkpoint, firstSeq);
      const left = copy ? this.#forget(copy, session.known!) : [];
      this.#write(session);
      // Behind the routes: this session may be the only one of its groups.
      for (const delivery of left) this.#broker.passOn(delivery);
    } catch (error) {
      // Half a session is none: the giver has it whole.
      sessions.forget(session);
      throw error;
    } finally {
      store.deleteAdoption(session.id);
      for (const { filter } of moved.subscriptions) table.saved(filter);
    }
    // Before the giver leaves its groups: what goes back to them may have nobody else to go to.
    if (moved.subscriptions.some(({ filter }) => isShared(filter)))
      await this.#broker.core.outbox.addAndWait(fenceRecord());
  }

  async #pull(giver: HolderLink, session: Session, checkpoint: Checkpoint, firstSeq: number): Promise<void> {
    const { core, name, store } = this.#broker;
    await core.outbox.addAndWait(fenceRecord());
    await core.settled(giver.node);
    // Before the messages: what is known later is in a page, or comes here by the new route.
    const known = MessageIdSet.read(new ByteReader(await giver.takeOverKnown(this.#clientId, this.#epoch)));
    /** Numbers there to numbers here. */
    const seqs = new Map<number, number>();
    for (let afterSeq = 0; ;) {
      const page = await giver.takeOverMessages(this.#clientId, this.#epoch, afterSeq);
      if (page.length === 0) break;
      for (const { seq, delivery } of page) {
        const here = firstSeq + seqs.size;
        seqs.set(seq, here);
        const { message, shared } = store.putStored(session.id, { seq: here, delivery });
        known.add(message.id, shared);
        afterSeq = seq;
      }
    }
    // All that came to both nodes has come here too when what was routed by now is here.
    await core.settled(name);
    session.known = known;
    for (const { seq, delivery } of store.deliveriesBehind(session.id, firstSeq + limits.seqsPerMove - 1)) {
      const { message, shared } = readDelivery(delivery);
      // It came again meanwhile: once is enough, also if it has come by the log.
      if (known.has(message.id, shared)) store.deleteDeliveries(session.id, [{ seq, filter: undefined }]);
      else known.add(message.id, shared);
    }
    session.restore(renumbered(checkpoint, seqs, firstSeq), []);
  }

  #write(session: Session): void {
    const { host, sessions, store, table } = this.#broker;
    const now = Date.now();
    session.detach(now);
    for (const subscription of session.subscriptions.values()) {
      if (isShared(subscription.filter)) this.#addToTable(session, subscription);
      store.putSubscription(subscription, table.subscriber(subscription.filter, session.id)!);
    }
    store.put(session);
    this.#keepArrivals(session, now);
    store.putArrival(session, now);
    store.putCheckpoints([session]);
    if (session.expiresAt !== atNoTime) host.ringAt(session.expiresAt);
    // To be loaded anew, with all its messages.
    sessions.unload(session);
  }

  /** What came by the log meanwhile, and was not given: from now on the node and the session know the same. */
  #keepArrivals(session: Session, now: number): void {
    const { dispatcher, log, sequence, store } = this.#broker;
    const load = dispatcher.load(session, now);
    for (const place of log.waiting(session.id, 0, now)) {
      const delivery = load(place);
      if (!delivery) continue;
      store.putDelivery(session.id, place.seq, delivery);
      session.known!.add(delivery.message.id, undefined);
    }
    session.arrivedBehind = sequence.last;
  }

  #addToTable(session: Session, subscription: Subscription): void {
    const subscriber = this.#broker.subscriberOf(session, subscription);
    this.#broker.changeRoutes([this.#broker.table.add(subscription.filter, subscriber)]);
  }

  /** The session is here now, whether the giver hears of it or not. @returns whether it does. */
  async dismiss(giver: HolderLink): Promise<boolean> {
    const known = this.#broker.sessions.byClientId(this.#clientId)?.known ?? new MessageIdSet();
    try {
      await giver.takeOverDone(this.#clientId, this.#epoch, written(known));
      return true;
    } catch {
      return false;
    }
  }
}

function written(set: MessageIdSet): Uint8Array {
  const writer = new ByteWriter();
  set.write(writer);
  return writer.take();
}

/** A checkpoint with the numbers that a session's messages have here, the first of them `firstSeq`. */
function renumbered(checkpoint: Checkpoint, seqs: ReadonlyMap<number, number>, firstSeq: number): Checkpoint {
  const inflight = checkpoint.inflight.flatMap((entry) => {
    const seq = seqs.get(entry.seq);
    if (entry.state === "publish" && seq !== undefined) return [{ ...entry, seq }];
    // Its client has it and waits for the end, or may.
    return entry.qos === 2 ? [{ ...entry, state: "pubrel" as const, seq: firstSeq }] : [];
  });
  const sent = inflight.filter(({ state }) => state === "publish").map(({ seq }) => seq);
  return { ...checkpoint, inflight, sentUpTo: Math.max(firstSeq - 1, ...sent) };
}
