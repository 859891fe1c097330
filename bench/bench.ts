// The benchmark: Trellis, its peers and the floors under the same load, on this machine, over WebSocket on loopback.
//
//   npm run bench                            all scenarios: about an hour and a half
//   npm run bench -- pairs50-q0 'fanout*'    some
//   npm run bench -- --list                  their names
//   npm run bench -- --smoke                 whether it works, in seconds; asserts no time
//   --rounds 3    --seconds 3    --warm-up 4    --brokers trellis,bare    --json bench/results/<time>.json
//
// How it works. For each scenario there are rounds, and in each round every broker runs the load once, in turn (who begins
// changes from round to round). Each run has a new broker process on an empty disk and a new process that makes the load,
// warms up, measures, and then waits for all that is under way. All load is a closed loop: a publisher has a window of
// messages under way. Every message carries its publisher, number, time and a content that the receiver compares byte by
// byte; a run in which anything is lost, duplicated, reordered, changed, or cut off is void, and shown as void.
//
// Who is measured. Trellis on `workerd serve`, as `npm start` runs it. Mosquitto (Debian's package) and Aedes over `ws`, the
// peers: both keep all in memory. The floors, on the same runtime with no broker in them: "bare", one object that copies
// frames between hibernating sockets; "gateways", objects that do so through a hub, which is our shape; "store", which
// puts a turn's messages on disk as one row. And for some scenarios Trellis itself with another load, the reference.
//
// How to read it. Figures are medians over the rounds. A ratio is Trellis' figure by the other's in the same round, and of
// these the median: absolute figures move by half with what the machine does besides, ratios much less. More is better for
// rates, less for latency (p50 us) and memory. "CPU s/M": seconds of the broker's CPU for a million deliveries, publishes
// or connections, the steadiest figure of all. ">=": the generator took a whole CPU, so the broker may be faster. "noise":
// CPUs that other programs took. A latency under load is mostly the window's: compare it in the scenarios with one message.
// The warm-up is long because the runtime compiles what is hot while it runs: in the first two seconds of a process
// Trellis, which has more code than a floor, takes half as much CPU again for a message.
// The machine should have a CPU for the broker, one for the generator, and nothing else to do.

import { execFileSync } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";

import { descriptorsMax } from "../cli/broker.ts";
import { brokerNames, prepareBrokers, type BrokerName, type Brokers } from "./brokers.ts";
import { runLoad } from "./generator.ts";
import { clientsOf, type LoadResult } from "./load/spec.ts";
import { scenarioTable, summaryTable } from "./report.ts";
import { scenarioResult, voidReason, type Column, type Run, type ScenarioResult } from "./results.ts";
import { scenarios, smokeScenarios, type Scenario } from "./scenarios.ts";

interface Plan {
  readonly scenarios: readonly Scenario[];
  readonly brokers: readonly BrokerName[];
  readonly rounds: number;
  readonly seconds: number;
  readonly warmUpSeconds: number;
  readonly json: string | undefined;
}

/** A broker that does nothing for so long has lost what is under way. */
const stallMs = 5000;

/** Who runs what in one scenario. */
interface Contender {
  readonly column: Column;
  readonly broker: BrokerName;
  readonly scenario: Scenario;
}

async function main(stopping: AbortSignal): Promise<number> {
  const plan = planOf(process.argv.slice(2));
  if (plan === "list") {
    for (const { name, about } of scenarios) console.log(`${name.padEnd(24)}${about}`);
    return 0;
  }
  const brokers = await prepareBrokers(stopping);
  const wanted = plan.brokers.filter((name) => !brokers.missing.has(name));
  for (const name of plan.brokers) {
    const reason = brokers.missing.get(name);
    if (reason !== undefined) console.log(`Without ${name}: ${reason}.`);
  }
  const results = await runAll(brokers, plan, wanted, stopping);
  console.log(`\n${summaryTable(results)}`);
  if (plan.json !== undefined) await writeJson(plan, plan.json, results);
  return isGood(results.flatMap(({ runs }) => runs)) ? 0 : 1;
}

/** A peer that is void now and then is void for its own reasons; one that always is, for ours. */
function isGood(runs: readonly Run[]): boolean {
  const isVoid = ({ result }: Run): boolean => voidReason(result) !== undefined;
  if (runs.some((run) => run.column === "trellis" && isVoid(run))) return false;
  const peers = new Set(runs.map(({ column }) => column));
  return [...peers].every((peer) => !runs.filter(({ column }) => column === peer).every(isVoid));
}

function planOf(args: readonly string[]): Plan | "list" {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      list: { type: "boolean" },
      smoke: { type: "boolean" },
      rounds: { type: "string" },
      seconds: { type: "string" },
      "warm-up": { type: "string" },
      brokers: { type: "string" },
      json: { type: "string" },
    },
  });
  if (values.list === true) return "list";
  const brokers = values.brokers === undefined ? brokerNames : values.brokers.split(",").map(brokerNamed);
  if (values.smoke === true) {
    const json = values.json;
    return { scenarios: smokeScenarios, brokers, rounds: 1, seconds: 0.2, warmUpSeconds: 0.1, json };
  }
  return {
    scenarios: positionals.length === 0 ? scenarios : scenariosNamed(positionals),
    brokers,
    rounds: positive("rounds", values.rounds ?? "3"),
    seconds: positive("seconds", values.seconds ?? "3"),
    warmUpSeconds: positive("warm-up", values["warm-up"] ?? "4"),
    json: values.json ?? join(import.meta.dirname, "results", `${new Date().toISOString().replaceAll(":", "-")}.json`),
  };
}

function positive(option: string, text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new Error(`--${option} is ${text}; it must be a number above 0`);
  return value;
}

function brokerNamed(text: string): BrokerName {
  const name = brokerNames.find((name) => name === text);
  if (name === undefined) throw new Error(`--brokers names ${text}; there are ${brokerNames.join(", ")}`);
  return name;
}

/** By name, or by the beginning of names: "pairs50*". In the order of the table. */
function scenariosNamed(names: readonly string[]): Scenario[] {
  const isNamed = (scenario: Scenario, name: string): boolean =>
    name.endsWith("*") ? scenario.name.startsWith(name.slice(0, -1)) : scenario.name === name;
  const unknown = names.find((name) => !scenarios.some((scenario) => isNamed(scenario, name)));
  if (unknown !== undefined) throw new Error(`there is no scenario ${unknown}; --list names all`);
  return scenarios.filter((scenario) => names.some((name) => isNamed(scenario, name)));
}

function contendersOf(scenario: Scenario, plan: Plan, brokers: readonly BrokerName[]): Contender[] {
  const peers: readonly BrokerName[] = ["trellis", "mosquitto", "aedes", ...scenario.floors];
  const contenders = peers
    .filter((broker) => brokers.includes(broker) && !scenario.without.includes(broker))
    .map((broker): Contender => ({ column: broker, broker, scenario }));
  const reference = [...plan.scenarios, ...scenarios].find(({ name }) => name === scenario.reference);
  if (reference !== undefined && brokers.includes("trellis"))
    contenders.push({ column: "reference", broker: "trellis", scenario: reference });
  return contenders;
}

/** Rejects when it is told to stop, after the broker that runs has ended. */
async function runAll(
  brokers: Brokers,
  plan: Plan,
  wanted: readonly BrokerName[],
  stopping: AbortSignal,
): Promise<ScenarioResult[]> {
  const possible = plan.scenarios.filter(hasDescriptors);
  const lineups = possible.map((scenario) => ({ scenario, contenders: contendersOf(scenario, plan, wanted) }));
  const runsInAll = lineups.reduce((sum, { contenders }) => sum + contenders.length * plan.rounds, 0);
  const begun = Date.now();
  let runsDone = 0;

  const results: ScenarioResult[] = [];
  for (const [index, { scenario, contenders }] of lineups.entries()) {
    const runs: Run[] = [];
    for (let round = 1; round <= plan.rounds; round++) {
      const first = (round - 1) % Math.max(1, contenders.length);
      for (const contender of [...contenders.slice(first), ...contenders.slice(0, first)]) {
        const left =
          runsDone === 0 ? "" : `, ${duration(((Date.now() - begun) / runsDone) * (runsInAll - runsDone))} left`;
        const place = `scenario ${index + 1} of ${lineups.length}, ${scenario.name}`;
        progress(`${place}: round ${round} of ${plan.rounds}, ${contender.column}${left}`);
        runs.push({ column: contender.column, round, result: await runOnce(brokers, contender, plan, stopping) });
        stopping.throwIfAborted();
        runsDone++;
      }
    }
    const result = scenarioResult(scenario, runs);
    progress("");
    console.log(`\n${scenarioTable(result)}`);
    results.push(result);
  }
  return results;
}

async function runOnce(
  brokers: Brokers,
  { broker, scenario }: Contender,
  plan: Plan,
  stopping: AbortSignal,
): Promise<LoadResult> {
  const { load: spec, cores } = scenario;
  const { seconds, warmUpSeconds } = plan;
  try {
    const running = await brokers.start(broker, { nodes: spec.nodes, cores });
    try {
      const { urls, pid } = running;
      return await runLoad({ spec, urls, pid, seconds, warmUpSeconds, stallMs }, stopping);
    } finally {
      await running.stop();
    }
  } catch (error) {
    return { kind: "failed", reason: error instanceof Error ? error.message : String(error) };
  }
}

/** workerd takes two descriptors for each client, and some for itself. */
function hasDescriptors({ name, load }: Scenario): boolean {
  const needed = 2 * clientsOf(load) + 200;
  const limit = descriptorsMax();
  if (limit < needed)
    console.log(`Without ${name}: it needs ${needed} open files, and the limit (ulimit -Hn) is ${limit}.`);
  return limit >= needed;
}

/** One line that is written over on a terminal, and lines elsewhere; an empty one takes it away. */
function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[K${text}`);
  else if (text !== "") process.stderr.write(`${text}\n`);
}

function duration(ms: number): string {
  return ms < 90_000 ? `${Math.ceil(ms / 1000)} s` : `${Math.ceil(ms / 60_000)} min`;
}

async function writeJson({ rounds, seconds, warmUpSeconds }: Plan, path: string, results: readonly ScenarioResult[]) {
  const { version } = JSON.parse(
    await readFile(join(import.meta.dirname, "../node_modules/workerd/package.json"), "utf8"),
  ) as { version: string };
  const document = {
    at: new Date().toISOString(),
    commit: commit(),
    machine: { cpus: cpus().length, model: cpus()[0]?.model, node: process.version, workerd: version },
    rounds,
    seconds,
    warmUpSeconds,
    scenarios: results.map(({ scenario, rows, runs }) => ({
      ...scenario,
      rows: rows.map((row) => ({
        ...row,
        cells: Object.fromEntries(row.cells),
        ratios: Object.fromEntries(row.ratios),
        cpuRatios: Object.fromEntries(row.cpuRatios),
      })),
      runs,
    })),
  };
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, `${JSON.stringify(document, undefined, 2)}\n`);
  console.log(`\n${path}`);
}

/** With "-dirty" if it is not all of it. */
function commit(): string | undefined {
  try {
    return execFileSync("git", ["describe", "--always", "--dirty"], {
      cwd: import.meta.dirname,
      encoding: "utf8",
    }).trim();
  } catch {
    return undefined;
  }
}

const stopping = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => stopping.abort());
process.exitCode = await main(stopping.signal).catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
