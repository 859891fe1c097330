/**
 * Authorization: may this client publish to this topic, subscribe to this filter?
 *
 *     { permission: "deny",  action: "subscribe", topics: ["secret/#"] }
 *     { permission: "allow", action: "all",       topics: ["c/${clientid}/#", "eq t/+"] }
 *
 * The first rule that names the client, the action and the topic decides. Without rules everything is
 * allowed; where there are rules, what none of them names is denied (G9).
 *
 * What "names" means for a subscription, whose topic is itself a filter, is read to the safe side:
 *
 *     allow names what it covers:       "c/#" allows "c/+/x", but "c/+" does not allow "c/#"
 *     deny names what it could touch:   "secret/#" denies "secret/x", and "#" and "+/x" too
 *
 * So an allow never gives more than it says, and no wider filter gets round a deny. "eq t/+" is the
 * text itself, in both. Wildcards mean what they mean to MQTT: "#" does not name "$SYS/x".
 *
 * `${clientid}` and `${username}` stand for one whole level. A client chooses its own client id, so a
 * value that is not plainly one level ("a/b", "+", "#", or "$SYS" in the first place) is not put into a
 * filter: an allow then names nothing, a deny names everything below.
 *
 * Cost: the rules are walked for every publish and subscription, a level at a time. Keep them few.
 */

export interface Rule {
  readonly permission: "allow" | "deny";
  readonly action: "publish" | "subscribe" | "all";
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
  if (rules.length === 0) return true;
  const levels = topic.split("/");
  for (const rule of rules) {
    if (rule.action !== "all" && rule.action !== action) continue;
    if (rule.username !== undefined && rule.username !== who.username) continue;
    if (rule.clientid !== undefined && rule.clientid !== who.clientId) continue;
    if (rule.topics === undefined || rule.topics.some((text) => names(rule, text, who, topic, levels))) {
      return rule.permission === "allow";
    }
  }
  return false;
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
  return rule.permission === "allow" ? covers(filter, levels) : overlaps(filter, levels);
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

/** Whether there is a topic that both filters (or topic names) match. */
function overlaps(one: readonly string[], other: readonly string[]): boolean {
  if (isKeptOut(one, other) || isKeptOut(other, one)) return false;
  for (let index = 0; index < Math.max(one.length, other.length); index++) {
    const a = one[index];
    const b = other[index];
    if (a === "#" || b === "#") return true;
    if (a === undefined || b === undefined) return false;
    if (a !== "+" && b !== "+" && a !== b) return false;
  }
  return true;
}

/** [MQTT-4.7.2-1] a filter that starts with a wildcard does not match a topic that starts with $ */
function isKeptOut(filter: readonly string[], other: readonly string[]): boolean {
  return (filter[0] === "+" || filter[0] === "#") && other[0]?.startsWith("$") === true;
}
