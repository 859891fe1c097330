// A subscriber's side of the verification: each delivery is looked at byte by byte.

import type { Delivery } from "./client.ts";
import type { Histogram } from "./histogram.ts";
import type { Publisher } from "./publisher.ts";
import type { Faults } from "./spec.ts";
import { checkOf, stampBytes } from "./wire.ts";

/** What all receivers of a load share. */
export interface Ledger {
  readonly publishers: readonly Publisher[];
  readonly faults: Faults;
  /** From publish to delivery; a new one when the measurement begins. */
  latency: Histogram;
  delivered: number;
  /** Microseconds of the clock that stamps messages, modulo 2^32. */
  now(): number;
  /** A message is done. */
  onDelivered(publisher: Publisher): void;
}

export interface ReceiverOptions {
  /** Whether what one publisher sends must come in its order; retained messages have none. */
  readonly order: "kept" | "any";
  readonly retain: boolean;
}

export class Receiver {
  readonly #ledger: Ledger;
  readonly #options: ReceiverOptions;
  /** By publisher: the last sequence number. */
  readonly #last = new Map<number, number>();

  constructor(ledger: Ledger, options: ReceiverOptions = { order: "kept", retain: false }) {
    this.#ledger = ledger;
    this.#options = options;
  }

  /** What comes from anybody else is a fault. */
  follow(publisher: Publisher): void {
    this.#last.set(publisher.id, -1);
  }

  readonly receive = ({ bytes, topicStart, topicEnd, payloadStart, end, retain }: Delivery): void => {
    const { publishers, faults, latency } = this.#ledger;
    const publisher = publishers[end - payloadStart < stampBytes ? -1 : bytes.readUInt32BE(payloadStart)];
    const last = publisher && this.#last.get(publisher.id);
    if (publisher === undefined || last === undefined || retain !== this.#options.retain) {
      faults.corrupt++;
      return;
    }
    const sequence = bytes.readUInt32BE(payloadStart + 4);
    const { payload } = publisher;
    const isWhole =
      sequence < publisher.sent &&
      end - payloadStart === payload.length &&
      bytes[end - 1] === checkOf(publisher.id, sequence) &&
      bytes.compare(payload, stampBytes, payload.length - 1, payloadStart + stampBytes, end - 1) === 0 &&
      publisher.topicOf(sequence).compare(bytes, topicStart, topicEnd) === 0;
    if (!isWhole) {
      faults.corrupt++;
      return;
    }
    const isOrdered = this.#options.order === "kept";
    if ((isOrdered && sequence === last) || publisher.deliver(sequence) === "spare") {
      faults.duplicated++;
      return;
    }
    if (isOrdered && sequence < last) faults.reordered++;
    else this.#last.set(publisher.id, sequence);
    latency.add((this.#ledger.now() - bytes.readUInt32BE(payloadStart + 8)) >>> 0);
    this.#ledger.delivered++;
    this.#ledger.onDelivered(publisher);
  };
}
