/**
 * The checkpoints of a node's sessions on its disk. Neighbours share a row, so a thousand sessions that have acknowledged
 * a message are written as eight rows; a checkpoint that has grown large has a row of its own.
 *
 *   checkpoint  (page, states): page n holds sessions n * checkpointsPerRow on, page -id the session of that id alone
 */
import { ByteReader, ByteWriter, concatenate } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import type { QoS } from "../../mqtt/message.ts";
import type { Checkpoint } from "../../mqtt/session.ts";
import type { Sql } from "../schema.ts";

/** The checkpoint of a session that has sent and received nothing: it needs no disk. */
export const emptyCheckpoint: Checkpoint = {
  sentUpTo: 0,
  nextPacketId: 1,
  inflight: [],
  receiving: [],
  received: [],
  retainedReads: [],
};

/** Session id -> checkpoint; an empty one says that the session has a row of its own. */
type Page = Map<number, Uint8Array>;

export class Checkpoints {
  readonly #sql: Sql;
  readonly #writer = new ByteWriter();
  readonly #pages = new Map<number, Page>();

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  get(id: number): Checkpoint {
    const bytes = this.#page(pageOf(id)).get(id);
    if (!bytes) return emptyCheckpoint;
    return readCheckpoint(new ByteReader(bytes.length > 0 ? bytes : this.#read(-id)!));
  }

  put(checkpoints: Iterable<readonly [id: number, checkpoint: Checkpoint]>): void {
    const byPage = Map.groupBy(checkpoints, ([id]) => pageOf(id));
    for (const [number, members] of byPage) {
      const page = this.#page(number);
      for (const [id, checkpoint] of members) {
        const hadOwnRow = page.get(id)?.length === 0;
        writeCheckpoint(this.#writer, checkpoint);
        const bytes = this.#writer.take();
        const hasOwnRow = bytes.length > limits.checkpointBytesSharedMax;
        page.set(id, hasOwnRow ? new Uint8Array() : bytes);
        if (hasOwnRow) this.#write(-id, bytes);
        else if (hadOwnRow) this.#delete(-id);
      }
      this.#write(number, writePage(page));
    }
  }

  delete(id: number): void {
    const number = pageOf(id);
    const page = this.#page(number);
    const bytes = page.get(id);
    if (!bytes) return;
    if (bytes.length === 0) this.#delete(-id);
    page.delete(id);
    if (page.size === 0) this.#delete(number);
    else this.#write(number, writePage(page));
  }

  /** Those of this session and of later ones. */
  deleteFrom(id: number): void {
    const number = pageOf(id);
    for (const later of this.#page(number).keys()) if (later >= id) this.delete(later);
    this.#sql.exec("DELETE FROM checkpoint WHERE page > ? OR page <= ?", number, -id);
  }

  #page(number: number): Page {
    let page = this.#pages.get(number);
    if (page) return page;
    page = readPage(this.#read(number) ?? new Uint8Array());
    const [oldest] = this.#pages.keys();
    if (oldest !== undefined && this.#pages.size >= limits.checkpointRowsLoadedMax) this.#pages.delete(oldest);
    this.#pages.set(number, page);
    return page;
  }

  #read(number: number): Uint8Array | undefined {
    const row = this.#sql
      .exec<{ states: ArrayBuffer }>("SELECT states FROM checkpoint WHERE page = ?", number)
      .toArray()[0];
    return row && new Uint8Array(row.states);
  }

  #write(number: number, states: Uint8Array): void {
    this.#sql.exec("INSERT OR REPLACE INTO checkpoint VALUES (?, ?)", number, states);
  }

  #delete(number: number): void {
    this.#sql.exec("DELETE FROM checkpoint WHERE page = ?", number);
  }
}

function pageOf(id: number): number {
  return Math.floor(id / limits.checkpointsPerRow);
}

/** Of each session: id u32, its checkpoint as a blob. */
function writePage(page: Page): Uint8Array {
  const parts: Uint8Array[] = [];
  let length = 0;
  for (const [id, bytes] of page) {
    const head = new Uint8Array(8);
    const view = new DataView(head.buffer);
    view.setUint32(0, id);
    view.setUint32(4, bytes.length);
    parts.push(head, bytes);
    length += 8 + bytes.length;
  }
  return concatenate(parts, length);
}

function readPage(states: Uint8Array): Page {
  const page: Page = new Map();
  const reader = new ByteReader(states);
  while (!reader.done) page.set(reader.u32(), reader.blob());
  return page;
}

/** Flags of an inflight message: QoS, bit 2 released by PUBREC, bit 3 sent on the open connection. */
function writeCheckpoint(writer: ByteWriter, checkpoint: Checkpoint): void {
  writer.u48(checkpoint.sentUpTo).u16(checkpoint.nextPacketId);
  writer.u16(checkpoint.inflight.length);
  for (const { packetId, seq, qos, state, sent } of checkpoint.inflight)
    writer
      .u16(packetId)
      .u48(seq)
      .u8(qos | (state === "pubrel" ? 4 : 0) | (sent ? 8 : 0));
  writer.u16(checkpoint.receiving.length);
  for (const { packetId, messageId, digest } of checkpoint.receiving)
    writer.u16(packetId).string(messageId).u32(digest);
  writer.u16(checkpoint.received.length);
  for (const packetId of checkpoint.received) writer.u16(packetId);
  writer.u16(checkpoint.retainedReads.length);
  for (const { filter, after } of checkpoint.retainedReads) {
    writer.string(filter).u8(after === undefined ? 0 : 1);
    if (after !== undefined) writer.string(after);
  }
}

function readCheckpoint(reader: ByteReader): Checkpoint {
  return {
    sentUpTo: reader.u48(),
    nextPacketId: reader.u16(),
    inflight: times(reader.u16(), () => {
      const [packetId, seq, flags] = [reader.u16(), reader.u48(), reader.u8()];
      const state = (flags & 4) === 0 ? "publish" : "pubrel";
      return { packetId, seq, qos: (flags & 3) as QoS, state, sent: (flags & 8) !== 0 } as const;
    }),
    receiving: times(reader.u16(), () => ({
      packetId: reader.u16(),
      messageId: reader.string(),
      digest: reader.u32(),
    })),
    received: times(reader.u16(), () => reader.u16()),
    retainedReads: times(reader.u16(), () => ({
      filter: reader.string(),
      after: reader.u8() === 0 ? undefined : reader.string(),
    })),
  };
}

function times<T>(count: number, read: () => T): T[] {
  return Array.from({ length: count }, read);
}
