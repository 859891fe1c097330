/**
 * Autocluster: how a core that was started alone finds its cluster (EMQX's ekka_autocluster). Rounds are made until
 * nobody who was discovered is outside of the cluster:
 *
 *     lock -> discover -> ask those outside for their clusters -> join -> register -> unlock
 *
 *     searching --- all are inside ---> registered, until the registration is to be renewed (etcd)
 *         ^                        \--> done, if there is nothing to renew: no more rounds
 *         |                              |
 *         +-- somebody is outside -------+       disabled, from `cluster leave` until discovery is enabled
 *
 * Two clusters that find one another could each join the other. So they agree on who moves, whoever sees it first: the
 * smaller joins the larger, of equals the younger the older (`joinsOf`). EMQX goes by age alone, so that one core come
 * back from long ago pulls a whole cluster over.
 *
 * A problem is said once, when it begins, and once when all is well again. The state is plain data, to be kept on disk.
 */
import { limits } from "../mqtt/limits.ts";
import { parseNodeName } from "./name.ts";
import type { NodeName } from "./name.ts";

/** What may go wrong in a round, as it is logged. */
export type Problem =
  /** The discovery server did not answer, or not what it should. */
  | "discovery_failed"
  /** It knows nobody, this core included: a service whose pods are not ready yet, for one. */
  | "discovery_found_nothing"
  /** It knows names that are no names of nodes, or too many. */
  | "discovery_names_ignored"
  /** Cores that were discovered do not answer. */
  | "discovery_nodes_outside"
  | "discovery_join_failed";

export type AutoclusterState =
  | { readonly phase: "disabled" }
  | {
      readonly phase: "searching";
      readonly strategy: string;
      readonly dueAt: number;
      readonly failures: number;
      readonly said: readonly Problem[];
    }
  | {
      readonly phase: "registered";
      readonly strategy: string;
      readonly dueAt: number;
      readonly said: readonly Problem[];
    }
  | { readonly phase: "done"; readonly strategy: string };

/** What a round has come to. */
export interface Round {
  readonly problems: ReadonlyMap<Problem, string>;
  /** Nobody who was discovered is outside of the cluster. */
  readonly isWhole: boolean;
  /** The registration is to be renewed after so many ms; undefined: there is none. */
  readonly holdsMs: number | undefined;
}

/** A search that begins, for a strategy with this description. */
export function searching(strategy: string, now: number): AutoclusterState {
  return { phase: "searching", strategy, dueAt: now, failures: 0, said: [] };
}

/** The state that a core wakes with. Another strategy than the last one starts a search; nothing does while disabled. */
export function resumed(stored: AutoclusterState | undefined, strategy: string, now: number): AutoclusterState {
  if (stored?.phase === "disabled") return stored;
  return stored?.strategy === strategy ? stored : searching(strategy, now);
}

/** When the next round is due, in ms since the epoch; undefined: there is none. */
export function dueAt(state: AutoclusterState): number | undefined {
  return state.phase === "searching" || state.phase === "registered" ? state.dueAt : undefined;
}

/** The state after a round, and the problems to be said; "recovered" when the last one has ended. */
export function afterRound(
  state: AutoclusterState,
  { problems, isWhole, holdsMs }: Round,
  now: number,
  random: () => number,
): { readonly state: AutoclusterState; readonly news: readonly (Problem | "recovered")[] } {
  if (state.phase === "disabled" || state.phase === "done") return { state, news: [] };
  const { strategy } = state;
  // A round that failed early knows nothing of what comes later in it.
  const earlier = problems.has("discovery_failed") ? state.said : [];
  const said = [...new Set([...earlier, ...problems.keys()])];
  const hasRecovered = state.said.some(isFailure) && !said.some(isFailure);
  const news = [
    ...(hasRecovered ? (["recovered"] as const) : []),
    ...said.filter((problem) => !state.said.includes(problem)),
  ];

  if (said.some(isFailure) || !isWhole) {
    const failures = state.phase === "searching" ? state.failures + 1 : 1;
    const delay = Math.min(retryDelayMs(failures, random), holdsMs ?? Infinity);
    return { state: { phase: "searching", strategy, dueAt: now + delay, failures, said }, news };
  }
  if (holdsMs === undefined) return { state: { phase: "done", strategy }, news };
  return { state: { phase: "registered", strategy, dueAt: now + holdsMs, said }, news };
}

/** A name that is none stands in nobody's way. */
function isFailure(problem: Problem): boolean {
  return problem !== "discovery_names_ignored";
}

/** Doubles from the first to the last, less up to a half: what failed for all together is not tried by all together. */
function retryDelayMs(failures: number, random: () => number): number {
  const { discoveryRetryFirstMs, discoveryRetryLastMs } = limits;
  const delay = Math.min(discoveryRetryLastMs, discoveryRetryFirstMs * 2 ** (failures - 1));
  return Math.ceil(delay * (1 - random() / 2));
}

/** The names of other nodes that discovery has yielded, each once. */
export interface Discovered {
  readonly others: readonly NodeName[];
  readonly includesSelf: boolean;
  /** What was ignored, and why: one line. */
  readonly ignored: string | undefined;
}

/** Sorts out what a discovery server has said: it may be anything. */
export function sortOut(names: readonly string[], self: NodeName): Discovered {
  const distinct = new Set(names);
  const nodes = [...distinct].filter(isNodeName);
  const others = nodes.filter((name) => name !== self).sort();
  const reasons: string[] = [];
  const wrong = [...distinct].find((name) => !isNodeName(name));
  if (wrong !== undefined) {
    const count = distinct.size - nodes.length;
    reasons.push(`${count} that ${count === 1 ? "is no node name" : "are no node names"}, as ${shown(wrong)}`);
  }
  if (others.length > limits.discoveredNodesMax) {
    reasons.push(`${others.length - limits.discoveredNodesMax} beyond the first ${limits.discoveredNodesMax}`);
  }
  return {
    others: others.slice(0, limits.discoveredNodesMax),
    includesSelf: distinct.has(self),
    ignored: reasons.length > 0 ? reasons.join("; ") : undefined,
  };
}

function isNodeName(text: string): boolean {
  try {
    parseNodeName(text);
    return true;
  } catch {
    return false;
  }
}

function shown(name: string): string {
  return JSON.stringify(name.slice(0, 100));
}

/** What a core says of the cluster that it is in; all cores of a cluster say the same. */
export interface ClusterView {
  /** Cores in it. */
  readonly size: number;
  /** The guid of its oldest core: texts that sort by age. */
  readonly oldest: string;
}

/** A core and the cluster that it is in. */
export interface Peer {
  readonly node: NodeName;
  readonly view: ClusterView;
}

/** One core leaves its cluster for that of the other. */
export interface Join {
  readonly joiner: NodeName;
  readonly target: NodeName;
}

/**
 * Who is to join whom, seen from one core: it joins the first of the other clusters, or they join it, one after the other.
 * Two cores that see the same come to the same.
 */
export function joinsOf(self: Peer, others: readonly Peer[]): Join[] {
  const [first = self] = [self, ...others].sort(bySeniority);
  if (first !== self) return [{ joiner: self.node, target: first.node }];
  return others.map(({ node }) => ({ joiner: node, target: self.node }));
}

function bySeniority(a: Peer, b: Peer): number {
  return b.view.size - a.view.size || compare(a.view.oldest, b.view.oldest) || compare(a.node, b.node);
}

function compare(a: string, b: string): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}
