// A publisher with a closed loop: no more than `window` messages under way, and the next one as soon as one is done.

import type { Client } from "./client.ts";
import { payloadOf, PublishTemplate } from "./wire.ts";

/** Messages of one publisher that may be under way; a power of two. */
const ringSize = 1 << 16;

export interface PublisherOptions {
  /** Its number, which every payload carries. */
  readonly id: number;
  readonly client: Client;
  /** Taken in turn, frame by frame. */
  readonly topics: readonly string[];
  readonly qos: number;
  readonly retain: boolean;
  readonly size: number;
  /** Packets in a frame. */
  readonly burst: number;
  /** Deliveries that each message leads to. */
  readonly copies: number;
  readonly window: number;
  /** What a message in the window waits for: to be delivered and acknowledged, or, offline, to be acknowledged alone. */
  readonly waitsFor: "delivery" | "acknowledgement";
  /** Messages in all. */
  readonly limit: number;
}

export class Publisher {
  readonly id: number;
  readonly client: Client;
  /** What each payload must have where it does not differ from message to message. */
  readonly payload: Buffer;
  readonly #options: PublisherOptions;
  readonly #templates: readonly PublishTemplate[];
  /** By sequence number: copies that have not arrived. */
  readonly #left = new Int16Array(ringSize);
  #sent = 0;
  #delivered = 0;
  #acknowledged = 0;

  constructor(options: PublisherOptions) {
    const { id, client, topics, qos, retain, size, burst } = options;
    this.id = id;
    this.client = client;
    this.payload = payloadOf(id, size);
    this.#options = options;
    this.#templates = topics.map((topic) => new PublishTemplate({ topic, qos, retain, publisher: id, size, burst }));
  }

  get sent(): number {
    return this.#sent;
  }

  get acknowledged(): number {
    return this.#acknowledged;
  }

  /** Messages of which something is to come, a copy or an acknowledgement. */
  get underWay(): number {
    return Math.max(this.#sent - this.#delivered, this.#unacknowledged);
  }

  get #unacknowledged(): number {
    return this.#options.qos > 0 ? this.#sent - this.#acknowledged : 0;
  }

  /** The topic of the message `sequence`. */
  topicOf(sequence: number): Buffer {
    return this.#templateOf(sequence).topic;
  }

  /** Sends what the window has room for, in whole bursts and in one write. Returns how many messages that were. */
  pump(microseconds: number): number {
    const { burst, window, limit, copies, waitsFor } = this.#options;
    const inWindow = waitsFor === "delivery" ? this.underWay : this.#unacknowledged;
    const room = Math.min(window - inWindow, limit - this.#sent);
    const count = room - (room % burst);
    if (count <= 0) return 0;
    const end = this.#sent + count;
    let length = 0;
    for (let sequence = this.#sent; sequence < end; sequence += burst) length += this.#templateOf(sequence).length;
    const bytes = Buffer.allocUnsafe(length);
    let at = 0;
    for (let sequence = this.#sent; sequence < end; sequence += burst) {
      const template = this.#templateOf(sequence);
      template.write(bytes, at, sequence, microseconds);
      at += template.length;
    }
    for (; this.#sent < end; this.#sent++) this.#left[this.#sent % ringSize] = copies;
    this.client.write(bytes);
    return count;
  }

  /** One copy has arrived; "spare": all that were expected had arrived before. */
  deliver(sequence: number): "expected" | "spare" {
    const place = sequence % ringSize;
    if (this.#sent - sequence > ringSize || this.#left[place]! <= 0) return "spare";
    this.#left[place]!--;
    if (this.#left[place] === 0) this.#delivered++;
    return "expected";
  }

  acknowledge(): void {
    this.#acknowledged++;
  }

  /** Takes what has not come for lost, and returns how much that is: copies, and acknowledgements. */
  giveUp(): number {
    let lost = this.#unacknowledged;
    for (let sequence = Math.max(0, this.#sent - ringSize); sequence < this.#sent; sequence++) {
      lost += this.#left[sequence % ringSize]!;
      this.#left[sequence % ringSize] = 0;
    }
    this.#delivered = this.#sent;
    this.#acknowledged = this.#sent;
    return lost;
  }

  #templateOf(sequence: number): PublishTemplate {
    return this.#templates[Math.floor(sequence / this.#options.burst) % this.#templates.length]!;
  }
}
