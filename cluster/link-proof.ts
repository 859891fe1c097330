/**
 * How two cores prove to one another that they hold the same cookie, before anything else is said on a link:
 *
 *     dialer                                                  acceptor
 *     ["hello", version, cluster, from, to, nonce]     ->
 *                                                      <-     ["challenge", nonce]
 *     ["proof", HMAC-SHA256(cookie, transcript)]       ->
 *                                                      <-     ["proof", HMAC-SHA256(cookie, transcript)]
 *
 * A transcript names who proves (dialer or acceptor), the version, the cluster, both names and both nonces, so no proof
 * is good for another connection, another pair of cores or the other direction. The dialer proves first: it has chosen
 * whom to talk to, and whoever merely connects gets nothing to try cookies against.
 *
 * A conversation is a generator: it takes the other side's frames and yields its own, and throws `Refused`.
 * (Erlang's distribution does the same with a challenge in both directions: "Distribution Protocol" in ERTS, 13.2.)
 */
import { faultOfNodeName, type NodeName } from "./name.ts";

/** Why a core does not link, as it is told to the other side. */
export type LinkRefusal =
  | "bad_frame"
  | "bad_version"
  | "bad_cluster_name"
  | "bad_node_name"
  | "bad_cookie"
  | "no_cookie"
  | "tcp_not_allowed"
  | "already_linked"
  | "timeout";

export class Refused extends Error {
  readonly reason: LinkRefusal;

  constructor(reason: LinkRefusal) {
    super(reason);
    this.reason = reason;
  }
}

/** What one side brings to the conversation. */
export interface Prover {
  readonly version: number;
  readonly cluster: string;
  readonly self: NodeName;
  /** Fresh and unpredictable. */
  readonly nonce: string;
  /** HMAC of a text by the cookie. */
  sign(text: string): string;
  /** Whether the proof is the text's, in constant time. */
  verify(text: string, proof: string): boolean;
}

/** Frames out, frames in; undefined: nothing to send, the other side speaks first. */
export type Conversation = Generator<string | undefined, Proved, string>;

export interface Proved {
  readonly peer: NodeName;
  /** Still to be sent, when the link is wanted: it is up for the other side then. */
  readonly last: string | undefined;
}

export function* dialConversation(prover: Prover, peer: NodeName): Conversation {
  const { version, cluster, self, nonce } = prover;
  const hello = [String(version), cluster, self, peer, nonce];
  const [challenge] = read(yield frame("hello", ...hello), "challenge", 1);
  const [proof = ""] = read(yield frame("proof", prover.sign(transcript("dialer", hello, challenge))), "proof", 1);
  if (!prover.verify(transcript("acceptor", hello, challenge), proof)) throw new Refused("bad_cookie");
  return { peer, last: undefined };
}

/** @param refuse what else speaks against a dialer that calls itself so: it has not proved it yet. */
export function* acceptConversation(prover: Prover, refuse: (from: NodeName) => LinkRefusal | undefined): Conversation {
  // Of a later version's hello only the first field is known.
  const hello = read(yield undefined, "hello", 1);
  const [version, cluster, from = "", to, nonce] = hello;
  // Asked first, so that who is refused for whatever reason has a name.
  const reason = refuse(from);
  if (version !== String(prover.version)) throw new Refused("bad_version");
  if (nonce === undefined) throw new Refused("bad_frame");
  if (cluster !== prover.cluster) throw new Refused("bad_cluster_name");
  if (to !== prover.self || from === prover.self || faultOfNodeName(from) !== undefined)
    throw new Refused("bad_node_name");
  if (reason !== undefined) throw new Refused(reason);
  const [proof = ""] = read(yield frame("challenge", prover.nonce), "proof", 1);
  if (!prover.verify(transcript("dialer", hello, prover.nonce), proof)) throw new Refused("bad_cookie");
  return { peer: from, last: frame("proof", prover.sign(transcript("acceptor", hello, prover.nonce))) };
}

function transcript(prover: "dialer" | "acceptor", hello: readonly string[], challenge: string | undefined): string {
  return JSON.stringify(["trellis-link", prover, ...hello, challenge]);
}

function frame(kind: string, ...fields: readonly string[]): string {
  return JSON.stringify([kind, ...fields]);
}

function read(text: string, kind: string, fieldsMin: number): string[] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Refused("bad_frame");
  }
  if (!Array.isArray(value) || value.length <= fieldsMin) throw new Refused("bad_frame");
  const [first, ...fields] = value as unknown[];
  if (first !== kind || !fields.every((field) => typeof field === "string")) throw new Refused("bad_frame");
  return fields;
}
