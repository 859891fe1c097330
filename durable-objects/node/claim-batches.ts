/**
 * Claims go to the core together: those of one turn, and what gathers while the last call is under way. A call and a
 * commit of the core cost more than the claims in them, and what the core has answered in one call the node does in one
 * turn. Behind a call that is not answered soon, to a core that is far away or gone, they wait for a moment only.
 *
 * What the core cannot say at once, because another core owns the client id, is asked for alone, and so is everything when
 * the call has failed: no client waits for what another one's claim needs.
 */
import { limits } from "../../mqtt/limits.ts";
import type { GrantedClaim } from "../rpc.ts";

export interface ClaimCalls {
  /** In their order; undefined: to be asked for alone. */
  readonly claimAll: (clientIds: readonly string[]) => Promise<readonly (GrantedClaim | undefined)[]>;
  readonly claim: (clientId: string) => Promise<GrantedClaim>;
}

interface Waiting extends PromiseWithResolvers<GrantedClaim> {
  readonly clientId: string;
}

export class ClaimBatches {
  readonly #calls: ClaimCalls;
  #waiting: Waiting[] = [];
  /** Calls, with the one that will be made at the turn's end. */
  #underWay = 0;
  #moment: ReturnType<typeof setTimeout> | undefined;

  constructor(calls: ClaimCalls) {
    this.#calls = calls;
  }

  claim(clientId: string): Promise<GrantedClaim> {
    const waiting = { clientId, ...Promise.withResolvers<GrantedClaim>() };
    this.#waiting.push(waiting);
    if (this.#underWay === 0) {
      this.#underWay++;
      setImmediate(() => void this.#callAll());
    } else
      this.#moment ??= setTimeout(() => {
        this.#moment = undefined;
        this.#underWay++;
        void this.#callAll();
      }, limits.claimsGatherMs);
    return waiting.promise;
  }

  async #callAll(): Promise<void> {
    for (let batch = this.#nextBatch(); batch.length > 0; batch = this.#nextBatch()) {
      const claims = await this.#calls.claimAll(batch.map(({ clientId }) => clientId)).catch(() => []);
      for (const [index, { clientId, resolve }] of batch.entries())
        resolve(claims[index] ?? this.#calls.claim(clientId));
    }
    this.#underWay--;
  }

  #nextBatch(): Waiting[] {
    let chars = 0;
    let count = 0;
    for (const { clientId } of this.#waiting) {
      chars += clientId.length;
      if (count === limits.claimsPerCallMax || (count > 0 && chars > limits.claimCharsPerCallMax)) break;
      count++;
    }
    return this.#waiting.splice(0, count);
  }
}
