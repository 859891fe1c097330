// Members that cannot be reached for `cluster.autoclean`.

import { describe, expect, test } from "vitest";

import {
  connectDurable,
  eventually,
  routesOf,
  startCluster,
  whenRoutesAgree,
  whenSeen,
} from "../../support/cluster.ts";

describe("cluster.autoclean = 3s", () => {
  test("[G1] [G8] who was killed for longer leaves with its routes, and is a member again when it is back", async () => {
    const [a, b, c] = await startCluster(3, { TRELLIS_CLUSTER__AUTOCLEAN: "3s" });
    const onA = await connectDurable(a.urlOf(0), "on-a");
    await onA.subscribe("to/a", { qos: 1 });
    const onC = await connectDurable(c.urlOf(0), "on-c");
    await onC.subscribe(["to/c", "$share/g/to/c"], { qos: 2 });
    await whenRoutesAgree(a, b, c);

    await c.broker.kill();
    // Noticed by traffic, by each core that has some for it.
    await onA.subscribe("since/a", { qos: 1 });
    await whenSeen([a, b], { running: [a, b] });
    const routes = [`since/a -> ${a.node(0)}`, `to/a -> ${a.node(0)}`];
    await eventually(async () => expect(await Promise.all([a, b].map(routesOf))).toEqual([routes, routes]));
    const { nodes } = await a.api<{ nodes: string[] }>("/cluster");
    expect(nodes).not.toContain(c.node(0));
    expect(a.events("core_left").concat(b.events("core_left"))).toContainEqual(
      expect.objectContaining({ node: c.core, state: "cleaned" }),
    );
    // Nobody has it any more: there is nobody to wait for.
    await onA.publish("to/c", "to nobody", { qos: 1 });

    await c.broker.restart();
    await whenSeen([a, b, c], { running: [a, b, c] });
    await whenRoutesAgree(a, b, c);
    const again = await connectDurable(c.urlOf(0), "on-c");
    expect(again.connack.sessionPresent).toBe(true);
    await onA.publish("to/c", "back", { qos: 2 });
    expect(await again.payloads(2)).toEqual(["back", "back"]);
    await again.publish("since/a", "from c", { qos: 1 });
    expect(await onA.payloads(1)).toEqual(["from c"]);
    await again.expectNothing();
  });

  test("[G4] what a client had there is no more when it was let in elsewhere meanwhile", async () => {
    const [a, b, c] = await startCluster(3, { TRELLIS_CLUSTER__AUTOCLEAN: "3s" });
    const before = await connectDurable(c.urlOf(0), "traveller");
    await before.subscribe("of/before", { qos: 1 });
    await c.broker.kill();
    const onA = await connectDurable(a.urlOf(0), "traveller");
    await onA.subscribe("of/now", { qos: 1 });
    await whenSeen([a, b], { running: [a, b] });

    await c.broker.restart();
    await whenSeen([a, b, c], { running: [a, b, c] });
    await eventually(async () => {
      for (const each of [a, b, c]) expect(await routesOf(each)).toEqual([`of/now -> ${a.node(0)}`]);
    });
    expect(onA.mqtt.connected).toBe(true);
    const moved = await connectDurable(c.urlOf(0), "traveller");
    expect(moved.connack.sessionPresent).toBe(true);
    await moved.publish("of/before", "x", { qos: 1 });
    await moved.publish("of/now", "y", { qos: 1 });
    expect(await moved.payloads(1)).toEqual(["y"]);
    await moved.expectNothing();
  });
});

test("cluster.autoclean = 0s: who is gone is waited for", async () => {
  const [a, b] = await startCluster(2, { TRELLIS_CLUSTER__AUTOCLEAN: "0s" });
  const onB = await connectDurable(b.urlOf(0), "on-b");
  await onB.subscribe("to/b", { qos: 1 });
  await b.broker.kill();
  const onA = await connectDurable(a.urlOf(0), "on-a");
  await onA.publish("to/b", "meanwhile", { qos: 1 });
  await whenSeen([a], { stopped: [b] });
  // The alarm of a core that cleans would ring within this time, and twice.
  await expect.poll(() => a.events("core_not_met").length).toBeGreaterThan(2);
  await whenSeen([a], { stopped: [b] });
  expect(await routesOf(a)).toEqual([`to/b -> ${b.node(0)}`]);
  await b.broker.restart();
  const again = await connectDurable(b.urlOf(0), "on-b");
  expect(await again.payloads(1)).toEqual(["meanwhile"]);
});
