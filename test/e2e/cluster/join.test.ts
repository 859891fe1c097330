// Who joins and leaves a cluster of several deployments, by the control command.

import { describe, expect, test } from "vitest";

import { connect } from "../../support/client.ts";
import {
  connectDurable,
  eventually,
  routesOf,
  startCluster,
  startDeployments,
  whenRoutesAgree,
  whenSeen,
} from "../../support/cluster.ts";

function refused(stderr: string | RegExp): object {
  const expected: unknown = typeof stderr === "string" ? stderr : expect.stringMatching(stderr);
  return { code: 1, stdout: "", stderr: expected };
}

describe("ctl cluster join", () => {
  test("brings routes, retained messages and sessions along, and what is in the cluster already", async () => {
    const [a, b] = await startDeployments(2);
    const onA = await connectDurable(a.urlOf(0), "on-a");
    await onA.subscribe("to/a", { qos: 1 });
    await onA.publish("retained/a", "of a", { qos: 1, retain: true });
    const onB = await connectDurable(b.urlOf(0), "on-b");
    await onB.subscribe("to/b", { qos: 1 });
    await onB.publish("retained/b", "of b", { qos: 1, retain: true });
    expect(await routesOf(a)).toEqual([`to/a -> ${a.node(0)}`]);

    const { code, stdout } = await b.ctl("cluster", "join", a.core);
    expect({ code, stdout }).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(
        /^Join the cluster successfully\.\nCluster status: #\{running_nodes => \['/,
      ) as unknown,
    });
    await whenSeen([a, b], { running: [a, b] });
    await whenRoutesAgree(a, b);
    for (const [publisher, topic, subscriber] of [
      [onA, "to/b", onB],
      [onB, "to/a", onA],
    ] as const) {
      await publisher.publish(topic, "hello", { qos: 1 });
      expect(await subscriber.next()).toMatchObject({ topic, payload: "hello" });
    }
    for (const client of [onA, onB]) {
      await client.subscribe("retained/#", { qos: 1 });
      expect((await client.payloads(2)).sort()).toEqual(["of a", "of b"]);
      await client.expectNothing();
    }
    // The session of a client is where the client is, in the whole cluster [G4].
    const moved = await connectDurable(a.urlOf(1), "on-b");
    expect(moved.connack.sessionPresent).toBe(true);
    expect(await onB.ended).toBe(0x8e);
  });

  test("refuses what EMQX refuses, with its words", async () => {
    const [a, b, alone, replicant] = await startDeployments(
      4,
      (index) =>
        [{}, {}, { TRELLIS_CLUSTER__DISCOVERY_STRATEGY: "singleton" }, { TRELLIS_NODE__ROLE: "replicant" }][index]!,
    );
    const failed = "Failed to join the cluster:";
    expect(await a.ctl("cluster", "leave")).toEqual(
      refused(/^Failed to leave the cluster: node_not_in_cluster: .*\n$/),
    );
    expect(await a.ctl("cluster", "join", a.core)).toEqual(refused("Ignore.\n"));
    expect((await b.ctl("cluster", "join", a.core)).code).toBe(0);
    expect(await b.ctl("cluster", "join", a.core)).toEqual(
      refused(new RegExp(`^${failed} already_in_cluster: .*\\n$`)),
    );
    expect(await a.ctl("cluster", "join", b.core)).toEqual(
      refused(new RegExp(`^${failed} already_in_cluster: .*\\n$`)),
    );

    // Nobody joins a replicant, and nobody a singleton, which itself joins nobody.
    expect(await replicant.ctl("cluster", "join", a.core)).toMatchObject({ code: 0 });
    expect(await alone.ctl("cluster", "join", replicant.core)).toEqual(
      refused(new RegExp(`^${failed} singleton: .*\\n$`)),
    );
    expect(await a.ctl("cluster", "join", alone.core)).toEqual(refused(new RegExp(`^${failed} singleton: .*\\n$`)));
    await whenSeen([a, b, replicant], { running: [a, b, replicant] });
    await whenSeen([alone], {});

    await alone.broker.kill();
    expect(await a.ctl("cluster", "join", alone.core)).toEqual(refused(new RegExp(`^${failed} node_down: .*\\n$`)));
    await whenSeen([a, b, replicant], { running: [a, b, replicant] });
  });

  test("nobody joins a replicant", async () => {
    const [a, replicant] = await startDeployments(2, (index) =>
      index === 1 ? { TRELLIS_NODE__ROLE: "replicant" } : {},
    );
    const words = /^Failed to join the cluster: cannot_join_to_replicant: .*\n$/;
    expect(await a.ctl("cluster", "join", replicant.core)).toEqual(refused(words));
  });

  test("[G9] who has another cookie, or another cluster's name, is told so, and does not get in", async () => {
    const [a, stranger, other] = await startDeployments(
      3,
      (index) =>
        [{}, { TRELLIS_NODE__COOKIE: "a-cookie-of-somebody-else" }, { TRELLIS_CLUSTER__NAME: "another" }][index]!,
    );
    for (const [deployment, reason] of [
      [stranger, "bad_cookie"],
      [other, "bad_cluster_name"],
    ] as const) {
      const words = new RegExp(`^Failed to join the cluster: node_down: .*${reason}\\n$`);
      expect(await deployment.ctl("cluster", "join", a.core)).toEqual(refused(words));
      expect(await a.ctl("cluster", "join", deployment.core)).toEqual(refused(words));
      expect(a.events("link_refused")).toContainEqual(expect.objectContaining({ peer: deployment.core, reason }));
    }
    await whenSeen([a], {});
  });
});

describe("ctl cluster leave, force-leave", () => {
  test("who leaves takes its routes along, and may join again", async () => {
    const [a, b, c] = await startCluster(3);
    const [onA, onC] = [await connect(a.urlOf(0)), await connectDurable(c.urlOf(0), "on-c")];
    await onA.subscribe("left", { qos: 1 });
    await onC.subscribe("left", { qos: 1 });
    await whenRoutesAgree(a, b, c);

    expect(await c.ctl("cluster", "leave")).toEqual({
      code: 0,
      stdout: `Leave the cluster successfully.\nCluster status: #{running_nodes => ['${c.core}','${c.node(0)}'], stopped_nodes => []}\n`,
      stderr: "",
    });
    await whenSeen([a, b], { running: [a, b] });
    await whenSeen([c], {});
    expect(await routesOf(a)).toEqual([`left -> ${a.node(0)}`]);
    expect(await routesOf(c)).toEqual([`left -> ${c.node(0)}`]);
    // Its clients are still there, and alone.
    await onC.publish("left", "of c", { qos: 1 });
    expect(await onC.payloads(1)).toEqual(["of c"]);
    await onA.expectNothing();

    expect((await c.ctl("cluster", "join", b.core)).code).toBe(0);
    await whenSeen([a, b, c], { running: [a, b, c] });
    await whenRoutesAgree(a, b, c);
    await onA.publish("left", "of a", { qos: 1 });
    expect(await onC.payloads(1)).toEqual(["of a"]);
    expect(await onA.payloads(1)).toEqual(["of a"]);
  });

  test("force-leave takes a deployment out, whether it is there or not", async () => {
    const [a, b, c] = await startCluster(3);
    const onC = await connect(c.urlOf(0));
    await onC.subscribe("left", { qos: 1 });
    await whenRoutesAgree(a, b, c);

    expect(await a.ctl("cluster", "force-leave", a.core)).toEqual(refused("Ignore.\n"));
    expect(await a.ctl("cluster", "force-leave", "core@127.0.0.1:1")).toEqual(
      refused(/^Failed to remove the node from cluster: node_not_in_cluster: .*\n$/),
    );
    const { code, stdout } = await a.ctl("cluster", "force-leave", c.core);
    expect({ code, stdout }).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^Remove the node from cluster successfully\.\nCluster status: /) as unknown,
    });
    await whenSeen([a, b], { running: [a, b] });
    await whenSeen([c], {});
    await whenRoutesAgree(a, b);
    expect(await routesOf(a)).toEqual([]);

    await b.broker.kill();
    expect((await a.ctl("cluster", "force-leave", b.core)).code).toBe(0);
    await whenSeen([a], {});
    // Who was away has heard nothing of it: it asks, and is no member.
    await b.broker.restart();
    await whenSeen([a], {});
    await whenSeen([b], {});
  });
});

test("after leave nobody is looked for, until discovery is enabled", async () => {
  const [a, b] = await startDeployments(2, (_, cores) => ({
    TRELLIS_CLUSTER__DISCOVERY_STRATEGY: "static",
    TRELLIS_CLUSTER__STATIC__SEEDS: cores.join(","),
  }));
  await whenSeen([a, b], { running: [a, b] });
  expect((await b.ctl("cluster", "leave")).code).toBe(0);
  await whenSeen([a, b], {});
  await b.broker.restart();
  await whenSeen([a, b], {});
  expect(await b.ctl("cluster", "discovery", "enable")).toEqual({
    code: 0,
    stdout: "Automatic cluster discovery enabled.\n",
    stderr: "",
  });
  await whenSeen([a, b], { running: [a, b] });
  await eventually(() => expect(b.events("core_joined").length).toBeGreaterThan(1));
});
