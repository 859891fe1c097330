/**
 * `npm run bench:counts`: what a message costs in things that can be counted, on real objects in `workerd serve`. No time is
 * measured, so it comes out the same on any machine, but for the shapes marked ~, where batches form as they come.
 *
 *   in, out      WebSocket frames that clients sent and got
 *   encoded      PUBLISHes, each distinct form of a message once; the others are copies
 *   n>c, c>n     calls of nodes to the core, and of the core to nodes
 *   rows         written on the nodes and on the core, until all is written that is written behind; alarms set are one, too
 *   KB           allocated on the heap, by nodes and core, sampled by V8
 *
 * All is for one message published; `batch` of them are in one frame of the publisher's, who waits for their end before it
 * sends the next ones. A subscriber answers what came in one frame with one frame.
 *
 *     npm run bench:counts                     all shapes
 *     npm run bench:counts -- pair away        those that have such a name
 *     npm run bench:counts -- --json out.json  also as JSON
 */
import { randomUUID } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { QoS } from "mqtt-packet";

import { startWorkerd } from "../cli/broker.ts";
import { bundleWorker } from "../cli/bundle.ts";
import { freePort } from "../test/support/port.ts";
import { countFromNow, type Api, type CountsByNode } from "./counters.ts";
import { CountingClient } from "./counting-client.ts";
import { Inspector } from "./inspector.ts";

interface Shape {
  readonly name: string;
  /** What of it is counted: the messages' way to the sessions, or from there to a client that comes back. */
  readonly run: (load: Load) => Promise<Counted>;
  readonly qos: readonly QoS[];
  readonly batches: readonly number[];
}

interface Load {
  readonly broker: Broker;
  readonly qos: QoS;
  readonly batch: number;
}

interface Broker {
  readonly url: string;
  readonly api: Api;
  readonly inspector: Inspector;
}

/** For one message. */
interface Counted {
  readonly framesIn: number;
  readonly framesOut: number;
  readonly encoded: number;
  readonly callsToCore: number;
  readonly callsToNodes: number;
  readonly rowsOnNodes: number;
  readonly rowsOnCore: number;
  readonly alarms: number;
  readonly allocatedBytes: number;
}

export interface Row extends Counted {
  readonly shape: string;
  readonly qos: QoS;
  readonly batch: number;
}

/** Messages of a batch of one, and of larger ones, that are counted. */
const messagesMin = 128;
const roundsMin = 8;
/** The queue of a session that is away holds 1,000. */
const messagesAwayMax = 768;
/** Longer than anything is written behind. */
const writtenBehindMs = 1_200;

const nodes = { one: "node-1@local.emqxcl", other: "node-2@local.emqxcl" } as const;
const batches = [1, 16, 256] as const;
const bursts = [1, 16, 64, 256] as const;
const everyQos: readonly QoS[] = [0, 1, 2];
const durable = { clean: false } as const;

const shapes: readonly Shape[] = [
  { name: "pair, one node", run: (load) => countFanOut(load, nodes.one, 1, {}), qos: everyQos, batches },
  { name: "pair, two nodes", run: (load) => countFanOut(load, nodes.other, 1, {}), qos: everyQos, batches },
  {
    name: "pair, durable session",
    run: (load) => countFanOut(load, nodes.other, 1, durable),
    qos: [1, 2],
    batches: bursts,
  },
  { name: "fan-out 1:100", run: (load) => countFanOut(load, nodes.other, 100, {}), qos: everyQos, batches },
  { name: "fan-out 1:100, durable", run: (load) => countFanOut(load, nodes.other, 100, durable), qos: [1], batches },
  { name: "away: in", run: (load) => countAway(load, "in"), qos: [1, 2], batches: bursts },
  { name: "away: drain", run: (load) => countAway(load, "drain"), qos: [1, 2], batches: [256] },
  { name: "~50 pairs, window 32", run: countPairs, qos: everyQos, batches: [1, 16] },
];

// ---- shapes -----------------------------------------------------------------------------------------------------------

function connect({ broker }: Load, node: string, fields: { clientId?: string; clean?: boolean } = {}, received = 0) {
  return CountingClient.connect(`${broker.url}?node=${encodeURIComponent(node)}`, fields, received);
}

function roundsOf(batch: number): number {
  return Math.max(roundsMin, Math.ceil(messagesMin / batch));
}

/** One publisher, and all its subscribers on one node. */
async function countFanOut(load: Load, node: string, subscribers: number, fields: { clean?: boolean }) {
  const { qos, batch } = load;
  const topic = randomUUID();
  const publisher = await connect(load, nodes.one);
  const all = await Promise.all(Array.from({ length: subscribers }, () => connect(load, node, fields)));
  await Promise.all(all.map((subscriber) => subscriber.subscribe(topic, qos)));
  const rounds = roundsOf(batch);
  let sent = 0;
  const run = async (): Promise<void> => {
    for (let round = 0; round < rounds; round++) {
      sent += batch;
      publisher.publish(topic, qos, batch);
      await Promise.all([publisher.waitFor(0, sent), ...all.map((subscriber) => subscriber.waitFor(sent, 0))]);
    }
  };
  const counted = await count(load, rounds * batch, run);
  await Promise.all([publisher, ...all].map((client) => client.leave()));
  return counted;
}

/** One persistent session that is away, and comes back. */
async function countAway(load: Load, counts: "in" | "drain") {
  const { qos, batch } = load;
  const [topic, clientId] = [randomUUID(), randomUUID()];
  const publisher = await connect(load, nodes.one);
  const session = { clientId, ...durable };
  const first = await connect(load, nodes.other, session);
  await first.subscribe(topic, qos);
  await first.leave();
  const rounds = Math.min(roundsOf(batch), Math.floor(messagesAwayMax / batch));
  const messages = rounds * batch;
  let [sent, before] = [0, 0];
  const fill = async (): Promise<void> => {
    for (let round = 0; round < rounds; round++) {
      publisher.publish(topic, qos, batch);
      await publisher.waitFor(0, (sent += batch));
    }
  };
  const drain = async (): Promise<void> => {
    const again = await connect(load, nodes.other, session, before);
    await again.waitFor((before += messages), 0);
    await again.ping();
    await again.leave();
  };
  const counted =
    counts === "in" ? await count(load, messages, fill, drain) : await count(load, messages, drain, undefined, fill);
  await publisher.leave();
  return counted;
}

/** 50 publishers and 50 subscribers on two nodes, each publisher with 32 messages under way. */
async function countPairs(load: Load) {
  const [pairsMax, window, roundsEach] = [50, 32, 8];
  const { qos, batch } = load;
  const pairs = await Promise.all(
    Array.from({ length: pairsMax }, async (_, i) => {
      const topic = randomUUID();
      const publisher = await connect(load, nodes.one);
      const subscriber = await connect(load, i % 2 === 0 ? nodes.one : nodes.other);
      await subscriber.subscribe(topic, qos);
      return { topic, publisher, subscriber };
    }),
  );
  const each = window * roundsEach;
  let upTo = 0;
  const run = async (): Promise<void> => {
    const from = upTo;
    upTo += each;
    await Promise.all(
      pairs.map(async ({ topic, publisher, subscriber }) => {
        for (let sent = from; sent < upTo; sent += batch) {
          const answered = sent + batch - window;
          await Promise.all([subscriber.waitFor(answered, 0), publisher.waitFor(0, answered)]);
          publisher.publish(topic, qos, batch);
        }
        await Promise.all([subscriber.waitFor(upTo, 0), publisher.waitFor(0, upTo)]);
      }),
    );
  };
  const counted = await count(load, each * pairsMax, run);
  await Promise.all(pairs.flatMap(({ publisher, subscriber }) => [publisher.leave(), subscriber.leave()]));
  return counted;
}

// ---- counting ---------------------------------------------------------------------------------------------------------

/**
 * What a run costs for each of its messages. It runs three times: to warm up, and for each way of counting.
 * @param reset what is done after each run
 * @param prepare what is done before each run
 */
async function count(
  { broker }: Load,
  messages: number,
  run: () => Promise<void>,
  reset = async (): Promise<void> => {},
  prepare = async (): Promise<void> => {},
): Promise<Counted> {
  const once = async <T>(start: () => Promise<() => Promise<T>>): Promise<T> => {
    await prepare();
    const read = await start();
    await run();
    const counted = await read();
    await reset();
    return counted;
  };
  await once(async () => async () => {});
  const byNode = await once(async () => {
    await sleep(writtenBehindMs);
    const read = await countFromNow(broker.api);
    return async () => {
      await sleep(writtenBehindMs);
      return read();
    };
  });
  const allocated = await once(() => broker.inspector.countAllocated());
  return { ...countedOf(byNode, messages), allocatedBytes: allocated / messages };
}

function countedOf(byNode: CountsByNode, messages: number): Omit<Counted, "allocatedBytes"> {
  const isCore = (node: string): boolean => node.startsWith("core@");
  const sum = (metric: string, isMeant: (node: string) => boolean): number => {
    let total = 0;
    for (const [node, counts] of byNode) if (isMeant(node)) total += counts[metric]!;
    return total / messages;
  };
  const isNode = (node: string): boolean => !isCore(node);
  return {
    framesIn: sum("frames.received", isNode),
    framesOut: sum("frames.sent", isNode),
    encoded: sum("packets.encoded", isNode),
    callsToCore: sum("rpc.calls", isNode),
    callsToNodes: sum("rpc.calls", isCore),
    rowsOnNodes: sum("rows.written", isNode),
    rowsOnCore: sum("rows.written", isCore),
    alarms: sum("alarms.set", () => true),
  };
}

// ---- the run ----------------------------------------------------------------------------------------------------------

const columns: readonly [heading: string, text: (row: Row) => string][] = [
  ["shape", ({ shape }) => shape.padEnd(24)],
  ["QoS", ({ qos }) => String(qos)],
  ["batch", ({ batch }) => String(batch)],
  ["in", ({ framesIn }) => short(framesIn)],
  ["out", ({ framesOut }) => short(framesOut)],
  ["encoded", ({ encoded }) => short(encoded)],
  ["n>c", ({ callsToCore }) => short(callsToCore)],
  ["c>n", ({ callsToNodes }) => short(callsToNodes)],
  ["rows n", ({ rowsOnNodes }) => short(rowsOnNodes)],
  ["rows c", ({ rowsOnCore }) => short(rowsOnCore)],
  ["alarms", ({ alarms }) => short(alarms)],
  ["KB", ({ allocatedBytes }) => short(allocatedBytes / 1024)],
];

/** Three digits that count. */
function short(value: number): string {
  return value === 0 ? "0" : String(Number(value.toPrecision(3)));
}

function lineOf(cells: readonly string[]): string {
  return cells.map((cell, i) => (i === 0 ? cell.padEnd(24) : cell.padStart(8))).join("");
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { json: { type: "string" } } });
  const chosen = shapes.filter(
    ({ name }) => positionals.length === 0 || positionals.some((wanted) => name.includes(wanted)),
  );
  if (chosen.length === 0) throw new Error(`no such shape: there are ${shapes.map(({ name }) => name).join("; ")}`);
  const directory = await mkdtemp(join(tmpdir(), "trellis-counts-"));
  const token = randomUUID();
  // workerd does not say which one it has taken.
  const inspectorPort = await freePort();
  const bundle = await bundleWorker(join(directory, "bundle"));
  const workerd = await startWorkerd({
    bundle,
    dataDir: join(directory, "data"),
    host: "127.0.0.1",
    port: 0,
    env: { PATH: process.env.PATH, TRELLIS_API_TOKEN: token },
    output: () => {},
    flags: [`--inspector-addr=127.0.0.1:${inspectorPort}`],
  });
  try {
    const inspector = await Inspector.open(inspectorPort);
    const broker: Broker = { url: workerd.url, api: { port: workerd.port, token }, inspector };
    const rows: Row[] = [];
    console.log(lineOf(columns.map(([heading]) => heading)));
    for (const { name: shape, run, qos: levels, batches: sizes } of chosen)
      for (const qos of levels)
        for (const batch of sizes) {
          const row: Row = { shape, qos, batch, ...(await run({ broker, qos, batch })) };
          rows.push(row);
          console.log(lineOf(columns.map(([, text]) => text(row))));
        }
    inspector.close();
    if (values.json !== undefined) await writeFile(values.json, `${JSON.stringify(rows, null, 2)}\n`);
  } finally {
    await workerd.stop();
    await rm(directory, { recursive: true, force: true });
  }
}

await main();
