// Nodes that cannot be reached: what their calls meet, by node. With less patience than in production.

import { afterAll, afterEach, beforeAll, beforeEach, vi } from "vitest";
import { BrokerNode } from "../../durable-objects/node/broker-node.ts";
import { limits } from "../../mqtt/limits.ts";
import { coreName, rows } from "./conversation.ts";
import { patience } from "../support/patience.ts";

/** Makes the call, or does not, and says what comes of it. */
type Fault = (call: () => Promise<unknown>, name: string) => Promise<unknown>;

const calls = [
  "forward",
  "takeOver",
  "takeOverKnown",
  "takeOverMessages",
  "takeOverDone",
  "stats",
  "clients",
  "client",
  "kick",
  "subscriptions",
] as const;

const faults = new Map<string, Fault>();

/** Lets the tests of a file use what is below. */
export function useFaults(): void {
  const usual = { ...limits };
  beforeAll(() => {
    Object.assign(limits, { attemptsMax: 4, drainRetryFirstMs: 200, holderSilentMsMax: 500 });
  });
  afterAll(() => {
    Object.assign(limits, usual);
  });
  beforeEach(() => {
    const prototype = BrokerNode.prototype as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
    for (const name of calls) {
      const original = prototype[name]!;
      vi.spyOn(prototype, name).mockImplementation(function (this: unknown, ...args) {
        const node = (this as { ctx: DurableObjectState }).ctx.id.name ?? "";
        const call = (): Promise<unknown> => original.apply(this, args);
        const fault = faults.get(node);
        return fault ? fault(call, name) : call();
      });
    }
  });
  afterEach(() => {
    faults.clear();
    vi.restoreAllMocks();
  });
}

export function inject(node: string, fault: Fault): void {
  faults.set(node, fault);
}

/** The node cannot be called, though it can call others. */
export function cut(node: string): void {
  inject(node, () => Promise.reject(new Error("cut")));
}

/** The node cannot be forwarded to. */
export function cutForward(node: string): void {
  inject(node, (call, name) => (name === "forward" ? Promise.reject(new Error("cut")) : call()));
}

export function heal(node: string): void {
  faults.delete(node);
}

/** How many messages the core has parked for the node. */
export async function parkedFor(node: string): Promise<number> {
  const [row] = await rows<{ n: number }>(
    coreName,
    "SELECT ifnull(sum(messages), 0) AS n FROM parked WHERE node = ?",
    node,
  );
  return row!.n;
}

export async function untilDrained(node: string): Promise<void> {
  // The core may crash under the question.
  const isDrained = (): Promise<boolean> =>
    parkedFor(node).then(
      (parked) => parked === 0,
      () => false,
    );
  await vi.waitUntil(isDrained, patience);
}
