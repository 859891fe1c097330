/**
 * The topic trie: which of the filters match this topic?
 *
 * A filter is one way from the root, level by level. What a level is called is not kept in it: a level is known by the
 * text of the way to it, so all that is kept of the trie is one entry a filter, and one for each "+" that filters go on
 * behind. The filters `sport/+/score`, `sport/+/player/+`, `sport/#` and `sport/tennis` make
 *
 *     filters   sport/+/score   sport/+/player/+   sport/#   sport/tennis      each with its value
 *     branches  sport/+ (2)                                                    filters that go on there
 *     counted   level 1: one "#", two "+"                  level 3: one "+"
 *
 * A match walks down the topic and asks at each level: is the way here with "#" a filter, is the way here with "+" a
 * branch, which is another way to walk; and at the end: is the way a filter. `sport/tennis/score` finds sport/#, and takes
 * the branch sport/+ as well, at the end of which it finds sport/+/score.
 *
 * Cost. get, set and delete: one look-up, and one for each "+" that is not last. match: each way hashes its part of the
 * topic once, and looks up at most two texts a level, none at levels where no filter has a wildcard. How many filters there
 * are makes no difference. There are as many ways as branches that match, in the worst case 2^d of them at depth d, if so
 * many filters were set, as in every trie; they are walked no deeper than there are wildcards, however long the topic is.
 *
 * Memory. As in packed-map.ts, for each filter and each branch: 13 to 20 bytes and its characters.
 *
 * Invariants. Filters are checked before they come here. No branch is kept that leads to no filter.
 */
import { writeText } from "../mqtt/strings.ts";
import { type KeyHash, keyBytesMax, PackedMap } from "./packed-map.ts";

const [hashByte, plusByte, slashByte] = [0x23, 0x2b, 0x2f];

export type Visit = (filter: string, value: number) => void;

/** A way through the trie that a topic goes. */
interface Way {
  readonly level: number;
  /** Where the next level begins in the topic; behind its end: there is none. */
  readonly at: number;
  /** The filter up to here is `prefix` and the topic between `from` and the slash before `at`. */
  readonly prefix: string;
  readonly from: number;
  /** The same in `#path`: its length and hash. */
  readonly length: number;
  readonly hash: number;
}

export class TopicTrie {
  readonly #hash: KeyHash;
  readonly #filters: PackedMap;
  readonly #branches: PackedMap;
  /** How many filters have the wildcard at each level. */
  readonly #hashes: number[] = [];
  readonly #pluses: number[] = [];
  /** The filter that a way stands for. */
  readonly #path = new Uint8Array(2 * keyBytesMax + 2);

  constructor(hash: KeyHash) {
    this.#hash = hash;
    this.#filters = new PackedMap(hash);
    this.#branches = new PackedMap(hash);
  }

  /** How many filters are set. */
  get size(): number {
    return this.#filters.size;
  }

  get bytes(): number {
    return this.#filters.bytes + this.#branches.bytes;
  }

  /** How many branches are kept. */
  get branches(): number {
    return this.#branches.size;
  }

  /** 0: the filter is not set. */
  get(filter: string): number {
    return this.#filters.get(filter);
  }

  /** Sets the value, above 0, of a valid filter, in the place of the one it had. */
  set(filter: string, value: number): void {
    const { size } = this.#filters;
    this.#filters.set(filter, value);
    if (this.#filters.size > size) this.#count(filter, 1);
  }

  /** Whether the filter was set. */
  delete(filter: string): boolean {
    const isDeleted = this.#filters.delete(filter);
    if (isDeleted) this.#count(filter, -1);
    return isDeleted;
  }

  /** All filters; those that it has come to may be deleted meanwhile. */
  entries(): Generator<[filter: string, value: number]> {
    return this.#filters.entries();
  }

  /** A filter that has come or gone. */
  #count(filter: string, change: 1 | -1): void {
    let level = 0;
    for (let at = 0; at <= filter.length; level++) {
      const slash = filter.indexOf("/", at);
      const end = slash === -1 ? filter.length : slash;
      const isLone = end === at + 1;
      if (isLone && filter[at] === "#") add(this.#hashes, level, change);
      if (isLone && filter[at] === "+") {
        add(this.#pluses, level, change);
        if (slash !== -1) this.#countBranch(filter.slice(0, end), change);
      }
      at = end + 1;
    }
  }

  #countBranch(branch: string, change: 1 | -1): void {
    const count = this.#branches.get(branch) + change;
    if (count > 0) this.#branches.set(branch, count);
    else this.#branches.delete(branch);
  }

  /** Visits each filter that matches the topic name, once each, in no order. */
  match(topic: string, visit: Visit): void {
    this.#walk(topic, { level: 0, at: 0, prefix: "", from: 0, length: 0, hash: this.#hash.empty }, visit);
  }

  #walk(topic: string, way: Way, visit: Visit): void {
    const { prefix, from } = way;
    let { level, at, length, hash } = way;
    const path = this.#path;
    const deepest = Math.max(this.#hashes.length, this.#pluses.length) - 1;
    for (; ; level++) {
      const isAtEnd = at > topic.length;
      if (isAtEnd) {
        const value = this.#filters.find(path, length, hash);
        if (value > 0) visit(prefix + topic.slice(from), value);
      }
      if (level > 0) {
        path[length++] = slashByte;
        hash = this.#hash.next(hash, slashByte);
      }
      const filterWith = (wildcard: string): string =>
        level === 0 ? wildcard : `${prefix + topic.slice(from, at - 1)}/${wildcard}`;
      // [MQTT-4.7.2-1] a filter that starts with a wildcard does not match a topic that starts with $
      const isWild = level > 0 || !topic.startsWith("$");
      // [MQTT-4.7.1-2] "#" stands for the level before it too, and for any number of levels after it
      if (isWild && (this.#hashes[level] ?? 0) > 0) {
        path[length] = hashByte;
        const value = this.#filters.find(path, length + 1, this.#hash.next(hash, hashByte));
        if (value > 0) visit(filterWith("#"), value);
      }
      if (isAtEnd) return;
      const slash = topic.indexOf("/", at);
      const end = slash === -1 ? topic.length : slash;
      if (isWild && (this.#pluses[level] ?? 0) > 0) {
        path[length] = plusByte;
        const below = this.#hash.next(hash, plusByte);
        if (slash === -1 || this.#branches.find(path, length + 1, below) > 0) {
          const on = {
            level: level + 1,
            at: end + 1,
            prefix: filterWith("+"),
            from: end,
            length: length + 1,
            hash: below,
          };
          this.#walk(topic, on, visit);
        }
      }
      // Behind the last wildcard of any filter there is one text to look up: with all that is left.
      const to = level < deepest ? end : topic.length;
      const written = writeText(topic, at, to, path, length) ?? 0;
      hash = this.#hash.all(hash, path, length, length + written);
      length += written;
      at = to + 1;
    }
  }
}

function add(counts: number[], at: number, change: 1 | -1): void {
  while (counts.length <= at) counts.push(0);
  counts[at]! += change;
  while (counts.at(-1) === 0) counts.pop();
}
