/**
 * The QoS 2 messages that the node has taken in, for some time, and under which number: a batch whose answer was lost comes
 * again, and so does what a publisher was not answered before its own node crashed. A session that was here when a message
 * came has it, and does not get it again; one that came from another node later may not have had it there.
 *
 *   forgotten  (at): when the old ones were last looked for
 *   known  (origin, block, seqs, at): a number u48 for each message of a node's life, 0 for those that have not come
 *
 * It is on disk where a durable session has got the message; transient ones end with the memory that knows theirs.
 */
import { limits } from "../../mqtt/limits.ts";
import { MessageIdSet, placeOf } from "../../mqtt/message-id-set.ts";
import type { Sql } from "../schema.ts";

const blockLength = 128;
const seqBytes = 6;

interface Block {
  readonly origin: string;
  readonly block: number;
  readonly seqs: DataView<ArrayBuffer>;
}

export class KnownMessages {
  readonly #sql: Sql;
  readonly #blocks = new Map<string, Block>();
  readonly #unwritten = new Set<Block>();
  /** ms since the epoch; undefined: not read in this life. */
  #forgottenAt: number | undefined;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** The number that the message had when it came last; 0: it has not come. */
  seqOf(id: string, shared: string | undefined): number {
    const { origin, block, index } = placeOf(id, shared, blockLength);
    return readSeq(this.#block(origin, block).seqs, index);
  }

  /** On disk with the next `flush`. */
  add(id: string, shared: string | undefined, seq: number): void {
    this.#unwritten.add(this.#set(id, shared, seq));
  }

  /** In memory, for sessions that end with it. */
  addTransient(id: string, shared: string | undefined, seq: number): void {
    this.#set(id, shared, seq);
  }

  #set(id: string, shared: string | undefined, seq: number): Block {
    const { origin, block, index } = placeOf(id, shared, blockLength);
    const found = this.#block(origin, block);
    found.seqs.setUint16(index * seqBytes, Math.floor(seq / 2 ** 32));
    found.seqs.setUint32(index * seqBytes + 2, seq >>> 0);
    return found;
  }

  flush(now: number): void {
    if (this.#unwritten.size === 0) return;
    for (const { origin, block, seqs } of this.#unwritten)
      this.#sql.exec("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)", origin, block, seqs.buffer, now);
    this.#unwritten.clear();
    this.#forget(now);
  }

  /** Looks through the table once in a while, also over many short lives. */
  #forget(now: number): void {
    this.#forgottenAt ??= this.#sql.exec<{ at: number }>("SELECT at FROM forgotten").toArray()[0]?.at ?? 0;
    if (now - this.#forgottenAt < limits.knownMs) return;
    this.#forgottenAt = now;
    this.#sql.exec("DELETE FROM known WHERE at < ?", now - limits.knownMs);
    this.#sql.exec("INSERT OR REPLACE INTO forgotten VALUES (1, ?)", now);
  }

  /** The latest that came behind a number, for a node that takes a session over. */
  latest(behind: number, now: number): MessageIdSet {
    this.flush(now);
    const set = new MessageIdSet();
    for (const { origin, block, seqs } of this.#sql.exec<{ origin: string; block: number; seqs: ArrayBuffer }>(
      "SELECT origin, block, seqs FROM known ORDER BY at DESC LIMIT ?",
      limits.knownBlocksMovedMax,
    )) {
      const view = new DataView(seqs);
      for (let index = 0; index < blockLength; index++)
        if (readSeq(view, index) > behind) set.addNumber(origin, block * blockLength + index);
    }
    return set;
  }

  #block(origin: string, number: number): Block {
    const key = `${number} ${origin}`;
    const loaded = this.#blocks.get(key);
    if (loaded) return loaded;
    const row = this.#sql
      .exec<{ seqs: ArrayBuffer }>("SELECT seqs FROM known WHERE origin = ? AND block = ?", origin, number)
      .toArray()[0];
    const block = { origin, block: number, seqs: new DataView(row?.seqs ?? new ArrayBuffer(blockLength * seqBytes)) };
    this.#makeRoom();
    this.#blocks.set(key, block);
    return block;
  }

  #makeRoom(): void {
    if (this.#blocks.size < limits.knownBlocksLoadedMax) return;
    for (const [key, block] of this.#blocks) {
      if (this.#unwritten.has(block)) continue;
      this.#blocks.delete(key);
      return;
    }
  }
}

function readSeq(seqs: DataView, index: number): number {
  return seqs.getUint16(index * seqBytes) * 2 ** 32 + seqs.getUint32(index * seqBytes + 2);
}
