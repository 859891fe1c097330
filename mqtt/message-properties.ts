/**
 * The properties of an application message, which a PUBLISH carries and a will in CONNECT too.
 *
 * Most are for the receiver: payload format, content type, response topic, correlation data and
 * user properties are forwarded unaltered and in order [MQTT-3.3.2-4], [MQTT-3.3.2-15] to
 * [MQTT-3.3.2-20], so they stay bytes. What the broker acts on is taken out: message expiry, topic
 * alias, will delay. Nearly always nothing is to be taken out, or nothing to be kept, and the bytes
 * are a view into the packet; otherwise the pieces between what was taken out are joined.
 */
import { concatenate } from "./byte-buffer.ts";
import type { Reader } from "./bytes.ts";
import { Property, readProperties, type PropertyRules } from "./properties.ts";
import { MqttError, ReasonCode } from "./reason-codes.ts";
import { isUtf8 } from "./utf8.ts";

const nothing = new Uint8Array(0);
const plus = 0x2b;
const hash = 0x23;

export interface MessageProperties {
  /** As on the wire, without a length in front. */
  readonly forwarded: Uint8Array;
  /** Seconds; undefined: the message does not expire. */
  readonly messageExpiryInterval: number | undefined;
  /** 0: none was sent. */
  readonly topicAlias: number;
  /** The sender says that the payload is UTF-8. */
  readonly payloadIsText: boolean;
}

export const noMessageProperties: MessageProperties = {
  forwarded: nothing,
  messageExpiryInterval: undefined,
  topicAlias: 0,
  payloadIsText: false,
};

/** Walks the properties at the reader's position; MqttError 0x81, 0x82 or 0x94. */
export function readMessageProperties(reader: Reader, rules: PropertyRules): MessageProperties {
  // The commonest properties are none.
  if (reader.bytes[reader.at] === 0 && !reader.done) {
    reader.at++;
    return noMessageProperties;
  }
  let messageExpiryInterval: number | undefined;
  let topicAlias = 0;
  let payloadIsText = false;
  const pieces: Uint8Array[] = [];
  let pieceStart = -1;
  let pieceEnd = -1;
  readProperties(reader, rules, (id, value, start, end) => {
    switch (id) {
      case Property.MessageExpiryInterval:
        messageExpiryInterval = value;
        return;
      case Property.TopicAlias:
        // [MQTT-3.3.2-8]
        if (value === 0) throw new MqttError(ReasonCode.TopicAliasInvalid, "topic alias is 0");
        topicAlias = value;
        return;
      case Property.WillDelayInterval:
        return;
      case Property.PayloadFormatIndicator:
        payloadIsText = value === 1;
        break;
      case Property.ResponseTopic:
        checkResponseTopic(reader.bytes, start + 3, end);
        break;
      default:
        break;
    }
    if (start !== pieceEnd) {
      if (pieceEnd !== -1) pieces.push(reader.bytes.subarray(pieceStart, pieceEnd));
      pieceStart = start;
    }
    pieceEnd = end;
  });
  if (pieceEnd !== -1) pieces.push(reader.bytes.subarray(pieceStart, pieceEnd));
  return { forwarded: joined(pieces), messageExpiryInterval, topicAlias, payloadIsText };
}

/** Refuses a payload that is not the UTF-8 it is said to be: MqttError 0x99. */
export function checkPayloadFormat(properties: MessageProperties, payload: Uint8Array): void {
  if (properties.payloadIsText && !isUtf8(payload)) {
    throw new MqttError(ReasonCode.PayloadFormatInvalid, "payload is not UTF-8");
  }
}

function checkResponseTopic(bytes: Uint8Array, start: number, end: number): void {
  // [MQTT-4.7.3-1]
  if (start === end) throw new MqttError(ReasonCode.ProtocolError, "response topic is empty");
  for (let at = start; at < end; at++) {
    // [MQTT-3.3.2-14]
    if (bytes[at] === plus || bytes[at] === hash) {
      throw new MqttError(ReasonCode.ProtocolError, "response topic contains a wildcard");
    }
  }
}

function joined(pieces: readonly Uint8Array[]): Uint8Array {
  if (pieces.length <= 1) return pieces[0] ?? nothing;
  return concatenate(
    pieces,
    pieces.reduce((length, piece) => length + piece.length, 0),
  );
}
