/**
 * UTF-8 strings of the wire (MQTT 5.0, section 1.5.4), checked on their bytes.
 *
 * Two strictnesses, because the specification leaves a choice:
 *   names (topics, filters, client ids, user names)   no control characters at all
 *   text (user properties, reason strings, ...)       anything but U+0000
 * Ill-formed UTF-8, which includes encoded surrogates, is malformed in both. [MQTT-1.5.4-1]
 *
 * Nearly every name is short and ASCII: one loop over it, no decoder.
 */
import { MqttError, ReasonCode } from "./reason-codes.ts";
import { decodeText } from "./strings.ts";

// [MQTT-1.5.4-3] U+FEFF is a character like others, never stripped.
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The name in these bytes; MqttError 0x81 if it is ill-formed or holds a control character. */
export function decodeName(bytes: Uint8Array, start: number, end: number): string {
  let ascii = true;
  for (let at = start; at < end; at++) {
    const byte = bytes[at]!;
    if (byte >= 0x80) {
      ascii = false;
      // U+0080 to U+009F
      if (byte === 0xc2 && at + 1 < end && bytes[at + 1]! < 0xa0) throw controlCharacter();
    } else if (byte < 0x20 || byte === 0x7f) {
      throw controlCharacter();
    }
  }
  return ascii ? decodeText(bytes, start, end) : decode(bytes.subarray(start, end));
}

/** Refuses text that is ill-formed or holds U+0000: MqttError 0x81. */
export function checkText(bytes: Uint8Array, start: number, end: number): void {
  const text = bytes.subarray(start, end);
  // [MQTT-1.5.4-2]
  if (text.includes(0)) throw new MqttError(ReasonCode.MalformedPacket, "string contains U+0000");
  if (!isUtf8(text)) throw illFormed();
}

/** Whether the bytes are well-formed UTF-8; for payloads, where U+0000 is allowed. */
export function isUtf8(bytes: Uint8Array): boolean {
  let ascii = 0;
  while (ascii < bytes.length && bytes[ascii]! < 0x80) ascii++;
  if (ascii === bytes.length) return true;
  try {
    decoder.decode(bytes.subarray(ascii));
    return true;
  } catch {
    return false;
  }
}

function decode(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch {
    throw illFormed();
  }
}

function illFormed(): MqttError {
  return new MqttError(ReasonCode.MalformedPacket, "string is not well-formed UTF-8");
}

function controlCharacter(): MqttError {
  return new MqttError(ReasonCode.MalformedPacket, "name contains a control character");
}
