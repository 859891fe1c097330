// A TCP proxy for bad networks between two brokers: it cuts, delays and goes silent ("half-open": both ends believe that
// the connection stands, and nothing comes).
//
//   const proxy = await startCutProxy(broker.port);   // others connect to proxy.port
//   proxy.cut();                                      // as a pulled cable with a reset: all connections end, none begin
//   proxy.silence();                                  // as a pulled cable: nothing passes, nothing ends
//   proxy.restore();
//   proxy.delay(200);                                 // milliseconds, each way
//   await proxy.close();

import { createServer, connect, type AddressInfo, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

export interface CutProxy {
  readonly port: number;
  /** Connections that are open now, silenced ones among them. */
  connections(): number;
  /** Ends all connections and refuses new ones. */
  cut(): void;
  /** Connections stand and new ones are taken, but no byte passes; nor will it on these, when all is restored. */
  silence(): void;
  /** New connections pass. */
  restore(): void;
  /** What passes from now on comes so much later, in order. */
  delay(ms: number): void;
  close(): Promise<void>;
}

/** @param port the system chooses one if it is not given */
export async function startCutProxy(targetPort: number, port = 0): Promise<CutProxy> {
  const pairs = new Set<Pair>();
  let weather: "clear" | "cut" | "silent" = "clear";
  let delayMs = 0;
  const server = createServer({ noDelay: true }, (near) => {
    if (weather === "cut") {
      near.resetAndDestroy();
      return;
    }
    const pair = new Pair(near, targetPort, () => delayMs, weather === "silent");
    pairs.add(pair);
    void pair.over.then(() => pairs.delete(pair));
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject).listen(port, "127.0.0.1", resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    connections: () => pairs.size,
    cut() {
      weather = "cut";
      for (const pair of pairs) pair.end();
    },
    silence() {
      weather = "silent";
      for (const pair of pairs) pair.silent = true;
    },
    restore: () => void (weather = "clear"),
    delay: (ms) => void (delayMs = ms),
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
  /** Resolves when both halves have ended. */
  readonly over: Promise<unknown>;
  silent: boolean;

  constructor(near: Socket, targetPort: number, delayMs: () => number, silent: boolean) {
    this.#near = near;
    this.silent = silent;
    this.#far = connect({ port: targetPort, host: "127.0.0.1", noDelay: true });
    this.over = Promise.all([near, this.#far].map((socket) => new Promise((done) => socket.once("close", done))));
    this.#pass(near, this.#far, delayMs);
    this.#pass(this.#far, near, delayMs);
  }

  end(): void {
    this.#near.resetAndDestroy();
    this.#far.resetAndDestroy();
  }

  #pass(from: Socket, to: Socket, delayMs: () => number): void {
    let line: Promise<unknown> = Promise.resolve();
    /** Acts so much later, and never before what came before it. */
    const later = (act: () => void): void => {
      const arrived = Promise.all([line, delayMs() > 0 && sleep(delayMs())]);
      line = arrived.then(() => this.silent || act());
    };
    from.on("data", (chunk: Buffer) => later(() => to.write(chunk)));
    from.once("end", () => later(() => to.end()));
    from.once("close", () => later(() => to.destroy()));
    from.on("error", () => {}); // "close" follows.
  }
}
