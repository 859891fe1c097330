/**
 * A set of message ids that costs a bit each: ids count up from the start of a node's life, so those of one life that
 * came lie close together.
 *
 *     "4f1c09d2a6b3" + "1z"  ->  origin "4f1c09d2a6b3", number 71  ->  block 0, bit 71
 *
 * A share group's copy of a message is another delivery than the message itself: the group is part of its origin.
 */
import type { ByteReader, ByteWriter } from "./byte-buffer.ts";

/** Of a node's life, in a message id. */
export const lifeChars = 12;
const blockBytes = 128;

export interface IdPlace {
  /** The life, and behind it the share group and filter if there is one. */
  readonly origin: string;
  readonly block: number;
  readonly index: number;
}

/**
 * Where an id is among blocks of this length.
 * @param shared the `$share/group/filter` that the message came by
 */
export function placeOf(id: string, shared: string | undefined, blockLength: number): IdPlace {
  const number = numberOf(id);
  if (!Number.isSafeInteger(number)) throw new Error(`"${id}" is no message id`);
  const block = Math.floor(number / blockLength);
  return { origin: lifeOf(id) + (shared ?? ""), block, index: number - block * blockLength };
}

/** The id of a life's nth message. */
export function messageIdOf(life: string, number: number): string {
  return life + number.toString(36);
}

/** The node's life that gave an id. */
export function lifeOf(id: string): string {
  return id.slice(0, lifeChars);
}

/** Whether a life gave this id before the other one, or both are the same; of two lives nobody can tell. */
export function isUpTo(id: string, other: string): boolean {
  return lifeOf(id) === lifeOf(other) && numberOf(id) <= numberOf(other);
}

function numberOf(id: string): number {
  return Number.parseInt(id.slice(lifeChars), 36);
}

export class MessageIdSet {
  readonly #blocks = new Map<string, Map<number, Uint8Array>>();

  has(id: string, shared: string | undefined): boolean {
    const { origin, block, index } = placeOf(id, shared, blockBytes * 8);
    const bits = this.#blocks.get(origin)?.get(block);
    return bits !== undefined && (bits[index >> 3]! & (1 << (index & 7))) !== 0;
  }

  add(id: string, shared: string | undefined): void {
    const { origin, block, index } = placeOf(id, shared, blockBytes * 8);
    this.#add(origin, block, index);
  }

  /** The nth message of a life, or of a life and share group. */
  addNumber(origin: string, number: number): void {
    const block = Math.floor(number / (blockBytes * 8));
    this.#add(origin, block, number - block * blockBytes * 8);
  }

  #add(origin: string, block: number, index: number): void {
    this.#block(origin, block)[index >> 3]! |= 1 << (index & 7);
  }

  #addBlock(origin: string, block: number, bits: Uint8Array): void {
    const own = this.#block(origin, block);
    for (const [index, byte] of bits.entries()) own[index]! |= byte;
  }

  addAll(other: MessageIdSet): void {
    for (const [origin, blocks] of other.#blocks)
      for (const [block, bits] of blocks) this.#addBlock(origin, block, bits);
  }

  write(writer: ByteWriter): void {
    for (const [origin, blocks] of this.#blocks)
      for (const [block, bits] of blocks)
        writer.string(origin.slice(0, lifeChars)).string(origin.slice(lifeChars)).u48(block).raw(bits);
  }

  static read(reader: ByteReader): MessageIdSet {
    const set = new MessageIdSet();
    while (!reader.done) set.#addBlock(reader.string() + reader.string(), reader.u48(), reader.raw(blockBytes));
    return set;
  }

  #block(origin: string, block: number): Uint8Array {
    let blocks = this.#blocks.get(origin);
    if (!blocks) this.#blocks.set(origin, (blocks = new Map()));
    let bits = blocks.get(block);
    if (!bits) blocks.set(block, (bits = new Uint8Array(blockBytes)));
    return bits;
  }
}
