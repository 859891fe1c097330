import { expect, test } from "vitest";
import { decodeText } from "../../mqtt/strings.ts";
import { random } from "../support/random.ts";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: false, ignoreBOM: true });

test("a string is its bytes', wherever they lie, however often they come", () => {
  const texts = ["", "a", "b", "a/b", "\u{0}", "é", "\u{feff}a", "x".repeat(128), "x".repeat(129), "y".repeat(70_000)];
  for (let round = 0; round < 2; round++)
    for (const text of texts) {
      const bytes = encoder.encode(`<${text}>`);
      expect(decodeText(bytes, 1, bytes.length - 1)).toBe(text);
    }
});

test("ill-formed bytes become U+FFFD", () => {
  expect(decodeText(Uint8Array.of(0x61, 0xff, 0x62), 0, 3)).toBe("a\u{fffd}b");
});

test("seeded: as many strings as there are, more than are remembered", () => {
  const next = random(1);
  for (let count = 0; count < 50_000; count++) {
    const bytes = Uint8Array.from(
      { length: Math.floor(next() * 12) },
      () => 0x20 + Math.floor(next() * (next() < 0.9 ? 4 : 0xd0)),
    );
    expect(decodeText(bytes, 0, bytes.length)).toBe(decoder.decode(bytes));
  }
});
