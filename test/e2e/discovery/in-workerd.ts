// A `workerd serve` that runs strategies, as a Durable Object would: see worker.ts.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";

import { bundleWorker } from "../../../cli/bundle.ts";
import type { DiscoverySettings } from "../../../durable-objects/coordinator/discovery/strategies.ts";
import type { Strategy } from "../../../durable-objects/coordinator/discovery/strategy.ts";
import type { Answer, Call } from "./worker.ts";

export interface InWorkerd {
  strategyOf(settings: DiscoverySettings, self: string): Strategy;
  stop(): Promise<void>;
}

const workerdPath = (createRequire(import.meta.url)("workerd") as { default: string }).default;

/** `ca`: a certificate (PEM) that it trusts besides the public ones. */
export async function startInWorkerd(ca?: string): Promise<InWorkerd> {
  const directory = await mkdtemp(join(tmpdir(), "trellis-discovery-"));
  const { worker } = await bundleWorker(directory, { entry: join(import.meta.dirname, "worker.ts") });
  if (ca !== undefined) await writeFile(join(directory, "ca.pem"), ca);
  const trusted = ca === undefined ? "" : `, trustedCertificates = [embed "ca.pem"]`;
  const config = join(directory, "config.capnp");
  await writeFile(
    config,
    `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "worker", worker = .worker),
    (name = "internet", network = (allow = ["public", "private"], tlsOptions = (trustBrowserCas = true${trusted}))),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "worker")],
);
const worker :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "${worker.compatibilityDate}",
);
`,
  );
  const workerd = spawn(workerdPath, ["serve", "--control-fd=3", config], {
    stdio: ["ignore", "inherit", "pipe", "pipe"],
  });
  // A server that it does not trust is a long message, and a test.
  let said = "";
  workerd.stderr?.on("data", (chunk) => (said += String(chunk)));
  let port: number | undefined;
  for await (const line of createInterface({ input: workerd.stdio[3] as Readable })) {
    const message = JSON.parse(line) as { readonly port?: number };
    port = message.port;
    if (port !== undefined) break;
  }
  if (port === undefined) throw new Error(`workerd did not start:\n${said}`);

  async function call(request: Call): Promise<unknown> {
    const response = await fetch(`http://127.0.0.1:${port}`, { method: "POST", body: JSON.stringify(request) });
    const answer = (await response.json()) as Answer;
    if ("error" in answer) throw new Error(answer.error);
    return answer.result;
  }
  return {
    strategyOf: (settings, self) => ({
      description: "in workerd",
      discover: () => call({ settings, self, verb: "discover" }) as Promise<string[]>,
      lock: () => call({ settings, self, verb: "lock" }) as Promise<void>,
      unlock: () => call({ settings, self, verb: "unlock" }) as Promise<void>,
      register: () => call({ settings, self, verb: "register" }) as Promise<number>,
      unregister: () => call({ settings, self, verb: "unregister" }) as Promise<void>,
    }),
    async stop() {
      const ended = once(workerd, "exit");
      workerd.kill("SIGKILL");
      await ended;
      await rm(directory, { recursive: true, force: true });
    },
  };
}
