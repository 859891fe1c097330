import type { Sql } from "../schema.ts";

/** How many rows a table has, without counting them: a row of `counter`, written once for all changes of a turn. */
export class RowCount {
  readonly #sql: Sql;
  readonly #table: string;
  /** undefined: not read in this life. */
  #value: number | undefined;
  #unwritten = 0;
  #isScheduled = false;

  constructor(sql: Sql, table: string) {
    this.#sql = sql;
    this.#table = table;
  }

  get value(): number {
    const query = "SELECT value FROM counter WHERE name = ?";
    return (this.#value ??= this.#sql.exec<{ value: number }>(query, this.#table).one().value);
  }

  /** In the turn of the change itself: both are in one transaction, because microtasks run before it ends. */
  add(rows: number): void {
    this.#value = this.value + rows;
    this.#unwritten += rows;
    if (rows === 0 || this.#isScheduled) return;
    this.#isScheduled = true;
    queueMicrotask(() => this.#write());
  }

  #write(): void {
    this.#isScheduled = false;
    this.#sql.exec("UPDATE counter SET value = value + ? WHERE name = ?", this.#unwritten, this.#table);
    this.#unwritten = 0;
  }
}
