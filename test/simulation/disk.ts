/**
 * The disk of a Durable Object: SQLite and the alarm, behind the interfaces of the runtime.
 *
 * All writes of one turn of the event loop are one transaction, as in workerd: it begins with the first write, `commit`
 * makes it durable at the turn's end, `rollback` is a crash before that.
 */
import { DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";

interface Prepared {
  readonly statement: StatementSync;
  readonly reads: boolean;
  readonly writes: boolean;
}

export class Disk {
  readonly sql: SqlStorage;
  /** ms since the epoch. */
  #alarmAt: number | null = null;
  #alarmAtBefore: number | null = null;
  /** The alarm has rung and its handler has not ended: it is hidden, and comes again after a crash. */
  #isRinging = false;
  readonly #database = new DatabaseSync(":memory:");
  readonly #prepared = new Map<string, Prepared>();
  #isWriting = false;

  constructor() {
    this.sql = {
      exec: (query: string, ...bindings: unknown[]) => this.#exec(query, bindings),
    } as unknown as SqlStorage;
  }

  /** What the object is given as `ctx.storage`. */
  get storage(): DurableObjectStorage {
    const storage = {
      sql: this.sql,
      getAlarm: () => Promise.resolve(this.#isRinging ? null : this.#alarmAt),
      setAlarm: (at: number | Date) => Promise.resolve(this.#setAlarm(Number(at))),
      deleteAlarm: () => Promise.resolve(this.#setAlarm(null)),
      transactionSync: <T>(closure: () => T) => this.#transaction(closure),
      sync: () => Promise.resolve(),
    };
    return storage as unknown as DurableObjectStorage;
  }

  get hasUncommitted(): boolean {
    return this.#isWriting || this.#alarmAt !== this.#alarmAtBefore;
  }

  commit(): void {
    if (this.#isWriting) this.#run("COMMIT");
    this.#isWriting = false;
    this.#alarmAtBefore = this.#alarmAt;
  }

  rollback(): void {
    if (this.#isWriting) this.#run("ROLLBACK");
    this.#isWriting = false;
    this.#alarmAt = this.#alarmAtBefore;
  }

  /** For the checks at the end. */
  rows<Row>(query: string): Row[] {
    return this.#database.prepare(query).all() as Row[];
  }

  get tables(): string[] {
    const rows = this.rows<{ name: string }>(
      "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
    );
    return rows.map((row) => row.name);
  }

  close(): void {
    this.#database.close();
  }

  // ---- alarm ------------------------------------------------------------------------------------------------------

  /** When it is to ring next; null: not at all, or it has rung. */
  get alarmAt(): number | null {
    return this.#isRinging ? null : this.#alarmAt;
  }

  #setAlarm(at: number | null): void {
    this.#alarmAt = at;
    this.#isRinging = false;
  }

  ring(): void {
    this.#isRinging = true;
  }

  /** The handler has ended, or it has not because of a crash. */
  rang(outcome: "handled" | "crashed"): void {
    if (!this.#isRinging) return;
    this.#isRinging = false;
    if (outcome === "handled") this.#alarmAt = this.#alarmAtBefore = null;
  }

  // ---- SQL --------------------------------------------------------------------------------------------------------

  #exec(query: string, bindings: readonly unknown[]): Cursor {
    const { statement, reads, writes } = this.#prepare(query);
    if (writes) this.#begin();
    const values = bindings.map(toSqlite);
    if (!reads) return new Cursor([], Number(statement.run(...values).changes));
    const rows = statement.all(...values);
    for (const row of rows) fromSqlite(row);
    return new Cursor(rows, writes ? rows.length : 0);
  }

  /** Of several statements in one text all but the last are run now. */
  #prepare(query: string): Prepared {
    let prepared = this.#prepared.get(query);
    if (prepared) return prepared;
    const statements = query.split(";").filter((part) => part.trim() !== "");
    const last = statements.pop() ?? "";
    for (const each of statements) this.#exec(each, []);
    const statement = this.#database.prepare(last);
    prepared = { statement, reads: statement.columns().length > 0, writes: !/^\s*SELECT/i.test(last) };
    if (statements.length === 0) this.#prepared.set(query, prepared);
    return prepared;
  }

  #run(query: string): void {
    this.#prepare(query).statement.run();
  }

  #begin(): void {
    if (this.#isWriting) return;
    this.#run("BEGIN");
    this.#isWriting = true;
  }

  #transaction<T>(closure: () => T): T {
    this.#begin();
    this.#run("SAVEPOINT inner_transaction");
    try {
      const result = closure();
      this.#run("RELEASE inner_transaction");
      return result;
    } catch (error) {
      this.#run("ROLLBACK TO inner_transaction");
      this.#run("RELEASE inner_transaction");
      throw error;
    }
  }
}

type Row = Record<string, unknown>;

class Cursor {
  readonly rowsRead: number;
  readonly rowsWritten: number;
  readonly #rows: Row[];
  #next = 0;

  constructor(rows: Row[], rowsWritten: number) {
    this.#rows = rows;
    this.rowsRead = rows.length;
    this.rowsWritten = rowsWritten;
  }

  toArray(): Row[] {
    return [...this];
  }

  *raw(): Generator<unknown[]> {
    for (const row of this) yield Object.values(row);
  }

  one(): Row {
    if (this.#rows.length !== 1) throw new Error(`expected one row, there are ${this.#rows.length}`);
    this.#next = 1;
    return this.#rows[0]!;
  }

  next(): IteratorResult<Row, undefined> {
    const value = this.#rows[this.#next++];
    return value === undefined ? { done: true, value } : { done: false, value };
  }

  [Symbol.iterator](): this {
    return this;
  }
}

/** What workerd takes: no booleans, no `undefined`. */
function toSqlite(value: unknown): SQLInputValue {
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  if (value === undefined || typeof value === "boolean") throw new TypeError(`${value} cannot be bound`);
  return value as SQLInputValue;
}

/** A BLOB comes out as an ArrayBuffer. */
function fromSqlite(row: Row): void {
  for (const name in row) {
    const value = row[name];
    if (value instanceof Uint8Array) row[name] = value.slice().buffer;
  }
}
