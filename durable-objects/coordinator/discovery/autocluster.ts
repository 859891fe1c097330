/**
 * The shell of the autocluster (cluster/autocluster.ts says how it works): it makes the rounds.
 *
 * A round takes seconds, and other deadlines of the object do not wait for it: the alarm starts it and goes on. It is
 * made under a number; what disables the search, or starts it anew, counts that on, and a round of another number has
 * nothing more to say. If the object crashes in it, or it does not come to an end, the alarm starts the next.
 */
import {
  afterRound,
  dueAt,
  joinsOf,
  resumed,
  searching,
  sortOut,
  type AutoclusterState,
  type ClusterView,
  type Discovered,
  type Peer,
  type Problem,
  type Round,
} from "../../../cluster/autocluster.ts";
import type { NodeName } from "../../../cluster/name.ts";
import { limits } from "../../../mqtt/limits.ts";
import type { Strategy } from "./strategy.ts";

/** What the core gives. */
export interface AutoclusterHost {
  /** The state as it was saved last. */
  readonly load: () => AutoclusterState | undefined;
  readonly save: (state: AutoclusterState) => void;
  readonly now: () => number;
  readonly random: () => number;
  /** Makes sure that the alarm rings at this time or before. */
  readonly ringAt: (at: number) => void;
  readonly log: (event: Readonly<Record<string, unknown>>) => void;
  /** The cores of the cluster, running or not, this one among them. */
  readonly members: () => ReadonlySet<NodeName>;
  /** The cluster that a core is in, this one's too. Rejects when it does not answer, or does not want to be found. */
  readonly viewOf: (node: NodeName) => Promise<ClusterView>;
  /**
   * The joiner, or this core's own self, leaves its cluster for that of the target, of which one is this core. Both sides
   * may ask for the same join, even at once. Resolves when the joiner is a member.
   */
  readonly join: (joiner: NodeName, target: NodeName) => Promise<void>;
}

const shownMax = 5;

export class Autocluster {
  readonly #self: NodeName;
  readonly #strategy: Strategy;
  readonly #host: AutoclusterHost;
  #state: AutoclusterState;
  /** The number of the last round that was started, or given up. */
  #round = 0;
  /** Until then a round is under way. */
  #busyUntil = 0;

  constructor(self: NodeName, strategy: Strategy, host: AutoclusterHost) {
    this.#self = self;
    this.#strategy = strategy;
    this.#host = host;
    this.#state = resumed(host.load(), strategy.description, host.now());
    this.#ring();
  }

  /** Whether the search goes on, or would if somebody were outside: `cluster leave` ends it. */
  get isEnabled(): boolean {
    return this.#state.phase !== "disabled";
  }

  /** Starts to search, or anew: at `cluster discovery enable`, and when this core finds itself alone. */
  enable(): void {
    this.#give(searching(this.#strategy.description, this.#host.now()));
  }

  /** No more rounds until it is enabled; others do not find this core any more. */
  async disable(): Promise<void> {
    this.#give({ phase: "disabled" });
    await this.#unregister();
  }

  /** Starts a round if one is due, and does not wait for its end. */
  handleAlarm(): void {
    const now = this.#host.now();
    if (now >= this.#busyUntil && now >= (dueAt(this.#state) ?? Infinity)) void this.#makeRound(now);
    else this.#ring();
  }

  #give(state: AutoclusterState): void {
    this.#round++;
    this.#busyUntil = 0;
    this.#keep(state);
  }

  #keep(state: AutoclusterState): void {
    this.#state = state;
    this.#host.save(state);
    this.#ring();
  }

  #ring(): void {
    const due = dueAt(this.#state);
    if (due !== undefined) this.#host.ringAt(Math.max(due, this.#busyUntil));
  }

  async #makeRound(now: number): Promise<void> {
    const number = ++this.#round;
    this.#busyUntil = now + limits.discoveryRoundMs;
    this.#ring();
    const round = await this.#search(() => this.#round !== number);
    if (this.#round !== number) return;
    this.#busyUntil = 0;
    const { state, news } = afterRound(this.#state, round, this.#host.now(), this.#host.random);
    for (const problem of news) {
      if (problem === "recovered") this.#log("discovery_recovered", undefined);
      else this.#log(problem, round.problems.get(problem));
    }
    this.#keep(state);
  }

  async #search(isGivenUp: () => boolean): Promise<Round> {
    try {
      // Without the lock while all is well; if somebody is outside, the next round is one with it.
      if (this.#state.phase === "registered") return await this.#register(await this.#discover(), new Map(), isGivenUp);
      return await this.#searchLocked(isGivenUp);
    } catch (error) {
      return { problems: new Map([["discovery_failed", messageOf(error)]]), isWhole: false, holdsMs: undefined };
    }
  }

  /** lock, discover, join, register, unlock. */
  async #searchLocked(isGivenUp: () => boolean): Promise<Round> {
    try {
      await this.#strategy.lock();
      const found = await this.#discover();
      const problems = await this.#joinThose(found.outside, isGivenUp);
      return await this.#register(found, problems, isGivenUp);
    } finally {
      // If it cannot be told, it ends by itself; and it may be that of the next round.
      if (!isGivenUp() || !this.isEnabled) await this.#strategy.unlock().catch(() => {});
    }
  }

  async #discover(): Promise<Discovered & { readonly outside: readonly NodeName[] }> {
    const found = sortOut(await this.#strategy.discover(), this.#self);
    return { ...found, outside: this.#outside(found.others) };
  }

  #outside(nodes: readonly NodeName[]): NodeName[] {
    const members = this.#host.members();
    return nodes.filter((node) => node !== this.#self && !members.has(node));
  }

  async #joinThose(outside: readonly NodeName[], isGivenUp: () => boolean): Promise<Map<Problem, string>> {
    const problems = new Map<Problem, string>();
    if (outside.length === 0) return problems;
    const silent: string[] = [];
    const peers: Peer[] = [];
    const ask = async (node: NodeName): Promise<void> => {
      try {
        peers.push({ node, view: await this.#host.viewOf(node) });
      } catch (error) {
        silent.push(`${node} (${messageOf(error)})`);
      }
    };
    await Promise.all(outside.map(ask));
    if (silent.length > 0) problems.set("discovery_nodes_outside", few(silent));
    if (peers.length === 0) return problems;

    const self = { node: this.#self, view: await this.#host.viewOf(this.#self) };
    const failed: string[] = [];
    for (const { joiner, target } of joinsOf(self, peers)) {
      if (isGivenUp()) break;
      try {
        await this.#host.join(joiner, target);
      } catch (error) {
        failed.push(`${joiner} to ${target} (${messageOf(error)})`);
      }
    }
    if (failed.length > 0) problems.set("discovery_join_failed", few(failed));
    return problems;
  }

  async #register(found: Discovered, problems: Map<Problem, string>, isGivenUp: () => boolean): Promise<Round> {
    // Nobody reads what a round has come to that was given up.
    if (isGivenUp()) return { problems, isWhole: false, holdsMs: undefined };
    const holdsMs = await this.#strategy.register();
    // Disabled meanwhile: the registration came after its end.
    if (!this.isEnabled) await this.#unregister();
    if (found.ignored !== undefined) problems.set("discovery_names_ignored", found.ignored);
    if (holdsMs === undefined && found.others.length === 0 && !found.includesSelf) {
      problems.set("discovery_found_nothing", "nobody is known there, not even this node");
    }
    return { problems, isWhole: this.#outside(found.others).length === 0, holdsMs };
  }

  async #unregister(): Promise<void> {
    try {
      await this.#strategy.unregister();
    } catch (error) {
      this.#log("discovery_failed", messageOf(error));
    }
  }

  #log(event: Problem | "discovery_recovered", reason: string | undefined): void {
    this.#host.log({ event, node: this.#self, strategy: this.#strategy.description, reason });
  }
}

function few(texts: readonly string[]): string {
  const rest = texts.length - shownMax;
  return texts.slice(0, shownMax).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
