/**
 * The QoS 2 messages that this node has dispatched, so that none is dispatched twice: a batch whose answer was lost comes
 * again, and a publisher that was not answered before a crash sends again, under the same message id.
 */
import { limits } from "../../mqtt/limits.ts";
import type { Message } from "../../mqtt/message.ts";

const schema = `
CREATE TABLE IF NOT EXISTS dispatched (key TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
`;

export class DispatchedStore {
  readonly #sql: SqlStorage;
  #forgotAt = 0;

  constructor(sql: SqlStorage) {
    this.#sql = sql;
    sql.exec(schema);
  }

  /**
   * Whether the message is new here; it is known from then on, on disk with what its dispatching writes.
   * @param route what tells the copies of one message apart: the share group's filter, or "" for plain subscriptions
   */
  add({ id }: Message, route: string, now: number): boolean {
    if (now - this.#forgotAt > limits.dispatchedKnownMs) this.#forget(now);
    const { rowsWritten } = this.#sql.exec("INSERT OR IGNORE INTO dispatched VALUES (?, ?)", `${id} ${route}`, now);
    return rowsWritten > 0;
  }

  #forget(now: number): void {
    this.#forgotAt = now;
    this.#sql.exec("DELETE FROM dispatched WHERE at < ?", now - limits.dispatchedKnownMs);
  }
}
