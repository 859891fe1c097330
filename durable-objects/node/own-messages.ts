/**
 * Messages that the node publishes itself: wills, and what a share group's member has left for another one. Nobody sends
 * them again, so at QoS 1 and 2 they are on disk, in the transaction that takes them from their session, until the core
 * has answered; what a crash leaves there is sent by the next life, under the same message id.
 *
 *   own  (id, record): a record for the core
 */
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import type { Message } from "../../mqtt/message.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";
import type { Sql } from "../schema.ts";
import { publishRecord } from "../rpc.ts";
import type { CoreLink } from "./core-link.ts";

export interface OwnMessagesHost {
  readonly core: CoreLink;
  /** Makes sure that the alarm rings at this time or before: what wakes the node makes it send. */
  readonly ringAt: (at: number) => void;
}

export class OwnMessages {
  readonly #sql: Sql;
  readonly #host: OwnMessagesHost;
  readonly #writer = new ByteWriter();
  #nextId: number | undefined;
  readonly #underWay = new Set<number>();
  #retry: ReturnType<typeof setTimeout> | undefined;

  constructor(sql: Sql, host: OwnMessagesHost) {
    this.#sql = sql;
    this.#host = host;
  }

  /** @param only "" or the `$share/group/filter` that alone is to get it. */
  publish(message: Message, only: string, delaySeconds: number, now: number): void {
    const record = publishRecord(this.#writer, { message, delaySeconds, only }).slice();
    if (message.qos === 0) return this.#host.core.outbox.addUnacknowledged(record);
    this.#nextId ??= this.#sql.exec<{ id: number }>("SELECT coalesce(max(id), 0) + 1 AS id FROM own").one().id;
    const id = this.#nextId++;
    this.#sql.exec("INSERT INTO own VALUES (?, ?)", id, record);
    this.#host.ringAt(now + limits.ownMessagesRetryMs);
    this.#send(id, record);
  }

  /** Whether some have not been answered: a life that ends before that needs another one. */
  get isWaiting(): boolean {
    return this.#underWay.size > 0 || this.#retry !== undefined;
  }

  /** Sends what an earlier life left, and what could not be sent; some at a time. */
  sendAll(): void {
    this.#retry = undefined;
    const rows = this.#sql.exec<{ id: number; record: ArrayBuffer }>("SELECT id, record FROM own ORDER BY id");
    for (const { id, record } of rows) {
      if (this.#underWay.size >= limits.pageMessagesMax || this.#host.core.outbox.full) return this.#retryLater();
      if (!this.#underWay.has(id)) this.#send(id, new Uint8Array(record));
    }
  }

  #send(id: number, record: Uint8Array): void {
    if (this.#host.core.outbox.full) return this.#retryLater();
    this.#underWay.add(id);
    this.#host.core.add(record, (reasonCode) => {
      this.#underWay.delete(id);
      if (reasonCode === ReasonCode.UnspecifiedError) this.#retryLater();
      else this.#sql.exec("DELETE FROM own WHERE id = ?", id);
    });
  }

  #retryLater(): void {
    this.#retry ??= setTimeout(() => this.sendAll(), limits.retryLastMs);
  }
}
