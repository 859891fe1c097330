import { describe, expect, test } from "vitest";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import { random } from "../support/random.ts";

describe("writing and reading", () => {
  test("big endian, lengths in front", () => {
    const bytes = new ByteWriter()
      .u8(0xab)
      .u16(0x1234)
      .u32(0xdeadbeef)
      .u48(0x0102_0304_0506)
      .string("é")
      .blob(Uint8Array.of(7, 8))
      .raw(Uint8Array.of(9))
      .take();
    expect([...bytes]).toEqual([
      0xab, 0x12, 0x34, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 0, 2, 0xc3, 0xa9, 0, 0, 0, 2, 7, 8, 9,
    ]);
  });

  test("the ends of each range", () => {
    const writer = new ByteWriter();
    for (const value of [0, 0xff]) writer.u8(value);
    for (const value of [0, 0xffff]) writer.u16(value);
    for (const value of [0, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]) writer.u32(value);
    for (const value of [0, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 1_700_000_000_000, 2 ** 48 - 1]) writer.u48(value);
    for (const value of ["", "\u{0}", "\u{feff}a", "\u{10ffff}", "é".repeat(32_767), "x".repeat(65_535)])
      writer.string(value);
    const reader = new ByteReader(writer.take());
    expect([reader.u8(), reader.u8()]).toEqual([0, 0xff]);
    expect([reader.u16(), reader.u16()]).toEqual([0, 0xffff]);
    expect([1, 2, 3, 4].map(() => reader.u32())).toEqual([0, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]);
    expect([1, 2, 3, 4, 5, 6].map(() => reader.u48())).toEqual([
      0,
      2 ** 31,
      2 ** 32 - 1,
      2 ** 32,
      1_700_000_000_000,
      2 ** 48 - 1,
    ]);
    for (const value of ["", "\u{0}", "\u{feff}a", "\u{10ffff}", "é".repeat(32_767), "x".repeat(65_535)])
      expect(reader.string()).toBe(value);
    expect(reader.done).toBe(true);
  });

  test("a writer starts over, and what was taken stays as it was", () => {
    const writer = new ByteWriter();
    const first = writer.u16(1).take();
    expect(writer.length).toBe(0);
    const second = writer.u16(2).take();
    expect([...first, ...second]).toEqual([0, 1, 0, 2]);
  });

  test("seeded: what is written is what is read, however the writer had to grow", () => {
    for (let seed = 1; seed <= 50; seed++) {
      const next = random(seed);
      const pick = (below: number) => Math.floor(next() * below);
      const writer = new ByteWriter();
      const expected: ((reader: ByteReader) => [unknown, unknown])[] = [];
      for (let count = pick(60); count >= 0; count--) {
        const kind = pick(6);
        if (kind === 0) {
          const value = pick(256);
          writer.u8(value);
          expected.push((reader) => [reader.u8(), value]);
        } else if (kind === 1) {
          const value = pick(65_536);
          writer.u16(value);
          expected.push((reader) => [reader.u16(), value]);
        } else if (kind === 2) {
          const value = pick(2 ** 32);
          writer.u32(value);
          expected.push((reader) => [reader.u32(), value]);
        } else if (kind === 3) {
          const value = pick(2 ** 48);
          writer.u48(value);
          expected.push((reader) => [reader.u48(), value]);
        } else if (kind === 4) {
          const value = ["a", "é", "\u{1f600}"][pick(3)]!.repeat(pick(900));
          writer.string(value);
          expected.push((reader) => [reader.string(), value]);
        } else {
          const value = Uint8Array.from({ length: pick(3000) }, () => pick(256));
          writer.blob(value);
          expected.push((reader) => [reader.blob(), value]);
        }
      }
      const { length } = writer;
      const bytes = writer.take();
      expect(bytes).toHaveLength(length);
      // A window of something larger: the reader keeps to it.
      const window = Uint8Array.from([1, 2, 3, ...bytes, 4, 5]).subarray(3, 3 + bytes.length);
      const reader = new ByteReader(window);
      for (const read of expected) {
        expect(reader.done).toBe(false);
        const [actual, value] = read(reader);
        expect(actual).toEqual(value);
      }
      expect(reader.done).toBe(true);
    }
  });
});

describe("a record that ends early", () => {
  test("is an error wherever it is cut", () => {
    const bytes = new ByteWriter().u8(1).u16(2).u32(3).u48(4).string("five").blob(Uint8Array.of(6)).take();
    const readAll = (reader: ByteReader) => {
      reader.u8();
      reader.u16();
      reader.u32();
      reader.u48();
      reader.string();
      reader.blob();
    };
    expect(() => readAll(new ByteReader(bytes))).not.toThrow();
    for (let end = 0; end < bytes.length; end++)
      expect(() => readAll(new ByteReader(bytes.subarray(0, end)))).toThrow(RangeError);
  });

  test("is an error if more lies behind it in the same memory", () => {
    const memory = Uint8Array.from([0, 0, 0, 4, 1, 2, 3, 4]);
    expect(() => new ByteReader(memory.subarray(0, 6)).blob()).toThrow(RangeError);
    expect(() => new ByteReader(memory.subarray(0, 2)).u32()).toThrow(RangeError);
  });
});
