/**
 * The routes on a core's disk.
 *
 *   route    (key, node, members, sent, version)  a filter, or share group and filter, with subscribers on the node
 *   removed  (key, node, sent, version)           one that is gone, so that a core that missed it can be told
 *
 * `sent` is the node's own number of the change: a batch that comes again must not undo what came behind it. `version` is
 * the one that the node's home core has given it, by which cores replicate. Removals are kept only in a cluster of several
 * cores, and of each node only the latest.
 */
import type { NodeName } from "../../cluster/name.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { firstPage } from "../page.ts";
import { writeRouteEntry } from "../rpc.ts";
import type { Sql } from "../schema.ts";
import { isSameTerm, type Versions } from "./versions.ts";

export interface StoredRoute {
  readonly node: NodeName;
  readonly key: string;
  readonly members: number;
}

/** One node's change of one route. */
export interface RouteChange {
  readonly key: string;
  /** undefined: it is gone. */
  readonly members: number | undefined;
  readonly sent: number;
  readonly version: number;
}

export interface EntriesPage {
  readonly isWhole: boolean;
  readonly entries: Uint8Array;
  readonly next: string | undefined;
}

export class RouteStore {
  readonly #sql: Sql;
  readonly #versions: Versions;
  readonly #writer = new ByteWriter();
  /** What `removed` has of each node, at most; not known before the first removal of a life. */
  readonly #removals = new Map<NodeName, number>();

  constructor(sql: Sql, versions: Versions) {
    this.#sql = sql;
    this.#versions = versions;
  }

  /** Read as arrays: a core that wakes reads all, and objects take the runtime twice as long. */
  *all(): Generator<StoredRoute> {
    const rows = this.#sql.exec("SELECT node, key, members FROM route").raw<[string, string, number]>();
    for (const [node, key, members] of rows) yield { node, key, members };
  }

  /** The node's number of its last change of the route, as far as it is known; 0: not. */
  sentOf(node: NodeName, key: string): number {
    return this.#numberOf("sent", node, key);
  }

  #numberOf(column: "sent" | "version", node: NodeName, key: string): number {
    const query = (table: string): string => `SELECT ${column} AS number FROM ${table} WHERE key = ? AND node = ?`;
    for (const table of ["route", "removed"]) {
      const [row] = this.#sql.exec<{ number: number }>(query(table), key, node);
      if (row) return row.number;
    }
    return 0;
  }

  put(node: NodeName, { key, members, sent, version }: RouteChange): void {
    if (members === undefined) {
      this.#sql.exec("DELETE FROM route WHERE key = ? AND node = ?", key, node);
      if (version > 0) this.#putRemoved(node, key, sent, version);
      return;
    }
    this.#sql.exec("INSERT OR REPLACE INTO route VALUES (?, ?, ?, ?, ?)", key, node, members, sent, version);
    if (version > 0) this.#sql.exec("DELETE FROM removed WHERE key = ? AND node = ?", key, node);
  }

  #putRemoved(node: NodeName, key: string, sent: number, version: number): void {
    this.#sql.exec("INSERT OR REPLACE INTO removed VALUES (?, ?, ?, ?)", key, node, sent, version);
    const count = (this.#removals.get(node) ?? this.#removedBy(node) - 1) + 1;
    this.#removals.set(node, count);
    if (count < limits.removalsPerWriterMax) return;
    this.#removals.set(node, limits.removalsPerWriterMax / 2);
    this.#forgetRemovals(node);
  }

  #removedBy(node: NodeName): number {
    return this.#sql.exec<{ n: number }>("SELECT count(*) AS n FROM removed WHERE node = ?", node).one().n;
  }

  /** The older half of the node's removals. */
  #forgetRemovals(node: NodeName): void {
    const query = "SELECT version FROM removed WHERE node = ? ORDER BY version DESC LIMIT 1 OFFSET ?";
    const [oldest] = this.#sql.exec<{ version: number }>(query, node, limits.removalsPerWriterMax / 2);
    if (!oldest) return;
    this.#sql.exec("DELETE FROM removed WHERE node = ? AND version <= ?", node, oldest.version);
    this.#versions.set(node, this.#versions.of(node), oldest.version);
  }

  drop(node: NodeName): void {
    this.#sql.exec("DELETE FROM route WHERE node = ?", node);
    this.#sql.exec("DELETE FROM removed WHERE node = ?", node);
    this.#removals.delete(node);
  }

  // ---- replication ------------------------------------------------------------------------------------------------

  /** There are other cores from now on: changes are read by their versions. */
  index(): void {
    this.#sql.exec("CREATE INDEX IF NOT EXISTS route_version ON route (node, version, key)");
    this.#sql.exec("CREATE INDEX IF NOT EXISTS removed_version ON removed (node, version, key)");
  }

  /** What was changed without other cores to tell is new to them. */
  giveVersion(node: NodeName, version: number): void {
    this.#sql.exec("UPDATE route SET version = ? WHERE node = ? AND version = 0", version, node);
  }

  /** A page of the node's changes behind a version, or of all its routes. */
  page(node: NodeName, since: number, after: string): EntriesPage {
    const isWhole = !this.isKnown(node, since);
    const [fromVersion, fromKey] = placeOf(after) ?? [isWhole ? 0 : since, undefined];
    const tables = isWhole ? [routesBehind] : [routesBehind, removedBehind];
    const rows = this.#sql.exec<{ key: string; members: number | null; version: number }>(
      `${tables.join(" UNION ALL ")} ORDER BY version, key LIMIT ?`,
      ...tables.flatMap(() => [node, fromVersion, fromKey ?? "", fromVersion]),
      limits.pageEntriesMax,
    );
    const { items, isLast } = firstPage(rows, ({ key }) => key);
    for (const { key, members, version } of items)
      writeRouteEntry(this.#writer, { key, members: members ?? undefined, version });
    const last = items.at(-1);
    const next = isLast || !last ? undefined : `${last.version} ${last.key}`;
    return { isWhole, entries: this.#writer.take(), next };
  }

  /** Whether what has changed since can be told by changes alone. */
  isKnown(writer: NodeName, since: number): boolean {
    const version = this.#versions.of(writer);
    return since > 0 && isSameTerm(since, version) && since >= this.#versions.floorOf(writer);
  }

  membersOf(node: NodeName, key: string): number | undefined {
    const query = "SELECT members FROM route WHERE key = ? AND node = ?";
    return this.#sql.exec<{ members: number }>(query, key, node).toArray()[0]?.members;
  }

  /** The version of the last change that is known of the route. */
  versionOf(node: NodeName, key: string): number {
    return this.#numberOf("version", node, key);
  }

  keysOf(node: NodeName): string[] {
    return [...this.#sql.exec<{ key: string }>("SELECT key FROM route WHERE node = ?", node)].map(({ key }) => key);
  }
}

/** Behind a place in the order of versions and keys. */
const routesBehind =
  "SELECT key, members, version FROM route WHERE node = ? AND (version, key) > (?, ?) AND version >= ?";
const removedBehind =
  "SELECT key, NULL AS members, version FROM removed WHERE node = ? AND (version, key) > (?, ?) AND version >= ?";

/** The place behind which a page begins; undefined: at the beginning. */
export function placeOf(after: string): [version: number, key: string] | undefined {
  if (after === "") return undefined;
  const space = after.indexOf(" ");
  return [Number(after.slice(0, space)), after.slice(space + 1)];
}
