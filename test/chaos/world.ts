// What the actors of a chaos run share: the broker and what is done to it, the seed, the clock, and what went wrong.

import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { IClientOptions, MqttClient } from "mqtt";

import { startBroker, type Broker } from "../support/broker.ts";
import { range, slot } from "../support/client.ts";
import { random } from "../support/random.ts";
import { calm, type Cut, type Forecast } from "./weather.ts";

/** Without any progress for this long, whoever still waits is stuck. */
export const patienceMs = 20_000;

/** How long after an outage something may still be tried again. */
const aftermathMs = 10_000;

/** On the first ones there is always something to do, on the others rarely: they sleep. */
export const busyNodes: readonly string[] = range(4).map(slot);
export const quietNodes: readonly string[] = [slot(4), slot(5)];
export const coreName = "core@local.emqxcl";
export const objects: readonly string[] = [...busyNodes, ...quietNodes, coreName];

/** What happens, for the moments at which the broker is killed. */
export const happenings = [
  "sent",
  "acknowledged",
  "received",
  "released",
  "delivered",
  "connecting",
  "connected",
  "moving",
] as const;
export type Happening = (typeof happenings)[number];

/** A time from which to which something holds, in ms since the start. */
export interface Span {
  readonly from: number;
  to: number;
}

export class World {
  readonly broker: Broker;
  readonly violations: string[] = [];
  readonly kills: number[] = [];
  readonly counts = { sent: 0, acknowledged: 0, refused: 0, delivered: 0, connected: 0 };
  stopping = false;
  readonly #random: () => number;
  readonly #traceFile: string | undefined;
  readonly #trace: string[];
  readonly #startedAt: number;
  readonly #stopped = Promise.withResolvers<void>();
  readonly #outages: Span[] = [];
  /** Those in which some did not reach the core. */
  readonly #coreOutages: Span[] = [];
  #lastProgress = Date.now();
  #up = Promise.resolve();
  #forecast = calm;
  #awaited: { kind: Happening; count: number; resolve: () => void } | undefined;

  private constructor(seed: number, broker: Broker, startedAt: number, trace: string[], traceFile: string | undefined) {
    this.#random = random(seed);
    this.broker = broker;
    this.#startedAt = startedAt;
    this.#trace = trace;
    this.#traceFile = traceFile;
  }

  static async start(seed: number, traceFile: string | undefined): Promise<World> {
    const startedAt = Date.now();
    const trace: string[] = [];
    const broker = await startBroker({
      env: { TRELLIS_MQTT__MAX_MQUEUE_LEN: "100000" },
      flags: ["--experimental"],
      listen: (text) => {
        for (const line of text.trimEnd().split("\n")) trace.push(`${Date.now() - startedAt}   ${line}`);
      },
    });
    return new World(seed, broker, startedAt, trace, traceFile);
  }

  /** A source of its own for each actor: what one draws does not depend on when the others do. */
  random(): () => number {
    return random(Math.floor(this.#random() * 2 ** 32));
  }

  get now(): number {
    return Date.now() - this.#startedAt;
  }

  // ---- what is told ---------------------------------------------------------------------------------------------------

  get isTraced(): boolean {
    return this.#traceFile !== undefined;
  }

  trace(line: string): void {
    this.#trace.push(`${this.now} ${line}`);
  }

  violate(line: string): void {
    this.trace(`VIOLATION ${line}`);
    this.violations.push(line);
  }

  progress(line: string): void {
    this.trace(line);
    process.stdout.write(`chaos ${(this.now / 1000).toFixed(1)} s: ${line}\n`);
  }

  writeTrace(): void {
    if (this.#traceFile) writeFileSync(this.#traceFile, `${this.#trace.join("\n")}\n`);
  }

  /** The first violations of each kind, and how many there are. */
  summary(): string[] {
    const kinds = Map.groupBy(this.violations, (line) => line.split(":")[0]!);
    return [...kinds].flatMap(([kind, lines]) => [`${lines.length} ${kind}`, ...lines.slice(0, 10)]);
  }

  // ---- what happens -----------------------------------------------------------------------------------------------------

  happened(kind: Happening): void {
    // Connections alone are no progress: a client that comes back again and again may be stuck all the same.
    if (kind === "acknowledged" || kind === "received" || kind === "delivered") this.#lastProgress = Date.now();
    const awaited = this.#awaited;
    if (awaited?.kind !== kind || --awaited.count > 0) return;
    this.#awaited = undefined;
    awaited.resolve();
  }

  /** Resolves at once when it has happened so many times more, or when it does not come. */
  async next(kind: Happening, count: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#awaited = { kind, count, resolve };
    await Promise.race([promise, sleep(2000)]);
    this.#awaited = undefined;
  }

  /** Waits until nothing is left to wait for, or nothing has moved for so long. @returns what is left. */
  async settled(waiting: () => string[]): Promise<string[]> {
    this.#lastProgress = Date.now();
    for (;;) {
      const left = waiting();
      if (left.length === 0 || Date.now() > this.#lastProgress + patienceMs) return left;
      // What is waited for has no event of its own.
      await sleep(20);
    }
  }

  /** As `settled`; whoever still waits is stuck. */
  async until(what: string, waiting: () => string[]): Promise<void> {
    for (const who of await this.settled(waiting)) this.violate(`stuck: ${who} (${what})`);
  }

  /** The actors come to their ends. */
  stop(): void {
    this.stopping = true;
    this.#stopped.resolve();
  }

  get whenStopping(): Promise<void> {
    return this.#stopped.promise;
  }

  // ---- what is done to the broker ---------------------------------------------------------------------------------------

  whenUp(): Promise<void> {
    return this.#up;
  }

  /** SIGKILL, and the start of workerd on what is on disk. */
  async kill(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#up = promise;
    this.kills.push(this.now);
    this.trace("KILL");
    await this.broker.kill();
    await this.broker.restart();
    await this.#ask("weather", this.#forecast);
    this.trace("RESTARTED");
    resolve();
  }

  /** The weather from now on; outages are apart from it. */
  async weather(forecast: Omit<Forecast, "seed" | "cuts">): Promise<void> {
    await this.#announce({ ...forecast, seed: Math.floor(this.#random() * 2 ** 32), cuts: this.#forecast.cuts });
  }

  /** Some do not reach some. */
  async outage(cuts: readonly Cut[], ms: number): Promise<void> {
    const outage: Span = { from: this.now, to: Infinity };
    this.#outages.push(outage);
    if (cuts.some(({ to = coreName }) => to === coreName)) this.#coreOutages.push(outage);
    await this.#announce({ ...this.#forecast, cuts });
    await sleep(ms);
    await this.#announce({ ...this.#forecast, cuts: [] });
    outage.to = this.now;
  }

  async #announce(forecast: Forecast): Promise<void> {
    this.#forecast = forecast;
    this.trace(`weather ${JSON.stringify(forecast)}`);
    await this.#ask("weather", forecast);
  }

  /** Whether something was out of reach, or has just been. */
  isOutage(span: Span): boolean {
    return this.#outages.some((outage) => touches(outage, span));
  }

  /** Whether the core was, so that publishes may be refused: for a node that is, they wait. */
  mayRefuse(span: Span): boolean {
    return this.#coreOutages.some((outage) => touches(outage, span));
  }

  /** One object is gone, with its sockets. */
  async crash(object: string): Promise<void> {
    this.trace(`crash ${object}`);
    await this.#ask(`crash?object=${encodeURIComponent(object)}`);
  }

  /** One object sleeps as soon as it has nothing to do. */
  async putToSleep(object: string): Promise<void> {
    await this.#ask(`sleep?object=${encodeURIComponent(object)}`);
  }

  async #ask(what: string, forecast?: Forecast): Promise<void> {
    const address = `http://127.0.0.1:${this.broker.port}/chaos/${what}`;
    const body = forecast === undefined ? null : JSON.stringify(forecast);
    // It may be killed meanwhile.
    await fetch(address, { method: "POST", body }).catch(() => {});
  }

  /** How often the worker has told of it. */
  told(what: string): number {
    return this.broker.output().split(`chaos: ${what}`).length - 1;
  }
}

function touches(outage: Span, { from, to }: Span): boolean {
  return from <= outage.to + aftermathMs && to >= outage.from;
}

export function pick<T>(items: readonly T[], draw: number): T {
  return items[Math.floor(draw * items.length)]!;
}

/** Options of a session that lasts, in each version's own terms. */
export function lasting(
  version: 4 | 5,
  clientId: string,
  properties: NonNullable<IClientOptions["properties"]> = {},
): IClientOptions {
  return {
    protocolVersion: version,
    clientId,
    clean: false,
    // A connection that nobody holds any more is given up soon.
    keepalive: 5,
    connectTimeout: 15_000,
    resubscribe: false,
    ...(version === 5 ? { properties: { sessionExpiryInterval: 1000, ...properties } } : {}),
  };
}

/** The client is connected still, and answered. */
export async function pinged(client: MqttClient, name: string): Promise<void> {
  const answered = new Promise<void>((resolve) => {
    client.on("packetreceive", (packet) => {
      if (packet.cmd === "pingresp") resolve();
    });
  });
  client.sendPing();
  const late = sleep(patienceMs, undefined, { ref: false }).then(() => {
    throw new Error(`${name} has no PINGRESP`);
  });
  await Promise.race([answered, late]);
}
