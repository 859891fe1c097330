/**
 * What a core does: it knows the routes of all nodes, and passes every message on to the nodes that have subscribers.
 *
 *   route    a batch of a node whose home it is (homes.ts) is taken record by record, in order, before anything is awaited
 *            (G2): a route change goes to the table, to disk and to the other cores (replication.ts), a message is matched
 *            once, whichever node of the cluster its subscribers are on
 *   forward  each node with a match gets the message, with the filters that matched (forwarder.ts)
 *
 * The answer to a node waits for its QoS 1 and 2 messages to be with the nodes of their subscribers, or parked on this
 * core's disk for those that cannot be reached; for its route changes to be on every core in reach; and for nothing else. The table is in memory and rebuilt from disk when
 * the object wakes.
 */
import type { AutoclusterState } from "../../cluster/autocluster.ts";
import type { Settings } from "../../cluster/config.ts";
import { isCoordinator, Membership, type Member } from "../../cluster/membership.ts";
import { addressOf, isMember, type NodeName } from "../../cluster/name.ts";
import { RouteTable } from "../../cluster/routes.ts";
import type { ShareGroup } from "../../cluster/shared-sub.ts";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits, retryDelayMs } from "../../mqtt/limits.ts";
import { isExpired, readMessage, writeMessage, type Message } from "../../mqtt/message.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";
import { parseShared, sharedFilter } from "../../mqtt/topic.ts";
import { Metrics } from "../metrics.ts";
import {
  memberRecord,
  readNodeRecords,
  type Claim,
  type ClusterSize,
  type Connection,
  type Hello,
  type Matched,
  type NodeRecord,
  type NodeRpc,
  type PeerRpc,
  type Replicated,
  type RetainedPage,
} from "../rpc.ts";
import { remoteNode } from "../remote-node.ts";
import type { Database } from "../schema.ts";
import { Cluster } from "./cluster.ts";
import { Autocluster } from "./discovery/autocluster.ts";
import { strategyOf } from "./discovery/strategies.ts";
import { CoreStore } from "./core-store.ts";
import { Answer, Forwarder, type ForwardedMessage, type Routed } from "./forwarder.ts";
import { Healer } from "./healer.ts";
import { Homes } from "./homes.ts";
import { ParkedStore } from "./parked-store.ts";
import type { PeerLink } from "./peer-link.ts";
import { Peers, type Meeting } from "./peers.ts";
import { Registry } from "./registry.ts";
import { RegistryShare } from "./registry-share.ts";
import { Replication } from "./replication.ts";
import type { RouteChange } from "./route-store.ts";
import { sweepOf } from "./retained-store.ts";
import { SysTopics } from "./sys-topics.ts";

/** What the Durable Object gives. */
export interface CoreHost {
  readonly storage: Database;
  /** A node of this deployment. */
  readonly nodeAt: (name: NodeName) => NodeRpc;
  /** Another coordinator: a fresh stub. */
  readonly peerAt: (name: NodeName, domain: string) => PeerRpc;
  /** The coordinator has left: what links to it is not needed any more. */
  readonly unlink: (name: NodeName) => void;
  /** Makes sure that the alarm rings at this time or before. */
  readonly ringAt: (at: number) => void;
}

type PublishRecord = Extract<NodeRecord, { kind: "publish" }>;

/** The fact that says that there are other cores, which are told of changes. */
const replicatedFact = "replicated";
/** The fact that is the state of discovery. */
const autoclusterFact = "autocluster";
const meetsAtStart = 3;

export class Core {
  readonly name: NodeName;
  readonly settings: Settings;
  readonly store: CoreStore;
  readonly routes = new RouteTable();
  readonly metrics = new Metrics();
  readonly host: CoreHost;
  readonly startedAt = Date.now();
  readonly members: Membership;
  readonly peers: Peers;
  readonly replication: Replication;
  readonly homes: Homes;
  readonly cluster: Cluster;
  readonly healer: Healer;
  readonly forwarder: Forwarder;
  readonly registry: Registry;
  readonly share: RegistryShare;
  readonly #writer = new ByteWriter();
  readonly #sys: SysTopics;
  readonly #autocluster: Autocluster | undefined;
  #isReplicated: boolean;
  /** Until this core has met the others; undefined: it has. */
  #starting: Promise<void> | undefined;
  #bootstrap = { timeMs: 0, keys: 0 };
  /** What others have told of their own. */
  readonly #bootstraps = new Map<NodeName, Hello["bootstrap"]>();

  constructor(name: NodeName, settings: Settings, host: CoreHost) {
    this.name = name;
    this.settings = settings;
    this.host = host;
    this.store = new CoreStore(host.storage);
    this.#isReplicated = this.store.fact(replicatedFact) === "yes";
    this.members = new Membership(this.store.members(settings.domain));
    for (const { node, key, members } of this.store.routes.all()) this.#setRoute(node, key, members);
    this.#sys = new SysTopics(this);
    const { ringAt } = host;
    const tell = this.#tell.bind(this);
    const nodeAt = (node: NodeName): NodeRpc => this.nodeAt(node);
    this.peers = new Peers({
      self: name,
      cluster: settings.cluster.name,
      members: this.members,
      vector: () => this.store.versions.vector(),
      bootstrap: () => this.#bootstrap,
      peerAt: (peer) => host.peerAt(peer, this.members.get(peer)?.domain ?? addressOf(peer)),
      ringAt,
      handleMet: (link, hello, meeting) => this.#handleMet(link, hello, meeting),
      handleDown: (link) => this.#handlePeerDown(link),
    });
    this.replication = new Replication({
      self: name,
      store: this.store,
      members: this.members,
      peers: () => this.peers.up(),
      setRoute: (node, key, members) => this.#setRoute(node, key, members),
      handleRetained: ({ expiresAt }) => this.#sweepAt(expiresAt),
      handleMember: (member) => this.cluster.handleMember(member),
    });
    this.forwarder = new Forwarder({
      parked: new ParkedStore(host.storage.sql),
      metrics: this.metrics,
      strategy: settings.mqtt.shared_subscription_strategy,
      nodeAt,
      ringAt,
      passOn: (message) => this.#passOn(message),
      handleReach: (node, isReached) => this.#handleReach(node, isReached),
      retryLastMs: (node) => (this.members.has(node) ? limits.drainRetryLastMs : limits.probeCleanedMs),
    });
    this.registry = new Registry(this.store, (node) => this.forwarder.linkTo(node));
    this.share = new RegistryShare({
      self: name,
      alone: settings.node.role === "core" ? [name] : [],
      store: this.store,
      registry: this.registry,
      link: (core) => this.peers.link(core),
      nodes: () => this.members.nodes().map((node) => node.name),
      nodeAt,
    });
    this.homes = new Homes({
      self: name,
      domain: settings.domain,
      members: this.members,
      replication: this.replication,
      nodeAt,
      isReplicated: () => this.#isReplicated,
      whenReady: () => this.#starting,
      changeMember: (member) => this.cluster.change(member),
    });
    this.cluster = new Cluster({
      self: name,
      settings,
      store: this.store,
      members: this.members,
      peers: this.peers,
      relayMember: (member, except) => this.replication.relay(memberRecord(member), except),
      whenRelayed: () => this.replication.whenRelayed(),
      reaches: (member) => this.reaches(member),
      replicationOf: (member) => this.#replicationOf(member),
      handleJoined: (member, isBack) => this.#handleJoined(member, isBack),
      announce: ({ name: node, term }) =>
        this.replication.publishRoutes(node, this.replication.nextVersion(node, term), []),
      handleGone: (member) => this.#handleGone(member),
      stopDiscovery: async () => this.#autocluster?.disable(),
      startDiscovery: () => this.#autocluster?.enable(),
      ringAt,
      tell,
    });
    this.healer = new Healer({ self: name, members: this.members, peers: this.peers, ringAt, tell });
    for (const due of [this.store.nextDelayed(), this.store.retained.nextSweep()]) if (due !== undefined) ringAt(due);
    this.#start();
    this.#autocluster = this.#createAutocluster();
  }

  /** Of a deployment's cores the one that others link to looks for them. */
  #createAutocluster(): Autocluster | undefined {
    const { name, settings, store, host } = this;
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
      ringAt: host.ringAt,
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
    const isOpen = this.settings.cluster.discovery_strategy !== "singleton" && this.#autocluster?.isEnabled !== false;
    return isOpen ? this.cluster.size() : undefined;
  }

  // ---- the other cores --------------------------------------------------------------------------------------------

  /** What others have told while this core slept, or was away, is asked for before anything is routed by its table. */
  #start(): void {
    if (this.#others().length === 0) return;
    this.#replicate();
    this.#starting = this.#meetOthers();
  }

  async #meetOthers(): Promise<void> {
    const startedAt = Date.now();
    const missing = (): Member[] => this.#others().filter(({ name }) => !this.peers.isUp(name));
    for (let attempt = 1; attempt <= meetsAtStart && missing().length > 0; attempt++) {
      if (attempt > 1) await scheduler.wait(retryDelayMs(attempt));
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
    const member = this.members.get(from);
    if (member === undefined || member.state === "left") return undefined;
    return this.peers.handleHello(from, hello);
  }

  handleRelay(from: NodeName, batch: Uint8Array): Promise<Uint8Array> {
    if (!this.members.has(from)) throw new Error(`${from} is not in this cluster`);
    return this.replication.handleRelay(this.peers.link(from), batch);
  }

  #others(): Member[] {
    return this.members.coordinators().filter(({ name }) => name !== this.name);
  }

  #runningCores(): NodeName[] {
    const isRunning = ({ name }: Member): boolean => name === this.name || this.peers.isUp(name);
    return this.members
      .cores()
      .filter(isRunning)
      .map(({ name }) => name);
  }

  /** There are others from now on: what they have not been told gets versions. */
  #replicate(): void {
    if (this.#isReplicated) return;
    this.#isReplicated = true;
    const { store } = this;
    for (const { name, home, term } of this.members.nodes()) {
      if (home !== this.name) continue;
      const version = this.replication.nextVersion(name, term);
      store.routes.replicate(name, version);
      store.versions.set(name, version, version);
    }
    store.retained.replicate(this.name);
    const stamp = this.replication.nextStamp(Date.now());
    store.versions.set(this.name, stamp.version);
    store.putFact(replicatedFact, "yes");
  }

  async #handleMet(link: PeerLink, hello: Hello, { wasDown, isPartitionOver }: Meeting): Promise<void> {
    this.#bootstraps.set(link.name, hello.bootstrap);
    if (hello.sawDown) this.share.handleWasOut();
    for (const member of hello.members) this.cluster.handleMember(member);
    if (wasDown) {
      this.cluster.handleUp(link.name);
      this.#drainTo(this.members.get(link.name)?.domain);
    }
    if (isPartitionOver && this.settings.cluster.autoheal && this.settings.node.role === "core")
      this.healer.handlePartitionOver(link.name, Date.now());
    if (!this.#starting) this.share.handleCores(this.#runningCores());
    await this.replication.pullAll(link, hello.vector);
  }

  /** What is parked for the nodes of a deployment that is in reach again. */
  #drainTo(domain: string | undefined): void {
    if (domain === this.settings.domain) return;
    for (const node of this.members.nodes())
      if (node.domain === domain) this.forwarder.handleCall(node.name, Date.now());
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
    if (name === this.name) {
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
      this.host.unlink(name);
      return;
    }
    if (member.state === "left") this.forwarder.forget(name);
    this.routes.dropNode(name);
    this.store.routes.drop(name);
    this.store.versions.forget(name);
    this.registry.dropHolder(name);
  }

  #replicationOf(member: Member): Replicated | undefined {
    const isOther = isCoordinator(member) && member.name !== this.name;
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
    this.#tell("core_restarting", {});
    const nodes = this.members.nodes();
    for (const { name, home } of nodes) if (home !== this.name) this.store.versions.forget(name);
    this.peers.lost.clear();
    await Promise.all(this.#others().map(({ name }) => this.peers.meet(name)));
    const own = nodes.filter(({ home }) => home === this.name);
    await Promise.all(own.map(({ name }) => this.homes.takeInAgain(name).catch(() => {})));
    this.#starting = undefined;
    this.share.handleWasOut();
    this.share.handleCores(this.#runningCores());
  }

  /** A node, wherever it is: one of another deployment is reached through a core of it. */
  nodeAt(node: NodeName): NodeRpc {
    if (isMember(node, this.settings.domain)) return this.host.nodeAt(node);
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
    if (!isMember(node, this.settings.domain)) return Promise.reject(new Error(`${node} is not of this deployment`));
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
    return this.forwarder.linkTo(name).settled();
  }

  #handleReach(node: NodeName, isReached: boolean): void {
    if (!isReached) return this.cluster.handleDown(node);
    this.cluster.handleUp(node);
    const member = this.members.get(node);
    // Its clients may be silent for long, and without its routes they get nothing.
    if (member?.state === "cleaned" && member.home === this.name) void this.homes.takeInAgain(node);
    else void this.share.handleNodeBack(node, false);
  }

  /** Logged, and published under `$SYS`. */
  #tell(event: string, facts: Readonly<Record<string, unknown>>): void {
    const line = JSON.stringify({ event, core: this.name, cluster: this.settings.cluster.name, ...facts });
    console.log(line);
    if (this.routes.hasFilterUnder("$SYS/")) this.#sys.publishEvent(event, line);
  }

  // ---- route ------------------------------------------------------------------------------------------------------

  /** Resolves when the node is to be served here; undefined: at once. */
  whenReady(): Promise<void> | undefined {
    return this.#starting;
  }

  route(node: NodeName, connection: Connection, records: Uint8Array): Promise<Uint8Array> {
    const { term } = connection;
    const coming = this.homes.whenConnected(node, connection);
    if (coming) return coming.then(() => this.route(node, connection, records));
    this.forwarder.handleCall(node, Date.now());
    const answer = new Answer();
    const version = this.#isReplicated ? this.replication.nextVersion(node, term) : 0;
    const batch: RouteBatch = { version, changes: [], isToBeRelayed: false };
    for (const record of readNodeRecords(records)) {
      const index = answer.add();
      try {
        this.#handle(node, record, answer, index, batch);
      } catch (error) {
        console.error(`a record of ${node} failed: ${String(error)}`);
        answer.codes[index] = ReasonCode.ImplementationSpecificError;
      }
    }
    if (batch.changes.length > 0 && this.#isReplicated) this.replication.publishRoutes(node, version, batch.changes);
    if (batch.isToBeRelayed) this.#awaitRelays(answer);
    return answer.whenComplete();
  }

  /** Of this batch and of those before it (G3). */
  #awaitRelays(answer: Answer): void {
    const relayed = this.replication.whenRelayed();
    if (!relayed) return;
    answer.await();
    void relayed.then(() => answer.settle());
  }

  #handle(node: NodeName, record: NodeRecord, answer: Answer, index: number, batch: RouteBatch): void {
    switch (record.kind) {
      case "fence":
        batch.isToBeRelayed = true;
        return;
      case "addRoute":
        this.#changeRoute(node, { key: record.key, members: record.members, sent: record.version }, batch);
        if (parseShared(record.key).filter.startsWith("$SYS/")) this.#sys.publishSoon();
        return;
      case "removeRoute":
        return this.#changeRoute(node, { key: record.key, members: undefined, sent: record.version }, batch);
      case "opened":
        return this.#tellOwner(
          record.clientId,
          () => this.registry.opened(record.clientId, record.epoch, node),
          (owner) => owner.openedHere(record.clientId, record.epoch, node),
        );
      case "release":
        return this.#tellOwner(
          record.clientId,
          () => this.registry.release(record.clientId, record.epoch),
          (owner) => owner.releaseHere(record.clientId, record.epoch),
        );
      case "publish":
        // With mnesia every core has what is retained before it is acknowledged; with rlog it may be a moment behind.
        batch.isToBeRelayed ||= record.message.retain && this.settings.node.db_backend === "mnesia";
        return this.#publish(node, record, answer, index);
      case "unreadable":
        throw record.error;
    }
  }

  #changeRoute(node: NodeName, change: Omit<RouteChange, "version">, batch: RouteBatch): void {
    batch.isToBeRelayed = true;
    const { version, changes } = batch;
    const { key, sent, members } = change;
    if (sent < this.store.routes.sentOf(node, key) || this.homes.isTakenIn(node, sent)) return;
    const versioned = { ...change, version };
    this.#setRoute(node, key, members);
    this.store.routes.put(node, versioned);
    changes.push(versioned);
  }

  #publish(node: NodeName, record: PublishRecord, answer: Answer, index: number): void {
    const { message, bytes, delaySeconds, only } = record;
    if (delaySeconds > 0) {
      answer.codes[index] = this.#delay(bytes, delaySeconds);
      return;
    }
    this.metrics.add("messages.publish");
    if (message.retain && only === "" && !this.#retain(node, message, bytes)) {
      this.metrics.add("messages.dropped.quota");
      if (message.qos > 0) {
        answer.codes[index] = ReasonCode.QuotaExceeded;
        return;
      }
      // Nobody will send a QoS 0 message again: those who are subscribed get it all the same.
    }
    const routed: Routed = { node, message, bytes, answer, index };
    const targets = new Map<NodeName, Matched[]>();
    const groups: [key: string, group: ShareGroup][] = [];
    this.routes.match(message.topic, (route) => {
      if (only === "") for (const target of route.nodes) addTo(targets, target, { key: route.filter, ordinal: 0 });
      for (const [name, group] of route.groups ?? []) {
        const key = sharedFilter(name, route.filter);
        if (only === "" || only === key) groups.push([key, group]);
      }
    });
    if (targets.size === 0 && groups.length === 0) {
      this.metrics.add("messages.dropped.no_subscribers");
      answer.codes[index] = ReasonCode.NoMatchingSubscribers;
    }
    for (const [target, matched] of targets) this.forwarder.forward(target, matched, routed);
    for (const [key, group] of groups) this.forwarder.forwardToGroup(key, group, routed);
  }

  /** A message of the core's own, at QoS 0: `$SYS`. */
  publishOwn(message: Message): void {
    writeMessage(this.#writer, message);
    const bytes = this.#writer.take();
    const record: PublishRecord = { kind: "publish", message, bytes, delaySeconds: 0, only: "" };
    const answer = new Answer();
    this.#publish(this.name, record, answer, answer.add());
  }

  /** A share group's message that was parked, and whose node has no member any more. @returns whether another has it. */
  async #passOn({ message, matched }: ForwardedMessage): Promise<boolean> {
    writeMessage(this.#writer, message);
    const bytes = this.#writer.take();
    const answer = new Answer();
    for (const { key: only } of matched)
      this.#publish(this.name, { kind: "publish", message, bytes, delaySeconds: 0, only }, answer, answer.add());
    return (await answer.whenComplete()).every((code) => code < 0x80);
  }

  /** @param members undefined: the route is gone. */
  #setRoute(node: NodeName, key: string, members: number | undefined): void {
    const { group, filter } = parseShared(key);
    if (group === undefined) {
      if (members === undefined) this.routes.remove(node, filter);
      else this.routes.add(node, filter);
    } else if (members === undefined) this.routes.removeShared(node, group, filter);
    else this.routes.setShared(node, group, filter, members);
  }

  // ---- registry ---------------------------------------------------------------------------------------------------

  /** The claim is made by the core that owns the client id; should that one be gone, another one comes to own it. */
  async claim(clientId: string, node: NodeName, term: number): Promise<Claim> {
    for (let coming; (coming = this.homes.whenIn(node, term));) await coming;
    return this.#askOwner(
      clientId,
      () => this.share.claim(clientId, node),
      (owner) => owner.claimHere(clientId, node),
    );
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
        const answer = await (owner === this.name ? ask() : this.peers.link(owner).call(askThere));
        if (answer !== undefined) return answer;
      } catch (error) {
        console.error(`${owner} did not answer for ${clientId}: ${String(error)}`);
      }
      await scheduler.wait(retryDelayMs(attempt));
    }
    throw new Error(`no core answers for ${clientId}`);
  }

  /** Should it be lost, a claim is kept that is of no use. */
  #tellOwner(clientId: string, tell: () => void, tellThere: (owner: PeerRpc) => Promise<void>): void {
    const owner = this.share.ownerOf(clientId);
    if (owner === this.name) return tell();
    if (owner === undefined) return;
    const told = this.peers.link(owner).call(tellThere);
    told.catch((error: unknown) => console.error(`${owner} was not told of ${clientId}: ${String(error)}`));
  }

  /** Resolves when all that any core in reach has routed to the node before has reached it; to false if one cannot. */
  async settled(node: NodeName): Promise<boolean> {
    const others = this.peers.up().map((peer) => peer.call((core) => core.settledHere(node)).catch(() => true));
    const isSettled = await Promise.all([this.forwarder.linkTo(node).settled(), ...others]);
    return !isSettled.includes(false);
  }

  // ---- retained ---------------------------------------------------------------------------------------------------

  /** @returns whether the disk has taken it, or has a later one. */
  #retain(node: NodeName, message: Message, bytes: Uint8Array): boolean {
    const { retained } = this.store;
    try {
      // A delayed message is the core's own by now, and counts from now on, whatever its id says.
      if (node !== this.name && retained.isOutdated(message)) return true;
      const stamp = this.#isReplicated ? this.replication.nextStamp(Date.now()) : undefined;
      if (!retained.put(message, bytes, stamp)) return false;
      if (stamp) this.replication.publishRetained(message.topic, stamp.version, bytes);
    } catch (error) {
      console.error(`a message could not be retained: ${String(error)}`);
      return false;
    }
    this.#sweepAt(message.expiresAt);
    return true;
  }

  #sweepAt(expiresAt: number): void {
    if (expiresAt > 0) this.host.ringAt(sweepOf(expiresAt));
  }

  #sweepRetained(now: number): void {
    this.store.retained.deleteExpired(now);
    const next = this.store.retained.nextSweep();
    if (next !== undefined) this.host.ringAt(next);
  }

  retained(filter: string, after: string | undefined, messagesMax: number): RetainedPage {
    return this.store.retained.page(filter, after, messagesMax, Date.now());
  }

  // ---- time -------------------------------------------------------------------------------------------------------

  #delay(bytes: Uint8Array, delaySeconds: number): ReasonCode {
    if (this.store.delayedCount() >= limits.delayedMessagesMax) {
      this.metrics.add("messages.dropped.quota");
      return ReasonCode.QuotaExceeded;
    }
    const dueAt = Date.now() + delaySeconds * 1000;
    this.store.delay(bytes, dueAt);
    this.metrics.add("messages.delayed");
    this.host.ringAt(dueAt);
    return ReasonCode.Success;
  }

  async handleAlarm(now: number): Promise<void> {
    this.#sweepRetained(now);
    this.forwarder.handleAlarm(now);
    this.peers.handleAlarm(now);
    this.healer.handleAlarm(now);
    this.cluster.handleAlarm(now);
    this.#autocluster?.handleAlarm();
    await this.#starting;
    const isRefused = await Promise.all(
      this.store.delayedUntil(now).map((delayed) => this.#publishDelayed(delayed, now)),
    );
    const next = this.store.nextDelayed();
    // What could not be delivered stays on disk and is tried again.
    if (next !== undefined) this.host.ringAt(isRefused.includes(true) ? Date.now() + limits.retryLastMs : next);
    await this.#sys.handleAlarm(now);
  }

  /** On disk until it is with its subscribers: it may come twice after a crash, not get lost. @returns whether to retry. */
  async #publishDelayed({ id, bytes }: { id: number; bytes: Uint8Array }, now: number): Promise<boolean> {
    const answer = new Answer();
    const index = answer.add();
    try {
      const message = readMessage(new ByteReader(bytes));
      const record: PublishRecord = { kind: "publish", message, bytes, delaySeconds: 0, only: "" };
      if (!isExpired(message, now)) this.#publish(this.name, record, answer, index);
    } catch (error) {
      console.error(`a delayed message cannot be published: ${String(error)}`);
    }
    const [code] = await answer.whenComplete();
    if (code === ReasonCode.UnspecifiedError || code === ReasonCode.QuotaExceeded) return true;
    this.store.forgetDelayed(id);
    return false;
  }
}

/** A node's route changes in one batch, told to the other cores together. */
interface RouteBatch {
  readonly version: number;
  readonly changes: RouteChange[];
  /** Its answer waits for the other cores. */
  isToBeRelayed: boolean;
}

function addTo<K, V>(lists: Map<K, V[]>, key: K, value: V): void {
  const list = lists.get(key);
  if (list) list.push(value);
  else lists.set(key, [value]);
}
