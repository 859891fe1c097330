/**
 * Framing: bytes in chunks of any size in, exactly one whole packet at a time out.
 *
 *     chunk  [PINGREQ][PUBLISH...............][PUB     next() three times: PINGREQ, PUBLISH, undefined
 *     chunk  LISH....]                                 next() twice: PUBLISH, undefined
 *
 * A packet that lies whole in a chunk is a view of the chunk: no copy. Only a packet that spans
 * chunks is gathered, in a buffer of its own that grows by doubling as bytes really arrive, up to the
 * length in the header: copying is linear, and a header that announces much and brings nothing costs
 * nothing. Memory is never used twice, so views stay valid.
 *
 * Type, flags and length are judged as soon as the header is there, before a body is gathered.
 * After an error the stream has no meaning any more and the connection ends.
 */
import { MqttError, ReasonCode } from "./reason-codes.ts";
import { SilentError } from "./refusal.ts";

const nothing = new Uint8Array(0);

/** What a gathered packet takes at first, in bytes, if it needs no more. */
const gatherBytesMin = 256;

/** A fixed header is a byte and a length of 1 to 4 bytes. */
const headerBytesMax = 5;

export class Framer {
  readonly #packetBytesMax: number;
  /** Chunks not framed yet; the first from #at on. */
  #chunks: Uint8Array[] = [];
  #at = 0;
  /** The packet that spans chunks: its bytes so far, and its length or 0 while the header is incomplete. */
  #gathered = nothing;
  #gatheredLength = 0;
  #packetLength = 0;

  /** Packets longer than this, fixed header included, are refused with 0x95. */
  constructor(packetBytesMax: number) {
    this.#packetBytesMax = packetBytesMax;
  }

  /** Bytes held of an unfinished packet, once `next` has returned undefined. */
  get pendingBytes(): number {
    return this.#gatheredLength;
  }

  /** Hands over a chunk, which must not be written to any more. */
  push(chunk: Uint8Array): void {
    if (chunk.length > 0) this.#chunks.push(chunk);
  }

  /** One whole packet with its fixed header; undefined if there is none yet; MqttError if there will be none. */
  next(): Uint8Array | undefined {
    for (;;) {
      const chunk = this.#chunks[0];
      if (chunk === undefined) return undefined;
      if (this.#gatheredLength === 0) {
        const length = this.#measure(chunk, this.#at, chunk.length);
        if (length !== 0 && this.#at + length <= chunk.length) return this.#take(chunk, length);
        this.#packetLength = length;
      }
      const packet = this.#gather(chunk);
      if (packet !== undefined) return packet;
    }
  }

  #take(chunk: Uint8Array, length: number): Uint8Array {
    const packet = chunk.subarray(this.#at, this.#at + length);
    this.#advance(chunk, length);
    return packet;
  }

  #advance(chunk: Uint8Array, length: number): void {
    this.#at += length;
    if (this.#at === chunk.length) {
      this.#chunks.shift();
      this.#at = 0;
    }
  }

  /** Moves bytes of the chunk to the packet that spans chunks; the packet if that makes it whole. */
  #gather(chunk: Uint8Array): Uint8Array | undefined {
    // While the length is unknown a byte more may complete it: one at a time, at most five times.
    const missing = this.#packetLength === 0 ? 1 : this.#packetLength - this.#gatheredLength;
    const length = Math.min(missing, chunk.length - this.#at);
    this.#reserve(this.#gatheredLength + length);
    this.#gathered.set(chunk.subarray(this.#at, this.#at + length), this.#gatheredLength);
    this.#gatheredLength += length;
    this.#advance(chunk, length);
    if (this.#packetLength === 0) this.#packetLength = this.#measure(this.#gathered, 0, this.#gatheredLength);
    if (this.#packetLength === 0 || this.#gatheredLength < this.#packetLength) return undefined;
    const packet = this.#gathered.subarray(0, this.#packetLength);
    this.#gathered = nothing;
    this.#gatheredLength = 0;
    this.#packetLength = 0;
    return packet;
  }

  #reserve(length: number): void {
    if (length <= this.#gathered.length) return;
    const wanted = Math.max(length, this.#gathered.length * 2, gatherBytesMin);
    const larger = new Uint8Array(this.#packetLength === 0 ? wanted : Math.min(wanted, this.#packetLength));
    larger.set(this.#gathered.subarray(0, this.#gatheredLength));
    this.#gathered = larger;
  }

  /** The length of the packet that begins at `at`, 0 if its header is not all there; MqttError if it is illegal. */
  #measure(bytes: Uint8Array, at: number, end: number): number {
    if (at >= end) return 0;
    const first = bytes[at]!;
    checkFirstByte(first);
    let remaining = 0;
    for (let size = 1; size < headerBytesMax; size++) {
      if (at + size >= end) return 0;
      const byte = bytes[at + size]!;
      remaining |= (byte & 0x7f) << (7 * (size - 1));
      if (byte >= 0x80) continue;
      // [MQTT-1.5.5-1]
      if (byte === 0 && size > 1) throw lengthTooLong();
      const length = 1 + size + remaining;
      checkHeader(first, remaining);
      if (length > this.#packetBytesMax) {
        throw new MqttError(ReasonCode.PacketTooLarge, `packet has more than ${this.#packetBytesMax} bytes`);
      }
      return length;
    }
    throw lengthTooLong();
  }
}

/** Refuses what a client may not begin a packet with. [MQTT-2.1.3-1], in 3.1.1 [MQTT-2.2.2-2] */
function checkFirstByte(first: number): void {
  const type = first >> 4;
  const flags = first & 0x0f;
  switch (type) {
    case 0:
      throw new MqttError(ReasonCode.ProtocolError, "packet type 0 is reserved");
    case 1: // CONNECT: the flags mean nothing in 3.1 and must be 0 since; that is known after the version.
    case 3: // PUBLISH: the flags are its own.
      return;
    case 6: // PUBREL
    case 8: // SUBSCRIBE
    case 10: // UNSUBSCRIBE: DUP was legal in 3.1, so it is judged with the version too.
      if ((flags & ~0x08) !== 0x02) throw wrongFlags();
      return;
    case 4: // PUBACK
    case 5: // PUBREC
    case 7: // PUBCOMP
    case 12: // PINGREQ
    case 14: // DISCONNECT
      if (flags !== 0) throw wrongFlags();
      return;
    case 15: // AUTH: malformed by [MQTT-3.15.1-1]; 0x82 is what Mosquitto answers and tests.
      if (flags !== 0) throw new MqttError(ReasonCode.ProtocolError, "reserved flags of AUTH are set");
      return;
    case 2: // CONNACK: whatever its flags, a server's.
      return;
    default: // SUBACK, UNSUBACK, PINGRESP
      if (flags !== 0) throw wrongFlags();
  }
}

/** Refuses a header that is well formed and cannot be that of a client's packet. */
function checkHeader(first: number, remaining: number): void {
  const type = first >> 4;
  if ((type === 12 || type === 13) && remaining !== 0) {
    throw new SilentError(ReasonCode.MalformedPacket, "PINGREQ or PINGRESP has a body");
  }
  if (type === 2 || type === 9 || type === 11 || type === 13) {
    throw new MqttError(ReasonCode.ProtocolError, `packet type ${type} is sent by servers only`);
  }
}

function wrongFlags(): MqttError {
  return new MqttError(ReasonCode.MalformedPacket, "reserved flags of the fixed header are wrong");
}

function lengthTooLong(): SilentError {
  return new SilentError(ReasonCode.MalformedPacket, "remaining length is not a variable byte integer");
}
