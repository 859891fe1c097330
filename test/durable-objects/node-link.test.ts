import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { NodeLink } from "../../durable-objects/coordinator/node-link.ts";
import type { ParkedPage, ParkedRow, ParkedTotal } from "../../durable-objects/coordinator/parked-store.ts";
import { Metrics } from "../../durable-objects/metrics.ts";
import { readForwarded, splitRecords } from "../../durable-objects/rpc.ts";
import { concatenate } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { random } from "../support/random.ts";

const node = "node-0@local.emqxcl";
const noMatch = 0x10;
const kindOfTests = 200;

/** The core's disk: what `ParkedStore` keeps. */
class Disk {
  rows: ParkedRow[] = [];
  isBroken = false;
  /** As if this much more were there. */
  extraBytes = 0;

  add(_node: string, row: ParkedRow): void {
    if (this.isBroken) throw new Error("disk full");
    if (this.rows.some(({ seq }) => seq >= row.seq)) throw new Error(`${row.seq} is not behind the others`);
    this.rows.push(row);
  }

  page(_node: string, bytesMax: number): ParkedPage | undefined {
    const taken: ParkedRow[] = [];
    let bytes = 0;
    for (const row of this.rows) {
      if (taken.length > 0 && bytes + row.records.length > bytesMax) break;
      taken.push(row);
      bytes += row.records.length;
    }
    const last = taken.at(-1);
    if (!last) return undefined;
    const records = concatenate(
      taken.map((row) => row.records),
      bytes,
    );
    const messages = taken.reduce((sum, row) => sum + row.messages, 0);
    return { records, messages, lastSeq: last.seq, isLast: last === this.rows.at(-1) };
  }

  deleteUpTo(_node: string, lastSeq: number): void {
    this.rows = this.rows.filter(({ seq }) => seq > lastSeq);
  }

  total(): ParkedTotal | undefined {
    const last = this.rows.at(-1);
    if (!last) return undefined;
    const messages = this.rows.reduce((sum, row) => sum + row.messages, 0);
    const bytes = this.rows.reduce((sum, row) => sum + row.records.length, this.extraBytes);
    return { node, lastSeq: last.seq, since: this.rows[0]!.at, messages, bytes };
  }

  get words(): string[] {
    return this.rows.map(({ records }) => wordOf(splitRecords(records)));
  }
}

/** A record is a letter; a fence is "|". */
function record(letter: string, bytes = 1): Uint8Array {
  const header = [kindOfTests, bytes >>> 24, (bytes >>> 16) & 0xff, (bytes >>> 8) & 0xff, bytes & 0xff];
  const made = new Uint8Array(5 + bytes);
  made.set([...header, letter.charCodeAt(0)]);
  return made;
}

function wordOf(records: readonly Uint8Array[]): string {
  return records.map((each) => (each[0] === 0 ? "|" : String.fromCharCode(each[5]!))).join("");
}

class World {
  readonly disk = new Disk();
  metrics = new Metrics();
  /** What came to the node, a word a batch. */
  readonly calls: string[] = [];
  readonly settled: string[] = [];
  readonly passedOn: string[] = [];
  /** What the node does with a call: answers with a code for every letter, or throws. */
  node: (word: string) => Promise<Uint8Array> = (word) => Promise.resolve(new Uint8Array(word.length));
  passOn: () => Promise<boolean> = () => Promise.resolve(true);
  ringAt = Infinity;
  link: NodeLink;

  constructor() {
    this.link = this.wake();
  }

  /** The core comes back with what its disk has. */
  wake(): NodeLink {
    this.ringAt = Infinity;
    const { disk, metrics } = this;
    const connect = () => (batch: Uint8Array) => {
      const word = wordOf(splitRecords(batch.subarray(1)));
      this.calls.push(word);
      return this.node(word);
    };
    const passOn = (bytes: Uint8Array) => {
      this.passedOn.push(wordOf([bytes]));
      return this.passOn();
    };
    const host = {
      parked: disk,
      metrics,
      connect,
      passOn,
      handleReach: () => {},
      retryLastMs: () => limits.drainRetryLastMs,
      ringAt: (at: number) => (this.ringAt = Math.min(this.ringAt, at)),
    };
    this.link = new NodeLink(node, host, disk.total());
    return this.link;
  }

  add(word: string, bytes = 1): void {
    for (const letter of word)
      this.link.add({ bytes: record(letter, bytes), settled: (code) => this.settled.push(`${letter} ${code}`) });
  }

  cut(): void {
    this.node = () => Promise.reject(new Error("cut"));
  }

  heal(): void {
    this.node = (word) => Promise.resolve(new Uint8Array(word.length));
  }

  /** Time passes, and the alarm rings when it is due. */
  async pass(ms: number): Promise<void> {
    for (const end = Date.now() + ms; ;) {
      // In small steps: the alarm may be set on the way.
      const next = Math.min(end, this.ringAt, Date.now() + 500);
      await vi.advanceTimersByTimeAsync(Math.max(0, next - Date.now()));
      if (this.ringAt <= Date.now()) {
        this.ringAt = Infinity;
        this.link.handleAlarm(Date.now());
        await turn();
      } else if (Date.now() >= end) return;
    }
  }

  /** The node does not answer, and this has been parked. */
  async park(word: string): Promise<void> {
    this.cut();
    this.add(word);
    await this.pass(4_000);
    if (this.link.isLive || this.settled.length !== word.length) throw new Error("it was not parked");
    this.settled.length = 0;
    this.calls.length = 0;
  }
}

async function turn(): Promise<void> {
  await vi.advanceTimersByTimeAsync(0);
}

let world: World;
beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(console, "error").mockImplementation(() => {});
  vi.spyOn(console, "log").mockImplementation(() => {});
  world = new World();
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

describe("parking", () => {
  test("[G1] what the node does not take is answered when it is on disk, and not before", async () => {
    world.cut();
    world.add("AB");
    await world.pass(2_000);
    expect(world.settled).toEqual([]);
    await world.pass(2_000);
    expect(world.disk.words).toEqual(["AB"]);
    expect(world.settled).toEqual(["A 0", "B 0"]);
    expect(world.link.parked).toMatchObject({ messages: 2, bytes: 12 });
    expect(world.metrics.all()["messages.parked"]).toBe(2);
  });

  test("[G2] what comes next goes behind it, a row a turn", async () => {
    await world.park("A");
    world.add("BC");
    expect(world.settled).toEqual([]);
    await turn();
    expect(world.settled).toEqual(["B 0", "C 0"]);
    world.add("D");
    await turn();
    expect(world.disk.words).toEqual(["A", "BC", "D"]);
    expect(world.calls).toEqual([]);
  });

  test("[G6] a row is bounded in bytes", async () => {
    await world.park("A");
    world.add("BCDE", limits.batchBytesMax * 0.4);
    world.add("F", limits.batchBytesMax * 1.2);
    world.add("G");
    await turn();
    expect(world.disk.words).toEqual(["A", "BC", "DE", "F", "G"]);
  });

  test("QoS 0 is dropped and counted", async () => {
    await world.park("A");
    world.link.addUnacknowledged(record("b"));
    await turn();
    expect(world.disk.words).toEqual(["A"]);
    expect(world.metrics.all()["messages.dropped.unreachable"]).toBe(1);
  });

  test("[G1] what cannot be written is not acknowledged", async () => {
    await world.park("A");
    world.disk.isBroken = true;
    world.add("B");
    await turn();
    world.disk.isBroken = false;
    world.add("C");
    await turn();
    expect(world.settled).toEqual(["B undefined", "C 0"]);
    expect(world.disk.words).toEqual(["A", "C"]);
  });

  test("what may go elsewhere is given back, by the outbox and later", async () => {
    world.cut();
    const offer = (letter: string) =>
      world.link.offer({ bytes: record(letter), settled: (code) => world.settled.push(`${letter} ${code}`) });
    offer("A");
    world.add("B");
    await world.pass(4_000);
    offer("C");
    expect(world.settled).toEqual(["B 0", "A undefined", "C undefined"]);
    expect(world.disk.words).toEqual(["B"]);
  });

  test("[G6] so many bytes are parked at most, also after the core woke", async () => {
    await world.park("A");
    expect(world.link.full).toBeUndefined();
    world.disk.extraBytes = limits.parkedBytesMax - 20;
    world.wake();
    expect(world.link.full).toBeUndefined();
    world.add("B", 20);
    expect(world.link.full).toBe("parked_full");
    await turn();
    expect(world.link.full).toBe("parked_full");
  });
});

describe("draining", () => {
  test("[G1] [G2] when the node answers again it gets all, in order, and then what comes, at once", async () => {
    await world.park("A");
    world.add("BC");
    await turn();
    world.heal();
    await world.pass(limits.drainRetryLastMs);
    expect(world.calls).toEqual(["ABC"]);
    expect(world.disk.rows).toEqual([]);
    expect(world.link.isLive).toBe(true);
    expect(world.link.parked).toMatchObject({ messages: 0, bytes: 0 });
    world.settled.length = 0;
    world.add("D");
    await turn();
    expect(world.calls).toEqual(["ABC", "D"]);
    expect(world.settled).toEqual(["D 0"]);
  });

  test("the node is tried less and less often, for ever, and no timer is pending meanwhile [G7]", async () => {
    await world.park("A");
    expect(vi.getTimerCount()).toBe(0);
    const tries: number[] = [];
    world.node = () => {
      tries.push(Date.now());
      return Promise.reject(new Error("cut"));
    };
    await world.pass(600_000);
    expect(vi.getTimerCount()).toBe(0);
    const pauses = tries.slice(1).map((at, index) => at - tries[index]!);
    expect(pauses[0]).toBeLessThanOrEqual(2 * limits.drainRetryFirstMs);
    expect(pauses.toSorted((a, b) => a - b)).toEqual(pauses);
    expect(pauses.at(-1)).toBe(limits.drainRetryLastMs);
  });

  test("[G1] a core that crashed goes on where its disk says, and rings soon", async () => {
    await world.park("A");
    world.wake();
    expect(world.ringAt).toBe(Date.now());
    expect(world.link.isLive).toBe(false);
    world.add("B");
    await turn();
    expect(world.disk.words).toEqual(["A", "B"]);
    world.heal();
    await world.pass(0);
    expect(world.calls).toEqual(["AB"]);
  });

  test("[G1] should the core crash while it drains, the alarm is set", async () => {
    await world.park("A");
    world.node = () => new Promise(() => {});
    await world.pass(limits.drainRetryFirstMs);
    expect(world.calls).toEqual(["A"]);
    expect(world.ringAt).toBeLessThanOrEqual(Date.now() + limits.drainRetryLastMs);
    expect(world.disk.words).toEqual(["A"]);
  });

  test("[G2] what comes while the last page is under way is neither sent nor written before that is answered", async () => {
    await world.park("A");
    const { promise, resolve } = Promise.withResolvers<Uint8Array>();
    world.node = () => promise;
    await world.pass(limits.drainRetryFirstMs);
    world.add("B");
    await turn();
    world.add("C");
    await turn();
    expect(world.calls).toEqual(["A"]);
    expect(world.settled).toEqual([]);
    world.heal();
    resolve(Uint8Array.of(0));
    await turn();
    expect(world.calls).toEqual(["A", "BC"]);
    expect(world.settled).toEqual(["B 0", "C 0"]);
    expect(world.disk.rows).toEqual([]);
    await world.pass(60_000);
    expect(world.calls).toEqual(["A", "BC"]);
  });

  test("[G1] [G2] should the node fail then, it goes to disk behind that page", async () => {
    await world.park("A");
    const { promise, reject } = Promise.withResolvers<Uint8Array>();
    world.node = () => promise;
    await world.pass(limits.drainRetryFirstMs);
    world.add("B");
    await turn();
    world.cut();
    reject(new Error("cut"));
    await turn();
    expect(world.disk.words).toEqual(["A", "B"]);
    expect(world.settled).toEqual(["B 0"]);
  });

  test("[G6] a page is bounded in bytes, and deleted when it is answered", async () => {
    await world.park("A");
    for (const letter of "BCDE") {
      world.add(letter, limits.batchBytesMax * 0.4);
      await turn();
    }
    world.node = (word) =>
      word.startsWith("D") ? Promise.reject(new Error("cut")) : Promise.resolve(new Uint8Array(word.length));
    await world.pass(limits.drainRetryFirstMs);
    expect(world.calls.slice(0, 2)).toEqual(["ABC", "DE"]);
    expect(world.disk.words).toEqual(["D", "E"]);
    expect(world.link.parked.messages).toBe(2);
  });

  test("a record that the node refuses is counted, and does not block the others", async () => {
    await world.park("ABC");
    world.node = () => Promise.resolve(Uint8Array.of(0, 0x83, 0));
    await world.pass(limits.drainRetryFirstMs);
    expect(world.link.isLive).toBe(true);
    expect(world.metrics.all()["messages.dropped.failed"]).toBe(1);
  });

  test("an answer of another length is no answer", async () => {
    await world.park("ABC");
    world.node = () => Promise.resolve(new Uint8Array(2));
    await world.pass(limits.drainRetryFirstMs);
    expect(world.link.isLive).toBe(false);
    expect(world.disk.words).toEqual(["ABC"]);
  });

  test("[G1] a share group's message that nobody there takes any more is deleted when somebody else has it", async () => {
    await world.park("AB");
    world.node = () => Promise.resolve(Uint8Array.of(0, noMatch));
    world.passOn = () => Promise.resolve(false);
    await world.pass(limits.drainRetryFirstMs);
    expect(world.passedOn).toEqual(["B"]);
    expect(world.disk.words).toEqual(["AB"]);
    const { promise, resolve } = Promise.withResolvers<boolean>();
    world.passOn = () => promise;
    await world.pass(10_000);
    expect(world.disk.words).toEqual(["AB"]);
    resolve(true);
    await turn();
    expect(world.disk.rows).toEqual([]);
    expect(world.link.isLive).toBe(true);
  });

  test("[G1] nor does it stop when that one is meant for the same node again", async () => {
    await world.park("A");
    const { promise, resolve } = Promise.withResolvers<Uint8Array>();
    world.node = () => promise;
    world.passOn = () =>
      new Promise((done) => world.link.add({ bytes: record("a"), settled: (code) => done(code === 0) }));
    await world.pass(limits.drainRetryFirstMs);
    world.add("B");
    await turn();
    world.heal();
    resolve(Uint8Array.of(noMatch));
    await world.pass(10);
    expect(world.calls).toEqual(["A", "Ba"]);
    expect(world.link.isLive).toBe(true);
  });

  test("a call of the node shows that it is there; one that cannot be called back is not tried at each", async () => {
    await world.park("A");
    const tries = world.calls;
    for (let ms = 0; ms < 5_000; ms += 10) {
      world.link.handleCall(Date.now());
      await world.pass(10);
    }
    expect(tries.length).toBeLessThan(10);
    world.heal();
    await world.pass(limits.drainRetryFirstMs - 10);
    world.link.handleCall(Date.now());
    await turn();
    expect(world.link.isLive).toBe(true);
  });
});

describe("settled", () => {
  test("of a live node: when it has answered all before", async () => {
    world.add("A");
    expect(await Promise.all([world.link.settled(), turn()])).toEqual([true, undefined]);
    expect(world.calls).toEqual(["A", "|"]);
  });

  test("of a live node that does not answer: no", async () => {
    world.cut();
    expect(await Promise.all([world.link.settled(), world.pass(4_000)])).toEqual([false, undefined]);
    expect(world.disk.rows).toEqual([]);
  });

  test("of a parked node that answers: drained without waiting for the alarm", async () => {
    await world.park("A");
    world.add("B");
    world.heal();
    expect(await Promise.all([world.link.settled(), turn()])).toEqual([true, undefined]);
    expect(world.calls).toEqual(["AB", "|"]);
  });

  test("of a parked node that does not: no, at once; and it can be asked again", async () => {
    await world.park("A");
    expect(await world.link.settled()).toBe(false);
    expect(await world.link.settled()).toBe(false);
    world.heal();
    expect(await Promise.all([world.link.settled(), turn()])).toEqual([true, undefined]);
  });
});

test("a fence is what a node takes for one", async () => {
  let kinds: string[] = [];
  const host = {
    parked: world.disk,
    metrics: world.metrics,
    ringAt: () => {},
    handleReach: () => {},
    retryLastMs: () => limits.drainRetryLastMs,
    passOn: () => Promise.resolve(true),
  };
  const connect = () => (batch: Uint8Array) => {
    kinds = [...readForwarded(batch)].map(({ kind }) => kind);
    return Promise.resolve(Uint8Array.of(0));
  };
  const link = new NodeLink(node, { ...host, connect });
  await Promise.all([link.settled(), turn()]);
  expect(kinds).toEqual(["fence"]);
});

describe("seeded", () => {
  test("[G1] [G2] what was acknowledged arrives, in order, whatever is cut and crashes", async () => {
    for (let seed = 1; seed <= 200; seed++) {
      const next = random(seed);
      world = new World();
      const acknowledged = new Set<number>();
      const arrivals: number[] = [];
      let added = 0;
      let life = 0;
      let isUp = true;
      const send = (batch: Uint8Array, arrives: boolean): Promise<Uint8Array> => {
        const call = life;
        const numbers = splitRecords(batch.subarray(1)).map((each) => (each[5]! << 8) | each[6]!);
        if (arrives) arrivals.push(...numbers);
        return new Promise((resolve, reject) => {
          setTimeout(
            () => {
              // A call of a core that is gone is answered to nobody.
              if (call !== life) return;
              if (arrives && next() < 0.9) resolve(new Uint8Array(numbers.length));
              else reject(new Error("cut"));
            },
            Math.floor(next() * 100),
          );
        });
      };
      const wake = (): NodeLink => {
        const mine = ++life;
        world.ringAt = Infinity;
        const ringAt = (at: number) => {
          if (mine === life) world.ringAt = Math.min(world.ringAt, at);
        };
        const host = {
          handleReach: () => {},
          retryLastMs: () => limits.drainRetryLastMs,
          parked: world.disk,
          metrics: new Metrics(),
          ringAt,
          passOn: () => Promise.resolve(true),
        };
        const connect = () => {
          // A link that broke loses this call and all behind it on the same connection, as an RPC session does.
          let isBroken = false;
          return (batch: Uint8Array) => {
            // What ends an event does not happen in a core that is gone.
            if (mine !== life) return new Promise<Uint8Array>(() => {});
            isBroken ||= !isUp || next() < 0.1;
            return send(batch, !isBroken);
          };
        };
        world.link = new NodeLink("n", { ...host, connect }, world.disk.total());
        return world.link;
      };
      let link = wake();
      for (let step = 0; step < 120; step++) {
        const dice = next();
        if (dice < 0.55) {
          const number = added++;
          const mine = life;
          const bytes = record(" ", 2);
          bytes.set([number >> 8, number & 0xff], 5);
          link.add({ bytes, settled: (code) => void (code === 0 && mine === life && acknowledged.add(number)) });
        } else if (dice < 0.9) await world.pass(Math.floor(next() * 2_000));
        else if (dice < 0.96) isUp = !isUp;
        else {
          // Crash: what was not written is gone, and so are its timers.
          vi.clearAllTimers();
          link = wake();
        }
      }
      isUp = true;
      await world.pass(120_000);
      const seen = new Set(arrivals);
      for (const number of acknowledged)
        expect({ seed, number, arrived: seen.has(number) }).toMatchObject({ arrived: true });
      expect({ seed, isLive: link.isLive, rows: world.disk.rows }).toEqual({ seed, isLive: true, rows: [] });
      const first = [...seen];
      expect({ seed, first }).toEqual({ seed, first: first.toSorted((a, b) => a - b) });
    }
  });
});
