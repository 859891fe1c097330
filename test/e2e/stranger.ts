// A client of links, written from the description of the handshake (docs/links.md) and not from the code.

import { createHmac, randomBytes } from "node:crypto";
import { once } from "node:events";
import { onTestFinished } from "vitest";
import { WebSocket } from "ws";

import { rpcVersion } from "../../durable-objects/rpc.ts";
import { cookie, type Deployment } from "./linked.ts";

export class Stranger {
  readonly name = `core@127.0.0.1:${1024 + (randomBytes(2).readUInt16BE() % 60_000)}`;
  readonly nonce = randomBytes(32).toString("hex");
  readonly deployment: Deployment;
  readonly #socket: WebSocket;
  readonly #received: Received[] = [];
  #waiting: ((received: Received) => void) | undefined;

  private constructor(deployment: Deployment, socket: WebSocket) {
    this.deployment = deployment;
    this.#socket = socket;
    const receive = (received: Received): void => {
      if (this.#waiting) this.#waiting(received);
      else this.#received.push(received);
      this.#waiting = undefined;
    };
    socket.on("message", (data: Buffer) => receive({ frame: JSON.parse(data.toString()) as string[] }));
    socket.on("close", (code, reason) => receive({ closed: { code, reason: reason.toString() } }));
    onTestFinished(() => socket.terminate());
  }

  static async dial(deployment: Deployment): Promise<Stranger> {
    const url = `ws://127.0.0.1:${deployment.broker.port}/link?core=${encodeURIComponent(deployment.core)}`;
    const socket = new WebSocket(url, ["trellis-link"]);
    const stranger = new Stranger(deployment, socket);
    await once(socket, "open");
    if (socket.protocol !== "trellis-link") throw new Error(`it speaks ${socket.protocol}`);
    return stranger;
  }

  /** One that has the cookie, and has proved it. */
  static async link(deployment: Deployment): Promise<Stranger> {
    const stranger = await Stranger.dial(deployment);
    stranger.send(["proof", stranger.sign("dialer", await stranger.greet())]);
    await stranger.next();
    return stranger;
  }

  again(): Promise<Stranger> {
    return Stranger.dial(this.deployment);
  }

  hello(fields: Partial<Record<"version" | "cluster" | "from" | "to" | "nonce", string>> = {}): string[] {
    const all = {
      version: String(rpcVersion),
      cluster: "emqxcl",
      from: this.name,
      to: this.deployment.core,
      nonce: this.nonce,
      ...fields,
    };
    return ["hello", all.version, all.cluster, all.from, all.to, all.nonce];
  }

  /** Says hello; resolves with the challenge. */
  async greet(): Promise<string> {
    this.send(this.hello());
    const answer = await this.next();
    if (!("frame" in answer) || answer.frame[0] !== "challenge") throw new Error(JSON.stringify(answer));
    return answer.frame[1]!;
  }

  sign(prover: "dialer" | "acceptor", challenge: string, by = cookie): string {
    const transcript = JSON.stringify(["trellis-link", prover, ...this.hello().slice(1), challenge]);
    return createHmac("sha256", by).update(transcript).digest("hex");
  }

  /** Texts and bytes as they are, lists as JSON. */
  send(frame: string | Buffer | readonly unknown[]): void {
    this.#socket.send(typeof frame === "string" || Buffer.isBuffer(frame) ? frame : JSON.stringify(frame));
  }

  next(): Promise<Received> {
    const received = this.#received.shift();
    return received ? Promise.resolve(received) : new Promise((resolve) => (this.#waiting = resolve));
  }
}

type Received = { readonly frame: string[] } | { readonly closed: { readonly code: number; readonly reason: string } };
