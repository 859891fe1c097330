// Deployments that are killed and come back.

import { expect, test } from "vitest";

import { range } from "../../support/client.ts";
import { connectDurable, eventually, startCluster, whenRoutesAgree, whenSeen } from "../../support/cluster.ts";

test("[G1] [G3] [G8] one of three: the others go on, and it gets what was meant for it when it is back", async () => {
  const [a, b, c] = await startCluster(3);
  const [onA, onC] = [await connectDurable(a.urlOf(0), "on-a"), await connectDurable(c.urlOf(0), "on-c")];
  // Of so many client ids each core owns some.
  const ids = range(8).map((n) => `moving-${n}`);
  for (const id of ids) {
    const client = await connectDurable(a.urlOf(1), id);
    await client.subscribe("everybody", { qos: 1 });
    await client.leave();
  }
  for (const client of [onA, onC]) await client.subscribe("everybody", { qos: 1 });
  const onB = await connectDurable(b.urlOf(0), "on-b");
  await onB.subscribe(["everybody", "to/b"], { qos: 2 });

  await b.broker.kill();
  // What is published in the same moment, for a node that nobody has missed yet.
  await Promise.all(range(5).map((n) => onA.publish("to/b", `at once ${n}`, { qos: 2 })));
  await whenSeen([a], { running: [a, c], stopped: [b] });
  await onA.publish("everybody", "to all", { qos: 1 });
  expect(await onA.payloads(1)).toEqual(["to all"]);
  expect(await onC.payloads(1)).toEqual(["to all"]);
  await Promise.all(range(20).map((n) => onC.publish("to/b", `later ${n}`, { qos: 2 })));
  await whenSeen([c], { running: [a, c], stopped: [b] });
  await onA.subscribe("since/a", { qos: 1 });
  await onC.subscribe("since/c", { qos: 1 });
  for (const id of ids) {
    const client = await connectDurable(c.urlOf(1), id);
    expect(client.connack.sessionPresent).toBe(true);
    expect(await client.payloads(1)).toEqual(["to all"]);
    await client.leave();
  }

  await b.broker.restart();
  await whenSeen([a, b, c], { running: [a, b, c] });
  await whenRoutesAgree(a, b, c);
  const again = await connectDurable(b.urlOf(0), "on-b");
  expect(again.connack.sessionPresent).toBe(true);
  const received = await again.payloads(26);
  expect(received.toSorted()).toEqual(
    [...range(5).map((n) => `at once ${n}`), ...range(20).map((n) => `later ${n}`), "to all"].toSorted(),
  );
  // What it did not know of when it was killed.
  await again.publish("since/a", "from b", { qos: 1 });
  await again.publish("since/c", "from b", { qos: 1 });
  expect(await onA.payloads(1)).toEqual(["from b"]);
  expect(await onC.payloads(1)).toEqual(["from b"]);
  for (const client of [again, onA, onC]) await client.expectNothing();
  const moved = await connectDurable(b.urlOf(1), ids[0]!);
  expect(moved.connack.sessionPresent).toBe(true);
  await moved.expectNothing();
});

test("[G1] [G8] all at once: what was promised is there, in whatever order they come back", async () => {
  const all = await startCluster(3);
  const [a, b, c] = all;
  const sessions = all.map((deployment, index) => ({ deployment, id: `client-${index}` }));
  for (const { deployment, id } of sessions) {
    const client = await connectDurable(deployment.urlOf(0), id);
    await client.subscribe(["all", `to/${id}`], { qos: 2 });
    await client.publish(`retained/${id}`, id, { qos: 1, retain: true });
    await client.leave();
  }
  const publisher = await connectDurable(b.urlOf(1), "publisher");
  await Promise.all(range(10).map((n) => publisher.publish("all", `${n}`, { qos: n % 2 === 0 ? 1 : 2 })));

  await Promise.all(all.map(({ broker }) => broker.kill()));
  await c.broker.restart();
  await eventually(async () => expect(await c.api("/cluster")).toMatchObject({ nodes: expect.anything() as unknown }));
  await a.broker.restart();
  await b.broker.restart();
  await whenSeen(all, { running: all });
  await whenRoutesAgree(a, b, c);
  for (const { deployment, id } of sessions) {
    const client = await connectDurable(deployment.urlOf(0), id);
    expect(client.connack.sessionPresent).toBe(true);
    expect((await client.payloads(10)).toSorted()).toEqual(range(10).map(String));
    await client.subscribe("retained/#", { qos: 1 });
    expect((await client.payloads(3)).toSorted()).toEqual(["client-0", "client-1", "client-2"]);
    await client.expectNothing();
  }
});
