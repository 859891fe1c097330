import { describe, expect, test } from "vitest";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import { isUpTo, lifeChars, lifeOf, messageIdOf, MessageIdSet, placeOf } from "../../mqtt/message-id-set.ts";
import { random } from "../support/random.ts";

const life = "4f1c09d2a6b3";
const other = "0123456789ab";

/** Ids that share a block of the set, as bits. */
const blockIds = 1024;

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
  test.each([1, 128, blockIds])("in blocks of %i: an id is its node's life and its number there", (blockLength) => {
    expect(life).toHaveLength(lifeChars);
    for (const number of [0, 1, 35, 36, 71, blockLength - 1, blockLength, 2 * blockLength, 10 ** 12])
      expect(placeOf(messageIdOf(life, number), undefined, blockLength)).toEqual({
        origin: life,
        block: Math.floor(number / blockLength),
        index: number % blockLength,
      });
  });

  test("[MQTT-4.8.2-4] what came by a share group is told from the message itself, and from another group's", () => {
    const id = messageIdOf(life, 7);
    const origins = [undefined, "$share/g/t", "$share/h/t", "$queue/t"].map(
      (shared) => placeOf(id, shared, blockIds).origin,
    );
    expect(new Set(origins).size).toBe(4);
  });

  test.each([life, `${life} `, "", "short", `${life}!`])('"%s" is no id of a message', (id) => {
    expect(() => placeOf(id, undefined, blockIds)).toThrow("no message id");
  });
});

describe("the order of ids", () => {
  test("within a life it is that of their numbers, whatever their length", () => {
    const numbers = [0, 1, 35, 36, 71, 1_295, 1_296, 10 ** 12];
    for (const one of numbers)
      for (const another of numbers)
        expect(isUpTo(messageIdOf(life, one), messageIdOf(life, another))).toBe(one <= another);
  });

  test("between lives there is none, nor with what is no id", () => {
    expect(lifeOf(messageIdOf(life, 5))).toBe(life);
    for (const number of [1, 2, 3]) expect(isUpTo(messageIdOf(life, 2), messageIdOf(other, number))).toBe(false);
    for (const id of ["", "id", life]) {
      expect(isUpTo(id, messageIdOf(life, 1))).toBe(false);
      expect(isUpTo(messageIdOf(life, 1), id)).toBe(false);
    }
  });
});

describe("the set", () => {
  test.each([0, 1, 7, 8, 9, 127, 128, blockIds - 1, blockIds])("each id is a bit of its own: number %i", (number) => {
    const set = setOf([messageIdOf(life, number), undefined], [messageIdOf(life, number), undefined]);
    const all = Array.from({ length: 3 * blockIds }, (_, index) => index);
    expect(all.filter((each) => set.has(messageIdOf(life, each), undefined))).toEqual([number]);
  });

  test("a number of a life, or of a life and share group, is the id of it", () => {
    for (const number of [0, 1, 35, 36, 71, blockIds - 1, blockIds, 10 ** 12])
      for (const shared of [undefined, "$share/g/t"]) {
        const set = new MessageIdSet();
        set.addNumber(life + (shared ?? ""), number);
        expect(set.has(messageIdOf(life, number), shared)).toBe(true);
        for (const next of [number - 1, number + 1, number + blockIds].filter((each) => each >= 0))
          expect(set.has(messageIdOf(life, next), shared)).toBe(false);
        expect(set.has(messageIdOf(life, number), shared === undefined ? "$share/g/t" : undefined)).toBe(false);
        expect(set.has(messageIdOf(other, number), shared)).toBe(false);
        expect(written(set)).toEqual(written(setOf([messageIdOf(life, number), shared])));
      }
  });

  test("has what was added, by the way that it came, and nothing next to it", () => {
    const set = setOf([messageIdOf(life, 71), undefined], [messageIdOf(life, 5), "$share/g/t"]);
    expect(set.has(messageIdOf(life, 71), undefined)).toBe(true);
    for (const number of [70, 72, 71 + blockIds]) expect(set.has(messageIdOf(life, number), undefined)).toBe(false);
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
    expect(written(set).length).toBeLessThan((3 * blockIds) / 8);
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
          const number = Number.parseInt(id.slice(lifeChars), 36);
          if (pick(2) === 0) into.add(id, shared);
          else into.addNumber(id.slice(0, lifeChars) + (shared ?? ""), number);
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
