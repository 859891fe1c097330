/**
 * What a core does: it knows the routes of all nodes, and passes every message on to the nodes that have subscribers.
 *
 *   route    a batch of a node is taken record by record, in order, before anything is awaited (G2):
 *            a route change goes to the table and to disk, a message is matched once
 *   forward  each node with a match gets the message, with the filters that matched (forwarder.ts)
 *
 * The answer to a node waits for its QoS 1 and 2 messages to be with the nodes of their subscribers, or parked on this
 * core's disk for those that cannot be reached, and for nothing else. The table is in memory and rebuilt from disk when
 * the object wakes.
 */
import type { Settings } from "../../cluster/config.ts";
import type { NodeName } from "../../cluster/name.ts";
import { RouteTable } from "../../cluster/routes.ts";
import type { ShareGroup } from "../../cluster/shared-sub.ts";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { isExpired, readMessage, writeMessage, type Message } from "../../mqtt/message.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";
import { parseShared, sharedFilter } from "../../mqtt/topic.ts";
import { Metrics } from "../metrics.ts";
import { readNodeRecords, type Claim, type Matched, type NodeRecord, type NodeRpc, type RetainedPage } from "../rpc.ts";
import type { Database } from "../schema.ts";
import { CoreStore } from "./core-store.ts";
import { Answer, Forwarder, type ForwardedMessage, type Routed } from "./forwarder.ts";
import { ParkedStore } from "./parked-store.ts";
import { Registry } from "./registry.ts";
import { sweepOf } from "./retained-store.ts";
import { SysTopics } from "./sys-topics.ts";

/** What the Durable Object gives. */
export interface CoreHost {
  readonly storage: Database;
  readonly nodeAt: (name: NodeName) => NodeRpc;
  /** Makes sure that the alarm rings at this time or before. */
  readonly ringAt: (at: number) => void;
}

type PublishRecord = Extract<NodeRecord, { kind: "publish" }>;

export class Core {
  readonly name: NodeName;
  readonly settings: Settings;
  readonly store: CoreStore;
  readonly routes = new RouteTable();
  readonly metrics = new Metrics();
  readonly host: CoreHost;
  readonly startedAt = Date.now();
  readonly #members: Set<NodeName>;
  readonly forwarder: Forwarder;
  readonly registry: Registry;
  readonly #writer = new ByteWriter();
  readonly #sys: SysTopics;

  constructor(name: NodeName, settings: Settings, host: CoreHost) {
    this.name = name;
    this.settings = settings;
    this.host = host;
    this.store = new CoreStore(host.storage);
    this.#members = new Set(this.store.members());
    for (const { node, key, members } of this.store.routes()) this.#addRoute(node, key, members);
    this.forwarder = new Forwarder({
      parked: new ParkedStore(host.storage.sql),
      metrics: this.metrics,
      strategy: settings.mqtt.shared_subscription_strategy,
      nodeAt: host.nodeAt,
      ringAt: host.ringAt,
      passOn: (message) => this.#passOn(message),
    });
    this.registry = new Registry(this.store, (node) => this.forwarder.linkTo(node));
    this.#sys = new SysTopics(this);
    for (const due of [this.store.nextDelayed(), this.store.retained.nextSweep()])
      if (due !== undefined) host.ringAt(due);
  }

  /** The nodes of the cluster, in the order in which they joined. */
  get members(): ReadonlySet<NodeName> {
    return this.#members;
  }

  /** A node joins with the first thing it says. */
  #join(node: NodeName): void {
    if (this.#members.has(node)) return;
    this.#members.add(node);
    this.store.addMember(node, Date.now());
    console.log(JSON.stringify({ event: "node_joined", node, cluster: this.settings.cluster.name }));
  }

  // ---- route ------------------------------------------------------------------------------------------------------

  route(node: NodeName, batch: Uint8Array): Promise<Uint8Array> {
    this.#join(node);
    this.forwarder.handleCall(node, Date.now());
    const answer = new Answer();
    for (const record of readNodeRecords(batch)) {
      const index = answer.add();
      try {
        this.#handle(node, record, answer, index);
      } catch (error) {
        console.error(`a record of ${node} failed: ${String(error)}`);
        answer.codes[index] = ReasonCode.ImplementationSpecificError;
      }
    }
    return answer.whenComplete();
  }

  #handle(node: NodeName, record: NodeRecord, answer: Answer, index: number): void {
    switch (record.kind) {
      case "fence":
        return;
      case "addRoute":
        if (record.version < this.store.routeVersion(node, record.key)) return;
        this.#addRoute(node, record.key, record.members);
        this.store.putRoute(node, record.key, record.members, record.version);
        if (parseShared(record.key).filter.startsWith("$SYS/")) this.#sys.publishSoon();
        return;
      case "removeRoute":
        if (record.version < this.store.routeVersion(node, record.key)) return;
        this.#removeRoute(node, record.key);
        this.store.deleteRoute(node, record.key);
        return;
      case "opened":
        return this.registry.opened(record.clientId, record.epoch);
      case "release":
        return this.registry.release(record.clientId, record.epoch);
      case "publish":
        return this.#publish(node, record, answer, index);
      case "unreadable":
        throw record.error;
    }
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

  #addRoute(node: NodeName, key: string, members: number): void {
    const { group, filter } = parseShared(key);
    if (group === undefined) this.routes.add(node, filter);
    else this.routes.setShared(node, group, filter, members);
  }

  #removeRoute(node: NodeName, key: string): void {
    const { group, filter } = parseShared(key);
    if (group === undefined) this.routes.remove(node, filter);
    else this.routes.removeShared(node, group, filter);
  }

  // ---- registry ---------------------------------------------------------------------------------------------------

  claim(clientId: string, node: NodeName): Claim {
    this.#join(node);
    return this.registry.claim(clientId, node, Date.now());
  }

  // ---- retained ---------------------------------------------------------------------------------------------------

  /** @returns whether the disk has taken it, or has a later one. */
  #retain(node: NodeName, message: Message, bytes: Uint8Array): boolean {
    const { retained } = this.store;
    try {
      // A delayed message is the core's own by now, and counts from now on, whatever its id says.
      if (node !== this.name && retained.isOutdated(message)) return true;
      if (!retained.put(message, bytes)) return false;
    } catch (error) {
      console.error(`a message could not be retained: ${String(error)}`);
      return false;
    }
    if (message.expiresAt > 0) this.host.ringAt(sweepOf(message.expiresAt));
    return true;
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

function addTo<K, V>(lists: Map<K, V[]>, key: K, value: V): void {
  const list = lists.get(key);
  if (list) list.push(value);
  else lists.set(key, [value]);
}
