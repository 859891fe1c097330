/**
 * What a seed means: the cluster, its clients, the weather; and the course of a run.
 *
 * With one core    a storm of crashes, lost calls and outages. Then all is calm, the clients finish, and what must hold is
 *                  looked at; then they end their sessions, and nothing is left.
 * With several     cuts between the cores and their nodes besides. What is cut is given the time to find together before
 *                  anything is looked at; then all clients come once more, and everybody hears from everywhere.
 */
import { BrokerNode } from "../../durable-objects/node/broker-node.ts";
import { Coordinator } from "../../durable-objects/coordinator/coordinator.ts";
import { Client, type ClientPlan, type PublishPlan } from "./client.ts";
import { installGlobals } from "./globals.ts";
import { SimulatedObject, type Shell } from "./object.ts";
import { checkDeliveries, checkRetained, Ledger } from "./oracle.ts";
import { checkAsleep, checkClaims, checkEmpty, checkNodes, checkReplicas, checkRoutes } from "./replicas.ts";
import { Splits } from "./splits.ts";
import { World, type Dice, type Weather } from "./world.ts";

export interface Outcome {
  readonly violations: readonly string[];
  readonly trace: readonly string[];
  readonly turns: number;
  readonly crashes: number;
  readonly evictions: number;
  readonly lines: number;
  readonly brokenStubs: number;
  readonly outages: number;
  readonly cuts: number;
  readonly publications: number;
  readonly arrivals: number;
}

export type Shape = "one core" | "several cores";

export interface SimulationOptions {
  readonly traces: boolean;
  readonly shape: Shape;
}

/** How long things go wrong, and how long clients then have to finish. */
const stormMsMin = 12_000;
const patienceMs = 900_000;
/** After which nothing is under way any more, not even what waits for a retry. */
const quietMs = 40_000;

/** Until those who were cut from each other have found together; those who were cleaned are looked for more rarely. */
const recoveryMs = 60_000;
const recoveryOfCleanedMs = 400_000;
/** After which no alarm is left from before, and then in which nothing wakes a core. */
const idleMs = 330_000;

const locations = ["wnam", "weur", "apac"] as const;

/** Runs one seed to its end. */
export async function simulate(seed: number, options: SimulationOptions): Promise<Outcome> {
  const scenario = new Scenario(seed, options);
  const restore = installGlobals(scenario.world);
  try {
    return await scenario.run();
  } finally {
    restore();
    scenario.world.close();
  }
}

class Scenario {
  readonly world: World;
  readonly #ledger: Ledger;
  readonly #dice: Dice;
  readonly #cores: readonly SimulatedObject[];
  readonly #nodes: readonly SimulatedObject[];
  readonly #clients: Client[];
  readonly #stormMs: number;
  #recoveryMs = 0;

  constructor(seed: number, { traces, shape }: SimulationOptions) {
    const world = new World(seed, fairWeather, { traces });
    this.world = world;
    this.#ledger = new Ledger(world);
    this.#dice = world.dice();
    world.weather = weatherOf(this.#dice);
    world.network.variables = {
      LOOPBACK: "true",
      TRELLIS_MQTT__MAX_INFLIGHT: String(this.#dice.pick([1, 3, 32])),
    };
    world.log(`seed ${seed}: ${JSON.stringify(world.weather)}`);
    if (shape === "one core") {
      this.#stormMs = stormMsMin;
      this.#cores = [this.#addCore("core@local.emqxcl")];
      this.#nodes = Array.from({ length: 1 + this.#dice.below(3) }, (_, slot) => this.#addNode("local", slot));
    } else {
      this.#stormMs = this.#dice.pick([1, 2.5, 6]) * stormMsMin;
      const used = locations.slice(0, this.#dice.pick([2, 3, 3]));
      this.#cores = used.map((location) => this.#addCore(`core@${location}.emqxcl`));
      this.#nodes = used.flatMap((location) =>
        Array.from({ length: this.#dice.pick([0, 1, 1, 2]) }, (_, slot) => this.#addNode(location, slot)),
      );
      if (this.#nodes.length === 0) this.#nodes = [this.#addNode(used[0]!, 0)];
      this.#configure();
    }
    this.#clients = this.#plans().map((plan) => new Client(world, this.#ledger, plan));
  }

  #addCore(name: string): SimulatedObject {
    return new SimulatedObject(this.world, name, (ctx, env) => new Coordinator(ctx, env) as unknown as Shell);
  }

  #addNode(location: string, slot: number): SimulatedObject {
    const name = `node-${slot}@${location}.emqxcl`;
    return new SimulatedObject(this.world, name, (ctx, env) => new BrokerNode(ctx, env) as unknown as Shell);
  }

  #configure(): void {
    const { network } = this.world;
    const cores = this.#cores.map(({ name }) => name);
    const autocleanSeconds = this.#dice.pick([0, 300, 8, 25]);
    network.variables = {
      ...network.variables,
      TRELLIS_CLUSTER__CORE_NODES: cores.join(","),
      TRELLIS_CLUSTER__AUTOCLEAN: `${autocleanSeconds}s`,
      TRELLIS_CLUSTER__AUTOHEAL: String(this.#dice.chance(0.8)),
      TRELLIS_NODE__DB_BACKEND: "rlog",
    };
    const autocleanMs = autocleanSeconds * 1000;
    const mayClean = autocleanMs > 0 && autocleanMs < this.#stormMs;
    this.#recoveryMs = mayClean ? recoveryOfCleanedMs : recoveryMs;
    this.world.splits = new Splits(network, { cores, recoveryMs: this.#recoveryMs, autocleanMs });
    this.world.log(JSON.stringify(network.variables));
  }

  async run(): Promise<Outcome> {
    try {
      await this.#course();
    } catch (error) {
      this.world.violate(`awake: ${String(error)}`);
    }
    return this.#outcome();
  }

  async #course(): Promise<void> {
    const { world } = this;
    this.#planFaults();
    if (this.#isCluster) this.#planCuts();
    await world.run(this.#stormMs / 2);
    world.hasStormed = true;
    await world.run(this.#stormMs / 2);
    world.calmDown();
    world.log("the storm is over");
    // A node that crashed learns of it when something wakes it.
    for (const node of this.#nodes) await node.deliver("a look", () => {});
    for (const client of this.#clients) client.settle();
    await this.#untilAllIsDone();
    if (this.#isCluster) await this.#findTogether();
    await this.#probe();
    const readers = await this.#readRetained();
    await this.#fallAsleep();
    world.checkTold();
    checkDeliveries(world, this.#ledger);
    for (const { session } of readers) checkRetained(world, this.#ledger, session);
    for (const core of this.#cores) checkRoutes(world, this.#nodes, core);
    checkNodes(world, this.#nodes);
    checkClaims(world, this.#nodes, this.#cores);
    checkReplicas(world, this.#cores);
    if (this.#isCluster) await this.#checkIdle();
    for (const client of this.#clients) client.end();
    await this.#untilAllIsDone();
    await this.#probe();
    await this.#fallAsleep();
    checkEmpty(world);
  }

  get #isCluster(): boolean {
    return this.#cores.length > 1;
  }

  /** The cluster mends, and then holds: whoever comes anew finds what it had, also with cores that have slept. */
  async #findTogether(): Promise<void> {
    const { world } = this;
    await world.run(this.#recoveryMs);
    world.log("all have had the time to find together");
    await this.#probe();
    await world.run(quietMs);
    for (const client of this.#clients) client.wander();
    await this.#untilAllIsDone();
    await world.run(recoveryMs);
    for (const core of this.#cores) if (core.life?.maySleep) core.evict();
  }

  async #checkIdle(): Promise<void> {
    const { world } = this;
    const livesOf = (): number => this.#cores.reduce((sum, { lives }) => sum + lives, 0);
    await world.run(idleMs);
    for (const core of this.#cores) if (core.life?.maySleep) core.evict();
    const before = livesOf();
    await world.run(idleMs);
    if (livesOf() > before) world.violate(`awake: a core wakes while nothing happens`);
  }

  async #untilAllIsDone(): Promise<void> {
    const { world } = this;
    const isDone = () => this.#clients.every((client) => client.owed === undefined);
    if (!(await world.run(patienceMs, isDone)))
      for (const { name, owed } of this.#clients) if (owed) world.violate(`stuck: ${name} waits for ${owed}`);
  }

  /** A message to each topic: a route that a crash has left is taken back when one comes by it. */
  async #probe(): Promise<void> {
    const publishes: PublishPlan = { ...calmPublishes, topics: allTopics, count: allTopics.length };
    for (const nodes of this.#everywhere) {
      const probe = this.#addCalm({ name: `probe${this.#clients.length}`, nodes, publishes });
      await this.#untilAllIsDone();
      probe.end();
      await this.#untilAllIsDone();
    }
  }

  async #readRetained(): Promise<Client[]> {
    const filters = [{ filter: `${retainedTopic}/#`, qos: 1 as const }];
    const readers = this.#everywhere.map((nodes, index) =>
      this.#addCalm({ name: index === 0 ? "reader" : `reader${index}`, nodes, filters }),
    );
    await this.#untilAllIsDone();
    return readers;
  }

  /** Where to connect to, to be heard by each core. */
  get #everywhere(): (readonly SimulatedObject[])[] {
    return this.#isCluster ? this.#nodes.map((node) => [node]) : [this.#nodes];
  }

  #addCalm(plan: Partial<ClientPlan> & { readonly name: string }): Client {
    const client = new Client(this.world, this.#ledger, { ...calmPlan, nodes: this.#nodes, ...plan });
    client.settle();
    this.#clients.push(client);
    return client;
  }

  /** Nothing is under way, but for what a PINGREQ has just left to be written. */
  async #fallAsleep(): Promise<void> {
    await this.world.run(quietMs);
    await this.world.run(5000, () => [...this.world.objects.values()].every(({ life }) => !life || life.maySleep));
    checkAsleep(this.world);
  }

  #outcome(): Outcome {
    const objects = [...this.world.objects.values()];
    const sum = (of: (object: SimulatedObject) => number) => objects.reduce((total, each) => total + of(each), 0);
    return {
      violations: this.world.violations,
      trace: this.world.trace ?? [],
      turns: this.world.turns,
      crashes: sum(({ crashes }) => crashes),
      evictions: sum(({ evictions }) => evictions),
      lines: this.world.network.lines,
      brokenStubs: this.world.network.broken,
      outages: this.world.network.outages.length,
      cuts: this.world.network.cuts.length,
      publications: this.#ledger.publications.size,
      arrivals: this.#ledger.sessions.reduce((total, { arrivals }) => total + arrivals.length, 0),
    };
  }

  // ---- what the seed decides --------------------------------------------------------------------------------------

  #plans(): ClientPlan[] {
    const dice = this.#dice;
    const plans: ClientPlan[] = [];
    const published = topics.slice(0, 1 + dice.below(topics.length));
    for (let count = 1 + dice.below(3); count > 0; count--) {
      const name = `p${count}`;
      const retain = dice.chance(0.2);
      const publishes = this.#publishes(retain ? [`${retainedTopic}/${name}`] : published, retain);
      plans.push({ ...this.#plan(name), publishes });
    }
    for (let count = 1 + dice.below(4); count > 0; count--) plans.push(this.#subscriber(`s${count}`));
    if (dice.chance(0.5)) return plans;
    const delaySeconds = dice.pick([0, 1, 3]);
    const watcher = { ...this.#plan("w"), filters: [{ filter: willTopic, qos: 1 as const }] };
    return [watcher, ...plans.map((plan) => ({ ...plan, will: { topic: willTopic, delaySeconds } }))];
  }

  #subscriber(name: string): ClientPlan {
    const dice = this.#dice;
    const plan = this.#plan(name);
    const qos = dice.pick([0, 1, 1, 2, 2, 2, 2] as const);
    const isMember = dice.chance(0.2);
    const filters = [{ filter: isMember ? "$share/g/#" : dice.pick(["a/#", "a/x", "+/y", "#", "b"]), qos }];
    // Before 5.0 a session that starts clean ends with its connection, and others never.
    return {
      ...plan,
      filters,
      fancies: dice.chance(0.3) ? [{ filter: "a/+", qos }] : [],
      vanishes: !isMember && dice.chance(0.2),
      restarts: plan.version === 5 && dice.chance(0.2) ? 0.3 : 0,
      expirySeconds: plan.version === 4 ? dice.pick([0, 7200, 7200]) : dice.pick([0, 2, 7200, 7200, 7200, 7200]),
    };
  }

  #plan(name: string): ClientPlan {
    const dice = this.#dice;
    const isRestless = dice.chance(0.8);
    return {
      ...calmPlan,
      name,
      version: dice.pick([4, 5]),
      receiveMaximum: dice.pick([1, 2, 5, 100]),
      keepAlive: dice.pick([0, 0, 5, 60]),
      nodes: dice.chance(0.7) ? this.#nodes : [dice.pick(this.#nodes)],
      staysMs: isRestless ? dice.between(300, this.#stormMs / 3) : this.#stormMs,
      awayMs: dice.pick([10, 500, 3000]),
    };
  }

  #publishes(topics: readonly string[], retain: boolean): PublishPlan {
    const dice = this.#dice;
    return {
      topics,
      isInTurn: false,
      qos: dice.pick([1, 2]),
      count: 10 + dice.below(30),
      pauseMs: (dice.pick([5, 50, 400]) * this.#stormMs) / stormMsMin,
      windowMax: dice.pick([1, 4, 20]),
      retain,
      expirySeconds: !retain && dice.chance(0.1) ? 2 : 0,
      isCalm: false,
    };
  }

  #planFaults(): void {
    const dice = this.#dice;
    const { world } = this;
    const objects = [...world.objects.values()];
    const deploys = dice.chance(0.3) ? 1 + dice.below(2) : 0;
    for (let count = 0; count < deploys; count++)
      world.after(dice.between(0, this.#stormMs), () => {
        world.log("a deploy");
        for (const object of objects) object.crash("in a deploy");
      });
    const outages = dice.chance(0.25) ? 1 + dice.below(2) : 0;
    for (let count = 0; count < outages; count++) {
      const from = world.now + dice.between(0, this.#stormMs);
      const until = from + dice.pick([200, 1500, 10_000]);
      const kind = dice.chance(0.7) ? "unreachable" : "overloaded";
      world.network.addOutage({ to: dice.pick(objects).name, from, until, kind });
    }
  }

  #planCuts(): void {
    const dice = this.#dice;
    const { world } = this;
    for (let count = dice.pick([0, 1, 1, 2, 3]); count > 0; count--) {
      const from = world.now + dice.between(0, this.#stormMs * 0.7);
      const lengthMs = dice.pick([300, 1500, 5000, 15_000, 40_000]);
      const takes = dice.pick(["calls", "calls", "calls", "answers", "calls upwards"] as const);
      const cut = {
        sides: this.#sides(),
        from,
        until: from + lengthMs,
        takes,
        silenceMs: dice.pick([0, 0, 3000, 12_000]),
      };
      world.network.addCut(cut);
      world.log(
        `a cut at ${((from - world.now) / 1000).toFixed(1)} for ${lengthMs} ms: ${takes}, ${[...cut.sides].join(" ")}`,
      );
    }
  }

  #sides(): Map<string, number> {
    const dice = this.#dice;
    const objects = [...this.world.objects.keys()];
    const locationOf = (name: string): string => name.slice(name.indexOf("@") + 1, name.indexOf("."));
    const used = [...new Set(objects.map(locationOf))];
    const byLocation = (sideOf: (index: number) => number | undefined): Map<string, number> =>
      new Map(
        objects.flatMap((name) => {
          const side = sideOf(used.indexOf(locationOf(name)));
          return side === undefined ? [] : [[name, side]];
        }),
      );
    switch (dice.pick(["locations", "locations", "locations", "core", "object", "link", "dead"] as const)) {
      case "locations": {
        const sides = used.map(() => dice.below(3));
        const first = dice.below(used.length);
        return byLocation((index) => (index === first ? 3 : sides[index]!));
      }
      case "core":
      case "object": {
        const alone = dice.chance(0.5) ? dice.pick(this.#cores).name : dice.pick(objects);
        return new Map(objects.map((name) => [name, name === alone ? 1 : 0]));
      }
      case "link": {
        const [one, other] = [dice.below(used.length), dice.below(used.length)];
        return byLocation((index) => (index === one ? 0 : index === other ? 1 : undefined));
      }
      case "dead": {
        const dead = dice.pick(used);
        return new Map(objects.map((name, index) => [name, locationOf(name) === dead ? index + 1 : 0]));
      }
    }
  }
}

const topics = ["a/x", "a/y", "b"];
const retainedTopic = "r";
const willTopic = "will";
const allTopics = [...topics, `${retainedTopic}/probe`, willTopic];

/** A client that connects and stays. */
const calmPlan: Omit<ClientPlan, "name" | "nodes"> = {
  version: 5,
  expirySeconds: 7200,
  receiveMaximum: 100,
  keepAlive: 0,
  staysMs: 0,
  awayMs: 0,
  filters: [],
  fancies: [],
  publishes: undefined,
  will: undefined,
  restarts: 0,
  vanishes: false,
};

const calmPublishes: Omit<PublishPlan, "topics" | "count"> = {
  isInTurn: true,
  qos: 1,
  pauseMs: 0,
  windowMax: 1,
  retain: false,
  expirySeconds: 0,
  isCalm: true,
};

const fairWeather: Weather = { crashes: 0, evictions: 0, lostCalls: 0, lostAnswers: 0, latencyMs: 1, slowMs: 1 };

function weatherOf(dice: Dice): Weather {
  return {
    crashes: dice.pick([0, 0, 0.002, 0.01]),
    evictions: dice.pick([0, 0.05, 0.5]),
    lostCalls: dice.pick([0, 0, 0.005, 0.05]),
    lostAnswers: dice.pick([0, 0, 0.005, 0.05]),
    latencyMs: dice.pick([1, 5, 50]),
    slowMs: dice.pick([10, 100, 2000]),
  };
}
