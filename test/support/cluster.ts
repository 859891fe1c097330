// Clusters of several deployments: each a `workerd serve` with a proxy in front, at whose port the others reach it. Clients
// connect to the brokers themselves, so that only what cores say to one another has bad weather. All ends with the test.
//
//   const [a, b, c] = await startCluster(3);
//   await connect(a.urlOf(0));                  // node-0 of a
//   cut([a, b], [c]);                           // a partition
//   await whenSeen([a, b], { stopped: [c] });
//   restore(a, b, c);
//   await whenRoutesAgree(a, b, c);             // [G8]

import { spawn } from "node:child_process";
import { join } from "node:path";
import type { IClientOptions } from "mqtt";
import { expect, onTestFailed, onTestFinished, vi } from "vitest";

import { startBroker, type Broker } from "./broker.ts";
import { connect, type Client } from "./client.ts";
import { startCutProxy, type CutProxy } from "./cut-proxy.ts";
import { freePort } from "./port.ts";

const root = join(import.meta.dirname, "..", "..");
const token = "a token of the tests' operators";

/** A partition is noticed, confirmed and healed, each after its time: cores are tried the more rarely the longer it lasts. */
const patience = { timeout: 60_000, interval: 200 };

export interface Deployment {
  /** The name of its core. */
  readonly core: string;
  readonly broker: Broker;
  readonly proxy: CutProxy;
  /** The name of a node. */
  node(slot: number): string;
  /** The address of a node. */
  urlOf(slot: number): string;
  /** What the API answers; a refusal is `{code, message}`. */
  api<T>(path: string, method?: "GET" | "PUT" | "DELETE"): Promise<T>;
  /** `npm run ctl`, as its operator. */
  ctl(...args: string[]): Promise<CtlRun>;
  /** What its core has logged of one event, over restarts. */
  events(event: string): LoggedEvent[];
}

export type LoggedEvent = Readonly<Record<string, unknown>>;

export interface CtlRun {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export type Env = Readonly<Record<string, string>>;

type Tuple<N extends number, Items extends Deployment[] = []> = Items["length"] extends N
  ? Items
  : Tuple<N, [...Items, Deployment]>;

// ---- start ------------------------------------------------------------------------------------------------------------

/** Starts deployments that are not joined. @param envOf settings of each, made of the names of all cores. */
export async function startDeployments<N extends number>(
  count: N,
  envOf: (index: number, cores: readonly string[]) => Env = () => ({}),
): Promise<Tuple<N>> {
  const places = await Promise.all(
    Array.from({ length: count }, async () => {
      const port = await freePort();
      const proxy = await startCutProxy(port);
      onTestFinished(() => proxy.close());
      return { port, proxy, core: `core@127.0.0.1:${proxy.port}` };
    }),
  );
  const cores = places.map(({ core }) => core);
  const starting = places.map((place, index) => startAt(place, envOf(index, cores)));
  return (await Promise.all(starting)) as Tuple<N>;
}

/** Starts deployments that are one cluster, the first the oldest. */
export async function startCluster<N extends number>(count: N, env: Env = {}): Promise<Tuple<N>> {
  const deployments = await startDeployments(count, () => env);
  const [first, ...others] = deployments as Deployment[];
  for (const each of others) expect(await each.api(`/cluster/${first!.core}/join`, "PUT")).toBeUndefined();
  await whenSeen(deployments, { running: deployments });
  return deployments;
}

interface Place {
  readonly port: number;
  readonly proxy: CutProxy;
  readonly core: string;
}

async function startAt({ port, proxy, core }: Place, changed: Env): Promise<Deployment> {
  const cookie = "a-cookie-of-the-tests";
  const env = { TRELLIS_NODE__NAME: core, TRELLIS_NODE__COOKIE: cookie, TRELLIS_API_TOKEN: token, ...changed };
  const broker = await startBroker({ port, env });
  onTestFinished(() => broker.stop());
  onTestFailed(() => console.log(`${core}:\n${broker.output().slice(-8_000)}`));
  const node = (slot: number): string => `node-${slot}@local.${core.slice(core.indexOf("@") + 1)}`;
  return {
    core,
    broker,
    proxy,
    node,
    urlOf: (slot) => broker.urlOf(node(slot)),
    async api<T>(path: string, method = "GET") {
      const url = `http://127.0.0.1:${port}/api/v5${path}`;
      const response = await fetch(url, { method, headers: { Authorization: `Bearer ${token}` } });
      const text = await response.text();
      return (text === "" ? undefined : JSON.parse(text)) as T;
    },
    ctl: (...args) => ctl(port, args),
    events: (event) =>
      broker
        .output()
        .split("\n")
        .filter((line) => line.startsWith(`{"event":"${event}"`))
        .map((line) => JSON.parse(line) as LoggedEvent),
  };
}

function ctl(port: number, args: readonly string[]): Promise<CtlRun> {
  const env = { PATH: process.env["PATH"], TRELLIS_URL: `http://127.0.0.1:${port}`, TRELLIS_API_TOKEN: token };
  const child = spawn(process.execPath, [join(root, "cli", "ctl.ts"), ...args], { cwd: root, env });
  return new Promise((resolve, reject) => {
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
    child.on("error", reject);
    child.on("close", (code) => resolve({ code: code ?? -1, stdout, stderr }));
  });
}

// ---- weather ----------------------------------------------------------------------------------------------------------

/** No side reaches another one, and is told so. */
export function cut(...sides: readonly Deployment[][]): void {
  part(sides, (proxy, dialer) => proxy.cut(dialer));
}

/** No side reaches another one, and nobody is told: half-open. */
export function silence(...sides: readonly Deployment[][]): void {
  part(sides, (proxy, dialer) => proxy.silence(dialer));
}

export function restore(...deployments: readonly Deployment[]): void {
  for (const { proxy } of deployments) proxy.restore();
}

function part(sides: readonly Deployment[][], change: (proxy: CutProxy, dialer: string) => void): void {
  for (const side of sides)
    for (const { core } of side)
      for (const other of sides) if (other !== side) for (const { proxy } of other) change(proxy, core);
}

// ---- what a cluster has -----------------------------------------------------------------------------------------------

/** Tries again until it holds. */
export function eventually(check: () => Promise<void> | void): Promise<void> {
  return vi.waitFor(check, patience);
}

export interface Seen {
  readonly running?: readonly Deployment[];
  readonly stopped?: readonly Deployment[];
}

/** Resolves when each of them sees the cores of others as running, or as stopped; itself is running always. */
export async function whenSeen(watchers: readonly Deployment[], { running = [], stopped = [] }: Seen): Promise<void> {
  await eventually(async () => {
    for (const watcher of watchers) {
      const status = await watcher.api<{ nodes: string[]; stopped_nodes: string[] }>("/cluster");
      const isCore = (name: string): boolean => name.startsWith("core@");
      const coresOf = (deployments: readonly Deployment[]): string[] => deployments.map(({ core }) => core).sort();
      expect({
        running: status.nodes.filter(isCore).sort(),
        stopped: status.stopped_nodes.filter(isCore).sort(),
      }).toEqual({ running: coresOf([...new Set([watcher, ...running])]), stopped: coresOf(stopped) });
    }
  });
}

interface List<T> {
  readonly data: readonly T[];
  readonly meta: { readonly hasnext: boolean; readonly silent_nodes?: readonly string[] };
}

/** The route table of its core: `filter -> node`. */
export async function routesOf(deployment: Deployment): Promise<string[]> {
  const { data, meta } = await deployment.api<List<{ topic: string; node: string }>>("/topics?limit=1000");
  expect(meta.hasnext).toBe(false);
  return data.map(({ topic, node }) => `${topic} -> ${node}`).sort();
}

/** What the nodes of the cluster have subscriptions for: `filter -> node`. */
async function heldBy(deployment: Deployment): Promise<string[]> {
  const list = await deployment.api<List<{ topic: string; node: string }>>("/subscriptions?limit=1000");
  expect(list.meta).toMatchObject({ hasnext: false });
  expect(list.meta.silent_nodes).toBeUndefined();
  return [...new Set(list.data.map(({ topic, node }) => `${topic} -> ${node}`))].sort();
}

/** Resolves when all have the same routes, and those are what the nodes hold [G8]. */
export async function whenRoutesAgree(...deployments: readonly Deployment[]): Promise<void> {
  await eventually(async () => {
    const held = await heldBy(deployments[0]!);
    expect(await Promise.all(deployments.map(routesOf))).toEqual(deployments.map(() => held));
  });
}

/** A client whose session outlives its connection. */
export function connectDurable(url: string, clientId: string, options: IClientOptions = {}): Promise<Client> {
  return connect(url, { clientId, clean: false, properties: { sessionExpiryInterval: 3600 }, ...options });
}
