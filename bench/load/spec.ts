// What is loaded and what comes out of it, as data: the load runs in a process of its own.

export interface Traffic {
  readonly qos: 0 | 1 | 2;
  /** Bytes of a payload. */
  readonly size: number;
  /** PUBLISH packets in a WebSocket frame; with more than 1, acknowledgements share frames as well. */
  readonly burst: number;
  /** Messages that a publisher has under way. */
  readonly window: number;
}

export type Shape =
  /** Connections one after the other, `atOnce` being made at a time. */
  | { readonly kind: "connect"; readonly clients: number; readonly atOnce: number }
  /** Connections that do nothing. */
  | { readonly kind: "idle"; readonly clients: number }
  /** Publishers with a subscriber each. */
  | { readonly kind: "pairs"; readonly pairs: number }
  /** One publisher, and each message to all subscribers. */
  | { readonly kind: "fan-out"; readonly subscribers: number }
  /** Publishers on topics of their own, and one subscriber of all. */
  | { readonly kind: "fan-in"; readonly publishers: number }
  /** Publishers to one share group. */
  | { readonly kind: "shared"; readonly publishers: number; readonly members: number }
  /** Wildcard filters, of which each message matches two. */
  | { readonly kind: "wildcards"; readonly filters: number; readonly subscribers: number }
  /** Retained messages on as many topics, then one who subscribes to all. */
  | { readonly kind: "retained"; readonly messages: number }
  /** Messages for a session that is away, which then comes back. */
  | { readonly kind: "queue"; readonly messages: number };

export interface LoadSpec {
  readonly shape: Shape;
  readonly traffic: Traffic;
  /** Who publishes and who subscribes are on different ones, as far as there are several. */
  readonly nodes: number;
}

/** One run of a load against one broker. */
export interface LoadJob {
  readonly spec: LoadSpec;
  /** The addresses of nodes, in order; a broker of one node has one. */
  readonly urls: readonly string[];
  /** The broker's process. */
  readonly pid: number;
  readonly warmUpSeconds: number;
  readonly seconds: number;
  /** Without any progress for so long, what is under way is lost. */
  readonly stallMs: number;
}

/** What was measured; absent where there is no such thing, or where the system does not tell. */
export interface Figures {
  readonly perSecond?: number | undefined;
  readonly p50Us?: number | undefined;
  readonly p99Us?: number | undefined;
  /** Seconds of the broker's CPU for a million messages (or connections). */
  readonly cpuSecondsPerMillion?: number | undefined;
  readonly kilobytesPerConnection?: number | undefined;
  readonly brokerMegabytes?: number | undefined;
  readonly packetsPerFrame?: number | undefined;
  /** CPUs that this generator used; close to 1 it was the generator that was measured. */
  readonly generatorCpus?: number | undefined;
  /** CPUs that neither the broker nor the generator used: the noise. */
  readonly otherCpus?: number | undefined;
}

/** What must not happen; any of it makes a run void. */
export interface Faults {
  lost: number;
  duplicated: number;
  reordered: number;
  corrupt: number;
  /** Connections that the broker ended. */
  cut: number;
}

/** `phases`: most loads have one, named "". */
export type LoadResult =
  | { readonly kind: "done"; readonly phases: Readonly<Record<string, Figures>>; readonly faults: Faults }
  | { readonly kind: "failed"; readonly reason: string };

/** Connections that the load has open at the same time, about. */
export function clientsOf({ shape }: LoadSpec): number {
  switch (shape.kind) {
    case "connect":
      return Math.ceil(shape.clients * 1.25);
    case "idle":
      return Math.ceil(shape.clients * 1.02);
    case "pairs":
      return 2 * shape.pairs;
    case "fan-out":
    case "wildcards":
      return shape.subscribers + 1;
    case "fan-in":
      return shape.publishers + 1;
    case "shared":
      return shape.publishers + shape.members;
    case "retained":
    case "queue":
      return 4;
  }
}
