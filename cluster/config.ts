/**
 * The settings: EMQX's keys and defaults, from `[vars]` of wrangler.toml and from TRELLIS_ variables.
 *
 *     [vars.mqtt]                            TRELLIS_MQTT__SERVER_KEEPALIVE=60
 *     max_packet_size = "256KB"              TRELLIS_CLUSTER__CORE_NODES=core@weur.emqxcl
 *
 *     readSettings(env).mqtt -> { max_packet_size: 262144, server_keepalive: 60, ... }
 *
 * A variable is the path of a setting in capitals, "." as "__", its value JSON or plain text; it goes
 * before what wrangler.toml says. `env` holds other things too (bindings, secrets): they are not looked
 * at, but a TRELLIS_ variable that is no setting is an error, because it is a setting misspelt.
 *
 * All that is wrong is reported at once, a line each: the key, the value, what is allowed. Values of
 * `authentication` are secrets and appear in no message.
 */
import * as v from "valibot";

import { faultOfRuleTopic } from "../mqtt/authorization.ts";
import type { Rule } from "../mqtt/authorization.ts";
import type { MqttSettings } from "../mqtt/settings.ts";
import { isDnsLabel, isMember, parseNodeName } from "./name.ts";
import type { NodeName } from "./name.ts";
import { parsePasswordHash } from "./password-hash.ts";
import { sharedStrategies } from "./shared-sub.ts";
import type { SharedStrategy } from "./shared-sub.ts";
import { parseByteSize, parseDuration } from "./units.ts";

export interface Settings {
  readonly cluster: {
    readonly name: string;
    readonly core_nodes: readonly [NodeName, ...NodeName[]];
  };
  readonly node: {
    /** Nodes per location. */
    readonly slots: number;
    /** Clients per node. */
    readonly max_connections: number;
  };
  readonly mqtt: MqttSettings & { readonly shared_subscription_strategy: SharedStrategy };
  readonly durable_sessions: {
    /** Milliseconds; Infinity: until the session ends. */
    readonly message_retention_period: number;
  };
  readonly allow_anonymous: boolean;
  /** User name -> password hash, for `parsePasswordHash`. Without a prototype: look any name up. */
  readonly authentication: Readonly<Record<string, string>>;
  readonly authorization: readonly Rule[];
  /** Origins as browsers send them; "*": all. */
  readonly origins: readonly string[];
}

const variablePrefix = "TRELLIS_";
/** Variables with the prefix that are no settings. */
const otherVariables: ReadonlySet<string> = new Set(["TRELLIS_API_TOKEN"]);

/** Several cores are not there yet. */
const coreNodesMax = 1;
const originsMax = 1000;
/**
 * A message is one row on disk, and a row of a Durable Object holds 2 MB. Beside the packet's bytes there may be in it a
 * topic that came as an alias, the publisher's client id, a share group's filter, and subscription identifiers.
 */
const packetSizeMax = "1536KB";
const rulesMax = 1000;
const ruleTopicsMax = 100;
const usersMax = 10_000;
const shownCharsMax = 80;

const clusterTable = v.strictObject({
  name: v.optional(
    parsed(
      "allowed is a DNS label that is not a number: lower-case letters, digits and inner hyphens, at most 63",
      (input) => (typeof input === "string" && isDnsLabel(input) && !/^\d+$/.test(input) ? input : undefined),
    ),
    "emqxcl",
  ),
  core_nodes: v.optional(list("a list of node names", 1, coreNodesMax, text("a node name", faultOfNodeName))),
});

const nodeTable = v.strictObject({
  slots: v.optional(wholeNumber(1, 1000), 8),
  max_connections: v.optional(wholeNumber(1, 32_768), 10_000),
});

const mqttTable = v.strictObject({
  max_packet_size: v.optional(byteSize("1KB", packetSizeMax), "1MB"),
  max_topic_levels: v.optional(wholeNumber(1, 1024), 128),
  max_qos_allowed: v.optional(oneOf([0, 1, 2]), 2),
  max_topic_alias: v.optional(wholeNumber(0, 65_535), 65_535),
  retain_available: v.optional(oneOf([true, false]), true),
  wildcard_subscription: v.optional(oneOf([true, false]), true),
  shared_subscription: v.optional(oneOf([true, false]), true),
  shared_subscription_strategy: v.optional(oneOf(sharedStrategies), "round_robin"),
  max_inflight: v.optional(wholeNumber(1, 65_535), 32),
  max_awaiting_rel: v.optional(wholeNumber(1, 65_535), 100),
  max_mqueue_len: v.optional(wholeNumber(1, 100_000), 1000),
  // The longest that MQTT can say is 2^32 - 1 seconds. [MQTT 3.1.2.11.2]
  session_expiry_interval: v.optional(duration("0s", "4294967295s"), "2h"),
  server_keepalive: v.optional(
    parsed<number | "disabled">('allowed are "disabled" and whole numbers of seconds from 1 to 65535', (input) =>
      input === "disabled" || isWholeNumber(input, 1, 65_535) ? input : undefined,
    ),
    "disabled",
  ),
  idle_timeout: v.optional(duration("100ms", "1h"), "15s"),
});

const durableSessionsTable = v.strictObject({
  message_retention_period: v.optional(
    parsed('allowed are "infinity" and durations like "7d" or "12h", from 1s', (input) =>
      input === "infinity" ? Infinity : within(parseDuration(input), 1000, Number.MAX_SAFE_INTEGER),
    ),
    "infinity",
  ),
});

const ruleTable = v.strictObject({
  permission: oneOf(["allow", "deny"]),
  action: oneOf(["publish", "subscribe", "all"]),
  reason_code: v.optional(oneOf([0x80, 0x87])),
  topics: v.optional(list("a list of topics", 1, ruleTopicsMax, text("a topic filter", faultOfRuleTopic))),
  username: v.optional(text("a user name", faultOfWho)),
  clientid: v.optional(text("a client id", faultOfWho)),
});

const tables = { cluster: clusterTable, node: nodeTable, mqtt: mqttTable, durable_sessions: durableSessionsTable };
const allSettings = v.object({
  cluster: v.optional(clusterTable, {}),
  node: v.optional(nodeTable, {}),
  mqtt: v.optional(mqttTable, {}),
  durable_sessions: v.optional(durableSessionsTable, {}),
  allow_anonymous: v.optional(oneOf([true, false])),
  authorization: v.optional(
    v.pipe(v.array(ruleTable), v.maxLength(rulesMax, `allowed are at most ${rulesMax} rules`)),
    [],
  ),
  origins: v.optional(list("a list of origins", 0, originsMax, text("an origin", faultOfOrigin)), []),
});

const topNames: readonly string[] = [...Object.keys(allSettings.entries), "authentication"];
const settingPaths: readonly string[] = [
  ...topNames,
  ...Object.entries(tables).flatMap(([table, { entries }]) => Object.keys(entries).map((key) => `${table}.${key}`)),
];

/**
 * Reads the settings from the environment of a worker. `LOOPBACK` = "true" says that the broker listens
 * on loopback only, where `allow_anonymous` is true by default.
 * Throws an Error with a line for each thing that is wrong.
 */
export function readSettings(env: Readonly<Record<string, unknown>>): Settings {
  const problems: string[] = [];
  const { authentication, ...given } = gather(env, problems);
  const users = readUsers(authentication, problems);
  const result = v.safeParse(allSettings, given, { abortPipeEarly: true });
  if (!result.success) problems.push(...result.issues.map(describeIssue));
  if (!result.success || problems.length > 0) throw new Error(problems.join("\n"));

  const { cluster, node, mqtt, durable_sessions, authorization, origins } = result.output;
  const [coreNode = `core@local.${cluster.name}`] = cluster.core_nodes ?? [];
  if (!isMember(coreNode, cluster.name)) {
    throw new Error(
      `cluster.core_nodes: ${show(coreNode)}: allowed are hosts that end in ".${cluster.name}" (cluster.name)`,
    );
  }
  const { server_keepalive } = mqtt;
  return {
    cluster: { name: cluster.name, core_nodes: [coreNode] },
    node,
    mqtt: { ...mqtt, server_keepalive: server_keepalive === "disabled" ? undefined : server_keepalive },
    durable_sessions,
    allow_anonymous: result.output.allow_anonymous ?? env["LOOPBACK"] === "true",
    authentication: users,
    authorization,
    origins,
  };
}

// ---- from env to one object -----------------------------------------------------------------------------------------

type Given = Record<string, unknown>;

function gather(env: Given, problems: string[]): Given {
  const given: Given = {};
  for (const name of topNames) {
    if (env[name] !== undefined) put(given, name, fromText(env[name]), problems);
  }
  // In the order of the names: TRELLIS_MQTT goes before TRELLIS_MQTT__MAX_INFLIGHT.
  for (const variable of Object.keys(env).sort()) {
    if (!variable.startsWith(variablePrefix) || otherVariables.has(variable)) continue;
    if (env[variable] === undefined) continue;
    const path = variable.slice(variablePrefix.length).toLowerCase().replaceAll("__", ".");
    if (!settingPaths.includes(path)) {
      problems.push(`${show(variable)} is not a setting: did you mean ${variableOf(nearest(path, settingPaths))}?`);
      continue;
    }
    put(given, path, fromText(env[variable]), problems);
  }
  return given;
}

function put(given: Given, path: string, value: unknown, problems: string[]): void {
  const [top = "", key] = path.split(".");
  const part = key === undefined ? value : { [key]: value };
  if (top !== "authentication" && holdsHash(value)) {
    problems.push(`${path}: allowed is no password hash: its place is authentication`);
  } else if (!(top in tables)) {
    given[top] = value;
  } else if (isTable(part)) {
    given[top] = { ...(given[top] as Given | undefined), ...part };
  } else {
    problems.push(`${path} = ${show(value)}: allowed is a table`);
  }
}

function holdsHash(value: unknown): boolean {
  return JSON.stringify(value ?? null).includes("$scrypt$");
}

/** JSON if it is JSON, else the text itself. */
function fromText(value: unknown): unknown {
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value) as unknown;
  } catch {
    return value;
  }
}

function isTable(value: unknown): value is Given {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

// ---- kinds of values ------------------------------------------------------------------------------------------------

/** A value that `parse` understands; undefined from it: what is allowed is said. */
function parsed<T>(allowed: string, parse: (input: unknown) => T | undefined): v.GenericSchema<unknown, T> {
  return v.pipe(
    v.unknown(),
    v.rawTransform<unknown, T>(({ dataset, addIssue, NEVER }) => {
      const value = parse(dataset.value);
      if (value !== undefined) return value;
      addIssue({ message: allowed });
      return NEVER;
    }),
  );
}

function oneOf<const T extends string | number | boolean>(allowed: readonly T[]): v.GenericSchema<unknown, T> {
  return parsed(`allowed are ${allowed.join(", ")}`, (input) => allowed.find((each) => each === input));
}

function wholeNumber(min: number, max: number): v.GenericSchema<unknown, number> {
  return parsed(`allowed are whole numbers from ${min} to ${max}`, (input) =>
    isWholeNumber(input, min, max) ? input : undefined,
  );
}

function byteSize(min: string, max: string): v.GenericSchema<unknown, number> {
  return parsed(`allowed are sizes like 1024, "256KB" or "1MB", from ${min} to ${max}`, (input) =>
    within(parseByteSize(input), parseByteSize(min), parseByteSize(max)),
  );
}

function duration(min: string, max: string): v.GenericSchema<unknown, number> {
  return parsed(
    `allowed are durations like "1h30m", "15s", "500ms" or a number of milliseconds, from ${min} to ${max}`,
    (input) => within(parseDuration(input), parseDuration(min), parseDuration(max)),
  );
}

/** A text without a fault; `faultOf` says in a few words what is wrong. */
function text(kind: string, faultOf: (text: string) => string | undefined): v.GenericSchema<unknown, string> {
  return v.pipe(
    v.unknown(),
    v.rawTransform<unknown, string>(({ dataset: { value }, addIssue, NEVER }) => {
      const fault = typeof value === "string" ? faultOf(value) : "that is no text";
      if (typeof value === "string" && fault === undefined) return value;
      addIssue({ message: `allowed is ${kind}${fault === undefined ? "" : ` (${fault})`}` });
      return NEVER;
    }),
  );
}

/** A list of texts, each once; a text with commas is a list too. */
function list(
  kind: string,
  lengthMin: number,
  lengthMax: number,
  item: v.GenericSchema<unknown, string>,
): v.GenericSchema<unknown, string[]> {
  const items = v.pipe(
    v.array(item, `allowed is ${kind}`),
    v.minLength(lengthMin, `allowed is ${kind}, at least ${lengthMin}`),
    v.maxLength(lengthMax, `allowed is ${kind}, at most ${lengthMax}`),
    v.check((values) => new Set(values).size === values.length, `allowed is ${kind}, each once`),
  );
  return v.pipe(
    v.unknown(),
    v.transform((input) => (typeof input === "string" ? input.split(",").flatMap((each) => each.trim() || []) : input)),
    items,
  );
}

function isWholeNumber(input: unknown, min: number, max: number): input is number {
  return typeof input === "number" && Number.isInteger(input) && input >= min && input <= max;
}

function within(value: number | undefined, min = 0, max = Infinity): number | undefined {
  return value !== undefined && value >= min && value <= max ? value : undefined;
}

function faultOfNodeName(name: string): string | undefined {
  try {
    parseNodeName(name);
    return undefined;
  } catch {
    return "as core@local.emqxcl";
  }
}

function faultOfWho(name: string): string | undefined {
  return name === "" ? "it is empty" : undefined;
}

/** RFC 6454: scheme, host and port, as a browser writes them. */
function faultOfOrigin(origin: string): string | undefined {
  if (origin === "*") return undefined;
  const [, scheme] = /^([a-z][a-z0-9+.-]*):\/\/[^/\s?#@,*A-Z]+$/.exec(origin) ?? [];
  const hint = 'as "https://dash.example.com" or "*"';
  if (scheme === undefined) return hint;
  if (scheme !== "http" && scheme !== "https") return undefined;
  // A browser leaves out the port that the scheme has anyway: with it the origin would never match.
  return URL.canParse(origin) && new URL(origin).origin === origin ? undefined : hint;
}

// ---- users ----------------------------------------------------------------------------------------------------------

/** Apart from the other settings, so that no value gets into a message by a common path. */
function readUsers(input: unknown, problems: string[]): Record<string, string> {
  const users = Object.create(null) as Record<string, string>;
  if (input === undefined) return users;
  if (!isTable(input)) {
    problems.push('authentication: allowed is a table of user names and hashes, as JSON: {"alice":"$scrypt$..."}');
    return users;
  }
  const entries = Object.entries(input);
  if (entries.length > usersMax) problems.push(`authentication: allowed are at most ${usersMax} users`);
  for (const [user, hash] of entries.slice(0, usersMax)) {
    try {
      if (user === "") throw new Error("allowed is a name that is not empty");
      if (typeof hash !== "string") throw new Error("allowed is a text");
      parsePasswordHash(hash);
      users[user] = hash;
    } catch (error) {
      problems.push(`authentication of ${show(user)}: ${error instanceof Error ? error.message : "not understood"}`);
    }
  }
  return users;
}

// ---- messages -------------------------------------------------------------------------------------------------------

function describeIssue(issue: v.BaseIssue<unknown>): string {
  const path = v.getDotPath(issue) ?? "settings";
  if (issue.type === "strict_object" && issue.expected === "never") {
    const parent = path.slice(0, path.lastIndexOf("."));
    const table = Object.entries(tables).find(([name]) => name === parent)?.[1] ?? ruleTable;
    return `${path} is not a setting: did you mean ${parent}.${nearest(path.slice(parent.length + 1), Object.keys(table.entries))}?`;
  }
  if (issue.type === "strict_object") {
    return issue.received === "undefined" ? `${path} is missing` : `${path} = ${show(issue.input)}: allowed is a table`;
  }
  if (issue.type === "array" && path === "authorization")
    return `${path} = ${show(issue.input)}: allowed is a list of rules`;
  return `${path} = ${show(issue.input)}: ${issue.message}`;
}

/** A value, or a user name, for a message: in one short line. A hash in the place of a name is not shown. */
function show(value: unknown): string {
  const json = JSON.stringify(value) ?? "undefined";
  if (holdsHash(value)) return "(not shown)";
  return json.length > shownCharsMax ? `${json.slice(0, shownCharsMax)}...` : json;
}

function variableOf(path: string): string {
  return variablePrefix + path.replaceAll(".", "__").toUpperCase();
}

function nearest(word: string, allowed: readonly string[]): string {
  const distances = allowed.map((each) => ({ each, distance: editDistance(word.slice(0, shownCharsMax), each) }));
  distances.sort((a, b) => a.distance - b.distance);
  return distances[0]?.each ?? "";
}

/** How many characters to insert, delete or replace (Levenshtein). */
function editDistance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, i) => i);
  for (const [i, char] of from.split("").entries()) {
    const next = [i + 1];
    for (let j = 0; j < to.length; j++) {
      const replaced = (row[j] ?? 0) + (char === to[j] ? 0 : 1);
      next.push(Math.min(replaced, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1));
    }
    row = next;
  }
  return row[to.length] ?? 0;
}
