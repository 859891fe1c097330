/**
 * How cores come to have the same routes and the same retained messages.
 *
 * A change has one writer: a node that of its routes, which its home core takes in, a core that of the retained messages
 * that it takes in. The core counts each writer's changes and tells all others at once, each time with the version before:
 *
 *     home core   node-0: 41 -> 42, +a/b      ==relay==>   the others have 41: they apply it, and have 42
 *                                                          one has 39: it has missed something, and asks for all since 39
 *
 * When two cores meet (at start, and when one was out of reach) they exchange their version vectors, and each asks for what
 * the other has more of. So nothing has to be kept for a core that is away, and no change is lost with the core that took
 * it in, if anyone has it. A core routes nothing before it has met those that it can reach.
 *
 * Inside one version vector there is no conflict: a node has one home at a time, and what a former home counted last is
 * replaced by what the node says when it changes (terms in versions.ts). Of two retained messages on one topic the later
 * one holds.
 */
import type { Membership } from "../../cluster/membership.ts";
import { isCoordinator } from "../../cluster/membership.ts";
import type { NodeName } from "../../cluster/name.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import type { Message } from "../../mqtt/message.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";
import {
  changesRecord,
  readPeerRecords,
  readRetainedEntries,
  readRouteEntries,
  writeRetainedEntry,
  writeRouteEntry,
  type Changes,
  type ChangesPage,
  type NodeRoutes,
  type PeerRecord,
  type RouteEntry,
} from "../rpc.ts";
import type { CoreStore } from "./core-store.ts";
import type { PeerLink } from "./peer-link.ts";
import type { RouteChange } from "./route-store.ts";
import type { Stamp } from "./retained-store.ts";
import { firstVersionOf } from "./versions.ts";

/** What the core gives. */
export interface ReplicationHost {
  readonly self: NodeName;
  readonly store: CoreStore;
  readonly members: Membership;
  /** The cores that are there. */
  readonly peers: () => Iterable<PeerLink>;
  /** A route of the table has changed; no members: it is gone. */
  readonly setRoute: (node: NodeName, key: string, members: number | undefined) => void;
  readonly handleRetained: (message: Message) => void;
  readonly handleMember: (record: Extract<PeerRecord, { kind: "member" }>["member"], from: NodeName) => void;
}

export class Replication {
  readonly #host: ReplicationHost;
  readonly #writer = new ByteWriter();
  /** Settled when all that has been relayed is applied. */
  #relayed: Promise<void> | undefined;
  #relays = 0;
  readonly #pulls = new Map<NodeName, Promise<void>>();
  /** Latest version of any retained message seen: the next one is later. */
  #latestVersion = 0;
  /** Keys taken over from others since the core woke. */
  keysPulled = 0;

  constructor(host: ReplicationHost) {
    this.#host = host;
    this.#latestVersion = host.store.versions.of(host.self);
  }

  // ---- telling others ---------------------------------------------------------------------------------------------

  relay(record: Uint8Array, except?: NodeName): void {
    const relays: Promise<void>[] = [];
    for (const peer of this.#host.peers()) if (peer.name !== except) relays.push(peer.relay(record));
    if (relays.length === 0) return;
    const number = ++this.#relays;
    const settle = async (before: Promise<void> | undefined): Promise<void> => {
      await before;
      await Promise.all(relays);
      if (number === this.#relays) this.#relayed = undefined;
    };
    this.#relayed = settle(this.#relayed);
  }

  /** Resolves when every core in reach has applied what was relayed before; undefined: they have. */
  whenRelayed(): Promise<void> | undefined {
    return this.#relayed;
  }

  /** The version of the next change of a node whose home this is. */
  nextVersion(node: NodeName, term: number): number {
    return Math.max(this.#host.store.versions.of(node) + 1, firstVersionOf(term));
  }

  /** Changes of a node whose home this is, already in the table and on disk. */
  publishRoutes(node: NodeName, version: number, changes: readonly RouteChange[]): void {
    for (const { key, members } of changes) writeRouteEntry(this.#writer, { key, members, version });
    this.#publish(node, version);
  }

  /** For a retained message that this core takes in. */
  nextStamp(now: number): Stamp {
    this.#latestVersion = Math.max(now, this.#latestVersion + 1);
    return { writer: this.#host.self, version: this.#latestVersion };
  }

  publishRetained(topic: string, version: number, bytes: Uint8Array): void {
    writeRetainedEntry(this.#writer, { topic, version, bytes });
    this.#publish(this.#host.self, version);
  }

  #publish(writer: NodeName, version: number): void {
    const { versions } = this.#host.store;
    const record = changesRecord({ writer, before: versions.of(writer), version, entries: this.#writer.take() });
    versions.set(writer, version);
    this.relay(record);
  }

  // ---- being told -------------------------------------------------------------------------------------------------

  /** Records are applied in order; each is answered when it is. */
  async handleRelay(from: PeerLink, batch: Uint8Array): Promise<Uint8Array> {
    const codes: Promise<number>[] = [];
    for (const record of readPeerRecords(batch)) {
      try {
        codes.push(Promise.resolve(this.#handle(from, record)));
      } catch (error) {
        console.error(`a record of ${from.name} failed: ${String(error)}`);
        codes.push(Promise.resolve(ReasonCode.ImplementationSpecificError));
      }
    }
    return Uint8Array.from(await Promise.all(codes));
  }

  #handle(from: PeerLink, record: PeerRecord): number | Promise<number> {
    switch (record.kind) {
      case "fence":
        return ReasonCode.Success;
      case "member":
        this.#host.handleMember(record.member, from.name);
        return ReasonCode.Success;
      case "changes":
        return this.#handleChanges(from, record);
      case "unreadable":
        throw record.error;
    }
  }

  #handleChanges(from: PeerLink, changes: Changes): number | Promise<number> {
    const { writer } = changes;
    const { members, store } = this.#host;
    const { versions } = store;
    // Its version would say that what it has changed is here.
    if (!members.has(writer)) return ReasonCode.Success;
    const pull = this.#pulls.get(writer);
    if (pull) return pull.then(() => this.#handleChanges(from, changes));
    const version = versions.of(writer);
    if (changes.version <= version) return ReasonCode.Success;
    if (changes.before !== version) return this.pull(writer, from).then(() => ReasonCode.Success);
    this.#apply(changes.writer, changes.entries, undefined);
    versions.set(writer, changes.version);
    return ReasonCode.Success;
  }

  /** @param whole the version of all that there is; undefined: these are changes. @returns the keys. */
  #apply(writer: NodeName, entries: Uint8Array, whole: number | undefined): string[] {
    return this.#isCoordinator(writer)
      ? this.#applyRetained(writer, entries)
      : this.#applyRoutes(writer, [...readRouteEntries(entries)], whole);
  }

  #isCoordinator(writer: NodeName): boolean {
    const member = this.#host.members.get(writer);
    return member !== undefined && isCoordinator(member);
  }

  #applyRoutes(node: NodeName, entries: readonly RouteEntry[], whole: number | undefined): string[] {
    const { store, setRoute, members } = this.#host;
    if (!members.has(node)) return [];
    for (const { key, members: count, version } of entries) {
      const known = store.routes.versionOf(node, key);
      // In a whole, what a former home counted is replaced, whatever its version.
      if (known > (whole ?? version)) continue;
      store.routes.put(node, { key, members: count, sent: 0, version });
      setRoute(node, key, count);
    }
    return entries.map(({ key }) => key);
  }

  #applyRetained(writer: NodeName, entries: Uint8Array): string[] {
    const topics: string[] = [];
    for (const entry of readRetainedEntries(entries)) {
      topics.push(entry.topic);
      this.#latestVersion = Math.max(this.#latestVersion, entry.version);
      const message = this.#host.store.retained.apply(writer, entry);
      if (message) this.#host.handleRetained(message);
    }
    return topics;
  }

  // ---- asking -----------------------------------------------------------------------------------------------------

  /** Resolves when this core has what the other one has of every writer; rejects when it goes away. */
  async pullAll(from: PeerLink, vector: Readonly<Record<NodeName, number>>): Promise<void> {
    const { store, self, members } = this.#host;
    const behind = Object.keys(vector).filter(
      (writer) => writer !== self && members.has(writer) && vector[writer]! > store.versions.of(writer),
    );
    for (const writer of behind) {
      // What is asked of another one meanwhile may be less.
      for (let pull; (pull = this.#pulls.get(writer));) await pull.catch(() => {});
      if (vector[writer]! > store.versions.of(writer)) await this.pull(writer, from);
    }
  }

  /** One at a time of each writer. */
  pull(writer: NodeName, from: PeerLink): Promise<void> {
    const known = this.#pulls.get(writer);
    if (known) return known;
    const pull = this.#pull(writer, from).finally(() => this.#pulls.delete(writer));
    this.#pulls.set(writer, pull);
    return pull;
  }

  async #pull(writer: NodeName, from: PeerLink): Promise<void> {
    const { store, members } = this.#host;
    const since = store.versions.of(writer);
    const seen = new Set<string>();
    let first: ChangesPage | undefined;
    for (let after: string | undefined = ""; after !== undefined;) {
      const place: string = after;
      const page: ChangesPage = await from.call((peer) => peer.changes(writer, since, place));
      // It has come to this core meanwhile, and says itself what it has; or it has left.
      if (store.versions.of(writer) !== since || !members.has(writer)) return;
      first ??= page;
      // What has changed since cannot be told any more: all that there is has another beginning.
      if (page.isWhole !== first.isWhole) return this.#pull(writer, from);
      this.#takePage(writer, { ...page, after, version: first.version }, seen);
      after = page.next;
    }
    if (!first || first.version <= since) return;
    const { version, isWhole } = first;
    if (isWhole && !this.#isCoordinator(writer)) this.#removeOthers(writer, seen, version);
    store.versions.set(writer, version, isWhole ? version : undefined);
  }

  /** @param seen routes that are there: there may be too many retained messages for that. */
  #takePage(writer: NodeName, page: ChangesPage & { readonly after: string }, seen: Set<string>): void {
    const keys = this.#apply(writer, page.entries, page.isWhole ? page.version : undefined);
    this.keysPulled += keys.length;
    if (!page.isWhole) return;
    if (this.#isCoordinator(writer)) this.#host.store.retained.dropMissing(writer, page, new Set(keys));
    else for (const key of keys) seen.add(key);
  }

  /** What is not in the whole is gone. */
  #removeOthers(writer: NodeName, seen: ReadonlySet<string>, version: number): void {
    const gone = this.#host.store.routes.keysOf(writer).filter((key) => !seen.has(key));
    this.#applyRoutes(
      writer,
      gone.map((key) => ({ key, members: undefined, version })),
      version,
    );
  }

  /** What another core asks for. */
  changes(writer: NodeName, since: number, after: string): ChangesPage {
    const { routes, retained, versions } = this.#host.store;
    const page = this.#isCoordinator(writer)
      ? retained.changes(writer, since, after)
      : routes.page(writer, since, after);
    return { ...page, version: versions.of(writer) };
  }

  /** This core becomes the node's home and starts from what the node says of its routes, page by page. */
  takeIn(node: NodeName): TakeIn {
    const { store, setRoute } = this.#host;
    const seen = new Set<string>();
    let first: NodeRoutes | undefined;
    const taking = {
      get sent() {
        return first?.version ?? 0;
      },
      get keys() {
        return seen.size;
      },
      add: (page: NodeRoutes, term: number | undefined) => {
        first ??= page;
        const version = term === undefined ? 0 : this.nextVersion(node, term);
        const changes: RouteChange[] = [];
        const { sent } = taking;
        for (const { key, members } of page.routes) {
          seen.add(key);
          // One that has no version is of before there were others, and unknown to them.
          const isTold = version === 0 || store.routes.versionOf(node, key) > 0;
          if (!isTold || store.routes.membersOf(node, key) !== members) changes.push({ key, members, sent, version });
        }
        // Looked at last: what others have told until now was of before.
        const gone = page.next === undefined ? store.routes.keysOf(node).filter((key) => !seen.has(key)) : [];
        for (const key of gone) changes.push({ key, members: undefined, sent, version });
        for (const change of changes) {
          store.routes.put(node, change);
          setRoute(node, change.key, change.members);
        }
        // Also without a change: the term is new, and with it what the others have is confirmed.
        if (term !== undefined) this.publishRoutes(node, version, changes);
      },
    };
    return taking;
  }
}

export interface TakeIn {
  /** The node's number of its last route change before the first page. */
  readonly sent: number;
  /** How many routes it has. */
  readonly keys: number;
  /** @param term of the node, where there are other cores. */
  add(page: NodeRoutes, term: number | undefined): void;
}
