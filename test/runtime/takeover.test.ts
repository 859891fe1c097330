// A session moves from one node to another, and one of the two, or the core, crashes in the middle of it.

import { afterEach, describe, expect, test, vi } from "vitest";
import { Coordinator } from "../../durable-objects/coordinator/coordinator.ts";
import { BrokerNode } from "../../durable-objects/node/broker-node.ts";
import {
  converse,
  coreName,
  crash,
  durable,
  knock,
  newNode,
  nodeStub,
  publish,
  publishAndWait,
  rows,
  sleep,
  subscribe,
} from "./conversation.ts";
import { patience } from "../support/patience.ts";

afterEach(() => {
  vi.restoreAllMocks();
});

const calls = ["claimAll", "takeOver", "takeOverMessages", "takeOverDone"] as const;
type Call = (typeof calls)[number];
const moments = calls.flatMap((call) =>
  (["before", "behind"] as const).flatMap((when) =>
    (["giver", "taker", "core"] as const).map((victim) => ({ call, when, victim })),
  ),
);

/** Does something once in the middle of a move: before the call arrives, or before its answer leaves. */
function once(call: Call, when: "before" | "behind", action: () => Promise<void>): () => boolean {
  const prototype = (call === "claimAll" ? Coordinator : BrokerNode).prototype as unknown as Record<
    Call,
    (...args: unknown[]) => Promise<unknown>
  >;
  let done = false;
  const original = prototype[call];
  vi.spyOn(prototype, call).mockImplementation(async function (this: unknown, ...args) {
    if (done) return original.apply(this, args);
    done = true;
    if (when === "before") await action();
    const result = await original.apply(this, args);
    if (when === "behind") await action();
    return result;
  });
  return () => done;
}

describe("[G1] [G4] nothing is lost when it crashes", () => {
  test.for(moments)("the $victim, $when $call", async ({ call, when, victim }) => {
    const giver = newNode();
    const taker = newNode();
    const topic = `takeover/${giver}`;
    const publisher = await converse(newNode());
    const clientId = `client-of-${giver}`;
    const client = await converse(giver, { ...durable, clientId });
    await subscribe(client, [topic, `${topic}/#`]);
    await publishAndWait(publisher, topic, "1", "2");
    await client.expectMessage("1");
    await client.expectMessage("2");
    await client.drop();
    await publishAndWait(publisher, topic, "3");

    const victims = { giver, taker, core: coreName };
    const crashed = once(call, when, () => crash(victims[victim]));
    await knock(taker, { ...durable, clientId });
    await vi.waitUntil(crashed, patience);
    await publishAndWait(publisher, topic, "4");

    // The client tries again until it is let in, as clients do.
    let again = await knock(taker, { ...durable, clientId });
    for (let attempt = 1; ; attempt++) {
      const connack = await again.expect("connack").catch(() => undefined);
      if (connack?.reasonCode === 0) {
        expect(connack.sessionPresent).toBe(true);
        break;
      }
      expect(attempt).toBeLessThan(5);
      again = await knock(taker, { ...durable, clientId });
    }
    await publishAndWait(publisher, topic, "5");
    const received = new Set<string>();
    again.send({ cmd: "pingreq" });
    for (let packet = await again.next(); packet.cmd !== "pingresp"; packet = await again.next()) {
      if (packet.cmd !== "publish") throw new Error(`an unexpected ${packet.cmd} came`);
      received.add(packet.payload.toString());
      again.send({ cmd: "puback", messageId: packet.messageId! });
    }
    expect([...received].sort()).toEqual(["1", "2", "3", "4", "5"]);

    // One session in the whole cluster, and nothing is left of the other.
    await sleep(taker);
    const sessions = "SELECT client_id FROM session WHERE client_id = ?";
    await vi.waitUntil(async () => (await rows(giver, sessions, clientId)).length === 0, patience);
    expect(await rows(taker, sessions, clientId)).toHaveLength(1);
    for (const node of [giver, taker]) {
      const orphans = await rows(node, "SELECT session FROM queue WHERE session NOT IN (SELECT id FROM session)");
      expect(orphans).toEqual([]);
    }
  });
});

describe("[G3] the core crashes behind", () => {
  test("CONNECT: the client is let in", async () => {
    const client = await knock(newNode());
    await crash(coreName);
    await client.expect("connack", { reasonCode: 0 });
  });

  test("SUBSCRIBE: SUBACK comes when the core knows", async () => {
    const node = newNode();
    const topic = `takeover/${node}`;
    const client = await converse(node);
    const publisher = await converse(newNode());
    client.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic, qos: 1 }] });
    await crash(coreName);
    await client.expect("suback", { messageId: 1, granted: [1] });
    await publishAndWait(publisher, topic, "1");
    await client.expectMessage("1");
  });
});

test("a node crashes behind SUBSCRIBE: the core does not keep a route that nobody wants", async () => {
  const node = newNode();
  const topic = `takeover/${node}`;
  const client = await converse(node);
  const publisher = await converse(newNode());
  client.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic, qos: 1 }] });
  const hasRoute = async (): Promise<boolean> =>
    (await rows(coreName, "SELECT 1 FROM route WHERE key = ?", topic)).length > 0;
  await vi.waitUntil(hasRoute, patience);
  await crash(node);
  publisher.send(publish(topic, "1", 1, { messageId: 1 }));
  await publisher.expect("puback");
  await vi.waitUntil(async () => !(await hasRoute()), patience);
});

test("[G1] [G4] what is given ends, however much comes meanwhile: that comes to the taker, too", async () => {
  const giver = newNode();
  const topic = `takeover/${giver}`;
  const publisher = await converse(newNode());
  const client = await converse(giver, { ...durable, clientId: `client-of-${giver}` });
  await subscribe(client, topic);
  await client.drop();
  await publishAndWait(publisher, topic, "1", "2");
  // As a taker would ask that has a newer claim.
  const epoch = Date.now() * 2;
  const pull = async (afterSeq: number): Promise<number[]> =>
    (await nodeStub(giver).takeOverMessages(client.clientId, epoch, afterSeq)).map(({ seq }) => seq);
  await nodeStub(giver).takeOver(client.clientId, epoch, true);
  const given = await pull(0);
  expect(given).toHaveLength(2);
  await publishAndWait(publisher, topic, "3");
  expect(await pull(0)).toEqual(given);
  expect(await pull(given[1]!)).toEqual([]);
});
