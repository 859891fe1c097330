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
  #young = new Map<string, string>();
  #youngBytes = 0;
  #old: ReadonlyMap<string, string> = new Map();

  /** The id of the latest message of the same life on the same topic. */
  get({ id, topic }: Named): string | undefined {
    return this.#get(lifeOf(id) + topic);
  }

  #get(key: string): string | undefined {
    return this.#young.get(key) ?? this.#old.get(key);
  }

  add({ id, topic }: Named): void {
    const key = lifeOf(id) + topic;
    const before = this.#get(key);
    const latest = before !== undefined && isUpTo(id, before) ? before : id;
    if (!this.#young.has(key)) this.#makeRoom(bytesOf(key, latest));
    this.#young.set(key, latest);
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

/** Of two strings and their place in the map, roughly. */
function bytesOf(key: string, id: string): number {
  return 2 * (key.length + id.length) + 64;
}
