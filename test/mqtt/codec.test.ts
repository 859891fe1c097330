import { generate } from "mqtt-packet";
import { describe, expect, test } from "vitest";
import { decode, encode, type ConnectPacket, type ServerPacket } from "../../mqtt/codec.ts";
import { connect4, connect5, packet, properties, text } from "./malformed.ts";

describe("CONNECT", () => {
  test("5.0, with a will and credentials", () => {
    const decoded = decode(
      connect5(
        0xee,
        properties(0x11, 0, 0, 0, 9, 0x21, 0, 20),
        text("c"),
        properties(
          0x26,
          text("b"),
          text(""),
          0x18,
          0,
          0,
          0,
          5,
          0x26,
          text("a"),
          text("2"),
          0x02,
          0,
          0,
          0,
          7,
          0x26,
          text("b"),
          text("3"),
        ),
        text("w/t"),
        text("bye"),
        text("user"),
        text("secret"),
      ),
      undefined,
    ) as ConnectPacket;
    expect(decoded).toMatchObject({
      cmd: "connect",
      protocolVersion: 5,
      clean: true,
      keepalive: 60,
      clientId: "c",
      username: "user",
      properties: { sessionExpiryInterval: 9, receiveMaximum: 20 },
      will: { topic: "w/t", qos: 1, retain: true, properties: { willDelayInterval: 5, messageExpiryInterval: 7 } },
    });
    expect(decoded.password?.toString()).toBe("secret");
    // [MQTT-3.1.3-10]
    expect(decoded.will?.forwardedProperties).toEqual(
      Uint8Array.from([
        ...[0x26, ...text("b"), ...text("")],
        ...[0x26, ...text("a"), ...text("2")],
        ...[0x26, ...text("b"), ...text("3")],
      ]),
    );
  });

  test("3.1.1, with a will and no properties", () => {
    const decoded = decode(connect4(0x06, text("c"), text("w"), text("")), undefined) as ConnectPacket;
    expect(decoded).toMatchObject({ protocolVersion: 4, clean: true, will: { topic: "w", qos: 0, retain: false } });
    expect(decoded.will?.forwardedProperties).toEqual(new Uint8Array(0));
  });

  test("3.1, with flags for credentials that are not there", () => {
    const bytes = packet(0x1c, text("MQIsdp"), 3, 0xc3, 0, 60, text("c"));
    const before = bytes.slice();
    const decoded = decode(bytes, undefined) as ConnectPacket;
    expect(decoded).toMatchObject({ protocolVersion: 3, clean: true, clientId: "c" });
    expect(decoded.username).toBeUndefined();
    expect(bytes).toEqual(before);
  });

  test("a second one, of another version, changes nothing for what follows", () => {
    const subscribe = packet(0x82, 0, 1, properties(0x0b, 5), text("p"), 0x2d);
    expect(decode(connect4(0x02, text("c")), 5)).toMatchObject({ cmd: "connect", protocolVersion: 4 });
    expect(decode(subscribe, 5)).toMatchObject({
      messageId: 1,
      properties: { subscriptionIdentifier: 5 },
      subscriptions: [{ topic: "p", qos: 1, nl: true, rap: true, rh: 2 }],
    });
  });
});

describe("packets of a client", () => {
  test.each([3, 4, 5] as const)("v%d acknowledgements are the same by hand as parsed", (version) => {
    for (const [first, cmd] of [
      [0x40, "puback"],
      [0x50, "pubrec"],
      [0x62, "pubrel"],
      [0x70, "pubcomp"],
    ] as const) {
      expect(decode(packet(first, 0xab, 0xcd), version)).toMatchObject({ cmd, messageId: 0xabcd, reasonCode: 0 });
      if (version !== 5) continue;
      expect(decode(packet(first, 0xab, 0xcd, 0), version)).toMatchObject({ cmd, messageId: 0xabcd, reasonCode: 0 });
    }
  });

  test("a reason code and a reason string", () => {
    expect(decode(packet(0x50, 0, 1, 0x97, properties(0x1f, text("full"))), 5)).toMatchObject({
      cmd: "pubrec",
      messageId: 1,
      reasonCode: 0x97,
      properties: { reasonString: "full" },
    });
    expect(decode(packet(0x62, 0, 1, 0x92), 5)).toMatchObject({ cmd: "pubrel", reasonCode: 0x92 });
  });

  test("UNSUBSCRIBE, PINGREQ, DISCONNECT and AUTH", () => {
    expect(decode(packet(0xa2, 0, 2, text("a"), text("b/#")), 4)).toMatchObject({
      messageId: 2,
      unsubscriptions: ["a", "b/#"],
    });
    expect(decode(packet(0xc0), 3)).toEqual({ cmd: "pingreq" });
    expect(decode(packet(0xe0), 5)).toEqual({ cmd: "disconnect", reasonCode: 0 });
    expect(decode(packet(0xe0, 4), 5)).toMatchObject({ cmd: "disconnect", reasonCode: 4 });
    expect(decode(packet(0xe0, 0, properties(0x11, 0, 0, 1, 0)), 5)).toMatchObject({
      cmd: "disconnect",
      properties: { sessionExpiryInterval: 256 },
    });
    expect(decode(packet(0xf0, 0x19, properties(0x15, text("m"))), 5)).toMatchObject({
      cmd: "auth",
      reasonCode: 0x19,
      properties: { authenticationMethod: "m" },
    });
  });

  test("3.1 may mark PUBREL, SUBSCRIBE and UNSUBSCRIBE as sent again", () => {
    expect(decode(packet(0x6a, 0, 1), 3)).toMatchObject({ cmd: "pubrel", messageId: 1 });
    expect(decode(packet(0x8a, 0, 1, text("p"), 1), 3)).toMatchObject({ subscriptions: [{ topic: "p", qos: 1 }] });
    expect(decode(packet(0xaa, 0, 1, text("p")), 3)).toMatchObject({ unsubscriptions: ["p"] });
  });
});

describe("packets of the server", () => {
  test.each<[string, ServerPacket, 3 | 4 | 5, Uint8Array]>([
    ["PINGRESP", { cmd: "pingresp" }, 5, packet(0xd0)],
    ["CONNACK", { cmd: "connack", sessionPresent: true, returnCode: 0 }, 4, packet(0x20, 1, 0)],
    ["CONNACK", { cmd: "connack", sessionPresent: false, reasonCode: 0x84 }, 5, packet(0x20, 0, 0x84, 0)],
    ["PUBACK", { cmd: "puback", messageId: 0xabcd, reasonCode: 0x10 }, 4, packet(0x40, 0xab, 0xcd)],
    ["PUBACK", { cmd: "puback", messageId: 1, reasonCode: 0 }, 5, packet(0x40, 0, 1)],
    ["PUBREC", { cmd: "pubrec", messageId: 1, reasonCode: 0x10 }, 5, packet(0x50, 0, 1, 0x10)],
    ["PUBREL", { cmd: "pubrel", messageId: 2 }, 4, packet(0x62, 0, 2)],
    ["PUBCOMP", { cmd: "pubcomp", messageId: 2, reasonCode: 0x92 }, 5, packet(0x70, 0, 2, 0x92)],
    [
      "PUBACK with a reason",
      { cmd: "puback", messageId: 1, reasonCode: 0x87, properties: { reasonString: "no" } },
      5,
      packet(0x40, 0, 1, 0x87, properties(0x1f, text("no"))),
    ],
    ["SUBACK", { cmd: "suback", messageId: 1, granted: [0, 1, 0x80] }, 4, packet(0x90, 0, 1, 0, 1, 0x80)],
    ["SUBACK", { cmd: "suback", messageId: 1, granted: [2, 0x87] }, 5, packet(0x90, 0, 1, 0, 2, 0x87)],
    ["UNSUBACK", { cmd: "unsuback", messageId: 1, granted: [] }, 4, packet(0xb0, 0, 1)],
    ["UNSUBACK", { cmd: "unsuback", messageId: 1, granted: [0, 0x11] }, 5, packet(0xb0, 0, 1, 0, 0, 0x11)],
    ["DISCONNECT", { cmd: "disconnect", reasonCode: 0 }, 5, packet(0xe0)],
    ["DISCONNECT", { cmd: "disconnect", reasonCode: 0x8e }, 5, packet(0xe0, 0x8e)],
    [
      "DISCONNECT with a reason",
      { cmd: "disconnect", reasonCode: 0x81, properties: { reasonString: "no" } },
      5,
      packet(0xe0, 0x81, properties(0x1f, text("no"))),
    ],
  ])("%s %o v%d", (_name, sent, version, expected) => {
    expect(Uint8Array.from(encode(sent, version))).toEqual(expected);
  });

  test("[MQTT-3.14.0-1] there is no DISCONNECT of a server before 5.0", () => {
    expect(() => encode({ cmd: "disconnect", reasonCode: 0x8e }, 4)).toThrow("before MQTT 5.0");
  });
});

// What MQTT.js writes is legal here.
describe("packets as mqtt-packet writes them", () => {
  test.each([4, 5] as const)("v%d", (protocolVersion) => {
    const options = { protocolVersion };
    for (const sent of [
      {
        cmd: "connect",
        protocolId: "MQTT",
        protocolVersion,
        clientId: "c",
        clean: true,
        keepalive: 5,
        username: "u",
        password: Buffer.from("p"),
      },
      { cmd: "subscribe", messageId: 5, subscriptions: [{ topic: "a/+", qos: 1 }] },
      { cmd: "unsubscribe", messageId: 6, unsubscriptions: ["a/+"] },
      { cmd: "pubrec", messageId: 7, reasonCode: 0 },
      { cmd: "disconnect", reasonCode: 0 },
    ] as const) {
      const bytes = generate(sent as unknown as Parameters<typeof generate>[0], options);
      expect(decode(bytes, protocolVersion).cmd).toBe(sent.cmd);
    }
  });
});
