/**
 * Reading the data types of the wire (MQTT 5.0, section 1.5) from a window of a byte array.
 * Every read is bounded by the window's end, never by the array's: a length that points past the
 * packet, or past its properties, is a malformed packet and not the first bytes of what comes next.
 */
import { MqttError, ReasonCode } from "./reason-codes.ts";

export class Reader {
  readonly bytes: Uint8Array;
  at: number;
  readonly end: number;

  constructor(bytes: Uint8Array, at: number, end: number) {
    this.bytes = bytes;
    this.at = at;
    this.end = end;
  }

  get done(): boolean {
    return this.at >= this.end;
  }

  /** Steps over `length` bytes and returns where they began. */
  skip(length: number): number {
    const start = this.at;
    if (start + length > this.end) throw new MqttError(ReasonCode.MalformedPacket, "packet ends too early");
    this.at = start + length;
    return start;
  }

  byte(): number {
    return this.bytes[this.skip(1)]!;
  }

  uint16(): number {
    const at = this.skip(2);
    return (this.bytes[at]! << 8) | this.bytes[at + 1]!;
  }

  uint32(): number {
    return this.uint16() * 0x10000 + this.uint16();
  }

  variableByteInteger(): number {
    let value = 0;
    for (let shift = 0; shift <= 21; shift += 7) {
      const byte = this.byte();
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) {
        // [MQTT-1.5.5-1] the shortest encoding is the only one.
        if (byte === 0 && shift > 0) break;
        return value;
      }
    }
    throw new MqttError(ReasonCode.MalformedPacket, "variable byte integer is too long");
  }

  /** A window on the next `length` bytes, which this reader steps over. */
  window(length: number): Reader {
    const start = this.skip(length);
    return new Reader(this.bytes, start, start + length);
  }
}

/** A reader on what follows the fixed header. The packet must be exactly one, as the framer yields them. */
export function readBody(packet: Uint8Array): Reader {
  const header = new Reader(packet, 1, packet.length);
  const length = header.variableByteInteger();
  if (header.at + length !== packet.length) {
    throw new MqttError(ReasonCode.MalformedPacket, "remaining length is not that of the packet");
  }
  return header;
}

/** Bytes that a variable byte integer takes, 1 to 4. */
export function variableByteIntegerSize(value: number): number {
  if (value < 0x80) return 1;
  if (value < 0x4000) return 2;
  return value < 0x200000 ? 3 : 4;
}

/** Writes a variable byte integer at an offset and returns the offset behind it. */
export function writeVariableByteInteger(target: Uint8Array, at: number, value: number): number {
  let rest = value;
  let offset = at;
  while (rest >= 0x80) {
    target[offset++] = (rest & 0x7f) | 0x80;
    rest >>>= 7;
  }
  target[offset++] = rest;
  return offset;
}

/** Writes a two byte integer, big end first, and returns the offset behind it. */
export function writeUint16(target: Uint8Array, at: number, value: number): number {
  target[at] = value >>> 8;
  target[at + 1] = value & 0xff;
  return at + 2;
}
