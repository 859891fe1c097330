import { describe, expect, test } from "vitest";
import {
  decodePublish,
  encodePublish,
  packetIdOffset,
  withPacketId,
  type ProtocolVersion,
  type PublishForm,
  type QoS,
} from "../../mqtt/publish.ts";
import { random } from "../support/random.ts";
import { binary, packet, properties, text } from "./malformed.ts";

const nothing = new Uint8Array(0);

const plain: PublishForm = {
  version: 5,
  qos: 0,
  dup: false,
  retain: false,
  subscriptionIds: [],
  messageExpiryInterval: undefined,
  topicAlias: 0,
  topicOmitted: false,
};

describe("decoding", () => {
  test("[MQTT-3.3.2-15] [MQTT-3.3.2-18] what is forwarded stays as sent and in order, what is acted on is taken out", () => {
    const decoded = decodePublish(
      packet(
        0x3d,
        text("a/b"),
        [0x12, 0x34],
        properties(
          0x26,
          text("z"),
          text("1"),
          0x02,
          0,
          0,
          1,
          0,
          0x26,
          text("a"),
          text(""),
          0x03,
          text("text/plain"),
          0x23,
          0,
          7,
          0x08,
          text("reply/here"),
          0x26,
          text("z"),
          text("2"),
          0x09,
          binary(0, 255),
          0x01,
          1,
        ),
        text("hé").slice(2),
      ),
      5,
    );
    expect(decoded).toEqual({
      cmd: "publish",
      topic: "a/b",
      payload: new TextEncoder().encode("hé"),
      qos: 2,
      dup: true,
      retain: true,
      packetId: 0x1234,
      topicAlias: 7,
      messageExpiryInterval: 256,
      properties: Uint8Array.from([
        0x26,
        ...text("z"),
        ...text("1"),
        0x26,
        ...text("a"),
        ...text(""),
        0x03,
        ...text("text/plain"),
        0x08,
        ...text("reply/here"),
        0x26,
        ...text("z"),
        ...text("2"),
        0x09,
        ...binary(0, 255),
        0x01,
        1,
      ]),
    });
  });

  test("a message expiry of 0 is not the same as none", () => {
    expect(decodePublish(packet(0x30, text("a"), properties(0x02, 0, 0, 0, 0)), 5).messageExpiryInterval).toBe(0);
    expect(decodePublish(packet(0x30, text("a"), 0), 5).messageExpiryInterval).toBeUndefined();
  });

  test("a topic alias stands for the topic", () => {
    const decoded = decodePublish(packet(0x30, text(""), properties(0x23, 0xff, 0xff)), 5);
    expect(decoded.topic).toBe("");
    expect(decoded.topicAlias).toBe(0xffff);
  });

  test("[MQTT-1.5.4-3] a byte order mark is part of the topic", () => {
    expect(decodePublish(packet(0x30, text("\u{feff}a")), 4).topic).toBe("\u{feff}a");
  });

  test("topics of all lengths and alphabets", () => {
    for (const topic of ["a", "x".repeat(512), "x".repeat(513), "y".repeat(65_535), "é", "日本/語", "a\u{10ffff}"]) {
      expect(decodePublish(packet(0x30, text(topic)), 4).topic).toBe(topic);
    }
  });

  test("a payload that is not said to be text may be anything", () => {
    expect(decodePublish(packet(0x30, text("a"), properties(0x01, 0), 0xff), 5).payload).toEqual(Uint8Array.of(0xff));
  });
});

describe("encoding", () => {
  test("v4 at QoS 0", () => {
    const encoded = encodePublish(
      { topic: "a/b", payload: Uint8Array.of(1, 2), properties: Uint8Array.of(0x01, 1) },
      { ...plain, version: 4, retain: true, messageExpiryInterval: 5, subscriptionIds: [1] },
      0,
    );
    expect(encoded).toEqual(packet(0x31, text("a/b"), [1, 2]));
  });

  test("v5 with all that a server may add", () => {
    const forwarded = Uint8Array.from([0x26, ...text("k"), ...text("v")]);
    const encoded = encodePublish(
      { topic: "é", payload: Uint8Array.of(9), properties: forwarded },
      {
        ...plain,
        qos: 1,
        dup: true,
        subscriptionIds: [1, 300, 268_435_455],
        messageExpiryInterval: 0xfffffffe,
        topicAlias: 3,
      },
      0xabcd,
    );
    expect(encoded).toEqual(
      packet(
        0x3a,
        text("é"),
        [0xab, 0xcd],
        properties(0x02, 0xff, 0xff, 0xff, 0xfe, 0x23, 0, 3, 0x0b, 1, 0x0b, 0xac, 0x02, 0x0b, 0xff, 0xff, 0xff, 0x7f, [
          ...forwarded,
        ]),
        9,
      ),
    );
  });

  test("a topic that the client knows by its alias is left out", () => {
    const encoded = encodePublish(
      { topic: "long/topic", payload: nothing, properties: nothing },
      { ...plain, topicAlias: 1, topicOmitted: true },
      0,
    );
    expect(encoded).toEqual(packet(0x30, text(""), properties(0x23, 0, 1)));
  });

  test("the packet id is changed in a copy", () => {
    for (const payloadBytes of [0, 200, 20_000]) {
      const content = { topic: "a", payload: new Uint8Array(payloadBytes), properties: nothing };
      const encoded = encodePublish(content, { ...plain, qos: 2 }, 1);
      const before = encoded.slice();
      expect(withPacketId(encoded, 0xfffe)).toEqual(encodePublish(content, { ...plain, qos: 2 }, 0xfffe));
      expect(encoded).toEqual(before);
      expect([...encoded.subarray(packetIdOffset(encoded), packetIdOffset(encoded) + 2)]).toEqual([0, 1]);
    }
  });

  test("what is encoded is what is decoded", () => {
    const next = random(1883);
    const pick = (below: number) => Math.floor(next() * below);
    for (let round = 0; round < 500; round++) {
      const version = ([3, 4, 5] as ProtocolVersion[])[pick(3)]!;
      const qos = pick(3) as QoS;
      const content = {
        topic: ["a", "é/ü", "sensors/1/temp", "x".repeat(pick(400) + 1)][pick(4)]!,
        payload: Uint8Array.from({ length: pick(2) * pick(300) }, () => pick(256)),
        properties:
          version === 5 && next() < 0.5
            ? Uint8Array.from([0x26, ...text("k"), ...text("v".repeat(pick(200)))])
            : nothing,
      };
      const form: PublishForm = {
        version,
        qos,
        dup: qos > 0 && next() < 0.5,
        retain: next() < 0.5,
        subscriptionIds: [],
        messageExpiryInterval: version === 5 && next() < 0.5 ? pick(2 ** 32) : undefined,
        topicAlias: version === 5 ? pick(3) : 0,
        topicOmitted: false,
      };
      const packetId = qos === 0 ? 0 : 1 + pick(65_535);
      const decoded = decodePublish(encodePublish(content, form, packetId), version);
      expect(decoded).toEqual({
        cmd: "publish",
        ...content,
        qos,
        dup: form.dup,
        retain: form.retain,
        packetId,
        topicAlias: form.topicAlias,
        messageExpiryInterval: form.messageExpiryInterval,
      });
    }
  });
});
