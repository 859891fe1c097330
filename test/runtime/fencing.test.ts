// A client comes to a node while the one that has its session cannot be reached: it is let in without it, and that one
// drops what it has when it is there again.

import { describe, expect, test, vi } from "vitest";
import { Coordinator } from "../../durable-objects/coordinator/coordinator.ts";
import {
  converse,
  coreName,
  crash,
  durable,
  knock,
  newNode,
  publishAndWait,
  rows,
  sessionRow,
  sleep,
  subscribe,
} from "./conversation.ts";
import type { Conversation } from "./conversation.ts";
import { cut, cutForward, heal, inject, parkedFor, untilDrained, useFaults } from "./faults.ts";
import { patience } from "../support/patience.ts";

useFaults();

/** A client on a node, subscribed to a topic of its own. */
async function meet(name: string) {
  const node = newNode();
  const clientId = `client-of-${node}`;
  const client = await converse(node, { ...durable, clientId });
  await subscribe(client, `fencing/${name}`);
  return { node, client, clientId, topic: `fencing/${name}`, publisher: await converse(newNode()) };
}

/** What the nodes have of the client's session. */
async function sessionsOf(clientId: string, nodes: readonly string[]) {
  const found = await Promise.all(nodes.map((node) => sessionRow(node, clientId)));
  return found.map((row) => (row === undefined ? "" : row.connected === 1 ? "connected" : "away"));
}

async function expectEnded(old: Conversation): Promise<void> {
  await old.expect("disconnect", { reasonCode: 0x8e });
  await old.expectClosed();
}

describe("[G4] the old node cannot be reached", () => {
  test("the client gets a new session; the old node ends the old one when it is there again", async () => {
    const { node: old, client, clientId, topic, publisher } = await meet("ended");
    const taker = newNode();
    cut(old);
    const taken = await converse(taker, { ...durable, clientId });
    expect(taken.connack.sessionPresent).toBe(false);
    expect(await parkedFor(old)).toBe(1);
    await subscribe(taken, topic);
    heal(old);
    await untilDrained(old);
    await expectEnded(client);
    expect(await sessionRow(old, clientId)).toBeUndefined();
    await publishAndWait(publisher, topic, "1");
    await taken.expectMessage("1");
    await taken.expectNothing();
    await sleep(taker);
    expect(await sessionsOf(clientId, [old, taker])).toEqual(["", "connected"]);
  });

  test("one that the core reaches is asked again, and hands the session over", async () => {
    const { node: old, client, clientId } = await meet("reached");
    let isBack = false;
    inject(old, (call, name) => {
      isBack ||= name === "forward";
      return isBack ? call() : Promise.reject(new Error("cut"));
    });
    const taken = await converse(newNode(), { ...durable, clientId });
    expect(taken.connack.sessionPresent).toBe(true);
    await expectEnded(client);
  });

  test("one that only the core can reach is told at once", async () => {
    const { node: old, client, clientId } = await meet("told");
    const taker = newNode();
    // What the core forwards arrives; what the taker asks does not.
    inject(old, (call, name) => (name === "forward" ? call() : Promise.reject(new Error("cut"))));
    const taken = await converse(taker, { ...durable, clientId });
    expect(taken.connack.sessionPresent).toBe(false);
    await expectEnded(client);
    expect(await parkedFor(old)).toBe(0);
    expect(await sessionRow(old, clientId)).toBeUndefined();
  });

  test("one that is overloaded is not given up: the client is to come again", async () => {
    const { node: old, client, clientId, topic, publisher } = await meet("overloaded");
    inject(old, () => Promise.reject(Object.assign(new Error("too many calls"), { overloaded: true })));
    const refused = await knock(newNode(), { ...durable, clientId });
    await refused.expect("connack", { reasonCode: 0x88 });
    heal(old);
    await publishAndWait(publisher, topic, "1");
    await client.expectMessage("1");
  });

  test("one that only the core cannot reach is not given up, and keeps the session for when it can", async () => {
    const { node: old, client, clientId, topic, publisher } = await meet("parked");
    cutForward(old);
    await publishAndWait(publisher, topic, "1");
    const taker = newNode();
    const refused = await knock(taker, { ...durable, clientId });
    await refused.expect("connack", { reasonCode: 0x88 });
    await expectEnded(client);
    heal(old);
    const taken = await converse(taker, { ...durable, clientId });
    expect(taken.connack.sessionPresent).toBe(true);
    await taken.expectMessage("1");
  });

  test("the client comes back to it before it heard: what it has there is not resumed, but what the other has", async () => {
    const { node: old, client, clientId, topic, publisher } = await meet("back");
    cut(old);
    const taken = await converse(newNode(), { ...durable, clientId });
    await subscribe(taken, `${topic}/new`);
    heal(old);
    const back = await converse(old, { ...durable, clientId });
    expect(back.connack.sessionPresent).toBe(true);
    await expectEnded(client);
    await expectEnded(taken);
    await untilDrained(old);
    await publishAndWait(publisher, topic, "to the stale session");
    await publishAndWait(publisher, `${topic}/new`, "1");
    await back.expectMessage("1");
    await back.expectNothing();
  });

  test("the client comes back to it when its new session has ended: it gets a new one, which lasts", async () => {
    const { node: old, client, clientId } = await meet("over");
    cut(old);
    const taken = await converse(newNode(), { clientId });
    expect(taken.connack.sessionPresent).toBe(false);
    await taken.leave();
    const released = "SELECT 1 FROM claim WHERE client_id = ?";
    await vi.waitUntil(async () => (await rows(coreName, released, clientId)).length === 0, patience);
    const back = await converse(old, { ...durable, clientId });
    expect(back.connack.sessionPresent).toBe(false);
    await expectEnded(client);
    // What it is told late was meant for what it had before.
    expect(await parkedFor(old)).toBe(1);
    heal(old);
    await untilDrained(old);
    await back.expectNothing();
  });

  test("it claims and crashes before it dropped what it has: nobody gets that", async () => {
    const { node: old, client, clientId, topic } = await meet("stale");
    cut(old);
    const taken = await converse(newNode(), { ...durable, clientId });
    await subscribe(taken, `${topic}/new`);
    const prototype = Coordinator.prototype as unknown as Record<"claimAll", (...args: unknown[]) => Promise<unknown>>;
    const { claimAll } = prototype;
    let claims = 0;
    let hasCrashed = false;
    vi.spyOn(prototype, "claimAll").mockImplementation(async function (this: unknown, ...args) {
      const result = await claimAll.apply(this, args);
      if (claims++ > 0) return result;
      await crash(old);
      hasCrashed = true;
      return result;
    });
    await knock(old, { ...durable, clientId });
    await vi.waitUntil(() => hasCrashed, patience);
    await vi.waitUntil(async () => (await sessionRow(old, clientId))?.connected === 0, patience);
    cutForward(old);
    const third = newNode();
    const back = await converse(third, { ...durable, clientId });
    expect(back.connack.sessionPresent).toBe(true);
    const subscriptions = await rows<{ filter: string }>(third, "SELECT filter FROM subscription");
    expect(subscriptions).toEqual([{ filter: `${topic}/new` }]);
    expect(await sessionRow(old, clientId)).toBeUndefined();
    await expect(client.next()).rejects.toThrow("closed");
  });

  test("a claim from before epochs of holders were remembered names a holder as any other", async () => {
    const { node: old, client, clientId } = await meet("legacy");
    await rows(coreName, "UPDATE claim SET holders = '' WHERE client_id = ?", clientId);
    const back = await converse(old, { ...durable, clientId });
    expect(back.connack.sessionPresent).toBe(true);
    await expectEnded(client);
    await rows(coreName, "UPDATE claim SET holders = ? WHERE client_id = ?", old, clientId);
    const taken = await converse(newNode(), { ...durable, clientId });
    expect(taken.connack.sessionPresent).toBe(true);
    await expectEnded(back);
  });

  test("two nodes claim at once: one has the client, and nothing is left elsewhere", async () => {
    const { node: old, clientId } = await meet("two");
    const takers = [newNode(), newNode()];
    cut(old);
    const knocks = await Promise.all(takers.map((node) => knock(node, { ...durable, clientId })));
    const answers = await Promise.all(
      knocks.map((each) =>
        each.next().then(
          (packet) => (packet.cmd === "connack" ? packet.reasonCode : packet.cmd),
          () => "closed",
        ),
      ),
    );
    expect(answers.filter((answer) => answer === 0)).toHaveLength(1);
    await knocks[answers.indexOf(0)]!.expectNothing();
    heal(old);
    await untilDrained(old);
    for (const node of takers) await sleep(node);
    const left = await sessionsOf(clientId, [old, ...takers]);
    expect(left.filter((each) => each !== "")).toEqual(["connected"]);
  });

  const moments = (["before", "behind"] as const).flatMap((when) =>
    (["taker", "core"] as const).map((victim) => ({ when, victim })),
  );

  test.for(moments)("the $victim crashes $when abandon: the client is let in elsewhere", async ({ when, victim }) => {
    const { node: old, client, clientId } = await meet(`${victim}-${when}`);
    const taker = newNode();
    const third = newNode();
    cut(old);
    const prototype = Coordinator.prototype as unknown as Record<"abandon", (...args: unknown[]) => Promise<unknown>>;
    const { abandon } = prototype;
    let calls = 0;
    let crashed = false;
    vi.spyOn(prototype, "abandon").mockImplementation(async function (this: unknown, ...args) {
      if (calls++ > 0) return abandon.apply(this, args);
      const end = (): Promise<void> => {
        crashed = true;
        return crash(victim === "taker" ? taker : coreName);
      };
      if (when === "before") await end();
      const result = await abandon.apply(this, args);
      if (when === "behind") await end();
      return result;
    });
    await knock(taker, { ...durable, clientId });
    await vi.waitUntil(() => crashed, patience);
    if (when === "behind" && victim === "taker") {
      const [claim] = await rows<{ holders: string }>(
        coreName,
        "SELECT holders FROM claim WHERE client_id = ?",
        clientId,
      );
      expect(claim!.holders).toContain(taker);
      expect(claim!.holders).not.toContain(old);
    }
    const back = await converse(third, { ...durable, clientId });
    // The taker may have let the client in before; the session that is there is a new one in any case.
    expect(await rows(third, "SELECT filter FROM subscription")).toEqual([]);
    heal(old);
    await vi.waitUntil(async () => (await sessionRow(old, clientId)) === undefined, patience);
    await expectEnded(client);
    await back.expectNothing();
    for (const node of [taker, third]) await sleep(node);
    expect(await sessionsOf(clientId, [old, taker, third])).toEqual(["", "", "connected"]);
  });
});
