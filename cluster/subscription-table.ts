/**
 * The subscription table: topic filter -> sessions, of one node's own sessions.
 *
 *     "a/+"         -> session 1 (QoS 1), session 7 (QoS 0)
 *     "$share/g/t"  -> members 1, 2, 7 in the order in which they joined, of which 1 and 7 are connected
 *
 * A core has matched the topic already: the table is asked by filter and matches nothing. Every change says what it
 * means for the node's routes: the first subscriber of a filter adds a route and the last one removes it; a share group
 * also tells how many of its members are connected, which is what the core picks by.
 */
import type { Message, QoS } from "../mqtt/message.ts";
import type { Subscription } from "../mqtt/session.ts";
import { parseShared } from "../mqtt/topic.ts";

/** Who subscribes: the node's short name of a session, and its client id for no-local. */
export interface Subscriber {
  readonly id: number;
  readonly clientId: string;
}

export type RouteChange =
  | { readonly kind: "add"; readonly key: string; readonly members: number }
  | { readonly kind: "remove"; readonly key: string };

/** What one subscriber gets of one message. */
export interface Dispatched {
  readonly subscriber: Subscriber;
  readonly qos: QoS;
  readonly retain: boolean;
  readonly subscriptionIds: readonly number[];
  readonly shared: string | undefined;
}

interface Entry {
  readonly subscriber: Subscriber;
  subscription: Subscription;
  connected: boolean;
}

const noIds: readonly number[] = [];

export class SubscriptionTable {
  readonly #plain = new Map<string, Map<number, Entry>>();
  readonly #groups = new Map<string, Map<number, Entry>>();

  get size(): number {
    let size = 0;
    for (const entries of this.#plain.values()) size += entries.size;
    for (const entries of this.#groups.values()) size += entries.size;
    return size;
  }

  get sharedSize(): number {
    let size = 0;
    for (const entries of this.#groups.values()) size += entries.size;
    return size;
  }

  /** Whether anyone here subscribes by this filter, or share group and filter. */
  has(key: string): boolean {
    return this.#plain.has(key) || this.#groups.has(key);
  }

  /** Adds or replaces a subscription. */
  add({ id, clientId }: Subscriber, subscription: Subscription, connected: boolean): RouteChange | undefined {
    const key = subscription.filter;
    const table = this.#tableOf(key);
    let entries = table.get(key);
    const isFirst = entries === undefined;
    if (entries === undefined) table.set(key, (entries = new Map()));
    const existing = entries.get(id);
    if (existing) {
      existing.subscription = subscription;
      return undefined;
    }
    // Not the object given, which may be a whole session: it is to leave memory when it is at rest.
    entries.set(id, { subscriber: { id, clientId }, subscription, connected });
    if (table === this.#groups) return connected || isFirst ? this.#groupChange(key, entries) : undefined;
    return isFirst ? { kind: "add", key, members: 0 } : undefined;
  }

  remove(sessionId: number, key: string): RouteChange | undefined {
    const table = this.#tableOf(key);
    const entries = table.get(key);
    const entry = entries?.get(sessionId);
    if (!entries || !entry) return undefined;
    entries.delete(sessionId);
    if (entries.size === 0) {
      table.delete(key);
      return { kind: "remove", key };
    }
    return table === this.#groups && entry.connected ? this.#groupChange(key, entries) : undefined;
  }

  /** A session's connection came or went: its groups have one connected member more or less. */
  setConnected(sessionId: number, keys: Iterable<string>, connected: boolean): RouteChange[] {
    const changes: RouteChange[] = [];
    for (const key of keys) {
      const entries = this.#groups.get(key);
      const entry = entries?.get(sessionId);
      if (!entries || !entry || entry.connected === connected) continue;
      entry.connected = connected;
      changes.push(this.#groupChange(key, entries));
    }
    return changes;
  }

  /** What the core should know of a filter, or of a share group and filter. */
  routeOf(key: string): RouteChange {
    const table = this.#tableOf(key);
    const entries = table.get(key);
    if (!entries) return { kind: "remove", key };
    return table === this.#groups ? this.#groupChange(key, entries) : { kind: "add", key, members: 0 };
  }

  /**
   * Who gets the message. A session with several matching subscriptions gets it once, with the highest QoS and all
   * their identifiers [MQTT-3.3.4-2] [MQTT-3.3.4-3]; a share group's member gets the group's copy besides.
   */
  dispatch(
    message: Message,
    matched: readonly { readonly key: string; readonly ordinal: number }[],
    visit: (dispatched: Dispatched) => void,
  ): void {
    const plain: Map<number, Entry>[] = [];
    for (const { key, ordinal } of matched) {
      const entries = this.#plain.get(key);
      if (entries) plain.push(entries);
      else this.#dispatchToGroup(message, key, ordinal, visit);
    }
    if (plain.length === 1) for (const entry of plain[0]!.values()) visitSingle(message, entry, visit);
    else if (plain.length > 1) visitOverlapping(message, plain, visit);
  }

  #dispatchToGroup(message: Message, key: string, ordinal: number, visit: (dispatched: Dispatched) => void): void {
    const members = [...(this.#groups.get(key)?.values() ?? [])];
    const connected = members.filter((member) => member.connected);
    const candidates = connected.length > 0 ? connected : members;
    const entry = candidates[ordinal % candidates.length];
    if (!entry) return;
    const { subscription, subscriber } = entry;
    visit({
      subscriber,
      qos: Math.min(message.qos, subscription.qos) as QoS,
      retain: subscription.retainAsPublished && message.retain,
      subscriptionIds: idsOf(subscription),
      shared: key,
    });
  }

  #groupChange(key: string, entries: Map<number, Entry>): RouteChange {
    let members = 0;
    for (const entry of entries.values()) if (entry.connected) members++;
    return { kind: "add", key, members };
  }

  #tableOf(key: string): Map<string, Map<number, Entry>> {
    return parseShared(key).group === undefined ? this.#plain : this.#groups;
  }
}

function visitSingle(message: Message, entry: Entry, visit: (dispatched: Dispatched) => void): void {
  const { subscription, subscriber } = entry;
  if (subscription.noLocal && subscriber.clientId === message.from) return; // [MQTT-3.8.3-3]
  visit({
    subscriber,
    qos: Math.min(message.qos, subscription.qos) as QoS,
    retain: subscription.retainAsPublished && message.retain, // [MQTT-3.3.1-12] [MQTT-3.3.1-13]
    subscriptionIds: idsOf(subscription),
    shared: undefined,
  });
}

function visitOverlapping(
  message: Message,
  plain: readonly Map<number, Entry>[],
  visit: (dispatched: Dispatched) => void,
): void {
  const merged = new Map<number, { subscriber: Subscriber; qos: QoS; retain: boolean; subscriptionIds: number[] }>();
  for (const entries of plain)
    for (const entry of entries.values())
      visitSingle(message, entry, ({ subscriber, qos, retain, subscriptionIds }) => {
        const before = merged.get(subscriber.id);
        if (!before) merged.set(subscriber.id, { subscriber, qos, retain, subscriptionIds: [...subscriptionIds] });
        else {
          if (qos > before.qos) before.qos = qos;
          before.retain ||= retain;
          before.subscriptionIds.push(...subscriptionIds);
        }
      });
  for (const each of merged.values()) visit({ ...each, shared: undefined });
}

function idsOf(subscription: Subscription): readonly number[] {
  return subscription.subscriptionId === 0 ? noIds : [subscription.subscriptionId];
}
