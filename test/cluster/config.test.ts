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

/** { "mqtt.max_inflight": 1 } as tables. */
function envOf(path: string, value: unknown): Record<string, unknown> {
  const [top = "", key] = path.split(".");
  return { [top]: key === undefined ? value : { [key]: value } };
}

function valueAt(env: Record<string, unknown>, path: string): unknown {
  return path.split(".").reduce<unknown>((value, key) => (value as Record<string, unknown>)[key], readSettings(env));
}

describe("settings", () => {
  it("have EMQX's defaults", () => {
    expect(readSettings({})).toEqual({
      cluster: { name: "emqxcl", core_nodes: ["core@local.emqxcl"] },
      node: { slots: 8, max_connections: 10_000 },
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
    ["cluster.core_nodes", "a@local.emqxcl, b@local.emqxcl"],
    ["cluster.core_nodes", ["core"]],
    ["cluster.core_nodes", ["core@local.other"]],
    ["cluster.core_nodes", ["core@local.emqxcl", "core@local.emqxcl"]],
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

  it("put the default core into the cluster that is named", () => {
    expect(readSettings({ cluster: { name: "blue" } }).cluster.core_nodes).toEqual(["core@local.blue"]);
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

  it("are refused as the settings are", () => {
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
