// The first floor: one object holds all sockets and copies what comes to who subscribed, byte for byte. What a broker on
// this runtime with the same sockets can be at best.

import { DurableObject } from "cloudflare:workers";

import { acceptHibernating, acknowledgement, closeBack, connack, forEachPacket, keyOfFilter } from "./bytes.ts";
import { Outgoing, suback, subscribersOf, u16 } from "./bytes.ts";

export class Bare extends DurableObject {
  readonly #subscribers = new Map<number, WebSocket[]>();
  readonly #outgoing = new Outgoing();

  override fetch(): Response {
    return acceptHibernating(this.ctx);
  }

  override webSocketMessage(socket: WebSocket, message: ArrayBuffer | string): void {
    const bytes = new Uint8Array(message as ArrayBuffer);
    forEachPacket(bytes, (start, body, end) => {
      const type = bytes[start]! >> 4;
      if (type === 1) this.#outgoing.add(socket, connack);
      else if (type === 8) {
        const key = keyOfFilter(bytes, body + 4, body + 4 + u16(bytes, body + 2));
        this.#subscribers.set(key, [...(this.#subscribers.get(key) ?? []), socket]);
        this.#outgoing.add(socket, suback(bytes, body));
      } else {
        const answer = acknowledgement(bytes, start, body);
        if (answer !== undefined) this.#outgoing.add(socket, answer);
        if (type !== 3) return;
        const packet = bytes.subarray(start, end);
        for (const subscriber of subscribersOf(this.#subscribers, bytes, body) ?? [])
          this.#outgoing.add(subscriber, packet);
      }
    });
  }

  override webSocketClose(socket: WebSocket): void {
    closeBack(socket);
  }
}
