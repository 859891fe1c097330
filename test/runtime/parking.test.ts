// A node that the core cannot reach: what was acknowledged waits on the core's disk, and arrives.

import { describe, expect, test, vi } from "vitest";
import { Coordinator } from "../../durable-objects/coordinator/coordinator.ts";
import { ParkedStore } from "../../durable-objects/coordinator/parked-store.ts";
import { limits } from "../../mqtt/limits.ts";
import { converse, coreName, crash, durable, newNode, publish, publishAndWait, subscribe } from "./conversation.ts";
import type { Conversation } from "./conversation.ts";
import { cut, heal, inject, parkedFor, untilDrained, useFaults } from "./faults.ts";
import { patience } from "../support/patience.ts";

useFaults();

/** Publishes, and waits for the whole exchange. */
async function publishOne(client: Conversation, topic: string, payload: string, qos: 1 | 2): Promise<void> {
  client.send(publish(topic, payload, qos, { messageId: 902 }));
  await client.expect(qos === 1 ? "puback" : "pubrec", { messageId: 902, reasonCode: 0 });
  if (qos === 1) return;
  client.send({ cmd: "pubrel", messageId: 902 });
  await client.expect("pubcomp", { messageId: 902 });
}

async function meet(topic: string) {
  const node = newNode();
  const client = await converse(node, durable);
  await subscribe(client, topic);
  return { node, client, publisher: await converse(newNode()) };
}

describe("[G1] [G2] a message for a node that cannot be reached", () => {
  test("is acknowledged when it is parked, and comes in order when the node answers again", async () => {
    const topic = "parking/order";
    const { node, client, publisher } = await meet(topic);
    cut(node);
    await publishOne(publisher, topic, "1", 1);
    expect(await parkedFor(node)).toBe(1);
    publisher.send(publish(topic, "QoS 0"));
    await publishOne(publisher, topic, "2", 2);
    await publishAndWait(publisher, topic, "3");
    expect(await parkedFor(node)).toBe(3);
    const system = await converse(newNode());
    await subscribe(system, `$SYS/brokers/${coreName}/stats/parked/count`, { qos: 0 });
    await system.expectMessage("3");
    await client.expectNothing();
    heal(node);
    await untilDrained(node);
    await client.expectMessage("1", { qos: 1 });
    await client.expectMessage("2", { qos: 2 });
    await client.expectMessage("3", { qos: 1 });
    await publishAndWait(publisher, topic, "4");
    await client.expectMessage("4");
    await client.expectNothing();
  });

  test("outlives the core, which goes on by its alarm", async () => {
    const topic = "parking/crash";
    const { node, client, publisher } = await meet(topic);
    cut(node);
    // At QoS 2: what the core has sent when it crashes may still arrive, and comes again then.
    await publishOne(publisher, topic, "1", 2);
    await crash(coreName);
    await publishOne(publisher, topic, "2", 2);
    expect(await parkedFor(node)).toBe(2);
    await crash(coreName);
    heal(node);
    await untilDrained(node);
    await client.expectMessage("1");
    await client.expectMessage("2");
    await client.expectNothing();
  });

  test("comes once at QoS 2, though the core crashes before it hears that the node has it", async () => {
    const topic = "parking/once";
    const { node, client, publisher } = await meet(topic);
    cut(node);
    await publishOne(publisher, topic, "1", 2);
    let forwarded = 0;
    inject(node, async (forward) => {
      const answer = await forward();
      if (forwarded++ === 0) await crash(coreName);
      return answer;
    });
    await untilDrained(node);
    expect(forwarded).toBeGreaterThan(1);
    await client.expectMessage("1", { qos: 2 });
    await client.expectNothing();
  });

  test("[G6] is refused when there is no room to park it", async () => {
    const topic = "parking/full";
    const { node, client, publisher } = await meet(topic);
    cut(node);
    await publishOne(publisher, topic, "1", 1);
    const total = { node, lastSeq: 1, since: Date.now(), messages: 1, bytes: limits.parkedBytesMax };
    vi.spyOn(ParkedStore.prototype, "totals").mockReturnValue([total]);
    await crash(coreName);
    publisher.send(publish(topic, "2", 1, { messageId: 1 }));
    await publisher.expect("puback", { messageId: 1, reasonCode: 0x97 });
    heal(node);
    await untilDrained(node);
    await publishAndWait(publisher, topic, "3");
    await client.expectMessage("1");
    await client.expectMessage("3");
    await client.expectNothing();
  });
});

describe("[G1] a share group's message", () => {
  const shared = "$share/g/";

  test("goes to a member whose node can be reached, and is not parked", async () => {
    const topic = "parking/group/two";
    const { node, client, publisher } = await meet(shared + topic);
    const other = await converse(newNode(), durable);
    await subscribe(other, shared + topic);
    cut(node);
    for (const payload of ["1", "2", "3", "4"]) {
      await publishOne(publisher, topic, payload, 1);
      await other.expectMessage(payload);
    }
    expect(await parkedFor(node)).toBe(0);
    heal(node);
    await client.expectNothing();
  });

  test("is parked when there is no other member", async () => {
    const topic = "parking/group/one";
    const { node, client, publisher } = await meet(shared + topic);
    cut(node);
    await publishOne(publisher, topic, "1", 1);
    expect(await parkedFor(node)).toBe(1);
    heal(node);
    await untilDrained(node);
    await client.expectMessage("1");
  });

  test("goes to another member when the one that it was parked for has left", async () => {
    const topic = "parking/group/left";
    const { node, client, publisher } = await meet(shared + topic);
    cut(node);
    await publishOne(publisher, topic, "1", 1);
    client.send({ cmd: "unsubscribe", messageId: 1, unsubscriptions: [shared + topic] });
    await client.expect("unsuback", { messageId: 1 });
    const other = await converse(newNode(), durable);
    await subscribe(other, shared + topic);
    heal(node);
    await untilDrained(node);
    await other.expectMessage("1");
    await client.expectNothing();
  });
});

test("[G1] one record that a node cannot take is refused, and the others of its batch are not", async () => {
  const topic = "parking/poison";
  const { node, client, publisher } = await meet(topic);
  const { client: witness } = await meet(topic);
  inject(node, async (forward) => ((await forward()) as Uint8Array).map((_, index) => (index === 0 ? 0x83 : 0)));
  publisher.send(publish(topic, "1", 1, { messageId: 1 }), publish(topic, "2", 1, { messageId: 2 }));
  await publisher.expect("puback", { messageId: 1, reasonCode: 0x83 });
  await publisher.expect("puback", { messageId: 2, reasonCode: 0 });
  for (const each of [client, witness]) await each.expectMessage("1");
  expect(await parkedFor(node)).toBe(0);
});

test("[G1] an overloaded node holds acknowledgements, for as long as it is", async () => {
  const topic = "parking/overload";
  const { node, client, publisher } = await meet(topic);
  let calls = 0;
  inject(node, () => {
    calls++;
    return Promise.reject(Object.assign(new Error("too many calls"), { overloaded: true }));
  });
  publisher.send(publish(topic, "1", 1, { messageId: 1 }));
  // Longer than an unreachable node would be tried.
  await vi.waitUntil(() => calls > limits.attemptsMax, patience);
  publisher.send(publish(topic, "QoS 0"));
  await publisher.expectNothing();
  expect(await parkedFor(node)).toBe(0);
  heal(node);
  await publisher.expect("puback", { messageId: 1, reasonCode: 0 });
  await client.expectMessage("1");
  await client.expectNothing();
});

test("[G1] [G2] a core that cannot be reached holds acknowledgements, in order", async () => {
  const topic = "parking/core";
  const { client, publisher } = await meet(topic);
  const prototype = Coordinator.prototype as unknown as Record<"route", (...args: unknown[]) => Promise<unknown>>;
  const { route } = prototype;
  let calls = 0;
  let isUp = false;
  vi.spyOn(prototype, "route").mockImplementation(function (this: unknown, ...args) {
    calls++;
    return isUp ? route.apply(this, args) : Promise.reject(new Error("cut"));
  });
  publisher.send(publish(topic, "1", 1, { messageId: 1 }));
  await vi.waitUntil(() => calls > limits.attemptsMax, patience);
  publisher.send(publish(topic, "2", 1, { messageId: 2 }));
  await publisher.expectNothing();
  isUp = true;
  await publisher.expect("puback", { messageId: 1, reasonCode: 0 });
  await publisher.expect("puback", { messageId: 2, reasonCode: 0 });
  await client.expectMessage("1");
  await client.expectMessage("2");
  await client.expectNothing();
});
