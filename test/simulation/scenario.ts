/** What a seed means: the cluster, its clients, the weather; and the course of a run. */
import { BrokerNode } from "../../durable-objects/node/broker-node.ts";
import { Coordinator } from "../../durable-objects/coordinator/coordinator.ts";
import { Client, type ClientPlan, type PublishPlan } from "./client.ts";
import { installGlobals } from "./globals.ts";
import { SimulatedObject, type Shell } from "./object.ts";
import { checkAsleep, checkDeliveries, checkEmpty, checkRetained, checkRoutes, Ledger } from "./oracle.ts";
import { World, type Dice, type Weather } from "./world.ts";

export interface Outcome {
  readonly violations: readonly string[];
  readonly trace: readonly string[];
  readonly turns: number;
  readonly crashes: number;
  readonly evictions: number;
  readonly brokenStubs: number;
  readonly outages: number;
  readonly publications: number;
  readonly arrivals: number;
}

/** How long things go wrong, and how long clients then have to finish. */
const stormMs = 12_000;
const patienceMs = 900_000;
/** After which nothing is under way any more, not even what waits for a retry. */
const quietMs = 40_000;

const coreName = "core@local.emqxcl";

/** Runs one seed to its end. */
export async function simulate(seed: number, options: { readonly traces: boolean }): Promise<Outcome> {
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
  readonly #core: SimulatedObject;
  readonly #nodes: readonly SimulatedObject[];
  readonly #clients: Client[];

  constructor(seed: number, options: { readonly traces: boolean }) {
    const world = new World(seed, fairWeather, options);
    this.world = world;
    this.#ledger = new Ledger(world);
    this.#dice = world.dice();
    world.weather = weatherOf(this.#dice);
    world.network.variables = {
      LOOPBACK: "true",
      TRELLIS_MQTT__MAX_INFLIGHT: String(this.#dice.pick([1, 3, 32])),
    };
    world.log(`seed ${seed}: ${JSON.stringify(world.weather)}`);
    this.#core = new SimulatedObject(world, coreName, (ctx, env) => new Coordinator(ctx, env) as unknown as Shell);
    this.#nodes = Array.from(
      { length: 1 + this.#dice.below(3) },
      (_, slot) =>
        new SimulatedObject(
          world,
          `node-${slot}@local.emqxcl`,
          (ctx, env) => new BrokerNode(ctx, env) as unknown as Shell,
        ),
    );
    this.#clients = this.#plans().map((plan) => new Client(world, this.#ledger, plan));
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
    await world.run(stormMs / 2);
    world.hasStormed = true;
    await world.run(stormMs / 2);
    world.calmDown();
    world.log("the storm is over");
    // A node that crashed learns of it when something wakes it.
    for (const node of this.#nodes) await node.deliver("a look", () => {});
    for (const client of this.#clients) client.settle();
    await this.#untilAllIsDone();
    await this.#probe();
    const reader = await this.#readRetained();
    await this.#fallAsleep();
    checkDeliveries(world, this.#ledger);
    checkRetained(world, this.#ledger, reader.session);
    checkRoutes(world, this.#nodes, this.#core);
    for (const client of this.#clients) client.end();
    await this.#untilAllIsDone();
    await this.#probe();
    await this.#fallAsleep();
    checkEmpty(world);
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
    const probe = this.#addCalm({ name: `probe${this.#clients.length}`, publishes });
    await this.#untilAllIsDone();
    probe.end();
    await this.#untilAllIsDone();
  }

  async #readRetained(): Promise<Client> {
    const reader = this.#addCalm({ name: "reader", filters: [{ filter: `${retainedTopic}/#`, qos: 1 }] });
    await this.#untilAllIsDone();
    return reader;
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
      brokenStubs: this.world.network.broken,
      outages: this.world.network.outages,
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
      staysMs: isRestless ? dice.between(300, 4000) : stormMs,
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
      pauseMs: dice.pick([5, 50, 400]),
      windowMax: dice.pick([1, 4, 20]),
      retain,
      expirySeconds: !retain && dice.chance(0.1) ? 2 : 0,
    };
  }

  #planFaults(): void {
    const dice = this.#dice;
    const { world } = this;
    const objects = [...world.objects.values()];
    const deploys = dice.chance(0.3) ? 1 + dice.below(2) : 0;
    for (let count = 0; count < deploys; count++)
      world.after(dice.between(0, stormMs), () => {
        world.log("a deploy");
        for (const object of objects) object.crash("in a deploy");
      });
    const outages = dice.chance(0.25) ? 1 + dice.below(2) : 0;
    for (let count = 0; count < outages; count++) {
      const from = world.now + dice.between(0, stormMs);
      const until = from + dice.pick([200, 1500, 10_000]);
      const kind = dice.chance(0.7) ? "unreachable" : "overloaded";
      world.network.addOutage({ to: dice.pick(objects).name, from, until, kind });
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
