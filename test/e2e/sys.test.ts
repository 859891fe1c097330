// What the broker publishes itself: `$SYS/brokers/...` and delayed messages.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import packageJson from "../../package.json" with { type: "json" };
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connect, converseConnected, slot, versions } from "../support/client.ts";
import type { Client } from "../support/client.ts";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker();
});

afterAll(() => broker.stop());

const core = "core@local.emqxcl";

/** What comes on the topics, one message of each. */
async function read(client: Client, topics: readonly string[]): Promise<Map<string, string>> {
  const wanted = new Set(topics);
  const found = new Map<string, string>();
  while (wanted.size > 0) {
    const { topic, payload, retain } = await client.next();
    expect(retain).toBe(false);
    wanted.delete(topic);
    found.set(topic, payload);
  }
  return found;
}

describe("$SYS/brokers", () => {
  test.each(versions)(
    "tells a new subscriber of version %i who is there, and how each one is",
    async (protocolVersion) => {
      const others = await Promise.all([1, 2].map((number) => connect(broker.urlOf(slot(number)))));
      for (const other of others) await other.subscribe("counted");
      const client = await connect(broker.urlOf(slot(1)), { protocolVersion });
      await client.subscribe("$SYS/brokers/#");
      const nodes = [core, slot(1), slot(2)];
      const topics = [
        "$SYS/brokers",
        ...nodes.flatMap((node) =>
          ["version", "uptime", "datetime", "sysdescr"].map((what) => `$SYS/brokers/${node}/${what}`),
        ),
        ...[1, 2].flatMap((number) => [
          `$SYS/brokers/${slot(number)}/stats/connections/count`,
          `$SYS/brokers/${slot(number)}/stats/subscriptions/count`,
          `$SYS/brokers/${slot(number)}/metrics/bytes/received`,
          `$SYS/brokers/${slot(number)}/metrics/messages/dropped`,
        ]),
      ];
      const found = await read(client, topics);
      expect(found.get("$SYS/brokers")?.split(",")).toEqual(expect.arrayContaining(nodes));
      for (const node of nodes) {
        expect(found.get(`$SYS/brokers/${node}/version`)).toBe(packageJson.version);
        expect(found.get(`$SYS/brokers/${node}/uptime`)).toMatch(/^\d+$/);
        expect(new Date(found.get(`$SYS/brokers/${node}/datetime`) ?? "").getTime()).toBeGreaterThan(0);
      }
      expect(Number(found.get(`$SYS/brokers/${slot(2)}/stats/connections/count`))).toBeGreaterThanOrEqual(1);
      expect(Number(found.get(`$SYS/brokers/${slot(2)}/stats/subscriptions/count`))).toBeGreaterThanOrEqual(1);
      expect(Number(found.get(`$SYS/brokers/${slot(2)}/metrics/bytes/received`))).toBeGreaterThan(0);
    },
  );

  test("counts what happens", async () => {
    const dropped = `$SYS/brokers/${core}/metrics/messages/dropped`;
    const publisher = await connect(broker.urlOf(slot(1)));
    const before = await connect(broker.urlOf(slot(2)));
    await before.subscribe(dropped);
    const first = Number((await before.next()).payload);
    await before.leave();
    for (const _ of [1, 2, 3]) await publisher.publish("nobody/subscribed", "", { qos: 1 });
    const after = await connect(broker.urlOf(slot(2)));
    await after.subscribe(dropped);
    expect(Number((await after.next()).payload)).toBeGreaterThanOrEqual(first + 3);
  });

  test("[MQTT-4.7.2-1] a wildcard at the beginning does not reach it", async () => {
    const all = await connect(broker.urlOf(slot(1)));
    await all.subscribe(["#", "+/brokers", "+/brokers/#"]);
    const system = await connect(broker.urlOf(slot(1)));
    await system.subscribe("$SYS/brokers");
    expect((await system.next()).topic).toBe("$SYS/brokers");
    await system.subscribe("$SYS/brokers/+/version");
    await read(system, [`$SYS/brokers/${core}/version`, `$SYS/brokers/${slot(1)}/version`]);
    await all.expectNothing();
  });
});

describe("$delayed", () => {
  test.each(versions)(
    "version %i: comes later, on its topic, and what is published meanwhile before it",
    async (protocolVersion) => {
      const subscriber = await connect(broker.urlOf(slot(1)), { protocolVersion });
      const publisher = await connect(broker.urlOf(slot(0)), { protocolVersion });
      const topic = `later/${protocolVersion}`;
      await subscriber.subscribe([`later/#`, "$delayed/#"], { qos: 2 });
      // At once, so that no delay is over before the next is published.
      await Promise.all([
        publisher.publish(`$delayed/2/${topic}`, "third", { qos: 2 }),
        publisher.publish(`$delayed/1/${topic}`, "second", { qos: 1 }),
        publisher.publish(topic, "first", { qos: 1 }),
      ]);
      for (const [payload, qos] of [
        ["first", 1],
        ["second", 1],
        ["third", 2],
      ] as const)
        expect(await subscriber.next()).toMatchObject({ topic, payload, qos });
      await subscriber.expectNothing();
    },
  );

  test("0 seconds, QoS 0, properties, and RETAIN from when it is published", async () => {
    const publisher = await connect(broker.urlOf(slot(0)));
    const subscriber = await connect(broker.urlOf(slot(1)));
    await subscriber.subscribe("soon/#", { qos: 1 });
    await publisher.publish("$delayed/0/soon/a", "x", { properties: { contentType: "a/b" } });
    expect(await subscriber.next()).toMatchObject({ topic: "soon/a", qos: 0, properties: { contentType: "a/b" } });
    await publisher.publish("$delayed/1/soon/kept", "kept", { qos: 1, retain: true });
    const early = await connect(broker.urlOf(slot(2)));
    await early.subscribe("soon/kept", { qos: 1, rap: true });
    // A live message, not a retained one: it was not there yet.
    expect(await early.next()).toMatchObject({ payload: "kept", retain: true });
    const late = await connect(broker.urlOf(slot(2)));
    await late.subscribe("soon/kept", { qos: 1 });
    expect(await late.next()).toMatchObject({ payload: "kept", retain: true });
  });

  test("a session that is away gets it when it is back", async () => {
    const session = { clientId: "away-delayed", clean: false, properties: { sessionExpiryInterval: 100 } };
    const away = await connect(broker.urlOf(slot(1)), session);
    const here = await connect(broker.urlOf(slot(2)));
    for (const client of [away, here]) await client.subscribe("while/away", { qos: 1 });
    await away.leave();
    await here.publish("$delayed/1/while/away", "x", { qos: 1 });
    expect(await here.payloads(1)).toEqual(["x"]);
    const back = await connect(broker.urlOf(slot(1)), session);
    expect(await back.payloads(1)).toEqual(["x"]);
  });

  test.each(["$delayed/x/t", "$delayed/-1/t", "$delayed/1", "$delayed/1/", "$delayed/9999999999/t", "$delayed//t"])(
    "%s is no topic name",
    async (topic) => {
      const client = await converseConnected(broker.urlOf(slot(1)));
      client.send({ cmd: "publish", topic, payload: "", qos: 0, dup: false, retain: false });
      expect(await client.expect("disconnect")).toMatchObject({ reasonCode: 0x90 });
      await client.expectClose();
    },
  );
});
