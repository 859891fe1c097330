// A real broker for the end-to-end tests: `workerd serve`, started as `npm start` starts it, on a port and a data
// directory of its own.
//
//   const broker = await startBroker({ env: { TRELLIS_MQTT__MAX_INFLIGHT: "2" } });
//   mqtt.connect(broker.urlOf("node-1@local.emqxcl"));
//   await broker.kill();      // as a crash would
//   await broker.restart();   // same port, same data
//   await broker.stop();

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inject, vi } from "vitest";

import { startWorkerd } from "../../cli/broker.ts";
import type { RunningBroker } from "../../cli/broker.ts";
import type { Bundle } from "../../cli/bundle.ts";
import type { SslFiles } from "../../cli/ssl-options.ts";
import { patience } from "./patience.ts";
import { freePort, isFree } from "./port.ts";

export interface StartOptions {
  /** The deployed worker if not given. */
  readonly bundle?: Bundle;
  /** On loopback if not given. */
  readonly host?: string;
  /** Settings: TRELLIS_ variables. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Kept by `stop` if given; otherwise a temporary one, which `stop` deletes. */
  readonly dataDir?: string;
  /** A free one if not given. */
  readonly port?: number;
  readonly linkPort?: number;
  readonly ssl?: SslFiles;
  /** More options of `workerd serve`. */
  readonly flags?: readonly string[];
  /** Hears what workerd writes, as it comes. */
  readonly listen?: (text: string) => void;
}

export interface Broker {
  /** `ws://127.0.0.1:<port>/mqtt`: the node that placement chooses. */
  readonly url: string;
  readonly port: number;
  readonly dataDir: string;
  /** The address of one node. */
  urlOf(node: string): string;
  /** All that workerd has written so far, over restarts. */
  output(): string;
  /** SIGKILL to workerd itself; resolves when it is gone. */
  kill(): Promise<void>;
  /** Starts workerd again on the same port and data, after ending it if it runs; `env` replaces the settings. */
  restart(env?: Readonly<Record<string, string | undefined>>): Promise<void>;
  /** Ends workerd and deletes a temporary data directory. */
  stop(): Promise<void>;
}

/** Starts a broker and resolves when it answers. Rejects with workerd's output if it does not come up. */
export async function startBroker(options: StartOptions = {}): Promise<Broker> {
  const { bundle = inject("bundle"), host = "127.0.0.1", linkPort, ssl } = options;
  const dataDir = options.dataDir ?? (await mkdtemp(join(tmpdir(), "trellis-data-")));
  const port = options.port ?? (await freePort());
  let { env = {} } = options;
  let output = "";
  const collect = (chunk: unknown): void => {
    output += String(chunk);
    options.listen?.(String(chunk));
  };
  const start = async (): Promise<RunningBroker> => {
    const { PATH, TMPDIR } = process.env;
    const started = startWorkerd({
      bundle,
      dataDir,
      host,
      port,
      linkPort,
      ...(ssl && { ssl }),
      // Settings of the developer's own shell stay out of the tests.
      env: { PATH, TMPDIR, ...env },
      output: collect,
      flags: options.flags ?? [],
    });
    return started.catch((error: unknown) => {
      throw new Error(`The broker did not start:\n${output}`, { cause: error });
    });
  };

  let running = await start();
  const kill = async (): Promise<void> => {
    running.process.kill("SIGKILL");
    await running.ended;
  };
  return {
    url: running.url,
    port,
    dataDir,
    urlOf: (node) => `${running.url}?node=${encodeURIComponent(node)}`,
    output: () => output,
    kill,
    async restart(changed = env) {
      await kill();
      env = changed;
      // Somebody else may look at it, or hold it, for a moment.
      await vi.waitUntil(() => isFree(port), patience);
      running = await start();
    },
    async stop() {
      await kill();
      if (options.dataDir === undefined) await rm(dataDir, { recursive: true, force: true });
    },
  };
}
