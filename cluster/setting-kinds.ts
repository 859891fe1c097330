/**
 * The kinds of values that settings have: each reads a value as it is given, and says in a few words what
 * is allowed when it does not understand it.
 */
import * as v from "valibot";

import { faultOfNodeName, hostnameOf, isAddress, isDnsLabel } from "./name.ts";
import { parseByteSize, parseDuration } from "./units.ts";

const textCharsMax = 4096;

/** A value that `parse` understands; undefined from it: what is allowed is said. */
export function parsed<T>(
  allowed: string | ((input: unknown) => string),
  parse: (input: unknown) => T | undefined,
): v.GenericSchema<unknown, T> {
  return v.pipe(
    v.unknown(),
    v.rawTransform<unknown, T>(({ dataset, addIssue, NEVER }) => {
      const value = parse(dataset.value);
      if (value !== undefined) return value;
      addIssue({ message: typeof allowed === "string" ? allowed : allowed(dataset.value) });
      return NEVER;
    }),
  );
}

export function oneOf<const T extends string | number | boolean>(allowed: readonly T[]): v.GenericSchema<unknown, T> {
  return parsed(`allowed are ${allowed.join(", ")}`, (input) => allowed.find((each) => each === input));
}

export function wholeNumber(min: number, max: number): v.GenericSchema<unknown, number> {
  return parsed(`allowed are whole numbers from ${min} to ${max}`, (input) =>
    isWholeNumber(input, min, max) ? input : undefined,
  );
}

export function byteSize(min: string, max: string): v.GenericSchema<unknown, number> {
  return parsed(`allowed are sizes like 1024, "256KB" or "1MB", from ${min} to ${max}`, (input) =>
    within(parseByteSize(input), parseByteSize(min), parseByteSize(max)),
  );
}

export function duration(min: string, max: string): v.GenericSchema<unknown, number> {
  return parsed(
    `allowed are durations like "1h30m", "15s", "500ms" or a number of milliseconds, from ${min} to ${max}`,
    (input) => within(parseDuration(input), parseDuration(min), parseDuration(max)),
  );
}

/** A text without a fault; `faultOf` says in a few words what is wrong. */
export function text(kind: string, faultOf: (text: string) => string | undefined): v.GenericSchema<unknown, string> {
  return parsed(
    (input) => `allowed is ${kind} (${(typeof input === "string" && faultOf(input)) || "that is no text"})`,
    (input) => (typeof input === "string" && faultOf(input) === undefined ? input : undefined),
  );
}

/** A list of texts, each once; a text with commas is a list too. */
export function list(
  kind: string,
  lengthMin: number,
  lengthMax: number,
  item: v.GenericSchema<unknown, string>,
): v.GenericSchema<unknown, string[]> {
  const items = v.pipe(
    v.array(item, `allowed is ${kind}`),
    v.minLength(lengthMin, `allowed is ${kind}, at least ${lengthMin}`),
    v.maxLength(lengthMax, `allowed is ${kind}, at most ${lengthMax}`),
    v.check((values) => new Set(values).size === values.length, `allowed is ${kind}, each once`),
  );
  return v.pipe(
    v.unknown(),
    v.transform((input) => (typeof input === "string" ? input.split(",").flatMap((each) => each.trim() || []) : input)),
    items,
  );
}

export function nodeName(): v.GenericSchema<unknown, string> {
  return text("a node name", faultOfNodeName);
}

/** A host without a port, as in the name of a node. */
export function hostname(): v.GenericSchema<unknown, string> {
  return text("a host", (host) =>
    isAddress(host) && hostnameOf(host) === host ? undefined : "a DNS name or an IP address without a port",
  );
}

export function dnsLabel(): v.GenericSchema<unknown, string> {
  return text("a DNS label", (label) =>
    isDnsLabel(label) ? undefined : "lower-case letters, digits and inner hyphens, at most 63",
  );
}

/** RFC 1035, and labels that begin with an underscore as those of services do (RFC 2782). */
export function dnsName(): v.GenericSchema<unknown, string> {
  const isName = (name: string): boolean =>
    name.length <= 253 && name.split(".").every((label) => isDnsLabel(label.replace(/^_/, "")));
  return text("a DNS name", (name) => (isName(name) ? undefined : 'as "trellis.example.com", in lower case'));
}

/** One spelling each: without the slash at the end. Credentials have no place in a URL, which is logged. */
export function url(example: string, isAllowed: (url: URL) => boolean): v.GenericSchema<unknown, string> {
  return parsed(`allowed is a URL as "${example}", without user, query and fragment`, (input) => {
    if (typeof input !== "string" || input.length > textCharsMax || !URL.canParse(input)) return undefined;
    const read = new URL(input);
    if (`${read.username}${read.password}${read.search}${read.hash}` !== "" || !isAllowed(read)) return undefined;
    return read.href.replace(/\/$/, "");
  });
}

/** A path on the machine of `npm start`. */
export function filePath(): v.GenericSchema<unknown, string> {
  return text("the path of a file", (path) =>
    path !== "" && path.length <= textCharsMax && !hasControls(path) ? undefined : "in one line, not the file itself",
  );
}

/** Visible ASCII: what a line's end or a space would be part of, nobody sees. */
export function secret(lengthMin: number, lengthMax: number): v.GenericSchema<unknown, string> {
  return parsed(`allowed are ${lengthMin} to ${lengthMax} visible ASCII characters, without spaces`, (input) =>
    typeof input === "string" && input.length >= lengthMin && input.length <= lengthMax && /^[!-~]*$/.test(input)
      ? input
      : undefined,
  );
}

export function isWholeNumber(input: unknown, min: number, max: number): input is number {
  return typeof input === "number" && Number.isInteger(input) && input >= min && input <= max;
}

export function within(value: number | undefined, min = 0, max = Infinity): number | undefined {
  return value !== undefined && value >= min && value <= max ? value : undefined;
}

export function hasControls(text: string): boolean {
  return /\p{Cc}/u.test(text);
}
