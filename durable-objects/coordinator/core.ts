/**
 * What a core does: it knows the routes of all nodes, and passes every message on to the nodes that have subscribers.
 *
 *   route    a batch of a node whose home it is (homes.ts) is taken record by record, in order, before anything is awaited
 *            (G2): a route change goes to the table, to disk and to the other cores (replication.ts), a message is matched
 *            once, whichever node of the cluster its subscribers are on
 *   forward  each node with a match gets the message, with the filters that matched (forwarder.ts)
 *
 * The answer to a node waits for its QoS 1 and 2 messages to be with the nodes of their subscribers, or parked on this
 * core's disk for those that cannot be reached; for its route changes to be on every core in reach; and for nothing else.
 * The table is in memory and rebuilt from disk when the object wakes. What cores are to one another is in mesh.ts.
 */
import type { Settings } from "../../cluster/config.ts";
import type { NodeName } from "../../cluster/name.ts";
import { RouteTable } from "../../cluster/routes.ts";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { isExpired, readMessage, writeMessage, type Message } from "../../mqtt/message.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";
import { parseShared } from "../../mqtt/topic.ts";
import { countedSql } from "../counted-sql.ts";
import type { Metrics } from "../metrics.ts";
import {
  readNodeRecords,
  type Connection,
  type NodeRecord,
  type NodeRpc,
  type PeerRpc,
  type RetainedPage,
} from "../rpc.ts";
import type { Database } from "../schema.ts";
import { CoreStore } from "./core-store.ts";
import { Answer, Forwarder, type ForwardedMessage, type Routed } from "./forwarder.ts";
import { Mesh } from "./mesh.ts";
import { ParkedStore } from "./parked-store.ts";
import { sweepOf } from "./retained-store.ts";
import type { RouteChange } from "./route-store.ts";
import { SysTopics } from "./sys-topics.ts";
import { TopicMatches } from "./topic-matches.ts";

/** What the Durable Object gives. */
export interface CoreHost {
  readonly metrics: Metrics;
  readonly storage: Database;
  /** A node of this deployment. */
  readonly nodeAt: (name: NodeName) => NodeRpc;
  /** Another coordinator: a fresh stub. */
  readonly peerAt: (name: NodeName, domain: string) => PeerRpc;
  /** Ends the link to a coordinator. */
  readonly unlink: (name: NodeName) => void;
  /** Makes sure that the alarm rings at this time or before. */
  readonly ringAt: (at: number) => void;
}

type PublishRecord = Extract<NodeRecord, { kind: "publish" }>;

export class Core {
  readonly name: NodeName;
  readonly settings: Settings;
  readonly store: CoreStore;
  readonly routes = new RouteTable(crypto.getRandomValues(new Uint32Array(1))[0]!);
  readonly metrics: Metrics;
  readonly host: CoreHost;
  readonly startedAt = Date.now();
  readonly forwarder: Forwarder;
  readonly mesh: Mesh;
  readonly #matches = new TopicMatches(this.routes);
  readonly #writer = new ByteWriter();
  readonly #sys: SysTopics;

  constructor(name: NodeName, settings: Settings, host: CoreHost) {
    this.name = name;
    this.settings = settings;
    this.host = host;
    this.metrics = host.metrics;
    const { storage, ringAt } = host;
    const sql = countedSql(storage.sql, (rows) => (this.metrics["rows.written"] += rows));
    this.store = new CoreStore({ sql, transactionSync: (run) => storage.transactionSync(run) });
    for (const { node, key, members } of this.store.routes.all()) this.#setRoute(node, key, members);
    this.#sys = new SysTopics(this);
    this.forwarder = new Forwarder({
      parked: new ParkedStore(sql),
      down: this.store.downNodes(),
      metrics: this.metrics,
      strategy: settings.mqtt.shared_subscription_strategy,
      nodeAt: (node) => this.mesh.nodeAt(node),
      ringAt,
      passOn: (message) => this.#passOn(message),
      handleReach: (node, isReached) => this.mesh.handleReach(node, isReached),
      retryLastMs: (node) => (this.mesh.members.has(node) ? limits.drainRetryLastMs : limits.probeCleanedMs),
    });
    this.mesh = new Mesh({
      self: name,
      settings,
      store: this.store,
      forwarder: this.forwarder,
      ...host,
      setRoute: (node, key, members) => this.#setRoute(node, key, members),
      dropNode: (node) => this.routes.dropNode(node),
      handleRetained: ({ expiresAt }) => this.#sweepAt(expiresAt),
      tell: (event, facts) => this.#tell(event, facts),
    });
    for (const due of [this.store.nextDelayed(), this.store.retained.nextSweep()]) if (due !== undefined) ringAt(due);
    this.mesh.start();
  }

  /** Logged, and published under `$SYS`. */
  #tell(event: string, facts: Readonly<Record<string, unknown>>): void {
    const line = JSON.stringify({ event, core: this.name, cluster: this.settings.cluster.name, ...facts });
    console.log(line);
    if (this.routes.hasFilterUnder("$SYS/")) this.#sys.publishEvent(event, line);
  }

  // ---- route ------------------------------------------------------------------------------------------------------

  /** @returns one reason code a record. */
  route(node: NodeName, connection: Connection, records: Uint8Array): Promise<Uint8Array> {
    const { term } = connection;
    const coming = this.mesh.homes.whenConnected(node, connection);
    if (coming) return coming.then(() => this.route(node, connection, records));
    this.forwarder.handleCall(node, Date.now());
    const answer = new Answer();
    const version = this.mesh.isReplicated ? this.mesh.replication.nextVersion(node, term) : 0;
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
    if (batch.changes.length > 0 && version > 0) this.mesh.replication.publishRoutes(node, version, batch.changes);
    if (batch.isToBeRelayed) this.#awaitRelays(answer);
    return answer.whenComplete();
  }

  /** Of this batch and of those before it (G3). */
  #awaitRelays(answer: Answer): void {
    const relayed = this.mesh.replication.whenRelayed();
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
        return this.mesh.opened(record.clientId, record.epoch, node);
      case "release":
        return this.mesh.release(record.clientId, record.epoch);
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
    if (sent < this.store.routes.sentOf(node, key) || this.mesh.homes.isTakenIn(node, sent)) return;
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
    this.metrics["messages.publish"]++;
    if (message.retain && only === "" && !this.#retain(node, message, bytes)) {
      this.metrics["messages.dropped.quota"]++;
      if (message.qos > 0) {
        answer.codes[index] = ReasonCode.QuotaExceeded;
        return;
      }
      // Nobody will send a QoS 0 message again: those who are subscribed get it all the same.
    }
    const routed: Routed = { node, message, bytes, answer, index };
    let { targets, groups } = this.#matches.of(message.topic);
    if (only !== "") [targets, groups] = [[], groups.filter(({ key }) => key === only)];
    if (targets.length === 0 && groups.length === 0) {
      this.metrics["messages.dropped.no_subscribers"]++;
      answer.codes[index] = ReasonCode.NoMatchingSubscribers;
    }
    for (const target of targets) this.forwarder.forward(target, routed);
    for (const group of groups) this.forwarder.forwardToGroup(group, routed);
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
  async #passOn({ message, bytes, matched }: ForwardedMessage): Promise<boolean> {
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

  // ---- retained ---------------------------------------------------------------------------------------------------

  /** @returns whether the disk has taken it, or has a later one. */
  #retain(node: NodeName, message: Message, bytes: Uint8Array): boolean {
    const { retained } = this.store;
    try {
      // A delayed message is the core's own by now, and counts from now on, whatever its id says.
      if (node !== this.name && retained.isOutdated(message)) return true;
      const { isReplicated, replication } = this.mesh;
      const stamp = isReplicated ? replication.nextStamp(Date.now()) : undefined;
      if (!retained.put(message, bytes, stamp)) return false;
      if (stamp) replication.publishRetained(message.topic, stamp.version, bytes);
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
      this.metrics["messages.dropped.quota"]++;
      return ReasonCode.QuotaExceeded;
    }
    const dueAt = Date.now() + delaySeconds * 1000;
    this.store.delay(bytes, dueAt);
    this.metrics["messages.delayed"]++;
    this.host.ringAt(dueAt);
    return ReasonCode.Success;
  }

  async handleAlarm(now: number): Promise<void> {
    this.#sweepRetained(now);
    this.forwarder.handleAlarm(now);
    this.mesh.handleAlarm(now);
    await this.mesh.whenReady();
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
