/**
 * How a routed message comes to the nodes: to each that has a match, and to one of those that have members of a group.
 *
 * A share group's message is picked for a node in reach; when the node turns out to have no member any more, or to be out
 * of reach, it is picked again, for another node if there is one. If there is none the group's routes are on their way: it
 * waits for them. Only where no node of the group is in reach is it parked.
 */
import type { NodeName } from "../../cluster/name.ts";
import type { SharedStrategy } from "../../cluster/shared-sub.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits, retryDelayMs } from "../../mqtt/limits.ts";
import type { Message } from "../../mqtt/message.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";
import type { Metrics } from "../metrics.ts";
import { forwardRecord, joinRecords, matchedBytes, readForwarded, type Forwarded, type NodeRpc } from "../rpc.ts";
import { NodeLink } from "./node-link.ts";
import type { ParkedStore, ParkedTotal } from "./parked-store.ts";
import type { MatchedGroup, Target } from "./topic-matches.ts";

/** What the core gives. */
export interface ForwarderHost {
  readonly parked: ParkedStore;
  /** Nodes that could not be reached when the core fell asleep, and since when, in ms since the epoch. */
  readonly down: Iterable<{ readonly node: NodeName; readonly since: number }>;
  readonly metrics: Metrics;
  readonly strategy: SharedStrategy;
  readonly nodeAt: (name: NodeName) => NodeRpc;
  /** Makes sure that `handleAlarm` is called at this time or before. */
  readonly ringAt: (at: number) => void;
  /** A share group's message was parked for a node that has no member any more. @returns whether somebody has it. */
  readonly passOn: (message: ForwardedMessage) => Promise<boolean>;
  /** A node is in reach again, or is not any more. */
  readonly handleReach: (node: NodeName, isReached: boolean) => void;
  /** The longest pause between two tries to reach the node, in ms. */
  readonly retryLastMs: (node: NodeName) => number;
}

export type ForwardedMessage = Extract<Forwarded, { kind: "forward" }>;

/** A message on its way to the nodes, and where its answer goes. */
export interface Routed {
  /** The publisher's. */
  readonly node: NodeName;
  readonly message: Message;
  /** Its record. */
  readonly bytes: Uint8Array;
  readonly answer: Answer;
  readonly index: number;
}

/** The answer to one batch: one code a record, complete when nothing is awaited any more. */
export class Answer {
  readonly codes: number[] = [];
  readonly #settled = Promise.withResolvers<void>();
  #awaited = 1;

  /** Success for another record, until something else is said. @returns its index. */
  add(): number {
    return this.codes.push(ReasonCode.Success) - 1;
  }

  await(): void {
    this.#awaited++;
  }

  settle(): void {
    if (--this.#awaited === 0) this.#settled.resolve();
  }

  async whenComplete(): Promise<Uint8Array> {
    this.settle();
    await this.#settled.promise;
    return new Uint8Array(this.codes);
  }
}

export class Forwarder {
  readonly #host: ForwarderHost;
  readonly #links = new Map<NodeName, NodeLink>();
  readonly #writer = new ByteWriter();

  constructor(host: ForwarderHost) {
    this.#host = host;
    for (const total of host.parked.totals()) this.#open(total.node, total);
    // Others are looked for, too: nobody else finds out that they are there again.
    for (const { node, since } of host.down)
      if (!this.#links.has(node)) this.#open(node, { node, lastSeq: 0, since, messages: 0, bytes: 0 });
  }

  forward({ node, matched }: Target, routed: Routed): void {
    const link = this.linkTo(node);
    const bytes = forwardRecord(this.#writer, matched, routed.bytes);
    if (routed.message.qos === 0) return link.addUnacknowledged(bytes);
    if (this.#isRefused(link, routed)) return;
    routed.answer.await();
    link.add({ bytes, settled: (code) => this.#handleAnswer(routed, code) });
  }

  /**
   * One member of the group gets it.
   * @param left nodes that have said that they have none any more
   */
  forwardToGroup(matchedGroup: MatchedGroup, routed: Routed, attempt = 1, left: readonly NodeName[] = []): void {
    const { key, group } = matchedGroup;
    const { topic, from: clientId, qos } = routed.message;
    const isReachable = (node: NodeName): boolean => this.linkTo(node).isLive && !left.includes(node);
    const pick = group.pick(this.#host.strategy, { topic, clientId, node: routed.node, isReachable }, Math.random);
    if (!pick) return;
    const link = this.linkTo(pick.node);
    const bytes = forwardRecord(this.#writer, matchedBytes([{ key, ordinal: pick.ordinal }]), routed.bytes);
    if (qos === 0) return link.addUnacknowledged(bytes);
    if (this.#isRefused(link, routed)) return;
    routed.answer.await();
    const settled = (code: number | undefined): void => {
      const isTaken = code !== undefined && code !== ReasonCode.NoMatchingSubscribers;
      if (isTaken || attempt >= limits.groupPicksMax) return this.#handleAnswer(routed, isTaken ? code : undefined);
      const pickAgain = (): void => {
        this.forwardToGroup(matchedGroup, routed, attempt + 1, code === undefined ? left : [...left, pick.node]);
        routed.answer.settle();
      };
      if (left.includes(pick.node)) setTimeout(pickAgain, retryDelayMs(attempt));
      else pickAgain();
    };
    if (link.isLive) link.offer({ bytes, settled });
    else link.add({ bytes, settled });
  }

  #isRefused(link: NodeLink, { answer, index }: Routed): boolean {
    const { full } = link;
    if (full === undefined) return false;
    this.#host.metrics[`messages.dropped.${full}`]++;
    answer.codes[index] = ReasonCode.QuotaExceeded;
    return true;
  }

  #handleAnswer({ answer, index }: Routed, code: number | undefined): void {
    if (code === undefined) {
      this.#host.metrics["messages.dropped.unreachable"]++;
      answer.codes[index] = ReasonCode.UnspecifiedError;
    } else if (code >= 0x80) {
      this.#host.metrics["messages.dropped.failed"]++;
      answer.codes[index] = code;
    }
    answer.settle();
  }

  // ---- links ------------------------------------------------------------------------------------------------------

  linkTo(node: NodeName): NodeLink {
    return this.#links.get(node) ?? this.#open(node);
  }

  /** @param parked what is on disk for the node. */
  #open(node: NodeName, parked?: ParkedTotal): NodeLink {
    const host = {
      ...this.#host,
      connect: () => {
        const stub = this.#host.nodeAt(node);
        return (batch: Uint8Array) => stub.forward(batch);
      },
      passOn: (record: Uint8Array) => this.#passOn(record),
      handleReach: (isReached: boolean) => this.#host.handleReach(node, isReached),
      retryLastMs: () => this.#host.retryLastMs(node),
    };
    const link = new NodeLink(node, host, parked);
    this.#links.set(node, link);
    return link;
  }

  async #passOn(record: Uint8Array): Promise<boolean> {
    for (const forwarded of readForwarded(joinRecords([record], record.length)))
      if (forwarded.kind === "forward" && !(await this.#host.passOn(forwarded))) return false;
    return true;
  }

  /** Resolves when all that went through this core has reached the node; to false when that cannot be. */
  async settled(node: NodeName): Promise<boolean> {
    const link = this.#links.get(node);
    return !link || link.isIdle || link.settled();
  }

  /** The node has left for good. */
  forget(node: NodeName): void {
    this.#links.delete(node);
    this.#host.parked.deleteUpTo(node, Number.MAX_SAFE_INTEGER);
  }

  /** What is parked for all nodes. */
  get parked(): { readonly messages: number; readonly bytes: number } {
    let [messages, bytes] = [0, 0];
    for (const { parked } of this.#links.values()) {
      messages += parked.messages;
      bytes += parked.bytes;
    }
    return { messages, bytes };
  }

  /** The node has called: it is there. */
  handleCall(node: NodeName, now: number): void {
    this.#links.get(node)?.handleCall(now);
  }

  handleAlarm(now: number): void {
    for (const link of this.#links.values()) link.handleAlarm(now);
  }
}
