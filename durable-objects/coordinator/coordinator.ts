import { DurableObject } from "cloudflare:workers";
import { readSettings } from "../../cluster/config.ts";
import { parseNodeName, type NodeName } from "../../cluster/name.ts";
import { Alarm } from "../alarm.ts";
import type { Claim, CoordinatorRpc, RetainedPage } from "../rpc.ts";
import { Core } from "./core.ts";

/** A core of the cluster, named `name@host`: alarm, storage and RPC for the Core that decides. */
export class Coordinator extends DurableObject<Env> implements CoordinatorRpc {
  readonly #core: Core;
  readonly #alarm: Alarm;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    const name = ctx.id.name ?? "";
    parseNodeName(name);
    this.#alarm = new Alarm(ctx.storage);
    this.#core = new Core(name, readSettings(env), {
      storage: ctx.storage,
      nodeAt: (node: NodeName) => env.NODE.getByName(node),
      ringAt: (at) => this.#alarm.ringAt(at),
    });
  }

  route(node: NodeName, batch: Uint8Array): Promise<Uint8Array> {
    return this.#core.route(node, batch);
  }

  async claim(clientId: string, node: NodeName): Promise<Claim> {
    return this.#core.claim(clientId, node);
  }

  abandon(clientId: string, epoch: number, holder: NodeName): Promise<boolean> {
    return this.#core.registry.abandon(clientId, epoch, holder);
  }

  settled(node: NodeName): Promise<boolean> {
    return this.#core.forwarder.linkTo(node).settled();
  }

  async retained(filter: string, after: string | undefined, messagesMax: number): Promise<RetainedPage> {
    return this.#core.retained(filter, after, messagesMax);
  }

  override async alarm(): Promise<void> {
    this.#alarm.rang();
    await this.#core.handleAlarm(Date.now());
  }
}
