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
 * All that is wrong is reported at once, a line each: the key, the value, what is allowed. The values of
 * `authentication` are secrets, and so are `node.cookie` and `cluster.k8s.token`, which only a variable of
 * their own may hold: they appear in no message.
 *
 * A key that has no effect beside the others (`cluster.dns.name` without `dns`) is allowed, as in EMQX. What
 * cannot go together is an error.
 */
import * as v from "valibot";

import { faultOfRuleTopic } from "../mqtt/authorization.ts";
import type { Rule } from "../mqtt/authorization.ts";
import { limits } from "../mqtt/limits.ts";
import type { MqttSettings } from "../mqtt/settings.ts";
import { addressOf, familyOf, isAddress, isDnsLabel, isMember } from "./name.ts";
import type { NodeName } from "./name.ts";
import { parsePasswordHash } from "./password-hash.ts";
import {
  byteSize,
  dnsLabel,
  dnsName,
  duration,
  filePath,
  hasControls,
  hostname,
  isWholeNumber,
  list,
  nodeName,
  oneOf,
  parsed,
  secret,
  text,
  url,
  wholeNumber,
  within,
} from "./setting-kinds.ts";
import { sharedStrategies } from "./shared-sub.ts";
import type { SharedStrategy } from "./shared-sub.ts";
import { parseDuration } from "./units.ts";

/** EMQX's, without `mcast`. */
const discoveryStrategies = ["manual", "static", "dns", "etcd", "k8s", "singleton"] as const;

export interface Settings {
  readonly cluster: {
    readonly name: string;
    /** The cores of this deployment. */
    readonly core_nodes: readonly [NodeName, ...NodeName[]];
    readonly discovery_strategy: (typeof discoveryStrategies)[number];
    readonly autoheal: boolean;
    /** Milliseconds; 0: never. */
    readonly autoclean: number;
    readonly proto_dist: "inet_tcp" | "inet6_tcp" | "inet_tls" | "inet6_tls";
    readonly static: { readonly seeds: readonly NodeName[] };
    readonly dns: {
      /** "": not given. */
      readonly name: string;
      readonly record_type: "a" | "aaaa" | "srv";
      /** Where to ask, by DNS over HTTPS (RFC 8484). */
      readonly server: string;
    };
    readonly etcd: {
      /** URLs without a slash at the end. */
      readonly server: readonly string[];
      readonly prefix: string;
      /** Milliseconds. */
      readonly node_ttl: number;
    };
    readonly k8s: {
      /** URL without a slash at the end. */
      readonly apiserver: string;
      readonly service_name: string;
      readonly address_type: "ip" | "dns" | "hostname";
      readonly namespace: string;
      readonly suffix: string;
      readonly token: string | undefined;
    };
  };
  readonly node: {
    /** One of the cores; its host is the domain. */
    readonly name: NodeName | undefined;
    readonly role: "core" | "replicant";
    readonly cookie: string | undefined;
    readonly db_backend: "rlog" | "mnesia";
    /** Nodes per location. */
    readonly slots: number;
    /** Clients per node. */
    readonly max_connections: number;
  };
  readonly driver: "tcp" | "ssl";
  readonly ssl_options: {
    readonly certfile: string | undefined;
    readonly keyfile: string | undefined;
    readonly cacertfile: string | undefined;
    readonly fail_if_no_peer_cert: boolean;
  };
  /** `tcp_allowed_hosts`: hosts without ports, beside loopback. */
  readonly rpc: { readonly tcp_allowed_hosts: readonly string[] };
  /** The host of the nodes of this deployment, where the others reach it; alone, the cluster's name. */
  readonly domain: string;
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

/** Secrets, each in a variable of its own. */
const secretPaths: readonly string[] = ["node.cookie", "cluster.k8s.token"];

const originsMax = 1000;
/**
 * A message is one row on disk, and a row of a Durable Object holds 2 MB. Beside the packet's bytes there may be in it a
 * topic that came as an alias, the publisher's client id, a share group's filter, and subscription identifiers.
 */
const packetSizeMax = "1536KB";
const prefixCharsMax = 128;
const rulesMax = 1000;
const ruleTopicsMax = 100;
const usersMax = 10_000;
const shownCharsMax = 80;

const onOrOff = oneOf([true, false]);
const webUrl = (example: string) => url(example, ({ protocol }) => protocol === "https:" || protocol === "http:");

/** EMQX: emqx_conf_schema, `fields("cluster")`. `dns.server` and `k8s.token` are Trellis's own. */
const clusterTable = v.strictObject({
  name: v.optional(
    parsed(
      "allowed is a DNS label that is not a number: lower-case letters, digits and inner hyphens, at most 63",
      (input) => (typeof input === "string" && isDnsLabel(input) && !/^\d+$/.test(input) ? input : undefined),
    ),
    "emqxcl",
  ),
  core_nodes: v.optional(list("a list of node names", 1, limits.coreNodesMax, nodeName())),
  discovery_strategy: v.optional(
    parsed(
      (input) =>
        (input === "mcast" ? "the runtime has no UDP multicast, and EMQX has removed this strategy: " : "") +
        `allowed are ${discoveryStrategies.join(", ")}`,
      (input) => discoveryStrategies.find((each) => each === input),
    ),
    "manual",
  ),
  autoheal: v.optional(onOrOff, true),
  autoclean: v.optional(duration("0s", "365d"), "5m"),
  proto_dist: v.optional(oneOf(["inet_tcp", "inet6_tcp", "inet_tls", "inet6_tls"]), "inet_tcp"),
  static: v.optional(
    v.strictObject({ seeds: v.optional(list("a list of node names", 0, limits.seedsMax, nodeName()), []) }),
    {},
  ),
  dns: v.optional(
    v.strictObject({
      name: v.optional(dnsName()),
      record_type: v.optional(oneOf(["a", "aaaa", "srv"]), "a"),
      server: v.optional(
        url("https://cloudflare-dns.com/dns-query", (at) => at.protocol === "https:" || isLoopbackHttp(at)),
        "https://cloudflare-dns.com/dns-query",
      ),
    }),
    {},
  ),
  etcd: v.optional(
    v.strictObject({
      server: v.optional(list("a list of URLs", 0, limits.etcdServersMax, webUrl("http://127.0.0.1:2379")), []),
      prefix: v.optional(
        text("the beginning of a key", (prefix) =>
          prefix !== "" && prefix.length <= prefixCharsMax && !hasControls(prefix)
            ? undefined
            : `1 to ${prefixCharsMax} characters`,
        ),
        "emqxcl",
      ),
      node_ttl: v.optional(duration("1s", "24h"), "1m"),
    }),
    {},
  ),
  k8s: v.optional(
    v.strictObject({
      apiserver: v.optional(webUrl("https://10.0.0.1:6443"), "https://kubernetes.default.svc:443"),
      service_name: v.optional(dnsLabel(), "emqx"),
      address_type: v.optional(oneOf(["ip", "dns", "hostname"]), "ip"),
      namespace: v.optional(dnsLabel(), "default"),
      suffix: v.optional(dnsName()),
      token: v.optional(secret(1, limits.k8sTokenCharsMax)),
    }),
    {},
  ),
});

const cookieOfEmqx = "emqxsecretcookie";

/** EMQX: emqx_conf_schema, `fields("node")`; `slots` and `max_connections` are Trellis's own. */
const nodeTable = v.strictObject({
  name: v.optional(nodeName()),
  role: v.optional(oneOf(["core", "replicant"]), "core"),
  cookie: v.optional(
    v.pipe(
      secret(limits.cookieCharsMin, limits.cookieCharsMax),
      v.check(
        (cookie) => cookie !== cookieOfEmqx,
        `allowed is no cookie that everybody knows: ${cookieOfEmqx} is EMQX's default`,
      ),
    ),
  ),
  db_backend: v.optional(oneOf(["rlog", "mnesia"]), "rlog"),
  slots: v.optional(wholeNumber(1, 1000), 8),
  max_connections: v.optional(wholeNumber(1, 32_768), 10_000),
});

const drivers = oneOf(["tcp", "ssl"]);

/** EMQX: emqx_conf_schema, `fields("rpc")`. `tcp_allowed_hosts` is Trellis's own. */
const rpcTable = v.strictObject({
  protocol: v.optional(drivers),
  tcp_allowed_hosts: v.optional(list("a list of hosts", 0, limits.tcpAllowedHostsMax, hostname()), []),
});

const sslOptionsTable = v.strictObject({
  certfile: v.optional(filePath()),
  keyfile: v.optional(filePath()),
  cacertfile: v.optional(filePath()),
  fail_if_no_peer_cert: v.optional(onOrOff, false),
});

const mqttTable = v.strictObject({
  max_packet_size: v.optional(byteSize("1KB", packetSizeMax), "1MB"),
  max_topic_levels: v.optional(wholeNumber(1, 1024), 128),
  max_qos_allowed: v.optional(oneOf([0, 1, 2]), 2),
  max_topic_alias: v.optional(wholeNumber(0, 65_535), 65_535),
  retain_available: v.optional(onOrOff, true),
  wildcard_subscription: v.optional(onOrOff, true),
  shared_subscription: v.optional(onOrOff, true),
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

const allSettings = v.object({
  cluster: v.optional(clusterTable, {}),
  node: v.optional(nodeTable, {}),
  driver: v.optional(drivers),
  rpc: v.optional(rpcTable, {}),
  ssl_options: v.optional(sslOptionsTable, {}),
  mqtt: v.optional(mqttTable, {}),
  durable_sessions: v.optional(durableSessionsTable, {}),
  allow_anonymous: v.optional(onOrOff),
  authorization: v.optional(
    v.pipe(v.array(ruleTable), v.maxLength(rulesMax, `allowed are at most ${rulesMax} rules`)),
    [],
  ),
  origins: v.optional(list("a list of origins", 0, originsMax, text("an origin", faultOfOrigin)), []),
});

/** "cluster.etcd" -> "server", "prefix", ... */
const keysOfTables: ReadonlyMap<string, readonly string[]> = new Map(tablesIn(allSettings.entries));
const topNames: readonly string[] = [...Object.keys(allSettings.entries), "authentication"];
const settingPaths: readonly string[] = [
  ...topNames,
  ...[...keysOfTables].flatMap(([table, keys]) => keys.map((key) => `${table}.${key}`)),
];

function* tablesIn(entries: object, parent = ""): Generator<[string, readonly string[]]> {
  for (const [key, entry] of Object.entries(entries) as [string, { readonly wrapped?: { entries?: object } }][]) {
    const table = entry.wrapped?.entries;
    if (table === undefined) continue;
    yield [parent + key, Object.keys(table)];
    yield* tablesIn(table, `${parent}${key}.`);
  }
}

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

  const { cluster, node, driver, rpc, ssl_options, mqtt, durable_sessions, authorization, origins } = result.output;
  const { server_keepalive } = mqtt;
  const { dns, k8s } = cluster;
  const [core = node.name ?? `core@local.${cluster.name}`, ...cores] = cluster.core_nodes ?? [];
  const suffix = k8s.suffix ?? (k8s.address_type === "hostname" ? "svc.cluster.local" : "pod.cluster.local");
  const settings: Settings = {
    cluster: {
      ...cluster,
      core_nodes: [core, ...cores],
      dns: { ...dns, name: dns.name ?? "" },
      k8s: { ...k8s, suffix, token: k8s.token },
    },
    node: { ...node, name: node.name, cookie: node.cookie },
    driver: driver ?? rpc.protocol ?? "tcp",
    ssl_options: {
      certfile: ssl_options.certfile,
      keyfile: ssl_options.keyfile,
      cacertfile: ssl_options.cacertfile,
      fail_if_no_peer_cert: ssl_options.fail_if_no_peer_cert,
    },
    rpc: { tcp_allowed_hosts: rpc.tcp_allowed_hosts },
    domain: node.name === undefined ? cluster.name : addressOf(node.name),
    mqtt: { ...mqtt, server_keepalive: server_keepalive === "disabled" ? undefined : server_keepalive },
    durable_sessions,
    allow_anonymous: result.output.allow_anonymous ?? env["LOOPBACK"] === "true",
    authentication: users,
    authorization,
    origins,
  };
  if (rpc.protocol !== undefined && rpc.protocol !== settings.driver) {
    problems.push(`rpc.protocol = ${show(rpc.protocol)}: allowed is what driver says: it is another name of it`);
  }
  problems.push(...faultsOfNames(settings), ...faultsOfLinks(settings), ...faultsOfDiscovery(settings));
  if (problems.length > 0) throw new Error(problems.join("\n"));
  return settings;
}

// ---- what goes together ---------------------------------------------------------------------------------------------

function* faultsOfNames({ cluster: { core_nodes }, node, domain }: Settings): Generator<string> {
  const { name, role, db_backend } = node;
  if (name !== undefined && !isAddress(domain)) {
    yield `node.name = ${show(name)}: allowed is an address as the host, without a location before it`;
  }
  if (name !== undefined && !core_nodes.includes(name)) {
    yield `cluster.core_nodes = ${show(core_nodes)}: allowed are lists with ${show(name)} (node.name)`;
  }
  for (const core of core_nodes) {
    if (!isMember(core, domain)) {
      const source = name === undefined ? "cluster.name" : "node.name";
      yield `cluster.core_nodes: ${show(core)}: allowed are hosts that end in "${domain}" (${source})`;
    } else if (addressOf(core) !== domain && /^node-\d+@/.test(core)) {
      yield `cluster.core_nodes: ${show(core)}: allowed are names that no other node has, as node-0, node-1 and so on`;
    }
  }
  if (role === "replicant" && db_backend === "mnesia") {
    yield 'node.role = "replicant": allowed is "core" with node.db_backend = "mnesia"';
  }
}

function* faultsOfLinks({ cluster: { proto_dist }, node, driver, ssl_options, domain }: Settings): Generator<string> {
  const given = `cluster.proto_dist = ${show(proto_dist)}`;
  if (proto_dist.endsWith("tls") && driver !== "ssl") {
    yield `${given}: allowed are inet_tcp and inet6_tcp with driver = ${show(driver)}`;
  }
  const family = familyOf(domain);
  if (family !== "name" && proto_dist.split("_")[0] !== family) {
    yield `${given}: allowed are ${family}_tcp and ${family}_tls with the IP address in node.name = ${show(node.name)}`;
  }
  const { certfile, keyfile } = ssl_options;
  if (certfile !== undefined && keyfile === undefined) yield missing("ssl_options.keyfile", "ssl_options.certfile");
  if (keyfile !== undefined && certfile === undefined) yield missing("ssl_options.certfile", "ssl_options.keyfile");
}

function* faultsOfDiscovery({ cluster, node, domain }: Settings): Generator<string> {
  const { discovery_strategy: strategy, core_nodes, dns, etcd, k8s } = cluster;
  const { seeds } = cluster.static;
  const chosen = `cluster.discovery_strategy = ${show(strategy)}`;
  if (strategy === "manual" || strategy === "singleton") return;
  if (node.name === undefined) yield missing("node.name", chosen);
  if (node.cookie === undefined) yield `${missing("node.cookie", chosen)}, in ${variableOf("node.cookie")}`;
  if (strategy === "static") {
    if (seeds.length === 0) yield missing("cluster.static.seeds", chosen);
    for (const seed of seeds) {
      if (!isMember(seed, domain) || core_nodes.includes(seed)) continue;
      yield `cluster.static.seeds: ${show(seed)}: allowed are cores, and none of this deployment has the name`;
    }
  }
  if (strategy === "dns") {
    if (dns.name === "") yield missing("cluster.dns.name", chosen);
    const family = { a: "inet", aaaa: "inet6", srv: undefined }[dns.record_type];
    // Peers are named by the addresses found, so this one has to be, too. (EMQX: validate_dns_cluster_strategy)
    if (node.name !== undefined && family !== undefined && familyOf(domain) !== family) {
      const version = family === "inet" ? "IPv4" : "IPv6";
      yield `node.name = ${show(node.name)}: allowed are ${version} addresses as the host with cluster.dns.record_type = ${show(dns.record_type)}`;
    }
  }
  if (strategy === "etcd" && etcd.server.length === 0) yield missing("cluster.etcd.server", chosen);
  if (strategy === "k8s" && k8s.token === undefined && k8s.apiserver.startsWith("https:")) {
    yield `${missing("cluster.k8s.token", `${chosen} with an apiserver at https://`)}, in ${variableOf("cluster.k8s.token")}`;
  }
}

function missing(path: string, neededBy: string): string {
  return `${path} is missing: ${neededBy} needs it`;
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
    put(given, path, secretPaths.includes(path) ? env[variable] : fromText(env[variable]), problems);
  }
  return given;
}

function put(given: Given, path: string, value: unknown, problems: string[]): void {
  const tree = path.split(".").reduceRight<unknown>((part, key) => ({ [key]: part }), value) as Given;
  const stray = secretPaths.filter((secretPath) => secretPath !== path && valueAt(tree, secretPath) !== undefined);
  if (stray.length > 0) {
    problems.push(...stray.map((each) => `${each}: allowed is the variable ${variableOf(each)} only: it is a secret`));
  } else if (path !== "authentication" && holdsHash(value)) {
    problems.push(`${path}: allowed is no password hash: its place is authentication`);
  } else if (keysOfTables.has(path) && !isTable(value)) {
    problems.push(`${path} = ${show(value)}: allowed is a table`);
  } else {
    Object.assign(given, merged(given, tree, ""));
  }
}

/** `over` before `under`, key by key in the tables that there are. */
function merged(under: Given, over: Given, parent: string): Given {
  const parts = Object.entries(over).map(([key, value]): [string, unknown] => {
    const below = under[key];
    const both = keysOfTables.has(parent + key) && isTable(below) && isTable(value);
    return [key, both ? merged(below, value, `${parent}${key}.`) : value];
  });
  return Object.fromEntries([...Object.entries(under), ...parts]);
}

function valueAt(tree: unknown, path: string): unknown {
  return path.split(".").reduce((part, key) => (isTable(part) ? part[key] : undefined), tree);
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

// ---- faults ---------------------------------------------------------------------------------------------------------

function isLoopbackHttp({ protocol, hostname: host }: URL): boolean {
  return protocol === "http:" && (host === "localhost" || host === "[::1]" || /^127(?:\.\d+){3}$/.test(host));
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
    const keys = keysOfTables.get(parent) ?? Object.keys(ruleTable.entries);
    return `${path} is not a setting: did you mean ${parent}.${nearest(path.slice(parent.length + 1), keys)}?`;
  }
  if (issue.type === "strict_object") {
    return issue.received === "undefined" ? `${path} is missing` : `${path} = ${show(issue.input)}: allowed is a table`;
  }
  if (issue.type === "array" && path === "authorization")
    return `${path} = ${show(issue.input)}: allowed is a list of rules`;
  return `${secretPaths.includes(path) ? path : `${path} = ${show(issue.input)}`}: ${issue.message}`;
}

/** Password hashes; tables of secrets, JSON or not; keys; users of URLs. */
const secretPattern = /\$scrypt\$|cookie|token|-----BEGIN|:\/\/[^/\s]*@/i;

/** A value, or a user name, for a message: in one short line, and no secret that is in the wrong place. */
function show(value: unknown): string {
  const json = JSON.stringify(value) ?? "undefined";
  if (secretPattern.test(json)) return "(not shown)";
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
