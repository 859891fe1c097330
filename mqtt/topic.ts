/**
 * Topic names and topic filters: what is well formed, and what matches what.
 *
 *     $share/workers/sensors/+/temp     a shared filter: group "workers", filter "sensors/+/temp"
 *     $queue/jobs/#                     EMQX's short form: group "$queue", filter "jobs/#"
 *     $delayed/30/alarms                a topic name: "alarms", published 30 seconds from now
 *
 * `matches` is the definition of matching that the topic trie is tested against: clear, not fast.
 * Everything here takes decoded strings; their UTF-8 is checked where they are read.
 */
import { MqttError, ReasonCode } from "./reason-codes.ts";

const sharePrefix = "$share/";
const queuePrefix = "$queue/";
const delayedPrefix = "$delayed/";

/** The longest delay of a `$delayed` publish in seconds, as in EMQX: about 49.7 days. */
const delaySecondsMax = 4_294_967;

/** What a subscription asks for: the filter to match, and the group that shares it. */
export interface Subscribed {
  readonly filter: string;
  readonly group: string | undefined;
}

/** Refuses a topic name that is empty, holds a wildcard or is too deep: MqttError 0x90. */
export function checkTopicName(topic: string, levelsMax: number): void {
  // [MQTT-4.7.3-1]
  if (topic === "") throw new MqttError(ReasonCode.TopicNameInvalid, "topic name is empty");
  // [MQTT-3.3.2-2]
  if (hasWildcard(topic)) throw new MqttError(ReasonCode.TopicNameInvalid, "topic name contains a wildcard");
  if (levelCount(topic) > levelsMax) {
    throw new MqttError(ReasonCode.TopicNameInvalid, `topic name has more than ${levelsMax} levels`);
  }
}

/**
 * Refuses a filter that is empty or misplaces a wildcard (MqttError 0x81), is shared in the wrong
 * form (0x82), or is well formed but too deep (0x8F, which may also be answered in a SUBACK).
 */
export function checkTopicFilter(filter: string, levelsMax: number): void {
  // [MQTT-4.7.3-1]
  if (filter === "") throw new MqttError(ReasonCode.MalformedPacket, "topic filter is empty");
  checkWildcards(filter);
  const shared = parseShared(filter);
  if (shared.group !== undefined) checkShared(shared.group, shared.filter);
  if (levelCount(shared.filter) > levelsMax) {
    throw new MqttError(ReasonCode.TopicFilterInvalid, `topic filter has more than ${levelsMax} levels`);
  }
}

/** The group of `$queue/{filter}`: a name that no `$share/{group}/...` can have. */
const queueGroup = "$queue/";

/** `$share/{group}/{filter}` or `$queue/{filter}`, as the subscription had it: what `parseShared` took apart. */
export function sharedFilter(group: string, filter: string): string {
  return group === queueGroup ? queuePrefix + filter : `${sharePrefix}${group}/${filter}`;
}

/** Whether the filter is a share group's; it may be malformed. */
export function isShared(filter: string): boolean {
  return filter.startsWith(sharePrefix) || filter.startsWith(queuePrefix);
}

/** Takes a filter apart. A malformed shared filter comes back with an empty group or filter. */
export function parseShared(filter: string): Subscribed {
  if (filter.startsWith(queuePrefix)) return { filter: filter.slice(queuePrefix.length), group: queueGroup };
  if (!filter.startsWith(sharePrefix)) return { filter, group: undefined };
  const slash = filter.indexOf("/", sharePrefix.length);
  if (slash === -1) return { filter: "", group: filter.slice(sharePrefix.length) };
  return { filter: filter.slice(slash + 1), group: filter.slice(sharePrefix.length, slash) };
}

/**
 * Takes a `$delayed/{seconds}/{topic}` name apart; undefined if the topic is not a delayed one. As in EMQX a number above
 * the longest delay is a time, in seconds since the epoch; one that is past is due at once.
 * MqttError 0x90 if it is neither, or no topic follows.
 * @param now ms since the epoch
 */
export function parseDelayed(name: string, now: number): { delaySeconds: number; topic: string } | undefined {
  if (!name.startsWith(delayedPrefix)) return undefined;
  const slash = name.indexOf("/", delayedPrefix.length);
  const digits = name.slice(delayedPrefix.length, slash === -1 ? name.length : slash);
  const seconds = /^[0-9]{1,10}$/.test(digits) ? Number(digits) : Number.NaN;
  const delaySeconds = seconds > delaySecondsMax ? Math.max(0, seconds - Math.floor(now / 1000)) : seconds;
  if (!(delaySeconds <= delaySecondsMax)) {
    throw new MqttError(
      ReasonCode.TopicNameInvalid,
      `$delayed needs at most ${delaySecondsMax} whole seconds, or a time`,
    );
  }
  if (slash === -1 || slash === name.length - 1) {
    throw new MqttError(ReasonCode.TopicNameInvalid, "$delayed has no topic after the delay");
  }
  return { delaySeconds, topic: name.slice(slash + 1) };
}

export function hasWildcard(filter: string): boolean {
  return filter.includes("+") || filter.includes("#");
}

/** Whether a well-formed filter (not a shared one: parse it first) matches a topic name. */
export function matches(filter: string, topic: string): boolean {
  // [MQTT-4.7.2-1] a leading wildcard does not reach into topics that begin with $.
  if (topic.startsWith("$") && (filter.startsWith("+") || filter.startsWith("#"))) return false;
  const filterLevels = filter.split("/");
  const topicLevels = topic.split("/");
  for (const [index, level] of filterLevels.entries()) {
    // [MQTT-4.7.1-2] "a/#" also matches its parent "a".
    if (level === "#") return topicLevels.length >= index;
    if (index >= topicLevels.length) return false;
    if (level !== "+" && level !== topicLevels[index]) return false;
  }
  return filterLevels.length === topicLevels.length;
}

function checkWildcards(filter: string): void {
  if (!hasWildcard(filter)) return;
  const levels = filter.split("/");
  for (const [index, level] of levels.entries()) {
    // [MQTT-4.7.1-1] `#` is a whole level, and the last.
    if (level.includes("#") && (level !== "#" || index !== levels.length - 1)) {
      throw new MqttError(ReasonCode.MalformedPacket, "# is not the last level of the topic filter");
    }
    // [MQTT-4.7.1-2] in 5.0, [MQTT-4.7.1-3] in 3.1.1
    if (level.includes("+") && level !== "+") {
      throw new MqttError(ReasonCode.MalformedPacket, "+ is not a whole level of the topic filter");
    }
  }
}

function checkShared(group: string, filter: string): void {
  // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
  if (group === "" || hasWildcard(group)) {
    throw new MqttError(ReasonCode.ProtocolError, "share name is empty or contains a wildcard");
  }
  if (filter === "") throw new MqttError(ReasonCode.ProtocolError, "shared subscription has no topic filter");
  if (isShared(filter)) {
    throw new MqttError(ReasonCode.ProtocolError, "shared subscription of a shared subscription");
  }
}

function levelCount(topic: string): number {
  let levels = 1;
  for (let at = topic.indexOf("/"); at !== -1; at = topic.indexOf("/", at + 1)) levels++;
  return levels;
}
