import { DurableObject } from "cloudflare:workers";
import { readSettings } from "../../cluster/config.ts";
import type { Member } from "../../cluster/membership.ts";
import { isMember, parseNodeName, type NodeName } from "../../cluster/name.ts";
import { Alarm } from "../alarm.ts";
import { countedCalls } from "../counted-calls.ts";
import { Line, overLine } from "../line.ts";
import { Metrics } from "../metrics.ts";
import type {
  AdminAnswer,
  ChangesPage,
  Claim,
  ClaimsPage,
  ClientInfo,
  ClusterSize,
  ClusterView,
  Connection,
  CoordinatorRpc,
  CoreAdminRpc,
  Found,
  GrantedClaim,
  Hello,
  NodeInfo,
  NodeMetrics,
  NodeRpc,
  Page,
  PeerRpc,
  RegistryMove,
  RetainedPage,
  RouteInfo,
  Slice,
  SubscriptionInfo,
  SubscriptionQuery,
  TopicQuery,
} from "../rpc.ts";
import { Core } from "./core.ts";
import { CoreAdmin } from "./core-admin.ts";
import { Links } from "./links.ts";
import { PeerTarget } from "./peer-target.ts";

/** A core of the cluster, named `name@host`: alarm, storage and RPC for the Core that decides. */
export class Coordinator extends DurableObject<Env> implements CoordinatorRpc, PeerRpc, CoreAdminRpc {
  readonly #core: Core;
  readonly #admin: CoreAdmin;
  readonly #links: Links<PeerRpc>;
  readonly #alarm: Alarm;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    const name = ctx.id.name ?? "";
    parseNodeName(name);
    const metrics = new Metrics();
    const addCall = (): void => void metrics["rpc.calls"]++;
    this.#alarm = new Alarm(ctx.storage, () => void metrics["alarms.set"]++);
    const settings = readSettings(env);
    this.#links = new Links({
      self: name,
      settings,
      env,
      targetFor: (peer) => new PeerTarget(this, peer),
      onUp: (peer) => this.#core.mesh.handleLink(peer),
      onDown: (peer) => this.#core.mesh.handleLink(peer),
      count: (metric) => void metrics[metric]++,
    });
    this.#core = new Core(name, settings, {
      metrics,
      storage: ctx.storage,
      nodeAt: (node: NodeName) => overLine(countedCalls<NodeRpc>(env.NODE.getByName(node), addCall), "forward"),
      peerAt: (peer: NodeName, domain: string) =>
        isMember(peer, settings.domain)
          ? countedCalls<PeerRpc>(env.COORDINATOR.getByName(peer), addCall)
          : this.#links.to(peer, domain),
      unlink: (peer: NodeName) => this.#links.close(peer),
      ringAt: (at) => this.#alarm.ringAt(at),
    });
    this.#admin = new CoreAdmin(this.#core);
  }

  /** A link from a core of another deployment. */
  override fetch(request: Request): Response {
    return this.#links.accept(request);
  }

  // ---- nodes ------------------------------------------------------------------------------------------------------

  route(node: NodeName, connection: Connection, batch: Uint8Array): Promise<Uint8Array> {
    return this.#core.route(node, connection, batch);
  }

  /** See `overLine`. */
  open(node: NodeName, connection: Connection): Line {
    return new Line((batch) => this.route(node, connection, batch));
  }

  claim(clientId: string, node: NodeName, term: number): Promise<GrantedClaim> {
    return this.#core.mesh.claim(clientId, node, term);
  }

  claimAll(clientIds: readonly string[], node: NodeName, term: number): Promise<readonly (GrantedClaim | undefined)[]> {
    return this.#core.mesh.claimAll(clientIds, node, term);
  }

  abandon(clientId: string, epoch: number, holder: NodeName): Promise<boolean> {
    return this.#core.mesh.abandon(clientId, epoch, holder);
  }

  settled(node: NodeName): Promise<boolean> {
    return this.#core.mesh.settled(node);
  }

  callNode(node: NodeName, method: keyof NodeRpc, args: readonly unknown[]): Promise<unknown> {
    return this.#core.mesh.callNode(node, method, args);
  }

  async isReady(): Promise<boolean> {
    await this.#core.mesh.whenReady();
    return true;
  }

  async retained(filter: string, after: string | undefined, messagesMax: number): Promise<RetainedPage> {
    await this.#core.mesh.whenReady();
    return this.#core.retained(filter, after, messagesMax);
  }

  // ---- other cores ------------------------------------------------------------------------------------------------

  async hello(from: NodeName, hello: Hello): Promise<Hello | undefined> {
    return this.#core.mesh.handleHello(from, hello);
  }

  relay(from: NodeName, batch: Uint8Array): Promise<Uint8Array> {
    return this.#core.mesh.handleRelay(from, batch);
  }

  async changes(writer: NodeName, since: number, after: string): Promise<ChangesPage> {
    return this.#core.mesh.replication.changes(writer, since, after);
  }

  async view(): Promise<readonly NodeName[]> {
    return this.#core.mesh.peers.view();
  }

  async reportPartition(from: NodeName, peer: NodeName): Promise<void> {
    this.#core.mesh.healer.handleReport(from, peer, Date.now());
  }

  heal(minority: readonly NodeName[]): Promise<void> {
    return this.#core.mesh.healer.restartAll(minority);
  }

  restart(): Promise<void> {
    return this.#core.mesh.restart();
  }

  claimHere(clientId: string, node: NodeName): Promise<Claim | undefined> {
    return this.#core.mesh.share.claim(clientId, node);
  }

  abandonHere(clientId: string, epoch: number, holder: NodeName): Promise<boolean | undefined> {
    return this.#core.mesh.share.abandon(clientId, epoch, holder);
  }

  async openedHere(clientId: string, epoch: number, node: NodeName): Promise<void> {
    this.#core.mesh.registry.opened(clientId, epoch, node);
  }

  async releaseHere(clientId: string, epoch: number): Promise<void> {
    this.#core.mesh.registry.release(clientId, epoch);
  }

  async holdersHere(clientId: string): Promise<readonly NodeName[] | undefined> {
    return this.#core.mesh.share.holdersOf(clientId);
  }

  async claimsFor(move: RegistryMove, after: string): Promise<ClaimsPage> {
    return this.#core.mesh.share.claimsFor(move, after);
  }

  async giveClaims(claims: ClaimsPage["claims"]): Promise<void> {
    this.#core.mesh.share.handleGiven(claims);
  }

  callOwnNode(node: NodeName, method: keyof NodeRpc, args: readonly unknown[]): Promise<unknown> {
    return this.#core.mesh.callOwnNode(node, method, args);
  }

  settledHere(node: NodeName): Promise<boolean> {
    return this.#core.forwarder.settled(node);
  }

  reachesHere(name: NodeName): Promise<boolean> {
    return this.#core.mesh.reaches(name);
  }

  // ---- operators --------------------------------------------------------------------------------------------------

  async clusterView(): Promise<ClusterView> {
    await this.#core.mesh.whenReady();
    return this.#core.mesh.cluster.view();
  }

  async join(target: NodeName): Promise<AdminAnswer> {
    return this.#core.mesh.cluster.join(target);
  }

  async mayJoin(from: NodeName, members: readonly Member[]): Promise<AdminAnswer> {
    return this.#core.mesh.cluster.mayJoin(from, members);
  }

  async acceptJoin(from: NodeName, members: readonly Member[]): Promise<AdminAnswer> {
    return this.#core.mesh.cluster.handleJoin(from, members);
  }

  async invite(target: NodeName): Promise<AdminAnswer> {
    return this.#core.mesh.cluster.invite(target);
  }

  async size(): Promise<ClusterSize | undefined> {
    return this.#core.mesh.size();
  }

  async invited(from: NodeName): Promise<AdminAnswer> {
    return this.#core.mesh.cluster.join(from);
  }

  leave(): Promise<AdminAnswer> {
    return this.#core.mesh.cluster.leave();
  }

  forceLeave(node: NodeName): Promise<AdminAnswer> {
    return this.#core.mesh.cluster.forceLeave(node);
  }

  async dismissed(): Promise<void> {
    this.#core.mesh.cluster.handleDismissed();
  }

  async enableDiscovery(): Promise<AdminAnswer> {
    return this.#core.mesh.cluster.enableDiscovery();
  }

  async topics(query: TopicQuery, slice: Slice): Promise<Page<RouteInfo>> {
    return this.#admin.topics(query, slice);
  }

  nodes(only: NodeName | undefined): Promise<NodeInfo[]> {
    return this.#admin.nodes(only);
  }

  metrics(): Promise<NodeMetrics[]> {
    return this.#admin.metrics();
  }

  clients(node: NodeName | undefined, slice: Slice): Promise<Page<ClientInfo>> {
    return this.#admin.clients(node, slice);
  }

  client(clientId: string): Promise<Found<ClientInfo>> {
    return this.#admin.client(clientId);
  }

  kick(clientId: string): Promise<Found<true>> {
    return this.#admin.kick(clientId);
  }

  subscriptions(query: SubscriptionQuery, slice: Slice): Promise<Page<SubscriptionInfo>> {
    return this.#admin.subscriptions(query, slice);
  }

  override async alarm(): Promise<void> {
    this.#alarm.rang();
    await this.#core.handleAlarm(Date.now());
  }
}
