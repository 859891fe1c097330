/**
 * The subscription table: topic filter -> sessions, of one node's own sessions.
 *
 *     "a/+"         -> sessions 1 and 7; 7 has its messages logged
 *     "$share/g/t"  -> members 1, 2, 7, of which 1 and 7 are connected
 *
 * A core has matched the topic already: the table is asked by filter and matches nothing. Every change says what it
 * means for the node's routes: the first subscriber of a filter adds a route and the last one removes it; a share group
 * also tells how many of its members are connected, which is what the core picks by.
 *
 * The table is a cache of the disk, filled filter by filter when one is asked for, so a node wakes without reading it. A
 * filter with a subscription that is not on disk yet stays until it is.
 */
import { limits } from "../mqtt/limits.ts";
import { isShared } from "../mqtt/topic.ts";

export type RouteChange =
  | { readonly kind: "add"; readonly key: string; readonly members: number }
  | { readonly kind: "remove"; readonly key: string };

/** A session's subscription to one filter. */
export interface Subscriber {
  readonly sessionId: number;
  /** Messages from behind this number are for it. */
  readonly since: number;
  /** Those are in the node's log. */
  readonly isLogged: boolean;
}

/** What the table asks of the node. */
export interface TableSource {
  /** The subscribers on disk, by rising session id. */
  readonly load: (key: string) => Iterable<Subscriber>;
  readonly isConnected: (sessionId: number) => boolean;
}

interface Entry {
  readonly subscribers: Map<number, Subscriber>;
  logged: number;
  /** Subscriptions that are not on disk yet. */
  unsaved: number;
  /** Of a share group, as long as nobody comes or goes. */
  members: Members | undefined;
}

/** Those who get a share group's messages: all that are connected, or if none is all there are. */
interface Members {
  readonly ids: readonly number[];
  readonly areConnected: boolean;
}

export class SubscriptionTable {
  readonly #source: TableSource;
  readonly #entries = new Map<string, Entry>();

  constructor(source: TableSource) {
    this.#source = source;
  }

  /** Whether anyone here subscribes by this filter, or share group and filter. */
  has(key: string): boolean {
    return this.#find(key) !== undefined;
  }

  /** Whether messages that match the filter belong into the node's log. */
  isLogged(filter: string): boolean {
    return (this.#find(filter)?.logged ?? 0) > 0;
  }

  /** The sessions that subscribe by the filter. */
  subscribers(key: string): Iterable<Subscriber> {
    return this.#find(key)?.subscribers.values() ?? [];
  }

  subscriber(key: string, sessionId: number): Subscriber | undefined {
    return this.#find(key)?.subscribers.get(sessionId);
  }

  /** Adds or replaces a subscription; `saved` is to be called when it is on disk, or given up. */
  add(key: string, subscriber: Subscriber): RouteChange | undefined {
    const entry = this.#find(key) ?? this.#entries.get(key) ?? this.#keep(key, []);
    entry.unsaved++;
    const isFirst = entry.subscribers.size === 0;
    const before = entry.subscribers.get(subscriber.sessionId);
    put(entry, subscriber);
    if (before) return undefined;
    if (isShared(key)) return isFirst || this.#source.isConnected(subscriber.sessionId) ? this.routeOf(key) : undefined;
    return isFirst ? this.routeOf(key) : undefined;
  }

  saved(key: string): void {
    const entry = this.#entries.get(key);
    if (!entry || entry.unsaved === 0) return;
    entry.unsaved--;
    this.#deleteIfEmpty(key, entry);
  }

  remove(key: string, sessionId: number): RouteChange | undefined {
    const entry = this.#find(key);
    const subscriber = entry?.subscribers.get(sessionId);
    if (!entry || !subscriber) return undefined;
    entry.subscribers.delete(sessionId);
    if (subscriber.isLogged) entry.logged--;
    entry.members = undefined;
    this.#deleteIfEmpty(key, entry);
    if (entry.subscribers.size === 0) return { kind: "remove", key };
    return isShared(key) ? this.routeOf(key) : undefined;
  }

  /** A session's connection came or went: its groups have one connected member more or less. */
  connectionChanged(keys: Iterable<string>): RouteChange[] {
    return [...keys].filter(isShared).map((key) => {
      const entry = this.#entries.get(key);
      if (entry) entry.members = undefined;
      return this.routeOf(key);
    });
  }

  /** What the core should know of a filter, or of a share group and filter. */
  routeOf(key: string): RouteChange {
    const entry = this.#find(key);
    if (!entry) return { kind: "remove", key };
    if (!isShared(key)) return { kind: "add", key, members: 0 };
    const { ids, areConnected } = this.#members(entry);
    return { kind: "add", key, members: areConnected ? ids.length : 0 };
  }

  /** Keys with subscriptions that are not on disk yet. */
  unsaved(): string[] {
    return [...this.#entries].flatMap(([key, { unsaved, subscribers }]) =>
      unsaved > 0 && subscribers.size > 0 ? [key] : [],
    );
  }

  /** The member of a share group that the core has picked by its ordinal; connected ones come before others. */
  member(key: string, ordinal: number): number | undefined {
    const entry = this.#find(key);
    if (!entry) return undefined;
    const { ids, areConnected } = this.#members(entry);
    const picked = ids[ordinal % ids.length];
    if (picked === undefined || !areConnected || this.#source.isConnected(picked)) return picked;
    // Its connection has just ended, which the table is told at the end of the turn.
    entry.members = undefined;
    return this.member(key, ordinal);
  }

  #deleteIfEmpty(key: string, entry: Entry): void {
    if (entry.subscribers.size === 0 && entry.unsaved === 0) this.#entries.delete(key);
  }

  #members(entry: Entry): Members {
    if (entry.members) return entry.members;
    const all = [...entry.subscribers.keys()];
    const connected = all.filter(this.#source.isConnected);
    const areConnected = connected.length > 0;
    return (entry.members = { ids: areConnected ? connected : all, areConnected });
  }

  /** From memory, or else from disk; undefined: nobody subscribes. */
  #find(key: string): Entry | undefined {
    const known = this.#entries.get(key);
    if (known) return known.subscribers.size > 0 ? known : undefined;
    const loaded = [...this.#source.load(key)];
    return loaded.length === 0 ? undefined : this.#keep(key, loaded);
  }

  #keep(key: string, subscribers: Iterable<Subscriber>): Entry {
    const entry: Entry = { subscribers: new Map(), logged: 0, unsaved: 0, members: undefined };
    for (const subscriber of subscribers) put(entry, subscriber);
    this.#entries.set(key, entry);
    this.#makeRoom();
    return entry;
  }

  /** Memory is a cache: beyond its bound the filters loaded first go, but for those that are not on disk. */
  #makeRoom(): void {
    let excess = this.#entries.size - limits.filtersLoadedMax;
    if (excess <= 0) return;
    for (const [key, entry] of this.#entries) {
      if (excess-- <= 0) return;
      if (entry.unsaved === 0 && entry.subscribers.size > 0) this.#entries.delete(key);
    }
  }
}

function put(entry: Entry, subscriber: Subscriber): void {
  const before = entry.subscribers.get(subscriber.sessionId);
  if (before?.isLogged) entry.logged--;
  if (subscriber.isLogged) entry.logged++;
  entry.subscribers.set(subscriber.sessionId, subscriber);
  entry.members = undefined;
}
