// Cores that search for one another, on a clock of the test's. What they ask is slow, fails and comes in any order, by a
// seed; the objects crash in the midst of it.

import { describe, expect, it } from "vitest";
import type { AutoclusterState } from "../../../cluster/autocluster.ts";
import type { NodeName } from "../../../cluster/name.ts";
import { Autocluster } from "../../../durable-objects/coordinator/discovery/autocluster.ts";
import { lookup, type Strategy } from "../../../durable-objects/coordinator/discovery/strategy.ts";
import { limits } from "../../../mqtt/limits.ts";
import { Timeline } from "../../simulation/timeline.ts";
import { random } from "../../support/random.ts";

type Event = Readonly<Record<string, unknown>>;

/** A core's disk, alarm and cluster; its object comes and goes. */
interface Core {
  readonly name: NodeName;
  readonly age: string;
  cluster: Set<NodeName>;
  state: AutoclusterState | undefined;
  alarmAt: number;
  /** Which life of its object this is: what an earlier one waits for never comes. */
  life: number;
  autocluster: Autocluster;
}

class World {
  readonly timeline = new Timeline(1_000_000);
  readonly cores = new Map<NodeName, Core>();
  readonly events: Event[] = [];
  readonly joins: string[] = [];
  readonly random: () => number;
  /** How often a call fails. */
  failing = 0;
  isServerDown = false;
  readonly #strategyOf: (core: Core, world: World) => Strategy;

  constructor(seed: number, strategyOf: (core: Core, world: World) => Strategy) {
    this.random = random(seed);
    this.#strategyOf = strategyOf;
  }

  /** Cores are older in the order in which they are started. */
  start(name: NodeName): Core {
    const age = `${this.cores.size}`.padStart(3, "0");
    const core = {
      name,
      age,
      cluster: new Set([name]),
      state: undefined,
      alarmAt: Infinity,
      life: 0,
    } as unknown as Core;
    this.cores.set(name, core);
    this.wake(core);
    return core;
  }

  /** A new object on the same disk, as after a crash. */
  wake(core: Core): void {
    const life = ++core.life;
    const strategy = this.#strategyOf(core, this);
    const alive = async <T>(result: () => T | Promise<T>): Promise<T> => {
      await this.pause();
      if (this.random() < this.failing) throw new Error("failed");
      return life === core.life ? result() : new Promise<never>(() => {});
    };
    const wrapped: Strategy = {
      description: strategy.description,
      discover: () => alive(() => strategy.discover()),
      lock: () => alive(() => strategy.lock()),
      unlock: () => alive(() => strategy.unlock()),
      register: () => alive(() => strategy.register()),
      unregister: () => alive(() => strategy.unregister()),
    };
    core.autocluster = new Autocluster(core.name, wrapped, {
      load: () => core.state,
      save: (state) => {
        // As on disk: nothing but what JSON holds.
        if (life === core.life) core.state = JSON.parse(JSON.stringify(state)) as AutoclusterState;
      },
      now: () => this.timeline.now,
      random: this.random,
      ringAt: (at) => this.ring(core, at),
      log: (event) => this.events.push(event),
      members: () => core.cluster,
      viewOf: (node) => alive(() => this.view(node)),
      join: (joiner, target) =>
        alive(() => {
          if (joiner !== core.name && target !== core.name) throw new Error("a join of two others");
          this.join(joiner, target);
        }),
    });
  }

  ring(core: Core, at: number): void {
    if (core.alarmAt <= at) return;
    core.alarmAt = at;
    this.timeline.schedule(at, () => {
      if (core.alarmAt !== at) return;
      core.alarmAt = Infinity;
      core.autocluster.handleAlarm();
    });
  }

  pause(): Promise<void> {
    return new Promise((resolve) => this.timeline.schedule(this.timeline.now + this.random() * 300, resolve));
  }

  view(node: NodeName): { size: number; oldest: string } {
    const core = this.cores.get(node);
    if (core === undefined || !core.autocluster.isEnabled) throw new Error("does not answer");
    const ages = [...core.cluster].map((member) => this.cores.get(member)!.age);
    return { size: core.cluster.size, oldest: ages.sort()[0]! };
  }

  join(joiner: NodeName, target: NodeName): void {
    const core = this.cores.get(joiner)!;
    const { cluster } = this.cores.get(target)!;
    if (core.cluster === cluster) return;
    this.joins.push(`${joiner} ${target}`);
    core.cluster.delete(joiner);
    core.cluster = cluster.add(joiner);
  }

  async run(ms: number): Promise<void> {
    const until = this.timeline.now + ms;
    for (let next = this.timeline.next(until); next; next = this.timeline.next(until)) {
      await next.run();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  said(event: string): readonly Event[] {
    return this.events.filter((each) => each["event"] === event);
  }

  get clusters(): number {
    return new Set([...this.cores.values()].map(({ cluster }) => cluster)).size;
  }

  get phases(): readonly (string | undefined)[] {
    return [...this.cores.values()].map(({ state }) => state?.phase);
  }
}

const names = ["a", "b", "c", "d", "e"].map((letter) => `core@${letter}.example.com`);

/** Where leases end, and one at a time holds the lock. */
class Register {
  readonly ttlMs = 60_000;
  readonly keys = new Map<NodeName, number>();
  holder: { readonly node: NodeName; readonly until: number } | undefined;

  strategyOf(self: NodeName, world: World): Strategy {
    const up = (): number => {
      if (world.isServerDown) throw new Error("no answer");
      return world.timeline.now;
    };
    return {
      description: "register",
      discover: async () => {
        const now = up();
        return [...this.keys].filter(([, until]) => until > now).map(([node]) => node);
      },
      lock: async () => {
        for (const deadline = up() + 10_000; up() < deadline;) {
          if (this.holder === undefined || this.holder.node === self || this.holder.until <= up()) {
            this.holder = { node: self, until: up() + 30_000 };
            return;
          }
          await world.pause();
        }
        throw new Error("held");
      },
      unlock: async () => {
        up();
        if (this.holder?.node === self) this.holder = undefined;
      },
      register: async () => {
        this.keys.set(self, up() + this.ttlMs);
        return this.ttlMs / 3;
      },
      unregister: async () => {
        up();
        this.keys.delete(self);
      },
    };
  }
}

function registered(seed: number): { world: World; register: Register } {
  const register = new Register();
  return { register, world: new World(seed, (core, world) => register.strategyOf(core.name, world)) };
}

function seeded(seed: number, seeds: readonly string[]): World {
  return new World(seed, (_, world) =>
    lookup(`static ${seeds.join(", ")}`, async () => {
      if (world.isServerDown) throw new Error("no answer");
      return [...seeds];
    }),
  );
}

describe("with a register that locks", () => {
  it("of two that start at once one is first, and the other joins it", async () => {
    for (let seed = 0; seed < 20; seed++) {
      const { world } = registered(seed);
      world.start(names[0]!);
      world.start(names[1]!);
      await world.run(10_000);
      expect({ seed, clusters: world.clusters, joins: world.joins.length }).toEqual({ seed, clusters: 1, joins: 1 });
      expect(world.events).toEqual([]);
    }
  });

  it("keeps its place there, and is back when somebody has taken it away", async () => {
    const { world, register } = registered(1);
    world.start(names[0]!);
    await world.run(600_000);
    expect([...register.keys.keys()]).toEqual([names[0]]);
    expect(register.keys.get(names[0]!)).toBeGreaterThan(world.timeline.now);
    register.keys.clear();
    await world.run(21_000);
    expect([...register.keys.keys()]).toEqual([names[0]]);
  });

  it("a server that is down is said once, takes no member away, and is asked less and less often", async () => {
    const { world, register } = registered(2);
    for (const name of names) world.start(name);
    await world.run(60_000);
    expect(world.clusters).toBe(1);
    world.isServerDown = true;
    await world.run(3_600_000);
    expect(world.said("discovery_failed")).toHaveLength(names.length);
    expect(world.clusters).toBe(1);
    world.isServerDown = false;
    register.keys.clear();
    await world.run(61_000);
    expect(world.said("discovery_recovered")).toHaveLength(names.length);
    expect(register.keys.size).toBe(names.length);
    expect(world.events).toHaveLength(2 * names.length);
    expect(new Set(world.phases)).toEqual(new Set(["registered"]));
  });

  it("two that have come up alone, because the register lost what it had, find one another", async () => {
    const { world, register } = registered(3);
    world.start(names[0]!);
    await world.run(5_000);
    register.keys.clear();
    world.start(names[1]!);
    await world.run(2_000);
    expect(world.clusters).toBe(2);
    await world.run(60_000);
    expect(world.clusters).toBe(1);
  });

  it("the lock of one that crashed in its round is free when its lease ends", async () => {
    const { world, register } = registered(4);
    const first = world.start(names[0]!);
    while (register.holder === undefined) await world.run(10);
    first.life++; // it never wakes again
    world.cores.delete(names[0]!);
    world.start(names[1]!);
    await world.run(90_000);
    expect(world.phases).toEqual(["registered"]);
  });

  it("after `cluster leave` it is not found and does not search, until it is enabled", async () => {
    const { world, register } = registered(5);
    const [first, second] = [world.start(names[0]!), world.start(names[1]!)];
    await world.run(30_000);
    second.cluster.delete(second.name);
    second.cluster = new Set([second.name]);
    const disabled = second.autocluster.disable();
    await world.run(120_000);
    await disabled;
    world.wake(second);
    await world.run(120_000);
    expect(second.autocluster.isEnabled).toBe(false);
    expect([...register.keys.keys()]).toEqual([first.name]);
    expect(world.clusters).toBe(2);
    second.autocluster.enable();
    await world.run(30_000);
    expect(world.clusters).toBe(1);
    expect(register.keys.size).toBe(2);
  });

  it("a leave in the midst of a round leaves nothing behind", async () => {
    for (let ms = 0; ms < 2_000; ms += 20) {
      const { world, register } = registered(ms);
      const core = world.start(names[0]!);
      await world.run(ms);
      void core.autocluster.disable();
      await world.run(5_000);
      expect({ ms, keys: register.keys.size, holder: register.holder }).toEqual({ ms, keys: 0, holder: undefined });
      expect(core.state).toEqual({ phase: "disabled" });
    }
  });
});

describe("with seeds", () => {
  it("all that start at once become one cluster, and then nothing more is done (G7)", async () => {
    for (let seed = 0; seed < 20; seed++) {
      const world = seeded(seed, names);
      for (const name of names) world.start(name);
      await world.run(120_000);
      expect({ seed, clusters: world.clusters, phases: new Set(world.phases) }).toEqual({
        seed,
        clusters: 1,
        phases: new Set(["done"]),
      });
      expect([...world.cores.values()].map(({ alarmAt }) => alarmAt)).toEqual(names.map(() => Infinity));
    }
  });

  it("one that comes back from long ago joins the cluster of the others, not they it", async () => {
    const world = seeded(1, names.slice(0, 3));
    const old = world.start(names[0]!);
    old.autocluster.disable().catch(() => {});
    world.start(names[1]!);
    world.start(names[2]!);
    await world.run(60_000);
    expect(world.clusters).toBe(2);
    world.joins.length = 0;
    old.autocluster.enable();
    await world.run(60_000);
    expect(world.joins).toHaveLength(1);
    expect(world.joins[0]).toMatch(`${names[0]} `);
  });

  it("one whose own search is over is fetched by those that find it", async () => {
    const world = seeded(1, names.slice(0, 2));
    const first = world.start(names[0]!);
    const second = world.start(names[1]!);
    await world.run(60_000);
    second.cluster.delete(second.name);
    second.cluster = new Set([second.name]);
    expect(second.state?.phase).toBe("done");
    first.autocluster.enable();
    await world.run(60_000);
    expect(world.clusters).toBe(1);
  });

  it("a seed that is not there is said once, and found when it is", async () => {
    const world = seeded(1, names.slice(0, 2));
    world.start(names[0]!);
    await world.run(3_600_000);
    expect(world.events).toHaveLength(1);
    expect(world.events[0]).toMatchObject({
      event: "discovery_nodes_outside",
      node: names[0],
      strategy: `static ${names[0]}, ${names[1]}`,
      reason: `${names[1]} (does not answer)`,
    });
    world.start(names[1]!);
    await world.run(61_000);
    expect(world.clusters).toBe(1);
    expect(world.said("discovery_recovered")).toHaveLength(1);
  });

  it("who is not listed and knows nobody goes on", async () => {
    const seeds: string[] = [];
    const world = seeded(1, seeds);
    world.start(names[0]!);
    await world.run(60_000);
    expect(world.said("discovery_found_nothing")).toHaveLength(1);
    expect(world.phases).toEqual(["searching"]);
  });

  it("a round that does not end is given up", async () => {
    let isStuck = true;
    const world = new World(1, () =>
      lookup("stuck", () => (isStuck ? new Promise<string[]>(() => {}) : Promise.resolve([names[0]!]))),
    );
    world.start(names[0]!);
    await world.run(limits.discoveryRoundMs - 1_000);
    isStuck = false;
    expect(world.phases).toEqual([undefined]);
    await world.run(2_000);
    expect(world.phases).toEqual(["done"]);
  });
});

describe.each(["register", "seeds"])("in bad weather, with %s", (kind) => {
  it("cores that crash, and calls that fail, end as one cluster", async () => {
    for (let seed = 1; seed <= 60; seed++) {
      const world = kind === "register" ? registered(seed).world : seeded(seed, names);
      world.failing = 0.2;
      for (const name of names)
        world.timeline.schedule(world.timeline.now + world.random() * 20_000, () => void world.start(name));
      for (let at = 0; at < 120_000; at += 10_000 * world.random()) {
        world.timeline.schedule(world.timeline.now + at, () => {
          const core = world.cores.get(names[Math.floor(world.random() * names.length)]!);
          if (core !== undefined && world.random() < 0.5) world.wake(core);
          world.isServerDown = world.random() < 0.3;
        });
      }
      await world.run(120_000);
      world.failing = 0;
      world.isServerDown = false;
      await world.run(240_000);
      const phase = kind === "register" ? "registered" : "done";
      expect({ seed, clusters: world.clusters, phases: new Set(world.phases) }).toEqual({
        seed,
        clusters: 1,
        phases: new Set([phase]),
      });
    }
  });
});
