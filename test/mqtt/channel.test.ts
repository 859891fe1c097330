import { describe, expect, test } from "vitest";
import type { ProtocolVersion } from "../../mqtt/codec.ts";
import { limits } from "../../mqtt/limits.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";
import { expiryNever } from "../../mqtt/session.ts";
import { random } from "../support/random.ts";
import { bytesOf, Client, FakeBroker, now, start } from "./channel-client.ts";
import { delivery } from "./session-world.ts";

const versions: ProtocolVersion[] = [3, 4, 5];
const before5: ProtocolVersion[] = [3, 4];

const publish = (messageId: number, fields: object = {}) => ({ cmd: "publish", qos: 1, messageId, ...fields }) as const;
const subscribe = (messageId: number, ...topics: string[]) =>
  ({ cmd: "subscribe", messageId, subscriptions: topics.map((topic) => ({ topic, qos: 2 })) }) as const;
const disconnected = (reasonCode: number) => [expect.objectContaining({ cmd: "disconnect", reasonCode }), "closed"];
const refused = (reasonCode: number) => [
  expect.objectContaining({ cmd: "connack", sessionPresent: false, reasonCode }),
  "closed",
];
/** What a client of each version gets for breaking the protocol. */
const cut = (version: ProtocolVersion, reasonCode: number) => (version === 5 ? disconnected(reasonCode) : ["closed"]);

/** The generator refuses to make it: an id of one byte, at the packet's end, is made none. */
function connectWithoutId(version: ProtocolVersion, clean: boolean): Uint8Array {
  const bytes = bytesOf({ cmd: "connect", clientId: "x", clean }, version);
  return Uint8Array.from([bytes[0]!, bytes[1]! - 1, ...bytes.subarray(2, -3), 0, 0]);
}

describe("before CONNECT", () => {
  test.each(versions)("[MQTT-3.1.0-1] anything but CONNECT closes without a word, version %i", (version) => {
    for (const packet of [
      publish(1),
      { cmd: "publish" },
      subscribe(1, "t"),
      { cmd: "unsubscribe", messageId: 1, unsubscriptions: ["t"] },
      { cmd: "puback", messageId: 1 },
      { cmd: "pubrec", messageId: 1 },
      { cmd: "pubrel", messageId: 1 },
      { cmd: "pubcomp", messageId: 1 },
      { cmd: "pingreq" },
      { cmd: "disconnect" },
      ...(version === 5 ? [{ cmd: "auth" } as const] : []),
    ] as const) {
      const { client } = start(version);
      client.sends(packet);
      expect(client.receives()).toEqual(["closed"]);
      client.sends({ cmd: "connect" });
      expect(client.receives()).toEqual([]);
    }
  });

  test("[MQTT-3.14.0-1] an error is no reason for a DISCONNECT before CONNACK", () => {
    const { client } = start(5);
    client.fails(ReasonCode.KeepAliveTimeout);
    expect(client.receives()).toEqual(["closed"]);
  });

  test("[MQTT-3.1.2-1] another protocol's name: no CONNACK; [MQTT-3.1.2-2] another version: 0x84", () => {
    const bytes = bytesOf({ cmd: "connect" }, 5);
    const { client } = start(5);
    client.sendsBytes(bytes.with(4, 0x6d));
    expect(client.receives()).toEqual(["closed"]);
    for (const level of [0, 3, 6, 0x84]) {
      const { client } = start(5);
      client.sendsBytes(bytes.with(8, level));
      expect(client.receives()).toEqual(refused(0x84));
    }
  });
});

describe("CONNECT", () => {
  test.each(versions)("[MQTT-3.2.0-1] authenticate, open, CONNACK, then what waits, version %i", (version) => {
    const { client } = start(version);
    client.sends({ cmd: "connect" });
    expect(client.effects).toEqual(["authenticate", "open", "connack", "pump"]);
  });

  test.each(versions)("[MQTT-3.1.4-4] nothing is answered before the cluster is, version %i", (version) => {
    const { client, broker } = start(version);
    client.opens = false;
    client.sends({ cmd: "connect" });
    expect(client.receives()).toEqual([]);
    expect(() => client.sends({ cmd: "pingreq" })).toThrow("before its CONNECT was answered");
    client.opensNow(broker.opened[0]!);
    expect(client.receives()).toHaveLength(1);
  });

  test("[MQTT-3.2.2-2] [MQTT-3.2.2-3] CONNACK of 5.0 tells the limits, and nothing that is as by default", () => {
    const { client } = start(5, { settings: { max_packet_size: 2048, max_inflight: 7, max_topic_alias: 9 } });
    client.sends({ cmd: "connect", properties: { sessionExpiryInterval: 30 } });
    expect(client.receives()).toEqual([
      {
        cmd: "connack",
        sessionPresent: false,
        reasonCode: 0,
        properties: { receiveMaximum: 7, maximumPacketSize: 2048, topicAliasMaximum: 9 },
      },
    ]);
  });

  test("[MQTT-3.2.2-9] [MQTT-3.2.2-21] CONNACK of 5.0 tells what is switched off", () => {
    for (const [settings, properties] of [
      [{ max_qos_allowed: 0 }, { maximumQoS: 0 }],
      [{ max_qos_allowed: 1 }, { maximumQoS: 1 }],
      [{ retain_available: false }, { retainAvailable: false }],
      [{ wildcard_subscription: false }, { wildcardSubscriptionAvailable: false }],
      [{ shared_subscription: false }, { sharedSubscriptionAvailable: false }],
      [{ server_keepalive: 30 }, { serverKeepAlive: 30 }],
      // QoS 2 holds its place until PUBREL: what is promised must fit.
      [{ max_inflight: 10, max_awaiting_rel: 3 }, { receiveMaximum: 3 }],
    ] as const) {
      const { client } = start(5, { settings });
      client.sends({ cmd: "connect" });
      expect(client.receives()).toEqual([
        expect.objectContaining({ properties: expect.objectContaining(properties) as object }),
      ]);
    }
  });

  test.each(before5)("CONNACK before 5.0 has no properties, version %i", (version) => {
    const { client } = start(version, { settings: { server_keepalive: 30, max_qos_allowed: 1 } });
    client.sends({ cmd: "connect" });
    expect(client.receives()).toEqual([{ cmd: "connack", sessionPresent: false, returnCode: 0 }]);
    expect(client.channel.facts?.keepAlive).toBe(60);
  });

  test("[MQTT-3.2.2-2] [MQTT-3.2.2-3] session present when there was one, and 3.1 has no such flag", () => {
    for (const version of versions) {
      const broker = new FakeBroker({});
      const connect = (clean: boolean) => {
        const client = new Client(version, broker);
        const properties = version === 5 ? { sessionExpiryInterval: 100 } : {};
        client.sends({ cmd: "connect", clean, properties });
        const [connack] = client.receives();
        client.vanishes();
        return (connack as { sessionPresent: boolean }).sessionPresent;
      };
      expect(connect(false)).toBe(false);
      expect(connect(false)).toBe(version !== 3);
      expect(connect(true)).toBe(false);
    }
  });

  test("[MQTT-3.1.2-23] how long the session lasts: 5.0 says it, before that clean or the setting", () => {
    const expiryOf = (version: ProtocolVersion, fields: object, session_expiry_interval = 7_200_500) => {
      const { client, broker } = start(version, { settings: { session_expiry_interval } });
      client.sends({ cmd: "connect", ...fields });
      return broker.opened[0]!.expiryInterval;
    };
    expect(expiryOf(5, {})).toBe(0);
    expect(expiryOf(5, { clean: false })).toBe(0);
    expect(expiryOf(5, { properties: { sessionExpiryInterval: 5 } })).toBe(5);
    expect(expiryOf(5, { properties: { sessionExpiryInterval: expiryNever } })).toBe(expiryNever);
    for (const version of before5) {
      expect(expiryOf(version, { clean: true })).toBe(0);
      expect(expiryOf(version, { clean: false })).toBe(7200);
      expect(expiryOf(version, { clean: false }, expiryNever * 1000)).toBe(expiryNever);
    }
  });

  test("what CONNECT settles for the connection", () => {
    const { client, broker } = start(5, { settings: { max_inflight: 20 } });
    client.sends({
      cmd: "connect",
      clean: false,
      keepalive: 7,
      username: "ann",
      password: Buffer.from("secret"),
      properties: {
        receiveMaximum: 10,
        maximumPacketSize: 300,
        topicAliasMaximum: 4,
        requestProblemInformation: false,
      },
    });
    expect(client.credentials).toMatchObject({ username: "ann" });
    expect(new TextDecoder().decode(client.credentials?.password)).toBe("secret");
    expect(broker.opened).toMatchObject([{ facts: { clientId: "c" }, will: undefined }]);
    expect(client.channel.facts).toEqual({
      version: 5,
      clientId: "c",
      username: "ann",
      keepAlive: 7,
      receiveMaximum: 10,
      maximumPacketSize: 300,
      topicAliasMaximum: 4,
      cleanStart: false,
      connectedAt: now,
    });
  });

  test("[MQTT-3.3.4-9] the window is the smaller of the client's Receive Maximum and max_inflight", () => {
    for (const [receiveMaximum, max_inflight, window] of [
      [2, 3, 2],
      [3, 2, 2],
      [undefined, 2, 2],
    ] as const) {
      const { client } = start(5, { settings: { max_inflight } });
      client.connect(receiveMaximum === undefined ? {} : { properties: { receiveMaximum } });
      for (const id of ["a", "b", "c", "d"]) client.gets(delivery(id));
      expect(client.receives()).toHaveLength(window);
    }
  });

  test("[MQTT-3.1.2-21] [MQTT-3.2.2-21] the server's keep alive takes the place of a longer one and of none", () => {
    for (const [asked, told] of [
      [0, 30],
      [31, 30],
      [30, undefined],
      [29, undefined],
    ] as const) {
      const { client } = start(5, { settings: { server_keepalive: 30 } });
      client.sends({ cmd: "connect", keepalive: asked });
      const [connack] = client.receives() as { properties: { serverKeepAlive?: number } }[];
      expect({ asked, told: connack?.properties.serverKeepAlive }).toEqual({ asked, told });
      expect(client.channel.facts?.keepAlive).toBe(told ?? asked);
    }
  });

  test("[MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.2.2-16] a client without an id gets one of its own and is told", () => {
    const broker = new FakeBroker({});
    for (const clean of [true, false]) {
      const client = new Client(5, broker);
      client.sendsBytes(connectWithoutId(5, clean));
      const [connack] = client.receives() as { properties: { assignedClientIdentifier: string } }[];
      expect(connack?.properties.assignedClientIdentifier).toBe(broker.opened.at(-1)?.facts.clientId);
    }
    expect(new Set(broker.opened.map(({ facts }) => facts.clientId)).size).toBe(2);
  });

  test("[MQTT-3.1.3-7] [MQTT-3.1.3-8] of 3.1.1: no id needs a clean session; 3.1 needs an id", () => {
    const answer = (version: ProtocolVersion, clean: boolean) => {
      const { client } = start(version);
      client.sendsBytes(connectWithoutId(version, clean));
      return client.receives();
    };
    const code2 = [{ cmd: "connack", sessionPresent: false, returnCode: 2 }, "closed"];
    expect(answer(4, true)).toEqual([{ cmd: "connack", sessionPresent: false, returnCode: 0 }]);
    expect(answer(4, false)).toEqual(code2);
    expect(answer(3, true)).toEqual(code2);
  });

  test("[MQTT-4.12.0-1] an authentication method is refused with 0x8C", () => {
    const { client, broker } = start(5);
    client.sends({ cmd: "connect", properties: { authenticationMethod: "SCRAM-SHA-256" } });
    expect(client.receives()).toEqual(refused(0x8c));
    expect(broker.opened).toEqual([]);
  });

  test.each([
    [ReasonCode.BadUserNameOrPassword, 4],
    [ReasonCode.NotAuthorized, 5],
    [ReasonCode.ServerUnavailable, 3],
    [ReasonCode.ServerBusy, 3],
  ])("[MQTT-3.1.4-2] [MQTT-3.2.2-6] refused by 0x%x: the reason in 5.0, return code %i before", (reasonCode, code) => {
    for (const version of versions) {
      const { client, broker } = start(version);
      client.verdict = reasonCode;
      client.sends({ cmd: "connect" });
      expect(client.receives()).toEqual(
        version === 5 ? refused(reasonCode) : [{ cmd: "connack", sessionPresent: false, returnCode: code }, "closed"],
      );
      expect(broker.opened).toEqual([]);
    }
  });

  test("[MQTT-3.2.2-8] an error while connecting is told by CONNACK, in a code that CONNACK has", () => {
    for (const reasonCode of Object.values(ReasonCode).filter((code) => code >= 0x80)) {
      for (const version of versions) {
        const { client } = start(version);
        client.opens = false;
        client.sends({ cmd: "connect" });
        client.fails(reasonCode);
        const [connack, ...rest] = client.receives();
        if (version !== 5 && connack === "closed") continue;
        expect(rest).toEqual(["closed"]);
        if (version === 5) {
          const told = (connack as { reasonCode: number }).reasonCode;
          expect({ reasonCode, told, known: connackCodes.has(told) }).toEqual({ reasonCode, told, known: true });
        } else expect([1, 2, 3, 4, 5]).toContain((connack as { returnCode: number }).returnCode);
      }
    }
  });

  test("an answer that comes when the client has left is for nobody", () => {
    const { client, broker } = start(5);
    client.opens = false;
    client.verdict = undefined;
    client.sends({ cmd: "connect" });
    client.vanishes();
    client.channel.handleAuthenticated(ReasonCode.Success);
    client.perform();
    expect(broker.opened).toEqual([]);
    expect(client.receives()).toEqual([]);
  });
});

describe("a second CONNECT", () => {
  test.each(versions)("[MQTT-3.1.0-2] ends the connection, version %i", (version) => {
    const { client } = start(version);
    client.connect();
    client.sends({ cmd: "connect" });
    expect(client.receives()).toEqual(cut(version, 0x82));
  });

  test.each(versions)("[MQTT-3.2.0-2] is not answered with a CONNACK if it is malformed, version %i", (version) => {
    const connect = bytesOf({ cmd: "connect" }, version);
    const levelAt = version === 3 ? 10 : 8;
    for (const bytes of [
      connect.with(levelAt, 6),
      connect.with(4, 0x6d),
      connect.with(levelAt + 1, 0xc0), // credentials that are not there
      bytesOf({ cmd: "connect" }, 5).with(9, 0x01),
    ]) {
      const { client } = start(version);
      client.connect();
      client.sendsBytes(bytes);
      const received = client.receives();
      expect(received.at(-1)).toBe("closed");
      // Not 0x84 or 0x85 either: DISCONNECT has no such codes. [MQTT-3.14.2-1]
      if (version !== 5) expect(received).toHaveLength(1);
      else if (received.length > 1) expect(received[0]).toMatchObject({ cmd: "disconnect" });
      for (const each of received)
        if (each !== "closed" && "reasonCode" in each) expect([0x81, 0x82]).toContain(each.reasonCode);
    }
  });
});

describe("the will", () => {
  const will = { topic: "w/x", payload: "gone", qos: 1, retain: true };

  test("[MQTT-3.1.2-7] goes with the session's opening", () => {
    const { client, broker } = start(5);
    const properties = { willDelayInterval: 5, messageExpiryInterval: 9, contentType: "text/plain" };
    client.sends({ cmd: "connect", will: { ...will, properties } });
    expect(new TextDecoder().decode(broker.opened[0]?.will?.payload)).toBe("gone");
    expect(broker.opened[0]?.will).toMatchObject({
      topic: "w/x",
      qos: 1,
      retain: true,
      delaySeconds: 5,
      messageExpiryInterval: 9,
    });
    // The content type alone is passed on: the intervals are the broker's.
    expect(broker.opened[0]?.will?.properties).toHaveLength(13);
  });

  test.each(versions)(
    "[MQTT-3.2.2-12] [MQTT-3.2.2-13] what the broker does not offer is refused, version %i",
    (version) => {
      for (const [settings, reasonCode] of [
        [{ max_qos_allowed: 0 }, 0x9b],
        [{ retain_available: false }, 0x9a],
        [{ max_topic_levels: 1 }, 0x90],
      ] as const) {
        const { client, broker } = start(version, { settings });
        client.sends({ cmd: "connect", will });
        // [MQTT-3.2.2-6] of 3.1.1: where no return code applies the connection is closed without.
        expect(client.receives()).toEqual(version === 5 ? refused(reasonCode) : ["closed"]);
        expect(broker.opened).toEqual([]);
      }
    },
  );

  test.each(versions)(
    "[G9] to a topic that the client may not publish to: 0x87, return code 5, version %i",
    (version) => {
      const rules = [{ permission: "deny", action: "publish", topics: ["w/#"] } as const];
      for (const [options, topic] of [
        [{ rules: [...rules, { permission: "allow", action: "all" } as const] }, "w/x"],
        [{}, "$SYS/x"],
      ] as const) {
        const { client, broker } = start(version, options);
        client.sends({ cmd: "connect", will: { ...will, topic } });
        expect(client.receives()).toEqual(
          version === 5 ? refused(0x87) : [{ cmd: "connack", sessionPresent: false, returnCode: 5 }, "closed"],
        );
        expect(broker.opened).toEqual([]);
      }
    },
  );

  test.each(versions)("[MQTT-3.1.2-8] is due when the connection is lost or broken off, version %i", (version) => {
    for (const end of [
      (client: Client) => client.vanishes(),
      (client: Client) => client.fails(ReasonCode.KeepAliveTimeout),
      (client: Client) => client.sends({ cmd: "connect" }),
    ]) {
      const { client, broker } = start(version);
      client.connect({ will });
      end(client);
      expect(broker.wills).toEqual(["w/x"]);
    }
  });

  test.each(versions)("[MQTT-3.1.2-10] [MQTT-3.14.4-3] is forgotten on DISCONNECT, version %i", (version) => {
    const { client, broker } = start(version);
    client.connect({ will });
    client.sends({ cmd: "disconnect" });
    expect(client.receives()).toEqual(["closed"]);
    expect(broker.wills).toEqual([]);
  });

  test("[MQTT-3.1.2-8] is due on DISCONNECT with a reason other than 0x00", () => {
    for (const reasonCode of [0x04, 0x80, 0x93, 0x7f]) {
      const { client, broker } = start(5);
      client.connect({ will });
      client.sends({ cmd: "disconnect", reasonCode });
      expect(client.receives()).toEqual(["closed"]);
      expect(broker.wills).toEqual(["w/x"]);
    }
  });
});

describe("DISCONNECT", () => {
  test.each(versions)("[MQTT-3.14.4-1] what follows is discarded, version %i", (version) => {
    const { client, broker } = start(version);
    client.connect();
    client.sends({ cmd: "disconnect" });
    expect(client.receives()).toEqual(["closed"]);
    client.sends({ cmd: "publish" });
    client.sends({ cmd: "pingreq" });
    client.fails(ReasonCode.SessionTakenOver);
    expect(client.receives()).toEqual([]);
    expect(broker.published).toEqual([]);
  });

  test("[MQTT-3.14.2-2] a session without expiry cannot get one now: 0x82", () => {
    const { client, broker } = start(5);
    const session = client.connect({ will: { topic: "w", payload: "" } });
    client.sends({ cmd: "disconnect", properties: { sessionExpiryInterval: 1 } });
    expect(client.receives()).toEqual(disconnected(0x82));
    expect(session.expiryInterval).toBe(0);
    // The connection was not ended by DISCONNECT, but by the error.
    expect(broker.wills).toEqual(["w"]);
  });

  test("another expiry takes the place of CONNECT's, 0 too", () => {
    for (const [connected, given, then] of [
      [100, 7, 7],
      [100, expiryNever, expiryNever],
      [100, 0, 0],
      [0, 0, 0],
      [100, undefined, 100],
    ] as const) {
      const { client, broker } = start(5);
      const session = client.connect({ properties: { sessionExpiryInterval: connected } });
      client.sends({ cmd: "disconnect", properties: given === undefined ? {} : { sessionExpiryInterval: given } });
      expect(client.receives()).toEqual(["closed"]);
      expect(session.expiryInterval).toBe(then);
      expect(broker.sessions.has("c")).toBe(then > 0);
    }
  });

  test("[MQTT-4.13.1-1] the broker's reason is told in 5.0, and by the close alone before", () => {
    for (const version of versions) {
      const { client } = start(version);
      client.connect();
      client.fails(ReasonCode.SessionTakenOver);
      expect(client.receives()).toEqual(cut(version, 0x8e));
    }
  });
});

describe("publishing", () => {
  test.each(versions)("the message as it goes through the cluster, version %i", (version) => {
    const { client, broker } = start(version);
    client.connect();
    const properties = { messageExpiryInterval: 3, userProperties: { k: "v" } };
    client.sends({ cmd: "publish", topic: "a/b", payload: "hello", retain: true, properties });
    client.sends(publish(7));
    expect(broker.published).toMatchObject([
      {
        message: {
          topic: "a/b",
          payload: new TextEncoder().encode("hello"),
          qos: 0,
          retain: true,
          expiresAt: version === 5 ? now + 3000 : 0,
          from: "c",
        },
        receipt: undefined,
        delaySeconds: 0,
      },
      { message: { topic: "t", qos: 1, retain: false, expiresAt: 0 }, receipt: { packetId: 7 } },
    ]);
    const [first, second] = broker.published;
    expect(first?.message.properties).toHaveLength(version === 5 ? 7 : 0);
    expect(first?.message.id).not.toBe(second?.message.id);
  });

  test.each(versions)("[MQTT-4.3.2-4] PUBACK when the cluster has the message, not before, version %i", (version) => {
    const { client, broker } = start(version);
    client.connect();
    client.sends(publish(7));
    client.sends({ cmd: "publish" });
    expect(client.receives()).toEqual([]);
    broker.answers(0);
    expect(client.receives()).toEqual([{ cmd: "puback", messageId: 7, reasonCode: 0 }]);
  });

  test.each(versions)("[MQTT-4.3.3-8] [MQTT-4.3.3-11] PUBREC, PUBREL, PUBCOMP, version %i", (version) => {
    const { client, broker } = start(version);
    client.connect();
    client.sends(publish(7, { qos: 2 }));
    expect(client.receives()).toEqual([]);
    broker.answers(0);
    expect(client.receives()).toEqual([{ cmd: "pubrec", messageId: 7, reasonCode: 0 }]);
    client.sends({ cmd: "pubrel", messageId: 7 });
    expect(client.receives()).toEqual([{ cmd: "pubcomp", messageId: 7, reasonCode: 0 }]);
    client.sends(publish(7, { qos: 2 }));
    expect(broker.published).toHaveLength(2);
  });

  test.each(versions)("[MQTT-4.3.3-11] PUBREL is answered whether the id is known or not, version %i", (version) => {
    const { client } = start(version);
    client.connect();
    client.sends({ cmd: "pubrel", messageId: 9 });
    const [pubcomp, ...rest] = client.receives();
    expect(rest).toEqual([]);
    expect(pubcomp).toMatchObject({ cmd: "pubcomp", messageId: 9 });
    expect([0x00, 0x92]).toContain((pubcomp as { reasonCode: number }).reasonCode);
  });

  test("[MQTT-4.6.0-2] [MQTT-4.6.0-3] acknowledgements in the order of the publishes, whatever the cluster's, seeded", () => {
    for (let seed = 1; seed <= 50; seed++) {
      const next = random(seed);
      const { client, broker } = start(5, { settings: { max_inflight: 40 } });
      client.connect();
      const expected: string[] = [];
      const seen: string[] = [];
      for (let id = 1; id <= 30; id++) {
        const qos = next() < 0.5 ? 1 : 2;
        client.sends(publish(id, { qos }));
        expected.push(`${qos === 1 ? "puback" : "pubrec"} ${id}`);
      }
      while (broker.unanswered.length > 0) {
        broker.answers(next() < 0.2 ? 0x80 : 0, Math.floor(next() * broker.unanswered.length));
        for (const each of client.receives() as { cmd: string; messageId: number }[])
          seen.push(`${each.cmd} ${each.messageId}`);
        expect(seen).toEqual(expected.slice(0, seen.length));
      }
      expect({ seed, seen }).toEqual({ seed, seen: expected });
    }
  });

  test("no subscriber: PUBACK says it in 5.0 (0x10)", () => {
    for (const version of versions) {
      const { client, broker } = start(version);
      client.connect();
      client.sends(publish(1));
      broker.answers(0x10);
      expect(client.receives()).toEqual([{ cmd: "puback", messageId: 1, reasonCode: 0x10 }]);
      client.sends(publish(2, { qos: 2 }));
      broker.answers(0x10);
      const [pubrec] = client.receives();
      expect([0x00, 0x10]).toContain((pubrec as { reasonCode: number }).reasonCode);
    }
  });

  test("[G1] what could not be routed: 5.0 is told, before that the connection ends and nothing is acknowledged", () => {
    for (const version of versions)
      for (const [qos, cmd] of [
        [1, "puback"],
        [2, "pubrec"],
      ] as const)
        for (const reasonCode of [0x80, 0x97]) {
          const { client, broker } = start(version);
          client.connect();
          client.sends(publish(1, { qos }));
          broker.answers(reasonCode);
          expect(client.receives()).toEqual(version === 5 ? [{ cmd, messageId: 1, reasonCode }] : ["closed"]);
          if (version !== 5) continue;
          // [MQTT-4.3.3-9] the id is free: the next publish with it is a new one.
          client.sends(publish(1, { qos }));
          expect(broker.published).toHaveLength(2);
        }
  });

  test("a failure behind an acknowledgement that may go: that one goes first", () => {
    const { client, broker } = start(4);
    client.connect();
    for (const id of [1, 2, 3]) client.sends(publish(id));
    broker.answers(0x80, 1);
    broker.answers(0, 1);
    expect(client.receives()).toEqual([]);
    broker.answers(0);
    expect(client.receives()).toEqual([{ cmd: "puback", messageId: 1, reasonCode: 0 }, "closed"]);
  });

  test.each(versions)("[MQTT-3.2.2-11] QoS above the maximum: 0x9B, version %i", (version) => {
    for (const qos of [1, 2]) {
      const { client, broker } = start(version, {
        settings: { max_qos_allowed: qos - 1 } as { max_qos_allowed: 0 | 1 },
      });
      client.connect();
      client.sends(publish(1, { qos }));
      expect(client.receives()).toEqual(cut(version, 0x9b));
      expect(broker.published).toEqual([]);
    }
  });

  test.each(versions)("[MQTT-3.2.2-14] RETAIN where it is off: 0x9A, version %i", (version) => {
    const { client, broker } = start(version, { settings: { retain_available: false } });
    client.connect();
    client.sends({ cmd: "publish", retain: true });
    expect(client.receives()).toEqual(cut(version, 0x9a));
    expect(broker.published).toEqual([]);
  });

  test.each(versions)("too many levels: 0x90, version %i", (version) => {
    const { client, broker } = start(version, { settings: { max_topic_levels: 3 } });
    client.connect();
    client.sends({ cmd: "publish", topic: "a/b/c" });
    expect(broker.published).toHaveLength(1);
    client.sends({ cmd: "publish", topic: "a/b/c/" });
    expect(client.receives()).toEqual(cut(version, 0x90));
    expect(broker.published).toHaveLength(1);
  });

  test.each(versions)("$delayed: the topic behind the delay; 0x90 if there is none, version %i", (version) => {
    const { client, broker } = start(version);
    client.connect();
    client.sends({ cmd: "publish", topic: "$delayed/5/a/b" });
    expect(broker.published).toMatchObject([{ message: { topic: "a/b" }, delaySeconds: 5 }]);
    client.sends({ cmd: "publish", topic: "$delayed/x/a/b" });
    expect(client.receives()).toEqual(cut(version, 0x90));
  });

  test("[G6] publishes that the cluster has not answered are bounded: the next are held back", () => {
    const { client } = start(4);
    client.connect();
    for (let count = 0; count < limits.publishesUnansweredMax; count++) {
      expect(client.channel.holdsBack).toBe(false);
      client.sends(publish(1 + (count % 65_535)));
    }
    expect(client.channel.holdsBack).toBe(true);
    expect(client.closed).toBe(false);
  });

  test("[MQTT-3.3.4-7] a 5.0 client at its Receive Maximum is held back while it is owed an acknowledgement", () => {
    const { client, broker } = start(5, { settings: { max_inflight: 2 } });
    client.connect();
    client.sends(publish(1));
    client.sends(publish(2, { qos: 2 }));
    expect(client.channel.holdsBack).toBe(true);
    broker.answers(0);
    expect(client.channel.holdsBack).toBe(false);
    client.sends(publish(3));
    expect(client.channel.holdsBack).toBe(true);
    broker.answers(0);
    broker.answers(0);
    // Place is taken by the id that its PUBREL is missing for: nothing is owed, and one more at once is an error.
    expect(client.channel.holdsBack).toBe(false);
  });

  test("a 3.1.1 client, which knows of no limit, is held back until it releases", () => {
    const { client, broker } = start(4, { settings: { max_awaiting_rel: 1 } });
    client.connect();
    client.sends(publish(1, { qos: 2 }));
    broker.answers(0);
    expect(client.channel.holdsBack).toBe(true);
    client.sends({ cmd: "pubrel", messageId: 1 });
    expect(client.channel.holdsBack).toBe(false);
  });
});

describe("publishing without the right to [G9]", () => {
  const rules = [
    { permission: "deny", action: "publish", topics: ["secret/#"], username: "ann" },
    { permission: "deny", action: "publish", topics: ["t/${clientid}"] },
    { permission: "allow", action: "all" },
  ] as const;

  test.each(versions)(
    "[MQTT-3.3.5-2] QoS 1 and 2: 0x87 in 5.0, a plain acknowledgement before, version %i",
    (version) => {
      for (const [qos, cmd] of [
        [1, "puback"],
        [2, "pubrec"],
      ] as const) {
        const { client, broker } = start(version, { rules });
        client.connect();
        client.sends(publish(1, { qos, topic: "t/c" }));
        const [acknowledgement, ...rest] = client.receives();
        expect(rest).toEqual([]);
        expect(acknowledgement).toMatchObject({ cmd, messageId: 1 });
        if (version === 5) expect(acknowledgement).toMatchObject({ reasonCode: 0x87 });
        expect(broker.published).toEqual([]);
        expect(broker.droppedCount).toBe(1);
      }
    },
  );

  test.each(versions)("QoS 0 is dropped and counted, version %i", (version) => {
    const { client, broker } = start(version, { rules });
    client.connect({ username: "ann" });
    for (const topic of ["secret/x", "$SYS/x", "$delayed/1/secret/x"]) client.sends({ cmd: "publish", topic });
    expect(client.receives()).toEqual([]);
    expect(broker.published).toEqual([]);
    expect(broker.droppedCount).toBe(3);
    client.sends({ cmd: "publish", topic: "open" });
    expect(broker.published).toHaveLength(1);
  });

  test("[MQTT-4.7.2-1] nobody but the broker publishes under $SYS, rules or none", () => {
    const { client, broker } = start(5);
    client.connect();
    client.sends(publish(1, { topic: "$SYS/brokers", retain: true }));
    expect(client.receives()).toMatchObject([{ cmd: "puback", reasonCode: 0x87 }]);
    expect(broker.published).toEqual([]);
  });

  test("a refusal waits for its turn among the acknowledgements", () => {
    const { client, broker } = start(5, { rules });
    client.connect();
    client.sends(publish(1));
    client.sends(publish(2, { topic: "t/c" }));
    expect(client.receives()).toEqual([]);
    broker.answers(0);
    expect(client.receives()).toMatchObject([
      { messageId: 1, reasonCode: 0 },
      { messageId: 2, reasonCode: 0x87 },
    ]);
  });

  test("[MQTT-3.3.2-12] an alias of a forbidden topic is as forbidden", () => {
    const { client, broker } = start(5, { rules });
    client.connect();
    client.sends({ cmd: "publish", topic: "t/c", properties: { topicAlias: 1 } });
    client.sends({ cmd: "publish", topic: "", properties: { topicAlias: 1 } });
    expect(broker.published).toEqual([]);
    expect(broker.droppedCount).toBe(2);
  });
});

describe("QoS 2 again", () => {
  const persistent = { clean: false, properties: { sessionExpiryInterval: 100 } };

  test.each(versions)("[MQTT-4.3.3-10] the same id is not published again before PUBREL, version %i", (version) => {
    const { client, broker } = start(version);
    client.connect();
    client.sends(publish(7, { qos: 2 }));
    client.sends(publish(7, { qos: 2, dup: true }));
    expect(client.receives()).toEqual([]);
    broker.answers(0);
    expect(client.receives()).toMatchObject([{ cmd: "pubrec", messageId: 7 }]);
    client.sends(publish(7, { qos: 2, dup: true }));
    expect(client.receives()).toMatchObject([{ cmd: "pubrec", messageId: 7 }]);
    expect(broker.published).toHaveLength(1);
  });

  test.each(versions)("[MQTT-4.3.3-10] nor on a new connection; the answer goes there, version %i", (version) => {
    const broker = new FakeBroker({});
    const first = new Client(version, broker);
    first.connect(persistent);
    first.sends(publish(7, { qos: 2 }));
    first.sends(publish(8, { qos: 2 }));
    broker.answers(0);
    first.vanishes();
    const second = new Client(version, broker);
    second.connect(persistent);
    second.sends(publish(7, { qos: 2, dup: true }));
    second.sends(publish(8, { qos: 2, dup: true }));
    expect(second.receives()).toMatchObject([{ cmd: "pubrec", messageId: 7 }]);
    broker.answers(0, 0, second);
    expect(second.receives()).toMatchObject([{ cmd: "pubrec", messageId: 8 }]);
    expect(broker.published).toHaveLength(2);
    second.sends({ cmd: "pubrel", messageId: 7 });
    second.sends(publish(7, { qos: 2 }));
    expect(broker.published).toHaveLength(3);
  });

  test("[MQTT-4.6.0-3] what is answered already keeps its place behind what is not", () => {
    const broker = new FakeBroker({});
    const first = new Client(5, broker);
    first.connect(persistent);
    first.sends(publish(7, { qos: 2 }));
    broker.answers(0);
    first.vanishes();
    const second = new Client(5, broker);
    second.connect(persistent);
    second.sends(publish(1));
    second.sends(publish(7, { qos: 2, dup: true }));
    expect(second.receives()).toEqual([]);
    broker.answers(0);
    expect(second.receives()).toMatchObject([{ cmd: "puback" }, { cmd: "pubrec" }]);
  });

  test("QoS 1 that was under way is published again: at least once", () => {
    const broker = new FakeBroker({});
    const first = new Client(5, broker);
    first.connect(persistent);
    first.sends(publish(7));
    first.vanishes();
    const second = new Client(5, broker);
    second.connect(persistent);
    second.sends(publish(7, { dup: true }));
    expect(broker.published).toHaveLength(2);
    broker.answers(0, 0, second); // of the first connection: nobody waits for it
    expect(second.receives()).toEqual([]);
    broker.answers(0);
    expect(second.receives()).toMatchObject([{ cmd: "puback", messageId: 7 }]);
  });

  test.each(versions)("[G6] no more than max_awaiting_rel ids wait for PUBREL, version %i", (version) => {
    const { client, broker } = start(version, { settings: { max_awaiting_rel: 2 } });
    client.connect();
    for (const id of [1, 2]) {
      client.sends(publish(id, { qos: 2 }));
      broker.answers(0);
    }
    client.sends({ cmd: "pubrel", messageId: 1 });
    client.sends(publish(3, { qos: 2 }));
    expect(client.closed).toBe(false);
    client.sends(publish(4, { qos: 2 }));
    expect(client.receives().slice(3)).toEqual(cut(version, 0x93));
  });
});

describe("Receive Maximum [MQTT-3.3.4-7]", () => {
  const settings = { max_inflight: 3 };

  test("one more than it ends the connection: 0x93", () => {
    const { client } = start(5, { settings });
    client.connect();
    for (const id of [1, 2, 3]) client.sends(publish(id, { qos: id < 3 ? 1 : 2 }));
    client.sends({ cmd: "publish" });
    expect(client.receives()).toEqual([]);
    client.sends(publish(4));
    expect(client.receives()).toEqual(disconnected(0x93));
  });

  test("[MQTT-4.9.0-2] PUBACK, PUBCOMP and a refusing PUBREC give a place back; PUBREC does not", () => {
    const { client, broker } = start(5, { settings: { max_inflight: 1 } });
    client.connect();
    client.sends(publish(1));
    broker.answers(0);
    client.sends(publish(2, { qos: 2 }));
    broker.answers(0x97);
    client.sends(publish(3, { qos: 2 }));
    broker.answers(0);
    client.sends({ cmd: "pubrel", messageId: 3 });
    client.sends(publish(4, { qos: 2 }));
    broker.answers(0);
    expect(client.closed).toBe(false);
    client.receives();
    client.sends(publish(5));
    expect(client.receives()).toEqual(disconnected(0x93));
  });

  test("a QoS 2 publish whose PUBREC waits for its turn counts once", () => {
    const { client, broker } = start(5, { settings: { max_inflight: 4 } });
    client.connect();
    client.sends(publish(1));
    client.sends(publish(2, { qos: 2 }));
    client.sends(publish(3, { qos: 2 }));
    broker.answers(0, 1);
    broker.answers(0, 1);
    client.sends(publish(4));
    expect(client.receives()).toEqual([]);
  });

  test("[MQTT-4.9.0-1] a new connection begins with a new quota", () => {
    const broker = new FakeBroker({ settings });
    const persistent = { clean: false, properties: { sessionExpiryInterval: 100 } };
    const first = new Client(5, broker);
    first.connect(persistent);
    for (const id of [1, 2, 3]) {
      first.sends(publish(id, { qos: 2 }));
      broker.answers(0);
    }
    first.vanishes();
    const second = new Client(5, broker);
    second.connect(persistent);
    for (const id of [1, 2, 3]) second.sends(publish(id, { qos: 2, dup: true }));
    for (const id of [1, 2, 3]) second.sends({ cmd: "pubrel", messageId: id });
    for (const id of [4, 5, 6]) second.sends(publish(id));
    expect(second.closed).toBe(false);
  });

  test("the place of a repeated publish is given back once, and by its PUBREL", () => {
    const { client, broker } = start(5, { settings: { max_inflight: 2 } });
    client.connect();
    client.sends(publish(1, { qos: 2 }));
    client.sends(publish(1, { qos: 2, dup: true }));
    client.sends(publish(2, { qos: 2 }));
    broker.answers(0);
    broker.answers(0);
    expect(client.closed).toBe(false);
    client.sends({ cmd: "pubrel", messageId: 1 });
    client.sends({ cmd: "pubrel", messageId: 1 });
    client.sends(publish(3));
    client.receives();
    client.sends(publish(4));
    expect(client.receives()).toEqual(disconnected(0x93));
  });

  test.each(before5)("there is none before 5.0, version %i", (version) => {
    const { client, broker } = start(version, { settings });
    client.connect();
    for (let id = 1; id <= 10; id++) client.sends(publish(id));
    expect(broker.published).toHaveLength(10);
  });
});

describe("topic aliases", () => {
  const aliased = (topic: string, topicAlias: number) =>
    ({ cmd: "publish", topic, properties: { topicAlias } }) as const;
  const topics = (broker: FakeBroker) => broker.published.map(({ message }) => message.topic);

  test("[MQTT-3.3.2-12] an alias stands for the topic last given to it", () => {
    const { client, broker } = start(5, { settings: { max_topic_alias: 2 } });
    client.connect();
    for (const [topic, alias] of [
      ["a", 1],
      ["", 1],
      ["b", 2],
      ["", 1],
      ["", 2],
      ["c", 1],
      ["", 1],
      ["", 2],
    ] as const)
      client.sends(aliased(topic, alias));
    expect(topics(broker)).toEqual(["a", "a", "b", "a", "b", "c", "c", "b"]);
    expect(client.receives()).toEqual([]);
  });

  test("[MQTT-3.3.2-9] above the maximum: 0x94, with a maximum of 0 any", () => {
    for (const max_topic_alias of [0, 4]) {
      const { client, broker } = start(5, { settings: { max_topic_alias } });
      client.connect();
      client.sends(aliased("a", max_topic_alias + 1));
      expect(client.receives()).toEqual(disconnected(0x94));
      expect(broker.published).toEqual([]);
    }
  });

  test("[MQTT-3.3.2-8] 0 is no alias: 0x94", () => {
    const { client } = start(5);
    client.connect();
    const bytes = bytesOf(aliased("a", 1), 5);
    client.sendsBytes(bytes.with(bytes.lastIndexOf(1), 0));
    expect(client.receives()).toEqual(disconnected(0x94));
  });

  test("an alias that was never set: 0x82", () => {
    const { client } = start(5);
    client.connect();
    client.sends(aliased("", 1));
    expect(client.receives()).toEqual(disconnected(0x82));
  });

  test("[MQTT-3.3.2-7] an alias ends with its connection", () => {
    const broker = new FakeBroker({});
    const persistent = { clean: false, properties: { sessionExpiryInterval: 100 } };
    const first = new Client(5, broker);
    first.connect(persistent);
    first.sends(aliased("a", 1));
    first.vanishes();
    const second = new Client(5, broker);
    second.connect(persistent);
    second.sends(aliased("", 1));
    expect(second.receives()).toEqual(disconnected(0x82));
  });

  test("[G6] the topics behind aliases are bounded: 0x97; one that is replaced gives its bytes back", () => {
    const { client } = start(5);
    client.connect();
    const long = "x".repeat(30_000);
    for (let count = 0; count < 10; count++) client.sends(aliased(`${long}${count}`, 1 + (count % 2)));
    expect(client.closed).toBe(false);
    client.sends(aliased(long, 3));
    expect(client.receives()).toEqual(disconnected(0x97));
  });

  test("aliases are there again after sleep", () => {
    const { client, broker } = start(5);
    const session = client.connect();
    client.sends(aliased("a", 1));
    expect(client.channel.aliasesChanged).toBe(true);
    client.channel.aliasesChanged = false;
    client.sends(aliased("a", 1));
    client.sends(aliased("", 1));
    expect(client.channel.aliasesChanged).toBe(false);

    const woken = new Client(5, broker);
    woken.channel.restore(client.channel.facts!, session, [...client.channel.topicAliases]);
    expect(woken.channel.aliasesChanged).toBe(false);
    woken.sends(aliased("", 1));
    expect(topics(broker).at(-1)).toBe("a");
  });
});

describe("being delivered to", () => {
  test.each(versions)("[MQTT-4.3.3-4] PUBREC, PUBREL, PUBCOMP, and the next message, version %i", (version) => {
    const { client } = start(version, { settings: { max_inflight: 1 } });
    client.connect();
    client.gets(delivery("a", { qos: 2 }));
    client.gets(delivery("b"));
    expect(client.receives()).toEqual([{ cmd: "publish", packetId: 1, id: "a" }]);
    client.sends({ cmd: "pubrec", messageId: 1 });
    expect(client.receives()).toEqual([{ cmd: "pubrel", messageId: 1, reasonCode: 0 }]);
    client.sends({ cmd: "pubrec", messageId: 1 });
    expect(client.receives()).toEqual([{ cmd: "pubrel", messageId: 1, reasonCode: 0 }]);
    client.sends({ cmd: "pubcomp", messageId: 1 });
    expect(client.receives()).toEqual([{ cmd: "publish", packetId: 2, id: "b" }]);
    client.sends({ cmd: "puback", messageId: 2 });
    expect(client.receives()).toEqual([]);
  });

  test("[MQTT-4.3.3-4] a PUBREC that refuses gets no PUBREL; PUBACK and PUBREC of 0x80 and more make room", () => {
    const { client } = start(5, { settings: { max_inflight: 1 } });
    client.connect();
    for (const [id, qos] of [
      ["a", 2],
      ["b", 1],
      ["c", 1],
    ] as const)
      client.gets(delivery(id, { qos }));
    client.receives();
    client.sends({ cmd: "pubrec", messageId: 1, reasonCode: 0x97 });
    expect(client.receives()).toEqual([{ cmd: "publish", packetId: 2, id: "b" }]);
    client.sends({ cmd: "puback", messageId: 2, reasonCode: 0x80 });
    expect(client.receives()).toEqual([{ cmd: "publish", packetId: 3, id: "c" }]);
  });

  test.each(versions)("acknowledgements of what was not sent: only PUBREC is answered, version %i", (version) => {
    const { client } = start(version);
    client.connect();
    client.sends({ cmd: "puback", messageId: 9 });
    client.sends({ cmd: "pubcomp", messageId: 9 });
    if (version === 5) client.sends({ cmd: "pubrec", messageId: 9, reasonCode: 0x80 });
    expect(client.receives()).toEqual([]);
    client.sends({ cmd: "pubrec", messageId: 9 });
    const [pubrel, ...rest] = client.receives();
    expect(rest).toEqual([]);
    expect(pubrel).toMatchObject({ cmd: "pubrel", messageId: 9 });
  });

  test.each(versions)("the wrong acknowledgement for a QoS is a protocol error, version %i", (version) => {
    for (const [qos, cmd] of [
      [1, "pubrec"],
      [1, "pubcomp"],
      [2, "puback"],
      [2, "pubcomp"],
    ] as const) {
      const { client } = start(version);
      client.connect();
      client.gets(delivery("a", { qos }));
      client.receives();
      client.sends({ cmd, messageId: 1 });
      expect(client.receives()).toEqual(cut(version, 0x82));
    }
  });

  test.each(versions)(
    "[MQTT-4.4.0-1] a new connection gets what was not acknowledged behind its CONNACK, version %i",
    (version) => {
      const broker = new FakeBroker({});
      const persistent = { clean: false, properties: { sessionExpiryInterval: 100 } };
      const first = new Client(version, broker);
      first.connect(persistent);
      first.gets(delivery("a"));
      first.gets(delivery("b", { qos: 2 }));
      first.sends({ cmd: "pubrec", messageId: 2 });
      first.vanishes();
      const second = new Client(version, broker);
      second.sends({ cmd: "connect", ...persistent });
      expect(second.receives()).toMatchObject([
        { cmd: "connack" },
        { cmd: "publish", packetId: 1, id: "a" },
        { cmd: "pubrel", messageId: 2 },
      ]);
    },
  );
});

describe("subscribing", () => {
  test.each(versions)(
    "[MQTT-3.8.4-1] [MQTT-3.8.4-2] [G3] SUBACK when the cluster knows, with the packet's id, version %i",
    (version) => {
      const { client, broker } = start(version);
      client.connect();
      client.sends(subscribe(5, "a", "b/#"));
      expect(client.receives()).toEqual([]);
      const [{ packetId, codes }] = broker.subscribes as [(typeof broker.subscribes)[number]];
      client.channel.handleSubscribed(packetId, codes);
      client.perform();
      expect(client.receives()).toEqual([{ cmd: "suback", messageId: 5, granted: [2, 2] }]);
    },
  );

  test("the options of 5.0, and what an earlier version means", () => {
    const subscriptions = [
      { topic: "a", qos: 1, nl: true, rap: true, rh: 2 },
      { topic: "b", qos: 0, nl: false, rap: false, rh: 1 },
    ];
    const wanted = (version: ProtocolVersion) => {
      const { client, broker } = start(version);
      client.connect();
      const properties = { subscriptionIdentifier: 268_435_455 };
      client.sends({ cmd: "subscribe", messageId: 1, subscriptions, properties });
      return broker.subscribes[0]!.wanted.map(({ subscription }) => subscription);
    };
    const identified = { subscriptionId: 268_435_455 };
    const plain = { noLocal: false, retainAsPublished: false, retainHandling: 0, subscriptionId: 0 };
    expect(wanted(5)).toEqual([
      { filter: "a", qos: 1, noLocal: true, retainAsPublished: true, retainHandling: 2, ...identified },
      { filter: "b", qos: 0, noLocal: false, retainAsPublished: false, retainHandling: 1, ...identified },
    ]);
    for (const version of before5)
      expect(wanted(version)).toEqual([
        { filter: "a", qos: 1, ...plain },
        { filter: "b", qos: 0, ...plain },
      ]);
  });

  test("[MQTT-3.8.4-3] whether a subscription is new or takes another's place", () => {
    const { client, broker } = start(5);
    client.connect();
    client.sends(subscribe(1, "a"));
    client.subscribed();
    client.sends(subscribe(2, "a", "b"));
    expect(broker.subscribes[0]!.wanted).toMatchObject([{ isNew: false }, { isNew: true }]);
  });

  test.each(versions)("[MQTT-3.8.4-6] [MQTT-3.9.3-1] each filter has its code, in order, version %i", (version) => {
    const rules = [
      { permission: "deny", action: "subscribe", topics: ["secret/#"] },
      { permission: "allow", action: "all" },
    ] as const;
    const { client, broker } = start(version, { rules, settings: { max_topic_levels: 3 } });
    client.connect();
    client.sends(subscribe(1, "a", "secret/x", "a/b/c/d", "$share/g/secret/x", "b"));
    expect(broker.subscribes[0]!.wanted.map(({ index, subscription }) => [index, subscription.filter])).toEqual([
      [0, "a"],
      [4, "b"],
    ]);
    // [MQTT-3.9.3-2] of 3.1.1: before 5.0 there is one code for all refusals.
    const refusals = version === 5 ? [0x87, 0x8f, 0x87] : [0x80, 0x80, 0x80];
    expect(client.subscribed()).toEqual([2, ...refusals, 2]);
  });

  test.each(versions)("what the broker does not offer: 0x9E, 0xA2, 0x80 before 5.0, version %i", (version) => {
    for (const [settings, reasonCode, filters] of [
      [{ shared_subscription: false }, 0x9e, ["$share/g/t", "$queue/t"]],
      [{ wildcard_subscription: false }, 0xa2, ["+", "a/#", "$share/g/+"]],
    ] as const) {
      const { client } = start(version, { settings });
      client.connect();
      client.sends(subscribe(1, ...filters, "plain"));
      const refusal = version === 5 ? reasonCode : 0x80;
      expect(client.subscribed()).toEqual([...filters.map(() => refusal), 2]);
    }
  });

  test.each(versions)("[MQTT-3.8.4-7] no more QoS is granted than there is, version %i", (version) => {
    const { client, broker } = start(version, { settings: { max_qos_allowed: 1 } });
    client.connect();
    const subscriptions = [0, 1, 2].map((qos) => ({ topic: `q${qos}`, qos }));
    client.sends({ cmd: "subscribe", messageId: 1, subscriptions });
    expect(broker.subscribes[0]!.wanted.map(({ subscription }) => subscription.qos)).toEqual([0, 1, 1]);
    expect(client.subscribed()).toEqual([0, 1, 1]);
  });

  test("[G6] a session's subscriptions are bounded: 0x97, but one that is there may be changed", () => {
    const { client, broker } = start(5);
    const session = client.connect();
    client.sends(subscribe(1, "t0"));
    const { subscription } = broker.subscribes[0]!.wanted[0]!;
    client.subscribed();
    for (let count = 1; count < limits.subscriptionsPerSessionMax - 1; count++)
      session.subscribe({ ...subscription, filter: `t${count}` });
    client.sends(subscribe(2, "new", "newer", "t1"));
    expect(client.subscribed()).toEqual([2, 0x97, 2]);
    session.unsubscribe("t1");
    client.sends(subscribe(3, "newer"));
    expect(client.subscribed()).toEqual([2]);
  });

  test("[G6] so are the bytes of their filters", () => {
    const { client } = start(5);
    const session = client.connect();
    const filter = (letter: string) => letter.repeat(60_000);
    const fits = Math.floor(limits.subscriptionBytesPerSessionMax / 60_000);
    const letters = "abcdefghijklmnopqrstuvwxyz".slice(0, fits + 1);
    for (const letter of letters.slice(0, fits - 1)) {
      client.sends(subscribe(1, filter(letter)));
      expect(client.subscribed()).toEqual([2]);
    }
    // Within one packet too.
    client.sends(subscribe(2, filter(letters.at(-2)!), filter(letters.at(-1)!), filter("a")));
    expect(client.subscribed()).toEqual([2, 0x97, 2]);
    session.unsubscribe(filter("a"));
    client.sends(subscribe(3, filter(letters.at(-1)!)));
    expect(client.subscribed()).toEqual([2]);
  });

  test.each(versions)("a filter that is malformed ends the connection, version %i", (version) => {
    for (const [filter, reasonCode] of [
      ["a#", 0x81],
      ["a/#/b", 0x81],
      ["a+/b", 0x81],
      ["$share//t", 0x82],
      ["$share/g", 0x82],
      ["$share/+/t", 0x82],
    ] as const) {
      const { client, broker } = start(version);
      client.connect();
      client.sends(subscribe(1, filter));
      const received = client.receives();
      expect(received.at(-1)).toBe("closed");
      if (version === 5)
        expect([0x81, 0x82, 0x8f, reasonCode]).toContain((received[0] as { reasonCode: number }).reasonCode);
      else expect(received).toEqual(["closed"]);
      expect(broker.subscribes).toEqual([]);
    }
  });

  test("[MQTT-3.8.3-4] no local on a shared subscription: 0x82", () => {
    for (const topic of ["$share/g/t", "$queue/t"]) {
      const { client } = start(5);
      client.connect();
      client.sends({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic, qos: 1, nl: true }] });
      expect(client.receives()).toEqual(disconnected(0x82));
    }
  });

  test.each(versions)("[MQTT-3.10.4-4] UNSUBACK with the packet's id and a code a filter, version %i", (version) => {
    const { client, broker } = start(version);
    client.connect();
    client.sends({ cmd: "unsubscribe", messageId: 9, unsubscriptions: ["a", "b/#"] });
    expect(client.receives()).toEqual([]);
    expect(broker.unsubscribes).toMatchObject([{ packetId: 9, filters: ["a", "b/#"] }]);
    client.channel.handleUnsubscribed(9, [0, 0x11]);
    client.perform();
    expect(client.receives()).toEqual([{ cmd: "unsuback", messageId: 9, granted: [0, 0x11] }]);
  });

  test("an answer that comes when the client has left is for nobody", () => {
    const { client, broker } = start(5);
    client.connect();
    client.sends(subscribe(1, "t"));
    client.sends(publish(2));
    client.sends({ cmd: "disconnect" });
    expect(client.receives()).toEqual(["closed"]);
    client.channel.handleSubscribed(1, [0]);
    client.channel.handleUnsubscribed(1, [0]);
    broker.answers(0);
    client.perform();
    expect(client.receives()).toEqual([]);
  });
});

describe("the rest", () => {
  test.each(versions)("[MQTT-3.12.4-1] PINGREQ gets PINGRESP, version %i", (version) => {
    const { client } = start(version);
    client.connect();
    client.sends({ cmd: "pingreq" });
    expect(client.receives()).toEqual([{ cmd: "pingresp" }]);
  });

  test("[MQTT-4.12.1-1] AUTH without an authentication method in CONNECT: 0x82", () => {
    const { client } = start(5);
    client.connect();
    client.sends({ cmd: "auth" });
    expect(client.receives()).toEqual(disconnected(0x82));
  });

  test("a connection that slept goes on where it was", () => {
    const { client, broker } = start(5, { settings: { max_inflight: 2 } });
    const session = client.connect();
    client.sends(publish(1, { qos: 2 }));
    broker.answers(0);
    const woken = new Client(5, broker);
    woken.channel.restore(client.channel.facts!, session, []);
    expect(woken.channel.stateName).toBe("connected");
    woken.sends({ cmd: "pingreq" });
    expect(woken.receives()).toEqual([{ cmd: "pingresp" }]);
    // What awaits PUBREL still counts.
    woken.sends(publish(2));
    woken.sends(publish(3));
    expect(woken.receives()).toEqual(disconnected(0x93));
  });
});

// ---- generated ----------------------------------------------------------------------------------------------------------

/** Section 3.2.2.2. */
const connackCodes = new Set([
  0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8c, 0x90, 0x95, 0x97, 0x99, 0x9a, 0x9b,
  0x9c, 0x9d, 0x9f,
]);

/** Sections 3.4.2.1 to 3.14.2.1: the reason codes that a server may send, by packet. */
const reasonCodes: { readonly [cmd: string]: ReadonlySet<number> } = {
  connack: connackCodes,
  puback: new Set([0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
  pubrec: new Set([0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
  pubrel: new Set([0x00, 0x92]),
  pubcomp: new Set([0x00, 0x92]),
  suback: new Set([0, 1, 2, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2]),
  unsuback: new Set([0x00, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91]),
  disconnect: new Set([
    0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8b, 0x8d, 0x8e, 0x8f, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
    0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xa1, 0xa2,
  ]),
};

describe("[G5] whatever legal packets come in whatever order", () => {
  test.each(versions)("one CONNACK, legal reason codes, nothing behind the close, version %i", (version) => {
    for (let seed = 1; seed <= 300; seed++) {
      const next = random(seed);
      const pick = (below: number) => Math.floor(next() * below);
      const one = <T>(list: readonly T[]): T => list[pick(list.length)]!;
      const { client, broker } = start(version, {
        rules: [
          { permission: "deny", action: "all", topics: ["no/#"] },
          { permission: "allow", action: "all" },
        ],
        settings: {
          max_inflight: 1 + pick(5),
          max_awaiting_rel: 1 + pick(5),
          max_topic_alias: pick(3),
          max_topic_levels: 4,
          max_qos_allowed: one([1, 2, 2, 2]),
          retain_available: next() < 0.8,
          shared_subscription: next() < 0.8,
          wildcard_subscription: next() < 0.8,
        },
      });
      const topic = () => one(["a", "a/b", "no/x", "$SYS/x", "$delayed/1/a", "$delayed/a", "a/b/c/d/e", "é"]);
      const filter = () => one(["a", "+", "a/#", "no/+", "$share/g/a", "$queue/+", "a/b/c/d/e", "#"]);
      const id = () => 1 + pick(4);
      const packets = {
        publish: () => ({ qos: one([0, 1, 2]), messageId: id(), topic: topic(), retain: next() < 0.2 }),
        aliased: () => ({ topic: one(["", "a"]), properties: { topicAlias: 1 + pick(3) } }),
        puback: () => ({ messageId: id() }),
        pubrec: () => ({ messageId: id(), reasonCode: one([0, 0, 0x80]) }),
        pubrel: () => ({ messageId: id() }),
        pubcomp: () => ({ messageId: id() }),
        subscribe: () => ({ messageId: id(), subscriptions: [1, 2].map(() => ({ topic: filter(), qos: pick(3) })) }),
        unsubscribe: () => ({ messageId: id(), unsubscriptions: [filter()] }),
        pingreq: () => ({}),
        disconnect: () => ({ properties: next() < 0.5 ? {} : { sessionExpiryInterval: pick(2) } }),
        connect: () => ({ will: { topic: topic(), payload: "", qos: one([0, 1, 2]), retain: next() < 0.2 } }),
        auth: () => ({}),
      };
      const often = ["publish", "publish", "publish", "pubrel", "pubrel", "puback", "pubrec", "pubcomp"] as const;
      const seldom = Object.keys(packets) as (keyof typeof packets)[];
      client.sends({ cmd: "connect", properties: { sessionExpiryInterval: pick(2), receiveMaximum: 1 + pick(4) } });
      const received = client.receives();
      for (let step = 0; step < 60; step++) {
        const kind = next() < 0.8 ? one(often) : one(seldom);
        const cmd = kind === "aliased" ? "publish" : kind;
        if (cmd === "publish" && kind === "aliased" && version !== 5) continue;
        if (cmd === "auth" && version !== 5) continue;
        client.sends({ cmd, ...packets[kind]() });
        if (broker.unanswered.length > 0 && next() < 0.6)
          broker.answers(one([0, 0, 0, 0x10, 0x80, 0x97]), pick(broker.unanswered.length));
        if (!client.closed && next() < 0.3) client.gets(delivery(`d${step}`, { qos: one([1, 2]) }));
        for (const { packetId, codes } of broker.subscribes.splice(0)) client.channel.handleSubscribed(packetId, codes);
        for (const { packetId } of broker.unsubscribes.splice(0)) client.channel.handleUnsubscribed(packetId, [0]);
        client.perform();
        received.push(...client.receives());
      }
      const cmds = received.map((each) => (each === "closed" ? each : each.cmd));
      expect({ seed, first: cmds[0], connacks: cmds.filter((cmd) => cmd === "connack").length }).toEqual({
        seed,
        first: "connack",
        connacks: 1,
      });
      expect(cmds.slice(0, -1)).not.toContain("closed");
      if (version !== 5) expect(cmds).not.toContain("disconnect");
      else if (cmds.includes("disconnect")) expect(cmds.indexOf("disconnect")).toBe(cmds.length - 2);
      for (const each of received) {
        if (each === "closed" || each.cmd === "publish" || !("reasonCode" in each || "granted" in each)) continue;
        const codes = "granted" in each ? (each.granted as number[]) : [(each as { reasonCode: number }).reasonCode];
        const allowed = version === 5 || each.cmd !== "suback" ? reasonCodes[each.cmd]! : new Set([0, 1, 2, 0x80]);
        for (const code of codes) expect({ seed, each, legal: allowed.has(code) }).toEqual({ seed, each, legal: true });
      }
    }
  });
});
