// The project's goals, as ratios of Trellis' figure to another's in the same round. They rise when they are met.

import type { BrokerName } from "./brokers.ts";

/** Who Trellis is compared with; "reference" is itself, in the scenario that is named as that. */
export type Against = Exclude<BrokerName, "trellis"> | "reference";

export interface Goal {
  /** A row of the report: a scenario, and its phase if it has several. */
  readonly row: string;
  readonly against: Against;
  /** More is better for rates, less for latency and memory. */
  readonly limit: { readonly atLeast: number } | { readonly atMost: number };
}

function atLeast(ratio: number, against: Against, ...rows: readonly string[]): Goal[] {
  return rows.map((row) => ({ row, against, limit: { atLeast: ratio } }));
}

function atMost(ratio: number, against: Against, ...rows: readonly string[]): Goal[] {
  return rows.map((row) => ({ row, against, limit: { atMost: ratio } }));
}

export const goals: readonly Goal[] = [
  ...atLeast(1.2, "aedes", "pairs50-q0", "pairs50-q0-1k"),
  ...atLeast(0.7, "bare", "pairs50-q0", "pairs50-q0-1k"),
  ...atLeast(1.5, "mosquitto", "pairs50-q0-burst"),
  // One frame a message: the runtime's price of a frame is above what Mosquitto takes for all.
  ...atLeast(0.7, "bare", "pairs50-q0-w1", "pairs50-q1-w1", "pairs50-q2-w1"),
  // The PUBACK is a durable one, the sessions are in memory.
  ...atLeast(1, "aedes", "pairs50-q1", "fanin50-q1"),
  ...atLeast(0.7, "bare", "pairs50-q1", "fanin50-q1"),
  ...atLeast(1, "aedes", "pairs50-q2"),
  ...atLeast(1.3, "mosquitto", "fanout100"),
  ...atLeast(2, "aedes", "fanout100"),
  ...atLeast(1, "mosquitto", "fanout1000"),
  ...atLeast(1.6, "aedes", "fanout1000"),
  ...atLeast(0.95, "reference", "wild100k"),
  // On disk, where Mosquitto and Aedes have it in memory.
  ...atLeast(0.3, "mosquitto", "queue10k-burst in"),
  ...atLeast(1, "aedes", "queue10k drain", "queue10k-burst drain"),
  ...atLeast(0.5, "mosquitto", "retained10k in"),
  ...atLeast(1, "mosquitto", "retained10k drain"),
  ...atLeast(0.9, "reference", "shared10"),
  ...atLeast(0.8, "bare", "connect"),
  ...atMost(1.5, "gateways", "lat-q0-2nodes"),
  ...atMost(1.2, "bare", "idle5000"),
  ...atLeast(0.8, "reference", "pairs50-q0-2nodes", "pairs50-q1-2nodes"),
];
