/** Retained messages on a core's disk: one per topic. */
import { concatenate } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import type { Message } from "../../mqtt/message.ts";
import { hasWildcard, matches } from "../../mqtt/topic.ts";
import type { RetainedPage } from "../rpc.ts";
import type { Sql } from "../schema.ts";

/** Behind every topic that starts with the prefix, but one that goes on with U+10FFFF itself, which is no character. */
const lastCharacter = "\u{10FFFF}";

export class RetainedStore {
  readonly #sql: Sql;
  #count: number | undefined;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /**
   * The message takes the place of its topic's last one; without a payload it only clears it.
   * @returns whether there was room.
   */
  put({ topic, payload, expiresAt }: Message, bytes: Uint8Array): boolean {
    if (payload.length === 0) this.#delete([topic]);
    else {
      const isNew = this.#sql.exec("SELECT 1 FROM retained WHERE topic = ?", topic).toArray().length === 0;
      if (isNew && this.count() >= limits.retainedMessagesMax) return false;
      this.#sql.exec("INSERT OR REPLACE INTO retained VALUES (?, ?, ?)", topic, expiresAt, bytes);
      if (isNew) this.#count = this.count() + 1;
    }
    return true;
  }

  /** Looks at a bounded number of rows, and reads only the messages that match. Expired ones are deleted on the way. */
  page(filter: string, after: string | undefined, messagesMax: number, now: number): RetainedPage {
    const found: string[] = [];
    const expired: string[] = [];
    let next: string | undefined;
    let rows = 0;
    for (const { topic, expires_at } of this.#topics(filter, after)) {
      rows++;
      if (expires_at !== 0 && expires_at <= now) expired.push(topic);
      else if (matches(filter, topic)) found.push(topic);
      if (found.length < messagesMax && rows < limits.pageRowsMax) continue;
      next = topic;
      break;
    }
    this.#delete(expired);
    return this.#readPage(found, next);
  }

  #readPage(topics: readonly string[], next: string | undefined): RetainedPage {
    const messages: Uint8Array[] = [];
    let bytes = 0;
    for (const [index, topic] of topics.entries()) {
      const row = this.#sql.exec<{ message: ArrayBuffer }>("SELECT message FROM retained WHERE topic = ?", topic).one();
      messages.push(new Uint8Array(row.message));
      bytes += row.message.byteLength;
      if (bytes >= limits.pageBytesMax && index < topics.length - 1)
        return { messages: concatenate(messages, bytes), next: topic };
    }
    return { messages: concatenate(messages, bytes), next };
  }

  /** In their order, only those that begin as the filter does. */
  #topics(filter: string, after: string | undefined) {
    type Row = { topic: string; expires_at: number };
    if (!hasWildcard(filter))
      return this.#sql.exec<Row>(
        "SELECT topic, expires_at FROM retained WHERE topic = ? AND topic > ?",
        filter,
        after ?? "",
      );
    const wildcard = filter.search(/[+#]/);
    // "a/#" matches "a" too: the slash is not part of what all have in common. [MQTT-4.7.1-2]
    const prefix = filter.slice(0, filter[wildcard] === "#" ? Math.max(0, wildcard - 1) : wildcard);
    return this.#sql.exec<Row>(
      "SELECT topic, expires_at FROM retained WHERE topic >= ? AND topic > ? AND topic < ? ORDER BY topic",
      prefix,
      after ?? "",
      prefix + lastCharacter,
    );
  }

  #delete(topics: readonly string[]): void {
    for (const topic of topics) {
      const before = this.count();
      const { rowsWritten } = this.#sql.exec("DELETE FROM retained WHERE topic = ?", topic);
      if (rowsWritten > 0) this.#count = before - 1;
    }
  }

  /** Counted once, then kept. */
  count(): number {
    this.#count ??= this.#sql.exec<{ n: number }>("SELECT count(*) AS n FROM retained").one().n;
    return this.#count;
  }
}
