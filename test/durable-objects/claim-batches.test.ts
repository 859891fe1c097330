import { describe, expect, test, vi } from "vitest";

import { ClaimBatches } from "../../durable-objects/node/claim-batches.ts";
import type { GrantedClaim } from "../../durable-objects/rpc.ts";
import { limits } from "../../mqtt/limits.ts";
import { patience } from "../support/patience.ts";

/** A core that numbers claims; its calls are written down, and answered when the test says so. */
class Core {
  readonly calls: string[] = [];
  readonly #held: (() => void)[] = [];
  #epoch = 0;
  /** Client ids that it does not own. */
  readonly others = new Set<string>();
  readonly batches = new ClaimBatches({
    claimAll: async (clientIds) => {
      this.calls.push(clientIds.join(" "));
      await new Promise<void>((resolve) => this.#held.push(resolve));
      if (this.isDown) throw new Error("cut");
      return clientIds.map((clientId) => (this.others.has(clientId) ? undefined : this.#claim()));
    },
    claim: async (clientId) => {
      this.calls.push(`alone ${clientId}`);
      return this.#claim();
    },
  });
  isDown = false;

  #claim(): GrantedClaim {
    return { epoch: ++this.#epoch, since: this.#epoch, holders: [], away: [] };
  }

  async answer(): Promise<void> {
    await turn();
    this.#held.shift()!();
    await turn();
  }
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}

describe("claims", () => {
  test("of one turn go in one call, and so do those that come while it is under way", async () => {
    const core = new Core();
    const first = ["a", "b"].map((clientId) => core.batches.claim(clientId));
    await turn();
    const second = ["c", "d"].map((clientId) => core.batches.claim(clientId));
    await core.answer();
    await core.answer();
    expect(core.calls).toEqual(["a b", "c d"]);
    const epochs = (await Promise.all([...first, ...second])).map(({ epoch }) => epoch);
    expect(epochs).toEqual([1, 2, 3, 4]);
    const later = core.batches.claim("e");
    await core.answer();
    expect((await later).epoch).toBe(5);
  });

  test("do not wait for a call that is not answered", async () => {
    const core = new Core();
    const [a, b] = [core.batches.claim("a"), core.batches.claim("b")];
    await turn();
    const later = ["c", "d"].map((clientId) => core.batches.claim(clientId));
    await vi.waitUntil(() => core.calls.length === 2, patience);
    expect(core.calls).toEqual(["a b", "c d"]);
    await core.answer();
    await core.answer();
    await Promise.all([a, b, ...later]);
    const next = core.batches.claim("e");
    await core.answer();
    await next;
    expect(core.calls).toEqual(["a b", "c d", "e"]);
  });

  test("that cannot be answered at once are made alone, the others do not wait for them", async () => {
    const core = new Core();
    core.others.add("b");
    const claims = ["a", "b", "c"].map((clientId) => core.batches.claim(clientId));
    await core.answer();
    expect((await Promise.all(claims)).map(({ epoch }) => epoch)).toEqual([1, 3, 2]);
    expect(core.calls).toEqual(["a b c", "alone b"]);
  });

  test("are made alone when their call has failed", async () => {
    const core = new Core();
    core.isDown = true;
    const claims = ["a", "b"].map((clientId) => core.batches.claim(clientId));
    await core.answer();
    await Promise.all(claims);
    expect(core.calls).toEqual(["a b", "alone a", "alone b"]);
  });

  test("[G6] are so many a call at most, and their client ids so long", async () => {
    const core = new Core();
    const many = Array.from({ length: limits.claimsPerCallMax + 1 }, (_, index) => core.batches.claim(`${index}`));
    await core.answer();
    await core.answer();
    await Promise.all(many);
    expect(core.calls.map((call) => call.split(" ").length)).toEqual([limits.claimsPerCallMax, 1]);
    const long = "x".repeat(limits.claimCharsPerCallMax);
    const both = ["a", long, "b"].map((clientId) => core.batches.claim(clientId));
    for (let i = 0; i < 3; i++) await core.answer();
    await Promise.all(both);
    expect(core.calls.slice(2)).toEqual(["a", long, "b"]);
  });
});
