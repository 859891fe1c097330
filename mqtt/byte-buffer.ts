/** Reading and writing of the broker's own records: big endian, strings and blobs with their length in front. */

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: false, ignoreBOM: true });

export class ByteWriter {
  #bytes = new Uint8Array(1024);
  #view = new DataView(this.#bytes.buffer);
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
    this.#view.setUint16(this.#end, value);
    this.#end += 2;
    return this;
  }

  u32(value: number): this {
    this.#reserve(4);
    this.#view.setUint32(this.#end, value);
    this.#end += 4;
    return this;
  }

  /** A whole number below 2^48: times in ms, counters. */
  u48(value: number): this {
    return this.u16(Math.floor(value / 2 ** 32)).u32(value >>> 0);
  }

  /** At most 65,535 bytes of UTF-8, as every string of MQTT. */
  string(value: string): this {
    this.#reserve(2 + value.length * 3);
    const { written } = encoder.encodeInto(value, this.#bytes.subarray(this.#end + 2));
    this.#view.setUint16(this.#end, written);
    this.#end += 2 + written;
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
    return taken;
  }

  #reserve(count: number): void {
    if (this.#end + count <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(this.#bytes.length * 2, this.#end + count));
    grown.set(this.#bytes.subarray(0, this.#end));
    this.#bytes = grown;
    this.#view = new DataView(grown.buffer);
  }
}

/** Reads what a ByteWriter wrote. Blobs are views into the bytes given. */
export class ByteReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  offset: number;

  constructor(bytes: Uint8Array, offset = 0) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.offset = offset;
  }

  get done(): boolean {
    return this.offset >= this.#bytes.length;
  }

  u8(): number {
    return this.#view.getUint8(this.offset++);
  }

  u16(): number {
    const value = this.#view.getUint16(this.offset);
    this.offset += 2;
    return value;
  }

  u32(): number {
    const value = this.#view.getUint32(this.offset);
    this.offset += 4;
    return value;
  }

  u48(): number {
    return this.u16() * 2 ** 32 + this.u32();
  }

  string(): string {
    return decoder.decode(this.raw(this.u16()));
  }

  blob(): Uint8Array {
    return this.raw(this.u32());
  }

  /** What has not been read. */
  rest(): Uint8Array {
    return this.#bytes.subarray(this.offset);
  }

  raw(length: number): Uint8Array {
    const start = this.offset;
    this.offset += length;
    if (this.offset > this.#bytes.length) throw new RangeError("record ends early");
    return this.#bytes.subarray(start, this.offset);
  }
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
