// As much of MQTT as the floors need: where packets and topics are, and nothing checked.

export const connack = Uint8Array.of(0x20, 2, 0, 0);

/** Calls `each` for every packet of a frame: where it begins, where its body begins, where it ends. */
export function forEachPacket(bytes: Uint8Array, each: (start: number, body: number, end: number) => void): void {
  let at = 0;
  while (at < bytes.length) {
    const start = at++;
    let length = 0;
    let byte = 128;
    for (let shift = 0; byte > 127; shift += 7) {
      byte = bytes[at++]!;
      length |= (byte & 127) << shift;
    }
    each(start, at, at + length);
    at += length;
  }
}

/** A key for the bytes between; two topics of one load do not meet in it. */
export function hash(bytes: Uint8Array, start: number, end: number): number {
  let value = 17;
  for (let at = start; at < end; at++) value = (value * 31 + bytes[at]!) | 0;
  return value;
}

/** The key of a topic filter, the first of a SUBSCRIBE or a topic; of "a/+" and "a/#" that of "a/". */
export function keyOfFilter(bytes: Uint8Array, start: number, end: number): number {
  const last = bytes[end - 1];
  return hash(bytes, start, last === plus || last === hashSign ? end - 1 : end);
}

/** Who has the topic, or the level above it. */
export function subscribersOf<T>(table: ReadonlyMap<number, T>, bytes: Uint8Array, body: number): T | undefined {
  const start = body + 2;
  const end = start + u16(bytes, body);
  return table.get(hash(bytes, start, end)) ?? table.get(hash(bytes, start, bytes.lastIndexOf(slash, end - 1) + 1));
}

const plus = 43;
const hashSign = 35;
const slash = 47;

export function u16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}

export function suback(bytes: Uint8Array, body: number): Uint8Array {
  return Uint8Array.of(0x90, 3, bytes[body]!, bytes[body + 1]!, 0);
}

/**
 * What the packet is answered with that starts at `start`: PUBACK or PUBREC, PUBREL, PUBCOMP. So a floor goes the four
 * ways of QoS 2 with either side; it remembers nothing of it.
 */
export function acknowledgement(bytes: Uint8Array, start: number, body: number): Uint8Array | undefined {
  switch (bytes[start]! >> 4) {
    case 3: {
      const qos = (bytes[start]! >> 1) & 3;
      const id = body + 2 + u16(bytes, body);
      return qos === 0 ? undefined : Uint8Array.of(qos === 1 ? 0x40 : 0x50, 2, bytes[id]!, bytes[id + 1]!);
    }
    case 5:
      return Uint8Array.of(0x62, 2, bytes[body]!, bytes[body + 1]!);
    case 6:
      return Uint8Array.of(0x70, 2, bytes[body]!, bytes[body + 1]!);
    default:
      return undefined;
  }
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  if (parts.length === 1) return parts[0]!;
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** What is owed to sockets, each of which gets it as one frame at the end of the turn. */
export class Outgoing {
  #parts = new Map<WebSocket, Uint8Array[]>();

  add(socket: WebSocket, bytes: Uint8Array): void {
    if (this.#parts.size === 0) setImmediate(() => this.#flush());
    const parts = this.#parts.get(socket);
    if (parts === undefined) this.#parts.set(socket, [bytes]);
    else parts.push(bytes);
  }

  #flush(): void {
    const parts = this.#parts;
    this.#parts = new Map();
    for (const [socket, list] of parts) {
      if (socket.readyState === WebSocket.READY_STATE_OPEN) socket.send(concat(list));
    }
  }
}

/** Takes the socket of an upgrade as one that lets the object hibernate. */
export function acceptHibernating(ctx: DurableObjectState): Response {
  const { 0: client, 1: server } = new WebSocketPair();
  ctx.acceptWebSocket(server);
  return new Response(null, { status: 101, webSocket: client, headers: { "Sec-WebSocket-Protocol": "mqtt" } });
}

export function closeBack(socket: WebSocket): void {
  try {
    socket.close();
  } catch {} // It is closed already.
}
