import { limits } from "../../mqtt/limits.ts";
import type { Sql } from "../schema.ts";

/**
 * The numbers of messages on a node: they rise through all its lives, because a session's disk is read by them. They are
 * reserved in blocks, a row each; what a life leaves unused is never used.
 */
export class Sequence {
  readonly #sql: Sql;
  /** undefined: not read in this life. */
  #next: number | undefined;
  #reserved = 0;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** All numbers given so far are at most this. */
  get last(): number {
    this.#next ??= this.#reserved =
      this.#sql.exec<{ seq: number }>("SELECT seq FROM reserved WHERE id = 1").toArray()[0]?.seq ?? 1;
    return this.#next - 1;
  }

  next(): number {
    return this.take(1);
  }

  /** @returns the first of so many numbers in a row. */
  take(count: number): number {
    const first = this.last + 1;
    this.#next = first + count;
    if (this.#next > this.#reserved) {
      this.#reserved = this.#next + limits.seqsReserved;
      this.#sql.exec("INSERT OR REPLACE INTO reserved VALUES (1, ?)", this.#reserved);
    }
    return first;
  }
}
