import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { CoreLink } from "../../durable-objects/node/core-link.ts";
import { Home } from "../../durable-objects/node/home.ts";
import type { Connection, CoordinatorRpc } from "../../durable-objects/rpc.ts";
import { limits } from "../../mqtt/limits.ts";
import { Disk } from "../simulation/disk.ts";

const cores = ["near", "far", "farthest"] as const;

/** Cores that answer, or do not; what they were sent reads as words, each with the core and the node's term. */
class Cores {
  readonly down = new Set<string>();
  readonly routed: string[] = [];
  /** Answers are held back until somebody calls these. */
  readonly held: (() => void)[] = [];
  holds = false;
  readonly disk = new Disk();
  home!: Home;
  link!: CoreLink;

  constructor() {
    this.disk.sql.exec("CREATE TABLE home (id INTEGER PRIMARY KEY, core TEXT NOT NULL, term INTEGER NOT NULL)");
    this.wake();
  }

  wake(of: readonly [string, ...string[]] = cores): void {
    this.home = new Home(this.disk.sql, of);
    this.link = new CoreLink("node", this.home, (core) => this.#core(core), {
      beforeSend: () => {},
      countDropped: () => {},
    });
  }

  #core(core: string): CoordinatorRpc {
    const call = async (): Promise<void> => {
      if (this.down.has(core)) throw new Error("cut");
    };
    return {
      route: async (_: string, { term }: Connection, batch: Uint8Array) => {
        await call();
        const word = String.fromCharCode(...batch.subarray(1));
        this.routed.push(`${core} ${term} ${word}`);
        if (this.holds) await new Promise<void>((resolve) => this.held.push(resolve));
        return new Uint8Array(word.length);
      },
      isReady: async () => {
        await call();
        return true;
      },
      settled: async () => {
        await call();
        this.routed.push(`${core} settled`);
        return true;
      },
    } as unknown as CoordinatorRpc;
  }

  add(letter: string): void {
    this.link.add(Uint8Array.of(letter.charCodeAt(0)), () => {});
  }
}

const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);

describe("a node whose home is gone", () => {
  beforeEach(() => {
    vi.useFakeTimers();
    vi.stubGlobal("scheduler", { wait: (ms: number) => new Promise((resolve) => setTimeout(resolve, ms)) });
    vi.spyOn(console, "log").mockImplementation(() => {});
  });
  afterEach(() => {
    vi.useRealTimers();
    vi.unstubAllGlobals();
    vi.restoreAllMocks();
  });

  test("[G1] goes to the next nearest core with what it has not answered, under a new term", async () => {
    const world = new Cores();
    world.add("A");
    await pass(1);
    world.down.add("near");
    world.add("B");
    await pass(1);
    world.add("C");
    await pass(5000);
    expect(world.routed).toEqual(["near 0 A", "far 1 B", "far 1 C"]);
    world.down.add("far");
    world.add("D");
    await pass(10_000);
    expect(world.routed.slice(3)).toEqual(["farthest 2 D"]);
  });

  test("goes by calls that are no batches, too", async () => {
    const world = new Cores();
    world.down.add("near");
    const reaches = world.link.reaches("other");
    await pass(5000);
    expect(await reaches).toBe(true);
    expect(world.routed).toEqual(["far settled"]);
  });

  test("knows its home and term after sleep, and leaves a core that is none any more", async () => {
    const world = new Cores();
    world.down.add("near");
    world.add("A");
    await pass(5000);
    world.wake();
    world.add("B");
    await pass(1);
    expect(world.routed).toEqual(["far 1 A", "far 1 B"]);
    world.wake(["farthest"]);
    world.add("C");
    await pass(1);
    expect(world.routed.slice(2)).toEqual(["farthest 2 C"]);
  });

  test("[G2] comes back when the nearest is there again, behind what is under way", async () => {
    const world = new Cores();
    world.down.add("near");
    world.add("A");
    await pass(5000);
    world.holds = true;
    world.add("B");
    await pass(limits.homeReturnMs);
    // It is looked for, and is still gone: not again for a while.
    world.add("C");
    await pass(limits.batchGatherMs);
    world.down.delete("near");
    world.add("D");
    await pass(1);
    expect(world.home.core).toBe("far");
    await pass(limits.homeReturnMs);
    world.add("E");
    await pass(1);
    expect(world.home.core).toBe("near");
    world.add("F");
    await pass(1);
    expect(world.routed).toEqual(["far 1 A", "far 1 B", "far 1 C", "far 1 D"]);
    world.holds = false;
    for (const answer of world.held.splice(0)) answer();
    await pass(1);
    expect(world.routed.slice(4)).toEqual(["near 2 EF"]);
  });

  test("is not sent away by a core that has too many calls", async () => {
    const world = new Cores();
    const overloaded = () => Promise.reject(Object.assign(new Error("too many"), { overloaded: true }));
    const link = new CoreLink("node", world.home, () => ({ route: overloaded }) as unknown as CoordinatorRpc, {
      beforeSend: () => {},
      countDropped: () => {},
    });
    link.add(Uint8Array.of(65), () => {});
    await pass(60_000);
    expect(world.home.core).toBe("near");
  });
});
