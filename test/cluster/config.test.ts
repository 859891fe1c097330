import { describe, expect, it } from "vitest";
import { readSettings } from "../../cluster/config.ts";
import { sharedStrategies } from "../../cluster/shared-sub.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { writeMessage } from "../../mqtt/message.ts";

const salt = "c2FsdHNhbHRzYWx0c2FsdA";
const hash = "aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g";
const alice = `$scrypt$ln=15,r=8,p=1$${salt}$${hash}`;

/** The message that these settings are refused with. */
function refusal(env: Record<string, unknown>): string {
  try {
    readSettings(env);
  } catch (error) {
    return error instanceof Error ? error.message : "not an Error";
  }
  return "accepted";
}

/** "mqtt.max_inflight", 1 as tables. */
function envOf(path: string, value: unknown): Record<string, unknown> {
  return path.split(".").reduceRight<unknown>((part, key) => ({ [key]: part }), value) as Record<string, unknown>;
}

const cookie = "kept-between-us-1";

/** A deployment that others reach. */
const linked = { node: { name: "core@eu.example.com" }, TRELLIS_NODE__COOKIE: cookie };

function valueAt(env: Record<string, unknown>, path: string): unknown {
  return path.split(".").reduce<unknown>((value, key) => (value as Record<string, unknown>)[key], readSettings(env));
}

describe("settings", () => {
  it("have EMQX's defaults", () => {
    expect(readSettings({})).toEqual({
      cluster: {
        name: "emqxcl",
        core_nodes: ["core@local.emqxcl"],
        discovery_strategy: "manual",
        autoheal: true,
        autoclean: 300_000,
        proto_dist: "inet_tcp",
        static: { seeds: [] },
        dns: { name: "", record_type: "a", server: "https://cloudflare-dns.com/dns-query" },
        etcd: { server: [], prefix: "emqxcl", node_ttl: 60_000 },
        k8s: {
          apiserver: "https://kubernetes.default.svc",
          service_name: "emqx",
          address_type: "ip",
          namespace: "default",
          suffix: "pod.cluster.local",
          token: undefined,
        },
      },
      node: {
        name: undefined,
        role: "core",
        cookie: undefined,
        db_backend: "rlog",
        slots: 8,
        max_connections: 10_000,
      },
      driver: "tcp",
      ssl_options: { certfile: undefined, keyfile: undefined, cacertfile: undefined, fail_if_no_peer_cert: false },
      rpc: { tcp_allowed_hosts: [] },
      domain: "emqxcl",
      mqtt: {
        max_packet_size: 1_048_576,
        max_topic_levels: 128,
        max_qos_allowed: 2,
        max_topic_alias: 65_535,
        retain_available: true,
        wildcard_subscription: true,
        shared_subscription: true,
        shared_subscription_strategy: "round_robin",
        max_inflight: 32,
        max_awaiting_rel: 100,
        max_mqueue_len: 1000,
        session_expiry_interval: 7_200_000,
        server_keepalive: undefined,
        idle_timeout: 15_000,
      },
      durable_sessions: { message_retention_period: Infinity },
      allow_anonymous: false,
      authentication: {},
      authorization: [],
      origins: [],
    });
  });

  it.each<[string, unknown, unknown]>([
    ["cluster.name", "a-1", "a-1"],
    ["cluster.core_nodes", ["core@weur.emqxcl"], ["core@weur.emqxcl"]],
    ["cluster.core_nodes", "a@local.emqxcl", ["a@local.emqxcl"]],
    ["cluster.core_nodes", "a@local.emqxcl, b@weur.emqxcl", ["a@local.emqxcl", "b@weur.emqxcl"]],
    ["cluster.discovery_strategy", "manual", "manual"],
    ["cluster.discovery_strategy", "singleton", "singleton"],
    ["cluster.autoheal", false, false],
    ["cluster.autoclean", "24h", 86_400_000],
    ["cluster.autoclean", "0s", 0],
    ["cluster.autoclean", 0, 0],
    ["cluster.proto_dist", "inet6_tcp", "inet6_tcp"],
    ["cluster.static.seeds", "core@s1.example.com, core@10.0.0.2:8084", ["core@s1.example.com", "core@10.0.0.2:8084"]],
    ["cluster.static.seeds", ["core@[::1]:8084"], ["core@[::1]:8084"]],
    ["cluster.static.seeds", [], []],
    ["cluster.dns.name", "_trellis._tcp.example.com", "_trellis._tcp.example.com"],
    ["cluster.dns.record_type", "aaaa", "aaaa"],
    ["cluster.dns.server", "https://dns.example.com/dns-query", "https://dns.example.com/dns-query"],
    ["cluster.dns.server", "http://127.0.0.1:8053/dns-query", "http://127.0.0.1:8053/dns-query"],
    [
      "cluster.etcd.server",
      "http://10.0.0.1:2379,https://etcd.example.com:2379/",
      ["http://10.0.0.1:2379", "https://etcd.example.com:2379"],
    ],
    ["cluster.etcd.prefix", "blue/emqx", "blue/emqx"],
    ["cluster.etcd.node_ttl", "5s", 5000],
    ["cluster.k8s.apiserver", "https://10.0.0.1:6443/k8s/clusters/c1/", "https://10.0.0.1:6443/k8s/clusters/c1"],
    ["cluster.k8s.service_name", "trellis", "trellis"],
    ["cluster.k8s.namespace", "mqtt", "mqtt"],
    ["cluster.k8s.suffix", "pod.local", "pod.local"],
    ["node.name", "core@127.0.0.1:8084", "core@127.0.0.1:8084"],
    ["node.role", "replicant", "replicant"],
    ["node.db_backend", "mnesia", "mnesia"],
    ["driver", "ssl", "ssl"],
    ["ssl_options.cacertfile", "certs/ca.pem", "certs/ca.pem"],
    ["ssl_options.fail_if_no_peer_cert", true, true],
    ["rpc.tcp_allowed_hosts", "10.0.0.2,s2.example.com,[::2]", ["10.0.0.2", "s2.example.com", "[::2]"]],
    ["node.slots", 1, 1],
    ["node.slots", 1000, 1000],
    ["node.max_connections", 32_768, 32_768],
    ["mqtt.max_packet_size", "256KB", 262_144],
    ["mqtt.max_packet_size", "1536kb", 1_572_864],
    ["mqtt.max_packet_size", 1024, 1024],
    ["mqtt.max_packet_size", "1024", 1024],
    ["mqtt.max_topic_levels", 1, 1],
    ["mqtt.max_qos_allowed", 0, 0],
    ["mqtt.max_topic_alias", 0, 0],
    ["mqtt.retain_available", false, false],
    ["mqtt.max_inflight", 1, 1],
    ["mqtt.max_awaiting_rel", 65_535, 65_535],
    ["mqtt.max_mqueue_len", 100_000, 100_000],
    ["mqtt.session_expiry_interval", "1h30m", 5_400_000],
    ["mqtt.session_expiry_interval", "0s", 0],
    ["mqtt.session_expiry_interval", "4294967295s", 4_294_967_295_000],
    ["mqtt.session_expiry_interval", "1w2d", 777_600_000],
    ["mqtt.session_expiry_interval", 1500, 1500],
    ["mqtt.idle_timeout", "500ms", 500],
    ["mqtt.idle_timeout", "1.5s", 1500],
    ["mqtt.server_keepalive", 60, 60],
    ["mqtt.server_keepalive", "disabled", undefined],
    ["durable_sessions.message_retention_period", "infinity", Infinity],
    ["durable_sessions.message_retention_period", "7d", 604_800_000],
    ["durable_sessions.message_retention_period", "12h", 43_200_000],
    ["durable_sessions.message_retention_period", "1s", 1000],
    ["durable_sessions.message_retention_period", 1500, 1500],
    ...sharedStrategies.map((each): [string, unknown, unknown] => ["mqtt.shared_subscription_strategy", each, each]),
    ["allow_anonymous", true, true],
    ["origins", ["*"], ["*"]],
    [
      "origins",
      ["https://dash.example.com", "http://localhost:5173"],
      ["https://dash.example.com", "http://localhost:5173"],
    ],
    ["origins", ["capacitor://localhost"], ["capacitor://localhost"]],
  ])("%s = %j is %j", (path, value, read) => {
    expect(valueAt(envOf(path, value), path)).toEqual(read);
  });

  it.each<[string, unknown]>([
    ["cluster.name", ""],
    ["cluster.name", "EMQX"],
    ["cluster.name", "a.b"],
    ["cluster.name", 5],
    ["cluster.core_nodes", 5],
    ["cluster.core_nodes", []],
    ["cluster.core_nodes", Array.from({ length: 8 }, (_, i) => `core-${i}@local.emqxcl`)],
    ["cluster.core_nodes", ["core"]],
    ["cluster.core_nodes", ["core@10.0.0.1"]],
    ["cluster.core_nodes", ["core@local.emqxcl", "node-0@local.emqxcl"]],
    ["cluster.core_nodes", ["core@local.other"]],
    ["cluster.core_nodes", ["core@local.emqxcl", "core@local.emqxcl"]],
    ["cluster.discovery_strategy", "mcast"],
    ["cluster.discovery_strategy", "gossip"],
    ["cluster.autoheal", "on"],
    ["cluster.autoclean", "never"],
    ["cluster.autoclean", -1],
    ["cluster.autoclean", "366d"],
    ["cluster.proto_dist", "inet"],
    ["cluster.proto_dist", "inet_tls"],
    ["cluster.proto_dist", "inet6_tls"],
    ["cluster.static", "core@s1.example.com"],
    ["cluster.static.seeds", "s1.example.com"],
    ["cluster.static.seeds", ["core@S1.example.com"]],
    ["cluster.static.seeds", Array.from({ length: 101 }, (_, i) => `core@s${i}.example.com`)],
    ["cluster.dns.name", ""],
    ["cluster.dns.name", "https://example.com"],
    ["cluster.dns.name", `${"a.".repeat(127)}b`],
    ["cluster.dns.record_type", "txt"],
    ["cluster.dns.server", "8.8.8.8"],
    ["cluster.dns.server", "http://dns.example.com/dns-query"],
    ["cluster.dns.server", "http://127.evil.example/dns-query"],
    ["cluster.etcd.server", "10.0.0.1:2379"],
    ["cluster.etcd.server", "ftp://10.0.0.1"],
    ["cluster.etcd.server", "http://10.0.0.1:2379?x=1"],
    ["cluster.etcd.server", ["http://10.0.0.1:2379", "http://10.0.0.1:2379/"]],
    ["cluster.etcd.prefix", ""],
    ["cluster.etcd.prefix", "a\nb"],
    ["cluster.etcd.prefix", "p".repeat(129)],
    ["cluster.etcd.node_ttl", "0s"],
    ["cluster.etcd.node_ttl", "25h"],
    ["cluster.k8s.apiserver", "kubernetes"],
    ["cluster.k8s.service_name", "a/b"],
    ["cluster.k8s.namespace", ""],
    ["cluster.k8s.namespace", "../x"],
    ["cluster.k8s.address_type", "fqdn"],
    ["cluster.k8s.suffix", ".local"],
    ["node.name", "core"],
    ["node.name", "core@localhost"],
    ["node.name", "core@local.127.0.0.1:8084"],
    ["node.role", "leader"],
    ["node.db_backend", "sqlite"],
    ["driver", "tls"],
    ["ssl_options", true],
    ["ssl_options.keyfile", ""],
    ["ssl_options.fail_if_no_peer_cert", "true"],
    ["rpc.protocol", "udp"],
    ["rpc.tcp_allowed_hosts", "10.0.0.2:8084"],
    ["rpc.tcp_allowed_hosts", "*"],
    ["node.slots", 0],
    ["node.slots", 1001],
    ["node.slots", 1.5],
    ["node.max_connections", 32_769],
    ["mqtt.max_packet_size", "1023"],
    ["mqtt.max_packet_size", "1537KB"],
    ["mqtt.max_packet_size", "1 MB"],
    ["mqtt.max_packet_size", -1],
    ["mqtt.max_packet_size", "99999999999999999999999GB"],
    ["mqtt.max_topic_levels", 0],
    ["mqtt.max_qos_allowed", 3],
    ["mqtt.max_qos_allowed", "2"],
    ["mqtt.max_topic_alias", 65_536],
    ["mqtt.retain_available", "yes"],
    ["mqtt.retain_available", 1],
    ["mqtt.shared_subscription_strategy", "fair"],
    ["mqtt.max_inflight", 0],
    ["mqtt.max_awaiting_rel", 65_536],
    ["mqtt.max_mqueue_len", 0],
    ["mqtt.session_expiry_interval", "2 hours"],
    ["mqtt.session_expiry_interval", "4294967296s"],
    ["mqtt.session_expiry_interval", -1],
    ["mqtt.idle_timeout", "0s"],
    ["mqtt.idle_timeout", ""],
    ["mqtt.server_keepalive", 0],
    ["mqtt.server_keepalive", 65_536],
    ["mqtt.server_keepalive", "60"],
    ["durable_sessions.message_retention_period", "0s"],
    ["durable_sessions.message_retention_period", "999ms"],
    ["durable_sessions.message_retention_period", "never"],
    ["durable_sessions.message_retention_period", -1],
    ["durable_sessions.message_retention_period", null],
    ["mqtt", 5],
    ["mqtt", null],
    ["mqtt", []],
    ["allow_anonymous", 1],
    ["authorization", {}],
    ["origins", 5],
    ["origins", ["dash.example.com"]],
    ["origins", ["https://dash.example.com/"]],
    ["origins", ["https://dash.example.com:443"]],
    ["origins", ["https://Dash.example.com"]],
    ["origins", ["https://*.example.com"]],
    ["origins", ["null"]],
  ])("%s = %j is refused in one line that names it", (path, value) => {
    const message = refusal(envOf(path, value));
    expect(message).toMatch(/^[^\n]*: allowed (is|are) [^\n]+$/);
    expect(message.startsWith(path)).toBe(true);
  });

  it("are refused with the key, the value and what is allowed", () => {
    expect(refusal({ mqtt: { max_qos_allowed: 7 } })).toBe("mqtt.max_qos_allowed = 7: allowed are 0, 1, 2");
    expect(refusal({ node: { slots: 0 }, mqtt: { max_qos_allowed: 7 } })).toBe(
      "node.slots = 0: allowed are whole numbers from 1 to 1000\nmqtt.max_qos_allowed = 7: allowed are 0, 1, 2",
    );
    expect(refusal({ mqtt: { max_packet_size: "2MB" } })).toBe(
      'mqtt.max_packet_size = "2MB": allowed are sizes like 1024, "256KB" or "1MB", from 1KB to 1536KB',
    );
    expect(refusal({ cluster: { name: "x".repeat(10_000) } }).length).toBeLessThan(300);
  });

  it("refuse a key that they do not have, and name the nearest", () => {
    expect(refusal({ mqtt: { max_inflights: 3 } })).toBe(
      "mqtt.max_inflights is not a setting: did you mean mqtt.max_inflight?",
    );
    expect(refusal({ cluster: { nam: "x" } })).toBe("cluster.nam is not a setting: did you mean cluster.name?");
    expect(refusal({ cluster: { etcd: { servers: "x" } } })).toBe(
      "cluster.etcd.servers is not a setting: did you mean cluster.etcd.server?",
    );
    expect(refusal({ node: { role: "core", names: "x" } })).toBe(
      "node.names is not a setting: did you mean node.name?",
    );
  });

  it("[G1] keep the largest message, and what is stored with it, within a row of 2 MB", () => {
    const { max_packet_size } = readSettings({ mqtt: { max_packet_size: "1536KB" } }).mqtt;
    const longest = "x".repeat(65_535);
    const writer = new ByteWriter();
    writeMessage(writer, {
      id: longest.slice(0, 64),
      topic: longest,
      payload: new Uint8Array(max_packet_size),
      qos: 1,
      retain: true,
      properties: new Uint8Array(),
      expiresAt: 0,
      from: longest,
    });
    const sharedFilterBytes = longest.length;
    const subscriptionIdBytes = 4 * limits.subscriptionsPerSessionMax;
    expect(writer.take().length + sharedFilterBytes + subscriptionIdBytes).toBeLessThan(2_000_000);
  });

  it("have in wrangler.toml the values that they have without it", async () => {
    const { unstable_readConfig } = await import("wrangler");
    const config: { vars: Record<string, unknown> } = unstable_readConfig({ config: "wrangler.toml" });
    expect(Object.keys(config.vars)).toEqual(expect.arrayContaining(["cluster", "mqtt", "node", "ssl_options"]));
    expect(readSettings(config.vars)).toEqual(readSettings({}));
  });

  it("ignore what is no setting", () => {
    const env = { NODE: {}, COORDINATOR: {}, LOOPBACK: "false", TRELLIS_API_TOKEN: "x", other: { mqtt: 1 }, PORT: "1" };
    expect(readSettings(env)).toEqual(readSettings({}));
  });

  it("[G9] allow anonymous clients by default on loopback only", () => {
    expect(readSettings({ LOOPBACK: "true" }).allow_anonymous).toBe(true);
    expect(readSettings({ LOOPBACK: "false" }).allow_anonymous).toBe(false);
    expect(readSettings({ LOOPBACK: "true", allow_anonymous: false }).allow_anonymous).toBe(false);
    expect(readSettings({ allow_anonymous: true }).allow_anonymous).toBe(true);
  });
});

describe("the names of a deployment", () => {
  it.each([
    [{}, "emqxcl", ["core@local.emqxcl"]],
    [{ cluster: { name: "blue" } }, "blue", ["core@local.blue"]],
    [{ node: { name: "core@127.0.0.1:8084" } }, "127.0.0.1:8084", ["core@127.0.0.1:8084"]],
    [{ cluster: { name: "blue" }, node: { name: "c@eu.example.com" } }, "eu.example.com", ["c@eu.example.com"]],
    [
      {
        cluster: { core_nodes: ["core@weur.eu.example.com", "core@eu.example.com"] },
        node: { name: "core@eu.example.com" },
      },
      "eu.example.com",
      ["core@weur.eu.example.com", "core@eu.example.com"],
    ],
    [{ node: { name: "node-0@10.0.0.1" } }, "10.0.0.1", ["node-0@10.0.0.1"]],
  ])("of %j end in the domain %s", (env, domain, coreNodes) => {
    const settings = readSettings(env);
    expect(settings.domain).toBe(domain);
    expect(settings.cluster.core_nodes).toEqual(coreNodes);
  });

  it.each<[Record<string, unknown>, string]>([
    [
      { cluster: { core_nodes: ["core@local.other"] } },
      'cluster.core_nodes: "core@local.other": allowed are hosts that end in "emqxcl" (cluster.name)',
    ],
    [
      { cluster: { core_nodes: ["core@eu.example.com", "b@us.example.com"] }, node: { name: "core@eu.example.com" } },
      'cluster.core_nodes: "b@us.example.com": allowed are hosts that end in "eu.example.com" (node.name)',
    ],
    [
      { cluster: { core_nodes: ["core@weur.eu.example.com"] }, node: { name: "core@eu.example.com" } },
      'cluster.core_nodes = ["core@weur.eu.example.com"]: allowed are lists with "core@eu.example.com" (node.name)',
    ],
    [
      { cluster: { core_nodes: "node-0@weur.emqxcl" } },
      'cluster.core_nodes: "node-0@weur.emqxcl": allowed are names that no other node has, as node-0, node-1 and so on',
    ],
    [
      { node: { name: "core@local.127.0.0.1:8084" } },
      'node.name = "core@local.127.0.0.1:8084": allowed is an address as the host, without a location before it',
    ],
    [
      { node: { role: "replicant", db_backend: "mnesia" } },
      'node.role = "replicant": allowed is "core" with node.db_backend = "mnesia"',
    ],
  ])("are refused: %j", (env, message) => {
    expect(refusal(env)).toBe(message);
  });
});

describe("links", () => {
  it("take their driver from either name", () => {
    expect(readSettings({ rpc: { protocol: "ssl" } }).driver).toBe("ssl");
    expect(readSettings({ rpc: { protocol: "ssl" }, driver: "ssl" }).driver).toBe("ssl");
    expect(refusal({ rpc: { protocol: "ssl" }, driver: "tcp" })).toBe(
      'rpc.protocol = "ssl": allowed is what driver says: it is another name of it',
    );
  });

  it.each([
    ["inet_tcp", "tcp", "core@127.0.0.1:8084"],
    ["inet_tcp", "ssl", "core@eu.example.com"],
    ["inet_tls", "ssl", "core@10.0.0.1"],
    ["inet6_tcp", "tcp", "core@[::1]:8084"],
    ["inet6_tls", "ssl", "core@[2001:db8::1]"],
    ["inet6_tls", "ssl", "core@eu.example.com"],
  ])("take proto_dist %s with the driver %s and %s", (protoDist, driver, name) => {
    expect(readSettings({ cluster: { proto_dist: protoDist }, driver, node: { name } }).cluster.proto_dist).toBe(
      protoDist,
    );
  });

  it.each([
    [
      "inet_tls",
      "tcp",
      "core@10.0.0.1",
      'cluster.proto_dist = "inet_tls": allowed are inet_tcp and inet6_tcp with driver = "tcp"',
    ],
    [
      "inet6_tls",
      "tcp",
      "core@eu.example.com",
      'cluster.proto_dist = "inet6_tls": allowed are inet_tcp and inet6_tcp with driver = "tcp"',
    ],
    [
      "inet6_tcp",
      "tcp",
      "core@127.0.0.1:8084",
      'cluster.proto_dist = "inet6_tcp": allowed are inet_tcp and inet_tls with the IP address in node.name = "core@127.0.0.1:8084"',
    ],
    [
      "inet_tls",
      "ssl",
      "core@[::1]:8084",
      'cluster.proto_dist = "inet_tls": allowed are inet6_tcp and inet6_tls with the IP address in node.name = "core@[::1]:8084"',
    ],
  ])("refuse proto_dist %s with the driver %s and %s", (protoDist, driver, name, message) => {
    expect(refusal({ cluster: { proto_dist: protoDist }, driver, node: { name } })).toBe(message);
  });

  it("have a certificate and its key, or none", () => {
    expect(readSettings({ ssl_options: { certfile: "c.pem", keyfile: "k.pem" } }).ssl_options).toMatchObject({
      certfile: "c.pem",
      keyfile: "k.pem",
    });
    expect(refusal({ ssl_options: { certfile: "c.pem" } })).toBe(
      "ssl_options.keyfile is missing: ssl_options.certfile needs it",
    );
    expect(refusal({ ssl_options: { keyfile: "k.pem" } })).toBe(
      "ssl_options.certfile is missing: ssl_options.keyfile needs it",
    );
  });
});

describe("discovery", () => {
  const token = { TRELLIS_CLUSTER__K8S__TOKEN: "eyJhbGciOi.J9.x-y_z" };

  it.each<[string, Record<string, unknown>]>([
    ["static", { ...linked, cluster: { static: { seeds: ["core@eu.example.com", "core@us.example.com"] } } }],
    ["dns", { ...linked, cluster: { dns: { name: "example.com", record_type: "srv" } } }],
    ["dns", { ...linked, node: { name: "core@10.0.0.1" }, cluster: { dns: { name: "example.com" } } }],
    ["etcd", { ...linked, cluster: { etcd: { server: "http://10.0.0.9:2379" } } }],
    ["k8s", { ...linked, ...token }],
    ["k8s", { ...linked, cluster: { k8s: { apiserver: "http://127.0.0.1:8001" } } }],
    ["manual", {}],
    ["singleton", {}],
    ["manual", { cluster: { dns: { name: "example.com" }, static: { seeds: "x@local.emqxcl" } } }],
  ])("by %s has what it needs in %j", (strategy, env) => {
    const settings = readSettings({ ...env, TRELLIS_CLUSTER__DISCOVERY_STRATEGY: strategy });
    expect(settings.cluster.discovery_strategy).toBe(strategy);
  });

  it.each<[string, Record<string, unknown>, string]>([
    [
      "static",
      { cluster: { static: { seeds: "core@us.example.com" } } },
      'node.name is missing: cluster.discovery_strategy = "static" needs it\n' +
        'node.cookie is missing: cluster.discovery_strategy = "static" needs it, in TRELLIS_NODE__COOKIE',
    ],
    ["static", linked, 'cluster.static.seeds is missing: cluster.discovery_strategy = "static" needs it'],
    [
      "static",
      { ...linked, cluster: { static: { seeds: "core@weur.eu.example.com" } } },
      'cluster.static.seeds: "core@weur.eu.example.com": allowed are cores, and none of this deployment has the name',
    ],
    [
      "dns",
      { ...linked, cluster: { dns: { record_type: "srv" } } },
      'cluster.dns.name is missing: cluster.discovery_strategy = "dns" needs it',
    ],
    [
      "dns",
      { ...linked, cluster: { dns: { name: "example.com" } } },
      'node.name = "core@eu.example.com": allowed are IPv4 addresses as the host with cluster.dns.record_type = "a"',
    ],
    [
      "dns",
      { ...linked, node: { name: "core@10.0.0.1" }, cluster: { dns: { name: "example.com", record_type: "aaaa" } } },
      'node.name = "core@10.0.0.1": allowed are IPv6 addresses as the host with cluster.dns.record_type = "aaaa"',
    ],
    ["etcd", linked, 'cluster.etcd.server is missing: cluster.discovery_strategy = "etcd" needs it'],
    [
      "k8s",
      linked,
      'cluster.k8s.token is missing: cluster.discovery_strategy = "k8s" with an apiserver at https:// needs it, ' +
        "in TRELLIS_CLUSTER__K8S__TOKEN",
    ],
    [
      "mcast",
      linked,
      'cluster.discovery_strategy = "mcast": the runtime has no UDP multicast, and EMQX has removed this strategy: ' +
        "allowed are manual, static, dns, etcd, k8s, singleton",
    ],
  ])("by %s says what is amiss in %j", (strategy, env, message) => {
    expect(refusal({ ...env, TRELLIS_CLUSTER__DISCOVERY_STRATEGY: strategy })).toBe(message);
  });

  it("by k8s has the suffix of the addresses that are asked for", () => {
    const suffixOf = (k8s: object) => readSettings({ cluster: { k8s } }).cluster.k8s.suffix;
    expect(suffixOf({ address_type: "dns" })).toBe("pod.cluster.local");
    expect(suffixOf({ address_type: "hostname" })).toBe("svc.cluster.local");
    expect(suffixOf({ address_type: "hostname", suffix: "svc.k8s.example.com" })).toBe("svc.k8s.example.com");
  });
});

describe("[G9] secrets of the cluster", () => {
  const variables = ["TRELLIS_NODE__COOKIE", "TRELLIS_CLUSTER__K8S__TOKEN"];

  it("are what their variable says, to the letter", () => {
    const digits = "1234567890123456";
    const settings = readSettings({ TRELLIS_NODE__COOKIE: digits, TRELLIS_CLUSTER__K8S__TOKEN: "[1]" });
    expect(settings.node.cookie).toBe(digits);
    expect(settings.cluster.k8s.token).toBe("[1]");
    expect(readSettings({ ...linked, TRELLIS_NODE: '{"slots":1}' }).node).toMatchObject({ cookie, slots: 1 });
  });

  it.each([
    [{ node: { cookie } }, "node.cookie: allowed is the variable TRELLIS_NODE__COOKIE only: it is a secret"],
    [
      { TRELLIS_NODE: JSON.stringify({ cookie }) },
      "node.cookie: allowed is the variable TRELLIS_NODE__COOKIE only: it is a secret",
    ],
    [
      { cluster: { k8s: { token: cookie } } },
      "cluster.k8s.token: allowed is the variable TRELLIS_CLUSTER__K8S__TOKEN only: it is a secret",
    ],
    [
      { TRELLIS_CLUSTER__K8S: JSON.stringify({ token: cookie }) },
      "cluster.k8s.token: allowed is the variable TRELLIS_CLUSTER__K8S__TOKEN only: it is a secret",
    ],
    [
      { TRELLIS_NODE__COOKIE: "emqxsecretcookie" },
      "node.cookie: allowed is no cookie that everybody knows: emqxsecretcookie is EMQX's default",
    ],
  ])("%j is refused", (env, message) => {
    expect(refusal(env)).toBe(message);
  });

  it.each(["", "fifteen-letters", `${cookie}\n`, `${cookie} `, `${cookie}\u00fc`, "x".repeat(256)])(
    "%j is no cookie",
    (value) => {
      expect(refusal({ TRELLIS_NODE__COOKIE: value })).toBe(
        "node.cookie: allowed are 16 to 255 visible ASCII characters, without spaces",
      );
    },
  );

  it("are in no message", () => {
    const password = "kept-between-us";
    for (const env of [
      ...variables.map((variable) => ({ [variable]: `${password} with spaces` })),
      ...variables.map((variable) => ({ [`${variable}S`]: password })),
      { TRELLIS_NODE: `{"cookie":"${password}"` },
      { TRELLIS_NODE: `[{"cookie":"${password}"}]` },
      { TRELLIS_CLUSTER: `{"k8s":{"token":"${password}"}` },
      { cluster: [{ k8s: { token: password } }] },
      { cluster: { k8s: [{ token: password }] } },
      { node: { cooky: password } },
      { cluster: { etcd: { server: `http://root:${password}@10.0.0.1:2379` } } },
      { cluster: { etcd: { server: [`http://${password}@10.0.0.1:2379`] } } },
      { cluster: { k8s: { apiserver: `https://admin:${password}@10.0.0.1` } } },
      { ssl_options: { keyfile: `-----BEGIN PRIVATE KEY-----\n${password}` } },
    ]) {
      const message = refusal(env);
      expect(message).not.toBe("accepted");
      expect(message).not.toContain(password);
    }
  });
});

describe("TRELLIS_ variables", () => {
  it.each<[string, string, string, unknown]>([
    ["TRELLIS_MQTT__SERVER_KEEPALIVE", "60", "mqtt.server_keepalive", 60],
    ["TRELLIS_MQTT__SERVER_KEEPALIVE", "disabled", "mqtt.server_keepalive", undefined],
    ["TRELLIS_MQTT__MAX_PACKET_SIZE", "512KB", "mqtt.max_packet_size", 524_288],
    ["TRELLIS_MQTT__MAX_PACKET_SIZE", '"512KB"', "mqtt.max_packet_size", 524_288],
    ["TRELLIS_MQTT__RETAIN_AVAILABLE", "false", "mqtt.retain_available", false],
    ["TRELLIS_MQTT", '{"max_inflight":3}', "mqtt.max_inflight", 3],
    [
      "TRELLIS_DURABLE_SESSIONS__MESSAGE_RETENTION_PERIOD",
      "7d",
      "durable_sessions.message_retention_period",
      604_800_000,
    ],
    [
      "TRELLIS_DURABLE_SESSIONS__MESSAGE_RETENTION_PERIOD",
      "infinity",
      "durable_sessions.message_retention_period",
      Infinity,
    ],
    ["TRELLIS_CLUSTER__NAME", "blue", "cluster.name", "blue"],
    ["TRELLIS_CLUSTER__CORE_NODES", "a@x.emqxcl", "cluster.core_nodes", ["a@x.emqxcl"]],
    [
      "TRELLIS_CLUSTER__ETCD__SERVER",
      "http://10.0.0.1:2379,http://10.0.0.2:2379",
      "cluster.etcd.server",
      ["http://10.0.0.1:2379", "http://10.0.0.2:2379"],
    ],
    ["TRELLIS_CLUSTER__STATIC__SEEDS", '["core@10.0.0.1:8084"]', "cluster.static.seeds", ["core@10.0.0.1:8084"]],
    ["TRELLIS_CLUSTER__ETCD", '{"prefix":"blue"}', "cluster.etcd.prefix", "blue"],
    ["TRELLIS_CLUSTER", '{"etcd":{"prefix":"blue"}}', "cluster.etcd.prefix", "blue"],
    ["TRELLIS_DRIVER", "ssl", "driver", "ssl"],
    ["TRELLIS_SSL_OPTIONS__CACERTFILE", "ca.pem", "ssl_options.cacertfile", "ca.pem"],
    ["TRELLIS_RPC__PROTOCOL", "ssl", "driver", "ssl"],
    ["TRELLIS_NODE__NAME", "core@127.0.0.1:8084", "domain", "127.0.0.1:8084"],
    ["TRELLIS_ALLOW_ANONYMOUS", "true", "allow_anonymous", true],
    ["TRELLIS_ORIGINS", '["*"]', "origins", ["*"]],
    ["TRELLIS_AUTHENTICATION", JSON.stringify({ alice }), "authentication.alice", alice],
  ])("%s=%s", (variable, text, path, read) => {
    expect(valueAt({ [variable]: text }, path)).toEqual(read);
  });

  it("go before the tables, and leave the rest of a table alone", () => {
    const env = {
      mqtt: { max_inflight: 5, max_qos_allowed: 1, max_awaiting_rel: 7 },
      TRELLIS_MQTT__MAX_INFLIGHT: "9",
      TRELLIS_MQTT: '{"max_inflight":8,"max_awaiting_rel":6}',
    };
    expect(readSettings(env).mqtt).toMatchObject({ max_inflight: 9, max_qos_allowed: 1, max_awaiting_rel: 6 });
  });

  it("go before the tables of tables, key by key", () => {
    const env = {
      cluster: { name: "blue", etcd: { prefix: "file", node_ttl: "5s", server: ["http://10.0.0.1:2379"] } },
      TRELLIS_CLUSTER: '{"etcd":{"prefix":"whole","node_ttl":"6s"}}',
      TRELLIS_CLUSTER__ETCD: '{"prefix":"table"}',
      TRELLIS_CLUSTER__ETCD__SERVER: "http://10.0.0.2:2379",
    };
    const { cluster } = readSettings(env);
    expect(cluster.name).toBe("blue");
    expect(cluster.etcd).toEqual({ prefix: "table", node_ttl: 6000, server: ["http://10.0.0.2:2379"] });
  });

  it("are refused as the settings are", () => {
    expect(refusal({ TRELLIS_CLUSTER__ETCD: "5" })).toBe("cluster.etcd = 5: allowed is a table");
    expect(refusal({ mqtt: {}, TRELLIS_MQTT: '{"__proto__":{"max_inflight":5}}' })).toMatch(
      /^mqtt.__proto__ is not a setting/,
    );
    expect(refusal({ TRELLIS_MQTT__MAX_QOS_ALLOWED: "7" })).toBe("mqtt.max_qos_allowed = 7: allowed are 0, 1, 2");
    expect(refusal({ TRELLIS_MQTT__MAX_QOS_ALLOWED: "" })).toBe('mqtt.max_qos_allowed = "": allowed are 0, 1, 2');
  });

  it.each([
    ["TRELLIS_MQTT__SERVER_KEEPALIV", "TRELLIS_MQTT__SERVER_KEEPALIVE"],
    ["TRELLIS_MQT__SERVER_KEEPALIVE", "TRELLIS_MQTT__SERVER_KEEPALIVE"],
    ["TRELLIS_AUTHENTICATON", "TRELLIS_AUTHENTICATION"],
    ["TRELLIS_AUTHENTICATION__ALICE", "TRELLIS_AUTHENTICATION"],
    ["TRELLIS___PROTO____POLLUTED", ""],
    ["TRELLIS_MQTT__SERVER_KEEPALIVE__X", "TRELLIS_MQTT__SERVER_KEEPALIVE"],
    ["TRELLIS_CLUSTER__ETC__SERVER", "TRELLIS_CLUSTER__ETCD__SERVER"],
    ["TRELLIS_CLUSTER__STATIC__SEED", "TRELLIS_CLUSTER__STATIC__SEEDS"],
    ["TRELLIS_NODE__COOKI", "TRELLIS_NODE__COOKIE"],
  ])("%s is no setting", (variable, meant) => {
    const message = refusal({ [variable]: `secret ${alice}` });
    expect(message).toMatch(/ is not a setting: did you mean TRELLIS_\w+\?$/);
    expect(message).toContain(meant);
    expect(message).not.toContain("secret");
  });
});

describe("[G9] authentication", () => {
  it("takes any user name, and finds none that is not there", () => {
    const names = ["alice", "constructor", "a b/c", "\u00fc"];
    const table = Object.fromEntries(names.map((name) => [name, alice]));
    const { authentication } = readSettings({ authentication: table });
    for (const name of names) expect(authentication[name]).toBe(alice);
    expect(authentication["toString"]).toBeUndefined();
    const proto = readSettings({ TRELLIS_AUTHENTICATION: `{"__proto__":"${alice}"}` });
    expect(Object.keys(proto.authentication)).toEqual(["__proto__"]);
  });

  it.each([
    "plain",
    "",
    5,
    null,
    { hash: alice },
    `$scrypt$ln=9,r=8,p=1$${salt}$${hash}`,
    `$scrypt$ln=18,r=1,p=1$${salt}$${hash}`,
    `$scrypt$ln=17,r=8,p=1$${salt}$${hash}`,
    `$scrypt$ln=15,r=17,p=1$${salt}$${hash}`,
    `$scrypt$ln=15,r=0,p=1$${salt}$${hash}`,
    `$scrypt$ln=15,r=8,p=5$${salt}$${hash}`,
    `$scrypt$ln=15,r=8,p=0$${salt}$${hash}`,
    `$scrypt$ln=15,p=1,r=8$${salt}$${hash}`,
    `$scrypt$ln=15,r=8,p=1$${salt}`,
    `$scrypt$ln=15,r=8,p=1$c2Fs$${hash}`,
    `$scrypt$ln=15,r=8,p=1$${salt}$aGFzaA`,
    `$scrypt$ln=15,r=8,p=1$${salt}$${"A".repeat(200)}`,
    `$scrypt$ln=15,r=8,p=1$${salt}x$${hash}!`,
    `$scrypt$ln=15,r=8,p=1$AAAAAAAAAAAAA$${hash}`,
    `$2b$12$${hash}`,
    `${alice}\n`,
  ])("refuses %j, naming the user and nothing else", (value) => {
    for (const env of [
      { authentication: { alice: value } },
      { TRELLIS_AUTHENTICATION: JSON.stringify({ alice: value }) },
    ]) {
      const message = refusal(env);
      expect(message).toMatch(/^authentication of "alice": [^\n]+$/);
      for (const secret of [salt, hash, "plain", "AAAA"]) expect(message).not.toContain(secret);
    }
  });

  it("shows no hash that is in the wrong place", () => {
    for (const env of [
      { TRELLIS_AUTHENTICATION: `{"alice":"${alice}"` },
      { authentication: [alice] },
      { authentication: { [alice]: "alice" } },
      { authentication: { "": alice } },
      { TRELLIS_ORIGINS: alice },
      { TRELLIS_MQTT: `{"alice":"${alice}"` },
      { cluster: { name: { alice } } },
      { authorization: [{ permission: alice, action: "all" }] },
    ]) {
      const message = refusal(env);
      expect(message).not.toBe("accepted");
      expect(message).not.toContain(hash);
    }
  });
});

describe("authorization", () => {
  it("is an ordered list of rules", () => {
    const authorization = [
      { permission: "deny", action: "subscribe", topics: ["secret/#", "eq #"] },
      { permission: "allow", action: "all", topics: ["c/${clientid}/#"], username: "alice", clientid: "c1" },
      { permission: "allow", action: "publish" },
    ];
    expect(readSettings({ authorization }).authorization).toEqual(authorization);
    expect(readSettings({ TRELLIS_AUTHORIZATION: JSON.stringify(authorization) }).authorization).toEqual(authorization);
  });

  it.each([
    [{ action: "all" }, "authorization.0.permission is missing"],
    [{ permission: "allow" }, "authorization.0.action is missing"],
    [{ permission: "grant", action: "all" }, 'authorization.0.permission = "grant": allowed are allow, deny'],
    [{ permission: "allow", action: "read" }, 'authorization.0.action = "read": allowed are publish, subscribe, all'],
    [
      { permission: "allow", action: "all", topic: ["a"] },
      "authorization.0.topic is not a setting: did you mean authorization.0.topics?",
    ],
    [
      { permission: "allow", action: "all", topics: ["a", "a/#/b"] },
      'authorization.0.topics.1 = "a/#/b": allowed is a topic filter ("#" is the whole last level)',
    ],
    [
      { permission: "allow", action: "all", topics: [] },
      "authorization.0.topics = []: allowed is a list of topics, at least 1",
    ],
    [
      { permission: "allow", action: "all", username: "" },
      'authorization.0.username = "": allowed is a user name (it is empty)',
    ],
    ["allow", 'authorization.0 = "allow": allowed is a table'],
  ])("refuses the rule %j", (rule, message) => {
    expect(refusal({ authorization: [rule] })).toBe(message);
  });
});
