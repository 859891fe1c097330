import { describe, expect, test } from "vitest";
import { decode, type ProtocolVersion } from "../../mqtt/codec.ts";
import { Framer } from "../../mqtt/frame.ts";
import { limits } from "../../mqtt/limits.ts";
import { MqttError } from "../../mqtt/reason-codes.ts";
import { ConnectError, SilentError } from "../../mqtt/refusal.ts";
import { random } from "../support/random.ts";
import { connect4, connect5, malformedPackets, packet, properties, text, type Malformed } from "./malformed.ts";

const packetBytesMax = 1_048_576;

function decodeAll(bytes: Uint8Array, version: ProtocolVersion | undefined): unknown[] {
  const framer = new Framer(packetBytesMax);
  framer.push(bytes);
  const packets: unknown[] = [];
  for (let next = framer.next(); next !== undefined; next = framer.next()) packets.push(decode(next, version));
  return packets;
}

function errorOf(run: () => unknown): unknown {
  try {
    run();
  } catch (error) {
    return error;
  }
  return undefined;
}

function answerOf(error: MqttError, entry: Malformed): Malformed["answer"] {
  if (error instanceof SilentError) return "close";
  if (error instanceof ConnectError) return "connack";
  return entry.afterConnect && entry.version === 5 ? "disconnect" : "close";
}

describe("[G5] a packet that is not legal", () => {
  test("has a name of its own in the table", () => {
    expect(malformedPackets.length).toBeGreaterThanOrEqual(80);
    expect(new Set(malformedPackets.map((entry) => entry.name)).size).toBe(malformedPackets.length);
  });

  test.each(malformedPackets)("$name", (entry) => {
    const error = errorOf(() => decodeAll(entry.bytes, entry.afterConnect ? entry.version : undefined));
    expect(error).toBeInstanceOf(MqttError);
    expect((error as MqttError).reasonCode).toBe(entry.reasonCode);
    expect(answerOf(error as MqttError, entry)).toBe(entry.answer);
  });
});

const legal: { name: string; version: ProtocolVersion | undefined; bytes: Uint8Array }[] = [
  {
    name: "v3 CONNECT with the bits that 3.1 ignores",
    version: undefined,
    bytes: packet(0x1e, text("MQIsdp"), 3, 0x3b, 0, 60, text("c")),
  },
  {
    name: "v3 CONNECT with flags for credentials that are not there",
    version: undefined,
    bytes: packet(0x10, text("MQIsdp"), 3, 0xc2, 0, 60, text("c")),
  },
  {
    name: "v4 CONNECT with all it may have",
    version: undefined,
    bytes: connect4(0xf6, text("c"), text("w"), text("bye"), text("u"), text("p")),
  },
  { name: "v4 CONNECT with an empty user name", version: undefined, bytes: connect4(0x82, text("c"), text("")) },
  { name: "v5 CONNECT with a password alone", version: undefined, bytes: connect5(0x42, 0, text("c"), text("p")) },
  {
    name: "v5 CONNECT with all it may have",
    version: undefined,
    bytes: connect5(
      0xf6,
      properties(0x11, 0, 0, 0, 9, 0x21, 0, 9, 0x27, 0, 0, 9, 9, 0x22, 0, 9, 0x19, 1, 0x17, 0),
      text("c"),
      properties(0x18, 0, 0, 0, 1, 0x01, 1, 0x02, 0, 0, 0, 9, 0x26, text("b"), text("1"), 0x26, text("a"), text("")),
      text("w"),
      text("bye"),
      text("u"),
      text("p"),
    ),
  },
  { name: "v3 PUBREL sent again", version: 3, bytes: packet(0x6a, 0, 1) },
  { name: "v3 SUBSCRIBE sent again", version: 3, bytes: packet(0x8a, 0, 1, text("p"), 1) },
  { name: "v5 PUBACK with a reason code and no properties", version: 5, bytes: packet(0x40, 0, 1, 0x10) },
  { name: "v5 PUBREC with properties", version: 5, bytes: packet(0x50, 0, 1, 0x80, properties(0x1f, text("no"))) },
  {
    name: "v5 SUBSCRIBE with all options",
    version: 5,
    bytes: packet(0x82, 0, 1, properties(0x0b, 0xff, 0x7f), text("a/+/#"), 0x2e, text("$share/g/+"), 0x02),
  },
  { name: "v4 SUBSCRIBE", version: 4, bytes: packet(0x82, 0, 1, text("#"), 0, text("+/b"), 2) },
  { name: "v5 UNSUBSCRIBE", version: 5, bytes: packet(0xa2, 0, 1, properties(0x26, text("k"), text("v")), text("a")) },
  { name: "v5 DISCONNECT with session expiry", version: 5, bytes: packet(0xe0, 4, properties(0x11, 0, 0, 0, 0)) },
  { name: "v4 DISCONNECT", version: 4, bytes: packet(0xe0) },
  { name: "v5 AUTH", version: 5, bytes: packet(0xf0, 0x18, properties(0x15, text("m"), 0x16, text("d"))) },
  {
    name: "v5 PUBLISH with all it may have",
    version: 5,
    bytes: packet(
      0x3b,
      text("p"),
      0,
      1,
      properties(
        0x01,
        1,
        0x02,
        0,
        0,
        0,
        9,
        0x23,
        0,
        1,
        0x08,
        text("r"),
        0x09,
        text("x"),
        0x03,
        text("t"),
        0x26,
        text("k"),
        text("v"),
      ),
      [0x70],
    ),
  },
  { name: "v4 PUBLISH without a payload", version: 4, bytes: packet(0x31, text("é/€")) },
];

describe("a packet that is legal", () => {
  test.each(legal)("$name", ({ bytes, version }) => {
    expect(decodeAll(bytes, version)).toHaveLength(1);
  });

  // A packet cut short inside its body, with a remaining length to match, is a whole packet with less in it.
  test.each(legal)("[G5] $name, cut anywhere", ({ bytes, version }) => {
    for (let length = 0; length < bytes.length - 2; length++) {
      const cut = packet(bytes[0]!, [...bytes.subarray(2, 2 + length)]);
      const error = errorOf(() => decodeAll(cut, version));
      expect(error === undefined || error instanceof MqttError).toBe(true);
    }
  });
});

test("[G6] the filters of one packet are bounded", () => {
  const filters = Array.from({ length: limits.filtersPerPacketMax + 1 }, () => text("f"));
  const error = errorOf(() => decode(packet(0xa2, 0, 1, ...filters), 4));
  expect((error as MqttError).reasonCode).toBe(0x97);
  expect(() => decode(packet(0xa2, 0, 1, ...filters.slice(1)), 4)).not.toThrow();
});

describe("[G5] mutated packets", () => {
  // What a decoder must not see: the packet lies between bytes of others, and every byte it reads is counted.
  const surroundings = 64;
  const roundsPerPacket = 400;

  test.each(legal)("$name", ({ name, bytes, version }) => {
    const next = random(name.length * 7919 + bytes.length);
    const pick = (below: number) => Math.floor(next() * below);
    for (let round = 0; round < roundsPerPacket; round++) {
      const mutated = mutate(bytes, pick);
      const inZeros = decodeInside(mutated, version, surroundings, 0x00);
      const inOnes = decodeInside(mutated, version, surroundings, 0xff);
      // What lies around a packet makes no difference to it.
      expect(inZeros).toEqual(inOnes);
    }
  });

  function mutate(bytes: Uint8Array, pick: (below: number) => number): Uint8Array {
    const mutated = [...bytes];
    for (let count = 1 + pick(3); count > 0; count--) {
      const at = pick(mutated.length);
      const kind = pick(4);
      if (kind === 0) mutated[at] = pick(256);
      else if (kind === 1) mutated[at]! ^= 1 << pick(8);
      else if (kind === 2) mutated.splice(at, 1);
      else mutated.splice(at, 0, pick(256));
      if (mutated.length < 2) mutated.push(0, 0);
    }
    // Half of them with a remaining length that is right again, so that it is the body that is tested.
    return pick(2) === 0 && mutated.length < 130 ? packet(mutated[0]!, mutated.slice(2)) : Uint8Array.from(mutated);
  }

  function decodeInside(
    bytes: Uint8Array,
    version: ProtocolVersion | undefined,
    margin: number,
    filler: number,
  ): unknown {
    const memory = new Uint8Array(bytes.length + 2 * margin).fill(filler);
    memory.set(bytes, margin);
    try {
      return decodeAll(memory.subarray(margin, margin + bytes.length), version);
    } catch (error) {
      if (!(error instanceof MqttError)) throw error;
      // The parser behind the validator never disagrees with it.
      expect(error.message).not.toBe("packet cannot be parsed");
      return { reasonCode: error.reasonCode, message: error.message };
    }
  }
});
