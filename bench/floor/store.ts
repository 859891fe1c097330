// The third floor: what is published goes to disk, all that came in one turn as one row, and is acknowledged then (the
// runtime holds the frame until the row is durable). Who comes back to a session, or subscribes, gets all rows of it.

import { DurableObject } from "cloudflare:workers";

import { acceptHibernating, acknowledgement, closeBack, concat, connack, forEachPacket, hash } from "./bytes.ts";
import { Outgoing, suback, u16 } from "./bytes.ts";

export class Store extends DurableObject {
  readonly #outgoing = new Outgoing();
  /** By client, what a session has subscribed to: the key of a topic's first level. */
  readonly #kept = new Map<number, number>();
  readonly #clients = new WeakMap<WebSocket, number>();
  /** What has come in this turn, by the key of its topic's first level. */
  #unwritten = new Map<number, Uint8Array[]>();

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS messages (level INTEGER, packets BLOB)");
  }

  override fetch(): Response {
    return acceptHibernating(this.ctx);
  }

  override webSocketMessage(socket: WebSocket, message: ArrayBuffer | string): void {
    const bytes = new Uint8Array(message as ArrayBuffer);
    forEachPacket(bytes, (start, body, end) => {
      const type = bytes[start]! >> 4;
      if (type === 1) this.#connect(socket, bytes, body, end);
      else if (type === 8) this.#subscribe(socket, bytes, body);
      else {
        if (type === 3) this.#keep(bytes, start, body, end);
        const answer = acknowledgement(bytes, start, body);
        if (answer !== undefined) this.#outgoing.add(socket, answer);
      }
    });
  }

  override webSocketClose(socket: WebSocket): void {
    closeBack(socket);
  }

  #connect(socket: WebSocket, bytes: Uint8Array, body: number, end: number): void {
    const flags = bytes[body + 7]!;
    const client = hash(bytes, body + 10, end);
    this.#outgoing.add(socket, connack);
    if ((flags & 2) !== 0) return;
    this.#clients.set(socket, client);
    const level = this.#kept.get(client);
    if (level !== undefined) this.#drain(socket, level);
  }

  #subscribe(socket: WebSocket, bytes: Uint8Array, body: number): void {
    const client = this.#clients.get(socket);
    const level = firstLevel(bytes, body + 2);
    this.#outgoing.add(socket, suback(bytes, body));
    if (client === undefined) this.#drain(socket, level);
    else this.#kept.set(client, level);
  }

  #keep(bytes: Uint8Array, start: number, body: number, end: number): void {
    if (this.#unwritten.size === 0) setImmediate(() => this.#write());
    const level = firstLevel(bytes, body);
    const isRetained = (bytes[start]! & 1) === 1;
    const packet = isRetained ? retainedAtQos0(bytes, body, end) : bytes.subarray(start, end);
    const packets = this.#unwritten.get(level);
    if (packets === undefined) this.#unwritten.set(level, [packet]);
    else packets.push(packet);
  }

  #write(): void {
    const unwritten = this.#unwritten;
    this.#unwritten = new Map();
    for (const [level, packets] of unwritten)
      this.ctx.storage.sql.exec("INSERT INTO messages VALUES (?, ?)", level, concat(packets));
  }

  #drain(socket: WebSocket, level: number): void {
    const rows = this.ctx.storage.sql.exec<{ packets: ArrayBuffer }>(
      "SELECT packets FROM messages WHERE level = ?",
      level,
    );
    for (const { packets } of rows) this.#outgoing.add(socket, new Uint8Array(packets));
  }
}

/** The key of the first level of the topic or filter, whose length is at `at`. */
function firstLevel(bytes: Uint8Array, at: number): number {
  const end = at + 2 + u16(bytes, at);
  const slash = bytes.indexOf(47, at + 2);
  return hash(bytes, at + 2, slash < 0 || slash > end ? end : slash);
}

/** A PUBLISH as who subscribes at QoS 0 gets it. */
function retainedAtQos0(bytes: Uint8Array, body: number, end: number): Uint8Array {
  const topicEnd = body + 2 + u16(bytes, body);
  const length = end - body - 2;
  const header = length < 128 ? [0x31, length] : [0x31, (length & 127) | 128, length >> 7];
  return concat([Uint8Array.from(header), bytes.subarray(body, topicEnd), bytes.subarray(topicEnd + 2, end)]);
}
