import { describe, expect, it } from "vitest";
import { KeyHash, keyBytesMax, PackedMap } from "../../cluster/packed-map.ts";
import { random } from "../support/random.ts";

const newMap = (seed = 1): PackedMap => new PackedMap(new KeyHash(seed));

describe("packed map", () => {
  it("has what was set, and nothing else", () => {
    const map = newMap();
    map.set("a/b", 1);
    map.set("", 2);
    map.set("a/ü/€/😀", 0xffff_ffff);
    map.set("a/b", 3);
    expect(["a/b", "", "a/ü/€/😀", "a", "a/b/c"].map((key) => map.get(key))).toEqual([3, 2, 0xffff_ffff, 0, 0]);
    expect(map.size).toBe(3);
    expect(map.delete("a")).toBe(false);
    expect(map.delete("a/b")).toBe(true);
    expect(map.delete("a/b")).toBe(false);
    expect(new Map(map.entries())).toEqual(
      new Map([
        ["", 2],
        ["a/ü/€/😀", 0xffff_ffff],
      ]),
    );
  });

  it("takes the longest text of MQTT, and no longer one", () => {
    const map = newMap();
    const longest = "x".repeat(keyBytesMax);
    for (const last of ["a", "b", "c"]) map.set(longest.slice(1) + last, 1);
    expect(map.get(`${longest.slice(1)}b`)).toBe(1);
    expect(map.get(longest)).toBe(0);
    expect(() => map.get(`${longest}x`)).toThrow(RangeError);
    expect(() => map.get("ü".repeat(keyBytesMax / 2 + 1))).toThrow(RangeError);
    expect(() => map.set("a", 0)).toThrow(RangeError);
  });

  it.each([1, 2, 3, 4])("agrees with a Map, seed %d", (seed) => {
    const next = random(seed);
    const map = newMap(seed);
    const model = new Map<string, number>();
    const wrong: string[] = [];
    // It grows and shrinks in turn, over several pages and back.
    for (let i = 1; i <= 40_000; i++) {
      const key = `${"k".repeat(Math.floor(next() * 50))}/${Math.floor(next() * 200)}`;
      if (next() < (i % 20_000 < 10_000 ? 0.9 : 0.1)) {
        map.set(key, i);
        model.set(key, i);
      } else if (map.delete(key) !== model.delete(key)) wrong.push(`delete ${key} at ${i}`);
      if (map.get(key) !== (model.get(key) ?? 0) || map.size !== model.size) wrong.push(`${key} at ${i}`);
      if (i % 5000 === 0) expect(new Map(map.entries())).toEqual(model);
    }
    expect(wrong).toEqual([]);
    for (const [key, value] of model) expect(map.get(key)).toBe(value);
  });

  it("lets go what is visited", () => {
    const map = newMap();
    for (let i = 1; i <= 20_000; i++) map.set(`key/${i}`, i);
    let visited = 0;
    for (const [key] of map.entries()) {
      if (map.delete(key)) visited++;
    }
    expect(visited).toBe(20_000);
    expect(map.size).toBe(0);
  });

  it("[G6] holds at most twice what is in it, however it came there", () => {
    const map = newMap();
    const key = (i: number): string => `devices/${i}/state`;
    for (let i = 0; i < 100_000; i++) map.set(key(i), 1);
    const full = map.bytes;
    expect(full / map.size).toBeLessThan(50);
    // One of a hundred stays, in each page.
    for (let i = 0; i < 100_000; i++) if (i % 100 > 0) map.delete(key(i));
    const kept = map.bytes;
    expect(kept).toBeLessThan(full / 10);
    // What comes and goes leaves nothing, also among what stays.
    for (let i = 0; i < 200_000; i++) {
      map.set(key(i % 50 === 0 ? 100_000 + i : -i), 1);
      map.delete(i % 50 === 0 ? key((i * 2) % 100_000) : key(-i));
    }
    expect(map.bytes).toBeLessThan(full / 4);
    for (const [each] of map.entries()) map.delete(each);
    expect(map.bytes).toBeLessThan(2000);
  });

  it("[G5] finds its way with any key of the hash, and with another one other slots", () => {
    const hashes = [1, 2].map((seed) => {
      const hash = new KeyHash(seed);
      return Array.from({ length: 100 }, (_, i) => {
        const length = hash.encode(`t/${i}`);
        return hash.all(hash.empty, hash.key, 0, length);
      });
    });
    expect(new Set(hashes.flat()).size).toBe(200);
  });
});
