/**
 * Retained messages on a core's disk: one per topic, ordered by the bytes of the topics. A filter is read by skip-scan
 * (mqtt/topic-scan.ts): topics are looked at one by one, and only of those that match the message is read;
 * those that match one behind the other are read together.
 *
 * Every core has them all. A core that takes one in gives it a version of its own, later than all that it has seen, and of
 * two messages on one topic the one with the later version holds; that a topic was cleared is remembered for as long as
 * there are not too many. In a cluster of one core none of that is written.
 *
 * An expired message is given to nobody from that moment; it is deleted when the alarm rings next.
 *
 * A batch may come again, and behind a later one. Ids of one life of a node rise in the order of its clients' publishes, so
 * a message is outdated when a later one of its life has been here. The row says so of the message that it holds. What has
 * cleared a topic, or was replaced by another node's message, is in memory alone: forgotten after a while, or in a crash.
 *
 * Rows written: one for a topic that is known, two for a new one, one more if the message expires; one a turn for the count.
 */
import type { NodeName } from "../../cluster/name.ts";
import { ByteReader, ByteWriter, concatenate } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { isUpTo } from "../../mqtt/message-id-set.ts";
import { readMessage, writeMessage, type Message } from "../../mqtt/message.ts";
import { runEnd, seekAfter } from "../../mqtt/topic-scan.ts";
import { matches } from "../../mqtt/topic.ts";
import { writeRetainedEntry, type RetainedEntry, type RetainedPage } from "../rpc.ts";
import type { Sql } from "../schema.ts";
import { LatestIds } from "./latest-ids.ts";
import { placeOf, type EntriesPage } from "./route-store.ts";
import { RowCount } from "./row-count.ts";
import type { Versions } from "./versions.ts";

/** Who has taken a message in, and when in the order of all its changes. */
export interface Stamp {
  readonly writer: NodeName;
  readonly version: number;
}

type Place = { id: number; topic: string };

const unstamped: Stamp = { writer: "", version: 0 };

/** Behind a place in the order of versions and topics. */
const retainedBehind =
  "SELECT topic, version, message FROM retained WHERE writer = ? AND (version, topic) > (?, ?) AND version >= ?";
const clearedBehind =
  "SELECT topic, version, NULL AS message FROM cleared WHERE writer = ? AND (version, topic) > (?, ?) AND version >= ?";

export class RetainedStore {
  readonly #sql: Sql;
  readonly #count: RowCount;
  readonly #versions: Versions;
  readonly #writer = new ByteWriter();
  readonly #latest = new LatestIds();
  /** The topic that was looked for last, if nothing is retained on it. */
  #missing: string | undefined;
  /** What `cleared` has of each writer, at most; not known before the first clearing of a life. */
  readonly #clearings = new Map<NodeName, number>();

  constructor(sql: Sql, versions: Versions) {
    this.#sql = sql;
    this.#versions = versions;
    this.#count = new RowCount(sql, "retained");
  }

  get count(): number {
    return this.#count.value;
  }

  /** Whether a later message of its life on its topic has been here, or this very one. */
  isOutdated(message: Message): boolean {
    const latest = this.#latest.get(message) ?? this.#idOn(message.topic);
    return latest !== undefined && isUpTo(message.id, latest);
  }

  /** Of the message that is retained. */
  #idOn(topic: string): string | undefined {
    const query = "SELECT message FROM retained WHERE topic = ?";
    const row = this.#sql.exec<{ message: ArrayBuffer }>(query, topic).toArray()[0];
    this.#missing = row ? undefined : topic;
    return row && readMessage(new ByteReader(new Uint8Array(row.message))).id;
  }

  /**
   * The message takes the place of its topic's last one; without a payload it only clears it.
   * @param stamp where there are other cores
   * @returns whether there was room.
   */
  put(message: Message, bytes: Uint8Array, stamp: Stamp = unstamped): boolean {
    const isKept = this.#replace(message, bytes, stamp);
    if (isKept) this.#latest.add(message);
    return isKept;
  }

  #replace({ topic, payload, expiresAt }: Message, bytes: Uint8Array, { writer, version }: Stamp): boolean {
    if (payload.length === 0) {
      this.#delete("topic = ?", topic);
      if (version > 0) this.#putCleared(topic, writer, version);
      return true;
    }
    const update = "UPDATE retained SET expires_at = ?, message = ?, writer = ?, version = ? WHERE topic = ?";
    const isKnown =
      topic !== this.#missing && this.#sql.exec(update, expiresAt, bytes, writer, version, topic).rowsWritten > 0;
    this.#missing = undefined;
    if (!isKnown) {
      if (this.count >= limits.retainedMessagesMax) return false;
      const insert = "INSERT INTO retained (topic, expires_at, message, writer, version) VALUES (?, ?, ?, ?, ?)";
      this.#sql.exec(insert, topic, expiresAt, bytes, writer, version);
      this.#count.add(1);
      if (version > 0) this.#sql.exec("DELETE FROM cleared WHERE topic = ?", topic);
    }
    return true;
  }

  #putCleared(topic: string, writer: NodeName, version: number): void {
    this.#sql.exec("INSERT OR REPLACE INTO cleared VALUES (?, ?, ?)", topic, writer, version);
    const count = this.#clearings.get(writer) ?? this.#clearedBy(writer) - 1;
    this.#clearings.set(writer, count + 1);
    if (count + 1 < limits.removalsPerWriterMax) return;
    this.#clearings.set(writer, limits.removalsPerWriterMax / 2);
    const query = "SELECT version FROM cleared WHERE writer = ? ORDER BY version DESC LIMIT 1 OFFSET ?";
    const [oldest] = this.#sql.exec<{ version: number }>(query, writer, limits.removalsPerWriterMax / 2);
    if (!oldest) return;
    this.#sql.exec("DELETE FROM cleared WHERE writer = ? AND version <= ?", writer, oldest.version);
    this.#versions.set(writer, this.#versions.of(writer), oldest.version);
  }

  #clearedBy(writer: NodeName): number {
    return this.#sql.exec<{ n: number }>("SELECT count(*) AS n FROM cleared WHERE writer = ?", writer).one().n;
  }

  // ---- replication ------------------------------------------------------------------------------------------------

  /** There are other cores from now on: changes are read by their versions. */
  index(): void {
    this.#sql.exec("CREATE INDEX IF NOT EXISTS retained_version ON retained (writer, version, topic)");
    this.#sql.exec("CREATE INDEX IF NOT EXISTS cleared_version ON cleared (writer, version)");
  }

  /** What was retained without other cores to tell is new to them, and older than all that they have. */
  giveVersion(writer: NodeName): void {
    this.#sql.exec("UPDATE retained SET writer = ?, version = 1 WHERE version = 0", writer);
  }

  /** Another core's change. @returns its message, if it was later than what is known of the topic. */
  apply(writer: NodeName, { topic, version, bytes }: RetainedEntry): Message | undefined {
    const known = this.#stampOf(topic);
    if (known.version > version || (known.version === version && known.writer >= writer)) return undefined;
    const message = readMessage(new ByteReader(bytes));
    return this.put(message, bytes, { writer, version }) ? message : undefined;
  }

  #stampOf(topic: string): Stamp {
    for (const table of ["retained", "cleared"]) {
      const [row] = this.#sql.exec<{ writer: string; version: number }>(
        `SELECT writer, version FROM ${table} WHERE topic = ?`,
        topic,
      );
      if (row) return row;
    }
    return unstamped;
  }

  /** A page of what the writer has taken in behind a version, or of all that is left of it. */
  changes(writer: NodeName, since: number, after: string): EntriesPage {
    const isWhole = since < this.#versions.floorOf(writer);
    const [version, topic] = placeOf(after) ?? [isWhole ? 0 : since, ""];
    const rows = this.#sql.exec<{ topic: string; version: number; message: ArrayBuffer | null }>(
      `${[retainedBehind, clearedBehind].join(" UNION ALL ")} ORDER BY version, topic LIMIT ?`,
      ...[writer, version, topic, version, writer, version, topic, version, limits.pageEntriesMax],
    );
    let last: RetainedEntry | undefined;
    let isLast = true;
    for (const row of rows) {
      const bytes = row.message ? new Uint8Array(row.message) : this.#clearing(row.topic);
      last = { topic: row.topic, version: row.version, bytes };
      writeRetainedEntry(this.#writer, last);
      isLast = this.#writer.length < limits.pageBytesMax;
      if (!isLast) break;
    }
    const next = last && (!isLast || this.#hasBehind(writer, last)) ? `${last.version} ${last.topic}` : undefined;
    return { isWhole, entries: this.#writer.take(), next };
  }

  #hasBehind(writer: NodeName, { version, topic }: RetainedEntry): boolean {
    const behind = [retainedBehind, clearedBehind].join(" UNION ALL ");
    const bindings = [writer, version, topic, version];
    return this.#sql.exec(`${behind} LIMIT 1`, ...bindings, ...bindings).toArray().length > 0;
  }

  /** A message that clears the topic. */
  #clearing(topic: string): Uint8Array {
    const writer = new ByteWriter();
    const empty = new Uint8Array();
    const nobody = { id: "", from: "", qos: 0, retain: true, expiresAt: 0 } as const;
    writeMessage(writer, { ...nobody, topic, payload: empty, properties: empty });
    return writer.take();
  }

  /**
   * What is not on a page of all that the writer has left was cleared, longer ago than anybody remembers.
   * @param after where the page begins
   * @param next where it ends; undefined: with this version
   */
  dropMissing(
    writer: NodeName,
    { after, next, version }: { readonly after: string; readonly next: string | undefined; readonly version: number },
    topics: ReadonlySet<string>,
  ): void {
    const [from, fromTopic] = placeOf(after) ?? [0, ""];
    // Behind the last version there is no topic.
    const [to, toTopic] = placeOf(next ?? "") ?? [version + 1, ""];
    const rows = this.#sql.exec<{ topic: string }>(
      "SELECT topic FROM retained WHERE writer = ? AND (version, topic) > (?, ?) AND (version, topic) <= (?, ?)",
      ...[writer, from, fromTopic, to, toTopic],
    );
    for (const { topic } of rows.toArray()) if (!topics.has(topic)) this.#delete("topic = ?", topic);
  }

  /** Bounded in messages, in bytes and in topics looked at. */
  page(filter: string, after: string | undefined, messagesMax: number, now: number): RetainedPage {
    const messages: Uint8Array[] = [];
    let bytes = 0;
    let topics = 0;
    let looked = after ?? "";
    while (topics < limits.pageTopicsMax && messages.length < messagesMax && bytes < limits.pageBytesMax) {
      const found = this.#firstFrom(seekAfter(filter, looked));
      if (!found) return { messages: concatenate(messages, bytes), next: undefined };
      looked = found.topic;
      topics++;
      if (!matches(filter, looked)) continue;
      const end = runEnd(filter, looked);
      let last: Uint8Array | undefined;
      for (const [expiresAt, record] of this.#matching(found, end, messagesMax - messages.length)) {
        last = new Uint8Array(record);
        topics++;
        if (expiresAt > 0 && expiresAt <= now) continue;
        messages.push(last);
        bytes += last.length;
        if (bytes >= limits.pageBytesMax) break;
      }
      if (last && end !== undefined) looked = readMessage(new ByteReader(last)).topic;
    }
    return { messages: concatenate(messages, bytes), next: looked };
  }

  #firstFrom(from: string | undefined): Place | undefined {
    if (from === undefined) return undefined;
    const query = "SELECT id, topic FROM retained WHERE topic >= ? ORDER BY topic LIMIT 1";
    return this.#sql.exec<Place>(query, from).toArray()[0];
  }

  /**
   * What is on a topic that matches, and on those that follow it up to the end of its run, if there is one; as arrays, since
   * objects take half as long again.
   */
  #matching(
    { id, topic }: Place,
    end: string | undefined,
    rowsMax: number,
  ): Iterable<[expiresAt: number, record: ArrayBuffer]> {
    const select = "SELECT expires_at, message FROM retained";
    const rows =
      end === undefined
        ? this.#sql.exec(`${select} WHERE id = ?`, id)
        : this.#sql.exec(`${select} WHERE topic >= ? AND topic < ? ORDER BY topic LIMIT ?`, topic, end, rowsMax);
    return rows.raw<[number, ArrayBuffer]>();
  }

  /** One page. */
  deleteExpired(now: number): void {
    const expired = "SELECT id FROM retained WHERE expires_at > 0 AND expires_at <= ? ORDER BY expires_at LIMIT ?";
    this.#delete(`id IN (${expired})`, now, limits.pageMessagesMax);
  }

  #delete(where: string, ...bindings: (string | number)[]): void {
    const deleted = this.#sql.exec(`DELETE FROM retained WHERE ${where} RETURNING id`, ...bindings).toArray();
    this.#count.add(-deleted.length);
  }

  /** When to delete next, in ms since the epoch: often enough for the disk, and seldom enough for many at once. */
  nextSweep(): number | undefined {
    const query = "SELECT min(expires_at) AS at FROM retained WHERE expires_at > 0";
    const { at } = this.#sql.exec<{ at: number | null }>(query).one();
    return at === null ? undefined : sweepOf(at);
  }
}

/** When a message is deleted that expires then. */
export function sweepOf(expiresAt: number): number {
  return Math.ceil(expiresAt / limits.retainedSweepMs) * limits.retainedSweepMs;
}
