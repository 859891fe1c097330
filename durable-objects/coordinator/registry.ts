/**
 * The session registry: which node has a client id (G4), and where a session of it may be.
 *
 * A claim is one step, without an await, and claims are numbered: `epoch` rises with each of a client, also across
 * restarts. Every node that may hold a session is remembered, so that no failure on the way loses one, until a claimer
 * says that it has the session (`opened`).
 *
 * Fencing. A claimer that cannot reach a holder goes on without it: the holder is told, or what it is told is parked for
 * it, and only then forgotten. So a holder that comes back either hears that the session has ended, or claims first: each
 * holder is remembered with the epoch since which it is one, and what it has from before is stale.
 *
 *     A claims  1   A since 1
 *     B claims  2   B since 2, A since 1     cannot reach A, abandons it: "ended 2" is parked for A
 *                   B since 2
 *     A claims  3   A since 3, B since 2     its session of epoch 1 is stale
 */
import type { NodeName } from "../../cluster/name.ts";
import { endedRecord, type Claim, type HeldSession, type Holder } from "../rpc.ts";
import type { CoreStore, StoredClaim } from "./core-store.ts";
import type { NodeLink } from "./node-link.ts";

export class Registry {
  readonly #store: CoreStore;
  readonly #linkTo: (node: NodeName) => NodeLink;
  #lastEpoch = 0;
  /** Client ids that were on the way between nodes when they came to this core. */
  readonly #opening = new Set<string>();

  constructor(store: CoreStore, linkTo: (node: NodeName) => NodeLink) {
    this.#store = store;
    this.#linkTo = linkTo;
  }

  /** @param mayHold the node may have a session that nobody has told of: it is not stale then. */
  claim(clientId: string, node: NodeName, now: number, mayHold: boolean): Claim {
    const before = this.#store.claimOf(clientId);
    const epoch = Math.max(now, this.#lastEpoch + 1, (before?.epoch ?? 0) + 1);
    this.#lastEpoch = epoch;
    const holders = before?.holders ?? [];
    const own = holders.find((holder) => holder.node === node) ?? { node, since: mayHold ? 0 : epoch };
    const others = holders.filter((holder) => holder.node !== node);
    this.#store.putClaim(clientId, { epoch, holders: [own, ...others] });
    return { epoch, since: own.since, holders: others };
  }

  /** The claimer has the session: no other node holds any of it. */
  opened(clientId: string, epoch: number, node: NodeName): void {
    this.#opening.delete(clientId);
    const claim = this.#store.claimOf(clientId);
    if (!claim || claim.epoch > epoch) return;
    const holder = claim.holders.find((each) => each.node === node) ?? { node, since: epoch };
    this.#store.putClaim(clientId, { epoch, holders: [holder] });
  }

  /** Only the latest claim can be released. */
  release(clientId: string, epoch: number): void {
    this.#opening.delete(clientId);
    this.#store.deleteClaim(clientId, epoch);
  }

  // ---- from elsewhere ---------------------------------------------------------------------------------------------

  /**
   * What another core knew of a client id that has come to this one. Of two claims that were made apart the later one
   * holds: it knows nothing of the other's holders, so what they have ends.
   */
  takeIn(clientId: string, claim: StoredClaim): void {
    const known = this.#store.claimOf(clientId);
    if (!known || known.epoch === claim.epoch)
      return this.#store.putClaim(clientId, known ? merged(known, claim) : claim);
    const [later, earlier] = known.epoch > claim.epoch ? [known, claim] : [claim, known];
    this.#store.putClaim(clientId, later);
    for (const { node } of earlier.holders)
      if (!later.holders.some((holder) => holder.node === node)) this.#end(node, clientId, later.epoch);
  }

  /** What the node has of the client id from before that epoch is to end. */
  #end(node: NodeName, clientId: string, epoch: number): void {
    console.log(JSON.stringify({ event: "session_discarded", clientid: clientId, node }));
    this.#linkTo(node).add({ bytes: endedRecord(clientId, epoch), settled: () => {} });
  }

  /** What a node says that it holds. */
  handleHeld(node: NodeName, { clientId, epoch, isOpening }: HeldSession): void {
    if (isOpening) this.#opening.add(clientId);
    const known = this.#store.claimOf(clientId);
    const held: StoredClaim = { epoch, holders: [{ node, since: 0 }] };
    if (!known) return this.#store.putClaim(clientId, held);
    if (known.holders.some((each) => each.node === node)) {
      if (epoch > known.epoch) this.#store.putClaim(clientId, merged(known, held));
      return;
    }
    const isMoving = known.holders.length > 1 || this.#opening.has(clientId);
    if (isMoving) return this.#store.putClaim(clientId, merged(known, held));
    // Nobody is taking one over from the other: the older of the two is from before.
    const older = known.epoch > epoch ? node : known.holders[0]!.node;
    if (older !== node) this.#store.putClaim(clientId, held);
    // Two cores may have given one number: the end is then of the next.
    this.#end(older, clientId, known.epoch === epoch ? epoch + 1 : Math.max(known.epoch, epoch));
  }

  /** The node is in the cluster no more. */
  dropHolder(node: NodeName): void {
    for (let after: string | undefined = ""; after !== undefined;) {
      const page = this.#store.claims(after);
      for (const { clientId, claim } of page) {
        const holders = claim.holders.filter((holder) => holder.node !== node);
        if (holders.length === claim.holders.length) continue;
        if (holders.length === 0) this.#store.deleteClaim(clientId, claim.epoch);
        else this.#store.putClaim(clientId, { ...claim, holders });
      }
      after = page.at(-1)?.clientId;
    }
  }

  /** The claimer goes on without the holder. @returns whether its claim is still the latest. */
  async abandon(clientId: string, epoch: number, holder: NodeName): Promise<boolean> {
    const isLatest = (): boolean => this.#store.claimOf(clientId)?.epoch === epoch;
    if (!isLatest()) return false;
    const bytes = endedRecord(clientId, epoch);
    const code = await new Promise<number | undefined>((settled) => this.#linkTo(holder).add({ bytes, settled }));
    if (code === undefined || code >= 0x80) throw new Error(`${holder} could not be told that a session has ended`);
    // Forgotten in the turn in which it is parked: both are on disk or neither.
    const claim = this.#store.claimOf(clientId);
    if (claim?.epoch !== epoch) return false;
    this.#store.putClaim(clientId, { epoch, holders: claim.holders.filter(({ node }) => node !== holder) });
    return true;
  }
}

/** All holders of both, those of the later claim first. */
function merged(a: StoredClaim, b: StoredClaim): StoredClaim {
  const [later, earlier] = a.epoch >= b.epoch ? [a, b] : [b, a];
  const holders: Holder[] = [...later.holders];
  for (const holder of earlier.holders) if (!holders.some(({ node }) => node === holder.node)) holders.push(holder);
  return { epoch: later.epoch, holders };
}
