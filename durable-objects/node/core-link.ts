/**
 * The node's link to its home core: one ordered outbox for publishes, route changes and releases, so that what a client
 * did first is seen first, and direct calls for what has an answer of its own.
 */
import type { NodeName } from "../../cluster/name.ts";
import { limits, retryDelayMs } from "../../mqtt/limits.ts";
import type { ReasonCode } from "../../mqtt/reason-codes.ts";
import { Outbox, type CountDropped, type SendBatch } from "../outbox.ts";
import type { Claim, CoordinatorRpc, RetainedPage } from "../rpc.ts";

export interface CoreLinkEvents {
  /** A batch is about to leave: the runtime holds it until what is written now is durable. */
  readonly beforeSend: () => void;
  readonly countDropped: CountDropped;
}

export class CoreLink {
  readonly outbox: Outbox;
  readonly #node: NodeName;
  readonly #stub: () => CoordinatorRpc;

  /** @param stub makes a fresh stub of the home core. */
  constructor(node: NodeName, stub: () => CoordinatorRpc, { beforeSend, countDropped }: CoreLinkEvents) {
    this.#node = node;
    this.#stub = stub;
    const connect = (): SendBatch => {
      const core = stub();
      return (batch) => {
        beforeSend();
        return core.route(node, batch);
      };
    };
    this.outbox = new Outbox(connect, countDropped);
  }

  /** Held until the core answers, however long that takes: the code is the core's. */
  add(record: Uint8Array, answered: (reasonCode: ReasonCode) => void): void {
    this.outbox.add(record, (reasonCode) => answered(reasonCode as ReasonCode));
  }

  claim(clientId: string): Promise<Claim> {
    return this.#call((core) => core.claim(clientId, this.#node));
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

  /** Calls that may be made twice: each attempt on a fresh stub, since one that threw stays dead. */
  async #call<T>(call: (core: CoordinatorRpc) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await call(this.#stub());
      } catch (error) {
        if (attempt >= limits.attemptsMax) throw error;
        await scheduler.wait(retryDelayMs(attempt));
      }
    }
  }
}
