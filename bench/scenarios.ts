// The scenarios: what is loaded, on how many nodes and cores, and which floor does the same work.

import type { BrokerName } from "./brokers.ts";
import type { LoadSpec, Shape, Traffic } from "./load/spec.ts";

/** What a row of the report compares, and of which phase. */
export interface Row {
  readonly phase: string;
  readonly measure: "perSecond" | "p50Us" | "kilobytesPerConnection";
}

export interface Scenario {
  readonly name: string;
  readonly about: string;
  readonly load: LoadSpec;
  readonly cores: 1 | 3;
  readonly floors: readonly BrokerName[];
  /** Peers that cannot do it. */
  readonly without: readonly BrokerName[];
  /** Another scenario, which Trellis runs in the same rounds, for the ratio to it. */
  readonly reference?: string;
  readonly rows: readonly Row[];
}

type Rest = Partial<
  Traffic & Pick<LoadSpec, "nodes"> & Pick<Scenario, "cores" | "floors" | "without" | "reference" | "rows">
>;

function scenario(name: string, about: string, shape: Shape, rest: Rest = {}): Scenario {
  const { nodes = 1, cores = 1, floors = ["bare"], without = [], reference, rows = delivered, ...traffic } = rest;
  const load: LoadSpec = { shape, nodes, traffic: { qos: 0, size: 64, burst: 1, window: 32, ...traffic } };
  return { name, about, load, cores, floors, without, rows, ...(reference !== undefined && { reference }) };
}

const delivered: readonly Row[] = [{ phase: "", measure: "perSecond" }];
const latency: readonly Row[] = [{ phase: "", measure: "p50Us" }];
const inAndDrain: readonly Row[] = [
  { phase: "in", measure: "perSecond" },
  { phase: "drain", measure: "perSecond" },
];

const onePair: Shape = { kind: "pairs", pairs: 1 };
const fiftyPairs: Shape = { kind: "pairs", pairs: 50 };
const bothFloors: readonly BrokerName[] = ["bare", "gateways"];
const gateways: readonly BrokerName[] = ["gateways"];

/** 50 pairs at each QoS, with small and large messages, one by one and in bursts. */
const allPairs = ([0, 1, 2] as const).flatMap((qos) =>
  [64, 1024].flatMap((size) =>
    [1, 16].map((burst) =>
      scenario(
        `pairs50-q${qos}${size === 64 ? "" : "-1k"}${burst === 1 ? "" : "-burst"}`,
        `50 pairs, QoS ${qos}, ${size} B${burst === 1 ? "" : `, ${burst} packets a frame`}`,
        fiftyPairs,
        { qos, size, burst, floors: size === 64 && burst === 1 ? bothFloors : ["bare"] },
      ),
    ),
  ),
);

export const scenarios: readonly Scenario[] = [
  scenario("connect", "2000 connections, 50 at once", { kind: "connect", clients: 2000, atOnce: 50 }),
  scenario(
    "idle5000",
    "memory of 5000 idle connections",
    { kind: "idle", clients: 5000 },
    {
      rows: [{ phase: "", measure: "kilobytesPerConnection" }],
    },
  ),

  scenario("lat-q0", "one message at a time, QoS 0", onePair, { window: 1, rows: latency, floors: bothFloors }),
  scenario("lat-q1", "one message at a time, QoS 1", onePair, { window: 1, qos: 1, rows: latency, floors: bothFloors }),
  scenario("lat-q0-2nodes", "one message at a time from node to node, QoS 0", onePair, {
    window: 1,
    nodes: 2,
    rows: latency,
    floors: gateways,
    reference: "lat-q0",
  }),
  scenario("lat-q1-2nodes", "one message at a time from node to node, QoS 1", onePair, {
    window: 1,
    qos: 1,
    nodes: 2,
    rows: latency,
    floors: gateways,
    reference: "lat-q1",
  }),

  ...allPairs,
  scenario("pairs50-q0-w1", "50 pairs, QoS 0, one message each under way", fiftyPairs, {
    window: 1,
    floors: bothFloors,
  }),
  scenario("pairs50-q1-w1", "50 pairs, QoS 1, one message each under way", fiftyPairs, {
    window: 1,
    qos: 1,
    floors: bothFloors,
  }),
  scenario("pairs50-q2-w1", "50 pairs, QoS 2, one message each under way", fiftyPairs, { window: 1, qos: 2 }),

  scenario("fanout100", "1 to 100, QoS 0", { kind: "fan-out", subscribers: 100 }, { window: 8 }),
  scenario("fanout1000", "1 to 1000, QoS 0", { kind: "fan-out", subscribers: 1000 }, { window: 4 }),
  scenario("fanin50-q0", "50 to 1, QoS 0", { kind: "fan-in", publishers: 50 }),
  scenario("fanin50-q1", "50 to 1, QoS 1", { kind: "fan-in", publishers: 50 }, { qos: 1 }),

  scenario(
    "wild10k",
    "10,000 wildcard filters, 2 match",
    { kind: "wildcards", filters: 10_000, subscribers: 100 },
    { window: 64, floors: [] },
  ),
  scenario(
    "wild100k",
    "100,000 wildcard filters, 2 match",
    { kind: "wildcards", filters: 100_000, subscribers: 100 },
    { window: 64, floors: [], reference: "wild10k" },
  ),

  scenario(
    "shared10",
    "10 publishers to a share group of 10",
    { kind: "shared", publishers: 10, members: 10 },
    { floors: [], without: ["aedes"], reference: "unshared10" }, // To Aedes $share/ is a topic like others.
  ),
  scenario("unshared10", "10 pairs: the load of shared10 without a group", { kind: "pairs", pairs: 10 }),

  scenario(
    "retained10k",
    "10,000 retained topics",
    { kind: "retained", messages: 10_000 },
    { qos: 1, window: 96, rows: inAndDrain, floors: ["store"] },
  ),
  scenario(
    "queue10k",
    "10,000 messages for a session that is away",
    { kind: "queue", messages: 10_000 },
    { qos: 1, window: 96, rows: inAndDrain, floors: ["store"] },
  ),
  scenario(
    "queue10k-burst",
    "10,000 messages for a session that is away, 16 packets a frame",
    { kind: "queue", messages: 10_000 },
    { qos: 1, window: 96, burst: 16, rows: inAndDrain, floors: ["store"] },
  ),

  scenario("pairs50-q0-2nodes", "50 pairs from node to node, two nodes, QoS 0", fiftyPairs, {
    nodes: 2,
    floors: gateways,
    reference: "pairs50-q0",
  }),
  scenario("pairs50-q1-2nodes", "50 pairs from node to node, two nodes, QoS 1", fiftyPairs, {
    nodes: 2,
    qos: 1,
    floors: gateways,
    reference: "pairs50-q1",
  }),
  scenario("pairs50-q0-8nodes", "50 pairs from node to node, eight nodes, QoS 0", fiftyPairs, {
    nodes: 8,
    floors: gateways,
    reference: "pairs50-q0",
  }),
  scenario(
    "fanout1000-8nodes",
    "1 to 1000 on eight nodes, QoS 0",
    { kind: "fan-out", subscribers: 1000 },
    { nodes: 8, window: 4, floors: gateways, reference: "fanout1000" },
  ),
  scenario("pairs50-q0-3cores", "50 pairs from node to node, eight nodes round three cores, QoS 0", fiftyPairs, {
    nodes: 8,
    cores: 3,
    floors: gateways,
    reference: "pairs50-q0-8nodes",
  }),
  scenario("pairs50-q1-3cores", "50 pairs from node to node, eight nodes round three cores, QoS 1", fiftyPairs, {
    nodes: 8,
    cores: 3,
    qos: 1,
    floors: gateways,
    reference: "pairs50-q1",
  }),
];

/** So small that a run takes a second, and each broker and floor has its turn. */
export const smokeScenarios: readonly Scenario[] = [
  scenario("smoke-connect", "8 connections", { kind: "connect", clients: 8, atOnce: 4 }, { floors: [] }),
  scenario(
    "smoke-pairs",
    "3 pairs on 3 nodes and 3 cores, QoS 2, bursts",
    { kind: "pairs", pairs: 3 },
    {
      nodes: 3,
      cores: 3,
      qos: 2,
      burst: 4,
      floors: ["bare", "gateways"],
    },
  ),
  scenario(
    "smoke-shared",
    "a share group of 3",
    { kind: "shared", publishers: 2, members: 3 },
    {
      floors: [],
      without: ["aedes"],
    },
  ),
  scenario(
    "smoke-retained",
    "50 retained topics",
    { kind: "retained", messages: 50 },
    {
      qos: 1,
      rows: inAndDrain,
      floors: ["store"],
    },
  ),
  scenario(
    "smoke-queue",
    "50 messages",
    { kind: "queue", messages: 50 },
    {
      qos: 1,
      rows: inAndDrain,
      floors: [],
    },
  ),
];
