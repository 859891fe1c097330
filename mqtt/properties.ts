/**
 * The properties of MQTT 5.0 (section 2.2.2): their types, and one walk over them that is strict.
 *
 * All properties are read by their types before any is refused for being here, or being here twice:
 * what cannot be parsed is malformed (0x81) wherever in the list it is, and only a list that can be
 * parsed holds a protocol error (0x82).
 * Cost: one pass.
 */
import type { Reader } from "./bytes.ts";
import { MqttError, ReasonCode } from "./reason-codes.ts";
import { checkText } from "./utf8.ts";

export const Property = {
  PayloadFormatIndicator: 0x01,
  MessageExpiryInterval: 0x02,
  ContentType: 0x03,
  ResponseTopic: 0x08,
  CorrelationData: 0x09,
  SubscriptionIdentifier: 0x0b,
  SessionExpiryInterval: 0x11,
  AssignedClientIdentifier: 0x12,
  ServerKeepAlive: 0x13,
  AuthenticationMethod: 0x15,
  AuthenticationData: 0x16,
  RequestProblemInformation: 0x17,
  WillDelayInterval: 0x18,
  RequestResponseInformation: 0x19,
  ResponseInformation: 0x1a,
  ServerReference: 0x1c,
  ReasonString: 0x1f,
  ReceiveMaximum: 0x21,
  TopicAliasMaximum: 0x22,
  TopicAlias: 0x23,
  MaximumQoS: 0x24,
  RetainAvailable: 0x25,
  UserProperty: 0x26,
  MaximumPacketSize: 0x27,
  WildcardSubscriptionAvailable: 0x28,
  SubscriptionIdentifierAvailable: 0x29,
  SharedSubscriptionAvailable: 0x2a,
} as const;

/** Which properties a packet may carry, and the reason code for one that it may not. */
export interface PropertyRules {
  readonly packet: string;
  readonly allowed: ReadonlySet<number>;
  readonly disallowed: ReasonCode;
}

/**
 * Called for each property in turn that may be here. `value` is that of a number and 0 for strings and binary data;
 * [start, end) is the property on the wire with its identifier, so that a string begins at start + 3.
 */
export type PropertyVisitor = (id: number, value: number, start: number, end: number) => void;

/** Walks the length and the properties at the reader's position; MqttError 0x81 or 0x82. */
export function readProperties(reader: Reader, rules: PropertyRules, visit: PropertyVisitor): void {
  const properties = reader.window(reader.variableByteInteger());
  // One bit for each identifier seen: below 32, and from 32 on.
  let seenLow = 0;
  let seenHigh = 0;
  let disallowed = 0;
  let repeated = 0;
  while (!properties.done) {
    const start = properties.at;
    // Identifiers are variable byte integers, but all that are defined take one byte.
    const id = properties.byte();
    const value = readValue(properties, id);
    const bit = 1 << (id & 31);
    if (!rules.allowed.has(id)) disallowed = id;
    else if (((id < 32 ? seenLow : seenHigh) & bit) !== 0 && id !== Property.UserProperty) repeated = id;
    else visit(id, value, start, properties.at);
    if (id < 32) seenLow |= bit;
    else seenHigh |= bit;
  }
  if (disallowed !== 0) throw new MqttError(rules.disallowed, `${rules.packet} with property 0x${hex(disallowed)}`);
  if (repeated !== 0) throw new MqttError(ReasonCode.ProtocolError, `property 0x${hex(repeated)} is given twice`);
}

function readValue(reader: Reader, id: number): number {
  switch (id) {
    case Property.PayloadFormatIndicator:
    case Property.RequestProblemInformation:
    case Property.RequestResponseInformation:
    case Property.MaximumQoS:
    case Property.RetainAvailable:
    case Property.WildcardSubscriptionAvailable:
    case Property.SubscriptionIdentifierAvailable:
    case Property.SharedSubscriptionAvailable: {
      const value = reader.byte();
      // All of them are flags in a byte: "It is a Protocol Error to ... have a value other than 0 or 1".
      if (value > 1) throw new MqttError(ReasonCode.ProtocolError, `property 0x${hex(id)} is neither 0 nor 1`);
      return value;
    }
    case Property.ServerKeepAlive:
    case Property.ReceiveMaximum:
    case Property.TopicAliasMaximum:
    case Property.TopicAlias:
      return reader.uint16();
    case Property.MessageExpiryInterval:
    case Property.SessionExpiryInterval:
    case Property.WillDelayInterval:
    case Property.MaximumPacketSize:
      return reader.uint32();
    case Property.SubscriptionIdentifier:
      return reader.variableByteInteger();
    case Property.CorrelationData:
    case Property.AuthenticationData:
      reader.skip(reader.uint16());
      return 0;
    case Property.ContentType:
    case Property.ResponseTopic:
    case Property.AssignedClientIdentifier:
    case Property.AuthenticationMethod:
    case Property.ResponseInformation:
    case Property.ServerReference:
    case Property.ReasonString:
      skipText(reader);
      return 0;
    case Property.UserProperty:
      skipText(reader);
      skipText(reader);
      return 0;
    default:
      throw new MqttError(ReasonCode.MalformedPacket, `property 0x${hex(id)} is unknown`);
  }
}

function skipText(reader: Reader): void {
  const length = reader.uint16();
  const start = reader.skip(length);
  checkText(reader.bytes, start, start + length);
}

function hex(id: number): string {
  return id.toString(16).padStart(2, "0");
}
