// Answers as servers give them, and as they should not: written by hand, byte by byte.

import { describe, expect, it } from "vitest";
import {
  decodeAnswer,
  encodeQuestion,
  type RecordType,
} from "../../../durable-objects/coordinator/discovery/dns-message.ts";
import { random } from "../../support/random.ts";

const types = { a: 1, cname: 5, aaaa: 28, srv: 33 };

/** A name as it is written, "" for the root; a number is a pointer. */
function name(...parts: readonly (string | number)[]): number[] {
  const bytes: number[] = [];
  for (const part of parts) {
    if (typeof part === "number") return [...bytes, 0xc0 | (part >> 8), part & 0xff];
    for (const label of part.split(".").filter(Boolean)) bytes.push(label.length, ...Buffer.from(label));
  }
  return [...bytes, 0];
}

function record(owner: readonly number[], type: number, data: readonly number[], length = data.length): number[] {
  return [...owner, 0, type, 0, 1, 0, 0, 0, 60, length >> 8, length & 0xff, ...data];
}

/** The answer to the question for "seeds.test"; its name is at 12. */
function answer(records: readonly (readonly number[])[], flags = 0x8180, count = records.length): Uint8Array {
  const header = [0, 0, flags >> 8, flags & 0xff, 0, 1, count >> 8, count & 0xff, 0, 0, 0, 0];
  return Uint8Array.from([...header, ...name("seeds.test"), 0, 1, 0, 1, ...records.flat()]);
}

function hosts(message: Uint8Array, type: RecordType = "a"): string[] {
  return decodeAnswer(message, "seeds.test", type).map(
    ({ host, port }) => host + (port === undefined ? "" : `:${port}`),
  );
}

describe("a question", () => {
  it("[RFC 8484 4.1] has the id 0, and the name and type asked for", () => {
    const hex = Buffer.from(encodeQuestion("Seeds.test.", "srv")).toString("hex");
    expect(hex).toBe("00000100000100000000000005536565647304746573740000210001");
  });

  it("is not made for what is no name", () => {
    const wrong = ["", "a..b", "x".repeat(64), "a b", "ä.test", `${"x".repeat(60)}.`.repeat(5)];
    for (const each of wrong) expect(() => encodeQuestion(each, "a")).toThrow("is not a DNS name");
  });
});

describe("an answer", () => {
  it("gives addresses", () => {
    const v6 = [0x20, 1, 0xd, 0xb8, ...Array.from({ length: 11 }, () => 0), 1];
    const message = answer([record(name(12), types.a, [10, 0, 0, 7]), record(name("seeds.test"), types.aaaa, v6)]);
    expect(hosts(message)).toEqual(["10.0.0.7"]);
    expect(hosts(message, "aaaa")).toEqual(["2001:db8:0:0:0:0:0:1"]);
  });

  it("[RFC 2782] gives the targets of a service, and none for a service that is not there", () => {
    const srv = (target: readonly number[]): number[] =>
      record(name(12), types.srv, [0, 1, 0, 2, 0x1f, 0x94, ...target]);
    expect(hosts(answer([srv(name("EU.Example", 18)), srv([0])]), "srv")).toEqual(["eu.example.test:8084"]);
  });

  it("[RFC 1034 3.6.2] follows aliases, in whatever order they come, and no others", () => {
    const message = answer([
      record(name("c.test"), types.a, [10, 0, 0, 1]),
      record(name("b.test"), types.cname, name("c.test")),
      record(name(12), types.cname, name("b.test")),
      record(name("stranger.test"), types.a, [6, 6, 6, 6]),
    ]);
    expect(hosts(message)).toEqual(["10.0.0.1"]);
  });

  it("ends with aliases that go in a circle", () => {
    const message = answer([
      record(name(12), types.cname, name("b.test")),
      record(name("b.test"), types.cname, name(12)),
    ]);
    expect(hosts(message)).toEqual([]);
  });

  it("keeps a dot within a label from making two of it", () => {
    const label = [4, ...Buffer.from("a.bc"), 0];
    const message = answer([record(name(12), types.srv, [0, 0, 0, 0, 0, 80, ...label])]);
    expect(hosts(message, "srv")).toEqual(["a\\.bc:80"]);
  });

  const refusals: readonly [what: string, message: Uint8Array, said: string][] = [
    ["empty", new Uint8Array(0), "not a DNS message"],
    ["HTML", Buffer.from("<!doctype html><title>Welcome</title>"), "question"],
    ["NXDOMAIN", answer([], 0x8183), '"seeds.test": NXDOMAIN'],
    ["SERVFAIL", answer([], 0x8182), "SERVFAIL"],
    ["of an unknown code", answer([], 0x818b), "response code 11"],
    ["truncated by the server", answer([], 0x8380), "truncated"],
    ["with fewer records than it says", answer([record(name(12), types.a, [10, 0, 0, 7])], 0x8180, 2), "too early"],
    ["with an address that is too long", answer([record(name(12), types.a, [10, 0, 0, 7, 0])]), "as long as it says"],
    ["with an address that is too short", answer([record(name(12), types.a, [10, 0, 0])]), "too early"],
    ["with a record beyond its end", answer([record(name(12), 16, [1], 500)]), "too early"],
    ["with a name that points to itself", answer([record(name(28), types.a, [10, 0, 0, 7])]), "points forward"],
    ["with a name that points forward", answer([record(name(40), types.a, [10, 0, 0, 7])]), "points forward"],
    ["with a name in a circle", answer([record(name("a", 28), types.a, [10, 0, 0, 7])]), "points forward"],
    ["with a label of an unknown kind", answer([record([0x41, 0], types.a, [10, 0, 0, 7])]), "unknown kind"],
    ["with a name that is too long", answer([record(name("x.".repeat(130)), types.a, [1, 1, 1, 1])]), "too long"],
  ];
  it.each(refusals)("%s is refused", (_, message, said) => {
    expect(() => hosts(message)).toThrow(said);
  });

  it("of any bytes ends in records or an Error", () => {
    const next = random(11);
    const good = answer([
      record(name(12), types.cname, name("b", 12)),
      record(name("b", 12), types.a, [10, 0, 0, 7]),
      record(name(12), types.srv, [0, 1, 0, 2, 0x1f, 0x94, ...name("eu", 12)]),
    ]);
    let decoded = 0;
    for (let i = 0; i < 20_000; i++) {
      const message = good.slice(0, next() < 0.3 ? Math.floor(next() * good.length) : good.length);
      for (let n = Math.floor(next() * 4); n > 0; n--) message[Math.floor(next() * message.length)] = next() * 256;
      for (const type of ["a", "aaaa", "srv"] as const) {
        try {
          decodeAnswer(message, "seeds.test", type);
          decoded++;
        } catch (error) {
          expect((error as Error).constructor).toBe(Error);
        }
      }
    }
    expect(decoded).toBeGreaterThan(1_000);
  });

  it("of 64 KB that points as far back as it may takes no time", () => {
    const long = record(name("x.".repeat(100), 12), types.a, [10, 0, 0, 7]);
    const at = 28;
    const records = Array.from({ length: 4_000 }, () => record(name(at), types.a, [10, 0, 0, 7]));
    const before = process.cpuUsage();
    hosts(answer([long, ...records]));
    // Time of this process: the machine may be busy with others.
    expect(process.cpuUsage(before).user).toBeLessThan(1_000_000);
  });
});
