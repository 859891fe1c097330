/**
 * Authorization: may this client publish to this topic, subscribe to this filter?
 *
 *     { permission: "deny",  action: "subscribe", topics: ["secret/#"] }
 *     { permission: "allow", action: "all",       topics: ["c/${clientid}/#", "eq t/+"] }
 *
 * The first rule that names the client, the action and the topic decides. Without rules everything is
 * allowed; where there are rules, what none of them names is denied (G9).
 *
 * A subscription, whose topic is itself a filter, is named by a rule that covers it: "c/#" names "c/+/x", and "c/+" does
 * not name "c/#". So an allow never gives more than it says. A filter wider than a deny gets round it here ("#" is not
 * covered by "secret/#"), and therefore each delivery is asked for by its topic too: see `hasReadDenials`.
 * "eq t/+" is the text itself. Wildcards mean what they mean to MQTT: "#" does not name "$SYS/x".
 *
 * `${clientid}` and `${username}` stand for one whole level. A client chooses its own client id, so a
 * value that is not plainly one level ("a/b", "+", "#", or "$SYS" in the first place) is not put into a
 * filter: an allow then names nothing, a deny names everything below.
 *
 * Cost: the rules are walked for every publish and subscription, a level at a time. Keep them few.
 */

import { ReasonCode } from "./reason-codes.ts";

export interface Rule {
  readonly permission: "allow" | "deny";
  readonly action: "publish" | "subscribe" | "all";
  /** What a denied SUBSCRIBE is told: 0x87 Not authorized, or 0x80 Unspecified error, which does not reveal the reason. */
  readonly reason_code?: 0x80 | 0x87 | undefined;
  /** Filters, or "eq " and a literal topic; undefined: every topic, those of $ too. */
  readonly topics?: readonly string[] | undefined;
  /** Undefined: every user, and clients without a user name. */
  readonly username?: string | undefined;
  /** Undefined: every client id. */
  readonly clientid?: string | undefined;
}

export interface Who {
  readonly clientId: string;
  readonly username: string | undefined;
}

const literalPrefix = "eq ";

/**
 * Whether the rules allow it. `topic` is a valid topic name to publish to, or a valid filter to
 * subscribe to, that of a shared subscription without "$share/group/".
 */
export function authorize(rules: readonly Rule[], who: Who, action: "publish" | "subscribe", topic: string): boolean {
  return refusalOf(rules, who, action, topic) === undefined;
}

/** The reason code of a refusal; undefined: the rules allow it. */
export function refusalOf(
  rules: readonly Rule[],
  who: Who,
  action: "publish" | "subscribe",
  topic: string,
): 0x80 | 0x87 | undefined {
  if (rules.length === 0) return undefined;
  const levels = topic.split("/");
  for (const rule of rules) {
    if (rule.action !== "all" && rule.action !== action) continue;
    if (rule.username !== undefined && rule.username !== who.username) continue;
    if (rule.clientid !== undefined && rule.clientid !== who.clientId) continue;
    if (rule.topics !== undefined && !rule.topics.some((text) => names(rule, text, who, topic, levels))) continue;
    return rule.permission === "allow" ? undefined : (rule.reason_code ?? ReasonCode.NotAuthorized);
  }
  return ReasonCode.NotAuthorized;
}

/** Whether a granted subscription may still match a topic that is denied: each delivery is then to be authorized. */
export function hasReadDenials(rules: readonly Rule[]): boolean {
  return rules.some((rule) => rule.permission === "deny" && rule.action !== "publish");
}

/** What is wrong with a topic of a rule, in one line; undefined: nothing. */
export function faultOfRuleTopic(text: string): string | undefined {
  const literal = text.startsWith(literalPrefix);
  const topic = literal ? text.slice(literalPrefix.length) : text;
  if (topic === "") return "a topic is not empty";
  if (literal && topic.includes("${")) return 'a topic with "eq " has no ${clientid} or ${username}';
  const levels = topic.split("/");
  for (const [index, level] of levels.entries()) {
    if (level.includes("#") && (level !== "#" || index < levels.length - 1)) return '"#" is the whole last level';
    if (level.includes("+") && level !== "+") return '"+" is a whole level';
    if (level.includes("${") && !isPlaceholder(level))
      return "only ${clientid} and ${username} are filled in, as whole levels";
  }
  return undefined;
}

function names(rule: Rule, text: string, who: Who, topic: string, levels: readonly string[]): boolean {
  if (text.startsWith(literalPrefix)) return text.slice(literalPrefix.length) === topic;
  const filter = fillIn(rule, text, who);
  if (filter === undefined) return false;
  return covers(filter, levels);
}

/** The levels of the rule's filter for this client; undefined: there are none. */
function fillIn(rule: Rule, text: string, who: Who): readonly string[] | undefined {
  const levels = text.split("/");
  if (!text.includes("${")) return levels;
  for (const [index, level] of levels.entries()) {
    if (!isPlaceholder(level)) continue;
    const value = level === "${clientid}" ? who.clientId : who.username;
    // Who has no user name has no topics named after it, neither allowed nor denied.
    if (value === undefined) return undefined;
    if (/[/+#]/.test(value) || (index === 0 && value.startsWith("$"))) {
      return rule.permission === "allow" ? undefined : [...levels.slice(0, index), "#"];
    }
    levels[index] = value;
  }
  return levels;
}

function isPlaceholder(level: string): boolean {
  return level === "${clientid}" || level === "${username}";
}

/** Whether every topic that the narrow filter (or topic name) matches is matched by the wide one. */
function covers(wide: readonly string[], narrow: readonly string[]): boolean {
  if (isKeptOut(wide, narrow)) return false;
  for (const [index, level] of wide.entries()) {
    if (level === "#") return true;
    const other = narrow[index];
    if (other === undefined || other === "#") return false;
    if (level !== "+" && level !== other) return false;
  }
  return wide.length === narrow.length;
}

/** [MQTT-4.7.2-1] a filter that starts with a wildcard does not match a topic that starts with $ */
function isKeptOut(filter: readonly string[], other: readonly string[]): boolean {
  return (filter[0] === "+" || filter[0] === "#") && other[0]?.startsWith("$") === true;
}
