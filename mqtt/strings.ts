/**
 * Strings and UTF-8. What was decoded is remembered: the same topics, filters and client ids come again and again, and
 * finding one costs a third of decoding it. Found is what has the same bytes, so nobody can tell it from decoding; a slot
 * holds one string, the latest with its hash, and only short ASCII ones, so the memory is bounded.
 */

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: false, ignoreBOM: true });

const slots = 8192;
const rememberedCharsMax = 128;
const remembered: string[] = Array.from({ length: slots }, () => "");

/** The string in these bytes; what is not well-formed becomes U+FFFD. */
export function decodeText(bytes: Uint8Array, start: number, end: number): string {
  const length = end - start;
  if (length === 0) return "";
  if (length > rememberedCharsMax) return decoder.decode(bytes.subarray(start, end));
  let hash = length;
  let all = 0;
  for (let at = start; at < end; at++) {
    const byte = bytes[at]!;
    all |= byte;
    hash = Math.imul(hash ^ byte, 0x01000193);
  }
  if (all >= 0x80) return decoder.decode(bytes.subarray(start, end));
  const slot = (hash ^ (hash >>> 15)) & (slots - 1);
  const known = remembered[slot]!;
  if (isSame(known, bytes, start, length)) return known;
  // TypeScript wants an array here; the runtime takes anything with a length.
  const text = String.fromCharCode.apply(undefined, bytes.subarray(start, end) as unknown as number[]);
  remembered[slot] = text;
  return text;
}

/**
 * Writes a part of a text. @returns how many bytes; undefined: they do not fit. What is ASCII needs no encoder, which is
 * slow for short texts.
 */
export function writeText(text: string, from: number, to: number, into: Uint8Array, at: number): number | undefined {
  for (let index = from; index < to; index++) {
    const unit = text.charCodeAt(index);
    if (unit > 0x7f) {
      const { read, written } = encoder.encodeInto(text.slice(from, to), into.subarray(at));
      return read < to - from ? undefined : written;
    }
    into[at + index - from] = unit;
  }
  return to - from;
}

function isSame(text: string, bytes: Uint8Array, start: number, length: number): boolean {
  if (text.length !== length) return false;
  for (let index = 0; index < length; index++) if (text.charCodeAt(index) !== bytes[start + index]) return false;
  return true;
}
