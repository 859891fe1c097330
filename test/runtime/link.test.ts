// A link in one object: both ends of a socket, and nothing between them.

import { RpcTarget } from "cloudflare:workers";
import { createHmac } from "node:crypto";
import { afterEach, expect, onTestFinished, test, vi } from "vitest";

import { acceptConversation, dialConversation, type Prover } from "../../cluster/link-proof.ts";
import { Link, type LinkEnd, type LinkEvents } from "../../durable-objects/coordinator/link.ts";
import { limits } from "../../mqtt/limits.ts";
import { patience } from "../support/patience.ts";

class Target extends RpcTarget {
  async wait(ms: number): Promise<string> {
    await scheduler.wait(ms);
    return "waited";
  }
}

function prover(self: string): Prover {
  const sign = (text: string): string => createHmac("sha256", "a cookie").update(text).digest("hex");
  const verify = (text: string, proof: string): boolean => sign(text) === proof;
  return { version: 1, cluster: "emqxcl", self, nonce: crypto.randomUUID(), sign, verify };
}

const dialer = "core@eu.example.com";
const acceptor = "core@us.example.com";

/** A socket's two ends, linked. */
async function linked(): Promise<{ near: Link; far: Link; ends: LinkEnd[] }> {
  const { 0: client, 1: server } = new WebSocketPair();
  client.accept();
  server.accept();
  const ends: LinkEnd[] = [];
  const targetFor = (): object => new Target();
  let count = 0;
  return new Promise((resolve) => {
    const events: LinkEvents = {
      proved: () => undefined,
      up: () => void (++count === 2 && resolve({ near, far, ends })),
      down: (_, end) => ends.push(end),
    };
    const far = new Link(server, {
      dialer: "peer",
      conversation: acceptConversation(prover(acceptor), () => undefined),
      targetFor,
      events,
    });
    const near = new Link(client, {
      dialer: "self",
      conversation: dialConversation(prover(dialer), acceptor),
      targetFor,
      events,
    });
    far.start();
    near.start();
  });
}

afterEach(() => vi.unstubAllGlobals());

test("[G7] has a timer while it is proved and while calls are under way, and none when it is idle", async () => {
  const pending = new Set<unknown>();
  let looks = 0;
  const { setTimeout: set, clearTimeout: clear } = globalThis;
  vi.stubGlobal("setTimeout", (callback: () => void, ms: number) => {
    const timer = set(() => {
      pending.delete(timer);
      callback();
    }, ms);
    pending.add(timer);
    if (ms === limits.linkSilentMs) looks++;
    return timer;
  });
  vi.stubGlobal("clearTimeout", (timer: Parameters<typeof clear>[0]) => {
    pending.delete(timer);
    clear(timer);
  });
  const proved = linked();
  expect(pending.size).toBe(2);
  const { near, far, ends } = await proved;
  onTestFinished(() => near.close("done"));
  expect(pending.size).toBe(0);
  const calls = [near.call("wait", [10]), near.call("wait", [20])];
  expect(pending.size).toBe(1);
  expect(await Promise.all(calls)).toEqual(["waited", "waited"]);
  // It looks once more, sees nothing to wait for, and says nothing.
  await vi.waitUntil(() => pending.size === 0, patience);
  expect(looks).toBe(1);
  far.probe();
  expect(pending.size).toBe(1);
  await vi.waitUntil(() => pending.size === 0, patience);
  expect(looks).toBe(2);
  expect(ends).toEqual([]);
});
