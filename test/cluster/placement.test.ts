import { describe, expect, it } from "vitest";
import { hash32 } from "../../cluster/hash.ts";
import { locationOf, parseNodeName } from "../../cluster/name.ts";
import { coresByDistance, locationHints, locationOfConnection, rendezvous, slots } from "../../cluster/placement.ts";

const keys = Array.from({ length: 8000 }, (_, i) => `203.0.${i >> 8}.${i & 255}`);
const names = slots("weur", "emqxcl", 8, undefined);

describe("location of a connection", () => {
  it.each([
    [undefined, "local"],
    [{}, "local"],
    [{ country: "T1" }, "local"],
    [{ continent: "NA", country: "US", longitude: "-122.4" }, "wnam"],
    [{ continent: "NA", country: "US", longitude: "-74.0" }, "enam"],
    [{ continent: "NA", country: "US" }, "enam"],
    [{ continent: "SA", country: "BR", longitude: "-46.6" }, "sam"],
    [{ continent: "EU", country: "DE", longitude: "8.6" }, "weur"],
    [{ continent: "EU", country: "PL", longitude: "21.0" }, "eeur"],
    [{ continent: "EU", country: "XX", longitude: "nowhere" }, "weur"],
    [{ continent: "AS", country: "JP", longitude: "139.7" }, "apac-ne"],
    [{ continent: "AS", country: "SG", longitude: "103.8" }, "apac-se"],
    [{ continent: "AS", country: "IN", longitude: "72.8" }, "apac"],
    [{ continent: "AS", country: "AE", longitude: "55.3" }, "me"],
    [{ continent: "AF", country: "EG", longitude: "31.2" }, "me"],
    [{ continent: "AF", country: "ZA", longitude: "28.0" }, "afr"],
    [{ continent: "OC", country: "AU", longitude: "151.2" }, "oc"],
    [{ continent: "AN", country: "AQ" }, "oc"],
  ])("%j -> %s", (cf, location) => {
    expect(locationOfConnection(cf)).toBe(location);
  });
});

describe("slots", () => {
  it("are named node-0, node-1, ... in their location", () => {
    expect(slots("local", "emqxcl", 2, undefined)).toEqual(["node-0@local.emqxcl", "node-1@local.emqxcl"]);
  });

  it.each(["emqxcl", "eu.example.com", "127.0.0.1:8084", "[::1]:8084"])(
    "have valid names in the domain %s, whatever the location",
    (domain) => {
      for (const location of [...locationHints, "local"]) {
        for (const name of slots(location, domain, 3, "key")) {
          expect(parseNodeName(name).host).toBe(`${location}.${domain}`);
          expect(locationOf(name, domain)).toBe(location);
        }
      }
    },
  );

  it("are all in the order of a key", () => {
    for (const key of keys.slice(0, 50)) {
      expect(slots("weur", "emqxcl", 8, key).toSorted()).toEqual(names);
      expect(slots("weur", "emqxcl", 8, key)).toEqual(rendezvous(key, names.toReversed()));
    }
  });
});

describe("rendezvous hashing", () => {
  it("is stable for ever", () => {
    // Computed apart, from the definition. If these change, what is on disk is in the wrong place.
    expect(hash32("")).toBe(0xab3e7c0b);
    expect(hash32("sensors/1/temp")).toBe(0x2a0371c8);
    const order = rendezvous("203.0.113.7", names).map((name) => name.slice(5, 6));
    expect(order.join("")).toBe("46230571");
  });

  it("spreads first and second choices evenly", () => {
    for (const choice of [0, 1]) {
      const counts = new Map<string, number>();
      for (const key of keys) {
        const name = rendezvous(key, names)[choice] ?? "";
        counts.set(name, (counts.get(name) ?? 0) + 1);
      }
      expect(counts.size).toBe(8);
      // 1000 expected of each, standard deviation 30.
      for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(150);
    }
  });

  it("moves only the keys of a name that goes, and spreads them over the others", () => {
    const gone = names[3] ?? "";
    const rest = names.filter((name) => name !== gone);
    const heirs = new Map<string, number>();
    for (const key of keys) {
      const before = rendezvous(key, names);
      expect(rendezvous(key, rest)).toEqual(before.filter((name) => name !== gone));
      if (before[0] === gone) heirs.set(before[1] ?? "", (heirs.get(before[1] ?? "") ?? 0) + 1);
    }
    expect(heirs.size).toBe(7);
    for (const count of heirs.values()) expect(Math.abs(count - 143)).toBeLessThan(70);
  });
});

describe("the cores of a node", () => {
  const cores = ["core@apac-ne.emqxcl", "core@enam.emqxcl", "core@weur.emqxcl", "core@wnam.emqxcl"];
  const order = (node: string, of = cores) =>
    coresByDistance(node, "emqxcl", of).map((core) => locationOf(core, "emqxcl"));

  it.each([
    ["node-0@weur.emqxcl", ["weur", "enam", "wnam", "apac-ne"]],
    ["node-0@eeur.emqxcl", ["weur", "enam", "apac-ne", "wnam"]],
    ["node-0@wnam.emqxcl", ["wnam", "enam", "weur", "apac-ne"]],
    ["node-0@apac-ne.emqxcl", ["apac-ne", "wnam", "weur", "enam"]],
    ["node-0@sam.emqxcl", ["enam", "weur", "wnam", "apac-ne"]],
  ])("%s tries the nearest first", (node, expected) => {
    expect(order(node)).toEqual(expected);
  });

  it("spread over cores that are equally near, each node in an order of its own", () => {
    const near = ["a@weur.emqxcl", "b@weur.emqxcl", "c@weur.emqxcl"];
    const first = (slot: number) => coresByDistance(`node-${slot}@weur.emqxcl`, "emqxcl", near)[0];
    expect(new Set(Array.from({ length: 30 }, (_, slot) => first(slot)))).toEqual(new Set(near));
    expect(new Set(order("node-0@local.emqxcl"))).toEqual(new Set(["apac-ne", "enam", "weur", "wnam"]));
  });
});
