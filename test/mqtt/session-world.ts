/**
 * A client and a broker's disk around a session, written as plainly as can be, to test the session against.
 *
 * The world keeps lists and sets of what it has seen and checks every rule at the moment it matters: order, window,
 * packet ids, DUP, what is dropped, what has expired. Each step is one event, chosen by a seed: a message, an answer of
 * the client (in any order), a lost connection, a new one, a checkpoint, sleep, a crash.
 */
import assert from "node:assert/strict";
import { isExpired, type QoS } from "../../mqtt/message.ts";
import { expiryNever, Session, type Checkpoint, type Delivery, type Outgoing } from "../../mqtt/session.ts";
import { random } from "../support/random.ts";

export const now = 1_700_000_000_000;
export const plenty = 1000;

export function delivery(id: string, { qos = 1, bytes = 1, expiresAt = 0, shared }: DeliveryOptions = {}): Delivery {
  return {
    message: {
      id,
      topic: "t",
      payload: new Uint8Array(bytes),
      qos,
      retain: false,
      properties: new Uint8Array(0),
      expiresAt,
      from: "publisher",
    },
    qos,
    retain: false,
    subscriptionIds: [],
    shared,
  };
}

export interface DeliveryOptions {
  readonly qos?: QoS;
  readonly bytes?: number;
  readonly expiresAt?: number;
  readonly shared?: string;
}

/** What a node does with a session's messages: rows by number, and the last checkpoint. */
export class Disk {
  rows = new Map<number, Delivery>();
  checkpoint: Checkpoint | undefined;

  readonly load = (seq: number): Delivery | undefined => this.rows.get(seq);

  save(session: Session): void {
    for (const { seq, delivery } of session.unwritten()) this.rows.set(seq, delivery);
    for (const seq of this.rows.keys()) if (seq < session.lowestSeq) this.rows.delete(seq);
    // As it is on disk: nothing is shared with the session that goes on.
    this.checkpoint = JSON.parse(JSON.stringify(session.checkpoint())) as Checkpoint;
    session.dirty = false;
    session.urgent = false;
  }

  /** The session as another life of the object finds it. */
  restore(): Session {
    const session = new Session(1, "c");
    session.expiryInterval = expiryNever;
    const stored = [...this.rows]
      .sort(([a], [b]) => a - b)
      .map(([seq, { qos, shared }]) => ({ seq, bytes: 100, qos, shared: shared !== undefined }));
    session.restore(this.checkpoint!, stored);
    return session;
  }

  /** A durable session's message is on disk before anything else happens. */
  enqueue(session: Session, each: Delivery, queueLengthMax = plenty): { seq: number; dropped: number[] } {
    const enqueued = session.enqueue(each, queueLengthMax);
    this.rows.set(enqueued.seq, each);
    session.written(enqueued.seq);
    for (const seq of enqueued.dropped) this.rows.delete(seq);
    return enqueued;
  }
}

interface Sent {
  readonly id: string;
  readonly qos: QoS;
}

/**
 * A client and a broker's disk around a session, written as plainly as can be: lists and sets, and every rule checked
 * at the moment it matters.
 */
export class World {
  readonly disk = new Disk();
  readonly next: () => number;
  readonly isDurable: boolean;
  readonly queueLengthMax = 12;
  session: Session;
  now = now;
  messages = 0;

  /** Messages that the client's application has got. */
  readonly got = new Map<string, number>();
  readonly dropped = new Set<string>();
  readonly refused = new Set<string>();
  readonly all = new Map<string, Delivery>();
  readonly idOfSeq = new Map<number, string>();
  /** Sent at least once, and not only in a life that a crash has undone. */
  sentOnce = new Set<string>();
  readonly everSent = new Set<string>();
  /** Passed over: expired before they were sent. */
  expired = new Set<string>();
  /** Messages whose PUBREC the broker has seen. */
  readonly pubrecSeen = new Set<string>();

  /** The client: QoS 2 ids between PUBLISH and PUBREL, and what is on its way to it. */
  readonly clientHolds = new Set<number>();
  inbox: Outgoing[] = [];
  window = 0;
  unacknowledgedHere = new Set<number>();
  lastSeqHere = 0;
  /** The broker's packet ids in use, now and at the last checkpoint. */
  inUse = new Map<number, Sent>();
  saved = { inUse: new Map<number, Sent>(), sentOnce: new Set<string>(), expired: new Set<string>() };

  constructor(seed: number, isDurable: boolean) {
    this.next = random(seed);
    this.isDurable = isDurable;
    this.session = new Session(1, "c");
    this.session.expiryInterval = isDurable ? expiryNever : 0;
    this.save();
    this.connect();
  }

  pick(below: number): number {
    return Math.floor(this.next() * below);
  }

  save(): void {
    this.disk.save(this.session);
    this.saved = { inUse: new Map(this.inUse), sentOnce: new Set(this.sentOnce), expired: new Set(this.expired) };
  }

  /** Before anything leaves. */
  saveUrgent(): void {
    if (this.session.urgent) this.save();
  }

  deliver(): void {
    const id = `m${this.messages++}`;
    const expiresAt = this.next() < 0.15 ? this.now + 1 + this.pick(3000) : 0;
    const each = delivery(id, { qos: this.next() < 0.5 ? 1 : 2, expiresAt });
    this.all.set(id, each);
    const waiting = this.waiting();
    const { seq, dropped } = this.isDurable
      ? this.disk.enqueue(this.session, each, this.queueLengthMax)
      : this.session.enqueue(each, this.queueLengthMax);
    for (const one of dropped) this.disk.rows.delete(one);
    // The oldest of those that wait, and no more than needed.
    const tooMany = Math.max(0, waiting.length + 1 - this.queueLengthMax);
    assert.deepEqual(dropped, waiting.slice(0, tooMany));
    for (const one of dropped) this.dropped.add(this.idOfSeq.get(one)!);
    this.idOfSeq.set(seq, id);
    this.pump();
  }

  /** Messages never sent, by what the world has seen. */
  waiting(): number[] {
    return [...this.idOfSeq.keys()].filter((seq) => {
      const id = this.idOfSeq.get(seq)!;
      return !this.sentOnce.has(id) && !this.dropped.has(id) && !this.expired.has(id);
    });
  }

  pump(): void {
    if (!this.session.connected) return;
    for (;;) {
      const out = this.session.nextToSend(this.now, this.disk.load);
      if (!out) break;
      this.handleOut(out);
      this.passOver();
    }
    this.passOver();
    this.saveUrgent();
  }

  /** What has left the queue without being sent was the oldest and had expired. */
  passOver(): void {
    const waiting = this.waiting();
    for (const seq of waiting.slice(0, waiting.length - this.session.queued)) {
      const id = this.idOfSeq.get(seq)!;
      assert.deepEqual({ id, expired: isExpired(this.all.get(id)!.message, this.now) }, { id, expired: true });
      this.expired.add(id);
    }
  }

  handleOut(out: Outgoing): void {
    this.inbox.push(out);
    const known = this.inUse.get(out.packetId);
    if (out.kind === "pubrel") {
      assert.ok(known && this.pubrecSeen.has(known.id));
      return;
    }
    const { message, qos } = out.delivery;
    assert.ok(!this.pubrecSeen.has(message.id));
    // Order, on each connection.
    const seq = [...this.idOfSeq].find(([, id]) => id === message.id)![0];
    assert.ok(seq > this.lastSeqHere);
    this.lastSeqHere = seq;
    // The window.
    this.unacknowledgedHere.add(out.packetId);
    assert.ok(this.unacknowledgedHere.size <= this.window);
    // Packet ids and DUP.
    assert.ok(out.packetId >= 1);
    assert.ok(out.packetId <= 65_535);
    if (this.sentOnce.has(message.id)) {
      assert.ok(out.dup);
      assert.equal(known?.id, message.id);
    } else {
      assert.ok(!out.dup);
      assert.equal(known, undefined);
      assert.ok(!isExpired(message, this.now));
      this.inUse.set(out.packetId, { id: message.id, qos });
    }
    this.sentOnce.add(message.id);
    this.everSent.add(message.id);
  }

  /** The client takes any packet that has come, and its answer gets through if the connection holds. */
  answer(): void {
    const [packet] = this.inbox.splice(this.pick(this.inbox.length), 1);
    if (!packet) return;
    const { packetId } = packet;
    if (packet.kind === "pubrel") {
      this.clientHolds.delete(packetId);
      if (this.next() < 0.05) return this.drop();
      this.session.handlePubcomp(packetId);
      this.settle(packetId);
    } else if (packet.delivery.qos === 1) {
      this.take(packet.delivery.message.id);
      if (this.next() < 0.05) return this.drop();
      this.session.handlePuback(packetId);
      this.settle(packetId);
    } else {
      const refuses = !this.clientHolds.has(packetId) && !packet.dup && this.next() < 0.05;
      if (refuses) this.refused.add(packet.delivery.message.id);
      else if (!this.clientHolds.has(packetId)) {
        this.clientHolds.add(packetId);
        this.take(packet.delivery.message.id);
      }
      if (!refuses && this.next() < 0.05) return this.drop();
      this.session.handlePubrec(packetId, refuses ? 0x83 : 0);
      if (refuses) {
        this.settle(packetId);
        this.save(); // the client counts on it
      } else {
        this.pubrecSeen.add(packet.delivery.message.id);
        this.saveUrgent();
        this.inbox.push({ kind: "pubrel", packetId });
      }
    }
    this.pump();
  }

  take(id: string): void {
    this.got.set(id, (this.got.get(id) ?? 0) + 1);
  }

  settle(packetId: number): void {
    this.inUse.delete(packetId);
    this.unacknowledgedHere.delete(packetId);
  }

  /** The connection is gone, with all that was on its way. */
  drop(): void {
    this.session.detach(this.now);
    this.inbox = [];
  }

  connect(): void {
    this.inbox = [];
    this.unacknowledgedHere = new Set();
    this.lastSeqHere = 0;
    this.window = 1 + this.pick(6);
    this.session.attach(this.window);
    this.pump();
  }

  /** The object goes without a word: the disk is what is left. */
  crash(): void {
    this.session = this.disk.restore();
    this.inbox = [];
    this.inUse = new Map(this.saved.inUse);
    this.sentOnce = new Set(this.saved.sentOnce);
    this.expired = new Set(this.saved.expired);
    this.session.detach(this.now);
  }

  /** The object is evicted between two events: all is written, the socket stays. */
  sleep(): void {
    this.save();
    const { connected, expiryInterval } = this.session;
    this.session = this.disk.restore();
    this.session.expiryInterval = expiryInterval;
    this.session.connected = connected;
    if (connected) this.session.reattach(this.window);
    this.pump();
  }

  step(): void {
    const dice = this.next();
    this.now += this.pick(100);
    if (dice < 0.35) this.deliver();
    else if (dice < 0.8) this.answer();
    else if (dice < 0.86) this.save();
    else if (dice < 0.92) this.sleep();
    else if (!this.isDurable) this.answer();
    else if (dice < 0.95) this.crash();
    else if (this.session.connected) this.drop();
    else this.connect();
  }

  /** A client that stays until nothing is left. */
  drain(): void {
    if (this.isDurable) {
      if (this.session.connected) this.drop();
      this.connect();
    }
    for (let left = 10_000; this.inbox.length > 0 || this.session.inflightCount > 0; left--) {
      assert.ok(left > 0);
      if (this.inbox.length === 0) assert.ok(!this.session.connected);
      if (!this.session.connected) this.connect();
      this.answer();
    }
  }

  check(): void {
    assert.equal(this.session.queued, 0);
    for (const [id, { message, qos }] of this.all) {
      const times = this.got.get(id) ?? 0;
      const mayBeMissing = this.dropped.has(id) || this.refused.has(id) || isExpired(message, this.now);
      if (!mayBeMissing || times > 0) assert.deepEqual({ id, got: times > 0 }, { id, got: true });
      if (qos === 2) assert.deepEqual({ id, times }, { id, times: Math.min(times, 1) });
      if (this.dropped.has(id) && !this.everSent.has(id)) assert.equal(times, 0);
    }
  }
}
