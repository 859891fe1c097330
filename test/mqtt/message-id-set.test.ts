import { describe, expect, test } from "vitest";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import {
  blockBytes,
  hasBit,
  lifeChars,
  messageIdOf,
  MessageIdSet,
  placeOf,
  setBit,
} from "../../mqtt/message-id-set.ts";
import { random } from "../support/random.ts";

const life = "4f1c09d2a6b3";
const other = "0123456789ab";

function setOf(...ids: readonly (readonly [id: string, shared: string | undefined])[]): MessageIdSet {
  const set = new MessageIdSet();
  for (const [id, shared] of ids) set.add(id, shared);
  return set;
}

function written(set: MessageIdSet): Uint8Array {
  const writer = new ByteWriter();
  set.write(writer);
  return writer.take();
}

describe("the place of an id", () => {
  const blockBits = blockBytes * 8;

  test("a message's id is its node's life and its number there, and says both again", () => {
    expect(life).toHaveLength(lifeChars);
    for (const number of [0, 1, 35, 36, 71, blockBits - 1, blockBits, 10 ** 12])
      expect(placeOf(messageIdOf(life, number), undefined)).toEqual({
        origin: life,
        block: Math.floor(number / blockBits),
        bit: number % blockBits,
      });
  });

  test("[MQTT-4.8.2-4] what came by a share group is told from the message itself, and from another group's", () => {
    const id = messageIdOf(life, 7);
    const origins = [undefined, "$share/g/t", "$share/h/t", "$queue/t"].map((shared) => placeOf(id, shared).origin);
    expect(new Set(origins).size).toBe(4);
  });

  test.each([life, `${life} `, "", "short", `${life}!`])('"%s" is no id of a message', (id) => {
    expect(() => placeOf(id, undefined)).toThrow("no message id");
  });

  test("the bits of a block are each its own", () => {
    for (const bit of [0, 1, 7, 8, 9, blockBits - 1]) {
      const block = new Uint8Array(blockBytes);
      setBit(block, bit);
      setBit(block, bit);
      const set = Array.from({ length: blockBits }, (_, at) => at).filter((at) => hasBit(block, at));
      expect(set).toEqual([bit]);
    }
  });
});

describe("the set", () => {
  test("has what was added, by the way that it came, and nothing next to it", () => {
    const set = setOf([messageIdOf(life, 71), undefined], [messageIdOf(life, 5), "$share/g/t"]);
    expect(set.has(messageIdOf(life, 71), undefined)).toBe(true);
    for (const number of [70, 72, 71 + blockBytes * 8])
      expect(set.has(messageIdOf(life, number), undefined)).toBe(false);
    expect(set.has(messageIdOf(other, 71), undefined)).toBe(false);
    expect(set.has(messageIdOf(life, 71), "$share/g/t")).toBe(false);
    expect(set.has(messageIdOf(life, 5), "$share/g/t")).toBe(true);
    expect(set.has(messageIdOf(life, 5), "$share/h/t")).toBe(false);
    expect(set.has(messageIdOf(life, 5), undefined)).toBe(false);
  });

  test("takes in another set, which stays as it was", () => {
    const set = setOf([messageIdOf(life, 1), undefined]);
    const added = setOf([messageIdOf(life, 2), undefined], [messageIdOf(other, 1), "$share/g/t"]);
    set.addAll(added);
    set.add(messageIdOf(life, 3), undefined);
    for (const number of [1, 2, 3]) expect(set.has(messageIdOf(life, number), undefined)).toBe(true);
    expect(set.has(messageIdOf(other, 1), "$share/g/t")).toBe(true);
    expect([1, 3].some((number) => added.has(messageIdOf(life, number), undefined))).toBe(false);
  });

  test("[G6] a thousand ids of one life are a block or two on the wire", () => {
    const set = new MessageIdSet();
    for (let number = 500; number < 1500; number++) set.add(messageIdOf(life, number), undefined);
    expect(written(set).length).toBeLessThan(3 * blockBytes);
    expect(written(new MessageIdSet()).length).toBe(0);
  });

  test("[G5] the longest share group that a client can name is written and read", () => {
    const shared = `$share/${"g".repeat(65_535 - "$share//#".length)}/#`;
    const id = messageIdOf(life, 1);
    const read = MessageIdSet.read(new ByteReader(written(setOf([id, shared], [id, undefined]))));
    expect([read.has(id, shared), read.has(id, undefined), read.has(id, "$share/g/#")]).toEqual([true, true, false]);
  });

  test("a record that ends early is refused, not half read", () => {
    const bytes = written(setOf([messageIdOf(life, 1), undefined]));
    expect(() => MessageIdSet.read(new ByteReader(bytes.subarray(0, -1)))).toThrow(RangeError);
  });

  test("seeded, against plain sets: added, taken in, written and read", () => {
    const ways = [undefined, "$share/g/t", "$share/h/\u00e9/#"];
    for (let seed = 1; seed <= 40; seed++) {
      const next = random(seed);
      const pick = (below: number) => Math.floor(next() * below);
      const idOf = () => messageIdOf(pick(2) === 0 ? life : other, pick(3) === 0 ? pick(40) * 1000 : pick(2100));
      let set = new MessageIdSet();
      const expected = new Set<string>();
      for (let step = 0; step < 60; step++) {
        const into = next() < 0.8 ? set : new MessageIdSet();
        for (let count = pick(5); count >= 0; count--) {
          const [id, shared] = [idOf(), ways[pick(ways.length)]];
          into.add(id, shared);
          expected.add(`${id} ${shared}`);
        }
        if (into !== set) set.addAll(into);
        if (next() < 0.1) set = MessageIdSet.read(new ByteReader(written(set)));
        const [id, shared] = [idOf(), ways[pick(ways.length)]];
        expect({ seed, step, id, has: set.has(id, shared) }).toEqual({
          seed,
          step,
          id,
          has: expected.has(`${id} ${shared}`),
        });
      }
      for (const each of expected) {
        const [id = "", shared] = each.split(" ");
        expect(set.has(id, shared === "undefined" ? undefined : shared)).toBe(true);
      }
    }
  });
});
