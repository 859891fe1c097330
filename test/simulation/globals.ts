/** What the code under test finds in place of the platform: each object's timers are its own, and time is the world's. */
import { ServerSocket } from "./socket.ts";
import { Scheduled } from "./timeline.ts";
import type { World } from "./world.ts";

type Target = Record<string, unknown>;

/** Puts them in place. Outside of an object's turn everything is as it was. @returns what undoes it. */
export function installGlobals(world: World): () => void {
  const undo: (() => void)[] = [];
  const replace = (target: object, name: string, value: unknown) => {
    const before = Object.getOwnPropertyDescriptor(target, name);
    Object.defineProperty(target, name, { value, configurable: true, writable: true });
    undo.push(() => {
      if (before) Object.defineProperty(target, name, before);
      else delete (target as Target)[name];
    });
  };
  const { setTimeout, clearTimeout, setImmediate, console, Response, Math } = globalThis;
  const { now } = Date;
  const { random } = Math;

  replace(Date, "now", () => (world.running ? Math.floor(world.now) : now()));
  replace(Math, "random", () => (world.running ? world.production.next() : random()));
  replace(crypto, "randomUUID", () => uuid(world));
  replace(crypto, "getRandomValues", (bytes: Uint8Array) => {
    for (let index = 0; index < bytes.length; index++) bytes[index] = world.production.below(256);
    return bytes;
  });

  const timer = (run: (...args: unknown[]) => void, ms = 0, ...args: unknown[]) =>
    world.running ? world.running.setTimer(ms, () => run(...args)) : setTimeout(run, ms, ...args);
  replace(globalThis, "setTimeout", timer);
  replace(globalThis, "setImmediate", (run: (...args: unknown[]) => void, ...args: unknown[]) =>
    world.running ? world.running.setImmediate(() => run(...args)) : setImmediate(run, ...args),
  );
  replace(globalThis, "clearTimeout", (given: unknown) =>
    given instanceof Scheduled ? world.running?.clearTimer(given) : clearTimeout(given as NodeJS.Timeout),
  );
  replace(globalThis, "scheduler", { wait: (ms: number) => new Promise((resolve) => timer(resolve, ms)) });

  const say = (...parts: unknown[]) => {
    const line = parts.map(String).join(" ");
    world.log(`${world.running?.name} says: ${line}`);
    // Both sides of a cut had let the client in: the cluster goes on with the later session.
    const [, discarded] = /^{"event":"session_discarded","clientid":"([^"]*)"/.exec(line) ?? [];
    if (discarded !== undefined) world.abandoned.add(discarded);
  };
  const quiet = { ...console, log: say, info: say, warn: say, error: say };
  replace(
    globalThis,
    "console",
    new Proxy(console, { get: (_, name) => (world.running ? quiet : console)[name as "log"] }),
  );

  // What an upgrade takes: the two ends of a socket, and a response that carries one of them.
  replace(globalThis, "WebSocketPair", function WebSocketPair() {
    const life = world.running!;
    return { 0: {}, 1: (life.upgrading = new ServerSocket(life.object)) };
  });
  replace(globalThis, "Response", function SimulatedResponse(body: BodyInit | null, init: ResponseInit = {}) {
    return init.status === 101 ? { status: 101 } : new Response(body, init);
  });
  // Errors are many here, and their stacks are looked at in a replay only.
  replace(Error, "stackTraceLimit", world.trace ? 10 : 0);
  return () => {
    for (const each of undo.reverse()) each();
  };
}

function uuid({ production }: World): string {
  const digits = (count: number) =>
    production
      .below(16 ** count)
      .toString(16)
      .padStart(count, "0");
  return `${digits(8)}-${digits(4)}-4${digits(3)}-8${digits(3)}-${digits(6)}${digits(6)}`;
}
