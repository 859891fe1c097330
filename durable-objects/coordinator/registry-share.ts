/**
 * Which core has which client ids, and what happens when the cores change.
 *
 * Each client id has one owner among the running cores, by rendezvous hashing, so a claim is one step on one core. When a
 * core comes or goes, the ids that change their owner are gathered by the new one from those who know: the other cores for
 * what they have been told, the nodes for what they hold. Until then claims of those ids wait; all others go on.
 *
 * A node that cannot be reached is asked when it is there again. Should a client have been let in elsewhere meanwhile, what
 * that node holds is from before: it is told that the session has ended.
 */
import type { NodeName } from "../../cluster/name.ts";
import { ownerAmong } from "../../cluster/placement.ts";
import { limits, retryDelayMs } from "../../mqtt/limits.ts";
import type { Claim, ClaimsPage, Holdings, NodeRpc, RegistryMove } from "../rpc.ts";
import type { CoreStore } from "./core-store.ts";
import type { PeerLink } from "./peer-link.ts";
import type { Registry } from "./registry.ts";

/** What the core gives. */
export interface RegistryShareHost {
  readonly self: NodeName;
  /** The cores when there are no others. */
  readonly alone: readonly NodeName[];
  readonly store: CoreStore;
  readonly registry: Registry;
  readonly link: (core: NodeName) => PeerLink;
  /** The nodes of the cluster. */
  readonly nodes: () => readonly NodeName[];
  readonly nodeAt: (name: NodeName) => NodeRpc;
  /** Before the other cores have been met; undefined: they have. */
  readonly whenReady: () => Promise<void> | undefined;
  /** Finds out whether a core is there. */
  readonly check: (core: NodeName) => void;
  /** The node is of a deployment that is not in reach. */
  readonly isAway: (name: NodeName) => Promise<boolean>;
  /** Makes sure that `handleAlarm` is called at this time or before. */
  readonly ringAt: (at: number) => void;
}

/** The fact that says among which cores the ids were divided last. */
const coresFact = "registry_cores";
/** The fact that says that there may be claims here that another core owns. */
const giftsFact = "registry_gifts";
const gathersAtOnce = 16;

export class RegistryShare {
  readonly #host: RegistryShareHost;
  #cores: readonly NodeName[];
  /** Those of before, while ids are on the way. */
  #before: readonly NodeName[] | undefined;
  #moving: Promise<void> = Promise.resolve();
  #moves = 0;
  /** Others took this core for down: they have owned its ids meanwhile. */
  #wasOut = false;
  #isGiving = false;
  /** The cores have changed since the giving began. */
  #isToGive = false;
  /** Nodes that could not be asked. */
  readonly #missed = new Set<NodeName>();

  constructor(host: RegistryShareHost) {
    this.#host = host;
    this.#cores = host.store.fact(coresFact)?.split(" ").filter(Boolean) ?? host.alone;
    if (host.store.fact(giftsFact) === "yes") host.ringAt(Date.now() + limits.retryLastMs);
  }

  /** The cores among which the client ids are divided. */
  get cores(): readonly NodeName[] {
    return this.#cores;
  }

  /** undefined: no core is in reach. */
  ownerOf(clientId: string): NodeName | undefined {
    return ownerAmong(this.#cores, clientId);
  }

  /** The claim; undefined: this core is not the owner. */
  async claim(clientId: string, node: NodeName): Promise<Claim | undefined> {
    if (!(await this.#owns(clientId))) return undefined;
    return this.#claim(clientId, node);
  }

  /** The claim; undefined: this core is not the owner, or does not know yet what was known of the id. */
  claimAtOnce(clientId: string, node: NodeName): Claim | undefined {
    const isReady = this.#host.whenReady() === undefined && this.#isOwn(clientId) && !this.#isOnTheWay(clientId);
    return isReady ? this.#claim(clientId, node) : undefined;
  }

  #claim(clientId: string, node: NodeName): Claim {
    // Among several cores another one may have taken itself for the owner, unknown to this one.
    const mayHold = this.#cores.length > 1 || this.#missed.has(node);
    return this.#host.registry.claim(clientId, node, Date.now(), mayHold);
  }

  /** The nodes that may have a session of the client, the claimer first; undefined: this core is not the owner. */
  async holdersOf(clientId: string): Promise<readonly NodeName[] | undefined> {
    if (!(await this.#owns(clientId))) return undefined;
    return this.#host.store.claimOf(clientId)?.holders.map(({ node }) => node) ?? [];
  }

  /** Whether the claim is the latest; undefined: this core is not the owner. */
  async abandon(clientId: string, epoch: number, holder: NodeName): Promise<boolean | undefined> {
    if (!(await this.#owns(clientId))) return undefined;
    return this.#host.registry.abandon(clientId, epoch, holder);
  }

  #isOwn(clientId: string): boolean {
    return this.ownerOf(clientId) === this.#host.self;
  }

  #isOnTheWay(clientId: string): boolean {
    return this.#before !== undefined && ownerAmong(this.#before, clientId) !== this.#host.self;
  }

  /** Whether this core owns the id, and has what was known of it. */
  async #owns(clientId: string): Promise<boolean> {
    // Among whom the ids are divided is not known before it has met the others.
    await this.#host.whenReady();
    while (this.#isOwn(clientId)) {
      if (!this.#isOnTheWay(clientId)) return true;
      await this.#moving;
    }
    const owner = this.ownerOf(clientId);
    // Who asks may know better: the owner may be gone.
    if (owner !== undefined) this.#host.check(owner);
    return false;
  }

  // ---- moving -----------------------------------------------------------------------------------------------------

  handleWasOut(): void {
    const { self, store } = this.#host;
    this.#wasOut = true;
    // Others believe by now that this core has asked for what it missed: should it crash first, it asks when it wakes.
    store.putFact(coresFact, this.#cores.filter((core) => core !== self).join(" "));
  }

  /** @param cores the running cores, this one too. */
  handleCores(cores: readonly NodeName[]): void {
    const { self, store } = this.#host;
    const after = [...cores].sort();
    const isSame = after.join(" ") === this.#cores.join(" ");
    if (isSame && !this.#wasOut) return;
    // What is on the way is asked for again: it was not whole.
    const owned = this.#before ?? this.#cores;
    const before = this.#wasOut ? owned.filter((core) => core !== self) : owned;
    this.#wasOut = false;
    this.#cores = after;
    this.#before = before;
    store.putFact(giftsFact, "yes");
    const moves = ++this.#moves;
    const move = async (): Promise<void> => {
      await this.#gather({ owner: self, before, after });
      if (moves !== this.#moves) return;
      this.#before = undefined;
      store.putFact(coresFact, after.join(" "));
      await this.#giveAway();
    };
    this.#moving = move();
  }

  async #gather(move: RegistryMove): Promise<void> {
    const { self, link, nodes } = this.#host;
    if (!move.after.includes(self)) return;
    const others = move.after.filter((core) => core !== self);
    await Promise.all(others.map((core) => this.#gatherFromCore(link(core), move)));
    const names = [...nodes()];
    const gatherSome = async (): Promise<void> => {
      for (let name = names.pop(); name !== undefined; name = names.pop()) await this.#gatherFromNode(name, move);
    };
    await Promise.all(Array.from({ length: gathersAtOnce }, gatherSome));
  }

  async #gatherFromCore(core: PeerLink, move: RegistryMove): Promise<void> {
    try {
      for (let after: string | undefined = ""; after !== undefined;) {
        const place: string = after;
        const page: ClaimsPage = await core.call((peer) => peer.claimsFor(move, place));
        for (const { clientId, ...claim } of page.claims)
          if (this.#isOwn(clientId)) this.#host.registry.takeIn(clientId, claim);
        after = page.next;
      }
    } catch (error) {
      // It has gone away: what it knew, the nodes know.
      console.error(`${core.name} did not give its claims: ${String(error)}`);
    }
  }

  async #gatherFromNode(node: NodeName, move: RegistryMove): Promise<void> {
    try {
      for (let after: string | undefined = ""; after !== undefined;) {
        const place: string = after;
        const page = await this.#insisting(node, (rpc) => rpc.holdings(move, place));
        for (const held of page.sessions) if (this.#isOwn(held.clientId)) this.#host.registry.handleHeld(node, held);
        after = page.next;
      }
      this.#missed.delete(node);
    } catch (error) {
      this.#missed.add(node);
      console.error(`${node} did not say what it holds: ${String(error)}`);
    }
  }

  /** To go on without what a node holds loses it: like any holder it is asked until it has been silent for too long. */
  async #insisting(node: NodeName, ask: (rpc: NodeRpc) => Promise<Holdings>): Promise<Holdings> {
    const startedAt = Date.now();
    for (let attempt = 1; ; attempt++) {
      try {
        return await ask(this.#host.nodeAt(node));
      } catch (error) {
        const leftMs = startedAt + limits.holderSilentMsMax - Date.now();
        if (leftMs <= 0 || (await this.#host.isAway(node))) throw error;
        await scheduler.wait(Math.min(retryDelayMs(attempt), leftMs));
      }
    }
  }

  /** A node is there that was not, or is new: whatever it holds of this core's ids is to be known. */
  async handleNodeBack(node: NodeName, isNew: boolean): Promise<void> {
    if (!isNew && !this.#missed.has(node)) return;
    const { self } = this.#host;
    await this.#gatherFromNode(node, { owner: self, before: [], after: this.#cores });
  }

  /** Claims that are another core's now. */
  claimsFor({ owner, after: cores }: RegistryMove, after: string): ClaimsPage {
    const page = this.#host.store.claims(after);
    const claims = page.filter(({ clientId }) => ownerAmong(cores, clientId) === owner);
    return { claims: claims.map(({ clientId, claim }) => ({ clientId, ...claim })), next: page.at(-1)?.clientId };
  }

  /** What could not be given is given later. */
  handleAlarm(): void {
    if (this.#host.store.fact(giftsFact) === "yes") void this.#giveAway();
  }

  /**
   * What this core has claimed and does not own goes to the owner: also what it claimed after that one had asked, before
   * it knew of it.
   */
  async #giveAway(): Promise<void> {
    const { store, ringAt } = this.#host;
    // What is on the way to this core comes first; that is its end, or the alarm's, to go on.
    if (this.#before) return ringAt(Date.now() + limits.retryLastMs);
    this.#isToGive = true;
    if (this.#isGiving) return;
    this.#isGiving = true;
    try {
      while (this.#isToGive) {
        this.#isToGive = false;
        await this.#giveAll();
      }
      store.putFact(giftsFact, "no");
    } catch (error) {
      console.error(`claims are not given away yet: ${String(error)}`);
      ringAt(Date.now() + limits.probeLastMs);
    }
    this.#isGiving = false;
  }

  async #giveAll(): Promise<void> {
    const { self, store, link } = this.#host;
    for (let after: string | undefined = ""; after !== undefined;) {
      const page = store.claims(after);
      after = page.at(-1)?.clientId;
      const gifts = Map.groupBy(page, ({ clientId }) => this.ownerOf(clientId));
      for (const [owner, claims] of gifts) {
        if (owner === self) continue;
        if (owner === undefined) throw new Error("no core is in reach");
        const given = claims.map(({ clientId, claim }) => ({ clientId, ...claim }));
        await link(owner).call((core) => core.giveClaims(given));
        // One that was made here meanwhile has a higher epoch, and stays.
        for (const { clientId, epoch } of given) store.deleteClaim(clientId, epoch);
      }
    }
  }

  /** Who gives them may know the cores better, or less well: what turns out not to be this core's goes on. */
  handleGiven(claims: ClaimsPage["claims"]): void {
    const { registry, store, ringAt } = this.#host;
    for (const { clientId, ...claim } of claims) registry.takeIn(clientId, claim);
    if (claims.every(({ clientId }) => this.#isOwn(clientId))) return;
    this.#isToGive = true;
    store.putFact(giftsFact, "yes");
    ringAt(Date.now() + limits.retryLastMs);
  }
}
