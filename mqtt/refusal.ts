/**
 * How the error of a client is answered, where its reason code alone does not say.
 *
 *     MqttError      a DISCONNECT with the reason code in 5.0; before, and before a CONNECT, the close alone
 *     ConnectError   a CONNACK with the reason code, in the version the error names
 *     SilentError    the close alone, in every version
 *
 * The specification lets a server choose in these cases; the choices are those of Mosquitto's tests.
 */
import type { ProtocolVersion } from "./publish.ts";
import { MqttError, type ReasonCode } from "./reason-codes.ts";

/** A CONNECT that cannot be accepted, from a client that will understand why. */
export class ConnectError extends MqttError {
  readonly connackVersion: ProtocolVersion;

  constructor(reasonCode: ReasonCode, reason: string, connackVersion: ProtocolVersion) {
    super(reasonCode, reason);
    this.connackVersion = connackVersion;
  }
}

/** An error that nothing is said about: framing is lost, credentials are garbled, or the client has left. */
export class SilentError extends MqttError {}
