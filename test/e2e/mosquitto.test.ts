// mosquitto_pub and mosquitto_sub, which speak TCP, through `npm run bridge`; where Debian's mosquitto-clients is
// installed.

import { spawn, spawnSync } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { slot } from "../support/client.ts";

const isInstalled = ["mosquitto_pub", "mosquitto_sub"].every(
  (program) => spawnSync(program, ["--help"]).error === undefined,
);

describe.skipIf(!isInstalled)("mosquitto_pub and mosquitto_sub (skipped without mosquitto-clients)", () => {
  let broker: Broker;
  const bridges: ChildProcess[] = [];
  const ports: string[] = [];

  /** A bridge to one node, as an operator starts it. @returns the port that it listens on. */
  async function bridgeTo(node: string): Promise<string> {
    const program = join(import.meta.dirname, "..", "..", "cli", "bridge.ts");
    const bridge = spawn(process.execPath, [program, "--listen", "0", "--to", broker.urlOf(node)], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    bridges.push(bridge);
    for await (const line of createInterface({ input: bridge.stdout })) {
      const port = /^MQTT over TCP: 127\.0\.0\.1:(\d+)/.exec(line)?.[1];
      if (port !== undefined) return port;
    }
    throw new Error("the bridge did not start");
  }

  beforeAll(async () => {
    broker = await startBroker();
    for (const number of [0, 1]) ports.push(await bridgeTo(slot(number)));
  });

  afterAll(async () => {
    for (const bridge of bridges) {
      const ended = once(bridge, "exit");
      bridge.kill("SIGTERM");
      await ended;
    }
    await broker.stop();
  });

  function run(program: string, node: 0 | 1, args: readonly string[]): ChildProcess {
    const child = spawn(program, ["-h", "127.0.0.1", "-p", ports[node] ?? "", ...args], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    onTestFinished(() => void child.kill("SIGKILL"));
    return child;
  }

  async function publish(args: readonly string[]): Promise<void> {
    const [code] = (await once(run("mosquitto_pub", 0, args), "exit")) as [number | null];
    expect(code).toBe(0);
  }

  describe.each(["mqttv31", "mqttv311", "mqttv5"])("%s", (version) => {
    test.each([0, 1, 2])("a retained message, and one published on another node, at QoS %i", async (qos) => {
      const topic = `mosquitto/${version}/${qos}`;
      const common = ["-V", version, "-t", topic, "-q", `${qos}`];
      await publish([...common, "-m", "retained", "-r"]);
      // At QoS 0 nothing says that it has arrived: this does, on the same node.
      await publish(["-V", version, "-t", "elsewhere", "-q", "1", "-m", ""]);
      const subscriber = run("mosquitto_sub", 1, [...common, "-C", "2", "-W", "20", "-F", "%r %q %p"]);
      const lines = createInterface({ input: subscriber.stdout! })[Symbol.asyncIterator]();
      expect((await lines.next()).value).toBe(`1 ${qos} retained`);
      await publish([...common, "-m", "live"]);
      expect((await lines.next()).value).toBe(`0 ${qos} live`);
      const [code] = subscriber.exitCode === null ? await once(subscriber, "exit") : [subscriber.exitCode];
      expect(code).toBe(0);
    });
  });

  test("the will of a client that is killed", async () => {
    // A retained message shows that a client is connected and has subscribed.
    await publish(["-t", "mosquitto/ready", "-m", "ready", "-q", "1", "-r"]);
    const topics = ["-t", "mosquitto/ready", "-t", "mosquitto/will"];
    const subscriber = run("mosquitto_sub", 1, ["-V", "mqttv5", ...topics, "-C", "2", "-W", "20"]);
    const lines = createInterface({ input: subscriber.stdout! })[Symbol.asyncIterator]();
    expect((await lines.next()).value).toBe("ready");
    const will = ["--will-topic", "mosquitto/will", "--will-payload", "bye", "--will-qos", "1"];
    const dying = run("mosquitto_sub", 0, ["-t", "mosquitto/ready", ...will]);
    await once(dying.stdout!, "data");
    dying.kill("SIGKILL");
    expect((await lines.next()).value).toBe("bye");
  });
});
