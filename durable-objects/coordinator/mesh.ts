/**
 * A core among the others: what holds the cluster together, wired.
 *
 *   peers.ts        who is there                       replication.ts     routes and retained messages, the same everywhere
 *   cluster.ts      who is a member, and for how long  homes.ts           the nodes whose writes this core takes in
 *   healer.ts       what to do after a partition       registry-share.ts  which client ids this core owns
 *   discovery/      finding other deployments
 *
 * A core that wakes is asked for nothing before it has met those that it can reach (`whenReady`): what they were told while
 * it slept or was away, it must know to route by.
 */
import type { AutoclusterState } from "../../cluster/autocluster.ts";
import type { Settings } from "../../cluster/config.ts";
import { isCoordinator, Membership, type Member } from "../../cluster/membership.ts";
import { addressOf, isMember, type NodeName } from "../../cluster/name.ts";
import { limits, retryDelayMs } from "../../mqtt/limits.ts";
import type { Message } from "../../mqtt/message.ts";
import { remoteNode } from "../remote-node.ts";
import {
  memberRecord,
  type Claim,
  type ClusterSize,
  type GrantedClaim,
  type Hello,
  type Holder,
  type NodeRpc,
  type PeerRpc,
  type Replicated,
} from "../rpc.ts";
import { Cluster } from "./cluster.ts";
import type { CoreStore } from "./core-store.ts";
import { Autocluster } from "./discovery/autocluster.ts";
import { strategyOf } from "./discovery/strategies.ts";
import type { Forwarder } from "./forwarder.ts";
import { Healer } from "./healer.ts";
import { Homes } from "./homes.ts";
import type { PeerLink } from "./peer-link.ts";
import { Peers, type Meeting } from "./peers.ts";
import { Registry } from "./registry.ts";
import { RegistryShare } from "./registry-share.ts";
import { Replication } from "./replication.ts";

/** What the core gives. */
export interface MeshHost {
  readonly self: NodeName;
  readonly settings: Settings;
  readonly store: CoreStore;
  readonly forwarder: Forwarder;
  /** A node of this deployment. */
  readonly nodeAt: (name: NodeName) => NodeRpc;
  /** Another coordinator: a fresh stub. */
  readonly peerAt: (name: NodeName, domain: string) => PeerRpc;
  /** Ends the link to a coordinator. */
  readonly unlink: (name: NodeName) => void;
  /** Makes sure that `handleAlarm` is called at this time or before. */
  readonly ringAt: (at: number) => void;
  /** The route table: a route has changed (no members: it is gone), or all of a node's are gone. */
  readonly setRoute: (node: NodeName, key: string, members: number | undefined) => void;
  readonly dropNode: (node: NodeName) => void;
  /** Another core has retained a message. */
  readonly handleRetained: (message: Message) => void;
  /** Something has happened to a member. */
  readonly tell: (event: string, facts: Readonly<Record<string, unknown>>) => void;
}

/** The fact that says that there are other cores, which are told of changes. */
const replicatedFact = "replicated";
/** The fact that is the state of discovery. */
const autoclusterFact = "autocluster";

export class Mesh {
  readonly members: Membership;
  readonly peers: Peers;
  readonly replication: Replication;
  readonly homes: Homes;
  readonly cluster: Cluster;
  readonly healer: Healer;
  readonly registry: Registry;
  readonly share: RegistryShare;
  readonly #host: MeshHost;
  #autocluster: Autocluster | undefined;
  #isReplicated: boolean;
  /** Until this core has met the others; undefined: it has. */
  #starting: Promise<void> | undefined;
  #bootstrap = { timeMs: 0, keys: 0 };
  /** What others have told of their own. */
  readonly #bootstraps = new Map<NodeName, Hello["bootstrap"]>();

  constructor(host: MeshHost) {
    this.#host = host;
    const { self, settings, store, forwarder, ringAt, tell } = host;
    const nodeAt = (node: NodeName): NodeRpc => this.nodeAt(node);
    const members = new Membership(store.members(settings.domain));
    this.members = members;
    this.#isReplicated = store.fact(replicatedFact) === "yes";
    this.peers = new Peers({
      self,
      cluster: settings.cluster.name,
      members,
      vector: () => this.#vector(),
      registryCores: () => this.share.cores,
      bootstrap: () => this.#bootstrap,
      peerAt: (peer) => host.peerAt(peer, members.get(peer)?.domain ?? addressOf(peer)),
      ringAt,
      handleMet: (link, hello, meeting) => this.#handleMet(link, hello, meeting),
      handleDown: (link) => this.#handlePeerDown(link),
    });
    this.replication = new Replication({
      self,
      store,
      members,
      peers: () => this.peers.up(),
      setRoute: host.setRoute,
      handleRetained: host.handleRetained,
      handleMember: (member) => this.cluster.handleMember(member),
    });
    this.registry = new Registry(store, (node) => forwarder.linkTo(node));
    this.share = new RegistryShare({
      self,
      alone: settings.node.role === "core" ? [self] : [],
      store,
      registry: this.registry,
      link: (core) => this.peers.link(core),
      nodes: () => members.nodes().map(({ name }) => name),
      nodeAt,
      whenReady: () => this.#starting,
      check: (core) => void this.peers.check(core),
      isAway: (node) => this.#isAway(node),
      ringAt,
    });
    this.homes = new Homes({
      self,
      domain: settings.domain,
      members,
      replication: this.replication,
      nodeAt,
      isReplicated: () => this.#isReplicated,
      whenReady: () => this.#starting,
      changeMember: (member) => this.cluster.change(member),
    });
    this.cluster = new Cluster({
      self,
      settings,
      store,
      members,
      peers: this.peers,
      relayMember: (member, except) => this.replication.relay(memberRecord(member), except),
      whenRelayed: () => this.replication.whenRelayed(),
      reaches: (member) => this.reaches(member),
      replicationOf: (member) => this.#replicationOf(member),
      handleJoined: (member, isBack) => this.#handleJoined(member, isBack),
      announce: ({ name, term }) => this.replication.publishRoutes(name, this.replication.nextVersion(name, term), []),
      handleGone: (member) => this.#handleGone(member),
      unlink: host.unlink,
      stopDiscovery: async () => this.#autocluster?.disable(),
      startDiscovery: () => this.#autocluster?.enable(),
      ringAt,
      tell,
    });
    this.healer = new Healer({ self, members, peers: this.peers, ringAt, tell });
  }

  /** There are other cores, which are told of changes. */
  get isReplicated(): boolean {
    return this.#isReplicated;
  }

  /** Resolves when this core can be asked; undefined: it can. */
  whenReady(): Promise<void> | undefined {
    return this.#starting;
  }

  /** What others have told while this core slept, or was away, is asked for before anything is routed by its table. */
  start(): void {
    if (this.#others().length > 0) {
      this.#replicate();
      this.#starting = this.#meetOthers();
    } else this.share.handleCores(this.#runningCores());
    this.#autocluster = this.#createAutocluster();
  }

  handleAlarm(now: number): void {
    this.peers.handleAlarm(now);
    this.healer.handleAlarm(now);
    this.cluster.handleAlarm(now);
    this.share.handleAlarm();
    this.#autocluster?.handleAlarm();
  }

  /** Of a deployment's cores the one that others link to looks for them. */
  #createAutocluster(): Autocluster | undefined {
    const { self: name, settings, store, ringAt } = this.#host;
    const strategy = strategyOf(settings, name, (url, init) => fetch(url, init));
    if (!strategy || settings.node.name !== name) return undefined;
    return new Autocluster(name, strategy, {
      load: () => {
        const state = store.fact(autoclusterFact);
        return state === undefined ? undefined : (JSON.parse(state) as AutoclusterState);
      },
      save: (state) => store.putFact(autoclusterFact, JSON.stringify(state)),
      now: () => Date.now(),
      random: () => Math.random(),
      ringAt,
      log: (event) => console.log(JSON.stringify(event)),
      members: () => new Set(this.members.coordinators().map((member) => member.name)),
      viewOf: async (core) => {
        const view = core === name ? this.cluster.size() : await this.peers.link(core).tryOnce((peer) => peer.size());
        if (!view) throw new Error("it is not to be found");
        return view;
      },
      join: (joiner, target) => this.cluster.joinFound(joiner, target),
    });
  }

  /** For another core that has discovered this one; undefined: it is to be left alone. */
  size(): ClusterSize | undefined {
    const isOpen =
      this.#host.settings.cluster.discovery_strategy !== "singleton" && this.#autocluster?.isEnabled !== false;
    return isOpen ? this.cluster.size() : undefined;
  }

  // ---- the other cores --------------------------------------------------------------------------------------------

  /** One that was there when this core fell asleep is tried for as long as any call: to go on without it makes two of one. */
  async #meetOthers(): Promise<void> {
    const startedAt = Date.now();
    const missing = (): Member[] => this.#others().filter(({ name }) => !this.peers.isUp(name));
    const isMissed = (): boolean => missing().some(({ name }) => !this.cluster.isDown(name));
    await this.peers.meetAll();
    for (let attempt = 1; attempt < limits.attemptsMax && isMissed(); attempt++) {
      if (Date.now() - startedAt >= limits.peerSilentMsMax) break;
      await scheduler.wait(retryDelayMs(attempt));
      await this.peers.meetAll();
    }
    for (const { name } of missing()) this.cluster.handleDown(name);
    // Of before there were homes: the others know nothing of them.
    const homeless = this.members.nodes().filter(({ home }) => home === "?");
    await Promise.allSettled(homeless.map(({ name }) => this.homes.takeInAgain(name)));
    this.#bootstrap = { timeMs: Date.now() - startedAt, keys: this.replication.keysPulled };
    this.#starting = undefined;
    this.share.handleCores(this.#runningCores());
  }

  /** Of a member, or of one that was given up and does not know it. */
  handleHello(from: NodeName, hello: Hello): Hello | undefined {
    if (this.members.get(from)?.state === "left") {
      // It may have joined again, at another core.
      const own = hello.members.find(({ name }) => name === from);
      if (own) this.cluster.handleMember(own);
    }
    const member = this.members.get(from);
    if (member !== undefined && member.state !== "left") return this.peers.handleHello(from, hello);
    if (member !== undefined) void this.#dismiss(from);
    return undefined;
  }

  /** It was away when it was made to leave. */
  async #dismiss(core: NodeName): Promise<void> {
    const link = this.peers.link(core);
    await link.tryOnce((peer) => peer.dismissed()).catch(() => {});
    if (!this.members.has(core)) this.peers.forget(core);
  }

  handleRelay(from: NodeName, batch: Uint8Array): Promise<Uint8Array> {
    const state = this.members.get(from)?.state;
    // One that was cleaned says by a relay that it is back.
    if (state === undefined || state === "left") throw new Error(`${from} is not in this cluster`);
    return this.replication.handleRelay(this.peers.link(from), batch);
  }

  #others(): Member[] {
    return this.members.coordinators().filter(({ name }) => name !== this.#host.self);
  }

  #runningCores(): NodeName[] {
    const isRunning = ({ name }: Member): boolean => name === this.#host.self || this.peers.isUp(name);
    return this.members
      .cores()
      .filter(isRunning)
      .map(({ name }) => name);
  }

  /** There are others from now on: what they have not been told gets versions. */
  #replicate(): void {
    if (this.#isReplicated) return;
    this.#isReplicated = true;
    const { self, store } = this.#host;
    store.routes.index();
    store.retained.index();
    for (const { name, home, term } of this.members.nodes()) {
      if (home !== self) continue;
      const version = this.replication.nextVersion(name, term);
      store.routes.giveVersion(name, version);
      store.versions.set(name, version, version);
    }
    store.retained.giveVersion(self);
    store.versions.set(self, this.replication.nextStamp(Date.now()).version);
    store.putFact(replicatedFact, "yes");
  }

  /** Whoever is told of it is to be told what follows: what there is already gets versions before. */
  #vector(): Readonly<Record<NodeName, number>> {
    this.#replicate();
    return this.#host.store.versions.vector();
  }

  async #handleMet(link: PeerLink, hello: Hello, { wasDown, isPartitionOver }: Meeting): Promise<void> {
    this.#bootstraps.set(link.name, hello.bootstrap);
    if (!hello.registryCores.includes(this.#host.self)) this.share.handleWasOut();
    for (const member of hello.members) this.cluster.handleMember(member);
    if (wasDown) {
      this.cluster.handleUp(link.name);
      this.#drainTo(this.members.get(link.name)?.domain);
    }
    if (isPartitionOver && this.#host.settings.cluster.autoheal && this.#host.settings.node.role === "core")
      this.healer.handlePartitionOver(link.name, Date.now());
    if (!this.#starting) this.share.handleCores(this.#runningCores());
    await this.replication.pullAll(link, hello.vector);
  }

  /** What is parked for the nodes of a deployment that is in reach again. */
  #drainTo(domain: string | undefined): void {
    if (domain === this.#host.settings.domain) return;
    for (const node of this.members.nodes())
      if (node.domain === domain) this.#host.forwarder.handleCall(node.name, Date.now());
  }

  /** A link to it has come up, or has ended: whether it is there is found out now. */
  handleLink(core: NodeName): void {
    if (this.members.get(core)?.state === "in") void this.peers.check(core);
  }

  #handlePeerDown(link: PeerLink): void {
    this.cluster.handleDown(link.name);
    if (!this.#starting) this.share.handleCores(this.#runningCores());
  }

  #handleJoined(member: Member, isBack: boolean): void {
    const { name } = member;
    if (name === this.#host.self) {
      if (isBack) this.share.handleCores(this.#runningCores());
    } else if (!isCoordinator(member)) {
      if (isBack) void this.share.handleNodeBack(name, true);
    } else if (isBack || !this.peers.isUp(name)) {
      this.#replicate();
      if (!this.#starting) void this.peers.meet(name);
    }
  }

  #handleGone(member: Member): void {
    const { name } = member;
    if (isCoordinator(member)) {
      this.share.handleCores(this.#runningCores().filter((core) => core !== name));
      if (member.state === "cleaned") return;
      this.peers.forget(name);
      return;
    }
    if (member.state === "left") this.#host.forwarder.forget(name);
    this.#host.dropNode(name);
    this.#host.store.routes.drop(name);
    this.#forgetVersion(member);
    this.registry.dropHolder(name);
  }

  /** Should its node be back, a core that has not heard that it was gone is to read all anew. */
  #forgetVersion({ name, home }: Member): void {
    const { versions } = this.#host.store;
    const next = versions.of(name) + 1;
    if (this.#isReplicated && home === this.#host.self) versions.set(name, next, next);
    else versions.forget(name);
  }

  #replicationOf(member: Member): Replicated | undefined {
    const isOther = isCoordinator(member) && member.name !== this.#host.self;
    const bootstrap = (isOther ? this.#bootstraps : this.homes.bootstraps).get(member.name);
    if (!bootstrap) return undefined;
    const lag = isOther ? this.peers.link(member.name).lag : 0;
    return { lag, bootstrapTimeMs: bootstrap.timeMs, bootstrapKeys: bootstrap.keys };
  }

  /** Autoheal: what this core has of others is taken over anew, and its nodes say again what they have. */
  restart(): Promise<void> {
    this.#starting ??= this.#restart();
    return this.#starting;
  }

  async #restart(): Promise<void> {
    this.#host.tell("core_restarting", {});
    const nodes = this.members.nodes();
    for (const { name, home } of nodes) if (home !== this.#host.self) this.#host.store.versions.forget(name);
    this.peers.lost.clear();
    await Promise.all(this.#others().map(({ name }) => this.peers.meet(name)));
    const own = nodes.filter(({ home }) => home === this.#host.self);
    await Promise.all(own.map(({ name }) => this.homes.takeInAgain(name).catch(() => {})));
    this.#starting = undefined;
    this.share.handleWasOut();
    this.share.handleCores(this.#runningCores());
  }

  /** A node, wherever it is: one of another deployment is reached through a core of it. */
  nodeAt(node: NodeName): NodeRpc {
    if (isMember(node, this.#host.settings.domain)) return this.#host.nodeAt(node);
    return remoteNode((method, args) => this.#callRemote(node, method, args));
  }

  #callRemote(node: NodeName, method: keyof NodeRpc, args: readonly unknown[]): Promise<unknown> {
    const member = this.members.get(node);
    const isItsCore = ({ name }: PeerLink): boolean => this.members.get(name)?.domain === member?.domain;
    const cores = this.peers.up().filter(isItsCore);
    const core = cores.find(({ name }) => name === member?.home) ?? cores[0];
    if (!core) return Promise.reject(new Error(`no core of ${node} is in reach`));
    return core.tryOnce((peer) => peer.callOwnNode(node, method, args));
  }

  /** A node of this deployment. */
  callOwnNode(node: NodeName, method: keyof NodeRpc, args: readonly unknown[]): Promise<unknown> {
    if (!isMember(node, this.#host.settings.domain))
      return Promise.reject(new Error(`${node} is not of this deployment`));
    return this.callNode(node, method, args);
  }

  /** A node, wherever it is. */
  callNode(node: NodeName, method: keyof NodeRpc, args: readonly unknown[]): Promise<unknown> {
    const call = this.nodeAt(node)[method] as (...args: readonly unknown[]) => Promise<unknown>;
    return call(...args);
  }

  /** Whether this core reaches the member, now. */
  reaches(name: NodeName): Promise<boolean> {
    const member = this.members.get(name);
    if (member && isCoordinator(member)) return this.peers.meet(name);
    return this.#host.forwarder.linkTo(name).settled();
  }

  /** A node is in reach again, or is not any more. */
  handleReach(node: NodeName, isReached: boolean): void {
    if (!isReached) return this.cluster.handleDown(node);
    this.cluster.handleUp(node);
    const member = this.members.get(node);
    if (member?.state === "cleaned" && member.home === this.#host.self) void this.#takeBack(node);
    else void this.share.handleNodeBack(node, false);
  }

  /** Its clients may be silent for long, and without its routes they get nothing; nor is it looked for any more. */
  async #takeBack(node: NodeName): Promise<void> {
    for (let attempt = 1; attempt <= limits.attemptsMax; attempt++) {
      try {
        return await this.homes.takeInAgain(node);
      } catch (error) {
        console.error(`${node} is back, and does not say what it has: ${String(error)}`);
        await scheduler.wait(retryDelayMs(attempt));
      }
    }
  }

  // ---- registry ---------------------------------------------------------------------------------------------------

  /** The claim is made by the core that owns the client id; should that one be gone, another one comes to own it. */
  async claim(clientId: string, node: NodeName, term: number): Promise<GrantedClaim> {
    for (let coming; (coming = this.homes.whenIn(node, term));) await coming;
    const claim = await this.#askOwner<Claim>(
      clientId,
      () => this.share.claim(clientId, node),
      (owner) => owner.claimHere(clientId, node),
    );
    const isAway = await Promise.all(claim.holders.map((holder) => this.#isAway(holder.node)));
    return { ...claim, away: claim.holders.flatMap((holder, index) => (isAway[index] ? [holder.node] : [])) };
  }

  /** Claims in one step, of those client ids of which all is known here; the others are left out. */
  async claimAll(
    clientIds: readonly string[],
    node: NodeName,
    term: number,
  ): Promise<readonly (GrantedClaim | undefined)[]> {
    for (let coming; (coming = this.homes.whenIn(node, term));) await coming;
    const isHere = (holder: Holder): boolean => isMember(holder.node, this.#host.settings.domain);
    return clientIds.map((clientId) => {
      const claim = this.share.claimAtOnce(clientId, node);
      return claim?.holders.every(isHere) ? { ...claim, away: [] } : undefined;
    });
  }

  /** The node is of another deployment, of which no core is in reach. They are tried now. */
  async #isAway(node: NodeName): Promise<boolean> {
    const domain = this.members.get(node)?.domain;
    if (domain === undefined || domain === this.#host.settings.domain) return false;
    const cores = this.members.coordinators().filter((core) => core.domain === domain);
    if (cores.some(({ name }) => this.peers.isUp(name))) return false;
    const isMet = await Promise.all(cores.map(({ name }) => this.peers.meet(name)));
    return !isMet.includes(true);
  }

  async abandon(clientId: string, epoch: number, holder: NodeName): Promise<boolean> {
    return this.#askOwner(
      clientId,
      () => this.share.abandon(clientId, epoch, holder),
      (owner) => owner.abandonHere(clientId, epoch, holder),
    );
  }

  /** The nodes that may have a session of the client, the claimer first. */
  holdersOf(clientId: string): Promise<readonly NodeName[]> {
    return this.#askOwner(
      clientId,
      () => this.share.holdersOf(clientId),
      (owner) => owner.holdersHere(clientId),
    );
  }

  async #askOwner<T>(
    clientId: string,
    ask: () => Promise<T | undefined>,
    askThere: (owner: PeerRpc) => Promise<T | undefined>,
  ): Promise<T> {
    for (let attempt = 1; attempt <= limits.attemptsMax; attempt++) {
      await this.#starting;
      const owner = this.share.ownerOf(clientId);
      if (owner === undefined) break;
      try {
        const answer = await (owner === this.#host.self ? ask() : this.peers.link(owner).call(askThere));
        if (answer !== undefined) return answer;
      } catch (error) {
        console.error(`${owner} did not answer for ${clientId}: ${String(error)}`);
      }
      await scheduler.wait(retryDelayMs(attempt));
    }
    throw new Error(`no core answers for ${clientId}`);
  }

  /** The claimer has the session: no other node holds any of it. */
  opened(clientId: string, epoch: number, node: NodeName): void {
    this.#tellOwner(
      clientId,
      () => this.registry.opened(clientId, epoch, node),
      (owner) => owner.openedHere(clientId, epoch, node),
    );
  }

  release(clientId: string, epoch: number): void {
    this.#tellOwner(
      clientId,
      () => this.registry.release(clientId, epoch),
      (owner) => owner.releaseHere(clientId, epoch),
    );
  }

  /** Should it be lost, a claim is kept that is of no use. */
  #tellOwner(clientId: string, tell: () => void, tellThere: (owner: PeerRpc) => Promise<void>): void {
    const owner = this.share.ownerOf(clientId);
    if (owner === this.#host.self) return tell();
    if (owner === undefined) return;
    const told = this.peers.link(owner).call(tellThere);
    told.catch((error: unknown) => console.error(`${owner} was not told of ${clientId}: ${String(error)}`));
  }

  /** Resolves when all that any core in reach has routed to the node before has reached it; to false if one cannot. */
  async settled(node: NodeName): Promise<boolean> {
    await this.#starting;
    const others = this.peers.up().map((peer) => peer.call((core) => core.settledHere(node)).catch(() => true));
    const isSettled = await Promise.all([this.#host.forwarder.linkTo(node).settled(), ...others]);
    return !isSettled.includes(false);
  }
}
