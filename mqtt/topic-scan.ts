/**
 * Skip-scan: finds the topics that match a filter, in a set ordered by their UTF-8 bytes, without looking at all of them.
 * After each topic looked at, `seekAfter` says where the next one that can match is, and the set is entered there:
 *
 *     d/+/c      enter at "d/"      what all that match begin with
 *     d/1/a      on to "d/1/c"      "a" is before "c"
 *     d/1/c      on to "d/10"       it matches, and nothing else below d/1 does: "0" is the character behind "/"
 *     d/2/a      ...
 *
 * Cost: a topic looked at for each match, and at most four for each value that a `+` takes. `d/7/#` looks at one topic
 * besides its matches, however many there are, and finds them in one `run`: nothing that does not match is among them.
 *
 * A topic and what is below it are not neighbours: "a", "a!", "a/b", "a0", because some characters are before "/".
 */

/** No topic has a smaller character. [MQTT-1.5.4-2] */
const smallest = "\u0001";
const behindSlash = "0";
const behindDollar = "%";

/**
 * The lower bound of what matches behind a topic that was looked at, whether that matches or not; "" is before all.
 * Greater than `topic`; undefined: nothing behind it can match.
 */
export function seekAfter(filter: string, topic: string): string | undefined {
  // [MQTT-4.7.2-1]
  if (topic.startsWith("$") && (filter.startsWith("+") || filter.startsWith("#"))) return behindDollar;
  /** In the topic, where the level of the last `+` ends: the last place where another character could stand. */
  let levelEnd: number | undefined;
  let at = 0;
  for (let inFilter = 0; inFilter < filter.length; inFilter++) {
    const character = filter[inFilter];
    if (character === "#") return topic + smallest;
    if (character === "+") {
      levelEnd = topic.indexOf("/", at);
      if (levelEnd === -1) return topic + smallest;
      at = levelEnd;
    } else if (character === topic[at]) {
      at++;
    } else if (at === topic.length || filter.codePointAt(inFilter)! > topic.codePointAt(at)!) {
      return topic.slice(0, at) + literal(filter, inFilter);
    } else {
      break;
    }
  }
  return levelEnd === undefined ? undefined : topic.slice(0, levelEnd) + behindSlash;
}

/**
 * From a topic that matches, the upper bound of a run: all topics from it on that are smaller match, too.
 *
 *     d/+/#   "d/1/a" begins a run up to "d/10"; "d/1" begins none, because "d/1!" comes before "d/1/"
 */
export function runEnd(filter: string, topic: string): string | undefined {
  // [MQTT-4.7.2-1]
  if (filter === "#") return topic < "$" ? "$" : "\u{10ffff}";
  if (!filter.endsWith("#")) return undefined;
  let slash = -1;
  for (let inFilter = 0; inFilter < filter.length; inFilter++) {
    if (filter[inFilter] !== "/") continue;
    slash = topic.indexOf("/", slash + 1);
    if (slash === -1) return undefined;
  }
  return topic.slice(0, slash) + behindSlash;
}

/** What all topics go on with that match the filter from here on. */
function literal(filter: string, from: number): string {
  const wildcard = filter.slice(from).search(/[+#]/);
  if (wildcard === -1) return filter.slice(from);
  // [MQTT-4.7.1-2] "a/#" matches "a" too; "a/" is next when "a" has been looked at.
  const end = from + wildcard;
  return filter.slice(from, filter[end] === "#" && end - 1 > from ? end - 1 : end);
}
