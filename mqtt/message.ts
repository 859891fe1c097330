import type { ByteReader, ByteWriter } from "./byte-buffer.ts";
import type { QoS } from "./publish.ts";

export type { QoS } from "./publish.ts";

/** An application message on its way through the cluster, free of any connection's version, alias or packet id. */
export interface Message {
  /** Unique in the cluster: a session that moves between nodes is merged by it. */
  readonly id: string;
  readonly topic: string;
  readonly payload: Uint8Array;
  readonly qos: QoS;
  /** The RETAIN flag as published; what a subscriber sees is decided per subscription. */
  readonly retain: boolean;
  /** The v5 properties that are forwarded unaltered, in the order received, as on the wire. [MQTT-3.3.2-18] */
  readonly properties: Uint8Array;
  /** ms since the epoch; 0 = never. */
  readonly expiresAt: number;
  /** The publisher's client id: for no-local and for shared subscriptions by client id. */
  readonly from: string;
}

/**
 * The record of a message, the same in a batch, in a queue on disk and among the retained:
 * flags u8, expiresAt u48, id, topic, from (strings), properties, payload (blobs).
 */
export function writeMessage(writer: ByteWriter, message: Message): void {
  writer
    .u8(message.qos | (message.retain ? 4 : 0))
    .u48(message.expiresAt)
    .string(message.id)
    .string(message.topic)
    .string(message.from)
    .blob(message.properties)
    .blob(message.payload);
}

export function readMessage(reader: ByteReader): Message {
  const flags = reader.u8();
  return {
    qos: (flags & 3) as QoS,
    retain: (flags & 4) !== 0,
    expiresAt: reader.u48(),
    id: reader.string(),
    topic: reader.string(),
    from: reader.string(),
    properties: reader.blob(),
    payload: reader.blob(),
  };
}

/** Seconds left as the receiver is told: the interval received minus the time waited. [MQTT-3.3.2-6] */
export function remainingExpirySeconds(message: Message, now: number): number | undefined {
  return message.expiresAt === 0 ? undefined : Math.max(0, Math.ceil((message.expiresAt - now) / 1000));
}

export function isExpired(message: Message, now: number): boolean {
  return message.expiresAt !== 0 && message.expiresAt <= now;
}

/** The message in memory of its own: what is kept must not keep the batch or frame that it came in. */
export function detached(message: Message): Message {
  const { payload, properties } = message;
  return {
    ...message,
    payload: payload.slice(),
    properties: properties.length === 0 ? properties : properties.slice(),
  };
}

/** What a message costs a queue's byte bound. */
export function messageBytes(message: Message): number {
  return message.payload.length + message.properties.length + message.topic.length + 64;
}
