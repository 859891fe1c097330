/**
 * Packets to objects and back: everything a client sends, and everything but PUBLISH that it is sent.
 *
 *     bytes -> framer -> decode: validate, then parse -> session machine -> encode -> bytes
 *
 * mqtt-packet parses and generates, and is imported here only. It is shown nothing that validate.ts has
 * not walked to the last byte, and always exactly one whole packet, so it keeps no state between
 * packets and one parser for each version is enough. Should it disagree with the validator all the
 * same, the packet is refused as malformed and the parser replaced.
 *
 * What comes most often (acknowledgements without properties, PINGREQ) is done by hand, and so is
 * DISCONNECT, because a packet without properties is shorter without their length.
 *
 * Passwords, will payloads and will properties are views into the packet.
 */
import { generate, parser, writeToStream } from "mqtt-packet";
import type {
  IAuthPacket,
  IConnackPacket,
  IConnectPacket,
  IDisconnectPacket,
  IPingreqPacket,
  IPingrespPacket,
  IPubackPacket,
  IPubcompPacket,
  IPubrecPacket,
  IPubrelPacket,
  ISubackPacket,
  ISubscribePacket,
  IUnsubackPacket,
  IUnsubscribePacket,
  Packet,
} from "mqtt-packet";
import { decodePublish, type ProtocolVersion, type Publish } from "./publish.ts";
import { MqttError, ReasonCode } from "./reason-codes.ts";
import { validate, validateConnect } from "./validate.ts";

export type { ProtocolVersion, Publish } from "./publish.ts";

type Identified = { messageId: number };
type Acknowledged = Identified & { reasonCode: number };

export type ConnectPacket = IConnectPacket & {
  protocolVersion: ProtocolVersion;
  clean: boolean;
  keepalive: number;
  will?: {
    /** As `Publish.properties`: what is forwarded, as on the wire and in the order received. [MQTT-3.1.3-10] */
    forwardedProperties: Uint8Array;
  };
};
export type PubackPacket = IPubackPacket & Acknowledged;
export type PubrecPacket = IPubrecPacket & Acknowledged;
export type PubrelPacket = IPubrelPacket & Acknowledged;
export type PubcompPacket = IPubcompPacket & Acknowledged;
export type SubscribePacket = ISubscribePacket & Identified;
export type UnsubscribePacket = IUnsubscribePacket & Identified;
export type DisconnectPacket = IDisconnectPacket & { reasonCode: number };

export type ClientPacket =
  | Publish
  | ConnectPacket
  | PubackPacket
  | PubrecPacket
  | PubrelPacket
  | PubcompPacket
  | SubscribePacket
  | UnsubscribePacket
  | IPingreqPacket
  | DisconnectPacket
  | IAuthPacket;

export type ServerPacket =
  | IConnackPacket
  | (IPubackPacket & Identified)
  | (IPubrecPacket & Identified)
  | (IPubrelPacket & Identified)
  | (IPubcompPacket & Identified)
  | (ISubackPacket & Identified)
  | (IUnsubackPacket & Identified)
  | IPingrespPacket
  | IDisconnectPacket
  | IAuthPacket;

// Otherwise the first packet generated allocates a buffer for each of the 65,536 packet ids.
writeToStream.cacheNumbers = false;

const acknowledgementTypes = { puback: 4, pubrec: 5, pubrel: 6, pubcomp: 7 } as const;
const acknowledgementCommands = ["puback", "pubrec", "pubrel", "pubcomp"] as const;

const parsers: Record<ProtocolVersion, OnePacketParser> = {
  3: onePacketParser(3),
  4: onePacketParser(4),
  5: onePacketParser(5),
};

/**
 * Decodes one whole packet from the framer; MqttError if it is not legal. Without a version, which is
 * before CONNECT, nothing but CONNECT is. A second CONNECT is decoded: refusing it is the session's.
 */
export function decode(packet: Uint8Array, version: ProtocolVersion | undefined): ClientPacket {
  const type = packet[0]! >> 4;
  if (type === 1) return decodeConnect(packet);
  // [MQTT-3.1.0-1]
  if (version === undefined) throw new MqttError(ReasonCode.ProtocolError, "the first packet is not CONNECT");
  if (type === 3) return decodePublish(packet, version);
  validate(packet, version);
  if (packet.length === 2 && type === 12) return { cmd: "pingreq" };
  if (packet.length === 2 && type === 14) return { cmd: "disconnect", reasonCode: ReasonCode.Success };
  if (packet.length === 4 && type >= 4 && type <= 7) return decodeAcknowledgement(packet, type);
  // Only 3.1 may set DUP here, and the parser does not know that it may.
  const isMarkedDup = (packet[0]! & 0x08) !== 0;
  return parsers[version].parse(isMarkedDup ? withByte(packet, 0, packet[0]! & ~0x08) : packet) as ClientPacket;
}

/** Encodes a packet for a client. The form depends on the version: reason codes and properties are of 5.0. */
export function encode(packet: ServerPacket, version: ProtocolVersion): Uint8Array {
  switch (packet.cmd) {
    case "pingresp":
      return Uint8Array.of(0xd0, 0);
    case "puback":
    case "pubrec":
    case "pubrel":
    case "pubcomp":
      if (version === 5 && hasProperties(packet)) break;
      return encodeAcknowledgement(packet, version);
    case "disconnect":
      if (version !== 5) throw new Error("a server sends no DISCONNECT before MQTT 5.0");
      if (hasProperties(packet)) break;
      return encodeDisconnect(packet.reasonCode ?? ReasonCode.Success);
    default:
      break;
  }
  return generate(packet, { protocolVersion: version });
}

function decodeConnect(packet: Uint8Array): ConnectPacket {
  const { version, flags, flagsAt, will } = validateConnect(packet);
  // Only 3.1 has bits that are to be ignored, and the parser does not know which.
  const shown = version === 3 ? withByte(withByte(packet, 0, 0x10), flagsAt, flags) : packet;
  // A parser takes the version of a CONNECT for its own from then on: never one of those kept.
  const connect = onePacketParser(version).parse(shown) as ConnectPacket;
  if (connect.will) connect.will.forwardedProperties = will.forwarded;
  return connect;
}

function decodeAcknowledgement(packet: Uint8Array, type: number): ClientPacket {
  const messageId = (packet[2]! << 8) | packet[3]!;
  return { cmd: acknowledgementCommands[type - 4]!, messageId, reasonCode: ReasonCode.Success };
}

function encodeAcknowledgement(
  packet: (IPubackPacket | IPubrecPacket | IPubrelPacket | IPubcompPacket) & Identified,
  version: ProtocolVersion,
): Uint8Array {
  const type = acknowledgementTypes[packet.cmd];
  const first = (type << 4) | (packet.cmd === "pubrel" ? 0x02 : 0);
  const high = packet.messageId >> 8;
  const low = packet.messageId & 0xff;
  const reasonCode = packet.reasonCode ?? ReasonCode.Success;
  if (version !== 5 || reasonCode === ReasonCode.Success) return Uint8Array.of(first, 2, high, low);
  return Uint8Array.of(first, 3, high, low, reasonCode);
}

function encodeDisconnect(reasonCode: number): Uint8Array {
  return reasonCode === ReasonCode.Success ? Uint8Array.of(0xe0, 0) : Uint8Array.of(0xe0, 1, reasonCode);
}

function hasProperties(packet: { properties?: object }): boolean {
  return packet.properties !== undefined && Object.values(packet.properties).some((value) => value !== undefined);
}

function withByte(packet: Uint8Array, at: number, byte: number): Uint8Array {
  const copy = packet.slice();
  copy[at] = byte;
  return copy;
}

interface OnePacketParser {
  parse(packet: Uint8Array): Packet;
}

function onePacketParser(version: ProtocolVersion): OnePacketParser {
  let parsed: Packet[] = [];
  let failure: unknown;
  const create = () =>
    parser({ protocolVersion: version })
      .on("packet", (packet) => parsed.push(packet))
      .on("error", (error) => {
        failure = error;
      });
  let current = create();
  return {
    parse(bytes) {
      parsed = [];
      failure = undefined;
      try {
        // Any Uint8Array will do; the types say Buffer.
        current.parse(bytes as Buffer);
      } catch (error) {
        failure = error;
      }
      const [packet, ...more] = parsed;
      parsed = [];
      if (packet !== undefined && more.length === 0 && failure === undefined) return packet;
      current = create();
      throw new MqttError(ReasonCode.MalformedPacket, "packet cannot be parsed");
    },
  };
}
