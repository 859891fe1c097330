/**
 * The node's log: what its durable sessions are to get, once for all of them.
 *
 *   append   a message that matches a filter with durable subscribers is written under that filter, as it came: one row
 *            for each filter and batch, however many sessions read it
 *   read     a session reads on from where its checkpoint says, in the order of `seq`; a message that is logged under
 *            several of its filters has one number under all of them, so it comes once
 *   trim     a row goes when no session needs it any more. A stream, the rows of one filter, remembers the session that
 *            holds its oldest row, and looks again when that one has moved on
 *   cut      a stream is no longer than the longest queue of a session: what is older nobody would keep
 *
 *   log  (filter, last, at, entries, records): `last` is the highest number in the row, `entries` are seq u48 and length
 *        u32 of each message, `records` the messages
 */
import { ByteReader, ByteWriter, concatenate } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { readMessage, type Message } from "../../mqtt/message.ts";
import type { StoredMessage } from "../../mqtt/session.ts";
import type { Sql } from "../schema.ts";

/** Bounds of one stream: those of a session's queue. */
export interface StreamBounds {
  readonly messagesMax: number;
  /** Milliseconds. */
  readonly retentionMs: number;
}

/** A session that reads a stream, and from which number on it needs it on disk. */
export interface Reader {
  readonly sessionId: number;
  readonly neededFrom: number;
}

export interface LogReaders {
  /** The durable sessions that subscribe by the filter. */
  readonly of: (filter: string) => Iterable<Reader>;
  /** These messages of the stream go now, the numbers rising: who needs one takes it as its own, or has lost it. */
  readonly handleCut: (filter: string, seqs: readonly number[]) => void;
  /** So many messages of a session are older than is kept. */
  readonly countExpired: (count: number) => void;
}

interface Gathered {
  readonly entries: Entry[];
  readonly records: Uint8Array[];
  bytes: number;
}

interface Entry {
  readonly seq: number;
  readonly bytes: number;
}

/** ... and where the message is among those of its row. */
interface StoredEntry extends Entry {
  readonly offset: number;
}

/** A row that is being read: sessions take one message after the other. */
interface OpenRow {
  readonly entries: readonly StoredEntry[];
  readonly records: Uint8Array;
}

interface Stream {
  /** At least what is there: counted anew when it reaches a bound. */
  messages: number;
  bytes: number;
  /** `last` of the oldest row. */
  oldest: number;
  /** Who needs the oldest row; undefined: to be found out. */
  blocker: number | undefined;
}

/** A stream is cut when it is longer than its bounds by so much, so that a cut is rare. */
const slack = 1.25;

const entryBytes = 10;

export class MessageLog {
  readonly #sql: Sql;
  readonly #bounds: StreamBounds;
  readonly #readers: LogReaders;
  readonly #writer = new ByteWriter();
  readonly #gathered = new Map<string, Gathered>();
  readonly #streams = new Map<string, Stream>();
  /** Streams whose oldest row nobody may need any more. */
  readonly #unexamined = new Set<string>();
  readonly #blockedBy = new Map<number, Set<string>>();
  readonly #long = new Set<string>();
  /** Of each filter the row read last; the filter opened last comes last. */
  readonly #open = new Map<string, OpenRow>();

  constructor(sql: Sql, bounds: StreamBounds, readers: LogReaders) {
    this.#sql = sql;
    this.#bounds = bounds;
    this.#readers = readers;
  }

  // ---- append -----------------------------------------------------------------------------------------------------

  /** Takes a message in; it is on disk with the next `flush`. */
  append(filter: string, seq: number, record: Uint8Array, now: number): void {
    let gathered = this.#gathered.get(filter);
    if (gathered && gathered.bytes + record.length > limits.logRowBytesMax) {
      this.flush(now);
      gathered = undefined;
    }
    if (!gathered) this.#gathered.set(filter, (gathered = { entries: [], records: [], bytes: 0 }));
    gathered.entries.push({ seq, bytes: record.length });
    gathered.records.push(record);
    gathered.bytes += record.length;
  }

  flush(now: number): void {
    if (this.#gathered.size === 0) return;
    const all = [...this.#gathered];
    this.#gathered.clear();
    for (const [filter, gathered] of all) this.#writeRow(filter, gathered, now);
  }

  #writeRow(filter: string, { entries, records, bytes }: Gathered, now: number): void {
    const stream = this.#stream(filter);
    const { seq: last } = entries.at(-1)!;
    for (const entry of entries) this.#writer.u48(entry.seq).u32(entry.bytes);
    this.#sql.exec(
      "INSERT INTO log VALUES (?, ?, ?, ?, ?)",
      filter,
      last,
      now,
      this.#writer.take(),
      records.length === 1 ? records[0]! : concatenate(records, bytes),
    );
    if (stream.messages === 0) stream.oldest = last;
    stream.messages += entries.length;
    stream.bytes += bytes;
    if (stream.blocker === undefined) this.#unexamined.add(filter);
    if (this.#isLong(stream)) this.#long.add(filter);
  }

  // ---- read -------------------------------------------------------------------------------------------------------

  read(seq: number, filter: string, now: number): Message | undefined {
    this.flush(now);
    const open = this.#open.get(filter);
    const found = (open && find(open, seq)) ?? this.#openAt(seq, filter);
    return found && readMessage(new ByteReader(found));
  }

  #openAt(seq: number, filter: string): Uint8Array | undefined {
    const row = this.#sql
      .exec<{ entries: ArrayBuffer; records: ArrayBuffer }>(
        "SELECT entries, records FROM log WHERE filter = ? AND last >= ? ORDER BY last LIMIT 1",
        filter,
        seq,
      )
      .toArray()[0];
    if (!row) return undefined;
    const open = { entries: readEntries(row.entries), records: new Uint8Array(row.records) };
    this.#open.delete(filter);
    this.#open.set(filter, open);
    const [oldest] = this.#open.keys();
    if (this.#open.size > limits.logRowsOpenMax) this.#open.delete(oldest!);
    return find(open, seq);
  }

  /** What waits here for a session from this number on; a message logged under several of its filters several times. */
  *waiting(sessionId: number, from: number, now: number): Generator<StoredMessage> {
    this.flush(now);
    const rows = this.#sql.exec<{ filter: string; at: number; entries: ArrayBuffer }>(
      `SELECT log.filter, log.at, log.entries
         FROM subscription JOIN log ON log.filter = subscription.filter AND log.last > subscription.since
        WHERE subscription.session = ? AND subscription.logged = 1 AND log.last >= ?`,
      sessionId,
      from,
    );
    for (const { filter, at, entries } of rows) {
      // Whoever moves on may be the last to have needed it.
      this.#unexamined.add(filter);
      const needed = readEntries(entries).filter(({ seq }) => seq >= from);
      if (at <= now - this.#bounds.retentionMs) this.#readers.countExpired(needed.length);
      else for (const { seq, bytes } of needed) yield { seq, filter, bytes, shared: false };
    }
  }

  // ---- trim and cut -----------------------------------------------------------------------------------------------

  /** These sessions have moved on, on disk: what nobody needs any more goes. */
  trim(sessionIds: Iterable<number>): void {
    for (const id of sessionIds) for (const filter of this.#blockedBy.get(id) ?? []) this.#unexamined.add(filter);
    for (const filter of this.#unexamined) this.#examine(filter);
    this.#unexamined.clear();
  }

  /** Whether `trim` has something to do, whoever has moved on. */
  get hasUnexamined(): boolean {
    return this.#unexamined.size > 0;
  }

  /** A session does not read the stream any more; the last one takes the stream with it, in the same transaction. */
  handleReaderLeft(filter: string): void {
    const [reader] = this.#readers.of(filter);
    if (!reader) this.#gathered.delete(filter);
    if (this.#stream(filter).messages === 0) this.#streams.delete(filter);
    else if (reader) this.#unexamined.add(filter);
    else this.#examine(filter);
  }

  /** A crash has left messages that nobody needs: under filters that nobody subscribes by, or before they were trimmed. */
  handleCrash(): void {
    this.deleteUnread();
    for (const { filter } of this.#sql.exec<{ filter: string }>("SELECT DISTINCT filter FROM log"))
      this.#unexamined.add(filter);
  }

  deleteUnread(): void {
    this.#sql.exec("DELETE FROM log WHERE filter NOT IN (SELECT filter FROM subscription)");
  }

  #examine(filter: string): void {
    const stream = this.#stream(filter);
    let neededFrom = Infinity;
    let blocker: number | undefined;
    for (const reader of this.#readers.of(filter)) {
      if (reader.neededFrom >= neededFrom) continue;
      ({ neededFrom, sessionId: blocker } = reader);
      if (neededFrom <= stream.oldest) break;
    }
    if (neededFrom > stream.oldest) this.#deleteBelow(filter, stream, neededFrom);
    this.#setBlocker(filter, stream, stream.messages === 0 ? undefined : blocker);
    if (stream.messages === 0) this.#streams.delete(filter);
  }

  #deleteBelow(filter: string, stream: Stream, seq: number): void {
    this.#sql.exec("DELETE FROM log WHERE filter = ? AND last < ?", filter, Math.min(seq, Number.MAX_SAFE_INTEGER));
    this.#open.delete(filter);
    const { oldest } = this.#sql
      .exec<{ oldest: number | null }>("SELECT min(last) AS oldest FROM log WHERE filter = ?", filter)
      .one();
    if (oldest === null) stream.messages = stream.bytes = 0;
    else stream.oldest = oldest;
  }

  #setBlocker(filter: string, stream: Stream, blocker: number | undefined): void {
    if (stream.blocker === blocker) return;
    if (stream.blocker !== undefined) {
      const blocked = this.#blockedBy.get(stream.blocker);
      blocked?.delete(filter);
      if (blocked?.size === 0) this.#blockedBy.delete(stream.blocker);
    }
    stream.blocker = blocker;
    if (blocker === undefined) return;
    const blocked = this.#blockedBy.get(blocker);
    if (blocked) blocked.add(filter);
    else this.#blockedBy.set(blocker, new Set([filter]));
  }

  #isLong({ messages, bytes }: Stream): boolean {
    return messages > this.#bounds.messagesMax * slack || bytes > limits.mqueueBytesMax * slack;
  }

  /** Streams that have become too long are cut: when a batch is through, because a cut may wake sessions. */
  cut(now: number): void {
    for (const filter of this.#long) this.#cutIfLong(filter, now);
    this.#long.clear();
  }

  /** Only as many of the newest messages stay as a session's queue may hold. */
  #cutIfLong(filter: string, now: number): void {
    const stream = this.#stream(filter);
    if (!this.#isLong(stream)) return;
    this.#measure(filter, stream);
    if (!this.#isLong(stream)) return;
    let messages = 0;
    let bytes = 0;
    let keptFrom = 0;
    const cut: number[] = [];
    for (const row of this.#sql.exec<{ last: number; at: number; entries: ArrayBuffer; bytes: number }>(
      "SELECT last, at, entries, length(records) AS bytes FROM log WHERE filter = ? ORDER BY last DESC",
      filter,
    )) {
      const isKept = messages < this.#bounds.messagesMax && bytes < limits.mqueueBytesMax;
      if (isKept && (keptFrom === 0 || row.at > now - this.#bounds.retentionMs)) keptFrom = row.last;
      else for (const { seq } of readEntries(row.entries)) cut.push(seq);
      messages += row.entries.byteLength / entryBytes;
      bytes += row.bytes;
    }
    this.#readers.handleCut(
      filter,
      cut.sort((a, b) => a - b),
    );
    this.#deleteBelow(filter, stream, keptFrom);
    this.#measure(filter, stream);
    this.#setBlocker(filter, stream, undefined);
    this.#unexamined.add(filter);
  }

  #stream(filter: string): Stream {
    let stream = this.#streams.get(filter);
    if (stream) return stream;
    stream = { messages: 0, bytes: 0, oldest: 0, blocker: undefined };
    this.#measure(filter, stream);
    this.#streams.set(filter, stream);
    return stream;
  }

  #measure(filter: string, stream: Stream): void {
    const row = this.#sql
      .exec<{ messages: number; bytes: number; oldest: number }>(
        `SELECT coalesce(sum(length(entries)), 0) / ${entryBytes} AS messages,
                coalesce(sum(length(records)), 0) AS bytes, coalesce(min(last), 0) AS oldest
           FROM log WHERE filter = ?`,
        filter,
      )
      .one();
    Object.assign(stream, row);
  }
}

function find({ entries, records }: OpenRow, seq: number): Uint8Array | undefined {
  let low = 0;
  let high = entries.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (entries[middle]!.seq < seq) low = middle + 1;
    else high = middle;
  }
  const entry = entries[low];
  return entry?.seq === seq ? records.subarray(entry.offset, entry.offset + entry.bytes) : undefined;
}

function readEntries(blob: ArrayBuffer): StoredEntry[] {
  const reader = new ByteReader(new Uint8Array(blob));
  const entries: StoredEntry[] = [];
  for (let offset = 0; !reader.done;) {
    const [seq, bytes] = [reader.u48(), reader.u32()];
    entries.push({ seq, bytes, offset });
    offset += bytes;
  }
  return entries;
}

/**
 * By rising number, each once; a place of the session's own comes before the log's. Many filters may have many messages:
 * only about twice as many are held on the way as a queue may have, the newest, and those inflight.
 * @returns the messages, and how many were left out
 */
export function newest(
  own: Iterable<StoredMessage>,
  logged: Iterable<StoredMessage>,
  { lengthMax, inflight }: { lengthMax: number; inflight: ReadonlySet<number> },
): { messages: StoredMessage[]; dropped: number } {
  const bySeq = new Map<number, StoredMessage>();
  for (const message of own) bySeq.set(message.seq, message);
  /** What is not above it is left out. */
  let floor = 0;
  let dropped = 0;
  for (const message of logged) {
    const { seq } = message;
    if (bySeq.has(seq)) continue;
    if (seq <= floor && !inflight.has(seq)) {
      dropped++;
      continue;
    }
    bySeq.set(seq, message);
    if (bySeq.size <= 2 * lengthMax + inflight.size) continue;
    const waiting = [...bySeq.keys()].filter((each) => !inflight.has(each)).sort((x, y) => x - y);
    for (const each of waiting.slice(0, -lengthMax)) {
      bySeq.delete(each);
      floor = each;
      dropped++;
    }
  }
  return { messages: [...bySeq.values()].sort((x, y) => x.seq - y.seq), dropped };
}
