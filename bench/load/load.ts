// A load on one broker: its clients and publishers, its counters, and how it is measured.
//
//   warm up -> measure -> stop publishing -> wait for all that is under way -> what has not come is lost
//
// All of it is on one thread, with one read buffer, and no timer takes part: what a read has done to the windows is made
// up for at the end of the same read.

import { setTimeout as sleep } from "node:timers/promises";

import { Client } from "./client.ts";
import { Histogram } from "./histogram.ts";
import { busySeconds, cpuSecondsOf, residentKilobytesOf } from "./processes.ts";
import { Publisher, type PublisherOptions } from "./publisher.ts";
import { Receiver, type Ledger, type ReceiverOptions } from "./receiver.ts";
import type { Faults, Figures, LoadJob } from "./spec.ts";

/** A broker that does not answer a close is left. */
const closeMs = 2000;
/** Connections that are being made at once where that is not what is measured. */
const connectingMax = 50;
/** Packet ids of one publisher under way are different. */
const windowMax = 60_000;

/** Readings at one moment. */
interface Reading {
  readonly atMs: number;
  readonly delivered: number;
  readonly sent: number;
  readonly frames: number;
  readonly packets: number;
  readonly brokerSeconds: number | undefined;
  readonly busySeconds: number | undefined;
  readonly ownSeconds: number;
}

export class Load implements Ledger {
  readonly job: LoadJob;
  readonly faults: Faults = { lost: 0, duplicated: 0, reordered: 0, corrupt: 0, cut: 0 };
  readonly publishers: Publisher[] = [];
  latency = new Histogram();
  delivered = 0;
  readonly #clients: Client[] = [];
  readonly #byClient = new Map<Client, Publisher>();
  readonly #readBuffer = Buffer.allocUnsafe(1 << 18);
  /** Publishers whose windows may have room. */
  #ready = new Set<Publisher>();
  #isPublishing = false;
  #sent = 0;
  #acknowledged = 0;
  readonly counts = { frames: 0, packets: 0 };

  constructor(job: LoadJob) {
    this.job = job;
  }

  now(): number {
    return (performance.now() * 1000) >>> 0;
  }

  onDelivered(publisher: Publisher): void {
    this.#ready.add(publisher);
  }

  /** Connects `count` clients, of which `nodeOf` says where. */
  async connect(
    role: string,
    count: number,
    options: {
      nodeOf?: (index: number) => number;
      atOnce?: number;
      connected?: (client: Client, ms: number) => void;
    } = {},
  ): Promise<Subscriber[]> {
    const { nodeOf = () => 0, atOnce = connectingMax, connected } = options;
    return inParallel(count, atOnce, async (index) => {
      const start = performance.now();
      const subscriber = await this.connectOne(`${role}${index}`, { node: nodeOf(index) });
      connected?.(subscriber.client, performance.now() - start);
      return subscriber;
    });
  }

  async connectOne(
    clientId: string,
    options: { node?: number; session?: "clean" | "kept"; receiver?: Receiver } = {},
  ): Promise<Subscriber> {
    const { node = 0, session = "clean", receiver = this.receiver() } = options;
    const { urls, spec } = this.job;
    const client = await Client.connect({
      url: new URL(urls[node % urls.length]!),
      clientId,
      session,
      acknowledgements: spec.traffic.burst > 1 ? "one" : "each",
      readBuffer: this.#readBuffer,
      counts: this.counts,
      onPublish: receiver.receive,
      onAcknowledged: this.#onAcknowledged,
      onRead: this.#pump,
      onLost: this.#onLost,
    });
    this.#clients.push(client);
    return { client, receiver };
  }

  receiver(options?: ReceiverOptions): Receiver {
    return new Receiver(this, options);
  }

  /** A publisher with the load's traffic on a client's connection. */
  publisher(client: Client, topics: readonly string[], options: Partial<PublisherOptions> = {}): Publisher {
    const { window, ...traffic } = this.job.spec.traffic;
    const publisher = new Publisher({
      id: this.publishers.length,
      client,
      topics,
      retain: false,
      copies: 1,
      waitsFor: "delivery",
      limit: Infinity,
      ...traffic,
      window: Math.min(Math.max(window, traffic.burst), windowMax),
      ...options,
    });
    this.publishers.push(publisher);
    this.#byClient.set(client, publisher);
    return publisher;
  }

  /** All publish for the warm-up, then while it is measured, then everything is waited for. */
  async steady(): Promise<Figures> {
    const { warmUpSeconds, seconds } = this.job;
    this.publish();
    await sleep(warmUpSeconds * 1000);
    this.latency = new Histogram();
    const from = this.read();
    await sleep(seconds * 1000);
    const to = this.read();
    const { latency } = this;
    this.#isPublishing = false;
    await this.allDelivered();
    return { ...figures(from, to), p50Us: latency.quantile(0.5), p99Us: latency.quantile(0.99), ...this.memory() };
  }

  publish(): void {
    this.#isPublishing = true;
    for (const publisher of this.publishers) this.#ready.add(publisher);
    this.#pump();
  }

  /** Waits until nothing is under way; what does not come is counted as lost. */
  async allDelivered(): Promise<void> {
    await this.until(() => this.publishers.every(({ underWay }) => underWay === 0));
    for (const publisher of this.publishers) this.faults.lost += publisher.giveUp();
  }

  /** Waits until it is so, or until there has been no progress for long. */
  async until(isSo: () => boolean): Promise<void> {
    let progress = -1;
    let since = performance.now();
    while (!isSo()) {
      const current = this.delivered + this.#acknowledged;
      if (current !== progress) {
        progress = current;
        since = performance.now();
      } else if (performance.now() - since > this.job.stallMs) return;
      await sleep(2);
    }
  }

  read(): Reading {
    const { user, system } = process.cpuUsage();
    return {
      atMs: performance.now(),
      delivered: this.delivered,
      sent: this.#sent,
      ...this.counts,
      brokerSeconds: cpuSecondsOf(this.job.pid),
      busySeconds: busySeconds(),
      ownSeconds: (user + system) / 1e6,
    };
  }

  memory(): { brokerMegabytes: number | undefined } {
    const kilobytes = residentKilobytesOf(this.job.pid);
    return { brokerMegabytes: kilobytes && kilobytes / 1024 };
  }

  async close(clients: readonly Client[] = this.#clients): Promise<void> {
    await Promise.all(clients.map((client) => client.close(closeMs)));
  }

  readonly #pump = (): void => {
    if (!this.#isPublishing || this.#ready.size === 0) return;
    const ready = this.#ready;
    this.#ready = new Set();
    const now = this.now();
    for (const publisher of ready) if (publisher.client.isConnected) this.#sent += publisher.pump(now);
  };

  readonly #onAcknowledged = (client: Client): void => {
    const publisher = this.#byClient.get(client);
    if (publisher === undefined) return;
    this.#acknowledged++;
    publisher.acknowledge();
    this.#ready.add(publisher);
  };

  readonly #onLost = (): void => {
    this.faults.cut++;
  };
}

export interface Subscriber {
  readonly client: Client;
  readonly receiver: Receiver;
}

/** What happened between two readings, for so many messages as the larger of sent and delivered. */
export function figures(from: Reading, to: Reading, count?: number): Figures {
  const seconds = (to.atMs - from.atMs) / 1000;
  const delivered = to.delivered - from.delivered;
  const messages = count ?? Math.max(delivered, to.sent - from.sent);
  const broker = difference(from.brokerSeconds, to.brokerSeconds);
  const busy = difference(from.busySeconds, to.busySeconds);
  const own = to.ownSeconds - from.ownSeconds;
  return {
    perSecond: (count ?? delivered) / seconds,
    cpuSecondsPerMillion: broker === undefined || messages === 0 ? undefined : (broker / messages) * 1e6,
    packetsPerFrame: (to.packets - from.packets) / (to.frames - from.frames || 1),
    generatorCpus: own / seconds,
    otherCpus: busy === undefined || broker === undefined ? undefined : Math.max(0, busy - broker - own) / seconds,
  };
}

function difference(from: number | undefined, to: number | undefined): number | undefined {
  return from === undefined || to === undefined ? undefined : to - from;
}

/** `make` for 0 to `count` - 1, at most `atOnce` of them at a time. */
export async function inParallel<T>(count: number, atOnce: number, make: (index: number) => Promise<T>): Promise<T[]> {
  const made = Array.from<T>({ length: count });
  let next = 0;
  const lane = async (): Promise<void> => {
    while (next < count) {
      const index = next++;
      made[index] = await make(index);
    }
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, count) }, lane));
  return made;
}
