import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Outbox, type Park, type Parkable, type SendBatch } from "../../durable-objects/outbox.ts";
import { rpcVersion } from "../../durable-objects/rpc.ts";
import { limits } from "../../mqtt/limits.ts";
import { random } from "../support/random.ts";

/** One call: what it carried, on which connection, and the way to answer it. */
interface Call {
  readonly connection: number;
  readonly records: string;
  answer(codes?: number[]): Promise<void>;
  fail(): Promise<void>;
  /** The destination gets more calls than it can take. */
  refuse(): Promise<void>;
}

/** The destination: answers when it is told to. Records are single letters, so a batch reads as a word. */
class Destination {
  readonly calls: Call[] = [];
  readonly settled: string[] = [];
  dropped = 0;
  connections = 0;
  readonly outbox: Outbox;

  constructor(park?: Park) {
    this.outbox = new Outbox(this.connect, (_reason, count) => (this.dropped += count), park);
  }

  readonly connect = (): SendBatch => {
    const connection = ++this.connections;
    return (batch) => this.handle(connection, batch);
  };

  handle(connection: number, batch: Uint8Array): Promise<Uint8Array> {
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    if (batch[0] !== rpcVersion) throw new Error(`a batch of version ${batch[0]}`);
    const records = String.fromCharCode(...batch.subarray(1).filter((byte) => byte !== 0));
    this.calls.push({
      connection,
      records,
      answer: (codes) => settle(() => resolve(codes ? Uint8Array.from(codes) : new Uint8Array(records.length))),
      fail: () => settle(() => reject(new Error("cut"))),
      refuse: () => settle(() => reject(Object.assign(new Error("too many calls"), { overloaded: true }))),
    });
    return promise;
  }

  /** Lower case: QoS 0. Upper case: somebody waits. */
  add(letter: string, bytes = 1): void {
    const record = new Uint8Array(bytes);
    record[0] = letter.charCodeAt(0);
    if (letter === letter.toLowerCase()) this.outbox.addUnacknowledged(record);
    else this.outbox.add(record, (reasonCode) => this.settled.push(`${letter} ${reasonCode}`));
  }

  get words(): string[] {
    return this.calls.map(({ connection, records }) => `${connection} ${records}`);
  }

  /** Calls made since the last look. */
  #seen = 0;
  news(): string[] {
    const news = this.words.slice(this.#seen);
    this.#seen = this.calls.length;
    return news;
  }
}

const large = Math.floor(limits.batchBytesMax * 0.6);

async function settle(end: () => void): Promise<void> {
  end();
  await vi.advanceTimersByTimeAsync(0);
}

/** Whatever was added has left, also behind a batch that is under way. */
async function turn(): Promise<void> {
  await vi.advanceTimersByTimeAsync(limits.batchGatherMs);
}

let to: Destination;
beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(console, "error").mockImplementation(() => {});
  to = new Destination();
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

describe("batching", () => {
  test("what is added in one turn leaves as one batch at its end, in order", async () => {
    for (const letter of "AbCd") to.add(letter);
    expect(to.calls).toEqual([]);
    await turn();
    expect(to.words).toEqual(["1 AbCd"]);
  });

  test("what is added while a batch is under way gathers, until that is answered", async () => {
    to.add("A");
    await settle(() => {});
    expect(to.news()).toEqual(["1 A"]);
    for (const letter of "BCD") {
      to.add(letter);
      await settle(() => {});
    }
    expect(to.news()).toEqual([]);
    await to.calls[0]!.answer();
    expect(to.news()).toEqual(["1 BCD"]);
  });

  test("it waits a moment only, or until it is much", async () => {
    to.add("A");
    await turn();
    to.add("B");
    await vi.advanceTimersByTimeAsync(limits.batchGatherMs - 1);
    expect(to.news()).toEqual(["1 A"]);
    await vi.advanceTimersByTimeAsync(1);
    expect(to.news()).toEqual(["1 B"]);
    to.add("C", limits.batchBytesSoon);
    await settle(() => {});
    expect(to.news()).toEqual(["1 C"]);
  });

  test("[G6] so many batches are under way at most; what gathers meanwhile leaves together", async () => {
    for (let count = 0; count < limits.batchesInFlightMax; count++) {
      to.add("A");
      await turn();
    }
    for (const letter of "XYZ") {
      to.add(letter);
      await turn();
    }
    expect(to.news()).toHaveLength(limits.batchesInFlightMax);
    await to.calls[3]!.answer();
    expect(to.news()).toEqual(["1 XYZ"]);
  });

  test("[G6] a batch is bounded in bytes; a record larger than that goes alone", async () => {
    to.add("A", large);
    to.add("B", large);
    to.add("C", limits.batchBytesMax - large);
    to.add("D", 1);
    to.add("E", limits.batchBytesMax * 2);
    to.add("F", 1);
    await turn();
    expect(to.words).toEqual(["1 A", "1 BC", "1 D", "1 E", "1 F"]);
  });

  test("the answer has one code a record", async () => {
    for (const letter of "AbC") to.add(letter);
    await turn();
    to.add("D");
    await turn();
    await to.calls[1]!.answer();
    expect(to.settled).toEqual(["D 0"]);
    await to.calls[0]!.answer([0x10, 0, 0x97]);
    expect(to.settled).toEqual(["D 0", "A 16", "C 151"]);
    expect(to.dropped).toBe(0);
  });

  test("[G5] a waiter that fails does not keep the answer from the others", async () => {
    to.add("A");
    to.outbox.add(Uint8Array.of(33), () => {
      throw new Error("one session's trouble");
    });
    to.add("B");
    await turn();
    await to.calls[0]!.answer();
    expect(to.settled).toEqual(["A 0", "B 0"]);
  });

  test("an answer of another length is no answer", async () => {
    for (const letter of "AB") to.add(letter);
    await turn();
    await to.calls[0]!.answer([0]);
    expect(to.settled).toEqual([]);
    await vi.advanceTimersByTimeAsync(limits.retryFirstMs);
    await to.calls[1]!.answer([0, 0x10]);
    expect(to.settled).toEqual(["A 0", "B 16"]);
  });
});

describe("failure", () => {
  test("[G1] the batch goes again on a new connection, after a pause", async () => {
    to.add("A");
    await turn();
    await to.calls[0]!.fail();
    expect(to.settled).toEqual([]);
    await vi.advanceTimersByTimeAsync(limits.retryFirstMs - 1);
    expect(to.words).toEqual(["1 A"]);
    await vi.advanceTimersByTimeAsync(1);
    expect(to.words).toEqual(["1 A", "2 A"]);
    await to.calls[1]!.answer();
    expect(to.settled).toEqual(["A 0"]);
  });

  test("[G1] it is not idle before what failed has been answered", async () => {
    expect(to.outbox.isIdle).toBe(true);
    to.add("A");
    expect(to.outbox.isIdle).toBe(false);
    await turn();
    await to.calls[0]!.fail();
    expect(to.outbox.isIdle).toBe(false);
    await vi.advanceTimersByTimeAsync(limits.retryFirstMs);
    expect(to.outbox.isIdle).toBe(false);
    await to.calls[1]!.answer();
    expect(to.outbox.isIdle).toBe(true);
  });

  test("QoS 0 is not sent twice: it is dropped and counted", async () => {
    for (const letter of "aBcd") to.add(letter);
    await turn();
    to.add("e");
    await turn();
    await to.calls[0]!.fail();
    await to.calls[1]!.fail();
    expect(to.dropped).toBe(4);
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(to.words).toEqual(["1 aBcd", "1 e", "2 B"]);
    // The code is that of the record that is left.
    await to.calls[2]!.answer([0x10]);
    expect(to.settled).toEqual(["B 16"]);
  });

  test("[G2] nothing new is sent until all under way has settled; then the failed ones first, in order", async () => {
    for (const letter of "ABC") {
      to.add(letter);
      await turn();
    }
    await to.calls[1]!.fail();
    to.add("D");
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(to.news()).toEqual(["1 A", "1 B", "1 C"]);
    await to.calls[2]!.fail();
    to.add("E");
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(to.news()).toEqual([]);
    await to.calls[0]!.fail();
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(to.news()).toEqual(["2 A", "2 B", "2 C", "2 DE"]);
  });

  test("what succeeded beside a failure is answered and not sent again", async () => {
    for (const letter of "ABC") {
      to.add(letter);
      await turn();
    }
    await to.calls[0]!.fail();
    await to.calls[2]!.fail();
    await to.calls[1]!.answer([0x10]);
    expect(to.settled).toEqual(["B 16"]);
    to.news();
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(to.news()).toEqual(["2 A", "2 C"]);
  });

  test("what is added during the pause waits for it, and goes behind", async () => {
    to.add("A");
    await turn();
    await to.calls[0]!.fail();
    to.add("B");
    to.add("C");
    await turn();
    expect(to.words).toEqual(["1 A"]);
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(to.words).toEqual(["1 A", "2 A", "2 BC"]);
  });

  test("when only QoS 0 failed there is nothing to repeat, but still a pause and a new connection", async () => {
    to.add("a");
    await turn();
    await to.calls[0]!.fail();
    to.add("B");
    await turn();
    expect(to.words).toEqual(["1 a"]);
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(to.words).toEqual(["1 a", "2 B"]);
  });

  test("[G1] [G2] the pause doubles up to its bound; what somebody waits for is held, in order", async () => {
    to.add("A");
    to.add("b");
    await turn();
    to.add("C");
    await turn();
    const pauses: number[] = [];
    for (let attempt = 1; attempt <= limits.attemptsMax * 2; attempt++) {
      for (const call of to.calls.slice(-2)) await call.fail();
      const before = Date.now();
      const { length } = to.calls;
      while (to.calls.length === length) await vi.advanceTimersByTimeAsync(1);
      pauses.push(Date.now() - before);
    }
    const expected = [1, 2, 4, 8, 16, 32].map((times) => Math.min(limits.retryLastMs, limits.retryFirstMs * times));
    expect(pauses.slice(0, 6)).toEqual(expected);
    expect(pauses.at(-1)).toBe(limits.retryLastMs);
    expect(to.dropped).toBe(1);
    to.add("D");
    await turn();
    expect(to.settled).toEqual([]);
    expect(to.news().slice(-3)).toEqual(["15 A", "15 C", "15 D"]);
    for (const call of to.calls.slice(-3)) await call.answer();
    expect(to.settled).toEqual(["A 0", "C 0", "D 0"]);
  });

  test("[G2] a call that throws at once is a failure as any other", async () => {
    let broken = true;
    const calls: string[] = [];
    const settled: string[] = [];
    const outbox = new Outbox(
      () => (batch) => {
        calls.push(String.fromCharCode(batch[1]!));
        if (broken) throw new Error("cut");
        return Promise.resolve(new Uint8Array((batch.length - 1) / large));
      },
      () => {},
    );
    const add = (letter: string) => {
      const record = new Uint8Array(large);
      record[0] = letter.charCodeAt(0);
      outbox.add(record, (reasonCode) => settled.push(`${letter} ${reasonCode}`));
    };
    for (const letter of "ABC") add(letter);
    await turn();
    add("D");
    broken = false;
    calls.length = 0;
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(calls).toEqual(["A", "B", "C", "D"]);
    expect(settled).toEqual(["A 0", "B 0", "C 0", "D 0"]);
  });

  test("a connection that cannot be made is a failure as any other", async () => {
    let attempts = 0;
    const settled: (number | undefined)[] = [];
    const outbox = new Outbox(
      () => {
        if (++attempts === 1) throw new Error("no such object");
        return () => Promise.resolve(Uint8Array.of(0));
      },
      () => {},
    );
    outbox.add(Uint8Array.of(1), (reasonCode) => settled.push(reasonCode));
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(settled).toEqual([0]);
  });
});

describe("overload", () => {
  test("[G1] what somebody waits for is held, however often the destination refuses it, and goes in order", async () => {
    to.add("A");
    await turn();
    to.add("B");
    await turn();
    const pauses: number[] = [];
    for (let attempt = 1; attempt <= limits.attemptsMax * 2; attempt++) {
      const [a, b] = to.calls.slice(-2);
      await a!.refuse();
      await b!.refuse();
      const before = Date.now();
      const { length } = to.calls;
      while (to.calls.length === length) await vi.advanceTimersByTimeAsync(1);
      pauses.push(Date.now() - before);
    }
    expect(pauses.slice(0, 3)).toEqual([50, 100, 200]);
    expect(pauses.at(-1)).toBe(limits.retryLastMs);
    expect(to.settled).toEqual([]);
    expect(to.news().slice(-2)).toEqual(["15 A", "15 B"]);
    await to.calls.at(-2)!.answer();
    await to.calls.at(-1)!.answer();
    expect(to.settled).toEqual(["A 0", "B 0"]);
  });

  test("[G6] QoS 0 is shed at once and counted while it lasts, and no longer", async () => {
    for (const letter of "aB") to.add(letter);
    await turn();
    for (let count = 1; count < limits.batchesInFlightMax; count++) {
      to.add("C");
      await turn();
    }
    for (const letter of "deF") to.add(letter);
    await to.calls[0]!.refuse();
    expect(to.dropped).toBe(3);
    to.add("g");
    expect(to.dropped).toBe(4);
    for (const call of to.calls.slice(1)) await call.answer();
    await vi.advanceTimersByTimeAsync(limits.retryFirstMs);
    expect(to.news().slice(-2)).toEqual(["2 B", "2 F"]);
    to.add("h");
    await turn();
    expect(to.news()).toEqual(["2 h"]);
    expect(to.dropped).toBe(4);
  });

  test("a destination that QoS 0 alone is for is asked less and less often", async () => {
    const asked: number[] = [];
    for (let ms = 0; ms < 5_000; ms++) {
      to.add("a");
      const { length } = to.calls;
      await vi.advanceTimersByTimeAsync(1);
      if (to.calls.length === length) continue;
      asked.push(ms);
      await to.calls.at(-1)!.refuse();
    }
    expect(asked.length).toBeLessThan(10);
  });

  test("[G6] bytes that are held count: it is full as ever", async () => {
    to.add("A");
    await turn();
    await to.calls[0]!.refuse();
    for (let bytes = 0; bytes < limits.outboxBytesMax; bytes += limits.batchBytesMax) {
      expect(to.outbox.full).toBe(false);
      to.add("B", limits.batchBytesMax);
    }
    expect(to.outbox.full).toBe(true);
  });
});

describe("a destination that is unreachable, and a place to park", () => {
  const parked: string[] = [];

  function park(items: readonly Parkable[]): void {
    parked.push(items.map(({ bytes }) => String.fromCharCode(bytes[0]!)).join(""));
    for (const { settled } of items) settled(0);
  }

  function addParkable(letter: string, bytes = 1): void {
    const record = new Uint8Array(bytes);
    record[0] = letter.charCodeAt(0);
    to.outbox.addParkable({ bytes: record, settled: (reasonCode) => to.settled.push(`${letter} ${reasonCode}`) });
  }

  beforeEach(() => {
    parked.length = 0;
    to = new Destination(park);
  });

  test("[G1] [G2] what failed and then what gathered behind it is parked together, in order; the rest is given up", async () => {
    addParkable("A");
    to.add("b");
    await turn();
    addParkable("C");
    to.add("D");
    await turn();
    await to.calls[1]!.fail();
    await to.calls[0]!.fail();
    for (let attempt = 2; attempt <= limits.attemptsMax; attempt++) {
      await vi.advanceTimersByTimeAsync(limits.retryLastMs);
      expect(parked).toEqual([]);
      if (attempt === limits.attemptsMax) {
        addParkable("E");
        to.add("f");
        to.add("G");
      }
      for (const call of to.calls.slice(-2).reverse()) await call.fail();
    }
    expect(parked).toEqual(["ACE"]);
    expect(to.settled).toEqual(["A 0", "C 0", "E 0", "D undefined", "G undefined"]);
    expect(to.dropped).toBe(2);
    to.news();
    await vi.advanceTimersByTimeAsync(limits.retryLastMs * 2);
    expect(to.news()).toEqual([]);
  });

  test("nothing is parked while a call is under way that may still be answered", async () => {
    addParkable("A");
    await turn();
    for (let attempt = 1; attempt < limits.attemptsMax; attempt++) {
      await to.calls.at(-1)!.fail();
      await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    }
    addParkable("B");
    await turn();
    await to.calls.at(-2)!.fail();
    expect(parked).toEqual([]);
    await to.calls.at(-1)!.answer([0x10]);
    expect(parked).toEqual(["A"]);
    expect(to.settled).toEqual(["B 16", "A 0"]);
  });

  test("an overload is not a reason to park, nor does it count towards one", async () => {
    addParkable("A");
    await turn();
    for (let attempt = 1; attempt <= limits.attemptsMax * 2; attempt++) {
      await to.calls.at(-1)!.refuse();
      await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    }
    expect(parked).toEqual([]);
    for (let failures = 0; failures < limits.attemptsMax; failures++) {
      await to.calls.at(-1)!.refuse();
      await vi.advanceTimersByTimeAsync(limits.retryLastMs);
      expect(parked).toEqual([]);
      await to.calls.at(-1)!.fail();
      await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    }
    expect(parked).toEqual(["A"]);
  });
});

describe("bounds [G6]", () => {
  const qos0Records = limits.outboxBytesMaxQos0 / limits.batchBytesMax;
  const allRecords = limits.outboxBytesMax / limits.batchBytesMax;

  /** As many batches as may be under way: what is added then waits. */
  async function block(): Promise<void> {
    for (let count = 0; count < limits.batchesInFlightMax; count++) to.add("A", limits.batchBytesMax);
    await turn();
  }

  test("QoS 0 is the first to go: dropped and counted at its own bound, until there is room", async () => {
    await block();
    for (let count = 0; count < qos0Records; count++) to.add("B", limits.batchBytesMax);
    to.add("c");
    to.add("d");
    expect(to.dropped).toBe(2);
    expect(to.outbox.full).toBe(false);
    await to.calls[0]!.answer();
    to.add("e");
    expect(to.dropped).toBe(2);
  });

  test("at the bytes bound it is full, until there is room", async () => {
    await block();
    for (let count = 0; count < allRecords; count++) {
      expect(to.outbox.full).toBe(false);
      to.add("B", limits.batchBytesMax);
    }
    expect(to.outbox.full).toBe(true);
    await to.calls[0]!.answer();
    expect(to.outbox.full).toBe(false);
  });
});

describe("seeded", () => {
  test("[G1] [G2] every record that is waited for is settled once, and first arrivals are in order", async () => {
    for (let seed = 1; seed <= 60; seed++) {
      const next = random(seed);
      const pick = (below: number) => Math.floor(next() * below);
      const open: { records: number[]; end: (fails: boolean) => void }[] = [];
      const arrivals: number[] = [];
      const settled = new Map<number, number | undefined>();
      let dropped = 0;
      let added = 0;
      let unacknowledged = 0;
      let isUp = true;
      const outbox = new Outbox(
        () => {
          // A link that broke loses this call and all behind it on the same connection, as an RPC session does.
          let isBroken = false;
          return (batch) => {
            const records: number[] = [];
            for (let at = 1; at < batch.length; at += 4) records.push((batch[at]! << 8) | batch[at + 1]!);
            const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
            const arrives = !isBroken && isUp;
            isBroken ||= !isUp;
            if (arrives) arrivals.push(...records);
            open.push({
              records,
              end: (fails) => (fails || !arrives ? reject(new Error("cut")) : resolve(new Uint8Array(records.length))),
            });
            return promise;
          };
        },
        (_reason, count) => (dropped += count),
      );
      for (let step = 0; step < 150; step++) {
        const dice = next();
        if (dice < 0.5) {
          const record = Uint8Array.of(added >> 8, added & 0xff, 0, 0);
          const number = added++;
          if (next() < 0.3) {
            unacknowledged++;
            outbox.addUnacknowledged(record);
          } else
            outbox.add(record, (reasonCode) => {
              expect(settled.has(number)).toBe(false);
              settled.set(number, reasonCode);
            });
        } else if (dice < 0.7) await turn();
        else if (dice < 0.9) open.splice(pick(open.length), 1)[0]?.end(next() < 0.1);
        else if (dice < 0.95) isUp = !isUp;
        else await vi.advanceTimersByTimeAsync(pick(1000));
      }
      isUp = true;
      for (let rounds = 0; rounds < 100; rounds++) {
        for (const { end } of open.splice(0)) end(false);
        await vi.advanceTimersByTimeAsync(limits.retryLastMs);
      }
      expect(settled.size).toBe(added - unacknowledged);
      const seen = new Set(arrivals);
      for (const [number, reasonCode] of settled)
        if (reasonCode !== undefined)
          expect({ seed, number, arrived: seen.has(number) }).toMatchObject({ arrived: true });
      const first = [...seen];
      expect({ seed, first }).toEqual({ seed, first: first.toSorted((a, b) => a - b) });
      expect(dropped).toBeLessThanOrEqual(unacknowledged);
    }
  });
});
