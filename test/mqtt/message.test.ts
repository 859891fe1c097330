import { describe, expect, test } from "vitest";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import {
  detached,
  isExpired,
  messageBytes,
  readMessage,
  remainingExpirySeconds,
  writeMessage,
  type Message,
  type QoS,
} from "../../mqtt/message.ts";

const now = 1_700_000_000_000;

function message(fields: Partial<Message> = {}): Message {
  return {
    id: "m1",
    topic: "a/b",
    payload: Uint8Array.of(1, 2, 3),
    qos: 1,
    retain: false,
    properties: Uint8Array.of(0x01, 1),
    expiresAt: 0,
    from: "c",
    ...fields,
  };
}

describe("the record", () => {
  test("what is written is what is read, one behind the other", () => {
    const messages = [
      message(),
      message({ retain: true, qos: 0, expiresAt: now }),
      message({ qos: 2, expiresAt: now + 0xffff_ffff * 1000 }),
      message({
        id: "",
        topic: "é/\u{10ffff}",
        from: "日本",
        payload: new Uint8Array(0),
        properties: new Uint8Array(0),
      }),
      message({ topic: "x".repeat(65_535), payload: new Uint8Array(100_000).fill(7) }),
      ...([0, 1, 2] as QoS[]).map((qos) => message({ qos, retain: qos === 1 })),
    ];
    const writer = new ByteWriter();
    for (const each of messages) writeMessage(writer, each);
    const reader = new ByteReader(writer.take());
    for (const each of messages) expect(readMessage(reader)).toEqual(each);
    expect(reader.done).toBe(true);
  });

  test("a message that is kept does not keep the batch it came in", () => {
    const writer = new ByteWriter();
    writeMessage(writer, message());
    const batch = writer.take();
    const read = readMessage(new ByteReader(batch));
    expect(read.payload.buffer).toBe(batch.buffer);
    const kept = detached(read);
    expect(kept).toEqual(read);
    expect(kept.payload.buffer.byteLength).toBe(3);
    expect(kept.properties.buffer.byteLength).toBe(2);
  });
});

describe("expiry", () => {
  test("[MQTT-3.3.2-5] a message has expired when its time is up, and never without an interval", () => {
    const expiring = message({ expiresAt: now });
    expect(isExpired(expiring, now - 1)).toBe(false);
    expect(isExpired(expiring, now)).toBe(true);
    expect(isExpired(message(), Number.MAX_SAFE_INTEGER)).toBe(false);
  });

  test("[MQTT-3.3.2-6] the receiver is told the interval less the time waited, in whole seconds", () => {
    const expiring = message({ expiresAt: now + 10_000 });
    expect(remainingExpirySeconds(expiring, now)).toBe(10);
    expect(remainingExpirySeconds(expiring, now + 1)).toBe(10);
    expect(remainingExpirySeconds(expiring, now + 1000)).toBe(9);
    expect(remainingExpirySeconds(expiring, now + 9999)).toBe(1);
    expect(remainingExpirySeconds(expiring, now + 10_000)).toBe(0);
    expect(remainingExpirySeconds(expiring, now + 99_999)).toBe(0);
    expect(remainingExpirySeconds(message(), now)).toBeUndefined();
    expect(remainingExpirySeconds(message({ expiresAt: now + 0xffff_ffff * 1000 }), now)).toBe(0xffff_ffff);
  });
});

test("[G6] what a message costs grows with all that the client chooses", () => {
  const cost = messageBytes(message());
  expect(messageBytes(message({ payload: new Uint8Array(103) }))).toBe(cost + 100);
  expect(messageBytes(message({ topic: "a/b".padEnd(103, "x") }))).toBe(cost + 100);
  expect(messageBytes(message({ properties: new Uint8Array(102) }))).toBe(cost + 100);
  expect(
    messageBytes(message({ topic: "", payload: new Uint8Array(0), properties: new Uint8Array(0) })),
  ).toBeGreaterThan(0);
});
