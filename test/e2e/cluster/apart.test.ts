// What clients do on both sides of a partition, and what is left of it when it is over.

import { expect, test } from "vitest";

import { connect, range } from "../../support/client.ts";
import {
  connectDurable,
  cut,
  eventually,
  restore,
  startCluster,
  whenRoutesAgree,
  whenSeen,
} from "../../support/cluster.ts";

test("[G4] of one client id on both sides the later session goes on, and the other one is closed", async () => {
  const [a, b, c] = await startCluster(3);
  // Connected before, so that one side knows of the other's; so many, that each core owns some.
  const ids = range(6).map((n) => `twin-${n}`);
  const older = await Promise.all(ids.map((id, n) => connectDurable((n % 2 === 0 ? c : a).urlOf(0), id)));
  for (const client of older) await client.subscribe("to/older", { qos: 1 });

  cut([a, b], [c]);
  await whenSeen([a, b], { running: [a, b], stopped: [c] });
  await whenSeen([c], { stopped: [a, b] });
  const later = await Promise.all(ids.map((id, n) => connectDurable((n % 2 === 0 ? b : c).urlOf(0), id)));
  for (const client of later) {
    // What the other side has cannot be had: it is a new session.
    expect(client.connack.sessionPresent).toBe(false);
    await client.subscribe("to/later", { qos: 1 });
  }
  expect(older.map(({ mqtt }) => mqtt.connected)).toEqual(ids.map(() => true));

  restore(a, b, c);
  expect(await Promise.all(older.map(({ ended }) => ended))).toEqual(ids.map(() => 0x8e));
  await whenSeen([a, b, c], { running: [a, b, c] });
  await eventually(() => expect([a, b, c].flatMap((each) => each.events("partition_healed"))).toHaveLength(1));
  await whenRoutesAgree(a, b, c);
  const publisher = await connect(a.urlOf(1));
  await publisher.publish("to/older", "of before", { qos: 1 });
  await publisher.publish("to/later", "of now", { qos: 1 });
  for (const client of later) {
    expect(await client.payloads(1)).toEqual(["of now"]);
    await client.expectNothing();
  }
  // And one session it is, wherever the client comes next.
  for (const [n, id] of ids.entries()) {
    const moved = await connectDurable((n % 2 === 0 ? a : b).urlOf(2), id);
    expect(moved.connack.sessionPresent).toBe(true);
    expect(await later[n]!.ended).toBe(0x8e);
    await publisher.publish("to/later", `to ${id}`, { qos: 1 });
    expect(await moved.payloads(1)).toEqual([`to ${id}`]);
    await moved.leave();
    await connect(a.urlOf(2), { clientId: id, clean: true }).then((client) => client.leave());
  }
});

test("[G8] what was retained, replaced and cleared on one side is so on all", async () => {
  const [a, b, c] = await startCluster(3);
  const [onA, onC] = [await connect(a.urlOf(0)), await connect(c.urlOf(0))];
  for (const topic of ["cleared/by/a", "cleared/by/c", "replaced", "replaced/by/a", "kept"])
    await onA.publish(topic, "of before", { qos: 1, retain: true });

  cut([a], [b], [c]);
  for (const each of [a, b, c]) await whenSeen([each], { stopped: [a, b, c].filter((other) => other !== each) });
  await onA.publish("cleared/by/a", "", { qos: 1, retain: true });
  await onC.publish("cleared/by/c", "", { qos: 1, retain: true });
  await onA.publish("replaced/by/a", "of a", { qos: 1, retain: true });
  await onA.publish("replaced", "of a", { qos: 1, retain: true });
  await onC.publish("replaced", "of c, and later", { qos: 1, retain: true });
  await onC.publish("new", "of c", { qos: 1, retain: true });

  restore(a, b, c);
  await eventually(() => expect([a, b, c].flatMap((each) => each.events("partition_healed"))).toHaveLength(1));
  for (const deployment of [a, b, c]) {
    const client = await connect(deployment.urlOf(1));
    await client.subscribe("#", { qos: 1 });
    const retained = await Promise.all(range(4).map(() => client.next()));
    expect(Object.fromEntries(retained.map(({ topic, payload }) => [topic, payload]))).toEqual({
      kept: "of before",
      new: "of c",
      replaced: "of c, and later",
      "replaced/by/a": "of a",
    });
    await client.expectNothing();
    await client.leave();
  }
});
