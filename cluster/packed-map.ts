/**
 * A map from texts to numbers, for a million entries in little memory.
 *
 *     hash("a/b") --> slot 5:  tags   [.. 0 0 17 0 ..]       8 bits of the hash, 0: the slot is free
 *                              places [.. 0 0 70 0 ..]       page and offset of the record
 *
 *     page 0:  .. | value, length, "a/b" as UTF-8 | ..       records one behind the other
 *
 * A Map keeps each text as an object of its own, with 12 bytes besides the characters and up to 3 of alignment, and 15 to
 * 30 bytes an entry. Here it is 6 bytes and 7 to 13, and the garbage collector has no object of it to look at: a core that
 * wakes with a million routes is ready in half the time.
 *
 * Slots are probed one after the other; a record is looked at only if its tag is right. What is deleted is closed up, so
 * there are no tombstones. A page of which less than half is in use is given up: its records move to the one that is being
 * written. So the pages are never more than twice what is in them, and no step takes longer than to move one page, but for
 * the doubling of the slots.
 *
 * Texts are clients', so the hash is keyed: who does not know the key cannot choose texts that fall into one slot.
 */
import { decodeText, writeText } from "../mqtt/strings.ts";

/** The longest text: that of a string of MQTT, in bytes of UTF-8. */
export const keyBytesMax = 65_535;

const slotsMin = 16;
const pageBits = 17;
const pageBytesMax = 2 ** pageBits;
const pageBytesMin = 1024;
/** Value (4 bytes) and length (2). */
const headBytes = 6;

interface Page {
  readonly bytes: Uint8Array;
  /** Up to where it is written. */
  end: number;
  /** How much of that is in use. */
  used: number;
}

/** A hash that grows byte by byte: of a text and what is put behind it. One for all maps that are asked together. */
export class KeyHash {
  readonly #words = new Int32Array(256);
  /** The text that was encoded last. */
  readonly key = new Uint8Array(keyBytesMax);

  /** @param seed secret, where the texts are others'. */
  constructor(seed: number) {
    let state = seed | 0;
    for (let i = 0; i < 256; i++) {
      state = (state + 0x9e3779b9) | 0;
      let word = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
      word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
      this.#words[i] = word ^ (word >>> 16);
    }
  }

  /** The length of the text in `key`. */
  encode(text: string): number {
    if (text.length <= keyBytesMax) {
      const length = writeText(text, 0, text.length, this.key, 0);
      if (length !== undefined) return length;
    }
    throw new RangeError(`a key of more than ${keyBytesMax} bytes`);
  }

  /** The hash of no text. */
  get empty(): number {
    return this.#words[0]!;
  }

  /** The hash of a text with this byte behind it. */
  next(hash: number, byte: number): number {
    const product = Math.imul(hash ^ this.#words[byte]!, 0x9e3779b1);
    return product ^ (product >>> 15);
  }

  /** The hash of a text with these bytes behind it. */
  all(hash: number, bytes: Uint8Array, from: number, to: number): number {
    let grown = hash;
    for (let i = from; i < to; i++) grown = this.next(grown, bytes[i]!);
    return grown;
  }
}

export class PackedMap {
  readonly #hash: KeyHash;
  #tags = new Uint8Array(slotsMin);
  #places = new Uint32Array(slotsMin);
  #size = 0;
  readonly #pages: (Page | undefined)[] = [];
  /** The page that is being written. */
  #writing: Page | undefined;
  #writingAt = 0;

  constructor(hash: KeyHash) {
    this.#hash = hash;
  }

  get size(): number {
    return this.#size;
  }

  /** Bytes of all arrays. */
  get bytes(): number {
    let bytes = this.#tags.length + this.#places.byteLength;
    for (const page of this.#pages) bytes += page?.bytes.length ?? 0;
    return bytes;
  }

  /** 0: it is not there. */
  get(key: string): number {
    const length = this.#hash.encode(key);
    return this.find(this.#hash.key, length, this.#hashOf(length));
  }

  /** The value of a text in bytes, whose hash is known; 0: it is not there. */
  find(key: Uint8Array, length: number, hash: number): number {
    const slot = this.#slotOf(key, length, hash);
    return slot === -1 ? 0 : this.#valueAt(this.#places[slot]!);
  }

  /** @param value above 0, in 32 bits. */
  set(key: string, value: number): void {
    if (!(value > 0)) throw new RangeError(`${value} cannot be a value`);
    const length = this.#hash.encode(key);
    const hash = this.#hashOf(length);
    const slot = this.#slotOf(this.#hash.key, length, hash);
    if (slot !== -1) return this.#setValueAt(this.#places[slot]!, value);
    if ((this.#size + 1) * 4 > this.#tags.length * 3) this.#resize(this.#tags.length * 2);
    this.#occupy(hash, this.#append(value, this.#hash.key, 0, length));
    this.#size++;
  }

  /** Whether it was there. */
  delete(key: string): boolean {
    const length = this.#hash.encode(key);
    const slot = this.#slotOf(this.#hash.key, length, this.#hashOf(length));
    if (slot === -1) return false;
    const place = this.#places[slot]!;
    this.#vacate(slot);
    this.#size--;
    this.#setValueAt(place, 0);
    this.#pages[place >>> pageBits]!.used -= headBytes + length;
    this.#tidy(place >>> pageBits);
    if (this.#size * 8 < this.#tags.length && this.#tags.length > slotsMin) this.#resize(this.#tags.length / 2);
    return true;
  }

  /** All, in no order. Those that it has come to may be deleted meanwhile, and nothing else changed. */
  *entries(): Generator<[key: string, value: number]> {
    // What is moved meanwhile goes to the page that is being written, so that comes first.
    const pages = [...this.#pages.filter((page) => page !== this.#writing), this.#writing];
    for (let page = pages.pop(); page !== undefined || pages.length > 0; page = pages.pop()) {
      if (page !== undefined) yield* entriesOf(page);
    }
  }

  #hashOf(length: number): number {
    return this.#hash.all(this.#hash.empty, this.#hash.key, 0, length);
  }

  // ---- slots ------------------------------------------------------------------------------------------------------

  #slotOf(key: Uint8Array, length: number, hash: number): number {
    const tags = this.#tags;
    const mask = tags.length - 1;
    const tag = tagOf(hash);
    for (let slot = homeOf(hash, mask); ; slot = (slot + 1) & mask) {
      const found = tags[slot]!;
      if (found === 0) return -1;
      if (found === tag && this.#isAt(this.#places[slot]!, key, length)) return slot;
    }
  }

  #isAt(place: number, key: Uint8Array, length: number): boolean {
    const { bytes } = this.#pages[place >>> pageBits]!;
    let at = place & (pageBytesMax - 1);
    if (lengthAt(bytes, at) !== length) return false;
    at += headBytes;
    for (let i = 0; i < length; i++) if (bytes[at + i] !== key[i]) return false;
    return true;
  }

  /** Takes the next free slot. */
  #occupy(hash: number, place: number): void {
    const mask = this.#tags.length - 1;
    let slot = homeOf(hash, mask);
    while (this.#tags[slot] !== 0) slot = (slot + 1) & mask;
    this.#tags[slot] = tagOf(hash);
    this.#places[slot] = place;
  }

  /** Frees the slot, and moves into it who had to go past it. */
  #vacate(slot: number): void {
    const [tags, places] = [this.#tags, this.#places];
    const mask = tags.length - 1;
    let free = slot;
    for (let next = (free + 1) & mask; tags[next] !== 0; next = (next + 1) & mask) {
      const home = homeOf(this.#hashAt(places[next]!), mask);
      if (((next - home) & mask) < ((next - free) & mask)) continue;
      tags[free] = tags[next]!;
      places[free] = places[next]!;
      free = next;
    }
    tags[free] = 0;
  }

  #resize(slots: number): void {
    this.#tags = new Uint8Array(slots);
    this.#places = new Uint32Array(slots);
    for (const [index, page] of this.#pages.entries()) {
      if (page === undefined) continue;
      for (const { at, from, to } of recordsOf(page)) {
        this.#occupy(this.#hash.all(this.#hash.empty, page.bytes, from, to), index * pageBytesMax + at);
      }
    }
  }

  // ---- records ----------------------------------------------------------------------------------------------------

  #valueAt(place: number): number {
    return valueAt(this.#pages[place >>> pageBits]!.bytes, place & (pageBytesMax - 1));
  }

  #setValueAt(place: number, value: number): void {
    writeValue(this.#pages[place >>> pageBits]!.bytes, place & (pageBytesMax - 1), value);
  }

  #hashAt(place: number): number {
    const { bytes } = this.#pages[place >>> pageBits]!;
    const from = (place & (pageBytesMax - 1)) + headBytes;
    return this.#hash.all(this.#hash.empty, bytes, from, from + lengthAt(bytes, from - headBytes));
  }

  /** @returns the place. */
  #append(value: number, source: Uint8Array, from: number, to: number): number {
    const length = to - from;
    const page = this.#pageWith(headBytes + length);
    const { bytes, end } = page;
    writeValue(bytes, end, value);
    bytes[end + 4] = length & 0xff;
    bytes[end + 5] = length >>> 8;
    for (let i = 0; i < length; i++) bytes[end + headBytes + i] = source[from + i]!;
    page.end += headBytes + length;
    page.used += headBytes + length;
    return this.#writingAt * pageBytesMax + end;
  }

  /** The page that is being written, or the next one. The first ones are small: most tables are. */
  #pageWith(space: number): Page {
    const [full, fullAt] = [this.#writing, this.#writingAt];
    if (full && full.bytes.length - full.end >= space) return full;
    const bytes = Math.min(pageBytesMax, Math.max(pageBytesMin, space, (full?.bytes.length ?? 0) * 2));
    const free = this.#pages.indexOf(undefined);
    this.#writing = { bytes: new Uint8Array(bytes), end: 0, used: 0 };
    this.#writingAt = free === -1 ? this.#pages.length : free;
    this.#pages[this.#writingAt] = this.#writing;
    if (full === undefined) return this.#writing;
    this.#tidy(fullAt);
    return this.#pageWith(space);
  }

  /** Gives a page up that is not worth its bytes. */
  #tidy(index: number): void {
    const page = this.#pages[index]!;
    if (page.used * 2 >= page.bytes.length || (page === this.#writing && page.used > 0)) return;
    if (page === this.#writing) this.#writing = undefined;
    for (const { value, at, from, to } of recordsOf(page)) {
      const slot = this.#slotAt(this.#hash.all(this.#hash.empty, page.bytes, from, to), index * pageBytesMax + at);
      this.#places[slot] = this.#append(value, page.bytes, from, to);
    }
    this.#pages[index] = undefined;
  }

  /** The slot of a place that is in use. */
  #slotAt(hash: number, place: number): number {
    const mask = this.#tags.length - 1;
    let slot = homeOf(hash, mask);
    while (this.#places[slot] !== place || this.#tags[slot] === 0) slot = (slot + 1) & mask;
    return slot;
  }
}

/** The records of a page that are in use. */
function* recordsOf({ bytes, end }: Page): Generator<{ value: number; at: number; from: number; to: number }> {
  for (let at = 0; at < end;) {
    const value = valueAt(bytes, at);
    const from = at + headBytes;
    const to = from + lengthAt(bytes, at);
    if (value > 0) yield { value, at, from, to };
    at = to;
  }
}

/** As they are now, however the page changes. */
function entriesOf(page: Page): [key: string, value: number][] {
  return [...recordsOf(page)].map(({ value, from, to }) => [decodeText(page.bytes, from, to), value]);
}

function valueAt(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

function writeValue(bytes: Uint8Array, at: number, value: number): void {
  for (let i = 0; i < 4; i++) bytes[at + i] = value >>> (8 * i);
}

function lengthAt(bytes: Uint8Array, at: number): number {
  return bytes[at + 4]! | (bytes[at + 5]! << 8);
}

function homeOf(hash: number, mask: number): number {
  return hash & mask;
}

/** Of other bits than the home, as long as there are no more than 2^24 slots. */
function tagOf(hash: number): number {
  return hash >>> 24 || 1;
}
