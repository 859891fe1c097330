/**
 * A session: what the broker knows of a client id beyond one connection. [MQTT-4.1.0-1]
 *
 *   deliver -> queue -> (window open) -> inflight -> PUBACK | PUBREC, PUBREL, PUBCOMP
 *
 * Outgoing QoS 1 and 2 messages have a number from the node (`seq`, rising) and get a packet id when they are sent. The
 * queue is ordered by `seq`, the inflight window by the order of sending; together they hold every message that the
 * client has not acknowledged. A queue entry may hold only the number: its message then waits on disk, in the node's
 * log under a filter or as a row of the session's own, and is loaded when its turn comes, so a long queue costs no memory,
 * and all queues of a node no more than it has for them (`QueueMemory`).
 *
 * Nothing is resent but on a new connection [MQTT-4.4.0-1]: `attach` marks the window unsent and `nextToSend` yields
 * it again, in order, within the Receive Maximum of the new connection [MQTT-4.4.0-2] [MQTT-3.3.4-9].
 *
 * Incoming QoS 2 goes receiving (the cluster has not answered yet) -> received (PUBREC may go out) -> forgotten by
 * PUBREL. A packet id in either state is a retransmission and not published again [MQTT-4.3.3-10]. `receiving` is on disk
 * with the message's id before the message leaves: a client that sends it again after a crash publishes it under the
 * same id, and who has it already knows.
 *
 * Pure: `now` comes in as ms since the epoch, and what is to be written is asked for by `checkpoint`.
 */
import { isExpired, messageBytes, type Message, type QoS } from "./message.ts";
import { Fifo } from "./fifo.ts";
import type { MessageIdSet } from "./message-id-set.ts";
import { limits } from "./limits.ts";
import { MqttError, ReasonCode } from "./reason-codes.ts";

/** A subscription as the client made it; `filter` still has its `$share/group/`. */
export interface Subscription {
  readonly filter: string;
  readonly qos: QoS;
  readonly noLocal: boolean;
  readonly retainAsPublished: boolean;
  readonly retainHandling: 0 | 1 | 2;
  /** 0 = none. */
  readonly subscriptionId: number;
}

/** One message for one session, as its subscriptions want it. */
export interface Delivery {
  readonly message: Message;
  readonly qos: QoS;
  readonly retain: boolean;
  readonly subscriptionIds: readonly number[];
  /** The `$share/group/filter` it came by: at the session's end it goes to another member. */
  readonly shared: string | undefined;
}

export interface Will {
  readonly topic: string;
  readonly payload: Uint8Array;
  readonly qos: QoS;
  readonly retain: boolean;
  readonly properties: Uint8Array;
  readonly messageExpiryInterval: number | undefined;
  readonly delaySeconds: number;
}

/** The interval that means never, in seconds, and the deadline that never comes, in ms. [MQTT-3.1.2.11.2] */
export const expiryNever = 0xffff_ffff;
export const atNoTime = Number.MAX_SAFE_INTEGER;

/** Where a message waits: under a filter in the node's log, or, without one, with the session alone. */
export interface Place {
  readonly seq: number;
  readonly filter: string | undefined;
}

/** Reads a message from disk; undefined when it is no longer there, or no longer for this session. */
export type Load = (place: Place) => Delivery | undefined;

/** A message that the client has not acknowledged. */
export interface Waiting {
  readonly seq: number;
  filter: string | undefined;
  delivery: Delivery | undefined;
  written: boolean;
}

interface Queued extends Waiting {
  readonly bytes: number;
  readonly shared: boolean;
}

interface Inflight extends Waiting {
  readonly packetId: number;
  readonly qos: QoS;
  state: "publish" | "pubrel";
  sent: boolean;
}

/** What goes to the client next. */
export type Outgoing =
  | { readonly kind: "publish"; readonly packetId: number; readonly dup: boolean; readonly delivery: Delivery }
  | { readonly kind: "pubrel"; readonly packetId: number };

/** The acknowledgement owed for an incoming publish; shared by the connections on which the packet came. */
export interface Receipt {
  readonly packetId: number;
  readonly qos: 1 | 2;
  readonly messageId: string;
  /** Of the payload, of QoS 2. */
  readonly digest: number;
  /** undefined until the cluster has answered. */
  reasonCode: number | undefined;
}

/** A retained read that the session still has to make: it goes on page by page as the queue drains. */
export interface RetainedRead {
  readonly filter: string;
  /** The last topic read; undefined at the start. */
  readonly after: string | undefined;
}

/** What a restart needs, besides the messages themselves. */
export interface Checkpoint {
  /** Every message up to here was sent or passed over; of those only the ones in `inflight` are unacknowledged. */
  readonly sentUpTo: number;
  readonly nextPacketId: number;
  /** `sent` false: the open connection has not got it again yet. */
  readonly inflight: readonly Pick<Inflight, "packetId" | "seq" | "qos" | "state" | "sent">[];
  readonly receiving: readonly Pick<Receipt, "packetId" | "messageId" | "digest">[];
  readonly received: readonly number[];
  readonly retainedReads: readonly RetainedRead[];
}

/** A message on disk, as far as the queue has to know it before its turn. */
export interface StoredMessage extends Place {
  readonly bytes: number;
  readonly shared: boolean;
}

/** What all queues of a node hold in memory, as `heldBytes` counts it. */
export class QueueMemory {
  bytes = 0;
}

export class Session {
  /** The node's own short name for it. */
  readonly id: number;
  readonly clientId: string;
  /** The registry's number for this client's latest claim: a higher one wins. */
  epoch = 0;
  username: string | undefined;
  connected = false;
  /** It outlives its connection: what it was promised is on disk. Once durable, a session stays so until it ends. */
  durable = false;
  #expiryInterval = 0;
  /** ms since the epoch; 0 = no such deadline. */
  expiresAt = 0;
  willAt = 0;
  will: Will | undefined;
  /** SUBSCRIBEs that the cluster has not answered: what they ask for is not on disk yet. */
  subscribing = 0;
  /** Its messages are still coming from another node: none on disk may be given up. */
  adopting = false;
  /** Given away, to the taker of this epoch: what came up to this number. */
  giving: { readonly epoch: number; readonly upTo: number } | undefined;
  /** It came from another node behind this number; 0: it began here. */
  arrivedBehind = 0;
  /** What it was given where it lived before, which may come again: by message id. */
  known: MessageIdSet | undefined;
  /** It has a row, or is about to have one: what else is on disk of it counts. */
  onDisk = false;
  /** Messages wait in rows of its own. */
  hasRows = false;
  /** Messages from this number on are needed on disk, as of the last checkpoint. */
  neededFrom = 0;
  readonly #subscriptions = new Map<string, Subscription>();
  #subscriptionBytes = 0;
  retainedReads: RetainedRead[] = [];
  /** Who it is, its deadlines or its will have changed since they were last written. */
  rowDirty = false;
  /** State has changed since the last checkpoint. */
  dirty = false;
  /** Rises with every change. */
  revision = 0;
  /** ... in a way that must be on disk before anything else is sent. */
  urgent = false;

  #lastSeq = 0;
  #sentUpTo = 0;
  #nextPacketId = 1;
  readonly #queue = new Fifo<Queued>();
  #queueBytes = 0;
  /** Of the queue, in memory; `#memory` counts it among that of the others. */
  #heldBytes = 0;
  #memory: QueueMemory;
  readonly #inflight = new Map<number, Inflight>();
  #unacknowledged = 0;
  #unsent = 0;
  #window = 0;
  readonly #receiving = new Map<number, Receipt>();
  /** Message ids of an earlier life: their packets were not answered, and are to come again. */
  readonly #receivingBefore = new Map<number, Pick<Receipt, "packetId" | "messageId" | "digest">>();
  readonly #received = new Set<number>();

  constructor(id: number, clientId: string, memory: QueueMemory) {
    this.id = id;
    this.clientId = clientId;
    this.#memory = memory;
  }

  get subscriptions(): ReadonlyMap<string, Subscription> {
    return this.#subscriptions;
  }

  get subscriptionBytes(): number {
    return this.#subscriptionBytes;
  }

  subscribe(subscription: Subscription): void {
    if (!this.#subscriptions.has(subscription.filter)) this.#subscriptionBytes += subscription.filter.length;
    this.#subscriptions.set(subscription.filter, subscription);
  }

  /** Whether messages would come in another way with this subscription. */
  changesWith({ filter, qos, noLocal, retainAsPublished, subscriptionId }: Subscription): boolean {
    const before = this.#subscriptions.get(filter);
    const isSame =
      before?.qos === qos &&
      before.noLocal === noLocal &&
      before.retainAsPublished === retainAsPublished &&
      before.subscriptionId === subscriptionId;
    return !isSame;
  }

  unsubscribe(filter: string): boolean {
    if (!this.#subscriptions.delete(filter)) return false;
    this.#subscriptionBytes -= filter.length;
    this.forgetRetainedRead(filter);
    return true;
  }

  forgetRetainedRead(filter: string): void {
    if (!this.retainedReads.some((read) => read.filter === filter)) return;
    this.retainedReads = this.retainedReads.filter((read) => read.filter !== filter);
    this.changed();
  }

  /** Retained messages are to be read for a subscription; anew if it has taken the place of another one. */
  readRetained(filter: string): void {
    this.retainedReads = [...this.retainedReads.filter((read) => read.filter !== filter), { filter, after: undefined }];
    // A transient session has nothing to read on with after a crash, and the read holds the object awake.
    if (this.durable) this.changed();
  }

  /**
   * What the session gets of a message by those of its subscriptions that match: it comes once, with the highest QoS
   * and all their identifiers. [MQTT-3.3.4-2] [MQTT-3.3.4-3]
   * @param keys filters that match, or the one `$share/group/filter` whose member it is
   */
  deliveryOf(message: Message, keys: readonly { readonly key: string }[]): Delivery | undefined {
    let qos: QoS | undefined;
    let retain = false;
    const subscriptionIds: number[] = [];
    for (const { key } of keys) {
      const subscription = this.#subscriptions.get(key);
      if (!subscription || (subscription.noLocal && this.clientId === message.from)) continue; // [MQTT-3.8.3-3]
      const granted = Math.min(message.qos, subscription.qos) as QoS;
      if (qos === undefined || granted > qos) qos = granted;
      retain ||= subscription.retainAsPublished && message.retain; // [MQTT-3.3.1-12] [MQTT-3.3.1-13]
      if (subscription.subscriptionId !== 0) subscriptionIds.push(subscription.subscriptionId);
    }
    return qos === undefined ? undefined : { message, qos, retain, subscriptionIds, shared: undefined };
  }

  /** The filter under which the session finds the message in the node's log. */
  logFilter(keys: readonly { readonly key: string }[]): string | undefined {
    if (!this.durable) return undefined;
    return keys.find(({ key }) => (this.#subscriptions.get(key)?.qos ?? 0) > 0)?.key;
  }

  /** Nothing of it is in memory alone. */
  get atRest(): boolean {
    const isIdle = this.subscribing === 0 && this.#receiving.size === 0 && !this.adopting;
    return isIdle && !this.connected && !this.dirty && !this.rowDirty;
  }

  /** Seconds after the connection ends; 0 = ends with it, `expiryNever` = never. */
  get expiryInterval(): number {
    return this.#expiryInterval;
  }

  set expiryInterval(seconds: number) {
    this.#expiryInterval = seconds;
    if (seconds > 0) this.durable = true;
    this.rowDirty = true;
  }

  /** It was there before and waits for its client: a new session has no deadline yet. */
  get detached(): boolean {
    return this.expiresAt !== 0;
  }

  get queued(): number {
    return this.#queue.length;
  }

  /** The latest number that it has taken in, or passed. */
  get lastSeq(): number {
    return this.#lastSeq;
  }

  get inflightCount(): number {
    return this.#inflight.size;
  }

  // ---- connection -------------------------------------------------------------------------------------------------

  /** A connection takes the session up; its unacknowledged messages are to be sent again. */
  attach(receiveMaximum: number): void {
    this.connected = true;
    this.expiresAt = 0;
    this.willAt = 0;
    this.#window = receiveMaximum;
    this.#unacknowledged = 0;
    this.#unsent = this.#inflight.size;
    for (const entry of this.#inflight.values()) entry.sent = false;
    this.rowDirty = true;
    if (this.#unsent > 0) this.changed();
  }

  /** The window after sleep: what was sent on the connection that is still open is not sent again. */
  reattach(receiveMaximum: number): void {
    this.#window = receiveMaximum;
    this.#unsent = 0;
    for (const entry of this.#inflight.values()) if (!entry.sent) this.#unsent++;
    this.#unacknowledged = this.#inflight.size - this.#unsent;
  }

  /**
   * The connection is gone. What follows is due at `willAt` and `expiresAt`, which may be now: ask `due`.
   * The will goes out at its delay or at the session's end, whichever comes first. [MQTT-3.1.3-9]
   */
  detach(now: number): void {
    this.connected = false;
    for (const entry of this.#queue) if (entry.written) this.#letGo(entry);
    if (this.will) this.willAt = now + Math.min(this.will.delaySeconds, this.expiryInterval) * 1000;
    this.expiresAt = this.expiryInterval === expiryNever ? atNoTime : now + this.expiryInterval * 1000;
    this.rowDirty = true;
  }

  /** Its client is back, though not connected yet: its time begins anew. */
  postponeExpiry(now: number): void {
    if (this.expiresAt === atNoTime) return;
    this.expiresAt = now + this.expiryInterval * 1000;
    this.rowDirty = true;
  }

  /** What time has brought to a session without a connection; takes the will out. */
  due(now: number): { will: Will | undefined; ended: boolean } {
    const ended = !this.connected && this.expiresAt !== 0 && this.expiresAt <= now;
    let will: Will | undefined;
    if (this.will && this.willAt !== 0 && (ended || this.willAt <= now)) {
      will = this.will;
      this.will = undefined;
      this.willAt = 0;
      this.rowDirty = true;
    }
    return { will, ended };
  }

  // ---- outgoing ---------------------------------------------------------------------------------------------------

  /**
   * Takes a QoS 1 or 2 message in, at the place that the node has given it. The oldest waiting messages make room when
   * the queue is full. One that is here already is not taken in again.
   * @returns what was dropped.
   */
  enqueue({ seq, filter }: Place, delivery: Delivery, queueLengthMax: number): Place[] {
    if (seq <= this.#lastSeq) return [];
    const bytes = messageBytes(delivery.message);
    const dropped = this.makeRoom(queueLengthMax - 1, limits.mqueueBytesMax - bytes);
    this.#lastSeq = seq;
    this.#queue.push({ seq, filter, bytes, shared: delivery.shared !== undefined, delivery, written: false });
    this.#queueBytes += bytes;
    this.#countHeld(heldBytes(bytes));
    this.changed();
    return dropped;
  }

  /** Drops the oldest waiting messages until the queue is no longer than this. @returns what was dropped. */
  makeRoom(lengthMax: number, bytesMax: number): Place[] {
    const dropped: Place[] = [];
    for (let oldest = this.#queue.first; oldest; oldest = this.#queue.first) {
      if (this.#queue.length <= lengthMax && this.#queueBytes <= bytesMax) break;
      this.#takeFirst(oldest);
      dropped.push(oldest);
    }
    return dropped;
  }

  /** A logged message that is not for this session: it need not wait for it. */
  pass(seq: number): void {
    if (seq <= this.#lastSeq) return;
    this.#lastSeq = seq;
    if (this.#queue.length > 0) return;
    this.#sentUpTo = seq;
    this.changed();
  }

  #takeFirst(first: Queued): void {
    this.#queue.shift();
    this.#queueBytes -= first.bytes;
    if (first.delivery) this.#countHeld(-heldBytes(first.bytes));
    // What was passed behind the last one is behind it, too.
    this.#sentUpTo = this.#queue.length === 0 ? this.#lastSeq : first.seq;
    this.changed();
  }

  /**
   * Whether what came last has to wait on disk, even for a session that ends with its connection: when this queue, or all
   * queues together, hold too much in memory. What comes alone is about to be sent.
   */
  get queueIsLong(): boolean {
    if (this.#queue.length < 2) return false;
    return this.#heldBytes > limits.queueHeldBytesMax || this.#memory.bytes > limits.queuesHeldBytesMax;
  }

  /** It is not in memory any more. */
  release(): void {
    this.#memory.bytes -= this.#heldBytes;
    this.#memory = new QueueMemory();
  }

  #countHeld(bytes: number): void {
    this.#heldBytes += bytes;
    this.#memory.bytes += bytes;
  }

  /** It is on disk, and read from there when its turn comes. */
  #letGo(entry: Queued): void {
    if (!entry.delivery) return;
    entry.delivery = undefined;
    this.#countHeld(-heldBytes(entry.bytes));
  }

  /** The last message taken in is on disk: the queue forgets it until its turn, unless that is soon. */
  written(seq: number): void {
    const entry = this.#queue.last;
    if (entry?.seq !== seq) return;
    entry.written = true;
    if (entry.filter === undefined) this.hasRows = true;
    if (!this.connected || this.queueIsLong) this.#letGo(entry);
  }

  /** What is held in memory alone, to be written before the object may sleep. */
  *unwritten(): Generator<{ seq: number; delivery: Delivery }> {
    for (const entry of this.waiting())
      if (!entry.written && entry.delivery) {
        entry.written = true;
        this.hasRows = true;
        yield { seq: entry.seq, delivery: entry.delivery };
      }
  }

  /** What the log had is a row of the session's own now. */
  own(entry: Waiting): void {
    entry.filter = undefined;
    entry.written = true;
    this.hasRows = true;
  }

  /** All that the client has not acknowledged and that is to be sent, or sent again, by rising `seq`. */
  *waiting(): Generator<Waiting> {
    for (const entry of this.#inflight.values()) if (entry.state === "publish") yield entry;
    yield* this.#queue;
  }

  /**
   * The next thing to send while the window is open: first what a new connection must get again, then the queue.
   */
  nextToSend(now: number, load: Load): Outgoing | undefined {
    if (!this.connected) return undefined;
    if (this.#unsent > 0) {
      const again = this.#nextToResend(load);
      if (again || this.#unsent > 0) return again;
    }
    for (let entry = this.#queue.first; entry && this.#unacknowledged < this.#window; entry = this.#queue.first) {
      this.#takeFirst(entry);
      const delivery = entry.delivery ?? load(entry);
      if (!delivery || isExpired(delivery.message, now)) continue; // [MQTT-3.3.2-5]
      const packetId = this.#freePacketId();
      this.#inflight.set(packetId, {
        packetId,
        seq: entry.seq,
        filter: entry.filter,
        qos: delivery.qos,
        state: "publish",
        delivery,
        written: entry.written,
        sent: true,
      });
      this.#unacknowledged++;
      if (delivery.qos === 2 && this.durable) this.urgent = true;
      return { kind: "publish", packetId, dup: false, delivery };
    }
    return undefined;
  }

  /** @returns whether the packet id was in use. */
  handlePuback(packetId: number): boolean {
    const entry = this.#acknowledged(packetId, "puback");
    if (entry) this.#settle(entry);
    return entry !== undefined;
  }

  /** A reason code from 0x80 ends the exchange; otherwise PUBREL is the answer, again for a repeated PUBREC. */
  handlePubrec(packetId: number, reasonCode: number): void {
    const entry = this.#acknowledged(packetId, "pubrec");
    if (!entry) return;
    if (reasonCode >= 0x80) return this.#settle(entry);
    if (entry.state === "pubrel") return;
    entry.state = "pubrel";
    entry.delivery = undefined;
    this.#qos2Changed();
  }

  /** @returns whether the packet id was in use. */
  handlePubcomp(packetId: number): boolean {
    const entry = this.#acknowledged(packetId, "pubcomp");
    if (entry) this.#settle(entry);
    return entry !== undefined;
  }

  /** The exchange that an acknowledgement is for; an id not in use is none, the wrong kind for one is an error. */
  #acknowledged(packetId: number, kind: "puback" | "pubrec" | "pubcomp"): Inflight | undefined {
    const entry = this.#inflight.get(packetId);
    if (!entry) return undefined;
    const isQos1 = entry.state === "publish" && entry.qos !== 2;
    const isRight = kind === "puback" ? isQos1 : kind === "pubrec" ? !isQos1 : entry.state === "pubrel"; // [MQTT-4.3.2-3] [MQTT-4.3.3-4]
    if (!isRight) throw new MqttError(ReasonCode.ProtocolError, `${kind} is out of order for packet ${packetId}`);
    return entry;
  }

  /** A message that this client cannot take counts as delivered. [MQTT-3.1.2-25] */
  discard(packetId: number): void {
    const entry = this.#inflight.get(packetId);
    if (entry) this.#settle(entry);
  }

  // ---- incoming ---------------------------------------------------------------------------------------------------

  /**
   * An incoming QoS 2 PUBLISH.
   * @returns a fresh receipt with `isNew`, or the one that is already on its way; `full` at max_awaiting_rel.
   */
  receive(
    { packetId, payload }: { readonly packetId: number; readonly payload: Uint8Array },
    newMessageId: string,
    awaitingRelMax: number,
  ): { receipt: Receipt; isNew: boolean } | "full" {
    const under = this.#receiving.get(packetId);
    if (under) return { receipt: under, isNew: false };
    if (this.#received.has(packetId))
      return { receipt: { packetId, qos: 2, messageId: "", digest: 0, reasonCode: 0 }, isNew: false };
    // DUP does not tell: some clients send again without it. Another payload is of a client that has forgotten the first.
    const digest = digestOf(payload);
    const before = this.#receivingBefore.get(packetId);
    const messageId = before?.digest === digest ? before.messageId : newMessageId;
    this.#receivingBefore.delete(packetId);
    if (this.awaitingRelCount >= awaitingRelMax) return "full";
    const receipt: Receipt = { packetId, qos: 2, messageId, digest, reasonCode: undefined };
    this.#receiving.set(packetId, receipt);
    this.#qos2Changed();
    return { receipt, isNew: true };
  }

  /** The cluster has answered: the id is held until PUBREL, or free again when the message was refused. */
  handleReceived(receipt: Receipt, reasonCode: number): void {
    receipt.reasonCode = reasonCode;
    if (receipt.qos !== 2 || this.#receiving.get(receipt.packetId) !== receipt) return;
    this.#receiving.delete(receipt.packetId);
    if (reasonCode < 0x80) this.#received.add(receipt.packetId);
    this.#qos2Changed();
  }

  /** It was refused, and the client is not told: it sends it again, and whoever has got it already knows its id. */
  handleUnanswered(receipt: Receipt, reasonCode: number): void {
    receipt.reasonCode = reasonCode;
    if (receipt.qos !== 2 || this.#receiving.get(receipt.packetId) !== receipt) return;
    this.#receiving.delete(receipt.packetId);
    this.#receivingBefore.set(receipt.packetId, receipt);
    this.#qos2Changed();
  }

  /** @returns whether the packet id was known. */
  handlePubrel(packetId: number): boolean {
    if (!this.#received.delete(packetId)) return false;
    this.#qos2Changed();
    return true;
  }

  /** QoS 2 packet ids between PUBLISH and PUBREL. */
  get awaitingRelCount(): number {
    return this.#receiving.size + this.#receivingBefore.size + this.#received.size;
  }

  /** QoS 2 packet ids held for the client's PUBREL. */
  receivedIds(): Iterable<number> {
    return this.#received;
  }

  // ---- disk and moves ---------------------------------------------------------------------------------------------

  checkpoint(): Checkpoint {
    return {
      sentUpTo: this.#sentUpTo,
      nextPacketId: this.#nextPacketId,
      inflight: [...this.#inflight.values()].map(({ packetId, seq, qos, state, sent }) => ({
        packetId,
        seq,
        qos,
        state,
        sent,
      })),
      receiving: [...this.#receivingBefore.values(), ...this.#receiving.values()].map(
        ({ packetId, messageId, digest }) => ({ packetId, messageId, digest }),
      ),
      received: [...this.#received],
      retainedReads: this.retainedReads,
    };
  }

  /** The lowest number that is needed on disk now; Infinity: none. */
  get lowestSeq(): number {
    let lowest = this.#queue.first?.seq ?? Infinity;
    for (const { state, seq } of this.#inflight.values()) if (state === "publish" && seq < lowest) lowest = seq;
    return lowest;
  }

  /** @param stored the messages on disk, by rising `seq`, each once. */
  restore(checkpoint: Checkpoint, stored: Iterable<StoredMessage>): void {
    this.#sentUpTo = checkpoint.sentUpTo;
    this.#lastSeq = checkpoint.sentUpTo;
    this.#nextPacketId = checkpoint.nextPacketId;
    this.retainedReads = [...checkpoint.retainedReads];
    for (const packetId of checkpoint.received) this.#received.add(packetId);
    for (const before of checkpoint.receiving) this.#receivingBefore.set(before.packetId, before);
    const filters = new Map(checkpoint.inflight.map(({ seq }) => [seq, undefined as string | undefined]));
    for (const { seq, filter, bytes, shared } of stored) {
      if (filters.has(seq)) filters.set(seq, filter);
      if (filter === undefined) this.hasRows = true;
      if (seq <= this.#sentUpTo) continue;
      this.#lastSeq = seq;
      this.#queue.push({ seq, filter, bytes, shared, delivery: undefined, written: true });
      this.#queueBytes += bytes;
    }
    for (const entry of checkpoint.inflight) {
      const filter = filters.get(entry.seq);
      this.#inflight.set(entry.packetId, { ...entry, filter, delivery: undefined, written: true });
    }
    this.neededFrom = neededFrom(checkpoint);
  }

  /**
   * Messages of shared subscriptions that another member may get when this session ends: those never sent, and QoS 1
   * unacknowledged. A QoS 2 message once sent stays with its member. [MQTT-4.8.2-5]
   */
  *redispatchable(load: Load): Generator<Delivery> {
    for (const entry of this.#inflight.values())
      if (entry.state === "publish" && entry.qos === 1) {
        const delivery = entry.delivery ?? load(entry);
        if (delivery?.shared !== undefined) yield delivery;
      }
    for (const entry of this.#queue) {
      if (!entry.shared) continue;
      const delivery = entry.delivery ?? load(entry);
      if (delivery) yield delivery;
    }
  }

  /** A step of an exactly-once exchange: for a session that survives a crash it is on disk before it is acted on. */
  #qos2Changed(): void {
    this.changed();
    if (this.durable) this.urgent = true;
  }

  changed(): void {
    this.dirty = true;
    this.revision++;
  }

  #nextToResend(load: Load): Outgoing | undefined {
    for (const entry of this.#inflight.values()) {
      if (entry.sent) continue;
      // Only a PUBLISH waits for the window. [MQTT-3.3.4-10]
      if (entry.state === "publish" && this.#unacknowledged >= this.#window) continue;
      entry.sent = true;
      this.changed();
      this.#unsent--;
      this.#unacknowledged++;
      if (entry.state === "pubrel") return { kind: "pubrel", packetId: entry.packetId };
      // Delivery has begun, so it goes on, also of what has expired since. [MQTT-4.4.0-1] [MQTT-3.3.2-5]
      const delivery = entry.delivery ?? load(entry);
      // An exchange ends as it began, whatever has been subscribed since.
      if (delivery)
        return { kind: "publish", packetId: entry.packetId, dup: true, delivery: { ...delivery, qos: entry.qos } };
      // It was not to be kept, as before its subscription was granted. A client that has it waits for the end.
      if (entry.qos === 2) {
        entry.state = "pubrel";
        this.#qos2Changed();
        return { kind: "pubrel", packetId: entry.packetId };
      }
      this.#settle(entry);
    }
    return undefined;
  }

  #settle(entry: Inflight): void {
    this.#inflight.delete(entry.packetId);
    if (entry.sent) this.#unacknowledged--;
    else this.#unsent--;
    this.changed();
  }

  /** The next packet id not in use; the window is far smaller than the ids. [MQTT-2.2.1-4] */
  #freePacketId(): number {
    while (this.#inflight.has(this.#nextPacketId)) this.#nextPacketId = (this.#nextPacketId % 65_535) + 1;
    const packetId = this.#nextPacketId;
    this.#nextPacketId = (packetId % 65_535) + 1;
    return packetId;
  }
}

/** What a message of so many bytes takes as objects: 760 bytes of heap were measured with 64 of payload. */
function heldBytes(bytes: number): number {
  return bytes + 512;
}

/** The first number that a checkpoint needs on disk: a message sent and not acknowledged, or the first one not sent. */
export function neededFrom({ sentUpTo, inflight }: Checkpoint): number {
  let first = sentUpTo + 1;
  for (const { seq, state } of inflight) if (state === "publish" && seq < first) first = seq;
  return first;
}

/** FNV-1a, 32 bits: tells a repeated payload from another one. */
function digestOf(payload: Uint8Array): number {
  let hash = 0x811c9dc5;
  for (const byte of payload) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}
