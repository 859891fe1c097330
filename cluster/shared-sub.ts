/**
 * Shared subscriptions: of the members of a group, who gets this message?
 *
 * The members of `$share/g/t` are sessions, and only their nodes know them. So the choice is made in two
 * steps: a core knows how many connected members each node has, and picks the node and an ordinal; the
 * node takes its (ordinal mod members)-th member, in the order in which they joined.
 *
 *     node-0 has 2 members, node-1 has 1          draw:     0          1          2          3
 *                                                 picks: node-0 #0  node-0 #1  node-1 #0  node-0 #0
 *
 * A strategy only decides the draw, a 32-bit number that stands for one member among all of them:
 *
 *     round_robin            one more than the draw before, for each publisher; the first is random
 *     round_robin_per_group  one more than the draw before, for the group
 *     random                 random
 *     sticky                 the node and ordinal picked before for this publisher, while the node has members
 *     local                  random among the members on the publisher's node, else among all
 *     hash_clientid          hash of the publisher's client id
 *     hash_topic             hash of the topic
 *
 * They are EMQX's, with two differences, which MQTT leaves open (4.8.2): a member whose node cannot be
 * reached is picked only if no node can, and then one that is offline (a session without a connection)
 * only if none is connected, on whatever node.
 *
 * Nodes are kept in the order of their names, so that every core, and a core after a restart, draws
 * from the same list. Cost of a pick: one pass over the nodes of the group.
 */
import { hash32 } from "./hash.ts";
import type { NodeName } from "./name.ts";

export const sharedStrategies = [
  "round_robin",
  "round_robin_per_group",
  "random",
  "sticky",
  "local",
  "hash_clientid",
  "hash_topic",
] as const;

/** A value of `mqtt.shared_subscription_strategy`. */
export type SharedStrategy = (typeof sharedStrategies)[number];

export interface SharedPublish {
  readonly topic: string;
  /** The publisher's. */
  readonly clientId: string;
  /** The publisher's. */
  readonly node: NodeName;
  /** Whether what goes to a node now arrives soon. */
  readonly isReachable: (node: NodeName) => boolean;
}

/** The node's (ordinal mod its members)-th member; connected members are counted first. */
export interface SharedPick {
  readonly node: NodeName;
  readonly ordinal: number;
}

interface NodeMembers {
  readonly node: NodeName;
  /** Connected members; with 0 the node has offline ones only. */
  connected: number;
}

export class ShareGroup {
  readonly #publishersMax: number;
  /** In the order of their names. */
  readonly #nodes: NodeMembers[] = [];
  #groupDraw = -1;
  /** By the publisher's client id, the one that published last at the end; the first is dropped at the bound. */
  #draws: Map<string, number> | undefined;
  #picks: Map<string, SharedPick> | undefined;

  /** @param publishersMax how many publishers are remembered; one that is forgotten starts anew, at random. */
  constructor(publishersMax: number) {
    this.#publishersMax = publishersMax;
  }

  /** How many nodes have members. */
  get size(): number {
    return this.#nodes.length;
  }

  /** The nodes that have members, and how many of them are connected. */
  members(): Iterable<Readonly<NodeMembers>> {
    return this.#nodes;
  }

  /** Says how many connected members the node has; 0: it has offline members only. */
  set(node: NodeName, connected: number): void {
    const at = this.#nodes.findIndex((each) => each.node >= node);
    const found = this.#nodes[at];
    if (found?.node === node) found.connected = connected;
    else this.#nodes.splice(at < 0 ? this.#nodes.length : at, 0, { node, connected });
  }

  /** The node has no members any more. Whether it had. */
  delete(node: NodeName): boolean {
    const at = this.#nodes.findIndex((each) => each.node === node);
    if (at >= 0) this.#nodes.splice(at, 1);
    return at >= 0;
  }

  /** Picks who gets this message; undefined if the group has no members. `random` gives numbers in [0, 1). */
  pick(strategy: SharedStrategy, publish: SharedPublish, random: () => number): SharedPick | undefined {
    const candidates = this.#candidates(publish.isReachable);
    if (candidates.length === 0) return undefined;
    switch (strategy) {
      case "round_robin":
        return pickAt(candidates, this.#nextPublisherDraw(publish.clientId, random));
      case "round_robin_per_group":
        this.#groupDraw = (this.#groupDraw + 1) >>> 0;
        return pickAt(candidates, this.#groupDraw);
      case "random":
        return pickAt(candidates, randomDraw(random));
      case "sticky":
        return this.#stickyPick(candidates, publish.clientId, random);
      case "local": {
        const local = candidates.filter((each) => each.node === publish.node);
        return pickAt(local.length > 0 ? local : candidates, randomDraw(random));
      }
      case "hash_clientid":
        return pickAt(candidates, hash32(publish.clientId));
      case "hash_topic":
        return pickAt(candidates, hash32(publish.topic));
    }
  }

  #candidates(isReachable: (node: NodeName) => boolean): readonly NodeMembers[] {
    const reachable = orAll(this.#nodes, ({ node }) => isReachable(node));
    return orAll(reachable, ({ connected }) => connected > 0);
  }

  #nextPublisherDraw(clientId: string, random: () => number): number {
    this.#draws ??= new Map();
    const last = this.#draws.get(clientId);
    const draw = last === undefined ? randomDraw(random) : (last + 1) >>> 0;
    remember(this.#draws, clientId, draw, this.#publishersMax);
    return draw;
  }

  #stickyPick(candidates: readonly NodeMembers[], clientId: string, random: () => number): SharedPick {
    this.#picks ??= new Map();
    const last = this.#picks.get(clientId);
    const stays = last !== undefined && candidates.some((each) => each.node === last.node);
    const pick = stays ? last : pickAt(candidates, randomDraw(random));
    remember(this.#picks, clientId, pick, this.#publishersMax);
    return pick;
  }
}

/** Those that meet the condition, or all if none does. */
function orAll<T>(items: readonly T[], condition: (item: T) => boolean): readonly T[] {
  const found = items.filter(condition);
  return found.length > 0 ? found : items;
}

function randomDraw(random: () => number): number {
  return Math.floor(random() * 0x1_0000_0000);
}

/** The member that the draw stands for. Where all are offline, each node counts once and the ordinal goes round. */
function pickAt(candidates: readonly NodeMembers[], draw: number): SharedPick {
  let total = 0;
  for (const each of candidates) total += each.connected;
  if (total === 0) {
    const { node } = candidateAt(candidates, draw % candidates.length);
    return { node, ordinal: Math.floor(draw / candidates.length) };
  }
  let ordinal = draw % total;
  let i = 0;
  while (ordinal >= candidateAt(candidates, i).connected) ordinal -= candidateAt(candidates, i++).connected;
  return { node: candidateAt(candidates, i).node, ordinal };
}

function candidateAt(candidates: readonly NodeMembers[], index: number): NodeMembers {
  const found = candidates[index];
  if (found === undefined) throw new Error(`no candidate ${index} of ${candidates.length}`);
  return found;
}

/** Sets the value at the end of the map and keeps the map at its bound (G6). */
function remember<V>(map: Map<string, V>, key: string, value: V, sizeMax: number): void {
  map.delete(key);
  map.set(key, value);
  if (map.size <= sizeMax) return;
  for (const oldest of map.keys()) {
    map.delete(oldest);
    return;
  }
}
