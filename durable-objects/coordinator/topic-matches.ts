/**
 * What a topic matches, remembered until a route changes: most publishes come on topics that have been published on
 * before. Beside the match it keeps the bytes that say it to each node, which are the same for every message.
 */
import type { NodeName } from "../../cluster/name.ts";
import type { RouteTable } from "../../cluster/routes.ts";
import type { ShareGroup } from "../../cluster/shared-sub.ts";
import { limits } from "../../mqtt/limits.ts";
import { sharedFilter } from "../../mqtt/topic.ts";
import { matchedBytes, type Matched } from "../rpc.ts";

export interface TopicMatch {
  /** The nodes with ordinary subscriptions that match. */
  readonly targets: readonly Target[];
  readonly groups: readonly MatchedGroup[];
}

export interface Target {
  readonly node: NodeName;
  /** The filters that matched, of `matchedBytes`. */
  readonly matched: Uint8Array;
}

export interface MatchedGroup {
  /** `$share/group/filter` */
  readonly key: string;
  readonly group: ShareGroup;
}

export class TopicMatches {
  readonly #routes: RouteTable;
  readonly #known = new Map<string, TopicMatch>();
  /** Of the route table, for what is known. */
  #version = -1;

  constructor(routes: RouteTable) {
    this.#routes = routes;
  }

  of(topic: string): TopicMatch {
    const { version } = this.#routes;
    if (version !== this.#version || this.#known.size >= limits.topicMatchesMax) this.#known.clear();
    this.#version = version;
    const known = this.#known.get(topic);
    if (known) return known;
    const match = this.#match(topic);
    if (isSmall(match)) this.#known.set(topic, match);
    return match;
  }

  #match(topic: string): TopicMatch {
    const matched = new Map<NodeName, Matched[]>();
    const groups: MatchedGroup[] = [];
    this.#routes.match(topic, (route) => {
      for (const node of route.nodes) addTo(matched, node, { key: route.filter, ordinal: 0 });
      for (const [name, group] of route.groups ?? []) groups.push({ key: sharedFilter(name, route.filter), group });
    });
    const targets = Array.from(matched, ([node, filters]) => ({ node, matched: matchedBytes(filters) }));
    return { targets, groups };
  }
}

/** What matches a great many filters is not worth its memory. */
function isSmall({ targets, groups }: TopicMatch): boolean {
  let bytes = 0;
  for (const { matched } of targets) bytes += matched.length;
  for (const { key } of groups) bytes += key.length;
  return bytes <= limits.topicMatchBytesMax;
}

function addTo<K, V>(lists: Map<K, V[]>, key: K, value: V): void {
  const list = lists.get(key);
  if (list) list.push(value);
  else lists.set(key, [value]);
}
