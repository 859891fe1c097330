/**
 * As much of DNS messages (RFC 1035, section 4; RFC 3596 for AAAA; RFC 2782 for SRV) as a question for one name needs.
 * Whatever comes as an answer ends in records or in an Error: every read is within the message, and names only point
 * backwards, so none is endless.
 */

export type RecordType = "a" | "aaaa" | "srv";

/** One answer: an address, or the target and the port of a service. */
export interface DnsRecord {
  readonly host: string;
  readonly port: number | undefined;
}

const typeCodes: Readonly<Record<RecordType, number>> = { a: 1, aaaa: 28, srv: 33 };
const cnameCode = 5;
const internetClass = 1;
const headerBytes = 12;
const labelBytesMax = 63;
/** With the dots, without the one at the end. */
const nameBytesMax = 253;
/** Aliases of aliases. */
const aliasesMax = 16;

const responseCodes: Readonly<Record<number, string>> = {
  1: "FORMERR",
  2: "SERVFAIL",
  3: "NXDOMAIN",
  4: "NOTIMP",
  5: "REFUSED",
};

/** The question for a name. Its id is 0, so that caches on the way know it again (RFC 8484, 4.1). */
export function encodeQuestion(name: string, type: RecordType): Uint8Array {
  const labels = name.replace(/\.$/, "").split(".");
  const isRight = labels.every((label) => /^[\x21-\x7e]+$/.test(label) && label.length <= labelBytesMax);
  if (!isRight || name.length > nameBytesMax + 1) throw new Error(`${JSON.stringify(name)} is not a DNS name`);
  // id, flags (recursion is desired), one question, no other records
  const bytes = [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
  for (const label of labels) bytes.push(label.length, ...new TextEncoder().encode(label));
  bytes.push(0, 0, typeCodes[type], 0, internetClass);
  return Uint8Array.from(bytes);
}

/** The records of the name, or of what it is an alias of. Throws an Error that says what is wrong with the answer. */
export function decodeAnswer(message: Uint8Array, name: string, type: RecordType): DnsRecord[] {
  const reader = new DnsReader(message);
  if (message.length < headerBytes) throw new Error("the answer is not a DNS message");
  reader.uint16();
  const flags = reader.uint16();
  if ((flags & 0x8000) === 0) throw new Error("the answer is a DNS question");
  const code = flags & 0x0f;
  if (code !== 0) throw new Error(`${JSON.stringify(name)}: ${responseCodes[code] ?? `response code ${code}`}`);
  if ((flags & 0x0200) !== 0) throw new Error("the answer is truncated");
  const questions = reader.uint16();
  const answers = reader.uint16();
  reader.skip(4);
  for (let i = 0; i < questions; i++) {
    reader.name();
    reader.skip(4);
  }

  const found: { readonly owner: string; readonly record: DnsRecord }[] = [];
  const aliases = new Map<string, string>();
  for (let i = 0; i < answers; i++) {
    const owner = reader.name();
    const code = reader.uint16();
    const isInternet = reader.uint16() === internetClass;
    reader.skip(4);
    const end = reader.uint16() + reader.at;
    if (isInternet && code === cnameCode) aliases.set(owner, reader.name());
    else if (isInternet && code === typeCodes[type]) found.push({ owner, record: readRecord(reader, type) });
    else reader.skip(end - reader.at);
    if (reader.at !== end) throw new Error("a record of the answer is not as long as it says");
  }

  const owners = new Set([name.replace(/\.$/, "").toLowerCase()]);
  for (const owner of owners) {
    const alias = aliases.get(owner);
    if (alias !== undefined && owners.size <= aliasesMax) owners.add(alias);
  }
  // A service that is decidedly not there has the root as its target. [RFC 2782]
  return found.filter(({ owner, record }) => owners.has(owner) && record.host !== "").map(({ record }) => record);
}

function readRecord(reader: DnsReader, type: RecordType): DnsRecord {
  switch (type) {
    case "a":
      return { host: [...reader.take(4)].join("."), port: undefined };
    case "aaaa": {
      const groups = Array.from({ length: 8 }, () => reader.uint16().toString(16));
      return { host: groups.join(":"), port: undefined };
    }
    case "srv": {
      reader.skip(4);
      const port = reader.uint16();
      return { host: reader.name(), port };
    }
  }
}

class DnsReader {
  readonly #bytes: Uint8Array;
  at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  take(length: number): Uint8Array {
    const start = this.at;
    this.skip(length);
    return this.#bytes.subarray(start, this.at);
  }

  skip(length: number): void {
    if (length < 0 || this.at + length > this.#bytes.length) throw new Error("the answer ends too early");
    this.at += length;
  }

  uint16(): number {
    const [high = 0, low = 0] = this.take(2);
    return (high << 8) | low;
  }

  /** In lower case, without the dot at the end; a character that no host name has is left as it is. */
  name(): string {
    const labels: string[] = [];
    let size = 0;
    let start = this.at;
    /** Behind the first pointer: where the name ends. */
    let end: number | undefined;
    for (;;) {
      const [length = 0] = this.take(1);
      if (length === 0) break;
      if (length >= 0xc0) {
        const [low = 0] = this.take(1);
        const target = ((length & 0x3f) << 8) | low;
        if (target >= start) throw new Error("a name in the answer points forward");
        end ??= this.at;
        start = target;
        this.at = target;
        continue;
      }
      if (length > labelBytesMax) throw new Error("a name in the answer has a label of an unknown kind");
      size += length + 1;
      if (size > nameBytesMax + 1) throw new Error("a name in the answer is too long");
      // A dot within a label would make two of it.
      labels.push(String.fromCharCode(...this.take(length)).replaceAll(".", "\\."));
    }
    this.at = end ?? this.at;
    return labels.join(".").toLowerCase();
  }
}
