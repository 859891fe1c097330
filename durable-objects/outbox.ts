/**
 * Natural batching toward one destination object: what is added while a batch is under way leaves as the next one. So an
 * idle broker sends one message at once, at the end of the event that brought it, and a busy one large batches. A
 * destination that is far away does not make them wait: after a moment what has gathered goes behind the batches that
 * are under way, and so does at once what is large.
 *
 * Records are copied into the batch that is being gathered, so that a message costs bytes, and an object only when
 * somebody waits for its answer.
 *
 * Order: batches are called in order on one stub, and calls on one stub arrive in order (G2). After a failure nothing
 * new is sent until all calls under way have settled; then the failed batches go again, first to last, on a new stub:
 * a stub that threw stays dead. QoS 0 is not sent twice: it is dropped and counted.
 *
 * What somebody waits for is held for as long as it takes, and with it its acknowledgement: to give one record up and
 * send those behind it would turn the order round when its client sends it again. Where there is a place to park, a
 * destination that fails a batch `attemptsMax` times is unreachable, and everything that waits leaves the outbox at once.
 * One that says that it is overloaded is there, and asks for less: its failures do not count, and QoS 0 is shed until the
 * next try.
 *
 * Bounds (G6): bytes waiting, bytes and number of batches.
 */
import { ByteWriter } from "../mqtt/byte-buffer.ts";
import { limits, retryDelayMs } from "../mqtt/limits.ts";
import { rpcVersion } from "./rpc.ts";
import { Turn } from "./turn.ts";

/** What happened to a record: the answer's reason code, or `undefined` when the destination is unreachable. */
export type Settled = (reasonCode: number | undefined) => void;

/** A record that somebody waits for, and that is kept when the destination is unreachable. */
export interface Parkable {
  readonly bytes: Uint8Array;
  readonly settled: Settled;
}

/** Who waits for a record of a batch; nobody does at QoS 0. */
interface Waiter {
  /** Of the record, among those of the batch, and in its bytes. */
  readonly index: number;
  readonly start: number;
  readonly end: number;
  readonly settled: Settled;
  readonly isParkable: boolean;
}

interface Batch {
  /** Its place in the order of sending. */
  readonly number: number;
  /** With the version in front. */
  readonly bytes: Uint8Array;
  readonly records: number;
  readonly waiters: readonly Waiter[];
  /** Calls that failed; those that met an overload do not count. */
  failures: number;
}

/** QoS 0 messages that are lost: at the bound, or because a call failed. */
export type CountDropped = (reason: "outbox_full" | "overloaded" | "unreachable", count: number) => void;

/** Takes what is kept when the destination is unreachable, in order, before the rest is given up. */
export type Park = (items: readonly Parkable[]) => void;

/** Sends one batch; resolves to one reason code a record. */
export type SendBatch = (batch: Uint8Array) => Promise<Uint8Array>;

export class Outbox {
  /** Makes a fresh stub and gives its call. */
  readonly #connect: () => SendBatch;
  readonly #countDropped: CountDropped;
  readonly #park: Park | undefined;
  #send: SendBatch | undefined;
  /** The batch that is being gathered. */
  readonly #writer = new ByteWriter();
  #records = 0;
  #waiters: Waiter[] = [];
  /** Batches that are as large as they may be. */
  #sealed: Batch[] = [];
  #waitingBytes = 0;
  #underWay = 0;
  #nextNumber = 0;
  #failed: Batch[] = [];
  readonly #turn = new Turn(() => this.#flush());
  #moment: ReturnType<typeof setTimeout> | undefined;
  #isClosed = false;
  /** Why nothing new is sent until the next try. */
  #pausedBy: "failure" | "overload" | "reconnect" | undefined;
  /** Pauses since the last answer. */
  #pauses = 0;

  /** @param park called at most once: nothing is to be added any more. */
  constructor(connect: () => SendBatch, countDropped: CountDropped, park?: Park) {
    this.#connect = connect;
    this.#countDropped = countDropped;
    this.#park = park;
  }

  /** Whether the bytes waiting are at their bound: time to refuse QoS 1 and 2. */
  get full(): boolean {
    return this.#waitingBytes >= limits.outboxBytesMax;
  }

  /** Nothing waits, also not for the next try; nothing is under way. */
  get isIdle(): boolean {
    return this.#waitingBytes === 0 && this.#underWay === 0 && this.#pausedBy === undefined;
  }

  /** Nothing is sent any more, and nothing answered. */
  close(): void {
    this.#isClosed = true;
    this.#takeWaiting();
  }

  /** QoS 0: nobody waits for it, and at the bound it is the first to go. */
  addUnacknowledged(bytes: Uint8Array): void {
    if (this.#pausedBy === "overload") this.#countDropped("overloaded", 1);
    else if (this.#waitingBytes >= limits.outboxBytesMaxQos0) this.#countDropped("outbox_full", 1);
    else {
      this.#write(bytes);
      this.#schedule();
    }
  }

  /** Settled with undefined when the destination is unreachable: only where there is a place to park. */
  add(bytes: Uint8Array, settled: Settled): void {
    this.#add(bytes, settled, false);
  }

  /** Parked when the destination is unreachable. */
  addParkable({ bytes, settled }: Parkable): void {
    this.#add(bytes, settled, true);
  }

  /** Resolves when the record is answered, rejects when the destination is unreachable. */
  addAndWait(bytes: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      this.add(bytes, (reasonCode) => {
        if (reasonCode === undefined) reject(new Error("the destination does not answer"));
        else resolve();
      });
    });
  }

  /** Lets what is under way be answered, and goes on over a new connection. */
  reconnect(): void {
    if (this.#pausedBy) return;
    this.#pausedBy = "reconnect";
    this.#retryWhenSettled();
  }

  #add(bytes: Uint8Array, settled: Settled, isParkable: boolean): void {
    const start = this.#write(bytes);
    this.#waiters.push({ index: this.#records - 1, start, end: start + bytes.length, settled, isParkable });
    this.#schedule();
  }

  /** @returns where the record is in the batch. */
  #write(bytes: Uint8Array): number {
    if (this.#records > 0 && this.#writer.length - 1 + bytes.length > limits.batchBytesMax)
      this.#sealed.push(this.#seal());
    if (this.#records === 0) this.#writer.u8(rpcVersion);
    const start = this.#writer.length;
    this.#writer.raw(bytes);
    this.#records++;
    this.#waitingBytes += bytes.length;
    return start;
  }

  #seal(): Batch {
    const batch = {
      number: this.#nextNumber++,
      bytes: this.#writer.take(),
      records: this.#records,
      waiters: this.#waiters,
      failures: 0,
    };
    this.#records = 0;
    this.#waiters = [];
    return batch;
  }

  #schedule(): void {
    if (this.#pausedBy) return;
    if (this.#underWay === 0 || this.#waitingBytes >= limits.batchBytesSoon) return this.#turn.endSoon();
    this.#moment ??= setTimeout(() => {
      this.#moment = undefined;
      this.#flush();
    }, limits.batchGatherMs);
  }

  /** @returns how many batches were sent. */
  #flush(): number {
    let sent = 0;
    while (!this.#pausedBy && this.#underWay < limits.batchesInFlightMax) {
      const batch = this.#sealed.shift() ?? (this.#records > 0 ? this.#seal() : undefined);
      if (!batch) break;
      this.#waitingBytes -= recordBytes(batch);
      this.#start(batch);
      sent++;
    }
    return sent;
  }

  #start(batch: Batch): void {
    this.#underWay++;
    void this.#call(batch);
  }

  /** The call is made at once; its answer is one code a record. */
  async #call(batch: Batch): Promise<void> {
    let codes: Uint8Array;
    try {
      // Called at once; what it throws at once fails like any other answer, later.
      codes = await this.#sendNow(batch.bytes);
      if (codes.length !== batch.records) throw new Error(`${codes.length} answers came to ${batch.records} records`);
    } catch (error) {
      return this.#handleFailure(batch, error);
    }
    this.#handleAnswer(batch, codes);
  }

  async #sendNow(bytes: Uint8Array): Promise<Uint8Array> {
    this.#send ??= this.#connect();
    return this.#send(bytes);
  }

  #handleAnswer({ waiters }: Batch, codes: Uint8Array): void {
    this.#underWay--;
    this.#pauses = 0;
    for (const waiter of waiters) settle(waiter, codes[waiter.index]);
    this.#retryWhenSettled();
    if (this.#waitingBytes > 0 && !this.#pausedBy) this.#turn.endSoon();
  }

  #handleFailure(batch: Batch, error: unknown): void {
    this.#underWay--;
    this.#send = undefined;
    const overloaded = isOverloaded(error);
    this.#pausedBy = overloaded ? "overload" : (this.#pausedBy ?? "failure");
    if (overloaded) this.#shed();
    else batch.failures++;
    this.#failed.push(...this.#withoutQos0([batch], overloaded ? "overloaded" : "unreachable"));
    if (batch.failures % limits.attemptsMax === 0 && !overloaded)
      console.error(`a batch of ${batch.records} has failed ${batch.failures} times: ${String(error)}`);
    this.#retryWhenSettled();
  }

  /** QoS 0 goes first. */
  #shed(): void {
    this.#sealed = this.#withoutQos0(this.#takeWaiting(), "overloaded");
    this.#waitingBytes = this.#sealed.reduce((sum, batch) => sum + recordBytes(batch), 0);
  }

  /** What waits, in batches; nothing waits any more. */
  #takeWaiting(): Batch[] {
    const waiting = this.#sealed;
    if (this.#records > 0) waiting.push(this.#seal());
    this.#sealed = [];
    this.#waitingBytes = 0;
    return waiting;
  }

  #withoutQos0(batches: readonly Batch[], reason: "overloaded" | "unreachable"): Batch[] {
    let dropped = 0;
    const kept: Batch[] = [];
    for (const batch of batches) {
      dropped += batch.records - batch.waiters.length;
      if (batch.waiters.length > 0) kept.push(keepWaited(batch));
    }
    if (dropped > 0) this.#countDropped(reason, dropped);
    return kept;
  }

  /** The destination is unreachable. */
  #leave(failed: readonly Batch[], park: Park): void {
    const batches = this.#withoutQos0([...failed, ...this.#takeWaiting()], "unreachable");
    const items = batches.flatMap(({ bytes, waiters }) =>
      waiters.map(({ start, end, settled, isParkable }) => ({
        bytes: bytes.subarray(start, end),
        settled,
        isParkable,
      })),
    );
    park(items.filter(({ isParkable }) => isParkable));
    for (const item of items) if (!item.isParkable) settle(item, undefined);
  }

  #retryWhenSettled(): void {
    if (!this.#pausedBy || this.#underWay > 0 || this.#isClosed) return;
    const failed = this.#failed.sort((a, b) => a.number - b.number);
    this.#failed = [];
    if (this.#pausedBy === "reconnect" && failed.length === 0) {
      this.#send = undefined;
      this.#pausedBy = undefined;
      this.#flush();
      return;
    }
    const isUnreachable = failed.some((batch) => batch.failures >= limits.attemptsMax);
    if (this.#park && isUnreachable) return this.#leave(failed, this.#park);
    this.#pauses++;
    setTimeout(
      () => {
        if (this.#isClosed) return;
        this.#pausedBy = undefined;
        for (const batch of failed) this.#start(batch);
        this.#flush();
      },
      retryDelayMs(Math.max(this.#pauses, ...failed.map((batch) => batch.failures))),
    );
  }
}

/** All that it carries but the version. */
function recordBytes({ bytes }: Batch): number {
  return bytes.length - 1;
}

/** The batch without what nobody waits for. */
function keepWaited(batch: Batch): Batch {
  const { bytes, waiters, records } = batch;
  if (waiters.length === records) return batch;
  const writer = new ByteWriter().u8(rpcVersion);
  const kept = waiters.map((waiter, index) => {
    const start = writer.length;
    writer.raw(bytes.subarray(waiter.start, waiter.end));
    return { ...waiter, index, start, end: writer.length };
  });
  return { ...batch, bytes: writer.take(), records: kept.length, waiters: kept };
}

/** What the runtime says of an object that gets more calls than it can take. */
export function isOverloaded(error: unknown): boolean {
  return error instanceof Error && (error as { overloaded?: unknown }).overloaded === true;
}

/** One waiter's failure is not the others'. */
export function settle({ settled }: { readonly settled: Settled }, reasonCode: number | undefined): void {
  try {
    settled(reasonCode);
  } catch (error) {
    console.error("an answer could not be handled:", error);
  }
}
