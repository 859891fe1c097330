/** What a core keeps on its disk for nodes that it cannot reach: rows of packed records, in the order of their `seq`. */
import type { NodeName } from "../../cluster/name.ts";
import { concatenate } from "../../mqtt/byte-buffer.ts";
import type { Sql } from "../schema.ts";

/** What is parked for one node. */
export interface ParkedTotal {
  readonly node: NodeName;
  readonly lastSeq: number;
  /** When the first of it came, in ms since the epoch. */
  readonly since: number;
  readonly messages: number;
  readonly bytes: number;
}

/** Some of it, the oldest. */
export interface ParkedPage {
  /** One behind the other, as in a batch. */
  readonly records: Uint8Array;
  readonly messages: number;
  readonly lastSeq: number;
  /** Nothing is behind it. */
  readonly isLast: boolean;
}

export interface ParkedRow {
  readonly seq: number;
  readonly at: number;
  readonly messages: number;
  readonly records: Uint8Array;
}

export class ParkedStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  totals(): ParkedTotal[] {
    const rows = this.#sql.exec<{ node: string; lastSeq: number; since: number; messages: number; bytes: number }>(
      "SELECT node, max(seq) AS lastSeq, min(at) AS since, sum(messages) AS messages, sum(length(records)) AS bytes FROM parked GROUP BY node",
    );
    return [...rows];
  }

  add(node: NodeName, { seq, at, messages, records }: ParkedRow): void {
    this.#sql.exec("INSERT INTO parked VALUES (?, ?, ?, ?, ?)", node, seq, at, messages, records);
  }

  /** At least one row if there is any. */
  page(node: NodeName, bytesMax: number): ParkedPage | undefined {
    const parts: Uint8Array[] = [];
    let [bytes, messages, lastSeq, isLast] = [0, 0, 0, true];
    for (const row of this.#sql.exec<{ seq: number; messages: number; records: ArrayBuffer }>(
      "SELECT seq, messages, records FROM parked WHERE node = ? ORDER BY seq",
      node,
    )) {
      isLast = parts.length === 0 || bytes + row.records.byteLength <= bytesMax;
      if (!isLast) break;
      parts.push(new Uint8Array(row.records));
      bytes += row.records.byteLength;
      messages += row.messages;
      lastSeq = row.seq;
    }
    return parts.length === 0 ? undefined : { records: concatenate(parts, bytes), messages, lastSeq, isLast };
  }

  deleteUpTo(node: NodeName, lastSeq: number): void {
    this.#sql.exec("DELETE FROM parked WHERE node = ? AND seq <= ?", node, lastSeq);
  }
}
