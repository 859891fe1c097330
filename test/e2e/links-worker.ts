// The worker as it is deployed, with cores that do nothing but link, and a way to have them call one another:
//
//   POST /test?core=<name>   {"act": ...}, see `Act`; the answer is JSON

import { DurableObject, RpcTarget } from "cloudflare:workers";

import { readSettings } from "../../cluster/config.ts";
import { Links } from "../../durable-objects/coordinator/links.ts";
import worker, { BrokerNode } from "../../worker/index.ts";
import type { SocketProps } from "../../worker/link.ts";

export { BrokerNode };

export type Act =
  /** `times` calls at once; the answers in the order of the calls. */
  | { act: "call"; peer: string; address: string; method: keyof TestRpc; args: unknown[]; times: number }
  /** Sends so many bytes there and back, and says whether they are the same. */
  | { act: "bytes"; peer: string; address: string; count: number }
  | { act: "close"; peer: string }
  /** What has happened since the start. */
  | { act: "events" };

/** Of a call. */
export type Outcome = { answer: unknown } | { error: string; name: string; reason?: string; overloaded?: boolean };

interface TestRpc {
  echo(value: unknown): Promise<unknown>;
  /** The caller's name, as the link has proved it. */
  caller(): Promise<string>;
  /** How many calls of it came before. */
  next(): Promise<number>;
  wait(ms: number): Promise<string>;
  fail(message: string): Promise<never>;
  zeros(count: number): Promise<Uint8Array>;
  /** Calls the caller back over its own link. */
  back(address: string): Promise<string>;
}

export class Coordinator extends DurableObject<Env> {
  readonly #events: string[] = [];
  readonly #links: Links<TestRpc>;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.#links = new Links({
      self: ctx.id.name ?? "",
      settings: readSettings(env),
      env,
      targetFor: (peer) => new Target(peer, this.#links),
      onUp: (peer) => this.#events.push(`up ${peer}`),
      onDown: (peer, reason) => this.#events.push(`down ${peer} ${reason}`),
      count: (metric) => this.#events.push(`count ${metric}`),
    });
  }

  override fetch(request: Request): Response {
    return this.#links.accept(request);
  }

  async act(act: Act): Promise<unknown> {
    switch (act.act) {
      case "call": {
        const peer = this.#links.to(act.peer, act.address);
        const method = peer[act.method] as (...args: unknown[]) => Promise<unknown>;
        const calls = Array.from({ length: act.times }, () => method(...act.args));
        return Promise.all(calls.map(outcome));
      }
      case "bytes": {
        // A part of a larger one, as records are.
        const bytes = new Uint8Array(act.count + 7).map((_, i) => i * 31).subarray(7);
        const back = (await this.#links.to(act.peer, act.address).echo(bytes)) as Uint8Array;
        return back instanceof Uint8Array && back.length === act.count && back.every((byte, i) => byte === bytes[i]);
      }
      case "close":
        return this.#links.close(act.peer);
      case "events":
        return this.#events;
    }
  }
}

class Target extends RpcTarget implements TestRpc {
  #calls = 0;
  readonly #peer: string;
  readonly #links: Links<TestRpc>;

  constructor(peer: string, links: Links<TestRpc>) {
    super();
    this.#peer = peer;
    this.#links = links;
  }

  async echo(value: unknown): Promise<unknown> {
    return value;
  }

  async caller(): Promise<string> {
    return this.#peer;
  }

  async next(): Promise<number> {
    return this.#calls++;
  }

  async wait(ms: number): Promise<string> {
    await scheduler.wait(ms);
    return "waited";
  }

  async fail(message: string): Promise<never> {
    throw Object.assign(new TypeError(message), { overloaded: true });
  }

  async zeros(count: number): Promise<Uint8Array> {
    return new Uint8Array(count);
  }

  async back(address: string): Promise<string> {
    return this.#links.to(this.#peer, address).caller();
  }
}

function outcome(call: Promise<unknown>): Promise<Outcome> {
  return call.then(
    (answer) => ({ answer: answer instanceof Uint8Array ? answer.length : answer }),
    ({ message, name, ...more }: Error) => ({ ...more, error: message, name }),
  );
}

export default {
  async fetch(request: Request, env: Env, ctx: ExecutionContext<SocketProps>): Promise<Response> {
    const url = new URL(request.url);
    if (url.pathname !== "/test") return worker.fetch(request, env, ctx);
    const core = env.COORDINATOR.getByName(url.searchParams.get("core") ?? "") as unknown as Pick<Coordinator, "act">;
    return Response.json((await core.act(await request.json())) ?? null);
  },
} satisfies ExportedHandler<Env, unknown, unknown, SocketProps>;
