/**
 * The route table: topic filter (and share group) -> nodes.
 *
 *     add(node-0, "a/b")  add(node-1, "a/+")  add(node-0, "a/+")  setShared(node-1, "g", "a/b", 2)
 *
 *     trie:   "a/b" -> 2   "a/+" -> 4     lists: 1 []  2 [node-0]  3 [node-1]  4 [node-1, node-0]
 *     groups: "a/b" -> g: node-1 with 2 connected members
 *
 *     match("a/b") visits both routes
 *
 * All filters are in the topic trie, whose head comment has its cost.
 *
 * Invariants. A route has at least one node or one group; the last one that goes takes the route with
 * it. Every change is idempotent, because the calls that bring changes may come twice. A list of nodes
 * is never changed, only replaced: who holds one across an await holds the nodes of that moment.
 *
 * Memory. Most filters have subscribers on one node, so a filter has the number of a list, and a list of
 * one node is shared by all filters that have just this list; longer ones are the filter's own. A filter
 * with one node costs what it costs in the trie, one with more 40 bytes besides, and one with a share
 * group 300.
 */
import { limits } from "../mqtt/limits.ts";
import type { NodeName } from "./name.ts";
import { KeyHash } from "./packed-map.ts";
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

/** The number of the list of no nodes. */
const noNodes = 1;

export class RouteTable {
  readonly #trie: TopicTrie;
  /** The lists that filters have, by number. */
  readonly #lists: (readonly NodeName[])[] = [[], []];
  /** Numbers below the highest that are not in use. */
  readonly #freeLists: number[] = [];
  /** The lists of one node, by node. */
  readonly #loneLists = new Map<NodeName, number>();
  readonly #groups = new Map<string, Map<string, ShareGroup>>();
  /** How many routes have a filter under each first level that begins with "$": { "$SYS/": 3 }. */
  readonly #dollarCounts = new Map<string, number>();
  #version = 0;

  /** @param hashSeed random, and secret: filters are clients'. */
  constructor(hashSeed: number) {
    this.#trie = new TopicTrie(new KeyHash(hashSeed));
  }

  /** Changes whenever what a topic matches may have changed: a node or a group of a filter that came or went. */
  get version(): number {
    return this.#version;
  }

  /** How many filters have a route. */
  get size(): number {
    return this.#trie.size;
  }

  /** The node has an ordinary subscriber to the filter. */
  add(node: NodeName, filter: string): void {
    const list = this.#trie.get(filter);
    const nodes = this.#nodesIn(list);
    if (!nodes.includes(node)) this.#setNodes(filter, list, nodes.concat(node));
  }

  /** The node has no ordinary subscriber to the filter any more. */
  remove(node: NodeName, filter: string): void {
    const list = this.#trie.get(filter);
    const nodes = this.#nodesIn(list);
    const rest = nodes.filter((each) => each !== node);
    if (rest.length < nodes.length) this.#setNodes(filter, list, rest);
  }

  /** The node has members of the group, `members` of them connected; 0: offline ones only. */
  setShared(node: NodeName, group: string, filter: string, members: number): void {
    const list = this.#trie.get(filter);
    if (list === 0) this.#setNodes(filter, list, []);
    let groups = this.#groups.get(filter);
    if (groups === undefined) {
      groups = new Map();
      this.#groups.set(filter, groups);
    }
    let shareGroup = groups.get(group);
    if (shareGroup === undefined) {
      shareGroup = new ShareGroup(limits.groupPublishersMax);
      groups.set(group, shareGroup);
      this.#version++;
    }
    shareGroup.set(node, members);
  }

  /** The node has no members of the group any more. */
  removeShared(node: NodeName, group: string, filter: string): void {
    const groups = this.#groups.get(filter);
    const shareGroup = groups?.get(group);
    if (!shareGroup?.delete(node) || shareGroup.size > 0) return;
    groups?.delete(group);
    this.#version++;
    if (groups?.size === 0) this.#groups.delete(filter);
    this.#deleteIfEmpty(filter);
  }

  /** Removes the node from every route. Looks at every route: for a node that leaves the cluster. */
  dropNode(node: NodeName): void {
    for (const [filter, groups] of this.#groups)
      for (const group of groups.keys()) this.removeShared(node, group, filter);
    for (const [filter] of this.#trie.entries()) this.remove(node, filter);
    const lone = this.#loneLists.get(node);
    if (lone === undefined) return;
    this.#loneLists.delete(node);
    this.#freeList(lone);
  }

  /** Visits each route whose filter matches the topic name, once. The table must not change meanwhile. */
  match(topic: string, visit: (route: Route) => void): void {
    this.#trie.match(topic, (filter, list) => visit(this.#routeOf(filter, list)));
  }

  /** Everything in the table, for a snapshot. The table must not change meanwhile. */
  *entries(): Generator<RouteEntry> {
    for (const [filter, list] of this.#trie.entries()) {
      const { nodes, groups } = this.#routeOf(filter, list);
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

  #routeOf(filter: string, list: number): Route {
    // Most tables have no groups, or few.
    const groups = this.#groups.size === 0 ? undefined : this.#groups.get(filter);
    return { filter, nodes: this.#nodesIn(list), groups };
  }

  #nodesIn(list: number): readonly NodeName[] {
    return this.#lists[list]!;
  }

  /** @param before the filter's list until now. */
  #setNodes(filter: string, before: number, nodes: readonly NodeName[]): void {
    const hadOwn = this.#nodesIn(before).length > 1;
    if (before === 0) this.#countDollar(filter, 1);
    this.#version++;
    if (hadOwn && nodes.length > 1) {
      this.#lists[before] = nodes;
      return;
    }
    if (hadOwn) this.#freeList(before);
    this.#trie.set(filter, this.#listWith(nodes));
    if (before > 0) this.#deleteIfEmpty(filter);
  }

  #listWith(nodes: readonly NodeName[]): number {
    const [first] = nodes;
    if (first === undefined) return noNodes;
    if (nodes.length > 1) return this.#newList(nodes);
    let list = this.#loneLists.get(first);
    if (list === undefined) {
      list = this.#newList(nodes);
      this.#loneLists.set(first, list);
    }
    return list;
  }

  #newList(nodes: readonly NodeName[]): number {
    const list = this.#freeLists.pop() ?? this.#lists.length;
    this.#lists[list] = nodes;
    return list;
  }

  #freeList(list: number): void {
    this.#lists[list] = [];
    this.#freeLists.push(list);
  }

  #deleteIfEmpty(filter: string): void {
    if (this.#nodesIn(this.#trie.get(filter)).length > 0 || this.#groups.has(filter)) return;
    this.#trie.delete(filter);
    this.#countDollar(filter, -1);
  }

  #countDollar(filter: string, change: 1 | -1): void {
    if (!filter.startsWith("$")) return;
    const prefix = filter.slice(0, filter.indexOf("/") + 1);
    const count = (this.#dollarCounts.get(prefix) ?? 0) + change;
    if (count > 0) this.#dollarCounts.set(prefix, count);
    else this.#dollarCounts.delete(prefix);
  }
}
