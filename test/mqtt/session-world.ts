/**
 * A client and a broker's disk around a session, written as plainly as can be, to test the session against.
 *
 * The world keeps lists and sets of what it has seen and checks every rule at the moment it matters: order, window,
 * packet ids, DUP, what is dropped, what has expired. Each step is one event, chosen by a seed: a message, an answer of
 * the client (in any order), a lost connection, a new one, a checkpoint, sleep, a crash. Of a durable session's messages
 * some are in the log, under one filter or two, some of them not for it; others are for it alone. The log is cut at times.
 */
import assert from "node:assert/strict";
import { limits } from "../../mqtt/limits.ts";
import { isExpired, messageBytes, type QoS } from "../../mqtt/message.ts";
import {
  expiryNever,
  neededFrom,
  QueueMemory,
  Session,
  type Checkpoint,
  type Delivery,
  type Outgoing,
  type Place,
  type StoredMessage,
} from "../../mqtt/session.ts";
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

/** What a session's row holds, as far as these tests go. */
type Row = Pick<Session, "durable" | "expiryInterval" | "expiresAt" | "willAt">;

function rowOf({ durable, expiryInterval, expiresAt, willAt }: Session): Row {
  return { durable, expiryInterval, expiresAt, willAt };
}

/** As it is on disk: nothing is shared with the session that goes on. */
function checkpointOf(session: Session): Checkpoint {
  return JSON.parse(JSON.stringify(session.checkpoint())) as Checkpoint;
}

/** What was sent on its connection means nothing when there is none. */
function shown(checkpoint: Checkpoint, { connected }: Session): Checkpoint {
  return { ...checkpoint, inflight: checkpoint.inflight.map((entry) => ({ ...entry, sent: connected && entry.sent })) };
}

/**
 * What a node does with the messages of a session: it numbers them, and keeps rows of the session's own, the log under
 * its filters, and the last checkpoint. Who else reads the log does not matter here: this session is the only one that
 * holds it back.
 */
export class Disk {
  seq = 0;
  rows = new Map<number, Delivery>();
  /** Filter -> number -> message; "pass": one that is not for this session. */
  readonly log = new Map<string, Map<number, Delivery | "pass">>();
  checkpoint: Checkpoint | undefined;
  row: Row | undefined;

  readonly load = ({ seq, filter }: Place): Delivery | undefined => {
    if (filter === undefined) return this.rows.get(seq);
    const logged = this.log.get(filter)?.get(seq);
    return logged === "pass" ? undefined : logged;
  };

  has(seq: number): boolean {
    return this.rows.has(seq) || [...this.log.values()].some((stream) => stream.has(seq));
  }

  save(session: Session): void {
    for (const { seq, delivery } of session.unwritten()) this.rows.set(seq, delivery);
    if (!session.hasRows) assert.equal(this.rows.size, 0);
    for (const seq of this.rows.keys()) if (seq < session.lowestSeq) this.rows.delete(seq);
    const [checkpoint, row] = [checkpointOf(session), rowOf(session)];
    // What is not dirty need not be written.
    if (!session.dirty && this.checkpoint)
      assert.deepEqual(shown(this.checkpoint, session), shown(checkpoint, session));
    if (!session.rowDirty && this.row) assert.deepEqual(this.row, row);
    this.checkpoint = checkpoint;
    this.row = row;
    session.dirty = session.urgent = session.rowDirty = false;
    session.neededFrom = neededFrom(checkpoint);
    for (const stream of this.log.values())
      for (const seq of stream.keys()) if (seq < session.neededFrom) stream.delete(seq);
  }

  /** The session as another life of the object finds it. */
  restore(): Session {
    const session = new Session(1, "c", new QueueMemory());
    Object.assign(session, this.row);
    const stored = new Map<number, StoredMessage>();
    for (const [filter, stream] of this.log)
      for (const [seq, logged] of stream)
        if (seq >= neededFrom(this.checkpoint!)) stored.set(seq, storedAs({ seq, filter }, logged));
    for (const [seq, each] of this.rows) stored.set(seq, storedAs({ seq, filter: undefined }, each));
    session.restore(
      this.checkpoint!,
      [...stored.values()].sort((a, b) => a.seq - b.seq),
    );
    session.dirty = session.rowDirty = false;
    return session;
  }

  /** A message that is on disk before anything else happens. @returns the numbers of what was dropped. */
  enqueue(session: Session, each: Delivery, { max = plenty, filters = [] }: EnqueueOptions = {}): number[] {
    const seq = ++this.seq;
    if (filters.length === 0) this.rows.set(seq, each);
    this.append(seq, each, filters);
    return this.dispatch(session, { seq, filter: filters[0] }, each, max);
  }

  /** A message that is in memory alone. */
  hold(session: Session, each: Delivery, max = plenty): number[] {
    return this.drop(session.enqueue({ seq: ++this.seq, filter: undefined }, each, max));
  }

  append(seq: number, each: Delivery | "pass", filters: readonly string[]): void {
    for (const filter of filters) {
      const stream = this.log.get(filter);
      if (stream) stream.set(seq, each);
      else this.log.set(filter, new Map([[seq, each]]));
    }
  }

  /** A message that is on disk comes to a session in memory. */
  dispatch(session: Session, place: Place, each: Delivery, max: number): number[] {
    const dropped = session.enqueue(place, each, max);
    session.written(place.seq);
    return this.drop(dropped);
  }

  /** What is dropped goes from the rows; the log is not one session's. */
  drop(places: readonly Place[]): number[] {
    for (const { seq, filter } of places) if (filter === undefined) this.rows.delete(seq);
    return places.map(({ seq }) => seq);
  }

  /** The log keeps a stream's messages up to a number no longer: what a session in memory waits for is its own now. */
  cut(session: Session | undefined, filter: string, upTo: number): void {
    for (const entry of session?.waiting() ?? []) {
      if (entry.filter !== filter || entry.seq > upTo) continue;
      const found = entry.delivery ?? this.load(entry);
      if (found) this.rows.set(entry.seq, found);
      session!.own(entry);
    }
    const stream = this.log.get(filter);
    for (const seq of stream?.keys() ?? []) if (seq <= upTo) stream!.delete(seq);
  }
}

export interface EnqueueOptions {
  readonly max?: number;
  /** Those that it is logged under; none: it is for the session alone. */
  readonly filters?: readonly string[];
}

function storedAs(place: Place, each: Delivery | "pass"): StoredMessage {
  const logged = each === "pass" ? delivery("pass") : each;
  return { ...place, bytes: messageBytes(logged.message), shared: logged.shared !== undefined };
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
  dropped = new Set<string>();
  readonly refused = new Set<string>();
  /** The broker has seen the end of their exchange. */
  readonly settled = new Set<string>();
  readonly all = new Map<string, Delivery>();
  readonly idOfSeq = new Map<number, string>();
  /** Logged and not for this session. */
  readonly passing = new Set<string>();
  /** Sent at least once, and not only in a life that a crash has undone. */
  sentOnce = new Set<string>();
  readonly everSent = new Set<string>();
  /** Left behind unsent: expired, or not for this session. */
  passed = new Set<string>();
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
  saved = { inUse: new Map<number, Sent>(), sentOnce: new Set<string>(), passed: new Set<string>() };

  constructor(seed: number, isDurable: boolean) {
    this.next = random(seed);
    this.isDurable = isDurable;
    this.session = new Session(1, "c", new QueueMemory());
    this.session.expiryInterval = isDurable ? expiryNever : 0;
    this.save();
    this.connect();
  }

  pick(below: number): number {
    return Math.floor(this.next() * below);
  }

  save(): void {
    this.disk.save(this.session);
    this.saved = { inUse: new Map(this.inUse), sentOnce: new Set(this.sentOnce), passed: new Set(this.passed) };
  }

  /** Before anything leaves. */
  saveUrgent(): void {
    if (this.session.urgent) this.save();
  }

  message(): { id: string; each: Delivery } {
    const id = `m${this.messages++}`;
    const expiresAt = this.next() < 0.15 ? this.now + 1 + this.pick(3000) : 0;
    const each = delivery(id, { qos: this.next() < 0.5 ? 1 : 2, expiresAt });
    this.all.set(id, each);
    this.disk.seq += this.pick(3); // the numbers of a node are not all of one session
    return { id, each };
  }

  filters(): readonly string[] {
    return [["t"], ["+"], ["t", "+"], ["+", "t"]][this.pick(4)]!;
  }

  deliver(): void {
    if (this.isDurable && this.next() < 0.6) return this.deliverLogged();
    const { id, each } = this.message();
    const max = this.queueLengthMax;
    this.noteDropped(1, () =>
      this.isDurable ? this.disk.enqueue(this.session, each, { max }) : this.disk.hold(this.session, each, max),
    );
    this.idOfSeq.set(this.disk.seq, id);
    this.pump();
  }

  /** In the log first, then to the session, if it is in memory. */
  deliverLogged(): void {
    const { id, each } = this.message();
    const seq = ++this.disk.seq;
    const filters = this.filters();
    const place = { seq, filter: filters[0] };
    const isForIt = this.next() < 0.8;
    if (!isForIt) this.passing.add(id);
    const isAtRest = !this.session.connected && this.next() < 0.5;
    if (isAtRest) this.save();
    this.disk.append(seq, isForIt ? each : "pass", filters);
    if (isAtRest) {
      this.idOfSeq.set(seq, id);
      if (this.next() < 0.5) return this.load();
      // What it is loaded for it has found in the log already.
      this.load();
      const { queued } = this.session;
      assert.deepEqual(this.disk.dispatch(this.session, place, each, 1), []);
      this.session.pass(seq);
      assert.equal(this.session.queued, queued);
      return;
    }
    if (isForIt) this.noteDropped(1, () => this.disk.dispatch(this.session, place, each, this.queueLengthMax));
    else {
      this.session.pass(seq);
      this.passed.add(id);
    }
    this.idOfSeq.set(seq, id);
    this.pump();
  }

  /** The oldest of those that wait make room for what comes, and no more than needed. */
  noteDropped(coming: number, makeRoom: () => number[]): void {
    const waiting = this.waiting();
    const dropped = makeRoom();
    const tooMany = Math.max(0, waiting.length + coming - this.queueLengthMax);
    assert.deepEqual(dropped, waiting.slice(0, tooMany));
    for (const seq of dropped) this.dropped.add(this.idOfSeq.get(seq)!);
  }

  /** Messages never sent, by what the world has seen. */
  waiting(): number[] {
    return [...this.idOfSeq.keys()].filter((seq) => {
      const id = this.idOfSeq.get(seq)!;
      return !this.sentOnce.has(id) && !this.dropped.has(id) && !this.passed.has(id);
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
      const mayPass = this.passing.has(id) || isExpired(this.all.get(id)!.message, this.now);
      assert.deepEqual({ id, mayPass }, { id, mayPass: true });
      this.passed.add(id);
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
    assert.ok(!this.passing.has(message.id));
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
    this.settled.add(this.inUse.get(packetId)!.id);
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
    this.inbox = [];
    this.inUse = new Map(this.saved.inUse);
    this.sentOnce = new Set(this.saved.sentOnce);
    this.passed = new Set(this.saved.passed);
    this.load();
    this.session.detach(this.now);
  }

  /** The object is evicted between two events: all is written, the socket stays. */
  sleep(): void {
    this.save();
    const { connected } = this.session;
    this.load();
    this.session.connected = connected;
    if (connected) this.session.reattach(this.window);
    this.pump();
  }

  /** The session comes from disk, and nobody has counted what waits for it. */
  load(): void {
    const { sentUpTo } = this.disk.checkpoint!;
    this.session = this.disk.restore();
    for (const [seq, id] of this.idOfSeq) {
      if (this.sentOnce.has(id)) continue;
      const isThere = seq > sentUpTo && this.disk.has(seq);
      // The log may still have what was dropped, or passed over, since the checkpoint.
      if (isThere) this.dropped.delete(id);
      if (isThere) this.passed.delete(id);
      else if (!this.dropped.has(id)) {
        const mayBeGone =
          this.settled.has(id) || this.passing.has(id) || isExpired(this.all.get(id)!.message, this.now);
        assert.deepEqual({ id, mayBeGone }, { id, mayBeGone: true });
        this.passed.add(id);
      }
    }
    assert.equal(this.session.queued, this.waiting().length);
    this.noteDropped(0, () => this.disk.drop(this.session.makeRoom(this.queueLengthMax, limits.mqueueBytesMax)));
  }

  /** The log has become too long. A session that is not in memory loses what waits, but nothing that it was sent. */
  cut(): void {
    const filter = this.next() < 0.5 ? "t" : "+";
    const upTo = this.disk.seq - this.pick(12);
    if (!this.session.connected) this.save();
    const isSent = this.disk.checkpoint!.inflight.some(({ seq, state }) => state === "publish" && seq <= upTo);
    if (this.session.connected || isSent) return this.disk.cut(this.session, filter, upTo);
    this.disk.cut(undefined, filter, upTo);
    for (const seq of this.waiting()) if (!this.disk.has(seq)) this.dropped.add(this.idOfSeq.get(seq)!);
    this.load();
  }

  step(): void {
    const dice = this.next();
    this.now += this.pick(100);
    if (dice < 0.35) this.deliver();
    else if (dice < 0.78) this.answer();
    else if (dice < 0.83) this.save();
    else if (dice < 0.88) this.sleep();
    else if (dice < 0.92 && this.isDurable) this.cut();
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
      const mayBeMissing =
        this.dropped.has(id) || this.refused.has(id) || this.passing.has(id) || isExpired(message, this.now);
      if (!mayBeMissing || times > 0) assert.deepEqual({ id, got: times > 0 }, { id, got: true });
      if (qos === 2) assert.deepEqual({ id, times }, { id, times: Math.min(times, 1) });
      if (this.dropped.has(id) && !this.everSent.has(id)) assert.equal(times, 0);
    }
  }
}
