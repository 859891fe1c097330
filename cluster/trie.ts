/**
 * The topic trie: which of the filters with wildcards match this topic?
 *
 * One level of a filter is one step down. The filters `sport/+/score`, `sport/#` and `+` make
 *
 *     root --plus--> .              value of "+"
 *     root --sport-> . --plus--> . --score--> .     value of "sport/+/score"
 *                    hash: value of "sport/#"
 *
 * "+" and "#" are fields of a level, not keys of its map: a step looks at one map and one field, and
 * the last level of "x/#" is not a level at all, but a value of the level "x". That is also why
 * "sport/#" matches "sport" with nothing done about it.
 *
 * Cost. get, set and delete: one step a level. match: at most two ways on from each level, by name and
 * by plus, so it visits no more levels than the trie has, and 2^d of them at depth d only if so many
 * filters were set; in an ordinary trie it is a few steps a level. It recurses no deeper than the trie,
 * and so than `mqtt.max_topic_levels`, however many levels the topic has.
 *
 * Memory. Most levels have one child or none, so a level has a map only from its second child on:
 * 125 bytes for a filter like `devices/1/#`, 300 for one like `c/1/cmd/+` (a million of them, Node 24).
 *
 * Invariants. Filters are checked before they come here. No level is kept that leads to no value.
 */

interface Level<T> {
  /** Set with `next`: the only named child. Beyond one child both are undefined and `nodes` is there. */
  name: string | undefined;
  next: Level<T> | undefined;
  nodes: Map<string, Level<T>> | undefined;
  plus: Level<T> | undefined;
  /** The value of the filter that ends with "/#" after this level. */
  hash: T | undefined;
  /** The value of the filter that ends at this level. */
  value: T | undefined;
}

export class TopicTrie<T extends {}> {
  readonly #root: Level<T> = newLevel();
  #size = 0;

  /** How many filters are set. */
  get size(): number {
    return this.#size;
  }

  get(filter: string): T | undefined {
    let level: Level<T> | undefined = this.#root;
    for (const name of filter.split("/")) {
      if (name === "#") return level.hash;
      level = child(level, name);
      if (level === undefined) return undefined;
    }
    return level.value;
  }

  /** Sets the value of a valid filter, in the place of the one it had. */
  set(filter: string, value: T): void {
    let level = this.#root;
    for (const name of filter.split("/")) {
      if (name === "#") {
        if (level.hash === undefined) this.#size++;
        level.hash = value;
        return;
      }
      level = child(level, name) ?? addChild(level, name);
    }
    if (level.value === undefined) this.#size++;
    level.value = value;
  }

  /** Whether the filter was set. */
  delete(filter: string): boolean {
    const deleted = deleteFrom(this.#root, filter.split("/"), 0);
    if (deleted) this.#size--;
    return deleted;
  }

  /** Visits the value of each filter that matches the topic name, once each, in no order. */
  match(topic: string, visit: (value: T) => void): void {
    const names = topic.split("/");
    // [MQTT-4.7.2-1] a filter that starts with a wildcard does not match a topic that starts with $
    if (topic.startsWith("$")) {
      const level = namedChild(this.#root, names[0] ?? "");
      if (level !== undefined) matchFrom(level, names, 1, visit);
    } else {
      matchFrom(this.#root, names, 0, visit);
    }
  }

  /** All values, in no order. */
  values(): Generator<T> {
    return valuesFrom(this.#root);
  }

  /** How many levels are held below the root: what the memory goes to. Counted by walking them all. */
  countLevels(): number {
    return countBelow(this.#root);
  }
}

function newLevel<T>(): Level<T> {
  return { name: undefined, next: undefined, nodes: undefined, plus: undefined, hash: undefined, value: undefined };
}

function matchFrom<T>(level: Level<T>, names: readonly string[], depth: number, visit: (value: T) => void): void {
  // [MQTT-4.7.1-2] "#" stands for the level before it too, and for any number of levels after it
  if (level.hash !== undefined) visit(level.hash);
  const name = names[depth];
  if (name === undefined) {
    if (level.value !== undefined) visit(level.value);
    return;
  }
  const named = namedChild(level, name);
  if (named !== undefined) matchFrom(named, names, depth + 1, visit);
  if (level.plus !== undefined) matchFrom(level.plus, names, depth + 1, visit);
}

function deleteFrom<T>(level: Level<T>, names: readonly string[], depth: number): boolean {
  const name = names[depth];
  if (name === undefined) {
    const found = level.value !== undefined;
    level.value = undefined;
    return found;
  }
  if (name === "#") {
    const found = level.hash !== undefined;
    level.hash = undefined;
    return found;
  }
  const below = child(level, name);
  if (below === undefined || !deleteFrom(below, names, depth + 1)) return false;
  if (isEmpty(below)) deleteChild(level, name);
  return true;
}

function* valuesFrom<T>(level: Level<T>): Generator<T> {
  if (level.value !== undefined) yield level.value;
  if (level.hash !== undefined) yield level.hash;
  if (level.plus !== undefined) yield* valuesFrom(level.plus);
  if (level.next !== undefined) yield* valuesFrom(level.next);
  if (level.nodes !== undefined) for (const below of level.nodes.values()) yield* valuesFrom(below);
}

function countBelow<T>(level: Level<T>): number {
  let count = 0;
  for (const below of [level.plus, level.next, ...(level.nodes?.values() ?? [])]) {
    if (below !== undefined) count += 1 + countBelow(below);
  }
  return count;
}

function isEmpty<T>(level: Level<T>): boolean {
  return (
    level.value === undefined &&
    level.hash === undefined &&
    level.plus === undefined &&
    level.next === undefined &&
    level.nodes === undefined
  );
}

/** The child for the level of a topic: a name only. */
function namedChild<T>(level: Level<T>, name: string): Level<T> | undefined {
  return level.name === name ? level.next : level.nodes?.get(name);
}

/** The child for the level of a filter: a name or "+". */
function child<T>(level: Level<T>, name: string): Level<T> | undefined {
  return name === "+" ? level.plus : namedChild(level, name);
}

function addChild<T>(level: Level<T>, name: string): Level<T> {
  const below = newLevel<T>();
  if (name === "+") {
    level.plus = below;
  } else if (level.nodes !== undefined) {
    level.nodes.set(name, below);
  } else if (level.name === undefined || level.next === undefined) {
    level.name = name;
    level.next = below;
  } else {
    level.nodes = new Map([
      [level.name, level.next],
      [name, below],
    ]);
    level.name = undefined;
    level.next = undefined;
  }
  return below;
}

function deleteChild<T>(level: Level<T>, name: string): void {
  if (name === "+") {
    level.plus = undefined;
  } else if (level.name === name) {
    level.name = undefined;
    level.next = undefined;
  } else {
    level.nodes?.delete(name);
    // A map that has shrunk stays until it is empty: a level that had many children will have them again.
    if (level.nodes?.size === 0) level.nodes = undefined;
  }
}
