// Who is measured. Each run has a broker process of its own, on an empty data directory, so that no run inherits another's
// heap, sessions or disk.
//
// All have their defaults, but for what would void a run: queues are long enough to lose nothing (Trellis 100,000, the
// most it may have; Mosquitto without bound), Mosquitto's sessions have as many messages inflight as Trellis' (with its own
// 20 it cuts off who has 32 at QoS 2 under way), and nobody compresses.

import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

import { startWorkerd } from "../cli/broker.ts";
import { bundleWorker, type Bundle } from "../cli/bundle.ts";
import { freePort } from "../test/support/port.ts";

/** "bare", "gateways" and "store" are the floors, see floor/. */
export const brokerNames = ["trellis", "mosquitto", "aedes", "bare", "gateways", "store"] as const;
export type BrokerName = (typeof brokerNames)[number];

/** What a scenario wants of the broker; only Trellis, and "gateways" as to nodes, can give it. */
export interface Layout {
  readonly nodes: number;
  readonly cores: 1 | 3;
}

export interface MeasuredBroker {
  /** The addresses of its nodes; one for those that have no nodes. */
  readonly urls: readonly string[];
  readonly pid: number;
  stop(): Promise<void>;
}

export interface Brokers {
  /** Why a broker cannot be had on this machine. */
  readonly missing: ReadonlyMap<BrokerName, string>;
  /** Rejects with what the broker said if it does not come up. */
  start(name: BrokerName, layout: Layout): Promise<MeasuredBroker>;
}

const host = "127.0.0.1";
const locations = ["weur", "enam", "apac"];

/** Builds the worker and the floors, and looks for the peers. What is on disk goes when this process exits. */
export async function prepareBrokers(abort: AbortSignal): Promise<Brokers> {
  const directory = await mkdtemp(join(tmpdir(), "trellis-bench-"));
  process.once("exit", () => rmSync(directory, { recursive: true, force: true }));
  const [trellis, floor] = await Promise.all([
    bundleWorker(join(directory, "trellis"), { abort }),
    bundleFloor(join(directory, "floor"), abort),
  ]);
  const hasMosquitto = spawnSync("mosquitto", ["-h"], { env: withSbin() }).error === undefined;
  const missing = new Map<BrokerName, string>();
  if (!hasMosquitto) missing.set("mosquitto", "mosquitto is not installed (Debian: apt-get install mosquitto)");

  let runs = 0;
  const start = async (name: BrokerName, layout: Layout): Promise<MeasuredBroker> => {
    const dataDir = join(directory, `run-${++runs}`);
    await mkdir(dataDir);
    const broker = await startBroker(name, layout, dataDir);
    const stop = async (): Promise<void> => {
      await broker.stop();
      await rm(dataDir, { recursive: true, force: true });
    };
    return { ...broker, stop };
  };
  const startBroker = (name: BrokerName, layout: Layout, dataDir: string): Promise<MeasuredBroker> => {
    switch (name) {
      case "trellis":
        return startTrellis(trellis, layout, dataDir);
      case "mosquitto":
        return startMosquitto(dataDir);
      case "aedes":
        return startAedes();
      case "bare":
      case "store":
        return startOnWorkerd(floor, dataDir, {}, (origin) => [`${origin}/${name}`]);
      case "gateways":
        return startOnWorkerd(floor, dataDir, {}, (origin) =>
          Array.from({ length: layout.nodes }, (_, node) => `${origin}/gateway?node=${node}`),
        );
    }
  };
  return { missing, start };
}

function startTrellis(bundle: Bundle, { nodes, cores }: Layout, dataDir: string): Promise<MeasuredBroker> {
  // A node's home is the nearest core, so the nodes go round the cores.
  const places = cores === 1 ? ["local"] : locations;
  const env: Record<string, string> = { TRELLIS_MQTT__MAX_MQUEUE_LEN: "100000" };
  if (cores > 1) env["TRELLIS_CLUSTER__CORE_NODES"] = places.map((place) => `core@${place}.emqxcl`).join(",");
  const nodeAt = (node: number): string => `node-${node}@${places[node % places.length]}.emqxcl`;
  return startOnWorkerd(bundle, dataDir, env, (origin) =>
    Array.from({ length: nodes }, (_, node) => `${origin}/mqtt?node=${encodeURIComponent(nodeAt(node))}`),
  );
}

/** The floors stand on what Trellis stands on: the same runtime with the same flags, made by the same code. */
async function bundleFloor(directory: string, abort: AbortSignal): Promise<Bundle> {
  const bundle = await bundleWorker(directory, { entry: join(import.meta.dirname, "floor/worker.ts"), abort });
  const durableObjects = ["Bare", "Gateway", "Hub", "Store"].map((className) => ({
    binding: className.toUpperCase(),
    className,
  }));
  return { ...bundle, worker: { ...bundle.worker, name: "floor", vars: {}, durableObjects } };
}

async function startOnWorkerd(
  bundle: Bundle,
  dataDir: string,
  settings: Readonly<Record<string, string>>,
  urlsOf: (origin: string) => readonly string[],
): Promise<MeasuredBroker> {
  let said = "";
  const { PATH, TMPDIR } = process.env;
  const broker = await startWorkerd({
    bundle,
    dataDir,
    host,
    port: 0,
    env: { PATH, TMPDIR, ...settings },
    output: (chunk) => void (said += String(chunk)),
  }).catch((error: unknown) => {
    throw new Error(`${(error as Error).message}\n${said}`);
  });
  return { urls: urlsOf(`ws://${host}:${broker.port}`), pid: broker.process.pid!, stop: () => broker.stop() };
}

async function startMosquitto(dataDir: string): Promise<MeasuredBroker> {
  const [port, plainPort] = [await freePort(), await freePort()];
  const config = join(dataDir, "mosquitto.conf");
  const lines = [
    "allow_anonymous true",
    "max_queued_messages 0",
    "max_inflight_messages 32",
    "set_tcp_nodelay true",
    "user root", // Or, started as root, it gives up the right to read the directory; without effect for others.
    `listener ${plainPort} ${host}`, // Mosquitto 2.0.11 does not start with websockets alone.
    `listener ${port}`,
    "protocol websockets",
  ];
  await writeFile(config, `${lines.join("\n")}\n`);
  const child = spawn("mosquitto", ["-c", config], { stdio: ["ignore", "pipe", "pipe"], env: withSbin() });
  const up = listening(port);
  return { urls: [`ws://${host}:${port}/mqtt`], ...(await asBroker("mosquitto", child, up)) };
}

async function startAedes(): Promise<MeasuredBroker> {
  const child = spawn(process.execPath, [join(import.meta.dirname, "aedes.ts")], { stdio: ["ignore", "pipe", "pipe"] });
  const line = once(createInterface({ input: child.stdout }), "line") as Promise<[string]>;
  const broker = await asBroker("aedes", child, line);
  const [port] = await line;
  return { urls: [`ws://${host}:${port}/mqtt`], ...broker };
}

/** Waits until the process is up; rejects with what it said if it ends before. */
async function asBroker(
  name: string,
  child: ChildProcess,
  up: Promise<unknown>,
): Promise<Omit<MeasuredBroker, "urls">> {
  let said = "";
  child.stderr?.on("data", (chunk) => (said += String(chunk)));
  const ended = once(child, "exit");
  const early = ended.then(() => Promise.reject(new Error(`${name} ended before it answered\n${said}`)));
  early.catch(() => {}); // Its end after the start is nobody's error.
  const kill = (): void => void child.kill("SIGKILL"); // Nothing of it is needed again.
  process.once("exit", kill);
  await Promise.race([up, early]);
  const stop = async (): Promise<void> => {
    process.off("exit", kill);
    kill();
    await ended;
  };
  return { pid: child.pid!, stop };
}

/** Resolves when somebody listens. */
async function listening(port: number): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    const socket = connect(port, host);
    try {
      await once(socket, "connect");
      return;
    } catch (error) {
      if (attempt === 100) throw error;
      await sleep(50);
    } finally {
      socket.destroy();
    }
  }
}

/** Debian puts mosquitto where only root looks. */
function withSbin(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin` };
}
