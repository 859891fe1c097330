// node.role = "replicant": a deployment without a core of its own.

import { expect, test } from "vitest";

import {
  connectDurable,
  cut,
  restore,
  startDeployments,
  whenRoutesAgree,
  whenSeen,
  eventually,
} from "../../support/cluster.ts";
import { connect } from "../../support/client.ts";

interface Topology {
  readonly core_node: string;
  readonly replicant_nodes: readonly {
    readonly node: string;
    readonly lag?: number;
    readonly bootstrap_time?: number;
    readonly bootstrap_num_keys?: number;
  }[];
}

test("[G3] [G4] [G8] a replicant's clients are as all others, also when the core that it joined is gone", async () => {
  const [a, b, r] = await startDeployments(3, (index) => (index === 2 ? { TRELLIS_NODE__ROLE: "replicant" } : {}));
  expect(await b.api(`/cluster/${a.core}/join`, "PUT")).toBeUndefined();
  const onA = await connect(a.urlOf(0));
  await onA.subscribe("to/a", { qos: 1 });
  await onA.publish("retained", "of a", { qos: 1, retain: true });
  expect(await r.api(`/cluster/${a.core}/join`, "PUT")).toBeUndefined();
  await whenSeen([a, b, r], { running: [a, b, r] });
  expect(await b.api(`/cluster/${r.core}/join`, "PUT")).toMatchObject({ code: "BAD_REQUEST" });

  const onR = await connectDurable(r.urlOf(0), "on-r");
  await onR.subscribe(["to/r", "retained"], { qos: 2 });
  expect(await onR.payloads(1)).toEqual(["of a"]);
  await onR.publish("to/a", "from r", { qos: 1 });
  expect(await onA.payloads(1)).toEqual(["from r"]);
  await whenRoutesAgree(a, b, r);
  const nodes = await a.api<{ node: string; role: string }[]>("/nodes");
  expect(nodes).toContainEqual(expect.objectContaining({ node: r.core, role: "replicant", node_status: "running" }));
  // A client id of the replicant's is known to the cores.
  const moved = await connectDurable(b.urlOf(0), "on-r");
  expect(moved.connack.sessionPresent).toBe(true);
  expect(await onR.ended).toBe(0x8e);
  const back = await connectDurable(r.urlOf(1), "on-r");
  expect(back.connack.sessionPresent).toBe(true);

  await a.broker.kill();
  const onB = await connect(b.urlOf(1));
  await onB.subscribe("to/b", { qos: 1 });
  await back.publish("to/b", "from r", { qos: 1 });
  expect(await onB.payloads(1)).toEqual(["from r"]);
  await onB.publish("to/r", "from b", { qos: 2 });
  expect(await back.payloads(1)).toEqual(["from b"]);
  const other = await connectDurable(r.urlOf(0), "another");
  await other.subscribe("to/another", { qos: 1 });
  await onB.publish("to/another", "from b", { qos: 1 });
  expect(await other.payloads(1)).toEqual(["from b"]);

  await a.broker.restart();
  await whenSeen([a, b, r], { running: [a, b, r] });
  await whenRoutesAgree(a, b, r);
});

test("[G8] a replicant that was cut off takes over what the cores have, and they what its nodes have", async () => {
  const [a, r] = await startDeployments(2, (index) => (index === 1 ? { TRELLIS_NODE__ROLE: "replicant" } : {}));
  expect(await r.api(`/cluster/${a.core}/join`, "PUT")).toBeUndefined();
  await whenSeen([a, r], { running: [a, r] });
  const onA = await connect(a.urlOf(0));
  const onR = await connectDurable(r.urlOf(0), "on-r");
  await onR.subscribe("before", { qos: 1 });
  cut([a], [r]);
  await Promise.all([onA.subscribe("since/a", { qos: 1 }), onR.subscribe("since/r", { qos: 1 })]);
  await onR.unsubscribe("before");
  await whenSeen([a], { stopped: [r] });
  await whenSeen([r], { stopped: [a] });
  await onR.publish("since/a", "meanwhile", { qos: 1 });
  await onA.publish("before", "to nobody who is there", { qos: 1 });
  restore(a, r);
  await whenSeen([a, r], { running: [a, r] });
  await whenRoutesAgree(a, r);
  await onA.publish("since/r", "from a", { qos: 1 });
  expect(await onR.payloads(1)).toEqual(["from a"]);
  await onR.publish("since/a", "from r", { qos: 1 });
  expect(await onA.payloads(1)).toEqual(["from r"]);
  await onR.expectNothing();
  await eventually(async () => {
    const [core] = await a.api<Topology[]>("/cluster/topology");
    expect(core).toMatchObject({ core_node: a.core });
    const replicant = core!.replicant_nodes.find(({ node }) => node === a.node(0));
    expect(replicant).toMatchObject({ lag: 0, bootstrap_time: expect.any(Number) as unknown });
  });
});

test('node.db_backend = "mnesia": cores only', async () => {
  const [a, b, r] = await startDeployments(3, (index) =>
    index === 2 ? { TRELLIS_NODE__ROLE: "replicant" } : { TRELLIS_NODE__DB_BACKEND: "mnesia" },
  );
  expect(await b.api(`/cluster/${a.core}/join`, "PUT")).toBeUndefined();
  expect(await r.ctl("cluster", "join", a.core)).toEqual({
    code: 1,
    stdout: "",
    stderr: expect.stringMatching(/^Failed to join the cluster: replicant_with_mnesia: .*\n$/) as unknown,
  });
  await whenSeen([a, b], { running: [a, b] });
  // What is retained is everywhere when it is acknowledged.
  const [onA, onB] = [await connect(a.urlOf(0)), await connect(b.urlOf(0))];
  await onA.publish("retained", "of a", { qos: 1, retain: true });
  await onB.subscribe("retained", { qos: 1 });
  expect(await onB.payloads(1)).toEqual(["of a"]);
});
