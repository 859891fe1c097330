import mqtt from "mqtt";
import { expect, test } from "vitest";

import { startBridge } from "../../cli/tcp-bridge.ts";
import { startBroker } from "../support/broker.ts";

test.each([4, 5] as const)(
  "[G3] TCP clients of protocol version %i talk through the bridge",
  async (protocolVersion) => {
    const broker = await startBroker();
    const lines: string[] = [];
    const log = (line: string): void => void lines.push(line);
    const bridge = await startBridge({ host: "127.0.0.1", port: 0, to: broker.url, subprotocol: "mqtt", log });
    try {
      const address = `mqtt://127.0.0.1:${bridge.port}`;
      const subscriber = await mqtt.connectAsync(address, { protocolVersion, reconnectPeriod: 0 });
      const publisher = await mqtt.connectAsync(address, { protocolVersion, reconnectPeriod: 0 });
      await subscriber.subscribeAsync("bridge/#", { qos: 2 });
      const sizes = [0, 1, 70_000, 500_000];
      const received: [string, number][] = [];
      const all = new Promise<void>((resolve) => {
        subscriber.on("message", (topic, payload) => {
          received.push([topic, payload.length]);
          if (received.length === sizes.length) resolve();
        });
      });
      for (const size of sizes) await publisher.publishAsync(`bridge/${size}`, Buffer.alloc(size, "x"), { qos: 2 });
      await all;
      expect(received).toEqual(sizes.map((size) => [`bridge/${size}`, size]));
      await Promise.all([subscriber.endAsync(), publisher.endAsync()]);
      expect(lines).toEqual([]);
    } finally {
      await bridge.close();
      await broker.stop();
    }
  },
);
