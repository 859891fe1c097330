/**
 * The membership of the cluster on one core: who joins and leaves, who is there, and who is given up.
 *
 * Inside a deployment the cores are those of `cluster.core_nodes`, and a node joins with its first call. Deployments join by
 * command or discovery, as in EMQX: the one that joins brings its cores and nodes along and takes over what the cluster
 * has; what it has itself, the others ask it for.
 *
 * A member is down when calls to it fail, and up with the next one that does not. One that is down for `cluster.autoclean`,
 * for all cores that can be asked, is cleaned: its routes go, and its claims. It is tried on, rarely, and when it is there
 * again it says itself that it is back, as a new member, and all that it has.
 */
import type { Settings } from "../../cluster/config.ts";
import { faultOfMember, isCoordinator, type Member, type Membership } from "../../cluster/membership.ts";
import type { NodeName } from "../../cluster/name.ts";
import type { AdminAnswer, ClusterSize, ClusterView, MemberView, Replicated } from "../rpc.ts";
import type { CoreStore } from "./core-store.ts";
import type { Peers } from "./peers.ts";

/** What the core gives. */
export interface ClusterHost {
  readonly self: NodeName;
  readonly settings: Settings;
  readonly store: CoreStore;
  readonly members: Membership;
  readonly peers: Peers;
  /** Tells the other cores. */
  readonly relayMember: (member: Member, except?: NodeName) => void;
  readonly whenRelayed: () => Promise<void> | undefined;
  /** Whether the core reaches the node, now. */
  readonly reaches: (node: NodeName) => Promise<boolean>;
  readonly replicationOf: (member: Member) => Replicated | undefined;
  /** The member is in the cluster, perhaps again, or is no more. */
  readonly handleJoined: (member: Member, isBack: boolean) => void;
  /** This core's own node, which others had given up: they have nothing of it any more. */
  readonly announce: (node: Member) => void;
  readonly handleGone: (member: Member) => void;
  /** Ends the link to a coordinator. */
  readonly unlink: (name: NodeName) => void;
  /** The cluster was left by command: nobody is looked for until that is enabled again. */
  readonly stopDiscovery: () => Promise<void>;
  readonly startDiscovery: () => void;
  /** Makes sure that `handleAlarm` is called at this time or before. */
  readonly ringAt: (at: number) => void;
  readonly tell: (event: string, facts: Readonly<Record<string, unknown>>) => void;
}

export class Cluster {
  readonly #host: ClusterHost;
  /** Since when members are down, in ms since the epoch. */
  readonly #down: Map<NodeName, number>;
  #joining: Promise<unknown> = Promise.resolve();

  constructor(host: ClusterHost) {
    this.#host = host;
    this.#down = host.store.downMembers();
    const now = Date.now();
    for (const name of host.settings.cluster.core_nodes)
      if (!host.members.has(name)) this.change(this.#coordinator(name, now));
    // A deployment of which a core was taken from the settings goes on without it.
    for (const member of host.members.coordinators())
      if (this.#isOwn(member) && !host.settings.cluster.core_nodes.includes(member.name))
        this.change({ ...member, state: "left", changedAt: this.#changeAt(member.name) });
    this.#ring();
  }

  #coordinator(name: NodeName, now: number): Member {
    const { settings, members } = this.#host;
    const changedAt = members.nextChangeAt(name, now);
    const { role } = settings.node;
    return { name, role, domain: settings.domain, home: "", term: 0, joinedAt: changedAt, state: "in", changedAt };
  }

  #changeAt(name: NodeName): number {
    return this.#host.members.nextChangeAt(name, Date.now());
  }

  #isOwn({ domain }: Member): boolean {
    return domain === this.#host.settings.domain;
  }

  /** Coordinators of other deployments. */
  #others(): Member[] {
    return this.#host.members.coordinators().filter((member) => !this.#isOwn(member));
  }

  // ---- records ----------------------------------------------------------------------------------------------------

  /** A change made here: kept, and told to the others. */
  change(member: Member): void {
    if (this.#take(member)) this.#host.relayMember(member);
  }

  /** A change made elsewhere. */
  handleMember(member: Member): void {
    const { self, members } = this.#host;
    const fault = faultOfMember(member);
    if (fault !== undefined) return console.error(`a record of a member is not taken: ${fault}`);
    if (!members.isNews(member)) return;
    const { name, home } = member;
    const isHere = members.has(name) && (name === self || (home === self && !this.isDown(name)));
    if (!isHere || member.state === "in") return void this.#take(member);
    if (name === self && member.state === "left") return this.handleDismissed();
    // Others have given up who is here: it joins again, as a new member, with all that it has.
    const changedAt = Math.max(Date.now(), member.changedAt + 1);
    const back: Member = { ...members.get(name)!, joinedAt: changedAt, changedAt };
    this.change(back);
    if (!isCoordinator(back)) this.#host.announce(back);
  }

  /** @returns whether the record was later than the one known. */
  #take(member: Member): boolean {
    const { members, store, handleJoined, handleGone, tell } = this.#host;
    const before = members.get(member.name);
    const wasIn = before?.state === "in";
    if (!members.merge(member)) return false;
    store.putMember(member);
    const { name, state, role } = member;
    if (state === "in") {
      if (!wasIn) tell(isCoordinator(member) ? "core_joined" : "node_joined", { node: name, role });
      else if (before.home !== member.home) tell("core_changed", { node: name, from: before.home, to: member.home });
      handleJoined(member, before !== undefined && !wasIn);
    } else if (wasIn) {
      this.#down.delete(name);
      tell(isCoordinator(member) ? "core_left" : "node_left", { node: name, role, state });
      handleGone(member);
    }
    return true;
  }

  // ---- up and down ------------------------------------------------------------------------------------------------

  isDown(name: NodeName): boolean {
    return this.#down.has(name);
  }

  handleDown(name: NodeName): void {
    const { members, tell } = this.#host;
    const member = members.get(name);
    if (!member || member.state !== "in" || this.isDown(name)) return;
    this.#setDown(name);
    tell(isCoordinator(member) ? "core_down" : "node_down", { node: name });
    // The nodes of a deployment are reached by its cores alone.
    if (this.#isCutOff(member)) for (const node of this.#nodesOf(member)) this.#setDown(node.name);
    this.#ring();
  }

  handleUp(name: NodeName): void {
    const { members, tell } = this.#host;
    const member = members.get(name);
    if (!member || !this.isDown(name)) return;
    this.#setUp(name);
    tell(isCoordinator(member) ? "core_up" : "node_up", { node: name });
    if (isCoordinator(member) && !this.#isOwn(member)) for (const node of this.#nodesOf(member)) this.#setUp(node.name);
  }

  /** No core of its deployment is there. */
  #isCutOff(member: Member): boolean {
    if (!isCoordinator(member) || this.#isOwn(member)) return false;
    return this.#host.members.coordinators().every(({ domain, name }) => domain !== member.domain || this.isDown(name));
  }

  #nodesOf({ domain }: Member): Member[] {
    return this.#host.members.nodes().filter((node) => node.domain === domain);
  }

  #setDown(name: NodeName): void {
    if (this.#down.has(name)) return;
    const now = Date.now();
    this.#down.set(name, now);
    this.#host.store.putDownAt(name, now);
  }

  #setUp(name: NodeName): void {
    if (this.#down.delete(name)) this.#host.store.putDownAt(name, 0);
  }

  // ---- autoclean --------------------------------------------------------------------------------------------------

  handleAlarm(now: number): void {
    const { autoclean } = this.#host.settings.cluster;
    if (autoclean === 0) return;
    for (const [name, since] of this.#down)
      if (since + autoclean <= now)
        this.#clean(name, since).catch((error: unknown) => console.error(`${name} is not cleaned: ${String(error)}`));
    this.#ring();
  }

  #ring(): void {
    const { autoclean } = this.#host.settings.cluster;
    if (autoclean > 0 && this.#down.size > 0) this.#host.ringAt(Math.min(...this.#down.values()) + autoclean);
  }

  async #clean(name: NodeName, since: number): Promise<void> {
    const { members, peers, reaches } = this.#host;
    // Asked once in this time at most, by whomever.
    this.#down.set(name, since + recheckMs);
    const isReachedBy = await Promise.all([
      reaches(name),
      ...peers.up().flatMap((peer) => (peer.name === name ? [] : [peer.call((core) => core.reachesHere(name))])),
    ]);
    const member = members.get(name);
    if (isReachedBy[0]) return this.handleUp(name);
    if (isReachedBy.includes(true) || member?.state !== "in" || !this.isDown(name)) return;
    this.change({ ...member, state: "cleaned", changedAt: this.#changeAt(name) });
  }

  // ---- join and leave ---------------------------------------------------------------------------------------------

  /** One at a time: an operator, discovery and an invitation may want it at once. */
  join(target: NodeName): Promise<AdminAnswer> {
    const joined = this.#joining.then(() => this.#join(target));
    this.#joining = joined.catch(() => {});
    return joined;
  }

  async #join(target: NodeName): Promise<AdminAnswer> {
    const { self, settings, members, peers } = this.#host;
    if (settings.cluster.discovery_strategy === "singleton")
      return failed("singleton", "cluster.discovery_strategy is singleton: this node joins no other");
    if (target === self) return failed("ignore", "a node does not join itself");
    if (settings.node.name === undefined)
      return failed("no_name", "node.name is not set: the others must know this deployment by an address");
    if (members.has(target)) return failed("already_in_cluster", `${target} is in this cluster`);
    const ask = (question: "mayJoin" | "acceptJoin"): Promise<AdminAnswer> => {
      const own = members.present().filter((member) => this.#isOwn(member));
      return peers
        .link(target)
        .tryOnce((core) => core[question](self, own))
        .catch((error: unknown) => failed("node_down", `${target} cannot be reached: ${String(error)}`));
    };
    // Who is refused stays where it is.
    const asked = await ask("mayJoin");
    // It has heard of this core already when an answer got lost.
    const isRefused = (answer: AdminAnswer): boolean => !answer.ok && answer.code !== "already_in_cluster";
    if (isRefused(asked)) return asked;
    if (this.#others().length > 0) await this.#sayGoodbye();
    // Who has left this cluster may be in that one.
    for (const member of [...members.all()]) if (!this.#isOwn(member) && member.state === "left") this.#forget(member);
    const answer = await ask("acceptJoin");
    if (isRefused(answer)) return answer;
    return (await peers.meet(target)) ? { ok: true } : failed("node_down", `${target} has gone away`);
  }

  /** An operator wants another core to join this cluster. */
  async invite(target: NodeName): Promise<AdminAnswer> {
    const { self, members, peers } = this.#host;
    if (target === self) return failed("ignore", "a node does not join itself");
    if (members.has(target)) return failed("already_in_cluster", `${target} is in this cluster`);
    return peers
      .link(target)
      .tryOnce((core) => core.invited(self))
      .catch((error: unknown): AdminAnswer => failed("node_down", `${target} cannot be reached: ${String(error)}`));
  }

  /** Whether another deployment may be of this cluster. */
  mayJoin(from: NodeName, joining: readonly Member[]): AdminAnswer {
    const { settings, members } = this.#host;
    const { node, cluster } = settings;
    if (cluster.discovery_strategy === "singleton")
      return failed("singleton", "cluster.discovery_strategy is singleton: nobody joins this node");
    if (node.role === "replicant") return failed("cannot_join_to_replicant", "a cluster is joined at one of its cores");
    const fault = joining.map(faultOfMember).find((each) => each !== undefined);
    if (fault !== undefined) return failed("bad_members", `${from} brings a record that is none: ${fault}`);
    const joiner = joining.find(({ name }) => name === from);
    if (!joiner || joining.some(({ domain }) => domain !== joiner.domain))
      return failed("bad_members", `${from} brings members of other deployments`);
    if (joiner.domain === settings.domain)
      return failed("bad_members", `${from} has the address of this deployment (node.name)`);
    if (joiner.role === "replicant" && node.db_backend === "mnesia")
      return failed("replicant_with_mnesia", "node.db_backend is mnesia, which has cores only");
    if (members.has(from)) return failed("already_in_cluster", `${from} is in this cluster`);
    return { ok: true };
  }

  /** It wants to be. */
  handleJoin(from: NodeName, joining: readonly Member[]): AdminAnswer {
    const { members } = this.#host;
    const answer = this.mayJoin(from, joining);
    if (!answer.ok) return answer;
    for (const member of joining) {
      const changedAt = Math.max(members.nextChangeAt(member.name, Date.now()), member.changedAt + 1);
      this.change({ ...member, state: "in", joinedAt: changedAt, changedAt });
    }
    return answer;
  }

  async leave(): Promise<AdminAnswer> {
    if (this.#others().length === 0) return failed("node_not_in_cluster", "this deployment is in no cluster of others");
    await this.#sayGoodbye();
    await this.#host.stopDiscovery();
    return { ok: true };
  }

  enableDiscovery(): AdminAnswer {
    this.#host.startDiscovery();
    return { ok: true };
  }

  /** The others are told that this deployment has left. */
  async #sayGoodbye(): Promise<void> {
    const { members, relayMember, whenRelayed } = this.#host;
    for (const member of members.present())
      if (this.#isOwn(member)) relayMember({ ...member, state: "left", changedAt: this.#changeAt(member.name) });
    await whenRelayed();
    this.#goAlone();
  }

  /** This deployment is a cluster of its own from now on. */
  #goAlone(): void {
    const { members, peers, handleGone, self, tell } = this.#host;
    for (const member of [...members.all()]) {
      if (this.#isOwn(member)) continue;
      this.#forget(member);
      if (member.state === "in") handleGone(member);
      peers.forget(member.name);
      // The one who leaves hangs up: what it has said is answered until then.
      if (isCoordinator(member)) this.#host.unlink(member.name);
    }
    for (const member of [...members.all()]) {
      if (!this.#isOwn(member) || member.state === "in") continue;
      if (member.name === self || isCoordinator(member) || member.home === self)
        this.#take({ ...member, state: "in", changedAt: this.#changeAt(member.name) });
    }
    tell("cluster_left", { node: self });
  }

  #forget({ name }: Member): void {
    this.#host.members.forget(name);
    this.#host.store.deleteMember(name);
    this.#down.delete(name);
  }

  async forceLeave(name: NodeName): Promise<AdminAnswer> {
    const { self, members, peers } = this.#host;
    const member = members.get(name);
    if (name === self) return failed("ignore", "a node does not force itself to leave: use leave");
    if (member?.state !== "in") return failed("node_not_in_cluster", `${name} is not in this cluster`);
    if (isCoordinator(member) && this.#isOwn(member))
      return failed("core_of_this_deployment", `${name} is in cluster.core_nodes of this deployment`);
    const wasUp = peers.isUp(name);
    const link = peers.link(name);
    const isLast = isCoordinator(member) && this.#domainCores(member).length === 1;
    for (const each of isLast ? [member, ...this.#nodesOf(member)] : [member])
      this.change({ ...each, state: "left", changedAt: this.#changeAt(each.name) });
    if (isCoordinator(member) && wasUp) await link.tryOnce((core) => core.dismissed()).catch(() => {});
    return { ok: true };
  }

  #domainCores({ domain }: Member): Member[] {
    return this.#host.members.coordinators().filter((each) => each.domain === domain);
  }

  /** Others have made this deployment leave. */
  handleDismissed(): void {
    this.#goAlone();
    void this.#host.stopDiscovery();
  }

  // ---- discovery --------------------------------------------------------------------------------------------------

  /** What discovery goes by to find out who joins whom. */
  size(): ClusterSize {
    const cores = this.#host.members.cores();
    const [oldest] = cores;
    return { size: cores.length, oldest: oldest ? `${String(oldest.joinedAt).padStart(16, "0")} ${oldest.name}` : "" };
  }

  /** One of the two is this core. Resolves when the joiner is a member. */
  async joinFound(joiner: NodeName, target: NodeName): Promise<void> {
    const answer = joiner === this.#host.self ? await this.join(target) : await this.invite(joiner);
    if (!answer.ok && answer.code !== "already_in_cluster") throw new Error(answer.message);
  }

  // ---- what operators see -----------------------------------------------------------------------------------------

  view(): ClusterView {
    const { settings, self, members } = this.#host;
    return { name: settings.cluster.name, self, nodes: members.present().map((member) => this.#viewOf(member)) };
  }

  #viewOf(member: Member): MemberView {
    const { name, role, joinedAt, home } = member;
    const status = this.isDown(name) ? "stopped" : "running";
    const replication = this.#host.replicationOf(member);
    return { name, role, status, joinedAt, home: home || undefined, ...(replication && { replication }) };
  }
}

/** A member that is down is asked for again after this time, when others still reach it. */
const recheckMs = 60_000;

function failed(code: string, message: string): AdminAnswer & { readonly ok: false } {
  return { ok: false, code, message };
}
