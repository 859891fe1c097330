// Python's Paho client over WebSocket, where Debian's python3-paho-mqtt (or Paho by other means) is installed.

import { execFile, spawnSync } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { slot, versions } from "../support/client.ts";

/** The first Python that has Paho: Debian's own may not be the first one in PATH. */
const python = ["python3", "/usr/bin/python3"].find(
  (program) => spawnSync(program, ["-c", "import paho.mqtt.client"]).status === 0,
);

describe.skipIf(python === undefined)("Paho (skipped without python3-paho-mqtt)", () => {
  let broker: Broker;

  beforeAll(async () => {
    broker = await startBroker();
  });

  afterAll(() => broker.stop());

  test.each(versions)("version %i: publish and subscribe at every QoS, between two nodes", async (version) => {
    const paths = [0, 1].map((number) => `/mqtt?node=${slot(number)}`);
    const script = join(import.meta.dirname, "paho_client.py");
    const { stdout } = await promisify(execFile)(python ?? "", [
      script,
      "127.0.0.1",
      `${broker.port}`,
      ...paths,
      `${version}`,
    ]);
    const expected = [0, 1, 2].flatMap((qos) =>
      [0, 5, 100_000].map((length) => [`paho/${version}/${qos}`, length, qos, false]),
    );
    expect(JSON.parse(stdout)).toEqual([...expected, [`paho/${version}/kept`, 4, 1, true]]);
  });
});
