/**
 * Retained messages for new subscriptions. They are on the core and may be many, so a session reads them page by page,
 * as its queue drains; how far each read has got is in the session's checkpoint, so it goes on after sleep or a crash.
 *
 * At QoS 0 nothing queues, and nobody says when the client has taken a page. A node gives its clients so much at once as
 * its memory can well hold; behind that, the next page waits as long as a client of moderate speed takes for one. Sessions
 * take turns, a page each, and a node asks for few pages at once, however many of its clients subscribe to everything.
 */
import { ByteReader } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { detached, messageBytes, readMessage, type Message, type QoS } from "../../mqtt/message.ts";
import type { RetainedRead, Session, Subscription } from "../../mqtt/session.ts";
import { isShared } from "../../mqtt/topic.ts";
import type { RetainedPage } from "../rpc.ts";
import type { Broker } from "./broker.ts";

export class RetainedReader {
  readonly #broker: Broker;
  /** Sessions that want a page, in the order of their turns. */
  readonly #waiting = new Set<Session>();
  /** Those whose page is under way, or that pause after it. */
  readonly #busy = new Set<Session>();
  #pagesUnderWay = 0;
  /** Bytes given at QoS 0 that a client of moderate speed would not have taken at that time. */
  #ahead = 0;
  #aheadAt = 0;

  constructor(broker: Broker) {
    this.#broker = broker;
  }

  /** [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]; a share group gets none. */
  wants({ filter, retainHandling }: Subscription, isNew: boolean): boolean {
    if (!this.#broker.settings.mqtt.retain_available || isShared(filter)) return false;
    return retainHandling === 0 || (retainHandling === 1 && isNew);
  }

  /** Reads on while the session keeps up. */
  read(session: Session): void {
    if (!this.#keepsUp(session) || this.#busy.has(session)) return;
    this.#waiting.add(session);
    this.#nextTurns();
  }

  #keepsUp(session: Session): boolean {
    return session.retainedReads.length > 0 && session.queued === 0 && this.#isHere(session);
  }

  #isHere(session: Session): boolean {
    return session.connected && this.#broker.sessions.has(session);
  }

  #nextTurns(): void {
    for (const session of this.#waiting) {
      if (this.#pagesUnderWay >= limits.retainedPagesUnderWayMax) return;
      this.#waiting.delete(session);
      // One that has been overtaken by other messages comes again when it has sent them.
      if (this.#keepsUp(session)) void this.#takeTurn(session);
    }
  }

  async #takeTurn(session: Session): Promise<void> {
    this.#busy.add(session);
    this.#pagesUnderWay++;
    let pauseMs: number;
    try {
      pauseMs = this.#pauseAfter(await this.#readPage(session), Date.now());
    } catch (error) {
      console.error(`retained messages for ${session.clientId}: ${String(error)}`);
      pauseMs = limits.retryLastMs;
    }
    this.#pagesUnderWay--;
    if (pauseMs > 0 && session.retainedReads.length > 0) setTimeout(() => this.#goOn(session), pauseMs);
    else this.#goOn(session);
    this.#nextTurns();
  }

  #pauseAfter(bytes: number, now: number): number {
    this.#ahead = Math.max(0, this.#ahead - (now - this.#aheadAt) * limits.retainedQos0BytesPerMsMax);
    this.#aheadAt = now;
    if (this.#ahead + bytes > limits.retainedQos0BytesAheadMax) return bytes / limits.retainedQos0BytesPerMsMax;
    this.#ahead += bytes;
    return 0;
  }

  #goOn(session: Session): void {
    this.#busy.delete(session);
    this.read(session);
  }

  /** @returns the bytes of it at QoS 0. */
  async #readPage(session: Session): Promise<number> {
    const { core, settings } = this.#broker;
    const [read] = session.retainedReads;
    if (!read) return 0;
    const messagesMax = Math.min(limits.pageMessagesMax, settings.mqtt.max_mqueue_len);
    const page = await core.retained(read.filter, read.after, messagesMax);
    if (session.retainedReads[0] !== read || !this.#isHere(session)) return 0;
    const subscription = session.subscriptions.get(read.filter);
    if (!subscription) {
      session.forgetRetainedRead(read.filter);
      return 0;
    }
    const bytesAtQos0 = this.#deliverPage(session, subscription, read, page);
    // A transient session has nothing to read on with after a crash, and what sleep needs is written with its queue.
    if (session.durable) session.changed();
    this.#broker.touch(session);
    return bytesAtQos0;
  }

  #deliverPage(session: Session, subscription: Subscription, read: RetainedRead, page: RetainedPage): number {
    const { max_mqueue_len: queueMax } = this.#broker.settings.mqtt;
    const others = session.retainedReads.slice(1);
    session.retainedReads = page.next === undefined ? others : [{ ...read, after: page.next }, ...others];
    let { after } = read;
    let bytesAtQos0 = 0;
    for (const reader = new ByteReader(page.messages); !reader.done;) {
      // What was published meanwhile has filled the queue: the rest of the page is read again when there is room.
      if (session.queued >= queueMax) {
        session.retainedReads = [{ ...read, after }, ...others];
        break;
      }
      const message = readMessage(reader);
      const qos = Math.min(message.qos, subscription.qos) as QoS;
      if (qos === 0) bytesAtQos0 += messageBytes(message);
      // What waits for its turn must not keep the page.
      this.#deliver(session, subscription, qos === 0 ? message : detached(message), qos);
      after = message.topic;
    }
    return bytesAtQos0;
  }

  #deliver(session: Session, subscription: Subscription, message: Message, qos: QoS): void {
    const { dispatcher } = this.#broker;
    if (subscription.noLocal && message.from === session.clientId) return;
    const subscriptionIds = subscription.subscriptionId === 0 ? [] : [subscription.subscriptionId];
    // [MQTT-3.3.1-8]
    const delivery = { message, qos, retain: true, subscriptionIds, shared: undefined };
    if (dispatcher.mayReceive(session, message.topic)) dispatcher.deliver(session, delivery, Date.now());
  }
}
