// How a node reads retained messages for its clients: how fast, how many at once, in turns, and what happens meanwhile.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Coordinator } from "../../durable-objects/coordinator/coordinator.ts";
import { joinRecords, publishRecord, type CoordinatorRpc } from "../../durable-objects/rpc.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import { limits } from "../../mqtt/limits.ts";
import { messageBytes } from "../../mqtt/message.ts";
import type { Message } from "../../mqtt/message.ts";
import { messageIdOf } from "../../mqtt/message-id-set.ts";
import { converse, coreStub, durable, newNode, publish, subscribe } from "./conversation.ts";
import type { Conversation } from "./conversation.ts";
import { patience } from "../support/patience.ts";

/** The pages that were asked for, by filter, when, and how many are under way. */
let asked: { filter: string; after: string | undefined; at: number }[];
let underWay: number;
/** What a call meets. */
let fault: (filter: string) => Promise<void>;

const usual = { ...limits };

beforeEach(() => {
  asked = [];
  underWay = 0;
  fault = async () => {};
  const prototype = Coordinator.prototype as unknown as Record<"retained", CoordinatorRpc["retained"]>;
  const original = prototype.retained;
  vi.spyOn(prototype, "retained").mockImplementation(async function (this: unknown, ...args) {
    asked.push({ filter: args[0], after: args[1], at: Date.now() });
    underWay++;
    try {
      await fault(args[0]);
      return await original.apply(this, args);
    } finally {
      underWay--;
    }
  });
});

afterEach(() => {
  Object.assign(limits, usual);
  vi.restoreAllMocks();
});

/** Calls wait until it is called. */
function holdPages(): () => void {
  const { promise, resolve } = Promise.withResolvers<void>();
  fault = () => promise;
  return resolve;
}

let kept = 0;

/** Retains a message on each of these topics. */
async function retain(...topics: string[]): Promise<Message[]> {
  const rest = { qos: 2, retain: true, properties: new Uint8Array(), expiresAt: 0, from: "test" } as const;
  const messages = topics.map((topic) => {
    const id = messageIdOf("4f1c09d2a6b3", kept++);
    return { id, topic, payload: new TextEncoder().encode(topic), ...rest };
  });
  const records = messages.map((message) => publishRecord(new ByteWriter(), { message, delaySeconds: 0, only: "" }));
  const bytes = records.reduce((sum, { length }) => sum + length, 0);
  await coreStub().route(newNode(), { term: 0, id: 1 }, joinRecords(records, bytes));
  return messages;
}

function numbered(root: string, count: number): string[] {
  return Array.from({ length: count }, (_, number) => `${root}/${String(number).padStart(3, "0")}`);
}

async function expectMessages(client: Conversation, payloads: readonly string[]): Promise<void> {
  for (const payload of payloads) await client.expectMessage(payload, { qos: 0, retain: true });
}

/** Takes so many messages at QoS 1 and acknowledges them. @returns their payloads. */
async function take(client: Conversation, count: number): Promise<string[]> {
  const payloads: string[] = [];
  while (payloads.length < count) {
    const { messageId, payload } = await client.expect("publish", { qos: 1 });
    client.send({ cmd: "puback", messageId: messageId! });
    payloads.push(payload.toString());
  }
  return payloads;
}

/** Pages of ten messages, one in so long a time at QoS 0 when so many have come at once. */
async function retainForPages(topics: readonly string[], pagesAhead: number, pageMs: number): Promise<void> {
  const messages = await retain(...topics);
  const page = messages.slice(0, 10).reduce((sum, message) => sum + messageBytes(message), 0);
  const pace = { retainedQos0BytesPerMsMax: page / pageMs, retainedQos0BytesAheadMax: page * pagesAhead };
  Object.assign(limits, { pageMessagesMax: 10, ...pace });
}

test("[G6] at QoS 0 some pages come at once, and the clients of a node share them", async () => {
  // The third page comes when the test is long over.
  await retainForPages(numbered("fast", 25), 1.2, 600_000);
  const node = newNode();
  const first = await converse(node);
  await subscribe(first, "fast/#", { qos: 0 });
  await expectMessages(first, numbered("fast", 20));
  await first.expectNothing();
  expect(asked).toHaveLength(2);
  const second = await converse(node);
  await subscribe(second, "fast/#", { qos: 0 });
  await expectMessages(second, numbered("fast", 10));
  await second.expectNothing();
  expect(asked).toHaveLength(3);
  await Promise.all([first.drop(), second.drop()]);
});

test("[G6] at QoS 0 the next page is not read before the client can have taken the last", async () => {
  const topics = numbered("slow", 25);
  const pageMs = 1000;
  await retainForPages(topics, 0, pageMs);
  const client = await converse(newNode());
  await subscribe(client, "slow/#", { qos: 0 });
  await expectMessages(client, topics);
  await client.expectNothing();
  const pauses = asked.slice(1).map(({ at }, index) => at - asked[index]!.at);
  expect(pauses).toHaveLength(2);
  // The clocks of two objects differ by a few milliseconds.
  for (const pause of pauses) expect(pause).toBeGreaterThan(pageMs * 0.95);
});

test("[G6] a node asks for few pages at once, and its clients take turns", async () => {
  Object.assign(limits, { pageMessagesMax: 2 });
  const roots = Array.from({ length: 3 * limits.retainedPagesUnderWayMax }, (_, index) => `turn/${index}`);
  for (const root of roots) await retain(...numbered(root, 3));
  const release = holdPages();
  const node = newNode();
  const clients = await Promise.all(roots.map(() => converse(node)));
  for (const [index, client] of clients.entries()) {
    await subscribe(client, `${roots[index]}/#`, { qos: 0 });
    await client.expectNothing();
    expect(underWay).toBeLessThanOrEqual(limits.retainedPagesUnderWayMax);
  }
  expect(underWay).toBe(limits.retainedPagesUnderWayMax);
  release();
  for (const [index, client] of clients.entries()) await expectMessages(client, numbered(roots[index]!, 3));
  expect(asked.map(({ after }) => after === undefined)).toEqual([...roots.map(() => true), ...roots.map(() => false)]);
});

test("[G1] what is published while a page is under way is not dropped for it", async () => {
  const queueMax = 1000;
  const window = 10;
  const [topics, live] = [numbered("room", limits.pageMessagesMax), numbered("live", 700)];
  expect(topics.length + live.length - window).toBeGreaterThan(queueMax);
  await retain(...topics);
  const release = holdPages();
  const client = await converse(newNode(), {
    ...durable,
    properties: { ...durable.properties, receiveMaximum: window },
  });
  await subscribe(client, ["room/#", "live"], { qos: 1 });
  // 3.1.1, whose clients have no Receive Maximum to keep to.
  const publisher = await converse(newNode(), { version: 4 });
  publisher.send(...live.map((payload, index) => publish("live", payload, 1, { messageId: index + 1 })));
  for (const [index] of live.entries()) await publisher.expect("puback", { messageId: index + 1 });
  expect(underWay).toBe(1);
  release();
  expect(await take(client, live.length + topics.length)).toEqual([...live, ...topics]);
  await client.expectNothing();
});

test("a read that the core did not answer is made again, for those who are still there", async () => {
  Object.assign(limits, { attemptsMax: 2, retryLastMs: 1000 });
  await retain("failed/1");
  const node = newNode();
  const filtersAsked = (from = 0): string[] => asked.slice(from).map(({ filter }) => filter);
  const { promise: held, resolve: release } = Promise.withResolvers<void>();
  // What is made again waits until one has left, however long that takes.
  fault = async (filter) => {
    if (filtersAsked().filter((each) => each === filter).length > 2) return held;
    throw new Error("cut");
  };
  const [stays, leaves] = [await converse(node), await converse(node)];
  await subscribe(stays, "failed/1", { qos: 0 });
  await subscribe(leaves, "failed/+", { qos: 0 });
  await vi.waitUntil(() => filtersAsked().filter((each) => each === "failed/+").length >= 2, patience);
  await leaves.leave();
  const { length } = asked;
  release();
  await stays.expectMessage("failed/1");
  await stays.expectNothing();
  expect(filtersAsked().filter((each) => each === "failed/1")).toHaveLength(3);
  expect(filtersAsked(length)).not.toContain("failed/+");
});
