/**
 * A core's link to one node.
 *
 *   live    what is forwarded goes into the node's outbox
 *   parked  the node does not answer: what somebody waits for goes to the core's disk, behind what is there already,
 *           and is answered when it is there, so that a publisher's acknowledgement rests on it (G1); QoS 0 is dropped
 *
 * The outbox leaves what it could not send, in order, to be parked first; all that comes later goes behind it until the
 * disk has been drained, also after a crash of the core: so no message overtakes another (G2). A page of rows is sent
 * at a time and deleted when the node has answered; what is sent twice the node knows by its id.
 *
 *     outbox A B | C  --unreachable-->  disk [A B C] [D E]  --drain-->  page A B C D E, in memory: F G  -->  outbox F G
 *
 * While the last page is under way what comes waits in memory, not on disk: else a steady publisher would always be a
 * row ahead, and the link never live again.
 *
 * Draining is tried when the alarm rings, which needs no memory, when the node calls, and when somebody must know that
 * the node has everything (`settled`). The pause after a failure is as long as the node has been away, within bounds.
 *
 * Cost: a row written each turn in which something was parked, and its deletion. A record is parked as it is sent, so a
 * new `rpcVersion` comes with a migration of the rows.
 */
import type { NodeName } from "../../cluster/name.ts";
import { concatenate } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";
import type { Metrics } from "../metrics.ts";
import { Outbox, settle, type Parkable, type SendBatch } from "../outbox.ts";
import { forwardFenceRecord, joinRecords, splitRecords } from "../rpc.ts";
import type { ParkedPage, ParkedStore, ParkedTotal } from "./parked-store.ts";

/** What the core gives. */
export interface NodeLinkHost {
  readonly parked: Pick<ParkedStore, "add" | "page" | "deleteUpTo">;
  readonly metrics: Metrics;
  /** Makes a fresh stub of the node and gives its `forward`. */
  readonly connect: () => SendBatch;
  /** Makes sure that `handleAlarm` is called at this time or before. */
  readonly ringAt: (at: number) => void;
  /** The node has nobody any more who takes this share group's message. @returns whether somebody else has it. */
  readonly passOn: (record: Uint8Array) => Promise<boolean>;
  readonly handleReach: (isReached: boolean) => void;
  /** The longest pause between two tries, in ms. */
  readonly retryLastMs: () => number;
}

interface Live {
  readonly kind: "live";
  readonly outbox: Outbox;
}

interface Parked {
  readonly kind: "parked";
  /** On disk. */
  messages: number;
  bytes: number;
  nextSeq: number;
  /** Not on disk yet. */
  waiting: Parkable[];
  waitingBytes: number;
  /** The last page is under way: what waits is not to be written. */
  isLastPage: boolean;
  /** When the node was last there, or the first message came to the disk, in ms since the epoch. */
  since: number;
  triedAt: number;
  nextTryAt: number;
  draining: Promise<boolean> | undefined;
}

export class NodeLink {
  readonly node: NodeName;
  readonly #host: NodeLinkHost;
  #state: Live | Parked;

  /** @param total what is on disk for the node from before the core woke. */
  constructor(node: NodeName, host: NodeLinkHost, total?: ParkedTotal) {
    this.node = node;
    this.#host = host;
    this.#state = total ? parkedState(total, Date.now()) : this.#liveState();
    if (total) host.ringAt(Date.now());
  }

  /** Whether what is added goes to the node at once. */
  get isLive(): boolean {
    return this.#state.kind === "live";
  }

  /** The bound that leaves no room: time to refuse QoS 1 and 2. */
  get full(): "outbox_full" | "parked_full" | undefined {
    const state = this.#state;
    if (state.kind === "live") return state.outbox.full ? "outbox_full" : undefined;
    if (state.waitingBytes >= limits.outboxBytesMax) return "outbox_full";
    return state.bytes + state.waitingBytes >= limits.parkedBytesMax ? "parked_full" : undefined;
  }

  /** What is on disk for the node. */
  get parked(): { readonly messages: number; readonly bytes: number } {
    return this.#state.kind === "live" ? { messages: 0, bytes: 0 } : this.#state;
  }

  /** QoS 0: nobody waits for it. */
  addUnacknowledged(bytes: Uint8Array): void {
    if (this.#state.kind === "live") this.#state.outbox.addUnacknowledged(bytes);
    else this.#host.metrics["messages.dropped.unreachable"]++;
  }

  /** Settled when the node has answered, or with success when it is parked; with undefined when that failed. */
  add({ bytes, settled }: Parkable): void {
    const state = this.#state;
    if (state.kind === "live") return state.outbox.addParkable({ bytes, settled });
    if (state.waiting.length === 0) setImmediate(() => this.#write(state));
    state.waiting.push({ bytes: bytes.slice(), settled });
    state.waitingBytes += bytes.length;
  }

  /** For what may go elsewhere: settled with undefined when the node is not in reach. */
  offer({ bytes, settled }: Parkable): void {
    if (this.#state.kind === "live") this.#state.outbox.add(bytes, settled);
    else settled(undefined);
  }

  /** Nothing waits for the node. */
  get isIdle(): boolean {
    const state = this.#state;
    return state.kind === "live" ? state.outbox.isIdle : state.messages === 0 && state.waiting.length === 0;
  }

  /** Resolves when all that was added before has reached the node; to false when it cannot be reached. */
  async settled(): Promise<boolean> {
    await this.#drain();
    const state = this.#state;
    if (state.kind === "parked") return false;
    return state.outbox.addAndWait(forwardFenceRecord()).then(
      () => true,
      () => false,
    );
  }

  /** The node has called: it is there. */
  handleCall(now: number): void {
    const state = this.#state;
    if (state.kind === "parked" && now >= state.triedAt + limits.drainRetryFirstMs) void this.#drain();
  }

  handleAlarm(now: number): void {
    const state = this.#state;
    if (state.kind === "live") return;
    if (state.draining) this.#host.ringAt(now + limits.drainRetryLastMs);
    else if (state.nextTryAt > now) this.#host.ringAt(state.nextTryAt);
    else void this.#drain();
  }

  #liveState(): Live {
    const { connect, metrics } = this.#host;
    const outbox = new Outbox(
      connect,
      (reason, count) => (metrics[`messages.dropped.${reason}`] += count),
      (items) => this.#park(items),
    );
    return { kind: "live", outbox };
  }

  // ---- parking ----------------------------------------------------------------------------------------------------

  #park(items: readonly Parkable[]): void {
    const now = Date.now();
    const { node } = this;
    const state = parkedState({ node, lastSeq: 0, since: now, messages: 0, bytes: 0 }, now);
    this.#state = state;
    state.waiting = [...items];
    state.triedAt = now;
    this.#host.handleReach(false);
    this.#write(state);
    this.#pause(state);
  }

  /** What waits goes to disk, in as few rows as hold it. The runtime holds the answers until they are durable. */
  #write(state: Parked): void {
    if (state.isLastPage) return;
    const { waiting } = state;
    state.waiting = [];
    state.waitingBytes = 0;
    for (let start = 0; start < waiting.length;) {
      let end = start;
      let bytes = 0;
      do bytes += waiting[end++]!.bytes.length;
      while (end < waiting.length && bytes + waiting[end]!.bytes.length <= limits.batchBytesMax);
      this.#writeRow(state, waiting.slice(start, end), bytes);
      start = end;
    }
  }

  #writeRow(state: Parked, items: readonly Parkable[], bytes: number): void {
    let code: number | undefined = ReasonCode.Success;
    try {
      const parts = items.map((item) => item.bytes);
      const records = concatenate(parts, bytes);
      this.#host.parked.add(this.node, { seq: state.nextSeq, at: Date.now(), messages: items.length, records });
      state.nextSeq++;
      state.messages += items.length;
      state.bytes += bytes;
      this.#host.metrics["messages.parked"] += items.length;
    } catch (error) {
      console.error(`${items.length} messages for ${this.node} could not be parked: ${String(error)}`);
      code = undefined;
    }
    for (const item of items) settle(item, code);
  }

  // ---- draining ---------------------------------------------------------------------------------------------------

  /** Resolves when the node has all that is parked, or does not answer. @returns whether the link is live. */
  #drain(): Promise<boolean> {
    const state = this.#state;
    if (state.kind === "live") return Promise.resolve(true);
    state.draining ??= this.#drainPages(state).finally(() => (state.draining = undefined));
    return state.draining;
  }

  async #drainPages(state: Parked): Promise<boolean> {
    state.triedAt = Date.now();
    // Should the core crash on the way, this wakes it.
    this.#host.ringAt(state.triedAt + limits.drainRetryLastMs);
    try {
      const send = this.#host.connect();
      do this.#write(state);
      while (await this.#drainPage(state, send));
    } catch (error) {
      console.error(`${this.node} does not take what is parked for it: ${String(error)}`);
      state.isLastPage = false;
      this.#write(state);
      this.#pause(state);
      return false;
    }
    const live = this.#liveState();
    this.#state = live;
    for (const item of state.waiting.splice(0)) live.outbox.addParkable(item);
    this.#host.handleReach(true);
    return true;
  }

  /** @returns whether there is more on disk. */
  async #drainPage(state: Parked, send: SendBatch): Promise<boolean> {
    const page = this.#host.parked.page(this.node, limits.batchBytesMax);
    if (!page) {
      const fence = forwardFenceRecord();
      await send(joinRecords([fence], fence.length));
      return false;
    }
    state.isLastPage = page.isLast;
    const codes = await send(joinRecords([page.records], page.records.length));
    if (codes.length !== page.messages) throw new Error(`${codes.length} answers came to ${page.messages} records`);
    await this.#handleCodes(state, page, codes);
    this.#host.parked.deleteUpTo(this.node, page.lastSeq);
    state.messages -= page.messages;
    state.bytes -= page.records.length;
    state.since = Date.now();
    return !state.isLastPage;
  }

  async #handleCodes(state: Parked, page: ParkedPage, codes: Uint8Array): Promise<void> {
    const failed = codes.filter((code) => code >= 0x80).length;
    if (failed > 0) this.#host.metrics["messages.dropped.failed"] += failed;
    if (!codes.includes(ReasonCode.NoMatchingSubscribers)) return;
    // What is passed on may come to this node again, and is to be written then.
    state.isLastPage = false;
    this.#write(state);
    const records = splitRecords(page.records).filter((_, i) => codes[i] === ReasonCode.NoMatchingSubscribers);
    const passedOn = Promise.all(records.map((record) => this.#host.passOn(record)));
    if ((await passedOn).includes(false)) throw new Error("a share group's message found nobody else");
  }

  /** Until the next try. */
  #pause(state: Parked): void {
    const now = Date.now();
    const pauseMs = Math.min(this.#host.retryLastMs(), Math.max(limits.drainRetryFirstMs, now - state.since));
    state.nextTryAt = now + pauseMs;
    this.#host.ringAt(state.nextTryAt);
  }
}

function parkedState({ lastSeq, since, messages, bytes }: ParkedTotal, nextTryAt: number): Parked {
  return {
    kind: "parked",
    messages,
    bytes,
    nextSeq: lastSeq + 1,
    waiting: [],
    waitingBytes: 0,
    isLastPage: false,
    since,
    triedAt: 0,
    nextTryAt,
    draining: undefined,
  };
}
