/**
 * The version vector of a core: up to which version it has what each writer has written. A node writes its routes, a core
 * the retained messages that it takes in; nobody else does, so two versions of one writer are never in conflict.
 *
 * A version is the writer's term and a counter: the home core of a node counts its changes, and the term rises when the
 * node changes its home. `floor`: removals up to it are forgotten, so who has missed them reads everything anew.
 *
 *   writer  (name, version, floor)
 */
import type { NodeName } from "../../cluster/name.ts";
import type { Sql } from "../schema.ts";

interface Version {
  readonly version: number;
  readonly floor: number;
}

const none: Version = { version: 0, floor: 0 };

export class Versions {
  readonly #sql: Sql;
  readonly #versions = new Map<NodeName, Version>();

  constructor(sql: Sql) {
    this.#sql = sql;
    for (const { name, version, floor } of sql.exec<{ name: string; version: number; floor: number }>(
      "SELECT name, version, floor FROM writer",
    ))
      this.#versions.set(name, { version, floor });
  }

  /** 0: nothing. */
  of(writer: NodeName): number {
    return (this.#versions.get(writer) ?? none).version;
  }

  /** Who has a version below has missed removals that are forgotten. */
  floorOf(writer: NodeName): number {
    return (this.#versions.get(writer) ?? none).floor;
  }

  set(writer: NodeName, version: number, floor = this.floorOf(writer)): void {
    this.#versions.set(writer, { version, floor });
    this.#sql.exec("INSERT OR REPLACE INTO writer VALUES (?, ?, ?)", writer, version, floor);
  }

  forget(writer: NodeName): void {
    this.#versions.delete(writer);
    this.#sql.exec("DELETE FROM writer WHERE name = ?", writer);
  }

  vector(): Record<NodeName, number> {
    return Object.fromEntries([...this.#versions].map(([writer, { version }]) => [writer, version]));
  }
}

/** Room for the changes of one term, and in the 48 bits that a version is sent with for as many terms. */
const changesPerTerm = 2 ** 24;

/** The first version of a node's term; later terms have higher versions. */
export function firstVersionOf(term: number): number {
  return term * changesPerTerm + 1;
}

/** Whether two versions are of one term: counted by the same core. */
export function isSameTerm(a: number, b: number): boolean {
  return Math.floor(a / changesPerTerm) === Math.floor(b / changesPerTerm);
}
