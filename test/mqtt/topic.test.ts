import { describe, expect, test } from "vitest";
import { MqttError } from "../../mqtt/reason-codes.ts";
import { checkTopicFilter, checkTopicName, hasWildcard, matches, parseDelayed, parseShared } from "../../mqtt/topic.ts";

function reasonCodeOf(run: () => unknown): number | undefined {
  try {
    run();
  } catch (error) {
    if (error instanceof MqttError) return error.reasonCode;
    throw error;
  }
  return undefined;
}

describe("matching", () => {
  test.each([
    ["[MQTT-4.7.1-1]", "sport/tennis/player1/#", "sport/tennis/player1", true],
    ["[MQTT-4.7.1-1]", "sport/tennis/player1/#", "sport/tennis/player1/ranking", true],
    ["[MQTT-4.7.1-1]", "sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true],
    ["[MQTT-4.7.1-1]", "sport/#", "sport", true],
    ["[MQTT-4.7.1-1]", "sport/#", "sports", false],
    ["[MQTT-4.7.1-1]", "#", "a/b/c", true],
    ["[MQTT-4.7.1-1]", "a/b/#", "a", false],
    ["[MQTT-4.7.1-2]", "sport/tennis/+", "sport/tennis/player1", true],
    ["[MQTT-4.7.1-2]", "sport/tennis/+", "sport/tennis/player1/ranking", false],
    ["[MQTT-4.7.1-2]", "sport/+", "sport", false],
    ["[MQTT-4.7.1-2]", "sport/+", "sport/", true],
    ["[MQTT-4.7.1-2]", "+", "finance", true],
    ["[MQTT-4.7.1-2]", "+", "/finance", false],
    ["[MQTT-4.7.1-2]", "+/+", "/finance", true],
    ["[MQTT-4.7.1-2]", "/+", "/finance", true],
    ["[MQTT-4.7.2-1]", "#", "$SYS/uptime", false],
    ["[MQTT-4.7.2-1]", "+/uptime", "$SYS/uptime", false],
    ["[MQTT-4.7.2-1]", "$SYS/#", "$SYS/uptime", true],
    ["[MQTT-4.7.2-1]", "$SYS/+", "$SYS/uptime", true],
    ["[MQTT-4.7.3-4]", "ACCOUNTS", "Accounts", false],
    ["[MQTT-4.7.3-4]", "a", "a", true],
    ["[MQTT-4.7.3-4]", "a", "/a", false],
    ["[MQTT-4.7.3-4]", "a/", "a", false],
    ["[MQTT-4.7.3-4]", "a//b", "a//b", true],
    ["[MQTT-4.7.3-4]", "a/b", "a//b", false],
  ])("%s %s and %s", (_clause, filter, topic, expected) => {
    expect(matches(filter, topic)).toBe(expected);
  });
});

describe("topic filters", () => {
  test.each([
    "#",
    "+",
    "/",
    "a/+/b/#",
    "+/+",
    "/+",
    "a//#",
    "$share/g/#",
    "$share/g//",
    "$queue/a",
    "$SYS/#",
    "$share",
    "$queue",
  ])("%s is well formed", (filter) => {
    expect(reasonCodeOf(() => checkTopicFilter(filter, 8))).toBeUndefined();
  });

  test.each([
    ["[MQTT-4.7.3-1]", "", 0x81],
    ["[MQTT-4.7.1-1]", "a/#/b", 0x81],
    ["[MQTT-4.7.1-1]", "a#", 0x81],
    ["[MQTT-4.7.1-1]", "##", 0x81],
    ["[MQTT-4.7.1-2]", "a+/b", 0x81],
    ["[MQTT-4.7.1-2]", "a/+b", 0x81],
    ["[MQTT-4.7.1-1]", "$share/#/a", 0x81],
    ["[MQTT-4.8.2-1]", "$share//a", 0x82],
    ["[MQTT-4.8.2-2]", "$share/+/a", 0x82],
    ["[MQTT-4.8.2-2]", "$share/g", 0x82],
    ["[MQTT-4.8.2-2]", "$share/g/", 0x82],
    ["a queue", "$queue/", 0x82],
    ["shared twice", "$queue/$share/g/a", 0x82],
  ])("%s '%s' is refused with %d", (_clause, filter, reasonCode) => {
    expect(reasonCodeOf(() => checkTopicFilter(filter, 8))).toBe(reasonCode);
  });

  test("[G6] levels are bounded, those of a share name not among them", () => {
    expect(reasonCodeOf(() => checkTopicFilter("a/b/#", 3))).toBeUndefined();
    expect(reasonCodeOf(() => checkTopicFilter("a/b/c/#", 3))).toBe(0x8f);
    expect(reasonCodeOf(() => checkTopicFilter("$share/g/a/b/#", 3))).toBeUndefined();
  });

  test("a shared filter is taken apart", () => {
    expect(parseShared("$share/g/a/+")).toEqual({ group: "g", filter: "a/+" });
    expect(parseShared("$share/g//a")).toEqual({ group: "g", filter: "/a" });
    expect(parseShared("$queue/a")).toEqual({ group: "$queue/", filter: "a" });
    expect(parseShared("$shared/g/a")).toEqual({ group: undefined, filter: "$shared/g/a" });
    expect(parseShared("a/$share/g/b")).toEqual({ group: undefined, filter: "a/$share/g/b" });
  });

  test("a wildcard is found anywhere", () => {
    expect(hasWildcard("a/+/b")).toBe(true);
    expect(hasWildcard("#")).toBe(true);
    expect(hasWildcard("a/b")).toBe(false);
  });
});

describe("topic names", () => {
  test.each(["a", "/", "a/b", "$SYS/x", " ", "é"])("'%s' is well formed", (topic) => {
    expect(reasonCodeOf(() => checkTopicName(topic, 3))).toBeUndefined();
  });

  test.each([
    ["[MQTT-4.7.3-1]", ""],
    ["[MQTT-3.3.2-2]", "a/+"],
    ["[MQTT-3.3.2-2]", "a#b"],
    ["[G6]", "a/b/c/d"],
  ])("%s '%s' is refused", (_clause, topic) => {
    expect(reasonCodeOf(() => checkTopicName(topic, 3))).toBe(0x90);
  });
});

describe("delayed topics", () => {
  test.each([
    ["$delayed/15/x/y", { delaySeconds: 15, topic: "x/y" }],
    ["$delayed/0/x", { delaySeconds: 0, topic: "x" }],
    ["$delayed/4294967//x", { delaySeconds: 4_294_967, topic: "/x" }],
    ["$delayed/1700000030/x", { delaySeconds: 30, topic: "x" }],
    ["$delayed/1699999999/x", { delaySeconds: 0, topic: "x" }],
    ["$delayed/4294968/x", { delaySeconds: 0, topic: "x" }],
    ["delayed/15/x", undefined],
    ["$delayedx/15/x", undefined],
  ])("%s", (topic, expected) => {
    expect(parseDelayed(topic, 1_700_000_000_500)).toEqual(expected);
  });

  test.each([
    "$delayed/",
    "$delayed/15",
    "$delayed/15/",
    "$delayed//x",
    "$delayed/x/y",
    "$delayed/-1/x",
    "$delayed/1.5/x",
    "$delayed/1e3/x",
    "$delayed/9999999999/x",
    "$delayed/99999999999/x",
  ])("%s is refused", (topic) => {
    expect(reasonCodeOf(() => parseDelayed(topic, 1_700_000_000_500))).toBe(0x90);
  });
});
