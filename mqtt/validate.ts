/**
 * Strict validation, on raw bytes, of every packet of a client but PUBLISH (publish.ts does its own).
 *
 * The parser behind this trusts its input: it accepts two thirds of all illegal packets and reads past
 * the end of short ones. So each packet is walked here to its last byte first, and what passes is
 * exactly what the parser may be shown. One pass, bounded by the packet.
 *
 * Malformed (0x81) is what cannot be parsed, a protocol error (0x82) what can be and is not allowed.
 * Where the two are hard to tell apart the code is the one Mosquitto's packet tests expect: in SUBSCRIBE
 * and UNSUBSCRIBE nearly everything is 0x81, elsewhere a packet identifier of 0 or a wrong reason code is 0x82.
 */
import { readBody, type Reader } from "./bytes.ts";
import { limits } from "./limits.ts";
import { checkPayloadFormat, noMessageProperties, readMessageProperties } from "./message-properties.ts";
import type { MessageProperties } from "./message-properties.ts";
import { Property, readProperties, type PropertyRules } from "./properties.ts";
import type { ProtocolVersion } from "./publish.ts";
import { MqttError, ReasonCode } from "./reason-codes.ts";
import { ConnectError, SilentError } from "./refusal.ts";
import { checkTopicFilter, checkTopicName, isShared } from "./topic.ts";
import { decodeName } from "./utf8.ts";

/** What validation learned about a CONNECT. */
export interface ConnectLayout {
  readonly version: ProtocolVersion;
  /** The connect flags, without those that 3.1 has a server ignore. */
  readonly flags: number;
  /** Where in the packet they are. */
  readonly flagsAt: number;
  readonly will: MessageProperties;
}

const userNameFlag = 0x80;
const passwordFlag = 0x40;
const willRetainFlag = 0x20;
const willQosFlags = 0x18;
const willFlag = 0x04;
const reservedFlag = 0x01;

const connectRules = rules("CONNECT", ReasonCode.ProtocolError, [
  Property.SessionExpiryInterval,
  Property.ReceiveMaximum,
  Property.MaximumPacketSize,
  Property.TopicAliasMaximum,
  Property.RequestResponseInformation,
  Property.RequestProblemInformation,
  Property.UserProperty,
  Property.AuthenticationMethod,
  Property.AuthenticationData,
]);
const willRules = rules("a will", ReasonCode.ProtocolError, [
  Property.WillDelayInterval,
  Property.PayloadFormatIndicator,
  Property.MessageExpiryInterval,
  Property.ContentType,
  Property.ResponseTopic,
  Property.CorrelationData,
  Property.UserProperty,
]);
const acknowledgementRules = rules("an acknowledgement", ReasonCode.ProtocolError, [
  Property.ReasonString,
  Property.UserProperty,
]);
const subscribeRules = rules("SUBSCRIBE", ReasonCode.MalformedPacket, [
  Property.SubscriptionIdentifier,
  Property.UserProperty,
]);
const unsubscribeRules = rules("UNSUBSCRIBE", ReasonCode.MalformedPacket, [Property.UserProperty]);
const disconnectRules = rules("DISCONNECT", ReasonCode.ProtocolError, [
  Property.SessionExpiryInterval,
  Property.ReasonString,
  Property.UserProperty,
  // Meant for servers, but the specification does not forbid it to clients.
  Property.ServerReference,
]);
const authRules = rules("AUTH", ReasonCode.ProtocolError, [
  Property.AuthenticationMethod,
  Property.AuthenticationData,
  Property.ReasonString,
  Property.UserProperty,
]);

/** Section 3.4.2.1, for PUBACK and PUBREC. */
const receivedReasonCodes = new Set([0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]);
/** Section 3.6.2.1, for PUBREL and PUBCOMP. */
const releasedReasonCodes = new Set([0x00, 0x92]);
/** Section 3.14.2.1, those that a client may send. */
const disconnectReasonCodes = new Set([
  0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
]);
/** Section 3.15.2.1, those that a client may send. */
const authReasonCodes = new Set([0x18, 0x19]);

/**
 * Validates a CONNECT. ConnectError if the client can be answered in a CONNACK: any error in 5.0, and an
 * unknown protocol version; otherwise MqttError or SilentError, and the connection is closed without one.
 */
export function validateConnect(packet: Uint8Array): ConnectLayout {
  const body = readBody(packet);
  const version = readVersion(body);
  if (version !== 5) return validateConnectBody(packet, body, version);
  try {
    return validateConnectBody(packet, body, version);
  } catch (error) {
    if (!(error instanceof MqttError) || error instanceof SilentError) throw error;
    throw new ConnectError(error.reasonCode, error.message, version);
  }
}

/** Validates one whole packet that is neither CONNECT nor PUBLISH; MqttError or SilentError. */
export function validate(packet: Uint8Array, version: ProtocolVersion): void {
  const type = packet[0]! >> 4;
  const body = readBody(packet);
  switch (type) {
    case 4: // PUBACK
    case 5: // PUBREC
      validateAcknowledgement(body, version, receivedReasonCodes);
      break;
    case 6: // PUBREL
      checkDup(packet, version);
      validateAcknowledgement(body, version, releasedReasonCodes);
      break;
    case 7: // PUBCOMP
      validateAcknowledgement(body, version, releasedReasonCodes);
      break;
    case 8:
      checkDup(packet, version);
      validateSubscribe(body, version);
      break;
    case 10:
      checkDup(packet, version);
      validateUnsubscribe(body, version);
      break;
    case 12: // PINGREQ
      break;
    case 14:
      validateDisconnect(body, version);
      break;
    case 15:
      validateAuth(body, version);
      break;
    default:
      throw new MqttError(ReasonCode.ProtocolError, `packet type ${type} is not one of a client`);
  }
  if (!body.done) throw new MqttError(ReasonCode.MalformedPacket, "packet goes on after its end");
}

function readVersion(body: Reader): ProtocolVersion {
  const length = body.uint16();
  const start = body.skip(length);
  const name = String.fromCharCode(...body.bytes.subarray(start, start + Math.min(length, 8)));
  // [MQTT-3.1.2-1] without a CONNACK: this is no MQTT client.
  if ((name !== "MQTT" && name !== "MQIsdp") || name.length !== length) {
    throw new MqttError(ReasonCode.UnsupportedProtocolVersion, "protocol name is not that of MQTT");
  }
  const level = body.byte();
  if (name === "MQIsdp" && level === 3) return 3;
  if (name === "MQTT" && (level === 4 || level === 5)) return level;
  // [MQTT-3.1.2-2] in the form of 5.0, which tells the client more than return code 1.
  throw new ConnectError(ReasonCode.UnsupportedProtocolVersion, `protocol version ${level} is not known`, 5);
}

function validateConnectBody(packet: Uint8Array, body: Reader, version: ProtocolVersion): ConnectLayout {
  // In 3.1 the flags of the fixed header are not used; since then they are reserved.
  if (version !== 3 && (packet[0]! & 0x0f) !== 0) {
    throw new MqttError(ReasonCode.MalformedPacket, "reserved flags of CONNECT are set");
  }
  const flagsAt = body.at;
  let flags = checkConnectFlags(body.byte(), version);
  body.uint16(); // Keep Alive: every value is legal.
  if (version === 5) validateConnectProperties(body);
  readClientId(body, version);
  const will = (flags & willFlag) === 0 ? noMessageProperties : validateWill(body, version);
  if (version === 3) {
    // MQTT 3.1: the remaining length takes precedence over the flags, for the sake of older clients.
    if ((flags & userNameFlag) !== 0 && body.done) flags &= ~(userNameFlag | passwordFlag);
    validateCredentials(body, flags & userNameFlag);
    if ((flags & passwordFlag) !== 0 && body.done) flags &= ~passwordFlag;
    validateCredentials(body, flags & passwordFlag);
  } else {
    validateCredentials(body, flags);
  }
  // [MQTT-3.1.2-16], [MQTT-3.1.2-18]; in 3.1.1 [MQTT-3.1.2-18], [MQTT-3.1.2-20]
  if (!body.done) throw new MqttError(ReasonCode.MalformedPacket, "CONNECT goes on after its payload");
  return { version, flags, flagsAt, will };
}

/** The connect flags that count; MqttError 0x81 if they contradict one another. */
function checkConnectFlags(sent: number, version: ProtocolVersion): number {
  let flags = sent;
  if (version === 3) {
    // Unused in 3.1, as are the details of a will that is not there.
    flags &= ~reservedFlag;
    if ((flags & willFlag) === 0) flags &= ~(willQosFlags | willRetainFlag);
  }
  // [MQTT-3.1.2-3]
  if ((flags & reservedFlag) !== 0) throw new MqttError(ReasonCode.MalformedPacket, "reserved connect flag is set");
  // [MQTT-3.1.2-11], [MQTT-3.1.2-13]; in 3.1.1 [MQTT-3.1.2-13], [MQTT-3.1.2-15]
  if ((flags & willFlag) === 0 && (flags & (willQosFlags | willRetainFlag)) !== 0) {
    throw new MqttError(ReasonCode.MalformedPacket, "will flags are set without a will");
  }
  // [MQTT-3.1.2-12], in 3.1.1 [MQTT-3.1.2-14]
  if ((flags & willQosFlags) === willQosFlags) throw new MqttError(ReasonCode.MalformedPacket, "will QoS is 3");
  // [MQTT-3.1.2-22] of 3.1.1; 5.0 allows a password alone.
  if (version !== 5 && (flags & (userNameFlag | passwordFlag)) === passwordFlag) {
    throw new MqttError(ReasonCode.MalformedPacket, "password without a user name");
  }
  return flags;
}

function validateConnectProperties(body: Reader): void {
  let hasMethod = false;
  let hasData = false;
  readProperties(body, connectRules, (id, value) => {
    if ((id === Property.ReceiveMaximum || id === Property.MaximumPacketSize) && value === 0) {
      throw new MqttError(ReasonCode.ProtocolError, "receive maximum or maximum packet size is 0");
    }
    if (id === Property.AuthenticationMethod) hasMethod = true;
    if (id === Property.AuthenticationData) hasData = true;
  });
  if (hasData && !hasMethod) {
    throw new MqttError(ReasonCode.ProtocolError, "authentication data without an authentication method");
  }
}

function readClientId(body: Reader, version: ProtocolVersion): void {
  const length = body.uint16();
  const start = body.skip(length);
  try {
    // [MQTT-3.1.3-4]
    decodeName(body.bytes, start, start + length);
  } catch (error) {
    if (version !== 5 || !(error instanceof MqttError)) throw error;
    // [MQTT-3.1.3-8]
    throw new MqttError(ReasonCode.ClientIdentifierNotValid, `client identifier: ${error.message}`);
  }
}

function validateWill(body: Reader, version: ProtocolVersion): MessageProperties {
  const properties = version === 5 ? readMessageProperties(body, willRules) : noMessageProperties;
  const topic = readName(body);
  checkTopicName(topic, Number.POSITIVE_INFINITY);
  const length = body.uint16();
  const start = body.skip(length);
  checkPayloadFormat(properties, body.bytes.subarray(start, start + length));
  return properties;
}

/** User name and password as far as the flags announce them. Garbled credentials get no answer. */
function validateCredentials(body: Reader, flags: number): void {
  try {
    // [MQTT-3.1.2-17], [MQTT-3.1.3-12]
    if ((flags & userNameFlag) !== 0) readName(body);
    // [MQTT-3.1.2-19]
    if ((flags & passwordFlag) !== 0) body.skip(body.uint16());
  } catch (error) {
    if (!(error instanceof MqttError)) throw error;
    throw new SilentError(error.reasonCode, `user name or password: ${error.message}`);
  }
}

function validateAcknowledgement(body: Reader, version: ProtocolVersion, reasonCodes: ReadonlySet<number>): void {
  checkPacketId(body, ReasonCode.ProtocolError);
  if (version !== 5 || body.done) return;
  const reasonCode = body.byte();
  // [MQTT-3.4.2-1] and its like
  if (!reasonCodes.has(reasonCode)) {
    throw new MqttError(ReasonCode.ProtocolError, `reason code 0x${reasonCode.toString(16)} does not belong here`);
  }
  if (!body.done) readProperties(body, acknowledgementRules, ignoreProperty);
}

function validateSubscribe(body: Reader, version: ProtocolVersion): void {
  checkPacketId(body, ReasonCode.MalformedPacket);
  if (version === 5) {
    readProperties(body, subscribeRules, (id, value) => {
      // A protocol error by section 3.8.2.1.2; see the head of this file.
      if (id === Property.SubscriptionIdentifier && value === 0) {
        throw new MqttError(ReasonCode.MalformedPacket, "subscription identifier is 0");
      }
    });
  }
  eachFilter(body, (filter) => checkSubscriptionOptions(filter, body.byte(), version));
}

function checkSubscriptionOptions(filter: string, options: number, version: ProtocolVersion): void {
  // [MQTT-3.8.3-5], in 3.1.1 [MQTT-3.8.3-4]
  const reserved = version === 5 ? 0xc0 : 0xfc;
  if ((options & reserved) !== 0) {
    throw new MqttError(ReasonCode.MalformedPacket, "reserved subscription options are set");
  }
  if ((options & 0x03) === 3) throw new MqttError(ReasonCode.MalformedPacket, "requested QoS is 3");
  if ((options & 0x30) === 0x30) throw new MqttError(ReasonCode.MalformedPacket, "retain handling is 3");
  // [MQTT-3.8.3-4]
  if ((options & 0x04) !== 0 && isShared(filter)) {
    throw new MqttError(ReasonCode.ProtocolError, "no local on a shared subscription");
  }
}

function validateUnsubscribe(body: Reader, version: ProtocolVersion): void {
  checkPacketId(body, ReasonCode.MalformedPacket);
  if (version === 5) readProperties(body, unsubscribeRules, ignoreProperty);
  eachFilter(body, () => undefined);
}

/** Reads topic filters to the packet's end, and lets `rest` read what follows each. */
function eachFilter(body: Reader, rest: (filter: string) => void): void {
  // [MQTT-3.8.3-2], [MQTT-3.10.3-2]
  if (body.done) throw new MqttError(ReasonCode.MalformedPacket, "packet has no topic filter");
  let count = 0;
  while (!body.done) {
    if (++count > limits.filtersPerPacketMax) {
      throw new MqttError(ReasonCode.QuotaExceeded, `packet has more than ${limits.filtersPerPacketMax} topic filters`);
    }
    const filter = readName(body);
    checkTopicFilter(filter, Number.POSITIVE_INFINITY);
    rest(filter);
  }
}

function validateDisconnect(body: Reader, version: ProtocolVersion): void {
  if (version !== 5 || body.done) return;
  const reasonCode = body.byte();
  if (!body.done) readProperties(body, disconnectRules, ignoreProperty);
  // [MQTT-3.14.2-1]. The client has left: there is nobody to answer, but its will is due.
  if (!disconnectReasonCodes.has(reasonCode)) {
    throw new SilentError(ReasonCode.ProtocolError, `DISCONNECT with reason code 0x${reasonCode.toString(16)}`);
  }
}

function validateAuth(body: Reader, version: ProtocolVersion): void {
  if (version !== 5) throw new MqttError(ReasonCode.MalformedPacket, "AUTH before MQTT 5.0");
  const reasonCode = body.done ? ReasonCode.Success : body.byte();
  // [MQTT-3.15.2-1]
  if (!authReasonCodes.has(reasonCode)) {
    throw new MqttError(ReasonCode.ProtocolError, `AUTH of a client with reason code 0x${reasonCode.toString(16)}`);
  }
  let hasMethod = false;
  readProperties(body, authRules, (id) => {
    if (id === Property.AuthenticationMethod) hasMethod = true;
  });
  if (!hasMethod) throw new MqttError(ReasonCode.ProtocolError, "AUTH without an authentication method");
}

/** 3.1 has clients mark what they send again; since then the flag is reserved. */
function checkDup(packet: Uint8Array, version: ProtocolVersion): void {
  // [MQTT-3.6.1-1], [MQTT-3.8.1-1], [MQTT-3.10.1-1]
  if (version !== 3 && (packet[0]! & 0x08) !== 0) {
    throw new MqttError(ReasonCode.MalformedPacket, "reserved flags of the fixed header are wrong");
  }
}

function checkPacketId(body: Reader, reasonCode: ReasonCode): void {
  // [MQTT-2.2.1-3]
  if (body.uint16() === 0) throw new MqttError(reasonCode, "packet identifier is 0");
}

function readName(body: Reader): string {
  const length = body.uint16();
  const start = body.skip(length);
  return decodeName(body.bytes, start, start + length);
}

function rules(packet: string, disallowed: ReasonCode, allowed: readonly number[]): PropertyRules {
  return { packet, disallowed, allowed: new Set(allowed) };
}

function ignoreProperty(): void {
  // Legal is all it has to be.
}
