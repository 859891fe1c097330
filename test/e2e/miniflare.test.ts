// The broker inside Miniflare, as the tests of an application could run it: on a free port, with nothing left on disk.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Miniflare } from "miniflare";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";

import { connect, slot, versions } from "../support/client.ts";

let miniflare: Miniflare;

beforeAll(async () => {
  // The directory is what `wrangler deploy --dry-run --outdir` writes; the worker is what wrangler.toml says of it.
  const { directory, worker } = inject("bundle");
  const modules = worker.modules.map(async ({ name, path }) => {
    return [name, { type: "esm" as const, contents: await readFile(join(directory, path), "utf8") }] as const;
  });
  const vars = Object.entries(worker.vars).map(([name, value]) => [name, { type: "json" as const, value }] as const);
  miniflare = new Miniflare({
    host: "127.0.0.1",
    port: 0,
    // Workers that happen to run under `wrangler dev` stay out of it.
    enableDevRegistry: false,
    workers: [
      {
        config: {
          name: worker.name,
          compatibilityDate: worker.compatibilityDate,
          compatibilityFlags: [...worker.compatibilityFlags],
          manifest: { mainModule: "index.js", modules: Object.fromEntries(await Promise.all(modules)) },
          env: {
            ...Object.fromEntries(vars),
            // Anyone may connect, and choose the node.
            LOOPBACK: { type: "text", value: "true" },
            NODE: { type: "durable-object", worker: worker.name, exportName: "BrokerNode" },
            COORDINATOR: { type: "durable-object", worker: worker.name, exportName: "Coordinator" },
          },
          exports: {
            BrokerNode: { type: "durable-object", storage: "sqlite" },
            Coordinator: { type: "durable-object", storage: "sqlite" },
          },
        },
      },
    ],
  });
  await miniflare.ready;
});

afterAll(() => miniflare.dispose());

/** `ws://127.0.0.1:<port>/mqtt`, and a node that is not left to placement. */
async function urlOf(node: string): Promise<string> {
  const { host } = await miniflare.ready;
  return `ws://${host}/mqtt?node=${encodeURIComponent(node)}`;
}

// An MQTT 5.0 and an MQTT 3.1.1 client, each on a node of its own, either way round.
describe.each(versions)("from version %i", (version) => {
  const [here, there] = version === 5 ? [slot(1), slot(2)] : [slot(2), slot(1)];
  const other = version === 5 ? 4 : 5;

  test.each([0, 1, 2] as const)("a message at QoS %i reaches the other version on the other node", async (qos) => {
    const topic = `to/${other}/${qos}`;
    const subscriber = await connect(await urlOf(there), { protocolVersion: other });
    expect(await subscriber.subscribe(topic, { qos })).toEqual([qos]);
    const publisher = await connect(await urlOf(here), { protocolVersion: version });
    await publisher.publish(topic, "hello", { qos });
    expect(await subscriber.next()).toMatchObject({ topic, payload: "hello", qos, retain: false });
  });

  test("[MQTT-3.3.1-5] a retained message waits for who comes later", async () => {
    const topic = `kept/${version}`;
    const publisher = await connect(await urlOf(here), { protocolVersion: version });
    await publisher.publish(topic, "kept", { qos: 1, retain: true });
    const subscriber = await connect(await urlOf(there), { protocolVersion: other });
    await subscriber.subscribe(topic, { qos: 1 });
    expect(await subscriber.next()).toMatchObject({ topic, payload: "kept", qos: 1, retain: true });
  });

  test("[MQTT-3.1.2-8] a will is published when its connection is lost", async () => {
    const topic = `lost/${version}`;
    const subscriber = await connect(await urlOf(there), { protocolVersion: other });
    await subscriber.subscribe(topic, { qos: 1 });
    const will = { topic, payload: Buffer.from("gone"), qos: 1, retain: false } as const;
    const client = await connect(await urlOf(here), { protocolVersion: version, will });
    await client.drop();
    expect(await subscriber.next()).toMatchObject({ topic, payload: "gone", qos: 1 });
  });
});
