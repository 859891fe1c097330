/**
 * Packets that a client must not send, each with the reason code it gets. The same table is run against the
 * codec alone and against a running broker.
 *
 *     answer "disconnect"   DISCONNECT with the reason code, then the close (5.0 after CONNECT)
 *     answer "connack"      CONNACK with the reason code, then the close (5.0 in place of CONNECT)
 *     answer "close"        the close and nothing else
 */
import type { ProtocolVersion } from "../../mqtt/codec.ts";

export interface Malformed {
  readonly name: string;
  readonly version: ProtocolVersion;
  /** Sent on a connection of that version, or in place of its CONNECT. */
  readonly afterConnect: boolean;
  readonly bytes: Uint8Array;
  readonly reasonCode: number;
  readonly answer: "disconnect" | "connack" | "close";
}

type Part = number | readonly number[];

/** Bytes of a length-prefixed string. */
export function text(value: string): number[] {
  const bytes = new TextEncoder().encode(value);
  return [bytes.length >> 8, bytes.length & 0xff, ...bytes];
}

/** A length in front of bytes that need not be a string. */
export function binary(...bytes: number[]): number[] {
  return [bytes.length >> 8, bytes.length & 0xff, ...bytes];
}

/** One packet: its first byte, the remaining length as it should be, and the body. */
export function packet(first: number, ...body: Part[]): Uint8Array {
  const bytes = body.flat();
  return Uint8Array.from([first, ...variableByteInteger(bytes.length), ...bytes]);
}

/** Properties with their length in front. */
export function properties(...parts: Part[]): number[] {
  const bytes = parts.flat();
  return [...variableByteInteger(bytes.length), ...bytes];
}

function variableByteInteger(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 0x80) {
    bytes.push((rest & 0x7f) | 0x80);
    rest = Math.floor(rest / 0x80);
  }
  return [...bytes, rest];
}

/** A CONNECT of 5.0 with these flags; the rest is what follows Keep Alive. */
export function connect5(flags: number, ...rest: Part[]): Uint8Array {
  return packet(0x10, text("MQTT"), 5, flags, 0, 60, ...rest);
}

/** A CONNECT of 3.1.1 with these flags; the rest is what follows Keep Alive. */
export function connect4(flags: number, ...rest: Part[]): Uint8Array {
  return packet(0x10, text("MQTT"), 4, flags, 0, 60, ...rest);
}

const malformed = 0x81;
const protocolError = 0x82;

const surrogate = binary(0x61, 0xed, 0xa0, 0x80);
const overlong = binary(0xc0, 0xaf);
const nul = binary(0x61, 0x00, 0x62);
const control = binary(0x61, 0x07);
const control1 = binary(0x61, 0xc2, 0x85);
const id = [0x12, 0x34];
const noProperties = [0];

/** After a CONNECT of 5.0. */
function v5(name: string, bytes: Uint8Array, reasonCode: number): Malformed {
  return { name: `v5 ${name}`, version: 5, afterConnect: true, bytes, reasonCode, answer: "disconnect" };
}

/** After a CONNECT of 5.0, where nothing is answered. */
function v5Silent(name: string, bytes: Uint8Array, reasonCode: number): Malformed {
  return { ...v5(name, bytes, reasonCode), answer: "close" };
}

/** After a CONNECT of 3.1.1, which knows no answer. */
function v4(name: string, bytes: Uint8Array, reasonCode: number): Malformed {
  return { name: `v4 ${name}`, version: 4, afterConnect: true, bytes, reasonCode, answer: "close" };
}

/** In place of a CONNECT of 5.0. */
function refused5(name: string, bytes: Uint8Array, reasonCode: number): Malformed {
  return { name: `v5 CONNECT ${name}`, version: 5, afterConnect: false, bytes, reasonCode, answer: "connack" };
}

/** In place of a CONNECT, closed without a word. */
function closed(version: ProtocolVersion, name: string, bytes: Uint8Array, reasonCode: number): Malformed {
  return { name: `v${version} CONNECT ${name}`, version, afterConnect: false, bytes, reasonCode, answer: "close" };
}

const framing: Malformed[] = [
  v5("packet type 0", packet(0x00), protocolError),
  v5("packet type 0 with flags", packet(0x0f), protocolError),
  v5("CONNACK from a client", packet(0x20, 0, 0, 0), protocolError),
  v5("SUBACK from a client", packet(0x90, id, 0, 0), protocolError),
  v5("UNSUBACK from a client", packet(0xb0, id, 0, 0), protocolError),
  v5("PINGRESP from a client", packet(0xd0), protocolError),
  v4("CONNACK from a client", packet(0x20, 0, 0), protocolError),
  v5("[MQTT-2.1.3-1] PUBACK with flags", packet(0x41, id), malformed),
  v5("[MQTT-3.6.1-1] PUBREL without its flag", packet(0x60, id), malformed),
  v5("[MQTT-3.6.1-1] PUBREL with DUP", packet(0x6a, id), malformed),
  v5("[MQTT-3.8.1-1] SUBSCRIBE without its flag", packet(0x80, id, 0, text("p"), 0), malformed),
  v4("[MQTT-3.8.1-1] SUBSCRIBE with RETAIN", packet(0x83, id, text("p"), 0), malformed),
  v4("[MQTT-3.10.1-1] UNSUBSCRIBE with DUP", packet(0xaa, id, text("p")), malformed),
  v5("PINGREQ with flags", packet(0xc4), malformed),
  v5Silent("PINGREQ with a body", packet(0xc0, 0), malformed),
  v5("[MQTT-3.14.1-1] DISCONNECT with flags", packet(0xe1), malformed),
  v5("[MQTT-3.15.1-1] AUTH with flags", packet(0xf1), protocolError),
  v5Silent("[MQTT-1.5.5-1] remaining length in more bytes than needed", Uint8Array.of(0xc0, 0x80, 0x00), malformed),
  v5Silent("remaining length of five bytes", Uint8Array.of(0x30, 0x80, 0x80, 0x80, 0x80, 0x01), malformed),
  v4("remaining length of five bytes", Uint8Array.of(0x30, 0xff, 0xff, 0xff, 0xff, 0x7f), malformed),
  v5("packet of 256 MB", Uint8Array.of(0x30, 0xff, 0xff, 0xff, 0x7f), 0x95),
  v4("packet of 256 MB", Uint8Array.of(0x30, 0xff, 0xff, 0xff, 0x7f), 0x95),
];

const connect: Malformed[] = [
  { ...closed(5, "[MQTT-3.1.0-1] not first", packet(0xc0), protocolError), name: "v5 PINGREQ before CONNECT" },
  { ...closed(4, "", packet(0x30, text("p")), protocolError), name: "v4 PUBLISH before CONNECT" },
  closed(4, "[MQTT-3.1.2-1] protocol name MQTU", packet(0x10, text("MQTU"), 4, 2, 0, 60, text("c")), 0x84),
  closed(4, "protocol name too short", packet(0x10, text("MQT"), 4, 2, 0, 60, text("c")), 0x84),
  closed(4, "protocol name too long", packet(0x10, text("MQTTT"), 4, 2, 0, 60, text("c")), 0x84),
  closed(4, "protocol name past the end", packet(0x10, 0xff, 0xff, 0x4d), malformed),
  refused5("[MQTT-3.1.2-2] protocol version 6", packet(0x10, text("MQTT"), 6, 2, 0, 60, 0, text("c")), 0x84),
  refused5("MQIsdp with version 5", packet(0x10, text("MQIsdp"), 5, 2, 0, 60, 0, text("c")), 0x84),
  closed(4, "fixed header with flags", packet(0x11, text("MQTT"), 4, 2, 0, 60, text("c")), malformed),
  closed(4, "[MQTT-3.1.2-3] reserved flag", connect4(0x03, text("c")), malformed),
  refused5("[MQTT-3.1.2-3] reserved flag", connect5(0x03, noProperties, text("c")), malformed),
  closed(4, "will QoS without a will", connect4(0x0a, text("c")), malformed),
  refused5("[MQTT-3.1.2-11] will QoS without a will", connect5(0x0a, noProperties, text("c")), malformed),
  refused5("[MQTT-3.1.2-13] will retain without a will", connect5(0x22, noProperties, text("c")), malformed),
  refused5(
    "[MQTT-3.1.2-12] will QoS 3",
    connect5(0x1e, noProperties, text("c"), noProperties, text("w"), text("")),
    malformed,
  ),
  closed(4, "[MQTT-3.1.2-22] password without a user name", connect4(0x42, text("c"), text("p")), malformed),
  closed(4, "without a client identifier", connect4(0x02), malformed),
  closed(4, "will flag without a will", connect4(0x06, text("c")), malformed),
  closed(4, "bytes after the payload", connect4(0x02, text("c"), 0), malformed),
  refused5("bytes after the payload", connect5(0x02, noProperties, text("c"), text("u")), malformed),
  closed(5, "[MQTT-3.1.2-17] user name missing", connect5(0x82, noProperties, text("c")), malformed),
  closed(5, "[MQTT-3.1.2-19] password missing", connect5(0xc2, noProperties, text("c"), text("u")), malformed),
  closed(5, "user name with U+0000", connect5(0x82, noProperties, text("c"), nul), malformed),
  closed(4, "user name with a surrogate", connect4(0x82, text("c"), surrogate), malformed),
  closed(4, "client identifier with U+0000", connect4(0x02, nul), malformed),
  refused5("[MQTT-3.1.3-4] client identifier with a surrogate", connect5(0x02, noProperties, surrogate), 0x85),
  refused5("client identifier with a control character", connect5(0x02, noProperties, control), 0x85),
  refused5(
    "will topic with a wildcard",
    connect5(0x06, noProperties, text("c"), noProperties, text("w/#"), text("")),
    0x90,
  ),
  refused5("empty will topic", connect5(0x06, noProperties, text("c"), noProperties, text(""), text("")), 0x90),
  refused5(
    "will topic ill-formed",
    connect5(0x06, noProperties, text("c"), noProperties, overlong, text("")),
    malformed,
  ),
  refused5(
    "will payload is not the UTF-8 it is said to be",
    connect5(0x06, noProperties, text("c"), properties(0x01, 1), text("w"), binary(0xff)),
    0x99,
  ),
  refused5(
    "will with a topic alias",
    connect5(0x06, noProperties, text("c"), properties(0x23, 0, 1), text("w"), text("")),
    protocolError,
  ),
  refused5(
    "will delay given twice",
    connect5(0x06, noProperties, text("c"), properties(0x18, 0, 0, 0, 1, 0x18, 0, 0, 0, 1), text("w"), text("")),
    protocolError,
  ),
  refused5("receive maximum 0", connect5(0x02, properties(0x21, 0, 0), text("c")), protocolError),
  refused5("maximum packet size 0", connect5(0x02, properties(0x27, 0, 0, 0, 0), text("c")), protocolError),
  refused5("request problem information 2", connect5(0x02, properties(0x17, 2), text("c")), protocolError),
  refused5("request response information 2", connect5(0x02, properties(0x19, 2), text("c")), protocolError),
  refused5(
    "session expiry given twice",
    connect5(0x02, properties(0x11, 0, 0, 0, 1, 0x11, 0, 0, 0, 1), text("c")),
    protocolError,
  ),
  refused5("property of CONNACK", connect5(0x02, properties(0x24, 1), text("c")), protocolError),
  refused5("unknown property", connect5(0x02, properties(0x7e, 1), text("c")), malformed),
  refused5("cut property", connect5(0x02, properties(0x11, 0, 0), text("c")), malformed),
  refused5("properties past the end", connect5(0x02, 0x7f, text("c")), malformed),
  refused5(
    "authentication data without a method",
    connect5(0x02, properties(0x16, binary(1)), text("c")),
    protocolError,
  ),
  refused5("user property ill-formed", connect5(0x02, properties(0x26, text("k"), surrogate), text("c")), malformed),
];

const publish: Malformed[] = [
  v5("[MQTT-3.3.1-4] PUBLISH at QoS 3", packet(0x36, text("p"), id, 0), malformed),
  v4("[MQTT-3.3.1-4] PUBLISH at QoS 3", packet(0x36, text("p"), id), malformed),
  v5("[MQTT-3.3.1-2] PUBLISH with DUP at QoS 0", packet(0x38, text("p"), 0), malformed),
  v4("[MQTT-3.3.1-2] PUBLISH with DUP at QoS 0", packet(0x38, text("p")), malformed),
  v5("[MQTT-2.2.1-3] PUBLISH with packet identifier 0", packet(0x32, text("p"), 0, 0, 0), protocolError),
  v4("PUBLISH with packet identifier 0", packet(0x34, text("p"), 0, 0), protocolError),
  v5("[MQTT-3.3.2-2] PUBLISH to a wildcard", packet(0x30, text("a/+"), 0), malformed),
  v4("[MQTT-3.3.2-2] PUBLISH to a wildcard", packet(0x30, text("a/#")), malformed),
  v5("PUBLISH without topic and alias", packet(0x30, text(""), 0), malformed),
  v4("PUBLISH with an empty topic", packet(0x30, text("")), malformed),
  v5("[MQTT-1.5.4-1] PUBLISH topic with a surrogate", packet(0x30, surrogate, 0), malformed),
  v5("[MQTT-1.5.4-2] PUBLISH topic with U+0000", packet(0x30, nul, 0), malformed),
  v5("PUBLISH topic with U+0007", packet(0x30, control, 0), malformed),
  v5("PUBLISH topic with U+0085", packet(0x30, control1, 0), malformed),
  v4("PUBLISH topic in overlong form", packet(0x30, overlong), malformed),
  v4("PUBLISH topic past the end", packet(0x30, 0x00, 0x09, 0x70), malformed),
  v4("PUBLISH with a packet identifier past the end", packet(0x32, text("p"), 0x12), malformed),
  v5("PUBLISH without properties", packet(0x30, text("p")), malformed),
  v5("PUBLISH with properties past the end", packet(0x30, text("p"), 0x05, 0x02, 0, 0), malformed),
  v5("[MQTT-3.3.2-8] PUBLISH with topic alias 0", packet(0x30, text("p"), properties(0x23, 0, 0)), 0x94),
  v5("PUBLISH with two topic aliases", packet(0x30, text("p"), properties(0x23, 0, 1, 0x23, 0, 2)), protocolError),
  v5(
    "[MQTT-3.3.4-6] PUBLISH with a subscription identifier",
    packet(0x30, text("p"), properties(0x0b, 1)),
    protocolError,
  ),
  v5("PUBLISH with payload format 2", packet(0x30, text("p"), properties(0x01, 2)), protocolError),
  v5("PUBLISH with a payload that is not UTF-8", packet(0x30, text("p"), properties(0x01, 1), 0xff), 0x99),
  v5(
    "[MQTT-3.3.2-14] PUBLISH with a wildcard in the response topic",
    packet(0x30, text("p"), properties(0x08, text("r/#"))),
    protocolError,
  ),
  v5("PUBLISH with an empty response topic", packet(0x30, text("p"), properties(0x08, text(""))), protocolError),
  v5("PUBLISH with a property of CONNECT", packet(0x30, text("p"), properties(0x21, 0, 1)), protocolError),
  v5("PUBLISH with an unknown property", packet(0x30, text("p"), properties(0x04, 1)), malformed),
  v5("PUBLISH with content type ill-formed", packet(0x30, text("p"), properties(0x03, surrogate)), malformed),
  v5(
    "PUBLISH with a subscription identifier of five bytes",
    packet(0x30, text("p"), properties(0x0b, 0x80, 0x80, 0x80, 0x80, 0x01)),
    malformed,
  ),
];

const acknowledgements: Malformed[] = [
  v5("PUBACK without a packet identifier", packet(0x40), malformed),
  v4("PUBACK with half a packet identifier", packet(0x40, 1), malformed),
  v5("PUBACK with packet identifier 0", packet(0x40, 0, 0), protocolError),
  v4("PUBREL with packet identifier 0", packet(0x62, 0, 0), protocolError),
  v4("PUBACK with a reason code", packet(0x40, id, 0), malformed),
  v5("[MQTT-3.4.2-1] PUBACK with reason code 0xFF", packet(0x40, id, 0xff, 0), protocolError),
  v5("[MQTT-3.6.2-1] PUBREL with reason code 0x10", packet(0x62, id, 0x10), protocolError),
  v5("PUBREC with properties past the end", packet(0x50, id, 0, 1), malformed),
  v5("PUBCOMP with bytes after the properties", packet(0x70, id, 0, 0, 0), malformed),
  v5(
    "PUBACK with two reason strings",
    packet(0x40, id, 0, properties(0x1f, text("a"), 0x1f, text("b"))),
    protocolError,
  ),
  v5("PUBACK with session expiry", packet(0x40, id, 0, properties(0x11, 0, 0, 0, 1)), protocolError),
];

const subscriptions: Malformed[] = [
  v5("[MQTT-3.8.3-2] SUBSCRIBE without a filter", packet(0x82, id, noProperties), malformed),
  v4("[MQTT-3.8.3-3] SUBSCRIBE without a filter", packet(0x82, id), malformed),
  v5("SUBSCRIBE with packet identifier 0", packet(0x82, 0, 0, noProperties, text("p"), 0), malformed),
  v4("SUBSCRIBE with packet identifier 0", packet(0x82, 0, 0, text("p"), 0), malformed),
  v4("SUBSCRIBE without options", packet(0x82, id, text("p")), malformed),
  v5("SUBSCRIBE at QoS 3", packet(0x82, id, noProperties, text("p"), 3), malformed),
  v4("[MQTT-3.8.3-4] SUBSCRIBE with reserved options", packet(0x82, id, text("p"), 0x04), malformed),
  v5("[MQTT-3.8.3-5] SUBSCRIBE with reserved options", packet(0x82, id, noProperties, text("p"), 0x40), malformed),
  v5("SUBSCRIBE with retain handling 3", packet(0x82, id, noProperties, text("p"), 0x30), malformed),
  v5("SUBSCRIBE with subscription identifier 0", packet(0x82, id, properties(0x0b, 0), text("p"), 0), malformed),
  v5(
    "SUBSCRIBE with two subscription identifiers",
    packet(0x82, id, properties(0x0b, 1, 0x0b, 2), text("p"), 0),
    protocolError,
  ),
  v5(
    "[MQTT-3.8.3-4] SUBSCRIBE no local to a shared filter",
    packet(0x82, id, noProperties, text("$share/g/p"), 0x04),
    protocolError,
  ),
  v5("SUBSCRIBE to an empty filter", packet(0x82, id, noProperties, text(""), 0), malformed),
  v5("SUBSCRIBE to a second, empty filter", packet(0x82, id, noProperties, text("p"), 0, text(""), 0), malformed),
  v5("[MQTT-4.7.1-1] SUBSCRIBE to a/#/b", packet(0x82, id, noProperties, text("a/#/b"), 0), malformed),
  v4("[MQTT-4.7.1-2] SUBSCRIBE to a#", packet(0x82, id, text("a#"), 0), malformed),
  v4("[MQTT-4.7.1-3] SUBSCRIBE to sport+", packet(0x82, id, text("sport+"), 0), malformed),
  v5(
    "[MQTT-4.8.2-2] SUBSCRIBE to $share/g without a filter",
    packet(0x82, id, noProperties, text("$share/g"), 0),
    protocolError,
  ),
  v5(
    "[MQTT-4.8.2-1] SUBSCRIBE to a shared filter without a group",
    packet(0x82, id, noProperties, text("$share//p"), 0),
    protocolError,
  ),
  v5(
    "[MQTT-4.8.2-2] SUBSCRIBE to a group with a wildcard",
    packet(0x82, id, noProperties, text("$share/+/p"), 0),
    protocolError,
  ),
  v5("SUBSCRIBE to an empty queue", packet(0x82, id, noProperties, text("$queue/"), 0), protocolError),
  v5("SUBSCRIBE with a filter ill-formed", packet(0x82, id, noProperties, surrogate, 0), malformed),
  v5("SUBSCRIBE with a filter past the end", packet(0x82, id, noProperties, 0, 9, 0x70), malformed),
  v5("[MQTT-3.10.3-2] UNSUBSCRIBE without a filter", packet(0xa2, id, noProperties), malformed),
  v4("UNSUBSCRIBE with packet identifier 0", packet(0xa2, 0, 0, text("p")), malformed),
  v5("UNSUBSCRIBE from an invalid filter", packet(0xa2, id, noProperties, text("a+")), malformed),
  v5("UNSUBSCRIBE with a subscription identifier", packet(0xa2, id, properties(0x0b, 1), text("p")), malformed),
  v4("UNSUBSCRIBE with U+0000 in the filter", packet(0xa2, id, nul), malformed),
];

const endings: Malformed[] = [
  v4("DISCONNECT with a body", packet(0xe0, 0), malformed),
  v5Silent("[MQTT-3.14.2-1] DISCONNECT with reason code 0x05", packet(0xe0, 0x05), protocolError),
  v5Silent("DISCONNECT with a server's reason code", packet(0xe0, 0x8e), protocolError),
  v5("DISCONNECT with properties past the end", packet(0xe0, 0, 5, 0x11, 0), malformed),
  v5("DISCONNECT with an unknown property", packet(0xe0, 0, properties(0x7f)), malformed),
  v5("DISCONNECT with receive maximum", packet(0xe0, 0, properties(0x21, 0, 1)), protocolError),
  v4("AUTH", packet(0xf0), malformed),
  v5("AUTH without a reason code", packet(0xf0), protocolError),
  v5("[MQTT-3.15.2-1] AUTH with a server's reason code", packet(0xf0, 0x00, 0), protocolError),
  v5("AUTH without a method", packet(0xf0, 0x18, 0), protocolError),
];

/** Every test wants the whole table. */
export const malformedPackets: readonly Malformed[] = [
  ...framing,
  ...connect,
  ...publish,
  ...acknowledgements,
  ...subscriptions,
  ...endings,
];
