import { limits } from "../../mqtt/limits.ts";
import { isUpTo, lifeOf } from "../../mqtt/message-id-set.ts";

interface Named {
  readonly id: string;
  readonly topic: string;
}

/**
 * The latest message of each life of a node on each topic. What has not been added to for long is forgotten (G6): when the
 * younger half of the memory is full it becomes the older one, and what was that is gone.
 */
export class LatestIds {
  /** By life, then by topic: a topic's hash is known, that of a key put together is not. */
  #young = new Map<string, Map<string, string>>();
  #youngBytes = 0;
  #old: ReadonlyMap<string, ReadonlyMap<string, string>> = new Map();

  /** The id of the latest message of the same life on the same topic. */
  get({ id, topic }: Named): string | undefined {
    const life = lifeOf(id);
    return this.#young.get(life)?.get(topic) ?? this.#old.get(life)?.get(topic);
  }

  add(message: Named): void {
    const { id, topic } = message;
    const life = lifeOf(id);
    const before = this.get(message);
    const latest = before !== undefined && isUpTo(id, before) ? before : id;
    if (!this.#young.get(life)?.has(topic)) this.#makeRoom(bytesOf(topic, latest));
    const young = this.#young.get(life);
    if (young) young.set(topic, latest);
    else this.#young.set(life, new Map([[topic, latest]]));
  }

  #makeRoom(bytes: number): void {
    if (this.#youngBytes + bytes > limits.latestIdsBytesMax / 2) {
      this.#old = this.#young;
      this.#young = new Map();
      this.#youngBytes = 0;
    }
    this.#youngBytes += bytes;
  }
}

/** Of two strings and their place in a map, roughly. */
function bytesOf(topic: string, id: string): number {
  return 2 * (topic.length + id.length) + 128;
}
