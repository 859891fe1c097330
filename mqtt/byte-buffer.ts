/** Reading and writing of the broker's own records: big endian, strings and blobs with their length in front. */
import { decodeText, writeText } from "./strings.ts";

/** What a writer holds at first, and above what it lets go of what it has grown to. */
const writerBytesMin = 1_024;
const writerBytesKept = 65_536;

export class ByteWriter {
  #bytes = new Uint8Array(writerBytesMin);
  #end = 0;

  get length(): number {
    return this.#end;
  }

  u8(value: number): this {
    this.#reserve(1);
    this.#bytes[this.#end++] = value;
    return this;
  }

  u16(value: number): this {
    this.#reserve(2);
    this.#bytes[this.#end++] = value >>> 8;
    this.#bytes[this.#end++] = value;
    return this;
  }

  u32(value: number): this {
    this.#reserve(4);
    this.u32At(this.#end, value);
    this.#end += 4;
    return this;
  }

  /** Over what was written before. */
  u32At(at: number, value: number): void {
    const bytes = this.#bytes;
    bytes[at] = value >>> 24;
    bytes[at + 1] = value >>> 16;
    bytes[at + 2] = value >>> 8;
    bytes[at + 3] = value;
  }

  /** A whole number below 2^48: times in ms, counters. */
  u48(value: number): this {
    return this.u16(Math.floor(value / 2 ** 32)).u32(value >>> 0);
  }

  /** At most 65,535 bytes of UTF-8, as every string of MQTT. */
  string(value: string): this {
    this.#reserve(2 + value.length * 3);
    const start = this.#end + 2;
    const written = writeText(value, 0, value.length, this.#bytes, start)!;
    this.u16(written);
    this.#end += written;
    return this;
  }

  blob(value: Uint8Array): this {
    return this.u32(value.length).raw(value);
  }

  raw(value: Uint8Array): this {
    this.#reserve(value.length);
    this.#bytes.set(value, this.#end);
    this.#end += value.length;
    return this;
  }

  /** What was written, as a copy; the writer starts over. */
  take(): Uint8Array {
    const taken = this.#bytes.slice(0, this.#end);
    this.#end = 0;
    if (this.#bytes.length > writerBytesKept) this.#bytes = new Uint8Array(writerBytesMin);
    return taken;
  }

  /** What was written, for who copies it at once: the writer starts over, and what is written next overwrites it. */
  view(): Uint8Array {
    const view = this.#bytes.subarray(0, this.#end);
    this.#end = 0;
    return view;
  }

  #reserve(count: number): void {
    if (this.#end + count <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(this.#bytes.length * 2, this.#end + count));
    grown.set(this.#bytes.subarray(0, this.#end));
    this.#bytes = grown;
  }
}

/** Reads what a ByteWriter wrote; RangeError where the record ends early. Blobs are views into the bytes given. */
export class ByteReader {
  readonly #bytes: Uint8Array;
  readonly #end: number;
  offset: number;

  constructor(bytes: Uint8Array, offset = 0, end = bytes.length) {
    this.#bytes = bytes;
    this.#end = end;
    this.offset = offset;
  }

  get done(): boolean {
    return this.offset >= this.#end;
  }

  u8(): number {
    return this.#bytes[this.#skip(1)]!;
  }

  u16(): number {
    const at = this.#skip(2);
    return (this.#bytes[at]! << 8) | this.#bytes[at + 1]!;
  }

  u32(): number {
    return this.u16() * 0x10000 + this.u16();
  }

  u48(): number {
    return this.u16() * 2 ** 32 + this.u32();
  }

  string(): string {
    const length = this.u16();
    const start = this.#skip(length);
    return decodeText(this.#bytes, start, start + length);
  }

  blob(): Uint8Array {
    return this.raw(this.u32());
  }

  /** What has not been read. */
  rest(): Uint8Array {
    return this.#bytes.subarray(this.offset, this.#end);
  }

  raw(length: number): Uint8Array {
    // The views of nothing are all one: an allocation less for each message without properties.
    if (length === 0) return nothing;
    const start = this.#skip(length);
    return this.#bytes.subarray(start, start + length);
  }

  /** A reader of the next `length` bytes, which this one steps over. */
  window(length: number): ByteReader {
    const start = this.#skip(length);
    return new ByteReader(this.#bytes, start, start + length);
  }

  /** Steps over `length` bytes and returns where they began. */
  #skip(length: number): number {
    const start = this.offset;
    if (start + length > this.#end) throw new RangeError("record ends early");
    this.offset = start + length;
    return start;
  }
}

const nothing = new Uint8Array(0);

/** What `allocate` cuts its pieces from. */
let slab = nothing;
let slabAt = 0;
const slabBytes = 16_384;

/**
 * A new array as a piece of a larger one, which costs a tenth of an array of its own. For what is forgotten soon: a piece
 * keeps all of the larger one.
 */
export function allocate(length: number): Uint8Array {
  if (length > slabBytes / 8) return new Uint8Array(length);
  if (slabAt + length > slab.length) {
    slab = new Uint8Array(slabBytes);
    slabAt = 0;
  }
  const start = slabAt;
  slabAt += length;
  return slab.subarray(start, slabAt);
}

/** @param bytes their length in all. */
export function concatenate(parts: readonly Uint8Array[], bytes: number): Uint8Array {
  const whole = new Uint8Array(bytes);
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}
