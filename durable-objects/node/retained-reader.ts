/**
 * Retained messages for new subscriptions. They are on the core and may be many, so a session reads them page by page,
 * as its queue drains; how far each read has got is in the session's checkpoint, so it goes on after sleep or a crash.
 */
import { ByteReader } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { detached, readMessage, type Message, type QoS } from "../../mqtt/message.ts";
import type { RetainedRead, Session, Subscription } from "../../mqtt/session.ts";
import { parseShared } from "../../mqtt/topic.ts";
import type { Broker } from "./broker.ts";

export class RetainedReader {
  readonly #broker: Broker;
  readonly #reading = new Set<Session>();

  constructor(broker: Broker) {
    this.#broker = broker;
  }

  /** [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]; a share group gets none. */
  wants({ filter, retainHandling }: Subscription, isNew: boolean): boolean {
    if (!this.#broker.settings.mqtt.retain_available || parseShared(filter).group !== undefined) return false;
    return retainHandling === 0 || (retainHandling === 1 && isNew);
  }

  /** Reads on while the session keeps up. */
  read(session: Session): void {
    if (session.retainedReads.length === 0 || session.queued > 0 || this.#reading.has(session)) return;
    this.#reading.add(session);
    this.#readPages(session)
      .catch((error: unknown) => {
        console.error(`retained messages for ${session.clientId}: ${String(error)}`);
        setTimeout(() => this.read(session), limits.retryLastMs);
      })
      .finally(() => this.#reading.delete(session));
  }

  async #readPages(session: Session): Promise<void> {
    const { core, settings } = this.#broker;
    const messagesMax = Math.min(limits.pageMessagesMax, settings.mqtt.max_mqueue_len);
    while (session.connected && session.queued === 0) {
      const [read] = session.retainedReads;
      if (!read) return;
      const page = await core.retained(read.filter, read.after, messagesMax);
      if (session.retainedReads[0] !== read || !session.connected) continue;
      const subscription = session.subscriptions.get(read.filter);
      if (!subscription) {
        session.forgetRetainedRead(read.filter);
        continue;
      }
      const next: RetainedRead = { ...read, after: page.next };
      session.retainedReads = [...(page.next === undefined ? [] : [next]), ...session.retainedReads.slice(1)];
      // A transient session has nothing to read on with after a crash, and what sleep needs is written with its queue.
      if (session.durable) session.changed();
      const reader = new ByteReader(page.messages);
      while (!reader.done) this.#deliver(session, subscription, detached(readMessage(reader)));
      this.#broker.touch(session);
    }
  }

  #deliver(session: Session, subscription: Subscription, message: Message): void {
    const { dispatcher } = this.#broker;
    if (subscription.noLocal && message.from === session.clientId) return;
    const subscriptionIds = subscription.subscriptionId === 0 ? [] : [subscription.subscriptionId];
    const qos = Math.min(message.qos, subscription.qos) as QoS;
    // [MQTT-3.3.1-8]
    const delivery = { message, qos, retain: true, subscriptionIds, shared: undefined };
    if (dispatcher.mayReceive(session, message.topic)) dispatcher.deliver(session, delivery, Date.now());
  }
}
