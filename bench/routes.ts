// `npm run bench:routes`: what the route table costs. `npm run bench:routes -- 1000 10000` for these numbers of filters.
//
//   memory  the table alone, in this process: bytes a filter, in arrays and on the heap, with subscribers on one node, on
//           eight, and on two of eight each
//   match   the same table: time a match, of 1000 topics and of all in turn; each matches one filter. All are found in
//           the processor's caches only as long as the table fits in them
//   wake    a real core on `workerd serve`, with the routes in its database: from CONNECT to the client's own message, the
//           first thing that happens to the core after its start; what the process has grown by then; what JavaScript has
//
// Filters are those of a fleet: commands to a device, all of a device, a device's groups of topics, the state of all
// devices of a site, and work shared by a group.

import { mkdtemp, rm } from "node:fs/promises";
import { globSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { DatabaseSync } from "node:sqlite";

import { connectAsync } from "mqtt";

import { startWorkerd } from "../cli/broker.ts";
import type { RunningBroker } from "../cli/broker.ts";
import { bundleWorker } from "../cli/bundle.ts";
import type { Bundle } from "../cli/bundle.ts";
import { RouteTable } from "../cluster/routes.ts";
import { parseShared } from "../mqtt/topic.ts";
import { freePort } from "../test/support/port.ts";
import { Inspector } from "./inspector.ts";
import { residentKilobytesOf } from "./load/processes.ts";

const nodeCount = 8;
const nodes = Array.from({ length: nodeCount }, (_, i) => `node-${i + 1}@local.emqxcl`);

/** Each has a topic that it matches, and no other. */
function filterAt(i: number): { readonly filter: string; readonly topic: string } {
  const site = `site-${(i * 7919) % 1000}`;
  const device = `device-${String(i).padStart(7, "0")}`;
  const kind = i % 100;
  if (kind === 0) return { filter: `$share/workers/jobs/${device}`, topic: `jobs/${device}` };
  if (kind === 1) return { filter: `fleet/${site}-${i}/+/state`, topic: `fleet/${site}-${i}/x/state` };
  if (kind < 20) return { filter: `fleet/${site}/${device}/event/+`, topic: `fleet/${site}/${device}/event/x` };
  if (kind < 50) return { filter: `devices/${device}/#`, topic: `devices/${device}/a/b` };
  return { filter: `fleet/${site}/${device}/cmd`, topic: `fleet/${site}/${device}/cmd` };
}

// ---- the table alone ------------------------------------------------------------------------------------------------

function tableOf(filters: number, nodesOf: (i: number) => readonly string[]): RouteTable {
  const table = new RouteTable(1);
  for (let i = 0; i < filters; i++) {
    const { group, filter } = parseShared(filterAt(i).filter);
    for (const node of nodesOf(i)) {
      if (group === undefined) table.add(node, filter);
      else table.setShared(node, group, filter, 1);
    }
  }
  return table;
}

function usedBytes(): number {
  globalThis.gc?.();
  globalThis.gc?.();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

function bytesPerFilter(filters: number, nodesOf: (i: number) => readonly string[]): number {
  const before = usedBytes();
  const table = tableOf(filters, nodesOf);
  return (usedBytes() - before) / table.size;
}

const matches = 500_000;

/** @param topics how many different ones. */
function matchNs(table: RouteTable, topics: number): number {
  const step = table.size / topics;
  const names = Array.from({ length: topics }, (_, i) => filterAt(Math.floor(((i * 7919) % topics) * step)).topic);
  let found = 0;
  const run = (count: number): void => {
    for (let i = 0; i < count; i++) table.match(names[i % topics]!, () => found++);
  };
  run(matches / 5);
  const startedAt = process.cpuUsage();
  run(matches);
  const { user, system } = process.cpuUsage(startedAt);
  if (found !== matches * 1.2) throw new Error(`${found} matches instead of ${matches * 1.2}`);
  return ((user + system) * 1000) / matches;
}

// ---- a core ---------------------------------------------------------------------------------------------------------

interface Woken {
  readonly ms: number;
  readonly rssMb: number;
  readonly heapMb: number;
  readonly arraysMb: number;
}

class Core {
  readonly #bundle: Bundle;
  readonly #dataDir: string;
  readonly #inspectorPort: number;

  constructor(bundle: Bundle, dataDir: string, inspectorPort: number) {
    this.#bundle = bundle;
    this.#dataDir = dataDir;
    this.#inspectorPort = inspectorPort;
  }

  async #start(): Promise<RunningBroker> {
    return startWorkerd({
      bundle: this.#bundle,
      dataDir: this.#dataDir,
      host: "127.0.0.1",
      port: 0,
      env: { PATH: process.env.PATH },
      output: (chunk) => process.stderr.write(chunk),
      flags: [`--inspector-addr=127.0.0.1:${this.#inspectorPort}`],
    });
  }

  async wake(): Promise<Woken> {
    const broker = await this.#start();
    const { pid } = broker.process;
    const rssBefore = rssMb(pid!);
    const startedAt = performance.now();
    const client = await connectAsync(broker.url, { clientId: "waker" });
    const message = new Promise((resolve) => client.once("message", resolve));
    await client.subscribeAsync("wake/up", { qos: 1 });
    await client.publishAsync("wake/up", "", { qos: 1 });
    await message;
    const ms = performance.now() - startedAt;
    const rss = rssMb(pid!) - rssBefore;
    const inspector = await Inspector.open(this.#inspectorPort);
    const heap = await inspector.heapUsage();
    inspector.close();
    await client.endAsync();
    await broker.stop();
    return { ms, rssMb: rss, heapMb: heap.usedSize / 1e6, arraysMb: heap.backingStorageSize / 1e6 };
  }

  /** Routes of nodes that are not there, as if they were asleep. */
  fill(filters: number): void {
    const files = globSync(join(this.#dataDir, "durable-objects", "*Coordinator*", "*.sqlite"));
    const file = files.find((each) => !each.endsWith("metadata.sqlite"));
    if (file === undefined) throw new Error("the core has no database");
    const database = new DatabaseSync(file);
    database.exec("BEGIN");
    const columns = "role, domain, home, term, joined_at, state, changed_at, down_at";
    const member = database.prepare(
      `INSERT OR REPLACE INTO member (name, ${columns}) SELECT ?, ${columns} FROM member WHERE role = 'replicant' LIMIT 1`,
    );
    for (const node of nodes) member.run(node);
    const route = database.prepare("INSERT OR REPLACE INTO route VALUES (?, ?, 1, ?, 0)");
    for (let i = 0; i < filters; i++) route.run(filterAt(i).filter, nodes[i % nodeCount]!, i + 1);
    database.exec("COMMIT");
    database.close();
  }
}

function rssMb(pid: number): number {
  return (residentKilobytesOf(pid) ?? Number.NaN) / 1e3;
}

// ---- report ---------------------------------------------------------------------------------------------------------

function row(cells: readonly (string | number)[]): void {
  console.log(
    cells.map((cell) => (typeof cell === "number" ? cell.toFixed(cell < 100 ? 1 : 0) : cell).padStart(12)).join(""),
  );
}

function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001B[K${text}`);
}

async function main(): Promise<void> {
  const asked = process.argv.slice(2).map(Number);
  if (asked.some((each) => !Number.isInteger(each) || each < 100))
    throw new Error("the arguments are numbers of filters, 100 or more: npm run bench:routes -- 1000 1000000");
  const counts = asked.length > 0 ? asked : [1000, 10_000, 100_000, 1_000_000];

  row(["filters", "1 node", "8 nodes", "2 of 8", "1000 topics", "all topics"]);
  row(["", "B/filter", "B/filter", "B/filter", "ns/match", "ns/match"]);
  for (const count of counts) {
    progress(`${count} filters`);
    const [one, spread, two] = [
      (): readonly string[] => [nodes[0]!],
      (i: number): readonly string[] => [nodes[i % nodeCount]!],
      (i: number): readonly string[] => [nodes[i % nodeCount]!, nodes[(i + 1) % nodeCount]!],
    ].map((nodesOf) => bytesPerFilter(count, nodesOf));
    const table = tableOf(count, () => [nodes[0]!]);
    const few = matchNs(table, Math.min(count, 1000));
    const all = matchNs(table, count);
    progress("");
    row([String(count), one!, spread!, two!, few, all]);
  }

  const directory = await mkdtemp(join(tmpdir(), "trellis-bench-"));
  try {
    progress("bundling");
    const core = new Core(await bundleWorker(join(directory, "bundle")), join(directory, "data"), await freePort());
    await core.wake();
    progress("");
    console.log();
    row(["routes", "wakes in ms", "RSS MB", "heap MB", "arrays MB"]);
    for (const count of [0, ...counts]) {
      progress(`a core with ${count} routes`);
      core.fill(count);
      const { ms, rssMb: rss, heapMb, arraysMb } = await core.wake();
      progress("");
      row([String(count), ms, rss, heapMb, arraysMb]);
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

await main();
