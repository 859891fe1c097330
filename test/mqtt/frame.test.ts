import { describe, expect, test } from "vitest";
import { Framer } from "../../mqtt/frame.ts";
import { MqttError } from "../../mqtt/reason-codes.ts";
import { random } from "../support/random.ts";
import { packet, text } from "./malformed.ts";

const pingreq = packet(0xc0);

function publishOf(payloadBytes: number): Uint8Array {
  return packet(
    0x30,
    text("p"),
    Array.from({ length: payloadBytes }, (_, index) => index & 0xff),
  );
}

function drain(framer: Framer): Uint8Array[] {
  const packets: Uint8Array[] = [];
  for (let next = framer.next(); next !== undefined; next = framer.next()) packets.push(next);
  return packets;
}

function reasonCodeOf(...chunks: Uint8Array[]): number | undefined {
  const framer = new Framer(1000);
  try {
    for (const chunk of chunks) {
      framer.push(chunk);
      drain(framer);
    }
  } catch (error) {
    if (error instanceof MqttError) return error.reasonCode;
    throw error;
  }
  return undefined;
}

describe("framing", () => {
  test("many packets in one chunk come out one at a time, without a copy", () => {
    const publish = publishOf(10);
    const chunk = Uint8Array.from([...pingreq, ...publish, ...pingreq]);
    const framer = new Framer(1000);
    framer.push(chunk);
    const packets = drain(framer);
    expect(packets).toEqual([pingreq, publish, pingreq]);
    expect(packets.every((framed) => framed.buffer === chunk.buffer)).toBe(true);
    expect(framer.pendingBytes).toBe(0);
  });

  test("a packet that comes byte by byte comes out whole", () => {
    const publish = publishOf(300);
    const framer = new Framer(1000);
    for (const [index, byte] of publish.entries()) {
      framer.push(Uint8Array.of(byte));
      const framed = framer.next();
      if (index < publish.length - 1) {
        expect(framed).toBeUndefined();
        expect(framer.pendingBytes).toBe(index + 1);
      } else {
        expect(framed).toEqual(publish);
      }
    }
    expect(framer.pendingBytes).toBe(0);
  });

  test("chunks may wait before they are framed", () => {
    const publish = publishOf(200);
    const framer = new Framer(1000);
    framer.push(publish.subarray(0, 1));
    framer.push(new Uint8Array(0));
    framer.push(publish.subarray(1, 150));
    framer.push(Uint8Array.from([...publish.subarray(150), ...pingreq]));
    expect(drain(framer)).toEqual([publish, pingreq]);
  });

  test("any chunking yields the same packets", () => {
    const next = random(20261101);
    for (let round = 0; round < 200; round++) {
      const packets = Array.from({ length: 1 + Math.floor(next() * 8) }, () =>
        next() < 0.3 ? pingreq : publishOf(Math.floor(next() * next() * 900)),
      );
      const stream = Uint8Array.from(packets.flatMap((framed) => [...framed]));
      const framer = new Framer(1000);
      const framed: Uint8Array[] = [];
      for (let at = 0; at < stream.length;) {
        const length = 1 + Math.floor(next() * next() * 400);
        framer.push(stream.slice(at, at + length));
        at += length;
        if (next() < 0.7) framed.push(...drain(framer));
      }
      framed.push(...drain(framer));
      expect(framed).toEqual(packets);
      expect(framer.pendingBytes).toBe(0);
    }
  });

  test("a packet handed out stays as it is while others are gathered", () => {
    const framer = new Framer(1000);
    const first = publishOf(300);
    framer.push(first.slice(0, 100));
    expect(framer.next()).toBeUndefined();
    framer.push(first.slice(100));
    const framed = framer.next();
    framer.push(publishOf(400).slice(0, 350));
    expect(framer.next()).toBeUndefined();
    expect(framed).toEqual(first);
  });
});

describe("[G6] bounds", () => {
  test("the longest packet is one of exactly the maximum, header included", () => {
    const framer = new Framer(1000);
    const longest = publishOf(994);
    expect(longest.length).toBe(1000);
    framer.push(longest);
    expect(framer.next()).toEqual(longest);
    expect(reasonCodeOf(publishOf(995))).toBe(0x95);
  });

  test("a header that announces a megabyte holds what came of it", () => {
    const framer = new Framer(2_000_000);
    framer.push(Uint8Array.of(0x30, 0xc0, 0x84, 0x3d));
    expect(framer.next()).toBeUndefined();
    expect(framer.pendingBytes).toBe(4);
  });

  test("a packet is refused by its header, before its body comes", () => {
    expect(reasonCodeOf(Uint8Array.of(0x00))).toBe(0x82);
    expect(reasonCodeOf(Uint8Array.of(0x41))).toBe(0x81);
    expect(reasonCodeOf(Uint8Array.of(0x30, 0xe9), Uint8Array.of(0x07))).toBe(0x95);
    expect(reasonCodeOf(Uint8Array.of(0x90, 0x03))).toBe(0x82);
  });
});

describe("headers", () => {
  test.each([
    ["[MQTT-1.5.5-1] a length of two bytes where one is enough", [0x30, 0x81, 0x00]],
    ["[MQTT-1.5.5-1] a length of four bytes where three are enough", [0x30, 0x81, 0x80, 0x80, 0x00]],
    ["a length of five bytes", [0x30, 0x80, 0x80, 0x80, 0x80, 0x01]],
    ["PINGREQ with a body", [0xc0, 0x01]],
  ])("%s is malformed, in one chunk or in many", (_name, bytes) => {
    expect(reasonCodeOf(Uint8Array.from(bytes))).toBe(0x81);
    expect(reasonCodeOf(...bytes.map((byte) => Uint8Array.of(byte)))).toBe(0x81);
  });

  test("[MQTT-2.1.3-1] only the types and flags of a client pass", () => {
    const passing: number[] = [];
    for (let first = 0; first < 0x100; first++) {
      if (reasonCodeOf(Uint8Array.of(first, first >> 4 === 12 ? 0 : 1)) === undefined) passing.push(first);
    }
    const all = (type: number) => Array.from({ length: 16 }, (_, flags) => (type << 4) | flags);
    // CONNECT and the DUP flag are judged with the version.
    expect(passing).toEqual([
      ...all(1),
      ...all(3),
      0x40,
      0x50,
      0x62,
      0x6a,
      0x70,
      0x82,
      0x8a,
      0xa2,
      0xaa,
      0xc0,
      0xe0,
      0xf0,
    ]);
  });
});
