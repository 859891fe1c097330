/**
 * One WebSocket to a core of another deployment: the proof (cluster/link-proof.ts) first, then RPC (capnweb) in both
 * directions until one side closes it.
 *
 * While calls are under way and nothing comes, the peer is asked ("ping") and, when it does not answer ("pong"), the
 * link is closed: the other end may be gone without a word. A call that takes long on a peer that answers goes on. A link
 * without calls has no timer.
 */
import { RpcSession, type RpcTransport } from "capnweb";

import { Refused, type Conversation, type LinkRefusal } from "../../cluster/link-proof.ts";
import type { NodeName } from "../../cluster/name.ts";
import { limits } from "../../mqtt/limits.ts";

/** A link that is down, or cannot come up: nobody knows whether the call was made. */
export class LinkError extends Error {
  readonly reason: string;
  /** Of a call that was not made because too many are: ask less, as of a Durable Object that says so. */
  readonly overloaded: boolean;

  constructor(peer: NodeName, reason: string) {
    super(`link to ${peer}: ${reason}`);
    this.name = "LinkError";
    this.reason = reason;
    this.overloaded = reason === tooManyCalls;
  }
}

export const tooManyCalls = "too_many_calls";

/** The end of a link. `refused`: before it was up, by this core or by the peer. */
export interface LinkEnd {
  readonly reason: string;
  readonly by: "self" | "peer";
  readonly refused: boolean;
}

export interface LinkEvents {
  /** The peer has proved its name. A reason: it is refused all the same. */
  proved(link: Link, peer: NodeName): LinkRefusal | undefined;
  /** Calls can be made. */
  up(link: Link, peer: NodeName): void;
  down(link: Link, end: LinkEnd): void;
}

export interface LinkOptions {
  readonly dialer: "self" | "peer";
  readonly conversation: Conversation;
  readonly events: LinkEvents;
  /** What the peer may call: an RpcTarget. */
  targetFor(peer: NodeName): object;
}

/** The close code that goes with a reason: private use (RFC 6455, 7.4.2). */
const closeCodes = { refused: 4000, down: 4001 } as const;

/** Frames that are not part of a call; what else comes is taken for one. */
const notACall = ['["resolve",', '["reject",', '["release",', '["pull",', '["abort",'];
const answers = ['["resolve",', '["reject",'];

export class Link {
  readonly dialer: "self" | "peer";
  readonly #socket: WebSocket;
  readonly #options: LinkOptions;
  #proofTimer: ReturnType<typeof setTimeout> | undefined;
  #state: "proving" | "up" | "down" = "proving";
  #peer: NodeName = "";
  #ended: string | undefined;
  #stub: RemoteStub | undefined;

  readonly #arrived: string[] = [];
  #reader: { readonly resolve: (text: string) => void; readonly reject: (error: Error) => void } | undefined;

  #callsMade = 0;
  #callsServed = 0;
  #watch: ReturnType<typeof setTimeout> | undefined;
  /** Since the last look. */
  #heard = false;
  #asked = false;

  /** @param socket open. */
  constructor(socket: WebSocket, options: LinkOptions) {
    this.dialer = options.dialer;
    this.#socket = socket;
    this.#options = options;
  }

  /** Begins the conversation. */
  start(): void {
    this.#proofTimer = setTimeout(() => this.#refuse("timeout"), limits.linkProofMs);
    this.#socket.addEventListener("message", ({ data }) => this.#handle(data));
    this.#socket.addEventListener("close", ({ code, reason }) => {
      if (code === closeCodes.refused) this.#end({ reason, by: "peer", refused: true });
      else this.#end({ reason: reason || `closed with ${code}`, by: "peer", refused: false });
    });
    this.#socket.addEventListener("error", () => this.#lost());
    this.#converse("");
  }

  /** Calls a method of the peer's target. */
  call(method: string, args: readonly unknown[]): Promise<unknown> {
    if (this.#callsMade >= limits.linkCallsMax) return Promise.reject(new LinkError(this.#peer, tooManyCalls));
    if (charsOf(args) > limits.linkMessageCharsMax) {
      return Promise.reject(new LinkError(this.#peer, `the arguments of ${method} are too large`));
    }
    const answer = this.#make(method, args);
    this.#callsMade++;
    this.#watch ??= this.#lookLater();
    return answer.finally(() => this.#callsMade--);
  }

  async #make(method: string, args: readonly unknown[]): Promise<unknown> {
    try {
      if (this.#stub === undefined) throw new LinkError(this.#peer, "down");
      return await this.#stub[method]?.(...args);
    } catch (error) {
      throw this.#ended === undefined ? error : new LinkError(this.#peer, this.#ended);
    }
  }

  /** Closes the link soon if the peer is not there any more. */
  probe(): void {
    if (this.#state === "up" && !this.#asked) this.#ask();
  }

  close(reason: string): void {
    this.#end({ reason, by: "self", refused: false });
  }

  // ---- frames -----------------------------------------------------------------------------------------------------------

  #handle(data: unknown): void {
    if (this.#state === "down") return;
    this.#heard = true;
    this.#asked = false;
    if (this.#state === "proving") {
      if (typeof data !== "string" || data.length > limits.linkProofCharsMax) this.#refuse("bad_frame");
      else this.#converse(data);
      return;
    }
    if (typeof data !== "string") return this.close("bad_frame");
    if (data.length > limits.linkMessageCharsMax) return this.close("message_too_large");
    if (data === "ping") return this.#send("pong");
    if (data === "pong") return;
    if (!startsWithAny(data, notACall) && ++this.#callsServed > limits.linkCallsMax) return this.close(tooManyCalls);
    if (this.#reader === undefined) this.#arrived.push(data);
    else this.#reader.resolve(data);
    this.#reader = undefined;
  }

  #send(text: string): void {
    if (this.#state === "down") return;
    if (text.length > limits.linkMessageCharsMax) return this.close("message_too_large");
    if (startsWithAny(text, answers)) this.#callsServed--;
    try {
      this.#socket.send(text);
    } catch {
      this.#lost();
    }
  }

  // ---- proof ------------------------------------------------------------------------------------------------------------

  /** @param frame what the other side has said; nothing at first. */
  #converse(frame: string): void {
    const { conversation, events } = this.#options;
    try {
      const { done, value } = conversation.next(frame);
      if (!done) {
        if (value !== undefined) this.#send(value);
        return;
      }
      const refusal = events.proved(this, value.peer);
      if (refusal !== undefined) return this.#refuse(refusal);
      clearTimeout(this.#proofTimer);
      this.#peer = value.peer;
      this.#state = "up";
      if (value.last !== undefined) this.#send(value.last);
      if (this.#ended !== undefined) return;
      const limit = { maxMessageSize: limits.linkMessageCharsMax };
      const session = new RpcSession(this.#transport(), this.#options.targetFor(value.peer), { limits: limit });
      this.#stub = session.getRemoteMain() as unknown as RemoteStub;
      events.up(this, value.peer);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.#refuse(error.reason);
    }
  }

  #transport(): RpcTransport {
    return {
      send: (text) => this.#send(text),
      receive: () => {
        const text = this.#arrived.shift();
        if (text !== undefined) return Promise.resolve(text);
        if (this.#state === "down") return Promise.reject(new LinkError(this.#peer, "down"));
        return new Promise((resolve, reject) => (this.#reader = { resolve, reject }));
      },
      abort: (reason: unknown) => this.close(`rpc: ${reason instanceof Error ? reason.message : String(reason)}`),
    };
  }

  // ---- silence ----------------------------------------------------------------------------------------------------------

  #lookLater(): ReturnType<typeof setTimeout> {
    this.#heard = false;
    return setTimeout(() => this.#look(), limits.linkSilentMs);
  }

  #look(): void {
    this.#watch = undefined;
    if (this.#asked) return this.close("silent");
    if (this.#callsMade === 0) return;
    if (this.#heard) this.#watch = this.#lookLater();
    else this.#ask();
  }

  #ask(): void {
    this.#asked = true;
    this.#send("ping");
    clearTimeout(this.#watch);
    this.#watch = this.#lookLater();
  }

  // ---- end --------------------------------------------------------------------------------------------------------------

  #refuse(reason: LinkRefusal): void {
    this.#end({ reason, by: "self", refused: true });
  }

  #lost(): void {
    this.#end({ reason: "connection lost", by: "peer", refused: false });
  }

  #end(end: LinkEnd): void {
    if (this.#state === "down") return;
    this.#state = "down";
    this.#ended = end.reason;
    clearTimeout(this.#proofTimer);
    clearTimeout(this.#watch);
    try {
      this.#socket.close(end.refused ? closeCodes.refused : closeCodes.down, shortened(end.reason));
    } catch {
      // It is closed already.
    }
    this.#arrived.length = 0;
    this.#reader?.reject(new LinkError(this.#peer, end.reason));
    this.#options.events.down(this, end);
  }
}

/** The stub as it is used here: any method, which the other side knows or does not. */
interface RemoteStub {
  readonly [method: string]: ((...args: readonly unknown[]) => PromiseLike<unknown>) | undefined;
}

function startsWithAny(text: string, starts: readonly string[]): boolean {
  return starts.some((start) => text.startsWith(start));
}

/** About as many characters as these take on the wire: bytes go as base64. */
function charsOf(args: readonly unknown[]): number {
  let chars = 0;
  for (const arg of args) {
    if (typeof arg === "string") chars += arg.length;
    else if (arg instanceof Uint8Array) chars += Math.ceil(arg.length / 3) * 4;
  }
  return chars;
}

/** A close frame holds 123 bytes of reason (RFC 6455, 5.5). */
function shortened(reason: string): string {
  return new TextDecoder().decode(new TextEncoder().encode(reason).subarray(0, 123), { stream: true });
}
