/**
 * The route table: topic filter (and share group) -> nodes.
 *
 *     add(node-0, "a/b")  add(node-1, "a/+")  add(node-0, "a/+")  setShared(node-1, "g", "a/b", 2)
 *
 *     exact: "a/b" -> nodes [node-0], group g: node-1 with 2 connected members
 *     trie:  "a/+" -> nodes [node-1, node-0]
 *
 *     match("a/b") visits both routes
 *
 * Filters without wildcards, most of them, are in a map: a match is one lookup. The others are in the
 * topic trie, whose head comment has its cost.
 *
 * Invariants. A route has at least one node or one group; the last one that goes takes the route with
 * it. Every change is idempotent, because the calls that bring changes may come twice. A list of nodes
 * is never changed, only replaced: who holds one across an await holds the nodes of that moment.
 *
 * Memory. Most filters have subscribers on one node, so a list of one node is shared by all filters
 * that have just this list. A route costs 110 bytes like `d/1/cmd`, 210 like `devices/1/#`, 370 like
 * `c/1/cmd/+` (a million of each, Node 24).
 */
import { limits } from "../mqtt/limits.ts";
import { hasWildcard } from "../mqtt/topic.ts";
import type { NodeName } from "./name.ts";
import { ShareGroup } from "./shared-sub.ts";
import { TopicTrie } from "./trie.ts";

export interface Route {
  readonly filter: string;
  /** The nodes with ordinary subscriptions to the filter, in the order in which they came. */
  readonly nodes: readonly NodeName[];
  /** The share groups of the filter by name; undefined: none. */
  readonly groups: ReadonlyMap<string, ShareGroup> | undefined;
}

/** One node's part of a route, as it is stored and sent. */
export type RouteEntry =
  | { readonly node: NodeName; readonly filter: string; readonly group: undefined }
  | {
      readonly node: NodeName;
      readonly filter: string;
      readonly group: string;
      /** Connected members of the group on the node. */
      readonly members: number;
    };

interface MutableRoute {
  readonly filter: string;
  nodes: readonly NodeName[];
  groups: Map<string, ShareGroup> | undefined;
}

const noNodes: readonly NodeName[] = [];

export class RouteTable {
  readonly #exact = new Map<string, MutableRoute>();
  readonly #wildcard = new TopicTrie<MutableRoute>();
  /** The lists of one node, by node. */
  readonly #loneNodes = new Map<NodeName, readonly NodeName[]>();
  /** How many routes have a filter under each first level that begins with "$": { "$SYS/": 3 }. */
  readonly #dollarCounts = new Map<string, number>();
  #version = 0;

  /** Changes whenever what a topic matches may have changed: a node or a group of a filter that came or went. */
  get version(): number {
    return this.#version;
  }

  /** How many filters have a route. */
  get size(): number {
    return this.#exact.size + this.#wildcard.size;
  }

  /** The node has an ordinary subscriber to the filter. */
  add(node: NodeName, filter: string): void {
    const route = this.#getOrCreate(filter);
    if (route.nodes.includes(node)) return;
    route.nodes = route.nodes.length === 0 ? this.#loneNode(node) : [...route.nodes, node];
    this.#version++;
  }

  /** The node has no ordinary subscriber to the filter any more. */
  remove(node: NodeName, filter: string): void {
    const route = this.#get(filter);
    if (route !== undefined) this.#removeFrom(route, node);
  }

  /** The node has members of the group, `members` of them connected; 0: offline ones only. */
  setShared(node: NodeName, group: string, filter: string, members: number): void {
    const route = this.#getOrCreate(filter);
    route.groups ??= new Map();
    let shareGroup = route.groups.get(group);
    if (shareGroup === undefined) {
      shareGroup = new ShareGroup(limits.groupPublishersMax);
      route.groups.set(group, shareGroup);
      this.#version++;
    }
    shareGroup.set(node, members);
  }

  /** The node has no members of the group any more. */
  removeShared(node: NodeName, group: string, filter: string): void {
    const route = this.#get(filter);
    if (route !== undefined) this.#removeSharedFrom(route, node, group);
  }

  /** Removes the node from every route. Looks at every route: for a node that leaves the cluster. */
  dropNode(node: NodeName): void {
    for (const route of [...this.#routes()]) {
      for (const group of [...(route.groups?.keys() ?? [])]) this.#removeSharedFrom(route, node, group);
      this.#removeFrom(route, node);
    }
    this.#loneNodes.delete(node);
  }

  /** Visits each route whose filter matches the topic name, once. The table must not change meanwhile. */
  match(topic: string, visit: (route: Route) => void): void {
    const exact = this.#exact.get(topic);
    if (exact !== undefined) visit(exact);
    this.#wildcard.match(topic, visit);
  }

  /** Everything in the table, for a snapshot. The table must not change meanwhile. */
  *entries(): Generator<RouteEntry> {
    for (const { filter, nodes, groups } of this.#routes()) {
      for (const node of nodes) yield { node, filter, group: undefined };
      for (const [group, shareGroup] of groups ?? []) {
        for (const { node, connected } of shareGroup.members()) yield { node, filter, group, members: connected };
      }
    }
  }

  /** Whether there is a route for a filter under `prefix`: a first level that begins with "$", as "$SYS/". */
  hasFilterUnder(prefix: string): boolean {
    return this.#dollarCounts.has(prefix);
  }

  #get(filter: string): MutableRoute | undefined {
    return hasWildcard(filter) ? this.#wildcard.get(filter) : this.#exact.get(filter);
  }

  #getOrCreate(filter: string): MutableRoute {
    const found = this.#get(filter);
    if (found !== undefined) return found;
    const route: MutableRoute = { filter, nodes: noNodes, groups: undefined };
    if (hasWildcard(filter)) this.#wildcard.set(filter, route);
    else this.#exact.set(filter, route);
    this.#countDollar(filter, 1);
    return route;
  }

  #removeFrom(route: MutableRoute, node: NodeName): void {
    if (route.nodes.includes(node)) {
      const rest = route.nodes.filter((each) => each !== node);
      const lone = rest.length === 1 ? rest[0] : undefined;
      route.nodes = lone === undefined ? rest : this.#loneNode(lone);
      this.#version++;
    }
    this.#deleteIfEmpty(route);
  }

  #removeSharedFrom(route: MutableRoute, node: NodeName, group: string): void {
    const shareGroup = route.groups?.get(group);
    if (shareGroup === undefined || !shareGroup.delete(node) || shareGroup.size > 0) return;
    route.groups?.delete(group);
    this.#version++;
    if (route.groups?.size === 0) route.groups = undefined;
    this.#deleteIfEmpty(route);
  }

  #deleteIfEmpty(route: MutableRoute): void {
    const { filter, nodes, groups } = route;
    if (nodes.length > 0 || groups !== undefined) return;
    const deleted = hasWildcard(filter) ? this.#wildcard.delete(filter) : this.#exact.delete(filter);
    if (deleted) this.#countDollar(filter, -1);
  }

  #countDollar(filter: string, change: 1 | -1): void {
    if (!filter.startsWith("$")) return;
    const prefix = filter.slice(0, filter.indexOf("/") + 1);
    const count = (this.#dollarCounts.get(prefix) ?? 0) + change;
    if (count > 0) this.#dollarCounts.set(prefix, count);
    else this.#dollarCounts.delete(prefix);
  }

  #loneNode(node: NodeName): readonly NodeName[] {
    let list = this.#loneNodes.get(node);
    if (list === undefined) {
      list = [node];
      this.#loneNodes.set(node, list);
    }
    return list;
  }

  *#routes(): Generator<MutableRoute> {
    yield* this.#exact.values();
    yield* this.#wildcard.values();
  }
}
