// Bytes of the load: MQTT 3.1.1 packets and the masked WebSocket frames they travel in.
//
// A generator that is slower than the broker measures itself, so PUBLISH is not encoded for each message: a template holds
// a whole masked frame, and what differs from one message to the next (packet id, sequence number, time, check) is patched.
//
//   payload   publisher u32 | sequence u32 | time in microseconds u32 | filler of the publisher ... | check u8

/** Not zero, so that the broker has to unmask as it has to for any client; fixed, so that templates can be masked once. */
const mask = [0x37, 0xfa, 0x21, 0x3d] as const;
const maskBytes = Uint8Array.from(mask);

/** Bytes of the payload before the filler. */
export const stampBytes = 12;

function u16(value: number): Buffer {
  return Buffer.from([value >> 8, value & 255]);
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u16(bytes.length), bytes]);
}

function remainingLength(length: number): Buffer {
  const bytes: number[] = [];
  for (let left = length; bytes.length === 0 || left > 0; left >>>= 7)
    bytes.push((left & 127) | (left > 127 ? 128 : 0));
  return Buffer.from(bytes);
}

function packet(firstByte: number, ...parts: readonly Buffer[]): Buffer {
  const body = Buffer.concat(parts);
  return Buffer.concat([Buffer.from([firstByte]), remainingLength(body.length), body]);
}

export function connectPacket(clientId: string, session: "clean" | "kept"): Buffer {
  const noKeepAlive = u16(0);
  return packet(0x10, text("MQTT"), Buffer.from([4, session === "clean" ? 2 : 0]), noKeepAlive, text(clientId));
}

export function subscribePacket(packetId: number, filters: readonly string[], qos: number): Buffer {
  return packet(0x82, u16(packetId), ...filters.flatMap((filter) => [text(filter), Buffer.from([qos])]));
}

/** One masked frame, binary unless said. */
export function frame(payload: Uint8Array, opcode = 2): Buffer {
  const { length } = payload;
  const head = headBytes(length);
  const bytes = Buffer.allocUnsafe(head + length);
  bytes[0] = 0x80 | opcode;
  if (length < 126) bytes[1] = 0x80 | length;
  else if (length < 65536) {
    bytes[1] = 0x80 | 126;
    bytes.writeUInt16BE(length, 2);
  } else {
    bytes[1] = 0x80 | 127;
    bytes.writeBigUInt64BE(BigInt(length), 2);
  }
  bytes.set(maskBytes, head - 4);
  for (let i = 0; i < length; i++) bytes[head + i] = payload[i]! ^ mask[i & 3]!;
  return bytes;
}

/** Bytes of a masked frame before its payload. */
function headBytes(payloadLength: number): number {
  return payloadLength < 126 ? 6 : payloadLength < 65536 ? 8 : 14;
}

/** Packets of two bytes' body, each a first byte and a packet id: PUBACK, PUBREC, PUBREL, PUBCOMP. */
export type Acknowledgements = (readonly [firstByte: number, packetId: number])[];

function acknowledgementBytes([firstByte, packetId]: readonly [number, number]): number[] {
  return [firstByte, 2, packetId >> 8, packetId & 255];
}

/** All in one frame, or a frame for each, to be written at once. */
export function acknowledgementFrames(list: Acknowledgements, frames: "one" | "each"): Buffer {
  if (frames === "one") return frame(Uint8Array.from(list.flatMap(acknowledgementBytes)));
  const bytes = Buffer.allocUnsafe(list.length * 10);
  let at = 0;
  for (const [firstByte, packetId] of list) {
    bytes[at] = 0x82;
    bytes[at + 1] = 0x84;
    bytes.set(maskBytes, at + 2);
    bytes[at + 6] = firstByte ^ mask[0];
    bytes[at + 7] = 2 ^ mask[1];
    bytes[at + 8] = (packetId >> 8) ^ mask[2];
    bytes[at + 9] = (packetId & 255) ^ mask[3];
    at += 10;
  }
  return bytes;
}

/** The packet id under which a publisher sends its message `sequence`. */
function packetIdOf(sequence: number): number {
  return (sequence % 65535) + 1;
}

/** The payload's last byte, which a broker cannot make up. */
export function checkOf(publisher: number, sequence: number): number {
  return (sequence * 31 + publisher) & 255;
}

/** A payload with all that does not change from message to message. */
export function payloadOf(publisher: number, size: number): Buffer {
  const payload = Buffer.alloc(size);
  payload.writeUInt32BE(publisher, 0);
  for (let i = stampBytes; i < size - 1; i++) payload[i] = (i * 7 + publisher) & 255;
  return payload;
}

export interface TemplateOptions {
  readonly topic: string;
  readonly qos: number;
  readonly retain: boolean;
  readonly publisher: number;
  readonly size: number;
  /** Packets in the frame. */
  readonly burst: number;
}

/** A frame of `burst` PUBLISH packets to one topic. */
export class PublishTemplate {
  readonly topic: Buffer;
  readonly #options: TemplateOptions;
  readonly #frame: Buffer;
  /** Where the payload of each packet begins; the packet id is right before it. Counted from the frame's payload. */
  readonly #payloads: readonly number[];
  readonly #head: number;

  constructor(options: TemplateOptions) {
    const { topic, qos, retain, publisher, size, burst } = options;
    const id = qos > 0 ? u16(0) : Buffer.alloc(0);
    const publish = packet(0x30 | (qos << 1) | (retain ? 1 : 0), text(topic), id, payloadOf(publisher, size));
    this.topic = Buffer.from(topic);
    this.#options = options;
    this.#frame = frame(Buffer.concat(Array.from({ length: burst }, () => publish)));
    this.#payloads = Array.from({ length: burst }, (_, index) => (index + 1) * publish.length - size);
    this.#head = headBytes(burst * publish.length);
  }

  /** Bytes of the frame. */
  get length(): number {
    return this.#frame.length;
  }

  /** Writes the frame into `target` at `at`, its messages numbered from `sequence`. */
  write(target: Buffer, at: number, sequence: number, microseconds: number): void {
    this.#frame.copy(target, at);
    const { publisher, size, qos } = this.#options;
    const start = at + this.#head;
    let number = sequence;
    for (const payload of this.#payloads) {
      patch32(target, start, payload + 4, number);
      patch32(target, start, payload + 8, microseconds);
      patch8(target, start, payload + size - 1, checkOf(publisher, number));
      if (qos > 0) {
        patch8(target, start, payload - 2, packetIdOf(number) >> 8);
        patch8(target, start, payload - 1, packetIdOf(number) & 255);
      }
      number++;
    }
  }
}

function patch8(target: Buffer, start: number, offset: number, value: number): void {
  target[start + offset] = value ^ mask[offset & 3]!;
}

function patch32(target: Buffer, start: number, offset: number, value: number): void {
  patch8(target, start, offset, value >>> 24);
  patch8(target, start, offset + 1, (value >>> 16) & 255);
  patch8(target, start, offset + 2, (value >>> 8) & 255);
  patch8(target, start, offset + 3, value & 255);
}
