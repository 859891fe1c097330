import { expect, test } from "vitest";
import { chooseSubprotocol } from "../../mqtt/subprotocol.ts";

test.each([
  ["mqtt", "mqtt"],
  ["mqttv3.1", "mqttv3.1"],
  ["mqttv3.1.1", "mqttv3.1.1"],
  ["mqttv5", "mqttv5"],
  ["mqtt, mqttv3.1", "mqtt"],
  ["mqttv3.1,mqtt", "mqttv3.1"],
  ["chat , mqtt", "mqtt"],
  ["chat", undefined],
  ["MQTT", undefined],
  ["mqttx", undefined],
  ["mqtt mqtt", undefined],
  [",", undefined],
  ["", undefined],
  [null, undefined],
])("[MQTT-6.0.0-3] [MQTT-6.0.0-4] offered %j: %j, the first that is known", (offered, chosen) => {
  expect(chooseSubprotocol(offered)).toBe(chosen);
});
