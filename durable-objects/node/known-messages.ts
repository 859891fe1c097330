/**
 * The QoS 2 messages that the node has taken in, for some time: a batch whose answer was lost comes again, and so does what
 * a publisher was not answered before its own node crashed. What is known is not taken in a second time.
 *
 *   known  (origin, block, bits, at): a bit for each message of a node's life, see message-id-set.ts
 *
 * It is on disk where a durable session has got the message; transient ones end with the memory that knows theirs.
 */
import { limits } from "../../mqtt/limits.ts";
import { blockBytes, hasBit, MessageIdSet, placeOf, setBit } from "../../mqtt/message-id-set.ts";
import type { Sql } from "../schema.ts";

interface Block {
  readonly origin: string;
  readonly block: number;
  readonly bits: Uint8Array;
}

export class KnownMessages {
  readonly #sql: Sql;
  readonly #blocks = new Map<string, Block>();
  readonly #unwritten = new Set<Block>();
  #forgotAt = 0;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  has(id: string, shared: string | undefined): boolean {
    const { origin, block, bit } = placeOf(id, shared);
    return hasBit(this.#block(origin, block).bits, bit);
  }

  /** On disk with the next `flush`. */
  add(id: string, shared: string | undefined): void {
    this.#unwritten.add(this.#set(id, shared));
  }

  /** In memory, for sessions that end with it. */
  addTransient(id: string, shared: string | undefined): void {
    this.#set(id, shared);
  }

  #set(id: string, shared: string | undefined): Block {
    const { origin, block, bit } = placeOf(id, shared);
    const found = this.#block(origin, block);
    setBit(found.bits, bit);
    return found;
  }

  flush(now: number): void {
    for (const { origin, block, bits } of this.#unwritten)
      this.#sql.exec("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)", origin, block, bits, now);
    this.#unwritten.clear();
    if (now - this.#forgotAt < limits.knownMs) return;
    this.#forgotAt = now;
    this.#sql.exec("DELETE FROM known WHERE at < ?", now - limits.knownMs);
  }

  /** The latest, for a node that takes a session over. */
  latest(now: number): MessageIdSet {
    this.flush(now);
    const set = new MessageIdSet();
    for (const { origin, block, bits } of this.#sql.exec<{ origin: string; block: number; bits: ArrayBuffer }>(
      "SELECT origin, block, bits FROM known ORDER BY at DESC LIMIT ?",
      limits.knownBlocksMovedMax,
    ))
      set.addBlock(origin, block, new Uint8Array(bits));
    return set;
  }

  #block(origin: string, number: number): Block {
    const key = `${number} ${origin}`;
    const loaded = this.#blocks.get(key);
    if (loaded) return loaded;
    const row = this.#sql
      .exec<{ bits: ArrayBuffer }>("SELECT bits FROM known WHERE origin = ? AND block = ?", origin, number)
      .toArray()[0];
    const block = { origin, block: number, bits: row ? new Uint8Array(row.bits) : new Uint8Array(blockBytes) };
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
