/**
 * A session: what the broker knows of a client id beyond one connection. [MQTT-4.1.0-1]
 *
 *   deliver -> queue -> (window open) -> inflight -> PUBACK | PUBREC, PUBREL, PUBCOMP
 *
 * Outgoing QoS 1 and 2 messages get a sequence number when they come (`seq`) and a packet id when they are sent. The
 * queue is ordered by `seq`, the inflight window by the order of sending; together they hold every message that the
 * client has not acknowledged. A queue entry may hold only the number: its message then waits on disk and is loaded
 * when its turn comes, so a long queue costs no memory.
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

interface Queued {
  readonly seq: number;
  readonly bytes: number;
  readonly shared: boolean;
  delivery: Delivery | undefined;
  written: boolean;
}

interface Inflight {
  readonly packetId: number;
  readonly seq: number;
  readonly qos: QoS;
  state: "publish" | "pubrel";
  delivery: Delivery | undefined;
  written: boolean;
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
  readonly subscription: Subscription;
  /** The last topic read; undefined at the start. */
  readonly after: string | undefined;
}

/** What a restart needs, besides the messages themselves. */
export interface Checkpoint {
  readonly nextSeq: number;
  /** Every message up to here was sent; of those only the ones in `inflight` are unacknowledged. */
  readonly sentUpTo: number;
  readonly nextPacketId: number;
  readonly inflight: readonly Pick<Inflight, "packetId" | "seq" | "state">[];
  /** Packet ids of the window that the open connection has not got again yet. */
  readonly unsent: readonly number[];
  readonly receiving?: readonly Pick<Receipt, "packetId" | "messageId" | "digest">[];
  readonly received: readonly number[];
  readonly retainedReads: readonly RetainedRead[];
}

/** A message on disk, as far as the queue has to know it before its turn. */
export interface StoredMessage {
  readonly seq: number;
  readonly bytes: number;
  readonly qos: QoS;
  readonly shared: boolean;
}

export class Session {
  /** The node's own short name for it. */
  readonly id: number;
  readonly clientId: string;
  /** The registry's number for this client's latest claim: a higher one wins. */
  epoch = 0;
  username: string | undefined;
  connected = false;
  /** Seconds after the connection ends; 0 = ends with it, `expiryNever` = never. */
  expiryInterval = 0;
  /** ms since the epoch; 0 = no such deadline. */
  expiresAt = 0;
  willAt = 0;
  will: Will | undefined;
  /** SUBSCRIBEs that the cluster has not answered: what they ask for is not on disk yet. */
  subscribing = 0;
  /** Its messages are still coming from another node: none on disk may be given up. */
  adopting = false;
  readonly #subscriptions = new Map<string, Subscription>();
  #subscriptionBytes = 0;
  retainedReads: RetainedRead[] = [];
  /** State has changed since the last checkpoint. */
  dirty = false;
  /** Rises with every change. */
  revision = 0;
  /** ... in a way that must be on disk before anything else is sent. */
  urgent = false;

  #nextSeq = 1;
  #sentUpTo = 0;
  #nextPacketId = 1;
  readonly #queue = new Fifo<Queued>();
  #queueBytes = 0;
  readonly #inflight = new Map<number, Inflight>();
  #unacknowledged = 0;
  #unsent = 0;
  readonly #unsentInSleep = new Set<number>();
  #window = 0;
  readonly #receiving = new Map<number, Receipt>();
  /** Message ids of an earlier life: their packets were not answered, and are to come again. */
  readonly #receivingBefore = new Map<number, Pick<Receipt, "packetId" | "messageId" | "digest">>();
  readonly #received = new Set<number>();

  constructor(id: number, clientId: string) {
    this.id = id;
    this.clientId = clientId;
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

  unsubscribe(filter: string): boolean {
    if (!this.#subscriptions.delete(filter)) return false;
    this.#subscriptionBytes -= filter.length;
    this.retainedReads = this.retainedReads.filter((read) => read.subscription.filter !== filter);
    return true;
  }

  /** Nothing of it is in memory alone. */
  get atRest(): boolean {
    const isIdle = this.subscribing === 0 && this.#receiving.size === 0 && !this.adopting;
    return isIdle && !this.connected && !this.dirty;
  }

  /** A session that outlives its connection: what it was promised is on disk. */
  get durable(): boolean {
    return this.expiryInterval > 0;
  }

  /** It was there before and waits for its client: a new session has no deadline yet. */
  get detached(): boolean {
    return this.expiresAt !== 0;
  }

  get queued(): number {
    return this.#queue.length;
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
    this.changed();
  }

  /** The window after sleep: what was sent on the connection that is still open is not sent again. */
  reattach(receiveMaximum: number): void {
    this.#window = receiveMaximum;
    this.#unsent = 0;
    for (const entry of this.#inflight.values()) {
      entry.sent = !this.#unsentInSleep.has(entry.packetId);
      if (!entry.sent) this.#unsent++;
    }
    this.#unacknowledged = this.#inflight.size - this.#unsent;
  }

  /**
   * The connection is gone. What follows is due at `willAt` and `expiresAt`, which may be now: ask `due`.
   * The will goes out at its delay or at the session's end, whichever comes first. [MQTT-3.1.3-9]
   */
  detach(now: number): void {
    this.connected = false;
    for (const entry of this.#queue) if (entry.written) entry.delivery = undefined;
    if (this.will) this.willAt = now + Math.min(this.will.delaySeconds, this.expiryInterval) * 1000;
    this.expiresAt = this.expiryInterval === expiryNever ? atNoTime : now + this.expiryInterval * 1000;
    this.changed();
  }

  /** What time has brought to a session without a connection; takes the will out. */
  due(now: number): { will: Will | undefined; ended: boolean } {
    const ended = !this.connected && this.expiresAt !== 0 && this.expiresAt <= now;
    let will: Will | undefined;
    if (this.will && this.willAt !== 0 && (ended || this.willAt <= now)) {
      will = this.will;
      this.will = undefined;
      this.willAt = 0;
      this.changed();
    }
    return { will, ended };
  }

  // ---- outgoing ---------------------------------------------------------------------------------------------------

  /**
   * Takes a QoS 1 or 2 message in. The oldest waiting message makes room when the queue is full.
   * @returns its number, and the numbers of what was dropped for it.
   */
  enqueue(delivery: Delivery, queueLengthMax: number): { seq: number; dropped: number[] } {
    const bytes = messageBytes(delivery.message);
    const dropped: number[] = [];
    for (let oldest = this.#queue.first; oldest; oldest = this.#queue.first) {
      if (this.#queue.length < queueLengthMax && this.#queueBytes + bytes <= limits.mqueueBytesMax) break;
      this.#queue.shift();
      this.#queueBytes -= oldest.bytes;
      dropped.push(oldest.seq);
    }
    const seq = this.#nextSeq++;
    this.#queue.push({ seq, bytes, shared: delivery.shared !== undefined, delivery, written: false });
    this.#queueBytes += bytes;
    this.changed();
    return { seq, dropped };
  }

  /** Whether what comes now has to wait on disk, even for a session that ends with its connection. */
  get queueIsLong(): boolean {
    return this.#queue.length > limits.mqueueLoadedMax || this.#queueBytes > limits.mqueueLoadedBytesMax;
  }

  /** The last message taken in is on disk: the queue forgets it until its turn, unless that is soon. */
  written(seq: number): void {
    const entry = this.#queue.last;
    if (entry?.seq !== seq) return;
    entry.written = true;
    if (!this.connected || this.queueIsLong) entry.delivery = undefined;
  }

  /** What is held in memory alone, to be written before the object may sleep. */
  *unwritten(): Generator<{ seq: number; delivery: Delivery }> {
    for (const entry of this.#inflight.values())
      if (!entry.written && entry.delivery && entry.state === "publish") {
        entry.written = true;
        yield { seq: entry.seq, delivery: entry.delivery };
      }
    for (const entry of this.#queue)
      if (!entry.written && entry.delivery) {
        entry.written = true;
        yield { seq: entry.seq, delivery: entry.delivery };
      }
  }

  /**
   * The next thing to send while the window is open: first what a new connection must get again, then the queue.
   * @param load reads a message from disk; undefined when it is no longer there.
   */
  nextToSend(now: number, load: (seq: number) => Delivery | undefined): Outgoing | undefined {
    if (!this.connected) return undefined;
    if (this.#unsent > 0) {
      const again = this.#nextToResend(load);
      if (again || this.#unsent > 0) return again;
    }
    for (let entry = this.#queue.first; entry && this.#unacknowledged < this.#window; entry = this.#queue.first) {
      this.#queue.shift();
      this.#queueBytes -= entry.bytes;
      this.#sentUpTo = entry.seq;
      this.changed();
      const delivery = entry.delivery ?? load(entry.seq);
      if (!delivery || isExpired(delivery.message, now)) continue; // [MQTT-3.3.2-5]
      const packetId = this.#freePacketId();
      this.#inflight.set(packetId, {
        packetId,
        seq: entry.seq,
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
      nextSeq: this.#nextSeq,
      sentUpTo: this.#sentUpTo,
      nextPacketId: this.#nextPacketId,
      inflight: [...this.#inflight.values()].map(({ packetId, seq, state }) => ({ packetId, seq, state })),
      unsent: [...this.#inflight.values()].filter((entry) => !entry.sent).map((entry) => entry.packetId),
      receiving: [...this.#receivingBefore.values(), ...this.#receiving.values()].map(
        ({ packetId, messageId, digest }) => ({ packetId, messageId, digest }),
      ),
      received: [...this.#received],
      retainedReads: this.retainedReads,
    };
  }

  /** The numbers below which nothing on disk is needed any more. */
  get lowestSeq(): number {
    if (this.adopting) return 0;
    let lowest = this.#queue.first?.seq ?? this.#nextSeq;
    for (const entry of this.#inflight.values()) lowest = Math.min(lowest, entry.seq);
    return lowest;
  }

  /** @param stored the messages on disk, by rising `seq`. */
  restore(checkpoint: Checkpoint, stored: Iterable<StoredMessage>): void {
    this.#nextSeq = checkpoint.nextSeq;
    this.#sentUpTo = checkpoint.sentUpTo;
    this.#nextPacketId = checkpoint.nextPacketId;
    this.retainedReads = [...checkpoint.retainedReads];
    for (const packetId of checkpoint.received) this.#received.add(packetId);
    for (const before of checkpoint.receiving ?? []) this.#receivingBefore.set(before.packetId, before);
    for (const packetId of checkpoint.unsent) this.#unsentInSleep.add(packetId);
    const inflight = new Set(checkpoint.inflight.map(({ seq }) => seq));
    const qosOf = new Map<number, QoS>();
    for (const { seq, bytes, qos, shared } of stored) {
      this.#nextSeq = Math.max(this.#nextSeq, seq + 1);
      if (inflight.has(seq)) qosOf.set(seq, qos);
      if (seq <= this.#sentUpTo) continue;
      this.#queue.push({ seq, bytes, shared, delivery: undefined, written: true });
      this.#queueBytes += bytes;
    }
    for (const { packetId, seq, state } of checkpoint.inflight) {
      const qos = state === "pubrel" ? 2 : (qosOf.get(seq) ?? 1);
      this.#inflight.set(packetId, { packetId, seq, qos, state, delivery: undefined, written: true, sent: false });
    }
  }

  /**
   * Messages of shared subscriptions that another member may get when this session ends: those never sent, and QoS 1
   * unacknowledged. A QoS 2 message once sent stays with its member. [MQTT-4.8.2-5]
   */
  *redispatchable(load: (seq: number) => Delivery | undefined): Generator<Delivery> {
    for (const entry of this.#inflight.values())
      if (entry.state === "publish" && entry.qos === 1) {
        const delivery = entry.delivery ?? load(entry.seq);
        if (delivery?.shared !== undefined) yield delivery;
      }
    for (const entry of this.#queue) {
      if (!entry.shared) continue;
      const delivery = entry.delivery ?? load(entry.seq);
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

  #nextToResend(load: (seq: number) => Delivery | undefined): Outgoing | undefined {
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
      const delivery = entry.delivery ?? load(entry.seq);
      if (delivery) return { kind: "publish", packetId: entry.packetId, dup: true, delivery };
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

/** FNV-1a, 32 bits: tells a repeated payload from another one. */
function digestOf(payload: Uint8Array): number {
  let hash = 0x811c9dc5;
  for (const byte of payload) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}
