/**
 * A node that may hold a session which another one takes over.
 *
 * Its calls may be made twice, so they are, each on a fresh stub, until it has failed to answer for `holderSilentMsMax`.
 * Then it counts as unreachable, unless the core reaches it and it answers after all, and the taker goes on without it. One
 * that answers slowly, that is overloaded, or that the core alone does not reach, does not: it has the session, and to go on
 * without it would lose what was acknowledged.
 */
import type { NodeName } from "../../cluster/name.ts";
import { limits, retryDelayMs } from "../../mqtt/limits.ts";
import { isOverloaded } from "../outbox.ts";
import type { NodeRpc, StoredDelivery, TakenOver } from "../rpc.ts";

/** The node does not answer. */
export class Unreachable extends Error {
  override readonly name = "Unreachable";

  constructor(node: NodeName) {
    super(`${node} cannot be reached`);
  }
}

/** What the taker gives. */
export interface HolderLinkHost {
  /** Makes a fresh stub. */
  readonly connect: () => NodeRpc;
  /** Whether the session is still wanted. */
  readonly isWanted: () => boolean;
  /** Whether the core reaches the node. */
  readonly isReached: () => Promise<boolean>;
}

export class HolderLink {
  readonly node: NodeName;
  readonly #host: HolderLinkHost;
  #answeredAt = Date.now();
  #hasAskedCore = false;

  constructor(node: NodeName, host: HolderLinkHost) {
    this.node = node;
    this.#host = host;
  }

  takeOver(clientId: string, epoch: number, resume: boolean): Promise<TakenOver> {
    return this.#call((node) => node.takeOver(clientId, epoch, resume));
  }

  takeOverKnown(clientId: string, epoch: number): Promise<Uint8Array> {
    return this.#call((node) => node.takeOverKnown(clientId, epoch));
  }

  takeOverMessages(clientId: string, epoch: number, afterSeq: number): Promise<StoredDelivery[]> {
    return this.#call((node) => node.takeOverMessages(clientId, epoch, afterSeq));
  }

  takeOverDone(clientId: string, epoch: number, known: Uint8Array): Promise<void> {
    return this.#call((node) => node.takeOverDone(clientId, epoch, known));
  }

  async #call<T>(call: (node: NodeRpc) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        const answer = await call(this.#host.connect());
        this.#answeredAt = Date.now();
        return answer;
      } catch (error) {
        const leftMs = this.#answeredAt + limits.holderSilentMsMax - Date.now();
        const isSilent = leftMs <= 0;
        if (isSilent && isOverloaded(error)) throw error;
        if (!this.#host.isWanted() || (isSilent && !(await this.#isBack()))) throw new Unreachable(this.node);
        // The last try is at the end.
        await scheduler.wait(isSilent ? 0 : Math.min(retryDelayMs(attempt), leftMs));
      }
    }
  }

  /** Once: a node that the core reaches has the session, and is asked for as long again. */
  async #isBack(): Promise<boolean> {
    if (this.#hasAskedCore) return false;
    this.#hasAskedCore = true;
    const isReached = await this.#host.isReached();
    this.#answeredAt = Date.now();
    return isReached;
  }
}
