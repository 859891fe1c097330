import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { ShareGroup } from "../../cluster/shared-sub.ts";
import { Answer, Forwarder } from "../../durable-objects/coordinator/forwarder.ts";
import { Metrics } from "../../durable-objects/metrics.ts";
import { readForwarded, type NodeRpc } from "../../durable-objects/rpc.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import { writeMessage, type Message } from "../../mqtt/message.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";

const [stale, fresh] = ["node-0@local.emqxcl", "node-1@local.emqxcl"];
const key = "$share/g/t";

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

/** A group of a core's nodes: whoever `has` a member takes a message, the others say that they have none. */
function meet(...has: string[]) {
  const group = new ShareGroup(10);
  const asked: string[] = [];
  const nodeAt = (node: string): NodeRpc => {
    const forward = async (batch: Uint8Array): Promise<Uint8Array> => {
      const records = [...readForwarded(batch)];
      for (const _ of records) asked.push(node);
      return new Uint8Array(records.map(() => (has.includes(node) ? 0 : ReasonCode.NoMatchingSubscribers)));
    };
    return { forward } as Partial<NodeRpc> as NodeRpc;
  };
  const forwarder = new Forwarder({
    parked: { totals: () => [] } as never,
    down: [],
    metrics: new Metrics(),
    strategy: "round_robin",
    nodeAt,
    ringAt: () => {},
    passOn: async () => false,
    handleReach: () => {},
    retryLastMs: () => 1000,
  });
  const publish = (): Promise<Uint8Array> => {
    const none = new Uint8Array();
    const fields = { id: "1", topic: "t", payload: none, properties: none, from: "c", retain: false, expiresAt: 0 };
    const message: Message = { ...fields, qos: 1 };
    const writer = new ByteWriter();
    writeMessage(writer, message);
    const answer = new Answer();
    const routed = { node: stale, message, bytes: writer.take(), answer, index: answer.add() };
    forwarder.forwardToGroup({ key, group }, routed);
    return answer.whenComplete();
  };
  return { group, asked, publish };
}

test("[G1] a share group's message goes to a node that has a member, though another is said to have one connected", async () => {
  const { group, asked, publish } = meet(fresh);
  group.set(stale, 1);
  group.set(fresh, 0);
  const answered = publish();
  await vi.advanceTimersByTimeAsync(1000);
  expect([...(await answered)]).toEqual([ReasonCode.Success]);
  expect(asked).toEqual([stale, fresh]);
});

test("[G1] it waits while the only node that is known has no member any more", async () => {
  const { group, asked, publish } = meet(fresh);
  group.set(stale, 1);
  const answered = publish();
  await vi.advanceTimersByTimeAsync(1000);
  expect(asked.length).toBeLessThan(8);
  group.set(fresh, 0);
  group.delete(stale);
  await vi.advanceTimersByTimeAsync(1000);
  expect([...(await answered)]).toEqual([ReasonCode.Success]);
  expect(asked.at(-1)).toBe(fresh);
});

test("it is refused when that does not end", async () => {
  const { group, asked, publish } = meet();
  group.set(stale, 1);
  const answered = publish();
  await vi.advanceTimersByTimeAsync(60_000);
  expect([...(await answered)]).toEqual([ReasonCode.UnspecifiedError]);
  expect(asked).toHaveLength(16);
});
