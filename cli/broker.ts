// One `workerd serve` on one data directory: what `npm start` runs, and what the end-to-end tests start, kill and restart.
//
// workerd leads a process group of its own, so that Ctrl-C in a terminal reaches the launcher alone and workerd ends when
// the launcher says so. A watchdog (one `sh` that waits for the end of its input) ends workerd if the launcher is killed.

import { spawn, spawnSync } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { cp, writeFile } from "node:fs/promises";
import http from "node:http";
import https from "node:https";
import { createRequire } from "node:module";
import { createServer, isIPv6 } from "node:net";
import { dirname, relative } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";

import type { Bundle } from "./bundle.ts";
import { holdDataDir } from "./data-dir.ts";
import { isLoopback } from "./loopback.ts";
import type { SslFiles } from "./ssl-options.ts";
import { workerdConfig } from "./workerd-config.ts";

export interface BrokerOptions {
  readonly bundle: Bundle;
  /** Created if missing. Held until the broker has ended. */
  readonly dataDir: string;
  readonly host: string;
  /** 0: the system chooses one. */
  readonly port: number;
  /** A port of its own for links, where a client certificate is asked for; needs a keypair and a cacertfile. */
  readonly linkPort?: number | undefined;
  readonly ssl?: SslFiles;
  /** The environment of workerd; its TRELLIS_ variables become bindings. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Where workerd's stdout and stderr go: to this process's own, or chunk by chunk to a function. */
  readonly output: "inherit" | ((chunk: Buffer) => void);
  /** More options of `workerd serve`. */
  readonly flags?: readonly string[];
}

/** How workerd ended. */
export interface End {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface RunningBroker {
  readonly process: ChildProcess;
  readonly port: number;
  /** Address for MQTT clients, `ws://host:port/mqtt`, or `wss:` with a keypair. */
  readonly url: string;
  /** Resolves when workerd has ended, for whatever reason, and the data directory is free. */
  readonly ended: Promise<End>;
  /** Ends workerd; resolves when it has ended. */
  stop(): Promise<void>;
}

/** The names of the environment's settings and secrets, sorted. */
export function settingNames(env: Readonly<Record<string, string | undefined>>): string[] {
  return Object.keys(env)
    .filter((name) => name.startsWith("TRELLIS_") && env[name] !== undefined)
    .sort();
}

/** How many descriptors workerd will have at most; a connected client takes two. */
export function descriptorsMax(): number {
  const { stdout } = spawnSync("sh", ["-c", `${raiseDescriptors}; ulimit -n`], { encoding: "utf8" });
  const limit = Number.parseInt(stdout, 10);
  return Number.isNaN(limit) ? Infinity : limit; // "unlimited"
}

/**
 * Starts workerd and resolves when it answers.
 * Rejects if the data directory is held, the port is taken, or workerd ends before it answers.
 */
export async function startWorkerd(options: BrokerOptions): Promise<RunningBroker> {
  const { bundle, host, env, flags = [], linkPort } = options;
  const { keypair, cacertfile } = options.ssl ?? { keypair: undefined, cacertfile: undefined };
  const dataDir = holdDataDir(options.dataDir);
  try {
    await refuseTakenPort("PORT", host, options.port);
    if (linkPort !== undefined) await refuseTakenPort("LINK_PORT", host, linkPort);
    await cp(bundle.directory, dataDir.worker, { recursive: true, force: true });
    const worker = {
      ...bundle.worker,
      modules: bundle.worker.modules.map(({ name, path }) => ({ name, path: `worker/${path}` })),
    };
    const authority = isIPv6(host) ? `[${host}]` : host;
    const embedded = (file: string): string => relative(dirname(dataDir.config), file);
    const config = workerdConfig(worker, {
      address: `${authority}:${options.port}`,
      linkAddress: linkPort === undefined ? undefined : `${authority}:${linkPort}`,
      keypair: keypair && { certfile: embedded(keypair.certfile), keyfile: embedded(keypair.keyfile) },
      cacertfile: cacertfile && embedded(cacertfile),
      storage: dataDir.storage,
      environment: settingNames(env),
      bindings: { SSL_FILES: "true", ...(isLoopback(host) && { LOOPBACK: "true" }) },
    });
    await writeFile(dataDir.config, config);

    const command = [workerdPath, "serve", "--control-fd=3", ...flags, dataDir.config];
    const stdio = options.output === "inherit" ? "inherit" : "pipe";
    const workerd = spawn("sh", ["-c", `${raiseDescriptors}; exec "$@"`, "sh", ...command], {
      stdio: ["ignore", stdio, stdio, "pipe"],
      env: { ...env },
      detached: true,
    });
    if (options.output !== "inherit") {
      workerd.stdout?.on("data", options.output);
      workerd.stderr?.on("data", options.output);
    }
    await new Promise((resolve, reject) => workerd.once("spawn", resolve).once("error", reject));
    const pid = workerd.pid ?? 0;
    dataDir.remember(pid);
    const watchdog = watch(pid);
    const ended = new Promise<End>((resolve) => {
      workerd.once("exit", (code, signal) => {
        watchdog.kill("SIGKILL");
        dataDir.release();
        resolve({ code, signal });
      });
    });
    const stop = async (): Promise<void> => {
      workerd.kill("SIGTERM");
      const killer = setTimeout(() => workerd.kill("SIGKILL"), drainMilliseconds);
      await ended;
      clearTimeout(killer);
    };

    const early = ended.then(({ code, signal }): never => {
      throw new Error(`workerd ended before it answered (${signal ?? `code ${code}`})`);
    });
    early.catch(() => {}); // Its end after the start is nobody's error.
    try {
      const port = await Promise.race([listening(workerd), early]);
      const secure = keypair === undefined ? "" : "s";
      await Promise.race([answering(`http${secure}://${authority}:${port}/`), early]);
      return { process: workerd, port, url: `ws${secure}://${authority}:${port}/mqtt`, ended, stop };
    } catch (error) {
      await stop();
      throw error;
    }
  } catch (error) {
    dataDir.release();
    throw error;
  }
}

/** The program itself, of the package for this platform. */
const workerdPath = (createRequire(import.meta.url)("workerd") as { default: string }).default;

const raiseDescriptors = 'ulimit -n "$(ulimit -Hn)" 2>/dev/null || ulimit -n 65536 2>/dev/null || true';

/** workerd waits for open sockets after SIGTERM, without end; it gets this long, and then loses no more than in a crash. */
const drainMilliseconds = 500;

/** workerd would say it in the middle of a stack trace. */
async function refuseTakenPort(variable: string, host: string, port: number): Promise<void> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const taken = error.code === "EADDRINUSE";
      reject(taken ? new Error(`Port ${port} of ${host} is in use (${variable} chooses another port)`) : error);
    });
    server.listen(port, host, resolve);
  });
  await new Promise((resolve) => server.close(resolve));
}

/** Ends `pid` when this process has ended: the shell's input closes with it. */
function watch(pid: number): ChildProcess {
  const watchdog = spawn("sh", ["-c", 'read -r line; kill -KILL "$1"', "sh", String(pid)], {
    stdio: ["pipe", "ignore", "ignore"],
    detached: true,
  });
  watchdog.on("error", () => {}); // Without it, all works but this.
  watchdog.unref();
  return watchdog;
}

/** The port that MQTT clients come to, as workerd says it on its control descriptor. */
async function listening(workerd: ChildProcess): Promise<number> {
  for await (const line of createInterface({ input: workerd.stdio[3] as Readable })) {
    const message: unknown = JSON.parse(line);
    const { socket, port } = message as { readonly socket?: string; readonly port?: number };
    if (socket === "http" && port !== undefined) return port;
  }
  return new Promise(() => {}); // workerd is ending, and that is told elsewhere.
}

/** Resolves when there is an answer; who gives it is not in question, so its certificate is not looked at. */
function answered(url: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = url.startsWith("https:") ? https.get(url, { rejectUnauthorized: false }) : http.get(url);
    request.once("response", (response) => resolve(void response.resume())).once("error", reject);
  });
}

/** Resolves when the worker answers a request, whatever it answers. */
async function answering(url: string): Promise<void> {
  const attempts = 100;
  for (let attempt = 1; ; attempt++) {
    try {
      return await answered(url);
    } catch (error) {
      if (attempt === attempts) throw error;
      await sleep(50);
    }
  }
}
