/**
 * The one contract between nodes and cores, and between cores. Deploys overlap, so a change of what is on the wire is a
 * new version: both sides refuse a batch of another one, and the sender tries again when the other side has been deployed
 * too.
 *
 * A batch is one byte array: the version, then records of `kind u8, length u32, body`. Where batches are many they go over a
 * line (line.ts), which is opened by `open` with the other arguments of `route` or `forward`.
 */
import type { Member } from "../cluster/membership.ts";
import type { NodeName } from "../cluster/name.ts";
import { ByteReader, ByteWriter, concatenate } from "../mqtt/byte-buffer.ts";
import { readMessage, writeMessage, type Message } from "../mqtt/message.ts";
import type { Checkpoint, Subscription } from "../mqtt/session.ts";

export const rpcVersion = 3;

/** What a core offers to nodes. */
export interface CoordinatorRpc {
  /**
   * Takes a batch of node records, in order. Resolves when every QoS 1 and 2 message of it is with the nodes of its
   * subscribers, on disk where a session is durable, or on the core's disk for a node that it cannot reach.
   * @returns one reason code a record
   */
  route(node: NodeName, connection: Connection, batch: Uint8Array): Promise<Uint8Array>;
  /** The client id is the node's from now on (G4). `epoch` rises with every claim of it. */
  claim(clientId: string, node: NodeName, term: number): Promise<GrantedClaim>;
  /** Claims of several client ids; undefined: this one cannot be answered at once, and is to be claimed alone. */
  claimAll(clientIds: readonly string[], node: NodeName, term: number): Promise<readonly (GrantedClaim | undefined)[]>;
  /**
   * The claimer goes on without a holder that it cannot reach: what that one has of the client id ends when it hears of it.
   * @returns whether the claim with this epoch is still the latest
   */
  abandon(clientId: string, epoch: number, holder: NodeName): Promise<boolean>;
  /** Resolves when all that was routed to the node before this call has reached it; to false when it cannot be reached. */
  settled(node: NodeName): Promise<boolean>;
  /** A call to a node of another deployment: cores alone have links. */
  callNode(node: NodeName, method: keyof NodeRpc, args: readonly unknown[]): Promise<unknown>;
  /** Whether the core can be a node's home: it knows what the cluster knows. */
  isReady(): Promise<boolean>;
  /** Retained messages that match, ordered by topic, from behind `after`: one bounded page. */
  retained(filter: string, after: string | undefined, messagesMax: number): Promise<RetainedPage>;
}

/** A row of calls from a node, in order: when one has been refused, those behind it are too (G2). */
export interface Connection {
  /** Rises when the node changes its home core. */
  readonly term: number;
  /** Of this connection alone. */
  readonly id: number;
}

export interface Claim {
  readonly epoch: number;
  /** The claimer's, as a holder. */
  readonly since: number;
  /** The others that may hold a session of the client id, the latest first. */
  readonly holders: readonly Holder[];
}

/** As the claimer is told of it. */
export interface GrantedClaim extends Claim {
  /** Holders of deployments that are not in reach: there is no use in asking them. */
  readonly away: readonly NodeName[];
}

/** A node that may hold a session. One of an epoch before `since` is stale: the cluster went on without it. */
export interface Holder {
  readonly node: NodeName;
  readonly since: number;
}

export interface RetainedPage {
  /** Message records, one behind the other. */
  readonly messages: Uint8Array;
  /** The last topic looked at; undefined when there are no more. */
  readonly next: string | undefined;
}

/** What a node offers to cores and to other nodes. */
export interface NodeRpc extends NodeAdminRpc {
  /**
   * Takes a batch of forwarded messages; resolves when what durable sessions get of it is on disk.
   * @returns one reason code a record: NoMatchingSubscribers when a share group has nobody here to take its message,
   * 0x80 or more when the record itself is at fault, and would be again
   */
  forward(batch: Uint8Array): Promise<Uint8Array>;
  /**
   * The client id was claimed by another node with this epoch: close its connection (0x8E) and hand the session over.
   * `resume` false: the session ends here.
   */
  takeOver(clientId: string, epoch: number, resume: boolean): Promise<TakenOver>;
  /** The QoS 2 messages that the session may have been given, a `MessageIdSet`; asked for before its messages. */
  takeOverKnown(clientId: string, epoch: number): Promise<Uint8Array>;
  /** The rest of a session being handed over, by rising `seq`; asked for until it is empty. */
  takeOverMessages(clientId: string, epoch: number, afterSeq: number): Promise<StoredDelivery[]>;
  /** The taker has the session: forget it. What a group has sent it that is not `known` there goes back to the group. */
  takeOverDone(clientId: string, epoch: number, known: Uint8Array): Promise<void>;
  /** All routes of the node, page by page, ordered by key: a core that becomes its home starts from them. */
  routes(after: string): Promise<NodeRoutes>;
  /** The client ids that the node holds and that `owner` has come to own, page by page, ordered. */
  holdings(move: RegistryMove, after: string): Promise<Holdings>;
  /** Numbers for $SYS, by their names there. */
  stats(): Promise<NodeStats>;
}

export interface NodeRoutes {
  /** Of the node's last route change: later ones come in batches. */
  readonly version: number;
  readonly routes: readonly { readonly key: string; readonly members: number }[];
  /** The last key of the page; undefined: there are no more. */
  readonly next: string | undefined;
}

/** The cores among which the client ids are divided have changed. */
export interface RegistryMove {
  readonly owner: NodeName;
  /** The cores before and after; what the owner has owned before is not asked for. */
  readonly before: readonly NodeName[];
  readonly after: readonly NodeName[];
}

export interface Holdings {
  readonly sessions: readonly HeldSession[];
  readonly next: string | undefined;
}

export interface HeldSession {
  readonly clientId: string;
  /** Of its last opening. */
  readonly epoch: number;
  /** Its connection is on the way: others may still hold a part of it. */
  readonly isOpening: boolean;
}

export type TakenOver =
  | { readonly kind: "none" }
  /** A claim of this node's own is newer: the taker has lost the client id. */
  | { readonly kind: "superseded" }
  | { readonly kind: "session"; readonly session: MovedSession };

export interface MovedSession {
  readonly version: number;
  /** Of its last opening. */
  readonly epoch: number;
  /** Seconds. */
  readonly expiryInterval: number;
  readonly username: string | undefined;
  readonly subscriptions: Subscription[];
  readonly checkpoint: Checkpoint;
}

/** One message of a session that moves. */
export interface StoredDelivery {
  readonly seq: number;
  readonly delivery: Uint8Array;
}

export interface NodeStats {
  readonly startedAt: number;
  readonly stats: { readonly [name: string]: number };
  readonly metrics: { readonly [name: string]: number };
}

// ---- node -> core -----------------------------------------------------------------------------------------------------

const kinds = { fence: 0, publish: 1, addRoute: 2, removeRoute: 3, opened: 4, release: 5 } as const;

export type NodeRecord =
  /** Answered when all before it has been handled. */
  | { readonly kind: "fence" }
  | {
      readonly kind: "publish";
      readonly message: Message;
      /** The message's record as received, to be passed on as it is. */
      readonly bytes: Uint8Array;
      readonly delaySeconds: number;
      /** Only to this `$share/group/filter`: a message that its first member did not acknowledge. */
      readonly only: string;
    }
  /**
   * `key` is a topic filter or `$share/group/filter`; `members` the connected members of a group. A node's changes of a
   * route have rising versions: a batch that comes again must not undo what came behind it.
   */
  | { readonly kind: "addRoute"; readonly key: string; readonly members: number; readonly version: number }
  | { readonly kind: "removeRoute"; readonly key: string; readonly version: number }
  /** The claimer has the session: no other node holds any of it. */
  | { readonly kind: "opened"; readonly clientId: string; readonly epoch: number }
  | { readonly kind: "release"; readonly clientId: string; readonly epoch: number }
  | Unreadable;

/** A record that cannot be read: it is answered with an error, the others of its batch are not concerned. */
interface Unreadable {
  readonly kind: "unreadable";
  readonly error: unknown;
}

export function fenceRecord(): Uint8Array {
  return endRecord(beginRecord(new ByteWriter(), kinds.fence));
}

/** @returns a view, until the writer is used again */
export function publishRecord(
  writer: ByteWriter,
  { message, delaySeconds, only }: { message: Message; delaySeconds: number; only: string },
): Uint8Array {
  beginRecord(writer, kinds.publish).u32(delaySeconds).string(only);
  writeMessage(writer, message);
  return endRecord(writer);
}

export function addRouteRecord(key: string, members: number, version: number): Uint8Array {
  return endRecord(beginRecord(new ByteWriter(), kinds.addRoute).string(key).u32(members).u48(version));
}

export function removeRouteRecord(key: string, version: number): Uint8Array {
  return endRecord(beginRecord(new ByteWriter(), kinds.removeRoute).string(key).u48(version));
}

export function openedRecord(clientId: string, epoch: number): Uint8Array {
  return endRecord(beginRecord(new ByteWriter(), kinds.opened).string(clientId).u48(epoch));
}

export function releaseRecord(clientId: string, epoch: number): Uint8Array {
  return endRecord(beginRecord(new ByteWriter(), kinds.release).string(clientId).u48(epoch));
}

export function* readNodeRecords(batch: Uint8Array): Generator<NodeRecord> {
  for (const { kind, body } of readRecords(batch)) yield orUnreadable(readNodeRecord, kind, body);
}

function readNodeRecord(kind: number, reader: ByteReader): NodeRecord {
  switch (kind) {
    case kinds.fence:
      return { kind: "fence" };
    case kinds.publish: {
      const delaySeconds = reader.u32();
      const only = reader.string();
      const bytes = reader.rest();
      return { kind: "publish", delaySeconds, only, bytes, message: readMessage(reader) };
    }
    case kinds.addRoute:
      return { kind: "addRoute", key: reader.string(), members: reader.u32(), version: reader.u48() };
    case kinds.removeRoute:
      return { kind: "removeRoute", key: reader.string(), version: reader.u48() };
    case kinds.opened:
      return { kind: "opened", clientId: reader.string(), epoch: reader.u48() };
    case kinds.release:
      return { kind: "release", clientId: reader.string(), epoch: reader.u48() };
    default:
      throw unknownKind(kind);
  }
}

function orUnreadable<T>(read: (kind: number, body: ByteReader) => T, kind: number, body: ByteReader): T | Unreadable {
  try {
    return read(kind, body);
  } catch (error) {
    return { kind: "unreadable", error };
  }
}

function unknownKind(kind: number): Error {
  return new Error(`a batch holds a record of unknown kind ${kind}`);
}

// ---- core -> node -----------------------------------------------------------------------------------------------------

/** A route that a message matched: the node looks its subscribers up by it and matches nothing again. */
export interface Matched {
  /** A topic filter, or `$share/group/filter`. */
  readonly key: string;
  /** For a group, which of its members on the node; 0 otherwise. */
  readonly ordinal: number;
}

/** A message on its way to a node, and the routes that it matched. */
export interface Forward {
  readonly matched: readonly Matched[];
  readonly message: Message;
  /** Its record. */
  readonly bytes: Uint8Array;
}

export type Forwarded =
  | { readonly kind: "fence" }
  | ({ readonly kind: "forward" } & Forward)
  /** The claim with this epoch went on without the node: what it has of the client id from before ends. */
  | { readonly kind: "ended"; readonly clientId: string; readonly epoch: number }
  | Unreadable;

const forwardKinds = { fence: 0, forward: 1, ended: 2 } as const;

/** Says nothing; answered when all before it has been dispatched. */
export function forwardFenceRecord(): Uint8Array {
  return endRecord(beginRecord(new ByteWriter(), forwardKinds.fence));
}

/** What `forwardRecord` says of the routes that matched: the same for all messages of a topic. */
export function matchedBytes(matched: readonly Matched[]): Uint8Array {
  const writer = new ByteWriter().u32(matched.length);
  for (const { key, ordinal } of matched) writer.string(key).u32(ordinal);
  return writer.take();
}

/**
 * @param matched of `matchedBytes`
 * @param bytes the message's record
 * @returns a view, until the writer is used again
 */
export function forwardRecord(writer: ByteWriter, matched: Uint8Array, bytes: Uint8Array): Uint8Array {
  return endRecord(beginRecord(writer, forwardKinds.forward).raw(matched).raw(bytes));
}

export function endedRecord(clientId: string, epoch: number): Uint8Array {
  return endRecord(beginRecord(new ByteWriter(), forwardKinds.ended).string(clientId).u48(epoch));
}

export function* readForwarded(batch: Uint8Array): Generator<Forwarded> {
  for (const { kind, body } of readRecords(batch)) yield orUnreadable(readOneForwarded, kind, body);
}

function readOneForwarded(kind: number, reader: ByteReader): Forwarded {
  switch (kind) {
    case forwardKinds.fence:
      return { kind: "fence" };
    case forwardKinds.forward:
      return readForward(reader);
    case forwardKinds.ended:
      return { kind: "ended", clientId: reader.string(), epoch: reader.u48() };
    default:
      throw unknownKind(kind);
  }
}

function readForward(reader: ByteReader): Forwarded {
  const matched: Matched[] = [];
  for (let count = reader.u32(); count > 0; count--) matched.push({ key: reader.string(), ordinal: reader.u32() });
  return { kind: "forward", matched, bytes: reader.rest(), message: readMessage(reader) };
}

// ---- core <-> core ----------------------------------------------------------------------------------------------------

/** What a core offers to the other cores and to replicants. `from` is the caller. */
export interface PeerRpc {
  /** Two cores of a cluster tell each other what they have; undefined: `from` is no member. */
  hello(from: NodeName, hello: Hello): Promise<Hello | undefined>;
  /** Takes a batch of peer records, in order. @returns one reason code a record, when it has been applied. */
  relay(from: NodeName, batch: Uint8Array): Promise<Uint8Array>;
  /** What the writer has changed since that version, or all of it: a page, ordered by key. */
  changes(writer: NodeName, since: number, after: string): Promise<ChangesPage>;
  /** Whether `from` and its deployment may be of this cluster. */
  mayJoin(from: NodeName, members: readonly Member[]): Promise<AdminAnswer>;
  /** They want to be. */
  acceptJoin(from: NodeName, members: readonly Member[]): Promise<AdminAnswer>;
  /** Of the core's cluster, to find out who joins whom; undefined: the core is not to be found. */
  size(): Promise<ClusterSize | undefined>;
  /** An operator wants the core to join the cluster of `from`. */
  invited(from: NodeName): Promise<AdminAnswer>;
  /** The core is no member any more: it goes on alone. */
  dismissed(): Promise<void>;
  /** A core has seen that a partition is over; told to the leader. */
  reportPartition(from: NodeName, peer: NodeName): Promise<void>;
  /** Whom the core sees, as far as no partition is still to be healed. */
  view(): Promise<readonly NodeName[]>;
  /** The coordinator of a healing has these restart, one by one. */
  heal(minority: readonly NodeName[]): Promise<void>;
  /** The core takes over anew what the cluster knows. */
  restart(): Promise<void>;
  /** undefined: this core does not own the client id. */
  claimHere(clientId: string, node: NodeName): Promise<Claim | undefined>;
  abandonHere(clientId: string, epoch: number, holder: NodeName): Promise<boolean | undefined>;
  openedHere(clientId: string, epoch: number, node: NodeName): Promise<void>;
  releaseHere(clientId: string, epoch: number): Promise<void>;
  /** The nodes that may have a session of the client; undefined: this core does not own the client id. */
  holdersHere(clientId: string): Promise<readonly NodeName[] | undefined>;
  /** The claims that have come to be another core's, page by page, ordered by client id. */
  claimsFor(move: RegistryMove, after: string): Promise<ClaimsPage>;
  /** Claims of client ids that this core owns, from one that has made them and does not. */
  giveClaims(claims: ClaimsPage["claims"]): Promise<void>;
  settledHere(node: NodeName): Promise<boolean>;
  /** Whether the core reaches the node, now. */
  reachesHere(node: NodeName): Promise<boolean>;
  /** A call to a node of the core's own deployment. */
  callOwnNode(node: NodeName, method: keyof NodeRpc, args: readonly unknown[]): Promise<unknown>;
}

/** What discovery goes by to find out who joins whom. */
export interface ClusterSize {
  /** Cores. */
  readonly size: number;
  /** The oldest core, in texts that sort by age. */
  readonly oldest: string;
}

export interface Hello {
  /** `rpcVersion` */
  readonly version: number;
  readonly cluster: string;
  readonly members: readonly Member[];
  /** Up to which version the core has what each writer has written. */
  readonly vector: Readonly<Record<NodeName, number>>;
  /** The sender had taken the receiver for down since they last spoke, or since the last healing. */
  readonly sawDown: boolean;
  /** The cores among which the sender divides the client ids. */
  readonly registryCores: readonly NodeName[];
  /** The cores that the sender sees running, as far as no partition is still to be healed. */
  readonly view: readonly NodeName[];
  /** How the sender has come to what it has, since it woke. */
  readonly bootstrap: { readonly timeMs: number; readonly keys: number };
}

export interface ChangesPage {
  /** What the page brings the reader to, when it is the last. */
  readonly version: number;
  /** It is all that there is, not what has changed: what is not in it is gone. */
  readonly isWhole: boolean;
  /** Change entries, one behind the other. */
  readonly entries: Uint8Array;
  readonly next: string | undefined;
}

export interface ClaimsPage {
  readonly claims: readonly {
    readonly clientId: string;
    readonly epoch: number;
    readonly holders: readonly Holder[];
  }[];
  readonly next: string | undefined;
}

const peerKinds = { fence: 0, changes: 1, member: 2 } as const;

export type PeerRecord =
  /** Answered when all before it has been applied. */
  | { readonly kind: "fence" }
  | ({ readonly kind: "changes" } & Changes)
  | { readonly kind: "member"; readonly member: Member }
  | Unreadable;

/** What one writer has changed: a node its routes, a core the retained messages that it took in. */
export interface Changes {
  readonly writer: NodeName;
  /** Versions of the writer: of the change before this one, and of this one. */
  readonly before: number;
  readonly version: number;
  /** Change entries, one behind the other. */
  readonly entries: Uint8Array;
}

/** One of a node's routes: `members` undefined when it is gone. */
export interface RouteEntry {
  readonly key: string;
  readonly members: number | undefined;
  readonly version: number;
}

/** What is retained on one topic; no message: it was cleared. */
export interface RetainedEntry {
  readonly topic: string;
  readonly version: number;
  /** The message's record. */
  readonly bytes: Uint8Array;
}

export function changesRecord({ writer, before, version, entries }: Changes): Uint8Array {
  return endRecord(
    beginRecord(new ByteWriter(), peerKinds.changes).string(writer).u48(before).u48(version).raw(entries),
  );
}

export function memberRecord(member: Member): Uint8Array {
  return endRecord(beginRecord(new ByteWriter(), peerKinds.member).string(JSON.stringify(member)));
}

export function* readPeerRecords(batch: Uint8Array): Generator<PeerRecord> {
  for (const { kind, body } of readRecords(batch)) yield orUnreadable(readPeerRecord, kind, body);
}

function readPeerRecord(kind: number, reader: ByteReader): PeerRecord {
  switch (kind) {
    case peerKinds.fence:
      return { kind: "fence" };
    case peerKinds.changes:
      return {
        kind: "changes",
        writer: reader.string(),
        before: reader.u48(),
        version: reader.u48(),
        entries: reader.rest(),
      };
    case peerKinds.member:
      return { kind: "member", member: JSON.parse(reader.string()) as Member };
    default:
      throw unknownKind(kind);
  }
}

/** `members` plus one, 0 for a route that is gone. */
export function writeRouteEntry(writer: ByteWriter, { key, members, version }: RouteEntry): void {
  writer
    .string(key)
    .u32(members === undefined ? 0 : members + 1)
    .u48(version);
}

export function* readRouteEntries(entries: Uint8Array): Generator<RouteEntry> {
  for (const reader = new ByteReader(entries); !reader.done;) {
    const key = reader.string();
    const members = reader.u32();
    yield { key, members: members === 0 ? undefined : members - 1, version: reader.u48() };
  }
}

export function writeRetainedEntry(writer: ByteWriter, { topic, version, bytes }: RetainedEntry): void {
  writer.string(topic).u48(version).blob(bytes);
}

export function* readRetainedEntries(entries: Uint8Array): Generator<RetainedEntry> {
  for (const reader = new ByteReader(entries); !reader.done;)
    yield { topic: reader.string(), version: reader.u48(), bytes: reader.blob() };
}

// ---- records ----------------------------------------------------------------------------------------------------------

const recordHeaderBytes = 5;

/** One batch of records, in order. */
export function joinRecords(records: readonly Uint8Array[], bytes: number): Uint8Array {
  return concatenate([Uint8Array.of(rpcVersion), ...records], 1 + bytes);
}

/** The records of a batch, without its version. */
export function splitRecords(records: Uint8Array): Uint8Array[] {
  const split: Uint8Array[] = [];
  for (const reader = new ByteReader(records); !reader.done;) {
    const start = reader.offset;
    reader.u8();
    reader.blob();
    split.push(records.subarray(start, reader.offset));
  }
  return split;
}

/** For a writer that has nothing in it: its body follows, and `endRecord` says how long it was. */
function beginRecord(writer: ByteWriter, kind: number): ByteWriter {
  return writer.u8(kind).u32(0);
}

function endRecord(writer: ByteWriter): Uint8Array {
  writer.u32At(1, writer.length - recordHeaderBytes);
  return writer.view();
}

function* readRecords(batch: Uint8Array): Generator<{ kind: number; body: ByteReader }> {
  const reader = new ByteReader(batch);
  const version = reader.u8();
  if (version !== rpcVersion) throw new Error(`a batch of version ${version} came, ${rpcVersion} is spoken here`);
  while (!reader.done) {
    const kind = reader.u8();
    yield { kind, body: reader.window(reader.u32()) };
  }
}

// ---- administration ---------------------------------------------------------------------------------------------------
//
// Worker -> core -> nodes, for operators. What they are shown has the names and shapes of EMQX's API (its
// emqx_mgmt_api_* modules), so that the worker passes it on as it is. What is not known is left out.

/** What a core does for operators with its cluster. */
export interface ClusterAdmin {
  clusterView(): Promise<ClusterView>;
  /** This core joins the cluster of another one. */
  join(core: NodeName): Promise<AdminAnswer>;
  /** Another core joins the cluster of this one. */
  invite(core: NodeName): Promise<AdminAnswer>;
  leave(): Promise<AdminAnswer>;
  forceLeave(node: NodeName): Promise<AdminAnswer>;
  enableDiscovery(): Promise<AdminAnswer>;
}

/** `code` is EMQX's: already_in_cluster, cannot_join_to_replicant, node_down, node_not_in_cluster, ignore (it is itself). */
export type AdminAnswer =
  | { readonly ok: true }
  | { readonly ok: false; readonly code: string; readonly message: string };

export interface ClusterView {
  readonly name: string;
  readonly self: NodeName;
  readonly nodes: readonly MemberView[];
}

export interface MemberView {
  readonly name: NodeName;
  readonly role: "core" | "replicant";
  readonly status: "running" | "stopped";
  /** ms since the epoch. */
  readonly joinedAt: number;
  /** The core of a replicant. */
  readonly home: NodeName | undefined;
  readonly replication?: Replicated;
}

/** How a replica has come to be, and how far behind it is: as EMQX's mria says it. */
export interface Replicated {
  /** Changes that it has not confirmed. */
  readonly lag: number;
  readonly bootstrapTimeMs: number;
  readonly bootstrapKeys: number;
}

/** What a core lists for operators, asking the nodes. */
export interface CoreAdminRpc extends ClusterAdmin {
  /** Ordered by topic and node. */
  topics(query: TopicQuery, slice: Slice): Promise<Page<RouteInfo>>;
  /** All nodes, or one. */
  nodes(only: NodeName | undefined): Promise<NodeInfo[]>;
  /** The counters of this core and of all nodes that answer. */
  metrics(): Promise<NodeMetrics[]>;
  /** Node by node, on each ordered by client id. */
  clients(node: NodeName | undefined, slice: Slice): Promise<Page<ClientInfo>>;
  client(clientId: string): Promise<Found<ClientInfo>>;
  /** Ends the client's connection (0x98) and its session. */
  kick(clientId: string): Promise<Found<true>>;
  /** Node by node, on each ordered by topic. */
  subscriptions(query: SubscriptionQuery, slice: Slice): Promise<Page<SubscriptionInfo>>;
}

/** What a node lists for operators of its own. */
export interface NodeAdminRpc {
  clients(slice: Slice): Promise<Listed<ClientInfo>>;
  client(clientId: string): Promise<ClientInfo | undefined>;
  /** @returns whether it was here. */
  kick(clientId: string): Promise<boolean>;
  subscriptions(query: SubscriptionQuery, slice: Slice): Promise<Listed<SubscriptionInfo>>;
}

export interface NodeMetrics {
  readonly node: NodeName;
  readonly [metric: string]: number | NodeName;
}

export interface Slice {
  readonly offset: number;
  /** 0: only the count is wanted. */
  readonly limit: number;
}

export interface Listed<T> {
  /** Of all, not only of those in the slice. */
  readonly count: number;
  readonly items: readonly T[];
}

export interface Page<T> extends Listed<T> {
  /** It ends early, at `limits.adminPageCharsMax`. */
  readonly isCut: boolean;
  /** Nodes that did not answer: what they have is missing. */
  readonly silent: readonly NodeName[];
}

export interface Found<T> {
  readonly found: T | undefined;
  readonly silent: readonly NodeName[];
}

export interface TopicQuery {
  /** A filter: its route and those of its share groups; or `$share/group/filter`. */
  readonly topic?: string | undefined;
  readonly node?: NodeName | undefined;
}

/** `topic` is a filter, or `$share/group/filter`. */
export interface RouteInfo {
  readonly topic: string;
  readonly node: NodeName;
}

export interface NodeInfo {
  readonly node: NodeName;
  readonly role: "core" | "replicant";
  readonly node_status: "running" | "stopped";
  /** Milliseconds. */
  readonly uptime?: number | undefined;
  readonly connections?: number | undefined;
  readonly live_connections?: number | undefined;
}

/** A session, connected or not. */
export interface ClientInfo {
  readonly node: NodeName;
  readonly clientid: string;
  readonly username: string | null;
  readonly connected: boolean;
  /** Of the connection. */
  readonly proto_name?: string | undefined;
  readonly proto_ver?: number | undefined;
  readonly ip_address?: string | undefined;
  readonly port?: number | undefined;
  /** Seconds. */
  readonly keepalive?: number | undefined;
  readonly clean_start?: boolean | undefined;
  /** RFC 3339. */
  readonly connected_at?: string | undefined;
  /** Seconds. */
  readonly expiry_interval: number;
  readonly subscriptions_cnt: number;
  readonly inflight_cnt: number;
  /** QoS 2 messages that the client has not released. */
  readonly awaiting_rel_cnt: number;
  /** Not counted in a list for a session that is not in memory. */
  readonly mqueue_len?: number | undefined;
}

export interface SubscriptionQuery {
  readonly node?: NodeName | undefined;
  readonly clientid?: string | undefined;
  /** As the client subscribed. */
  readonly topic?: string | undefined;
  readonly qos?: number | undefined;
}

export interface SubscriptionInfo {
  readonly node: NodeName;
  readonly clientid: string;
  readonly topic: string;
  readonly qos: number;
  /** No local, retain as published (0 or 1), retain handling. */
  readonly nl: number;
  readonly rap: number;
  readonly rh: number;
}
