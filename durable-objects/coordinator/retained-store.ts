/**
 * Retained messages on a core's disk: one per topic, ordered by the bytes of the topics. A filter is read by skip-scan
 * (mqtt/topic-scan.ts): topics are looked at one by one, and only of those that match the message is read.
 *
 * An expired message is given to nobody from that moment; it is deleted when the alarm rings next.
 *
 * A batch may come again, and behind a later one. Ids of one life of a node rise in the order of its clients' publishes, so
 * a message is outdated when a later one of its life has been here. The row says so of the message that it holds. What has
 * cleared a topic, or was replaced by another node's message, is in memory alone: forgotten after a while, or in a crash.
 *
 * Rows written: one for a topic that is known, two for a new one, one more if the message expires; one a turn for the count.
 */
import { ByteReader, concatenate } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { isUpTo } from "../../mqtt/message-id-set.ts";
import { readMessage, type Message } from "../../mqtt/message.ts";
import { seekAfter } from "../../mqtt/topic-scan.ts";
import { matches } from "../../mqtt/topic.ts";
import type { RetainedPage } from "../rpc.ts";
import type { Sql } from "../schema.ts";
import { LatestIds } from "./latest-ids.ts";
import { RowCount } from "./row-count.ts";

export class RetainedStore {
  readonly #sql: Sql;
  readonly #count: RowCount;
  readonly #latest = new LatestIds();

  constructor(sql: Sql) {
    this.#sql = sql;
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
    return row && readMessage(new ByteReader(new Uint8Array(row.message))).id;
  }

  /**
   * The message takes the place of its topic's last one; without a payload it only clears it.
   * @returns whether there was room.
   */
  put(message: Message, bytes: Uint8Array): boolean {
    const isKept = this.#replace(message, bytes);
    if (isKept) this.#latest.add(message);
    return isKept;
  }

  #replace({ topic, payload, expiresAt }: Message, bytes: Uint8Array): boolean {
    if (payload.length === 0) {
      this.#delete("topic = ?", topic);
      return true;
    }
    const update = "UPDATE retained SET expires_at = ?, message = ? WHERE topic = ?";
    if (this.#sql.exec(update, expiresAt, bytes, topic).rowsWritten > 0) return true;
    if (this.count >= limits.retainedMessagesMax) return false;
    this.#sql.exec("INSERT INTO retained (topic, expires_at, message) VALUES (?, ?, ?)", topic, expiresAt, bytes);
    this.#count.add(1);
    return true;
  }

  /** Bounded in messages, in bytes and in topics looked at. */
  page(filter: string, after: string | undefined, messagesMax: number, now: number): RetainedPage {
    const messages: Uint8Array[] = [];
    let bytes = 0;
    let looked = after ?? "";
    for (let topics = 0; topics < limits.pageTopicsMax; topics++) {
      const found = this.#firstFrom(seekAfter(filter, looked));
      if (!found) return { messages: concatenate(messages, bytes), next: undefined };
      looked = found.topic;
      const message = matches(filter, looked) ? this.#read(found.id, now) : undefined;
      if (!message) continue;
      messages.push(message);
      bytes += message.length;
      if (messages.length === messagesMax || bytes >= limits.pageBytesMax) break;
    }
    return { messages: concatenate(messages, bytes), next: looked };
  }

  #firstFrom(from: string | undefined): { id: number; topic: string } | undefined {
    if (from === undefined) return undefined;
    const query = "SELECT id, topic FROM retained WHERE topic >= ? ORDER BY topic LIMIT 1";
    return this.#sql.exec<{ id: number; topic: string }>(query, from).toArray()[0];
  }

  /** Nothing when it has expired. */
  #read(id: number, now: number): Uint8Array | undefined {
    const query = "SELECT message FROM retained WHERE id = ? AND (expires_at = 0 OR expires_at > ?)";
    const row = this.#sql.exec<{ message: ArrayBuffer }>(query, id, now).toArray()[0];
    return row && new Uint8Array(row.message);
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
