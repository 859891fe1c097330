/**
 * Natural batching toward one destination object. What is added in one turn leaves as one batch; while batches are
 * under way more gathers, so an idle broker sends one message at once and a busy one large batches, without a timer.
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
import { limits, retryDelayMs } from "../mqtt/limits.ts";
import { joinRecords } from "./rpc.ts";

/** What happened to a record: the answer's reason code, or `undefined` when the destination is unreachable. */
export type Settled = (reasonCode: number | undefined) => void;

/** A record that somebody waits for, and that is kept when the destination is unreachable. */
export interface Parkable {
  readonly bytes: Uint8Array;
  readonly settled: Settled;
}

interface Item {
  readonly bytes: Uint8Array;
  /** undefined: QoS 0, nobody waits. */
  readonly settled: Settled | undefined;
  readonly whenUnreachable: "drop" | "giveUp" | "park";
}

interface Batch {
  /** Its place in the order of sending. */
  readonly number: number;
  readonly items: readonly Item[];
  readonly bytes: number;
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
  #waiting: Item[] = [];
  #waitingBytes = 0;
  #underWay = 0;
  #nextNumber = 0;
  #failed: Batch[] = [];
  #scheduled = false;
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
    return this.#waiting.length === 0 && this.#underWay === 0 && this.#pausedBy === undefined;
  }

  /** Nothing is sent any more, and nothing answered. */
  close(): void {
    this.#isClosed = true;
    this.#waiting = [];
  }

  /** QoS 0: nobody waits for it, and at the bound it is the first to go. */
  addUnacknowledged(bytes: Uint8Array): void {
    if (this.#pausedBy === "overload") this.#countDropped("overloaded", 1);
    else if (this.#waitingBytes >= limits.outboxBytesMaxQos0) this.#countDropped("outbox_full", 1);
    else this.#add({ bytes, settled: undefined, whenUnreachable: "drop" });
  }

  /** Settled with undefined when the destination is unreachable: only where there is a place to park. */
  add(bytes: Uint8Array, settled: Settled): void {
    this.#add({ bytes, settled, whenUnreachable: "giveUp" });
  }

  /** Parked when the destination is unreachable. */
  addParkable({ bytes, settled }: Parkable): void {
    this.#add({ bytes, settled, whenUnreachable: "park" });
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

  #add(item: Item): void {
    this.#waiting.push(item);
    this.#waitingBytes += item.bytes.length;
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled || this.#pausedBy) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#flush();
    });
  }

  #flush(): void {
    if (this.#pausedBy) return;
    while (this.#waiting.length > 0 && this.#underWay < limits.batchesInFlightMax) this.#start(this.#nextBatch());
  }

  #nextBatch(): Batch {
    let count = 0;
    let bytes = 0;
    while (count < this.#waiting.length) {
      const next = bytes + this.#waiting[count]!.bytes.length;
      if (count > 0 && next > limits.batchBytesMax) break;
      bytes = next;
      count++;
    }
    this.#waitingBytes -= bytes;
    return { number: this.#nextNumber++, items: this.#waiting.splice(0, count), bytes, failures: 0 };
  }

  #start(batch: Batch): void {
    this.#underWay++;
    const records = joinRecords(
      batch.items.map((item) => item.bytes),
      batch.bytes,
    );
    void this.#call(batch, records);
  }

  /** The call is made at once; its answer is one code a record. */
  async #call(batch: Batch, records: Uint8Array): Promise<void> {
    let codes: Uint8Array;
    try {
      // Called at once; what it throws at once fails like any other answer, later.
      codes = await this.#sendNow(records);
      if (codes.length !== batch.items.length)
        throw new Error(`${codes.length} answers came to ${batch.items.length} records`);
    } catch (error) {
      return this.#handleFailure(batch, error);
    }
    this.#handleAnswer(batch, codes);
  }

  async #sendNow(records: Uint8Array): Promise<Uint8Array> {
    this.#send ??= this.#connect();
    return this.#send(records);
  }

  #handleAnswer(batch: Batch, codes: Uint8Array): void {
    this.#underWay--;
    this.#pauses = 0;
    for (const [index, item] of batch.items.entries()) settle(item, codes[index]);
    this.#retryWhenSettled();
    this.#schedule();
  }

  #handleFailure(batch: Batch, error: unknown): void {
    this.#underWay--;
    this.#send = undefined;
    const overloaded = isOverloaded(error);
    this.#pausedBy = overloaded ? "overload" : (this.#pausedBy ?? "failure");
    if (overloaded) this.#shed();
    else batch.failures++;
    const kept = batch.items.filter((item) => item.settled !== undefined);
    if (kept.length < batch.items.length)
      this.#countDropped(overloaded ? "overloaded" : "unreachable", batch.items.length - kept.length);
    if (kept.length > 0) this.#failed.push({ ...batch, items: kept, bytes: bytesOf(kept) });
    if (batch.failures % limits.attemptsMax === 0 && !overloaded)
      console.error(`a batch of ${batch.items.length} has failed ${batch.failures} times: ${String(error)}`);
    this.#retryWhenSettled();
  }

  /** QoS 0 goes first. */
  #shed(): void {
    const kept = this.#waiting.filter((item) => item.settled !== undefined);
    if (kept.length < this.#waiting.length) this.#countDropped("overloaded", this.#waiting.length - kept.length);
    this.#waiting = kept;
    this.#waitingBytes = bytesOf(kept);
  }

  /** The destination is unreachable. */
  #leave(failed: readonly Batch[], park: Park): void {
    const items = [...failed.flatMap((batch) => batch.items), ...this.#waiting];
    this.#waiting = [];
    this.#waitingBytes = 0;
    park(items.filter(isParkable));
    const dropped = items.filter((item) => item.whenUnreachable === "drop");
    if (dropped.length > 0) this.#countDropped("unreachable", dropped.length);
    for (const item of items) if (item.whenUnreachable === "giveUp") settle(item, undefined);
  }

  #retryWhenSettled(): void {
    if (!this.#pausedBy || this.#underWay > 0 || this.#isClosed) return;
    const failed = this.#failed.sort((a, b) => a.number - b.number);
    this.#failed = [];
    if (this.#pausedBy === "reconnect" && failed.length === 0) {
      this.#send = undefined;
      this.#pausedBy = undefined;
      return this.#flush();
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

function isParkable(item: Item): item is Item & Parkable {
  return item.whenUnreachable === "park";
}

function bytesOf(items: readonly Item[]): number {
  return items.reduce((sum, { bytes }) => sum + bytes.length, 0);
}

/** What the runtime says of an object that gets more calls than it can take. */
export function isOverloaded(error: unknown): boolean {
  return error instanceof Error && (error as { overloaded?: unknown }).overloaded === true;
}

/** One waiter's failure is not the others'. */
export function settle(item: Pick<Item, "settled">, reasonCode: number | undefined): void {
  try {
    item.settled?.(reasonCode);
  } catch (error) {
    console.error("an answer could not be handled:", error);
  }
}
