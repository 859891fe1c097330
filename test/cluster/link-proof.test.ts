import { createHmac } from "node:crypto";
import { describe, expect, test } from "vitest";

import {
  acceptConversation,
  dialConversation,
  Refused,
  type Conversation,
  type LinkRefusal,
  type Prover,
} from "../../cluster/link-proof.ts";

const eu = "core@eu.example.com";
const us = "core@us.example.com";

function prover(self: string, changed: Partial<Prover> & { readonly cookie?: string } = {}): Prover {
  const { cookie = "a cookie", ...rest } = changed;
  const sign = (text: string): string => createHmac("sha256", cookie).update(text).digest("hex");
  const verify = (text: string, proof: string): boolean => sign(text) === proof;
  return { version: 1, cluster: "emqxcl", self, nonce: `nonce of ${self}`, sign, verify, ...rest };
}

interface Outcome {
  /** What the dialer and the acceptor make of it: a name, or why not. */
  readonly dialer: string;
  readonly acceptor: string;
  /** The frames, the dialer's and the acceptor's by turns. */
  readonly frames: readonly string[];
}

/** Plays both sides; `tamper` changes the frame with this number. */
function play(
  dialer: Conversation,
  acceptor: Conversation,
  tamper: (frame: string, number: number) => string = (frame) => frame,
): Outcome {
  const frames: string[] = [];
  const ends: Record<"dialer" | "acceptor", string> = { dialer: "", acceptor: "" };
  const step = (name: "dialer" | "acceptor", conversation: Conversation, frame: string): string | undefined => {
    try {
      const { done, value } = conversation.next(frame);
      if (!done) return value;
      ends[name] = value.peer;
      return value.last;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      ends[name] = error.reason;
      return undefined;
    }
  };
  step("acceptor", acceptor, "");
  for (let frame = step("dialer", dialer, ""), turn = 0; frame !== undefined; turn++) {
    frames.push(tamper(frame, turn));
    frame = turn % 2 === 0 ? step("acceptor", acceptor, frames.at(-1)!) : step("dialer", dialer, frames.at(-1)!);
  }
  return { ...ends, frames };
}

const allow = (): undefined => {};

describe("[G9] the proof of a link", () => {
  test("names both sides to one another, in four frames", () => {
    const { frames, ...ends } = play(dialConversation(prover(eu), us), acceptConversation(prover(us), allow));
    expect(ends).toEqual({ dialer: us, acceptor: eu });
    expect(frames.map((frame) => (JSON.parse(frame) as string[]).slice(0, -1))).toEqual([
      ["hello", "1", "emqxcl", eu, us],
      ["challenge"],
      ["proof"],
      ["proof"],
    ]);
    expect(frames[2]).not.toBe(frames[3]);
  });

  test.each<[string, Partial<Prover> & { cookie?: string }, LinkRefusal]>([
    ["cookie", { cookie: "another" }, "bad_cookie"],
    ["version", { version: 2 }, "bad_version"],
    ["cluster", { cluster: "other" }, "bad_cluster_name"],
    ["name", { self: "core@asia.example.com" }, "bad_node_name"],
  ])("is refused by the acceptor when its %s is another one", (_, changed, reason) => {
    const acceptor = acceptConversation(prover(us, changed), allow);
    expect(play(dialConversation(prover(eu), us), acceptor)).toMatchObject({ dialer: "", acceptor: reason });
  });

  test("is refused for what else speaks against the name, before there is a challenge", () => {
    const asked: string[] = [];
    const refuse = (from: string): LinkRefusal => {
      asked.push(from);
      return "tcp_not_allowed";
    };
    const outcome = play(dialConversation(prover(eu), us), acceptConversation(prover(us), refuse));
    expect(outcome).toMatchObject({ acceptor: "tcp_not_allowed", frames: { length: 1 } });
    expect(asked).toEqual([eu]);
  });

  test.each([0, 1, 2, 3])("fails when frame %i is changed on the way, in any field", (changed) => {
    const { frames } = play(dialConversation(prover(eu), us), acceptConversation(prover(us), allow));
    const fields = JSON.parse(frames[changed]!) as string[];
    for (const field of fields.keys()) {
      const tamper = (frame: string, number: number): string =>
        number === changed ? JSON.stringify(fields.with(field, `${fields[field]}x`)) : frame;
      const outcome = play(dialConversation(prover(eu), us), acceptConversation(prover(us), allow), tamper);
      // Whoever gets the changed frame, or what follows from it, finds out; the dialer never takes the link for proved.
      expect(outcome.dialer).not.toBe(us);
    }
  });

  test("is good for one connection: neither side's frames can be played again", () => {
    const { frames } = play(dialConversation(prover(eu), us), acceptConversation(prover(us), allow));
    const again = acceptConversation(prover(us, { nonce: "fresh" }), allow);
    again.next("");
    again.next(frames[0]!);
    expect(() => again.next(frames[2]!)).toThrow(new Refused("bad_cookie"));
    const dialer = dialConversation(prover(eu, { nonce: "fresh" }), us);
    dialer.next("");
    dialer.next(frames[1]!);
    expect(() => dialer.next(frames[3]!)).toThrow(new Refused("bad_cookie"));
  });

  test("of the dialer is no proof of the acceptor (reflection)", () => {
    const dialer = dialConversation(prover(eu), us);
    const { value: hello } = dialer.next("");
    const nonce = (JSON.parse(hello as string) as string[])[5];
    const { value: proof } = dialer.next(JSON.stringify(["challenge", nonce]));
    expect(() => dialer.next(proof as string)).toThrow(new Refused("bad_cookie"));
  });
});
