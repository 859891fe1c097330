// Partitions between deployments, and what autoheal makes of them. Clients are connected throughout: their own deployment
// is always there.

import { describe, expect, test } from "vitest";

import { connect, range, type Client } from "../../support/client.ts";
import {
  connectDurable,
  cut,
  eventually,
  restore,
  silence,
  startCluster,
  whenRoutesAgree,
  whenSeen,
  type Deployment,
} from "../../support/cluster.ts";

/** From each to everybody. @returns the payloads. */
async function publishFromEach(clients: readonly Client[], topic: string, qos: 1 | 2): Promise<string[]> {
  const sent = clients.flatMap((client, from) => range(3).map((n) => ({ client, payload: `${topic} ${from}.${n}` })));
  await Promise.all(sent.map(({ client, payload }) => client.publish(topic, payload, { qos })));
  return sent.map(({ payload }) => payload);
}

async function expectOnce(clients: readonly Client[], payloads: readonly string[]): Promise<void> {
  for (const client of clients) {
    const received = await client.payloads(payloads.length);
    expect(received.toSorted()).toEqual(payloads.toSorted());
    await client.expectNothing();
  }
}

/** A durable client on each, with subscriptions of which some will go. */
async function connectToEach(deployments: readonly Deployment[]): Promise<Client[]> {
  return Promise.all(
    deployments.map(async (deployment, index) => {
      const client = await connectDurable(deployment.urlOf(0), `client-${index}`);
      await client.subscribe("all", { qos: 2 });
      await client.subscribe([`before/${index}`, `$share/g/before/${index}`, `kept/${index}/#`], { qos: 1 });
      return client;
    }),
  );
}

/** On all sides, so that each has something that no other one knows. A core that says nothing does not notice a thing. */
async function changeOnEach(clients: readonly Client[]): Promise<void> {
  await Promise.all(
    clients.map(async (client, index) => {
      await client.subscribe([`since/${index}`, "since/+", `$share/g/since/${index}`], { qos: 2 });
      await client.unsubscribe([`before/${index}`, `$share/g/before/${index}`]);
    }),
  );
}

/** Resolves when one healing is over. */
async function whenHealed(deployments: readonly Deployment[]): Promise<void> {
  await eventually(() => expect(deployments.flatMap((each) => each.events("partition_healed"))).toHaveLength(1));
}

/** Two deployments that have changed since they were cut from each other, and know it. */
async function startApart(variables?: Record<string, string>) {
  const [a, b] = await startCluster(2, variables);
  const clients = await connectToEach([a, b]);
  cut([a], [b]);
  await changeOnEach(clients);
  await whenSeen([a], { stopped: [b] });
  await whenSeen([b], { stopped: [a] });
  return { a, b, clients };
}

/** The partition ends: what was published meanwhile has come, once, and what is published then. */
async function heal(all: readonly Deployment[], clients: readonly Client[], during: readonly string[]): Promise<void> {
  restore(...all);
  await whenHealed(all);
  await whenRoutesAgree(...all);
  await expectOnce(clients, during);
  await expectOnce(clients, await publishFromEach(clients, "since/all", 2));
}

describe.each([
  ["cut", cut],
  ["half-open", silence],
])("a partition 2:1, %s", (_, part) => {
  test("[G1] [G8] heals: routes are those of the nodes, and everything has come everywhere, once at QoS 2", async () => {
    const [a, b, c] = await startCluster(3);
    const all = [a, b, c];
    const told = new Set<string>();
    const watcher = await connect(a.urlOf(1));
    watcher.mqtt.on("message", (topic) => told.add(topic));
    await watcher.subscribe("$SYS/brokers/+/events/#");
    const clients = await connectToEach(all);

    part([a, b], [c]);
    await changeOnEach(clients);
    await whenSeen([a, b], { running: [a, b], stopped: [c] });
    await whenSeen([c], { stopped: [a, b] });
    const during = await publishFromEach(clients, "all", 2);

    await heal(all, clients, during);
    await expectOnce(clients, await publishFromEach(clients, "all", 1));
    expect(clients.map(({ mqtt }) => mqtt.connected)).toEqual([true, true, true]);
    // The minority's core has restarted, and nobody else's.
    expect(all.map((each) => each.events("core_restarting").length)).toEqual([0, 0, 1]);
    for (const event of ["core_down", "core_up", "partition_found", "partition_healing", "partition_healed"])
      await eventually(() => expect(told).toContain(`$SYS/brokers/${a.core}/events/${event}`));
  });
});

test("[G1] [G8] a partition 1:1:1 heals: the oldest core's side wins, and the others restart one after the other", async () => {
  const [a, b, c] = await startCluster(3);
  const all = [a, b, c];
  const clients = await connectToEach(all);

  cut([a], [b], [c]);
  await changeOnEach(clients);
  for (const each of all) await whenSeen([each], { stopped: all.filter((other) => other !== each) });
  const during = await publishFromEach(clients, "all", 2);

  await heal(all, clients, during);
  expect(clients.map(({ mqtt }) => mqtt.connected)).toEqual([true, true, true]);
  expect(all.map((each) => each.events("core_restarting").length)).toEqual([0, 1, 1]);
  expect(a.events("partition_healed")).toMatchObject([{ restarted: [b.core, c.core] }]);
});

test("two deployments that were apart are one again", async () => {
  const { a, b, clients } = await startApart();
  restore(a, b);
  await whenHealed([a, b]);
  await whenRoutesAgree(a, b);
  await expectOnce(clients, await publishFromEach(clients, "since/all", 2));
});

test("[G8] cluster.autoheal = false: nobody restarts, and the routes are those of the nodes all the same", async () => {
  const { a, b, clients } = await startApart({ TRELLIS_CLUSTER__AUTOHEAL: "false" });
  restore(a, b);
  await whenSeen([a, b], { running: [a, b] });
  await whenRoutesAgree(a, b);
  await expectOnce(clients, await publishFromEach(clients, "since/all", 2));
  for (const each of [a, b]) expect(each.events("partition_found")).toEqual([]);
});
