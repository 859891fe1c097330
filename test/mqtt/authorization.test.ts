import { describe, expect, it } from "vitest";
import { authorize, faultOfRuleTopic, hasReadDenials, refusalOf } from "../../mqtt/authorization.ts";
import type { Rule } from "../../mqtt/authorization.ts";
import { matches } from "../../mqtt/topic.ts";
import { random } from "../support/random.ts";

const alice = { clientId: "c1", username: "alice" };
const nobody = { clientId: "c2", username: undefined };

function allow(...topics: string[]): Rule {
  return { permission: "allow", action: "all", topics };
}

function deny(...topics: string[]): Rule {
  return { permission: "deny", action: "all", topics };
}

const allowAll: Rule = { permission: "allow", action: "all" };

describe("[G9] authorization", () => {
  it("allows everything without rules", () => {
    expect(authorize([], nobody, "publish", "$SYS/x")).toBe(true);
  });

  it("denies what no rule names", () => {
    expect(authorize([allow("a")], alice, "publish", "b")).toBe(false);
    expect(authorize([deny("a")], alice, "publish", "b")).toBe(false);
  });

  it("lets the first rule that names it decide", () => {
    expect(authorize([deny("a/b"), allow("a/#")], alice, "publish", "a/b")).toBe(false);
    expect(authorize([allow("a/#"), deny("a/b")], alice, "publish", "a/b")).toBe(true);
    expect(authorize([deny("a/b"), allowAll], alice, "publish", "a/c")).toBe(true);
  });

  it("tells publish from subscribe", () => {
    const rules: Rule[] = [
      { permission: "deny", action: "publish", topics: ["a"] },
      { permission: "allow", action: "all" },
    ];
    expect(authorize(rules, alice, "publish", "a")).toBe(false);
    expect(authorize(rules, alice, "subscribe", "a")).toBe(true);
  });

  it("tells a refused subscriber what the rule says", () => {
    const silent: Rule = { permission: "deny", action: "subscribe", topics: ["a"], reason_code: 0x80 };
    expect(refusalOf([silent, allowAll], alice, "subscribe", "a")).toBe(0x80);
    expect(refusalOf([deny("a"), allowAll], alice, "subscribe", "a")).toBe(0x87);
    expect(refusalOf([allow("b")], alice, "subscribe", "a")).toBe(0x87);
    expect(refusalOf([silent, allowAll], alice, "publish", "a")).toBeUndefined();
  });

  it("knows whether granted subscriptions may still match what is denied", () => {
    expect(hasReadDenials([allowAll, deny("a")])).toBe(true);
    expect(hasReadDenials([{ permission: "deny", action: "publish" }, allowAll])).toBe(false);
    expect(hasReadDenials([])).toBe(false);
  });

  it("tells who", () => {
    const rules: Rule[] = [
      { permission: "allow", action: "all", username: "alice", topics: ["u"] },
      { permission: "allow", action: "all", clientid: "c2", topics: ["c"] },
      { permission: "allow", action: "all", username: "alice", clientid: "c2", topics: ["both"] },
    ];
    expect(authorize(rules, alice, "publish", "u")).toBe(true);
    expect(authorize(rules, nobody, "publish", "u")).toBe(false);
    expect(authorize(rules, nobody, "publish", "c")).toBe(true);
    expect(authorize(rules, alice, "publish", "c")).toBe(false);
    expect(authorize(rules, alice, "publish", "both")).toBe(false);
    expect(authorize(rules, { clientId: "c2", username: "alice" }, "publish", "both")).toBe(true);
  });

  it.each([
    ["a/#", "a/#", true],
    ["a/#", "a", true],
    ["a/#", "a/+/b", true],
    ["a/#", "a/b/#", true],
    ["a/+", "a/+", true],
    ["a/+", "a/b", true],
    ["a/+", "a/#", false],
    ["a/+", "a", false],
    ["a/b", "a/+", false],
    ["a/b", "a/#", false],
    ["a/b/#", "a/#", false],
    ["a/+/c", "a/b/+", false],
    ["+/b", "#", false],
    ["#", "#", true],
    ["#", "+/a", true],
    ["#", "$SYS/#", false],
    ["+/x", "$SYS/x", false],
    ["$SYS/#", "$SYS/+", true],
    ["eq a/+", "a/+", true],
    ["eq a/+", "a/b", false],
    ["eq #", "#", true],
    ["eq #", "a/#", false],
  ])("allow %s covers a subscription to %s: %s", (rule, filter, allowed) => {
    expect(authorize([allow(rule)], alice, "subscribe", filter)).toBe(allowed);
  });

  it.each([
    ["secret/#", "secret/x", true],
    ["secret/#", "secret", true],
    ["secret/#", "secret/+/x", true],
    ["secret/#", "#", false],
    ["secret/#", "+", false],
    ["secret/#", "+/x", false],
    ["secret/#", "+/#", false],
    ["secret/#", "public/#", false],
    ["secret/x", "+/+", false],
    ["secret/x", "secret/+/#", false],
    ["secret/x", "+/y", false],
    ["secret/x", "+", false],
    ["secret/x", "secret/x/+", false],
    ["a/+/c", "a/b/+", false],
    ["a/+/c", "+/b/d", false],
    ["$SYS/#", "#", false],
    ["$SYS/#", "+/brokers", false],
    ["$SYS/#", "$SYS/brokers", true],
    ["#", "$SYS/#", false],
    ["eq #", "#", true],
    ["eq #", "a/#", false],
  ])("deny %s covers a subscription to %s: %s", (rule, filter, denied) => {
    expect(authorize([deny(rule), allowAll], alice, "subscribe", filter)).toBe(!denied);
  });

  it("fills in the client id and the user name, level by level", () => {
    const rules = [allow("c/${clientid}/#", "u/${username}/+"), allow("${username}/${clientid}")];
    expect(authorize(rules, alice, "publish", "c/c1/x/y")).toBe(true);
    expect(authorize(rules, alice, "publish", "c/c2/x")).toBe(false);
    expect(authorize(rules, alice, "subscribe", "c/+/x")).toBe(false);
    expect(authorize(rules, alice, "subscribe", "c/c1/#")).toBe(true);
    expect(authorize(rules, alice, "publish", "u/alice/x")).toBe(true);
    expect(authorize(rules, alice, "publish", "alice/c1")).toBe(true);
    expect(authorize(rules, nobody, "publish", "u/undefined/x")).toBe(false);
    expect(authorize(rules, nobody, "publish", "u/${username}/x")).toBe(false);
    expect(authorize(rules, { clientId: "${username}", username: "alice" }, "publish", "c/alice/x")).toBe(false);
  });

  it.each(["+", "#", "a/b", "a/#", "c1/+", "/"])(
    "a client id %j widens no allow, and slips under no deny",
    (clientId) => {
      const who = { clientId, username: clientId };
      const allowOwn = [allow("c/${clientid}/#", "c/${username}", "${clientid}")];
      const denyOwn = [deny("c/${clientid}/x"), allowAll];
      for (const topic of ["c/c1/x", "c/a/b", "c/a/b/x", "c/x", "a/b", "a", "c//"]) {
        expect(authorize(allowOwn, who, "publish", topic)).toBe(false);
        expect(authorize(allowOwn, who, "subscribe", topic)).toBe(false);
        expect(authorize(denyOwn, who, "publish", topic)).toBe(!topic.startsWith("c/"));
      }
      expect(authorize(allowOwn, who, "subscribe", `c/${clientId}`)).toBe(false);
      expect(authorize(denyOwn, who, "subscribe", "c/+/x")).toBe(false);
    },
  );

  it("gives a client no $-topics for calling itself $SYS", () => {
    const who = { clientId: "$SYS", username: undefined };
    expect(authorize([allow("${clientid}/#")], who, "subscribe", "$SYS/#")).toBe(false);
    expect(authorize([allow("c/${clientid}/#")], who, "subscribe", "c/$SYS/#")).toBe(true);
  });

  it.each([1, 2])("reads filters as the topics that they match, seed %d", (seed) => {
    const next = random(seed);
    const pick = (names: readonly string[]): string => names[Math.floor(next() * names.length)] ?? "";
    const words = ["a", "b", "$c"];
    const topics = words.flatMap((x) => [
      x,
      ...words.flatMap((y) => [`${x}/${y}`, ...words.map((z) => `${x}/${y}/${z}`)]),
    ]);
    const filter = (): string => {
      const levels = Array.from({ length: 1 + Math.floor(next() * 3) }, () => pick([...words, "+"]));
      if (next() < 0.3) levels[levels.length - 1] = "#";
      return levels.join("/");
    };
    const outcomes = { covered: 0, touched: 0, apart: 0 };
    for (let i = 0; i < 600; i++) {
      const [rule, wanted] = [filter(), filter()];
      const own = topics.filter((topic) => matches(wanted, topic));
      const covered = own.every((topic) => matches(rule, topic));
      const touched = own.some((topic) => matches(rule, topic));
      outcomes[covered ? "covered" : touched ? "touched" : "apart"]++;
      // Three levels are not all topics: a filter may reach deeper than the ones it is compared on.
      const allowed = authorize([allow(rule)], alice, "subscribe", wanted);
      if (allowed) expect([rule, wanted, covered]).toEqual([rule, wanted, true]);
      const denied = !authorize([deny(rule), allowAll], alice, "subscribe", wanted);
      if (denied) expect([rule, wanted, covered]).toEqual([rule, wanted, true]);
      // What a deny touches and does not cover is kept back at delivery, topic by topic.
      for (const topic of own) {
        const delivered = authorize([deny(rule), allowAll], alice, "subscribe", topic);
        expect([rule, topic, delivered]).toEqual([rule, topic, !matches(rule, topic)]);
      }
      const matched = topics.filter((topic) => matches(rule, topic));
      expect(topics.filter((topic) => authorize([allow(rule)], alice, "publish", topic))).toEqual(matched);
      expect(topics.filter((topic) => !authorize([deny(rule), allowAll], alice, "publish", topic))).toEqual(matched);
    }
    for (const count of Object.values(outcomes)) expect(count).toBeGreaterThan(20);
  });
});

describe("a rule's topic", () => {
  it.each(["a", "a/#", "+/b", "#", "eq a/+", "c/${clientid}/#", "${username}", "eq #", "/", "$SYS/#", "a b"])(
    "%s",
    (text) => {
      expect(faultOfRuleTopic(text)).toBeUndefined();
    },
  );

  it.each(["", "eq ", "a/#/b", "a#", "a/b+", "c-${clientid}", "${cert_common_name}/#", "eq ${clientid}", "${clientid"])(
    "%j has a fault",
    (text) => {
      expect(faultOfRuleTopic(text)).toMatch(/^[^\n]+$/);
    },
  );
});
