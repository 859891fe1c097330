import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { PeerLink } from "../../../durable-objects/coordinator/peer-link.ts";
import type { PeerRpc } from "../../../durable-objects/rpc.ts";
import { limits } from "../../../mqtt/limits.ts";

const never = new Promise<never>(() => {});

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("scheduler", { wait: (ms: number) => new Promise((resolve) => setTimeout(resolve, ms)) });
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

function linkTo(peer: Partial<PeerRpc>) {
  const ends: string[] = [];
  const link = new PeerLink("core@b.emqxcl", {
    self: "core@a.emqxcl",
    connect: () => peer as PeerRpc,
    handleDown: (_, reason) => void ends.push(reason),
  });
  link.goUp();
  return { link, ends };
}

describe("a core that takes long over a call", () => {
  test("is there while it says so, and its answer counts", async () => {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const { link, ends } = linkTo({ reachesHere: () => promise, view: async () => [] });
    const answer = link.call((peer) => peer.reachesHere("x"));
    await vi.advanceTimersByTimeAsync(10 * limits.peerSilentMsMax);
    expect(ends).toEqual([]);
    resolve(true);
    expect(await answer).toBe(true);
    expect(vi.getTimerCount()).toBe(0);
  });

  test("is down when it does not answer at all, and whoever waits for it goes on", async () => {
    const { link, ends } = linkTo({ relay: () => never, reachesHere: () => never, view: () => never });
    const refused = link.call((peer) => peer.reachesHere("x")).catch(String);
    const relayed = link.relay(new Uint8Array(5));
    await vi.advanceTimersByTimeAsync(limits.peerSilentMsMax);
    await relayed;
    expect(ends).toEqual(["no answer came in time"]);
    await vi.advanceTimersByTimeAsync(limits.retryLastMs);
    expect(await refused).toMatch(/is down/);
    expect(vi.getTimerCount()).toBe(0);
  });
});

test("G3 G6: a core for which too much waits is down: what it has missed it is told when it is met", async () => {
  const { link, ends } = linkTo({ relay: () => never, view: async () => [] });
  const record = new Uint8Array(limits.batchBytesMax);
  const relays = Array.from({ length: 64 }, () => link.relay(record));
  await vi.advanceTimersByTimeAsync(1);
  expect(ends).toEqual(["too much waits for it"]);
  await Promise.all(relays);
});
