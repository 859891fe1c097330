// A TCP proxy for bad networks between two brokers: it cuts, delays and goes silent ("half-open": both ends believe that
// the connection stands, and nothing comes). The weather is everybody's, or that of one dialer: a link says whose it is in
// its first line, `GET /link?core=<to>&from=<dialer>`.
//
//   const proxy = await startCutProxy(broker.port);   // others connect to proxy.port
//   proxy.cut();                                      // as a pulled cable with a reset: all connections end, none begin
//   proxy.silence("core@127.0.0.1:8084");             // as a pulled cable: nothing of this dialer's passes, nothing ends
//   proxy.restore();
//   proxy.delay(200);                                 // milliseconds, each way
//   await proxy.close();

import { createServer, connect, type AddressInfo, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

export interface CutProxy {
  readonly port: number;
  /** Connections that are open now, silenced ones among them. */
  connections(): number;
  /** Ends all connections, and new ones before anything passes. */
  cut(dialer?: string): void;
  /** Connections stand and new ones are taken, but no byte passes; nor will it on these, when all is restored. */
  silence(dialer?: string): void;
  /** New connections pass. */
  restore(dialer?: string): void;
  /** What passes from now on comes so much later, in order. */
  delay(ms: number, dialer?: string): void;
  close(): Promise<void>;
}

/** Where the dialer of a link says who it is. */
const dialerPattern = /^GET \/link\?\S*[?&]from=([^& ]+)/;

/** What concerns whoever has no weather of its own, who has not said its name among them. */
const everybody = "";

interface Weather {
  readonly sky: "clear" | "cut" | "silent";
  readonly delayMs: number;
}

const clear: Weather = { sky: "clear", delayMs: 0 };

/** @param port the system chooses one if it is not given */
export async function startCutProxy(targetPort: number, port = 0): Promise<CutProxy> {
  const pairs = new Set<Pair>();
  const weathers = new Map<string, Weather>();
  const weatherOf = (dialer: string): Weather => weathers.get(dialer) ?? weathers.get(everybody) ?? clear;
  const change = (dialer: string, changed: Partial<Weather>): void => {
    const concerned = dialer === everybody ? [everybody, ...weathers.keys()] : [dialer];
    for (const each of concerned) weathers.set(each, { ...weatherOf(each), ...changed });
    for (const pair of pairs) pair.feel();
  };
  const server = createServer({ noDelay: true }, (near) => {
    const pair = new Pair(near, targetPort, weatherOf);
    pairs.add(pair);
    void pair.over.then(() => pairs.delete(pair));
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject).listen(port, "127.0.0.1", resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    connections: () => pairs.size,
    cut: (dialer = everybody) => change(dialer, { sky: "cut" }),
    silence: (dialer = everybody) => change(dialer, { sky: "silent" }),
    restore: (dialer = everybody) => change(dialer, { sky: "clear" }),
    delay: (delayMs, dialer = everybody) => change(dialer, { delayMs }),
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const pair of pairs) pair.end();
      await closed;
    },
  };
}

/** One connection and its other half. */
class Pair {
  readonly #near: Socket;
  readonly #far: Socket;
  readonly #weatherOf: (dialer: string) => Weather;
  #dialer = everybody;
  #isSilent = false;
  /** Resolves when both halves have ended. */
  readonly over: Promise<unknown>;

  constructor(near: Socket, targetPort: number, weatherOf: (dialer: string) => Weather) {
    this.#near = near;
    this.#weatherOf = weatherOf;
    this.#far = connect({ port: targetPort, host: "127.0.0.1", noDelay: true });
    this.over = Promise.all([near, this.#far].map((socket) => new Promise((done) => socket.once("close", done))));
    near.once("data", (chunk: Buffer) => {
      const [, dialer] = dialerPattern.exec(chunk.toString("latin1")) ?? [];
      if (dialer !== undefined) this.#dialer = decodeURIComponent(dialer);
      this.feel();
    });
    this.#pass(near, this.#far);
    this.#pass(this.#far, near);
    this.feel();
  }

  /** The weather has changed, or is known now to concern this one. */
  feel(): void {
    const { sky } = this.#weatherOf(this.#dialer);
    if (sky === "cut") this.end();
    this.#isSilent ||= sky === "silent";
  }

  end(): void {
    this.#near.resetAndDestroy();
    this.#far.resetAndDestroy();
  }

  #pass(from: Socket, to: Socket): void {
    let line: Promise<unknown> = Promise.resolve();
    /** Acts so much later, and never before what came before it. */
    const later = (act: () => void): void => {
      const { delayMs } = this.#weatherOf(this.#dialer);
      const arrived = Promise.all([line, delayMs > 0 && sleep(delayMs)]);
      line = arrived.then(() => this.#isSilent || act());
    };
    from.on("data", (chunk: Buffer) => later(() => to.write(chunk)));
    from.once("end", () => later(() => to.end()));
    from.once("close", () => later(() => to.destroy()));
    from.on("error", () => {}); // "close" follows.
  }
}
