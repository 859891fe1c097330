/** What clients offer for MQTT over WebSocket: `mqtt` is the standard's, the others are MQTT.js's and its kin's. */
export const subprotocols = ["mqtt", "mqttv5", "mqttv3.1.1", "mqttv3.1"];

/** The one of the offered subprotocols to echo; undefined when none is known. [MQTT-6.0.0-4] */
export function chooseSubprotocol(offered: string | null): string | undefined {
  const names = (offered ?? "").split(",").map((name) => name.trim());
  return names.find((name) => subprotocols.includes(name));
}
