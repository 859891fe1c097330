/** Sizes and durations as EMQX writes them in its configuration. */

const bytesOf: Readonly<Record<string, number>> = { "": 1, kb: 1024, mb: 1024 ** 2, gb: 1024 ** 3 };
const msOf: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 604_800_000,
};
const textCharsMax = 64;

/** "1MB", "256KB", "1024" or 1024 -> bytes; undefined: it is none of these. */
export function parseByteSize(input: unknown): number | undefined {
  if (typeof input === "number") return wholeNumber(input);
  if (typeof input !== "string" || input.length > textCharsMax) return undefined;
  const [, digits = "", unit = ""] = /^(\d+)(kb|mb|gb)?$/i.exec(input) ?? [];
  return digits === "" ? undefined : wholeNumber(Number(digits) * (bytesOf[unit.toLowerCase()] ?? Number.NaN));
}

/** "1h30m", "15s", "500ms", or a number of milliseconds -> milliseconds; undefined: it is none of these. */
export function parseDuration(input: unknown): number | undefined {
  if (typeof input === "number") return wholeNumber(input);
  if (typeof input !== "string" || input.length > textCharsMax) return undefined;
  if (/^\d+$/.test(input)) return wholeNumber(Number(input));
  if (!/^(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+$/i.test(input)) return undefined;
  let ms = 0;
  for (const [, amount = "", unit = ""] of input.matchAll(/([\d.]+)([a-z]+)/gi)) {
    ms += Number(amount) * (msOf[unit.toLowerCase()] ?? Number.NaN);
  }
  return wholeNumber(Math.ceil(ms));
}

function wholeNumber(value: number): number | undefined {
  return Number.isSafeInteger(value) && value >= 0 ? value : undefined;
}
