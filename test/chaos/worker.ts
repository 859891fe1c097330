// The worker as it is deployed, in bad weather: its two classes, each with an `env` whose calls may fail, and a way to
// end an object's life. No production code knows of it.
//
//   POST /chaos/weather           a Forecast, from now on
//   POST /chaos/crash?object=...   the object is gone, with its sockets and whatever it does (`ctx.abort()`)
//   POST /chaos/sleep?object=...   it hibernates as soon as it does nothing: its memory is gone, its sockets stay
//
// It writes a line for each thing that it does to a call or to an object: "chaos: <what> ...".

import worker, { BrokerNode as DeployedNode, Coordinator as DeployedCoordinator } from "../../worker/index.ts";
import type { SocketProps } from "../../worker/link.ts";
import { random } from "../support/random.ts";
import { calm, fateOf, type Fate, type Forecast } from "./weather.ts";

/** What workerd offers to tests behind the flag `unsafe_module`. Wrangler does not know it: its name is not to be seen. */
interface Unsafe {
  /** Waits until the object does nothing, then takes its memory. Rejects when it does not run or does not rest. */
  evict(stub: unknown, options: { readonly webSockets: "hibernate" | "close" }): Promise<void>;
}
const unsafeModule: string = "workerd:unsafe";
const { default: unsafe } = (await import(unsafeModule)) as { default: Unsafe };

class Sky {
  forecast = calm;
  #random = random(0);

  change(forecast: Forecast): void {
    this.forecast = forecast;
    this.#random = random(forecast.seed);
  }

  fateOf(from: string, to: string): Fate {
    return fateOf(this.forecast, from, to, this.#random());
  }

  draw(): number {
    return this.#random();
  }
}

/** All objects of a workerd process are in one isolate, so this is how the test reaches them at once. */
const sky = new Sky();

function tell(what: string, ...more: string[]): void {
  console.log(["chaos:", what, ...more].join(" "));
}

// ---- objects ----------------------------------------------------------------------------------------------------------

const crashed = "chaos: crashed";

export class BrokerNode extends DeployedNode {
  constructor(ctx: DurableObjectState, env: Env) {
    const name = ctx.id.name ?? "";
    const sockets = ctx.getWebSockets().length;
    tell("wakes", name, `${sockets} sockets`);
    super(ctx, envOf(name, env));
  }

  crash(): void {
    this.ctx.abort(crashed);
  }
}

export class Coordinator extends DeployedCoordinator {
  constructor(ctx: DurableObjectState, env: Env) {
    const name = ctx.id.name ?? "";
    tell("wakes", name);
    super(ctx, envOf(name, env));
  }

  crash(): void {
    this.ctx.abort(crashed);
  }
}

/** The same environment, but that `from` calls other objects by stubs that may fail. */
function envOf(from: string, env: Env): Env {
  return { ...env, NODE: namespaceOf(from, env.NODE), COORDINATOR: namespaceOf(from, env.COORDINATOR) };
}

function namespaceOf<T extends Rpc.DurableObjectBranded>(
  from: string,
  namespace: DurableObjectNamespace<T>,
): DurableObjectNamespace<T> {
  const getByName = (to: string) => stubOf(from, to, namespace.getByName(to) as unknown as Callable);
  return { getByName } as unknown as DurableObjectNamespace<T>;
}

// ---- calls ------------------------------------------------------------------------------------------------------------

/** Any stub of an object of this worker. */
interface Callable {
  readonly [method: string]: (...args: unknown[]) => Promise<unknown>;
}

function stubOf(from: string, to: string, stub: Callable): unknown {
  // Most are fast. Calls on one stub stay in order, on different ones they overtake one another.
  const slowness = Math.max(0, sky.draw() * 5 - 4);
  let line: Promise<unknown> | undefined;
  let broken: Error | undefined;
  const fail = (error: Error): never => {
    broken ??= error;
    throw broken;
  };
  const travel = async (ms: number): Promise<void> => {
    const arrived = Promise.all([line, scheduler.wait(ms)]);
    line = arrived;
    await arrived;
    if (line === arrived) line = undefined;
  };
  const call = async (target: Callable, method: string, args: unknown[]): Promise<unknown> => {
    const ms = Math.floor(slowness * sky.forecast.latencyMsMax);
    // Otherwise it is made at once, as on a stub itself.
    if (ms > 0 || line) await travel(ms);
    if (broken) throw broken;
    const fate = sky.fateOf(from, to);
    if (fate === "answered") return target[method]!(...args);
    tell(fate, from, to, method);
    switch (fate) {
      case "lost":
        return fail(new Error("chaos: lost"));
      case "overloaded":
        return fail(Object.assign(new Error("chaos: overloaded"), { overloaded: true }));
      case "unanswered":
        await target[method]!(...args).catch(() => {});
        return fail(new Error("chaos: unanswered"));
      case "crashed": {
        const called = target[method]!(...args);
        stub["crash"]!().catch(() => {});
        return called.catch(fail);
      }
    }
  };
  /** A line opens at once: what is sent over it travels behind what was called before. */
  const open = (args: unknown[]): unknown => {
    const line = stub["open"]!(...args) as Promise<unknown> & Disposable;
    return {
      send: (batch: unknown) => call(line as unknown as Callable, "send", [batch]),
      // oxlint-disable-next-line unicorn/no-thenable -- as the runtime's
      then: line.then.bind(line),
      [Symbol.dispose]: () => line[Symbol.dispose](),
    };
  };
  return new Proxy(
    {},
    {
      get: (_, method) => {
        if (typeof method !== "string") return undefined;
        return (...args: unknown[]) => (method === "open" ? open(args) : call(stub, method, args));
      },
    },
  );
}

// ---- control ----------------------------------------------------------------------------------------------------------

export default {
  async fetch(request: Request, env: Env, ctx: ExecutionContext<SocketProps>): Promise<Response> {
    const url = new URL(request.url);
    if (!url.pathname.startsWith("/chaos/")) return worker.fetch(request, env, ctx);
    const name = url.searchParams.get("object") ?? "";
    const stub = name.startsWith("core") ? env.COORDINATOR.getByName(name) : env.NODE.getByName(name);
    switch (url.pathname) {
      case "/chaos/weather":
        sky.change(await request.json());
        return new Response();
      case "/chaos/crash":
        await (stub as unknown as Callable)["crash"]!().catch(() => {});
        tell("crashed", name);
        return new Response();
      case "/chaos/sleep":
        // Refused when it does not run, or has been busy for long.
        await unsafe.evict(stub, { webSockets: "hibernate" }).then(
          () => tell("asleep", name),
          (error: unknown) => tell("awake", name, String(error)),
        );
        return new Response();
    }
    return new Response(null, { status: 404 });
  },
} satisfies ExportedHandler<Env, unknown, unknown, SocketProps>;
