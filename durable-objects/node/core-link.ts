/**
 * The node's link to its home core: one ordered outbox for publishes, route changes and releases, so that what a client
 * did first is seen first, and direct calls for what has an answer of its own.
 */
import type { NodeName } from "../../cluster/name.ts";
import { limits, retryDelayMs } from "../../mqtt/limits.ts";
import type { ReasonCode } from "../../mqtt/reason-codes.ts";
import { isOverloaded, Outbox, type CountDropped, type SendBatch } from "../outbox.ts";
import type { CoordinatorRpc, GrantedClaim, NodeRpc, RetainedPage } from "../rpc.ts";
import { ClaimBatches } from "./claim-batches.ts";
import type { Home } from "./home.ts";

export interface CoreLinkEvents {
  /** A batch is about to leave: the runtime holds it until what is written now is durable. */
  readonly beforeSend: () => void;
  readonly countDropped: CountDropped;
}

export class CoreLink {
  readonly outbox: Outbox;
  readonly #claims: ClaimBatches;
  readonly #home: Home;
  readonly #coreAt: (core: NodeName) => CoordinatorRpc;
  #hasFailed = false;

  /** @param coreAt makes a fresh stub. */
  constructor(
    node: NodeName,
    home: Home,
    coreAt: (core: NodeName) => CoordinatorRpc,
    { beforeSend, countDropped }: CoreLinkEvents,
  ) {
    this.#home = home;
    this.#coreAt = coreAt;
    const connect = (): SendBatch => {
      if (this.#hasFailed) home.handleFailure(Date.now());
      this.#hasFailed = false;
      const { core, term } = home;
      const connection = { term, id: crypto.getRandomValues(new Uint32Array(1))[0]! };
      const stub = coreAt(core);
      return (batch) => {
        beforeSend();
        return this.#watched(stub.route(node, connection, batch));
      };
    };
    this.outbox = new Outbox(connect, countDropped);
    this.#claims = new ClaimBatches({
      claimAll: (clientIds) => coreAt(home.core).claimAll(clientIds, node, home.term),
      claim: (clientId) => this.#call((core) => core.claim(clientId, node, home.term)),
    });
  }

  /** The failures of one connection count once. */
  async #watched<T>(answer: Promise<T>): Promise<T> {
    try {
      const value = await answer;
      this.#home.handleAnswer();
      return value;
    } catch (error) {
      this.#hasFailed ||= !isOverloaded(error);
      throw error;
    }
  }

  /** Held until the core answers, however long that takes: the code is the core's. */
  add(record: Uint8Array, answered: (reasonCode: ReasonCode) => void): void {
    this.outbox.add(record, (reasonCode) => answered(reasonCode as ReasonCode));
    const nearest = this.#home.nearestAgain(Date.now());
    if (nearest !== undefined) this.#goBackTo(nearest).catch(() => {});
  }

  async #goBackTo(nearest: NodeName): Promise<void> {
    if (!(await this.#coreAt(nearest).isReady())) return;
    this.#home.return(Date.now());
    this.outbox.reconnect();
  }

  claim(clientId: string): Promise<GrantedClaim> {
    return this.#claims.claim(clientId);
  }

  /** @returns whether the claim is still the latest. */
  abandon(clientId: string, epoch: number, holder: NodeName): Promise<boolean> {
    return this.#call((core) => core.abandon(clientId, epoch, holder));
  }

  /** Resolves when all that was routed to the node before has reached it; rejects when the core cannot reach it. */
  async settled(node: NodeName): Promise<void> {
    if (!(await this.reaches(node))) throw new Error(`the core cannot reach ${node}`);
  }

  /** Whether the core reaches the node. */
  reaches(node: NodeName): Promise<boolean> {
    return this.#call((core) => core.settled(node));
  }

  retained(filter: string, after: string | undefined, messagesMax: number): Promise<RetainedPage> {
    return this.#call((core) => core.retained(filter, after, messagesMax));
  }

  /** A call to a node of another deployment. */
  callNode(node: NodeName, method: keyof NodeRpc, args: readonly unknown[]): Promise<unknown> {
    return this.#coreAt(this.#home.core).callNode(node, method, args);
  }

  /** Calls that may be made twice: each attempt on a fresh stub, since one that threw stays dead. */
  async #call<T>(call: (core: CoordinatorRpc) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        const answer = await call(this.#coreAt(this.#home.core));
        this.#home.handleAnswer();
        return answer;
      } catch (error) {
        if (attempt >= limits.attemptsMax) throw error;
        if (!isOverloaded(error)) this.#home.handleFailure(Date.now());
        await scheduler.wait(retryDelayMs(attempt));
      }
    }
  }
}
