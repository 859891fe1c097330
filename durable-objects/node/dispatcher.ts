/**
 * From the core to the sessions (dispatch) and on to their sockets (deliver).
 *
 * A message that matches a filter with durable subscribers goes into the node's log, once for all of them; of sessions only
 * those are touched that are connected or in memory, the others find it there when they come back. What is for one session
 * alone (a share group's message, a retained one) is a row of its own.
 */
import { authorize, hasReadDenials } from "../../mqtt/authorization.ts";
import { detached, type Message, type QoS } from "../../mqtt/message.ts";
import { PublishForms } from "../../mqtt/publish-forms.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";
import type { Delivery, Load, Place, Session } from "../../mqtt/session.ts";
import { isShared, matches } from "../../mqtt/topic.ts";
import { readForwarded, type Forward, type Forwarded, type Matched } from "../rpc.ts";
import type { Broker } from "./broker.ts";

export class Dispatcher {
  readonly #broker: Broker;
  readonly #authorizesDeliveries: boolean;

  constructor(broker: Broker) {
    this.#broker = broker;
    this.#authorizesDeliveries = hasReadDenials(broker.settings.authorization);
  }

  /** @returns one reason code a record, see `NodeRpc.forward`. */
  dispatch(batch: Uint8Array): Uint8Array {
    const { log, known, sessions } = this.#broker;
    const now = Date.now();
    const codes: ReasonCode[] = [];
    for (const record of readForwarded(batch)) codes.push(this.#dispatchRecord(record, now));
    // On disk, in one transaction, before the core is answered and anything is sent.
    log.flush(now);
    log.cut(now);
    known.flush(now);
    sessions.saveUrgent();
    return new Uint8Array(codes);
  }

  /** What is wrong with one record is answered, so that it is not sent again and again, and the others go on. */
  #dispatchRecord(record: Forwarded, now: number): ReasonCode {
    try {
      switch (record.kind) {
        case "fence":
          return ReasonCode.Success;
        case "forward":
          return this.#dispatchMessage(record, now);
        case "ended":
          this.#broker.claims.handleEnded(record.clientId, record.epoch);
          return ReasonCode.Success;
        case "unreadable":
          throw record.error;
      }
    } catch (error) {
      console.error(`a forwarded record failed: ${String(error)}`);
      return ReasonCode.ImplementationSpecificError;
    }
  }

  #dispatchMessage({ message: received, matched, bytes }: Forward, now: number): ReasonCode {
    const { table, known, log } = this.#broker;
    const shared = matched.find(({ key }) => isShared(key));
    for (const { key } of matched) {
      if (table.has(key)) continue;
      // Its last subscriber left while the message was under way, or a crash left the route at the core.
      this.#broker.changeRoutes([{ kind: "remove", key }]);
      log.handleReaderLeft(key);
      if (shared) return ReasonCode.NoMatchingSubscribers;
    }
    const before = received.qos === 2 ? known.seqOf(received.id, shared?.key) : 0;
    if (shared && before > 0) return ReasonCode.Success;
    const message = received.qos === 0 ? received : detached(received);
    const forms = new PublishForms(message, now);
    if (shared) this.#dispatchToMember(forms, shared, now);
    else if (before > 0) this.#dispatchAgain(forms, matched, before, now);
    else this.#dispatchToSubscribers(forms, matched, bytes, now);
    return ReasonCode.Success;
  }

  #dispatchToSubscribers(forms: PublishForms, matched: readonly Matched[], bytes: Uint8Array, now: number): void {
    const { table, log, known, sequence } = this.#broker;
    const { id, qos } = forms.message;
    // Those who sleep are woken first: they read what is on disk, and this message comes to them behind it.
    const targets = this.#targets(matched, qos);
    const seq = qos === 0 ? 0 : sequence.next();
    const logged = qos === 0 ? [] : matched.filter(({ key }) => table.isLogged(key));
    for (const { key } of logged) log.append(key, seq, bytes, now);
    if (qos === 2 && logged.length > 0) known.add(id, undefined, seq);
    else if (qos === 2) known.addTransient(id, undefined, seq);
    for (const session of targets) {
      try {
        this.#dispatchTo(session, seq, matched, forms, now);
      } catch (error) {
        this.#handleFailure(session.id, error);
      }
    }
  }

  /** A QoS 2 message that has come before: a session that came from another node since then gets it, for itself. */
  #dispatchAgain(forms: PublishForms, matched: readonly Matched[], before: number, now: number): void {
    const { table, known, sequence, sessions, store } = this.#broker;
    const late = new Set<number>();
    for (const { key } of matched) {
      for (const sessionId of store.arrivedSince(key, before)) late.add(sessionId);
      for (const { sessionId } of table.subscribers(key)) if (sessions.loaded(sessionId)?.adopting) late.add(sessionId);
    }
    for (const sessionId of late) {
      const session = sessions.byId(sessionId);
      if (!session) continue;
      const delivery = this.#deliveryOf(session, forms.message, matched);
      if (!delivery) continue;
      if (!session.adopting) this.deliver(session, delivery, now, forms);
      else if (delivery.qos > 0) store.putDelivery(sessionId, sequence.next(), delivery);
    }
    known.add(forms.message.id, undefined, sequence.next());
  }

  /** The sessions to touch, each once; the others find on disk all that they are to get. */
  #targets(matched: readonly Matched[], qos: QoS): Iterable<Session> {
    const { table, sessions, metrics } = this.#broker;
    const targets: Session[] = [];
    for (const { key } of matched) {
      for (const { sessionId } of table.subscribers(key)) {
        try {
          const session = this.#broker.connectionOf(sessionId)?.session ?? sessions.loaded(sessionId);
          // One that is being adopted is read from disk when it is whole.
          if (session && !session.adopting) targets.push(session);
          else if (qos === 0) metrics["delivery.dropped.qos0_msg"]++;
        } catch (error) {
          this.#handleFailure(sessionId, error);
        }
      }
    }
    return matched.length === 1 ? targets : new Set(targets);
  }

  /** One session's failure is not the others' (G5). */
  #handleFailure(sessionId: number, error: unknown): void {
    this.#broker.metrics["delivery.dropped"]++;
    this.#broker.connectionOf(sessionId)?.fail(error);
  }

  #dispatchTo(session: Session, seq: number, matched: readonly Matched[], forms: PublishForms, now: number): void {
    const delivery = this.#deliveryOf(session, forms.message, matched);
    const filter = seq === 0 ? undefined : session.logFilter(matched);
    if (delivery && delivery.qos > 0) return this.#enqueue(session, { seq, filter }, delivery, forms, now);
    if (delivery) this.#send(session, delivery, forms);
    if (filter === undefined) return;
    session.pass(seq);
    this.#broker.touch(session);
  }

  #dispatchToMember(forms: PublishForms, { key, ordinal }: Matched, now: number): void {
    const { table, known, sequence, sessions } = this.#broker;
    const { id, qos } = forms.message;
    const sessionId = table.member(key, ordinal);
    const session = sessionId === undefined ? undefined : sessions.byId(sessionId);
    if (!session) return;
    if (qos === 2 && session.durable) known.add(id, key, sequence.next());
    else if (qos === 2) known.addTransient(id, key, sequence.next());
    const delivery = this.#deliveryOf(session, forms.message, [{ key, ordinal }]);
    if (!delivery) return;
    const owned: Delivery = { ...delivery, shared: key };
    this.deliver(session, owned, now, forms);
  }

  /** To one session alone. */
  deliver(session: Session, delivery: Delivery, now: number, forms = new PublishForms(delivery.message, now)): void {
    if (delivery.qos > 0)
      this.#enqueue(session, { seq: this.#broker.sequence.next(), filter: undefined }, delivery, forms, now);
    else this.#send(session, delivery, forms);
  }

  /** At QoS 0: nobody waits, and nothing is kept for a client that is away. */
  #send(session: Session, delivery: Delivery, forms: PublishForms): void {
    const connection = this.#broker.connectionOf(session.id);
    if (connection) connection.sendPublish(delivery, 0, false, forms);
    else this.#broker.metrics["delivery.dropped.qos0_msg"]++;
  }

  #enqueue(session: Session, place: Place, delivery: Delivery, forms: PublishForms, now: number): void {
    const { store, sessions, settings } = this.#broker;
    const dropped = session.enqueue(place, delivery, settings.mqtt.max_mqueue_len);
    if (place.filter !== undefined) session.written(place.seq);
    // Rows of a session that is not on disk would stay when it ends, or is lost in a crash.
    else if (session.durable || (session.onDisk && session.queueIsLong)) {
      store.putDelivery(session.id, place.seq, delivery);
      session.written(place.seq);
    }
    sessions.handleDropped(session, dropped);
    const connection = this.#broker.connectionOf(session.id);
    if (connection) connection.pump(now, forms);
    else this.#broker.touch(session);
  }

  /** What a session's subscriptions make of a message; undefined: it is not to have it. */
  #deliveryOf(session: Session, message: Message, matched: readonly Matched[]): Delivery | undefined {
    if (message.qos > 0 && session.known?.has(message.id, groupOf(matched))) return undefined;
    return this.mayReceive(session, message.topic) ? session.deliveryOf(message, matched) : undefined;
  }

  /** A subscription to "#" is granted where "secret/#" is denied: what it must not see is kept back here. */
  mayReceive(session: Session, topic: string): boolean {
    const { settings, metrics } = this.#broker;
    if (!this.#authorizesDeliveries || authorize(settings.authorization, session, "subscribe", topic)) return true;
    metrics["delivery.dropped.not_authorized"]++;
    return false;
  }

  /** Reads what waits for a session on disk. */
  load(session: Session, now: number): Load {
    const { store, log } = this.#broker;
    return ({ seq, filter }) => {
      if (filter === undefined) return store.loadDelivery(session.id, seq);
      const message = log.read(seq, filter, now);
      const delivery =
        message && this.#deliveryOf(session, detached(message), matchedOf(session, message.topic, filter));
      return delivery && delivery.qos > 0 ? delivery : undefined;
    };
  }
}

/**
 * Which of a session's own subscriptions match; a core has said so when the message came, and nobody has kept it.
 * @param known matches: the message is logged under it
 */
function matchedOf({ subscriptions }: Session, topic: string, known: string): Matched[] {
  const matched: Matched[] = [];
  for (const key of subscriptions.keys())
    if (key === known || (!isShared(key) && matches(key, topic))) matched.push({ key, ordinal: 0 });
  return matched;
}

/** A share group's message comes by that group alone. */
function groupOf([first]: readonly Matched[]): string | undefined {
  return first && isShared(first.key) ? first.key : undefined;
}
