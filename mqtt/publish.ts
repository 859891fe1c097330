/**
 * PUBLISH, decoded and encoded by hand: the hot path.
 *
 * Decoding validates in the same pass. Encoding is done once for each distinct form of a message
 * (version, QoS, flags, subscription identifiers), whatever the number of subscribers; what is left
 * to do for one of them is `withPacketId`, a copy with two bytes changed.
 *
 * A decoded payload and its properties are views into the packet, nothing is copied: whoever keeps a
 * message for long and its packet came in a large frame with others copies it then.
 */
import { allocate } from "./byte-buffer.ts";
import { readBody, variableByteIntegerSize, writeUint16, writeVariableByteInteger } from "./bytes.ts";
import { checkPayloadFormat, noMessageProperties, readMessageProperties } from "./message-properties.ts";
import { Property, type PropertyRules } from "./properties.ts";
import { MqttError, ReasonCode } from "./reason-codes.ts";
import { hasWildcard } from "./topic.ts";
import { decodeName } from "./utf8.ts";

/** The protocol level in CONNECT: 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.0. */
export type ProtocolVersion = 3 | 4 | 5;

export type QoS = 0 | 1 | 2;

export interface Publish {
  readonly cmd: "publish";
  /** Empty when a 5.0 client sent a topic alias instead. */
  topic: string;
  payload: Uint8Array;
  qos: QoS;
  dup: boolean;
  retain: boolean;
  /** 0 at QoS 0. */
  packetId: number;
  /** 0: none was sent. */
  topicAlias: number;
  /** Seconds; undefined: the message does not expire. */
  messageExpiryInterval: number | undefined;
  /** What a server forwards unaltered, as on the wire and in the order received, without a length in front. */
  properties: Uint8Array;
}

/** What of a message is the same for every subscriber. */
export interface PublishContent {
  readonly topic: string;
  readonly payload: Uint8Array;
  readonly properties: Uint8Array;
}

/** The distinct forms of one message: subscribers that share a form share one encoding. */
export interface PublishForm {
  readonly version: ProtocolVersion;
  readonly qos: QoS;
  readonly dup: boolean;
  readonly retain: boolean;
  readonly subscriptionIds: readonly number[];
  /** Seconds that remain; undefined: the message does not expire. */
  readonly messageExpiryInterval: number | undefined;
  /** 0: none. */
  readonly topicAlias: number;
  /** The client knows the alias already: the topic name is left empty. */
  readonly topicOmitted: boolean;
}

const publishType = 0x30;
const dupFlag = 0x08;
const retainFlag = 0x01;

const encoder = new TextEncoder();

const publishProperties: PropertyRules = {
  packet: "PUBLISH",
  // Subscription identifiers only come from a server. [MQTT-3.3.4-6]
  allowed: new Set<number>([
    Property.PayloadFormatIndicator,
    Property.MessageExpiryInterval,
    Property.TopicAlias,
    Property.ResponseTopic,
    Property.CorrelationData,
    Property.UserProperty,
    Property.ContentType,
  ]),
  disallowed: ReasonCode.ProtocolError,
};

/** Decodes one whole PUBLISH of a client; MqttError 0x81, 0x82, 0x94 or 0x99. */
export function decodePublish(packet: Uint8Array, version: ProtocolVersion): Publish {
  const flags = packet[0]! & 0x0f;
  const qos = qosOf(flags);
  const dup = (flags & dupFlag) !== 0;
  // [MQTT-3.3.1-2]
  if (dup && qos === 0) throw new MqttError(ReasonCode.MalformedPacket, "DUP is set at QoS 0");

  const body = readBody(packet);
  const topicLength = body.uint16();
  const topicStart = body.skip(topicLength);
  const topic = decodeName(packet, topicStart, topicStart + topicLength);
  // [MQTT-3.3.2-2]. Not 0x90, which is for names that are well formed.
  if (hasWildcard(topic)) throw new MqttError(ReasonCode.MalformedPacket, "topic name contains a wildcard");

  const packetId = qos === 0 ? 0 : body.uint16();
  // [MQTT-2.2.1-3]
  if (qos !== 0 && packetId === 0) throw new MqttError(ReasonCode.ProtocolError, "packet identifier is 0");

  const properties = version === 5 ? readMessageProperties(body, publishProperties) : noMessageProperties;
  // [MQTT-4.7.3-1]. A protocol error by section 3.3.2.1; 0x81 is what Mosquitto answers and tests.
  if (topic === "" && properties.topicAlias === 0) {
    throw new MqttError(ReasonCode.MalformedPacket, "topic name is empty");
  }
  const payload = packet.subarray(body.at);
  checkPayloadFormat(properties, payload);
  return {
    cmd: "publish",
    topic,
    payload,
    qos,
    dup,
    retain: (flags & retainFlag) !== 0,
    packetId,
    topicAlias: properties.topicAlias,
    messageExpiryInterval: properties.messageExpiryInterval,
    properties: properties.forwarded,
  };
}

/** Encodes a message in one form. The packet id is 1 to 65535, or 0 at QoS 0. For what is sent soon, see `allocate`. */
export function encodePublish(content: PublishContent, form: PublishForm, packetId: number): Uint8Array {
  const topic = form.topicOmitted ? "" : content.topic;
  // UTF-8 is as long as the string exactly when the string is ASCII.
  const topicBytes = isAscii(topic) ? undefined : encoder.encode(topic);
  const topicLength = topicBytes?.length ?? topic.length;
  const propertiesLength = form.version === 5 ? propertiesSize(content, form) : 0;
  const propertiesPrefix = form.version === 5 ? variableByteIntegerSize(propertiesLength) : 0;
  const packetIdLength = form.qos === 0 ? 0 : 2;
  const remaining = 2 + topicLength + packetIdLength + propertiesPrefix + propertiesLength + content.payload.length;

  const packet = allocate(1 + variableByteIntegerSize(remaining) + remaining);
  packet[0] = publishType | (form.dup ? dupFlag : 0) | (form.qos << 1) | (form.retain ? retainFlag : 0);
  let at = writeVariableByteInteger(packet, 1, remaining);
  at = writeUint16(packet, at, topicLength);
  if (topicBytes === undefined) {
    for (let index = 0; index < topicLength; index++) packet[at + index] = topic.charCodeAt(index);
  } else {
    packet.set(topicBytes, at);
  }
  at += topicLength;
  if (form.qos !== 0) at = writeUint16(packet, at, packetId);
  if (form.version === 5) at = writeProperties(packet, at, propertiesLength, content, form);
  packet.set(content.payload, at);
  return packet;
}

/** A copy of an encoded PUBLISH of QoS 1 or 2 with another packet id. */
export function withPacketId(encoded: Uint8Array, packetId: number): Uint8Array {
  const packet = allocate(encoded.length);
  packet.set(encoded);
  writeUint16(packet, packetIdOffset(encoded), packetId);
  return packet;
}

/** Where the packet id of an encoded PUBLISH of QoS 1 or 2 is, for who copies it into a larger frame and patches it there. */
export function packetIdOffset(encoded: Uint8Array): number {
  const body = readBody(encoded);
  body.skip(body.uint16());
  return body.skip(2);
}

function qosOf(flags: number): QoS {
  const qos = (flags >> 1) & 3;
  // [MQTT-3.3.1-4]
  if (qos === 3) throw new MqttError(ReasonCode.MalformedPacket, "QoS is 3");
  return qos as QoS;
}

function propertiesSize(content: PublishContent, form: PublishForm): number {
  let size = content.properties.length;
  if (form.messageExpiryInterval !== undefined) size += 5;
  if (form.topicAlias !== 0) size += 3;
  for (const id of form.subscriptionIds) size += 1 + variableByteIntegerSize(id);
  return size;
}

function writeProperties(
  packet: Uint8Array,
  start: number,
  length: number,
  content: PublishContent,
  form: PublishForm,
): number {
  let at = writeVariableByteInteger(packet, start, length);
  if (form.messageExpiryInterval !== undefined) {
    packet[at] = Property.MessageExpiryInterval;
    at = writeUint16(packet, at + 1, form.messageExpiryInterval >>> 16);
    at = writeUint16(packet, at, form.messageExpiryInterval & 0xffff);
  }
  if (form.topicAlias !== 0) {
    packet[at] = Property.TopicAlias;
    at = writeUint16(packet, at + 1, form.topicAlias);
  }
  for (const id of form.subscriptionIds) {
    packet[at] = Property.SubscriptionIdentifier;
    at = writeVariableByteInteger(packet, at + 1, id);
  }
  packet.set(content.properties, at);
  return at + content.properties.length;
}

function isAscii(text: string): boolean {
  for (let index = 0; index < text.length; index++) {
    if (text.charCodeAt(index) >= 0x80) return false;
  }
  return true;
}
