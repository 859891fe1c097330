/**
 * Cores on simulated disks that call one another in one process, and nodes that say what a test lets them say.
 *
 *   start   a core wakes, with what is on its disk; `crash` takes its memory
 *   cut     calls between the two fail until `mend`
 *
 * Calls arrive in later turns, and arguments and results are copied. Time is real.
 */
import { setTimeout as wait } from "node:timers/promises";
import { vi } from "vitest";

import { readSettings } from "../../../cluster/config.ts";
import type { NodeName } from "../../../cluster/name.ts";
import { Core } from "../../../durable-objects/coordinator/core.ts";
import { Metrics } from "../../../durable-objects/metrics.ts";
import {
  addRouteRecord,
  fenceRecord,
  joinRecords,
  removeRouteRecord,
  type NodeRpc,
  type NodeRoutes,
  type PeerRpc,
} from "../../../durable-objects/rpc.ts";
import { Disk } from "../../simulation/disk.ts";
import { patience } from "../../support/patience.ts";

type Variables = Readonly<Record<string, string>>;

Object.assign(globalThis, { scheduler: { wait } });

/** Three cores of one deployment, and a node near each of the first two. */
export const [a, b, c] = ["core@wnam.emqxcl", "core@weur.emqxcl", "core@apac.emqxcl"] as const;
export const [n, m] = ["node-0@wnam.emqxcl", "node-0@weur.emqxcl"] as const;

export const of = (...names: string[]): Variables => ({ TRELLIS_CLUSTER__CORE_NODES: names.join(",") });

export const eventually = (check: () => unknown) => vi.waitFor(check, { ...patience, interval: 5 });

/** What must happen without anybody's help has happened by then. */
export const aWhile = () => wait(50);

interface Running {
  readonly core: Core;
  readonly rpc: PeerRpc;
}

/** A life of a core: what is left of one that has ended hears nothing any more. */
interface Caller {
  readonly name: NodeName;
  readonly isAlive: () => boolean;
}

export class Cores {
  readonly #disks = new Map<NodeName, Disk>();
  readonly #running = new Map<NodeName, Running>();
  readonly #lives = new Map<NodeName, number>();
  readonly #cuts = new Set<string>();
  readonly nodes = new Map<NodeName, FakeNode>();
  /** Called before a call arrives; what it awaits holds the call up. */
  onCall: (from: NodeName, to: NodeName, method: string) => Promise<void> | void = () => {};
  /** Called when a call has been answered, before the answer comes back. */
  onAnswer: (from: NodeName, to: NodeName, method: string) => Promise<void> | void = () => {};

  start(name: NodeName, variables: Variables): Core {
    const life = (this.#lives.get(name) ?? 0) + 1;
    this.#lives.set(name, life);
    const caller = { name, isAlive: () => this.#lives.get(name) === life };
    const core: Core = new Core(name, readSettings(variables as unknown as Env), {
      metrics: new Metrics(),
      storage: this.disk(name).storage,
      nodeAt: (node) => this.#stub(caller, node, () => this.node(node)) as unknown as NodeRpc,
      peerAt: (peer) => this.#stub(caller, peer, () => this.#running.get(peer)?.rpc),
      unlink: () => {},
      ringAt: () => {},
    });
    this.#running.set(name, { core, rpc: rpcOf(core) });
    return core;
  }

  /** What it has written is on disk. */
  crash(name: NodeName): void {
    this.#running.delete(name);
    this.#lives.set(name, this.#lives.get(name)! + 1);
  }

  core(name: NodeName): Core {
    return this.#running.get(name)!.core;
  }

  node(name: NodeName): FakeNode {
    const node = this.nodes.get(name) ?? new FakeNode();
    this.nodes.set(name, node);
    return node;
  }

  disk(name: NodeName): Disk {
    const disk = this.#disks.get(name) ?? new Disk();
    this.#disks.set(name, disk);
    return disk;
  }

  cut(a: NodeName, b: NodeName): void {
    this.#cuts.add([a, b].sort().join(" "));
  }

  mend(): void {
    this.#cuts.clear();
  }

  #isCut(a: NodeName, b: NodeName): boolean {
    return this.#cuts.has([a, b].sort().join(" "));
  }

  #stub<T extends object>(caller: Caller, to: NodeName, target: () => T | undefined): T {
    const { name: from } = caller;
    const call =
      (method: string) =>
      async (...args: unknown[]): Promise<unknown> => {
        const copies = structuredClone(args);
        await new Promise((resolve) => setImmediate(resolve));
        await this.onCall(from, to, method);
        if (!caller.isAlive()) return new Promise(() => {});
        const arrived = this.#isCut(from, to) ? undefined : target();
        if (!arrived) throw new Error(`${to} is not to be reached`);
        const answer: unknown = await (arrived as Record<string, (...args: unknown[]) => unknown>)[method]!(...copies);
        const copy: unknown = structuredClone(answer);
        await new Promise((resolve) => setImmediate(resolve));
        await this.onAnswer(from, to, method);
        if (!caller.isAlive()) return new Promise(() => {});
        if (this.#isCut(from, to)) throw new Error(`${to} is not to be reached`);
        return copy;
      };
    return new Proxy({}, { get: (_, method) => (method === "then" ? undefined : call(String(method))) }) as T;
  }

  /** What the core has of all nodes, on disk: `node key`. */
  routesOf(name: NodeName): string[] {
    return this.disk(name)
      .rows<{ node: string; key: string }>("SELECT node, key FROM route ORDER BY node, key")
      .map(({ node, key }) => `${node} ${key}`);
  }
}

/** A node that has routes and sessions, and tells them. */
export class FakeNode implements Pick<NodeRpc, "routes" | "holdings" | "forward"> {
  readonly keys = new Set<string>();
  readonly held = new Map<string, number>();
  readonly forwarded: Uint8Array[] = [];
  sent = 0;

  add(key: string): Uint8Array {
    this.keys.add(key);
    return addRouteRecord(key, 0, ++this.sent);
  }

  remove(key: string): Uint8Array {
    this.keys.delete(key);
    return removeRouteRecord(key, ++this.sent);
  }

  async routes(): Promise<NodeRoutes> {
    return { version: this.sent, routes: [...this.keys].map((key) => ({ key, members: 0 })), next: undefined };
  }

  async holdings() {
    const sessions = [...this.held].map(([clientId, epoch]) => ({ clientId, epoch, isOpening: false }));
    return { sessions, next: undefined };
  }

  async forward(batch: Uint8Array): Promise<Uint8Array> {
    this.forwarded.push(batch);
    return new Uint8Array(1);
  }
}

/** A batch of a node to its home, answered when all cores in reach have its changes. */
export function tell(core: Core, node: NodeName, term: number, ...changes: Uint8Array[]): Promise<Uint8Array> {
  const records = [...changes, fenceRecord()];
  const bytes = records.reduce((sum, { length }) => sum + length, 0);
  return core.route(node, { term, id: term }, joinRecords(records, bytes));
}

/** As the Durable Object gives its core's methods to the others. */
function rpcOf(core: Core): PeerRpc {
  const { mesh } = core;
  return {
    hello: async (from, hello) => mesh.handleHello(from, hello),
    relay: async (from, batch) => mesh.handleRelay(from, batch),
    changes: async (writer, since, after) => mesh.replication.changes(writer, since, after),
    mayJoin: async (from, members) => mesh.cluster.mayJoin(from, members),
    acceptJoin: async (from, members) => mesh.cluster.handleJoin(from, members),
    size: async () => mesh.size(),
    invited: (from) => mesh.cluster.join(from),
    dismissed: async () => mesh.cluster.handleDismissed(),
    reportPartition: async (from, peer) => mesh.healer.handleReport(from, peer, Date.now()),
    view: async () => mesh.peers.view(),
    heal: (minority) => mesh.healer.restartAll(minority),
    restart: () => mesh.restart(),
    claimHere: (clientId, node) => mesh.share.claim(clientId, node),
    abandonHere: (clientId, epoch, holder) => mesh.share.abandon(clientId, epoch, holder),
    openedHere: async (clientId, epoch, node) => mesh.registry.opened(clientId, epoch, node),
    releaseHere: async (clientId, epoch) => mesh.registry.release(clientId, epoch),
    holdersHere: (clientId) => mesh.share.holdersOf(clientId),
    claimsFor: async (move, after) => mesh.share.claimsFor(move, after),
    giveClaims: async (claims) => mesh.share.handleGiven(claims),
    settledHere: (node) => core.forwarder.settled(node),
    reachesHere: (name) => mesh.reaches(name),
    callOwnNode: (node, method, args) => mesh.callOwnNode(node, method, args),
  };
}

/** Wakes them, and waits until all have met. */
export async function together(cores: Cores, variables: Variables, ...names: string[]): Promise<Core[]> {
  const started = names.map((name) => cores.start(name, variables));
  await met(started);
  return started;
}

export async function met(cores: readonly Core[]): Promise<void> {
  await eventually(() => {
    for (const { name, mesh } of cores) {
      if (mesh.whenReady()) throw new Error(`${name} is starting`);
      if (mesh.peers.up().length !== cores.length - 1) throw new Error(`${name} has not met all`);
    }
  });
}

/** Holds up calls of a method, before they arrive or behind their answer. */
export function hold(cores: Cores, when: "onCall" | "onAnswer", who: string, ...methods: string[]) {
  const { promise, resolve } = Promise.withResolvers<void>();
  let held = 0;
  cores[when] = (from, _, called) => {
    if (from !== who || !methods.includes(called)) return undefined;
    held++;
    return promise;
  };
  return {
    reached: () =>
      eventually(() => {
        if (held === 0) throw new Error(`${who} has not called ${methods.join()}`);
      }),
    release: () => {
      cores[when] = () => {};
      resolve();
    },
  };
}
