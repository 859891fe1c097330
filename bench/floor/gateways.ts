// The second floor, of our shape: gateways hold the sockets, one hub knows which gateways want a topic, and what gathers
// while a call is under way crosses as one byte array. QoS 1 and 2 are acknowledged by the gateway, before anything has
// crossed: no promise is kept here.

import { DurableObject } from "cloudflare:workers";

import { acceptHibernating, acknowledgement, closeBack, concat, connack, forEachPacket, keyOfFilter } from "./bytes.ts";
import { Outgoing, suback, subscribersOf, u16 } from "./bytes.ts";

export interface GatewayBindings {
  readonly GATEWAY: DurableObjectNamespace<Gateway>;
  readonly HUB: DurableObjectNamespace<Hub>;
}

/** Batches toward one object: at the end of the turn, then whenever the last call has been answered. */
class Batches {
  readonly #send: (bytes: Uint8Array) => Promise<unknown>;
  #parts: Uint8Array[] = [];
  #state: "idle" | "scheduled" | "sending" = "idle";

  constructor(send: (bytes: Uint8Array) => Promise<unknown>) {
    this.#send = send;
  }

  add(bytes: Uint8Array): void {
    this.#parts.push(bytes);
    if (this.#state !== "idle") return;
    this.#state = "scheduled";
    setImmediate(() => void this.#flush());
  }

  async #flush(): Promise<void> {
    this.#state = "sending";
    while (this.#parts.length > 0) {
      const parts = this.#parts;
      this.#parts = [];
      await this.#send(concat(parts));
    }
    this.#state = "idle";
  }
}

export class Gateway extends DurableObject<GatewayBindings> {
  readonly #subscribers = new Map<number, WebSocket[]>();
  readonly #outgoing = new Outgoing();
  readonly #hub = this.env.HUB.getByName("hub");
  readonly #toHub = new Batches((bytes) => this.#hub.route(bytes));

  override fetch(): Response {
    return acceptHibernating(this.ctx);
  }

  override async webSocketMessage(socket: WebSocket, message: ArrayBuffer | string): Promise<void> {
    const bytes = new Uint8Array(message as ArrayBuffer);
    const keys: number[] = [];
    forEachPacket(bytes, (start, body, end) => {
      const type = bytes[start]! >> 4;
      if (type === 1) this.#outgoing.add(socket, connack);
      else if (type === 8) {
        const key = keyOfFilter(bytes, body + 4, body + 4 + u16(bytes, body + 2));
        this.#subscribers.set(key, [...(this.#subscribers.get(key) ?? []), socket]);
        keys.push(key);
      } else {
        const answer = acknowledgement(bytes, start, body);
        if (answer !== undefined) this.#outgoing.add(socket, answer);
        if (type === 3) this.#toHub.add(bytes.subarray(start, end));
      }
    });
    if (keys.length === 0) return;
    await this.#hub.subscribe(this.ctx.id.name!, keys);
    forEachPacket(bytes, (start, body) => {
      if (bytes[start]! >> 4 === 8) this.#outgoing.add(socket, suback(bytes, body));
    });
  }

  override webSocketClose(socket: WebSocket): void {
    closeBack(socket);
  }

  deliver(bytes: Uint8Array): void {
    forEachPacket(bytes, (start, body, end) => {
      const packet = bytes.subarray(start, end);
      for (const subscriber of subscribersOf(this.#subscribers, bytes, body) ?? [])
        this.#outgoing.add(subscriber, packet);
    });
  }
}

export class Hub extends DurableObject<GatewayBindings> {
  readonly #routes = new Map<number, Set<Batches>>();
  readonly #gateways = new Map<string, Batches>();

  subscribe(gateway: string, keys: readonly number[]): void {
    const stub = this.env.GATEWAY.getByName(gateway);
    const batches = this.#gateways.get(gateway) ?? new Batches((bytes) => stub.deliver(bytes));
    this.#gateways.set(gateway, batches);
    for (const key of keys) this.#routes.set(key, (this.#routes.get(key) ?? new Set()).add(batches));
  }

  route(bytes: Uint8Array): void {
    forEachPacket(bytes, (start, body, end) => {
      const packet = bytes.subarray(start, end);
      for (const gateway of subscribersOf(this.#routes, bytes, body) ?? []) gateway.add(packet);
    });
  }
}
