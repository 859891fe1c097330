/**
 * A whole cluster in one process: the real Durable Object classes on simulated disks, sockets, calls, timers and time.
 *
 * One thing happens at a time, and a seed decides when each comes. What an object does about it is a turn: its code, the
 * promises that this settles, and then one of
 *
 *   commit      what it wrote is on disk, and only then what it sent leaves (the output gate)
 *   crash       nothing of the turn was written, nothing of it leaves
 *   crash late  all of it was written and has left, but the object is gone
 *
 * so an object crashes at every `await` there is, given seeds enough. Between turns it may be evicted, where the runtime
 * may: no timer pending, no call under way. Time passes only from one thing to the next.
 *
 *   world.ts    turns, faults             object.ts    one Durable Object: its lives, its disk, its alarm
 *   disk.ts     SQLite, transactions      network.ts   calls between objects
 *   socket.ts   WebSockets                globals.ts   Date, timers, crypto, console of the code under test
 *   client.ts   MQTT clients              splits.ts    what cuts mean to a cluster of several cores
 *   oracle.ts   what clients must see     replicas.ts  what cores and nodes must hold
 *   scenario.ts what a seed means
 */
import { random } from "../support/random.ts";
import { Network } from "./network.ts";
import type { Life, SimulatedObject } from "./object.ts";
import type { Wire } from "./socket.ts";
import { isHidden } from "./replicas.ts";
import { Splits } from "./splits.ts";
import { Timeline, type Scheduled } from "./timeline.ts";

/** How often things go wrong; a rate is a probability for each occasion. */
export interface Weather {
  /** A crash, for each turn of a node or core. */
  readonly crashes: number;
  /** An eviction, for each turn after which the object might sleep. */
  readonly evictions: number;
  /** A call that is lost before it arrives, an answer that is lost after it was given. */
  readonly lostCalls: number;
  readonly lostAnswers: number;
  /** ms: what most messages take, and what some take. */
  readonly latencyMs: number;
  readonly slowMs: number;
}

const calm: Weather = { crashes: 0, evictions: 0.02, lostCalls: 0, lostAnswers: 0, latencyMs: 2, slowMs: 20 };

/** The simulated time at which all begins. */
const startAt = 1_800_000_000_000;
const slowRate = 0.05;
/** Things that may happen in one moment. */
const atOnceMax = 5000;

/** A source of random numbers with a few ways to ask. */
export class Dice {
  readonly next: () => number;

  constructor(seed: number) {
    this.next = random(seed);
  }

  /** Whether something of this probability happens. */
  chance(probability: number): boolean {
    return probability > 0 && this.next() < probability;
  }

  /** 0 to count - 1. */
  below(count: number): number {
    return Math.floor(this.next() * count);
  }

  between(min: number, max: number): number {
    return min + this.next() * (max - min);
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }
}

export class World {
  readonly seed: number;
  readonly timeline = new Timeline(startAt);
  readonly objects = new Map<string, SimulatedObject>();
  readonly network: Network;
  /** None where there is one core. */
  splits: Splits;
  readonly violations: string[] = [];
  weather: Weather;
  /** Much has gone wrong already. */
  hasStormed = false;
  /** Clients whose sessions the cluster has gone on without, because their nodes could not be reached. */
  readonly abandoned = new Set<string>();
  /** Whose turn it is. */
  running: Life | undefined;
  /** What happened, line by line, where somebody wants to know. */
  readonly trace: string[] | undefined;
  turns = 0;
  #atOnce = 0;
  readonly #drained: () => Promise<void>;
  readonly #seeds: Dice;
  readonly #latency: Dice;
  readonly #faults: Dice;
  /** For `Math.random` and `crypto` of the code under test. */
  readonly production: Dice;

  constructor(seed: number, weather: Weather, options: { readonly traces: boolean }) {
    this.seed = seed;
    this.weather = weather;
    this.trace = options.traces ? [] : undefined;
    this.#seeds = new Dice(seed);
    this.#latency = this.dice();
    this.#faults = this.dice();
    this.production = this.dice();
    this.network = new Network(this);
    this.splits = new Splits(this.network, { cores: [], recoveryMs: 0, autocleanMs: 0 });
    // The event loop's own, whatever the simulation puts in its place.
    const { setImmediate } = globalThis;
    this.#drained = () => new Promise((resolve) => setImmediate(resolve));
  }

  /** A source of its own for each who draws: what one draws does not depend on the others. */
  dice(): Dice {
    return new Dice(this.#seeds.next() * 2 ** 32);
  }

  get now(): number {
    return this.timeline.now;
  }

  log(line: string): void {
    this.trace?.push(`${((this.now - startAt) / 1000).toFixed(4).padStart(9)} ${line}`);
  }

  violate(line: string): void {
    this.log(`VIOLATION ${line}`);
    this.violations.push(line);
  }

  // ---- connections ------------------------------------------------------------------------------------------------

  readonly #connected = new Map<string, Wire>();
  /** Nodes that claims went on without, each with the client id. */
  readonly #givenUp = new Set<string>();
  /** Connections of clients to them, until they can be told. */
  readonly #toBeTold = new Set<Wire>();

  /** A claim goes on without a node that may have a session of the client. */
  handleAbandoned(clientId: string, holder: string): void {
    this.abandoned.add(clientId);
    this.#givenUp.add(`${clientId} on ${holder}`);
  }

  /**
   * A client is told that it is connected: the connection before must be over (G4), unless it is behind a cut, or on a node
   * that nobody could reach for so long that it was given up.
   */
  handleConnected(wire: Wire): void {
    const { clientId, nodeName } = wire;
    const before = this.#connected.get(clientId);
    if (before && before !== wire && before.isOpenAtServer) {
      if (this.#givenUp.has(`${clientId} on ${before.nodeName}`)) this.#toBeTold.add(before);
      else if (!isHidden(this, clientId, before.nodeName, nodeName))
        this.violate(`two: ${clientId} is connected to ${before.nodeName} and to ${nodeName}`);
    }
    this.#connected.set(clientId, wire);
    this.#givenUp.delete(`${clientId} on ${nodeName}`);
  }

  /** All nodes can be reached, and have been told of what they did not hear. */
  checkTold(): void {
    for (const wire of this.#toBeTold)
      if (wire.isOpenAtServer)
        this.violate(`two: ${wire.clientId} is still connected to ${wire.nodeName}, which was given up`);
  }

  // ---- time -------------------------------------------------------------------------------------------------------

  after(ms: number, run: () => void | Promise<void>): Scheduled {
    return this.timeline.schedule(this.now + ms, run);
  }

  /** What one message takes. */
  latency(): number {
    const { latencyMs, slowMs } = this.weather;
    return this.#latency.next() * (this.#latency.chance(slowRate) ? slowMs : latencyMs);
  }

  /** Goes on until it is true, or for so long. @returns whether it is true. */
  async run(ms: number, isOver: () => boolean = () => false): Promise<boolean> {
    const until = this.now + ms;
    while (!isOver()) {
      const { now } = this;
      const next = this.timeline.next(until);
      if (!next) return isOver();
      this.#atOnce = next.at > now ? 0 : this.#atOnce + 1;
      if (this.#atOnce > atOnceMax) throw new Error(`time does not pass any more`);
      // Most things are over at once; only the turns of objects are waited for.
      const turn = next.run();
      if (turn) await turn;
    }
    return true;
  }

  /** From now on nothing fails any more. */
  calmDown(): void {
    this.weather = calm;
    this.network.endFaults();
  }

  // ---- turns ------------------------------------------------------------------------------------------------------

  /** One turn of an object's life. */
  async turn(life: Life, what: string, run: () => void): Promise<void> {
    if (!life.isAlive) return;
    this.turns++;
    this.log(`${life.name} ${what}`);
    this.running = life;
    try {
      run();
    } catch (error) {
      this.violate(`${life.name} threw at ${what}: ${describe(error)}`);
    }
    await this.#drained();
    this.running = undefined;
    this.#endTurn(life);
  }

  #endTurn(life: Life): void {
    const { crashes, evictions } = this.weather;
    const crash = this.#faults.chance(crashes) ? this.#faults.pick(["crash", "crash late"] as const) : undefined;
    if (crash === "crash" || life.isAborted) return life.object.crash("before the commit");
    life.commit();
    if (crash) life.object.crash("after the commit");
    else if (life.maySleep && this.#faults.chance(evictions)) life.object.evict();
  }

  /** Whether a call is lost on its way, or its answer. */
  loses(what: "call" | "answer"): boolean {
    return this.#faults.chance(what === "call" ? this.weather.lostCalls : this.weather.lostAnswers);
  }

  /** For what else goes wrong by chance. */
  faultChance(probability: number): boolean {
    return this.#faults.chance(probability);
  }

  close(): void {
    for (const object of this.objects.values()) object.disk.close();
  }
}

function describe(error: unknown): string {
  return error instanceof Error ? `${error.message} ${error.stack?.split("\n")[1]?.trim() ?? ""}` : String(error);
}
