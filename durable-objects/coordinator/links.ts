/**
 * The links of a core to cores of other deployments: one WebSocket a pair, RPC over it in both directions, and the same
 * interface as a Durable Object's stub.
 *
 *     links.to("core@eu.example.com", "eu.example.com").route(node, batch)
 *
 * A call dials when there is no link, and waits until it is up; calls leave in the order in which they were made. When
 * the link cannot come up, or goes down, they fail with a LinkError, and the next call dials again. Nobody dials without
 * a call, and an idle link sends nothing.
 *
 * Both sides may dial at once. Of two links that one core has dialed the new one counts: it would not have dialed again
 * had it still had the old one. Of links dialed by both, the one dialed by the core whose name is smaller. Both sides see
 * it alike, in whatever order they see it. The loser is closed, or refused as `already_linked`, and then the winner is
 * asked whether it is still there: its other end may have lost it without a word.
 *
 * An outgoing socket, and one that was accept()ed, keeps its Durable Object in memory (and billed) as long as it is open:
 * what capnweb knows of a link would not outlive hibernation.
 */
import { createHmac, timingSafeEqual } from "node:crypto";

import { acceptConversation, dialConversation, type LinkRefusal, type Prover } from "../../cluster/link-proof.ts";
import { addressOf, hostnameOf, isMember, type NodeName } from "../../cluster/name.ts";
import { limits } from "../../mqtt/limits.ts";
import type { MetricName } from "../metrics.ts";
import { rpcVersion } from "../rpc.ts";
import { Link, LinkError, tooManyCalls, type LinkEnd } from "./link.ts";

/** The WebSocket subprotocol of links. */
export const linkSubprotocol = "trellis-link";

/** What of the settings concerns links. */
export interface LinkSettings {
  readonly domain: string;
  readonly cluster: { readonly name: string };
  readonly node: { readonly cookie: string | undefined };
  readonly driver: "tcp" | "ssl";
  readonly rpc: { readonly tcp_allowed_hosts: readonly string[] };
}

export interface LinksOptions {
  /** A core of this deployment. */
  readonly self: NodeName;
  readonly settings: LinkSettings;
  readonly env: Pick<Env, "LOOPBACK" | "LINKS">;
  /** What a peer may call: an RpcTarget that knows who calls. */
  targetFor(peer: NodeName): object;
  onUp(peer: NodeName): void;
  onDown(peer: NodeName, reason: string): void;
  count(metric: MetricName): void;
}

interface Peer {
  link: Link | undefined;
  dialing: boolean;
  /** Calls that wait for the link. */
  readonly waiting: Call[];
}

interface Call {
  readonly method: string;
  readonly args: readonly unknown[];
  readonly resolve: (answer: unknown) => void;
  readonly reject: (error: unknown) => void;
}

export class Links<Rpc extends object> {
  readonly #options: LinksOptions;
  readonly #peers = new Map<NodeName, Peer>();
  /** Accepted, the oldest first. */
  readonly #unproved = new Set<Link>();

  constructor(options: LinksOptions) {
    this.#options = options;
  }

  /** Answers an upgrade that the worker has let through to this core. */
  accept(request: Request): Response {
    const { 0: client, 1: server } = new WebSocketPair();
    server.accept();
    let claimed: NodeName = "";
    const link = new Link(server, {
      dialer: "peer",
      conversation: acceptConversation(this.#prover(), (from) => {
        claimed = from;
        return this.#refusalOf(from, new URL(request.url));
      }),
      targetFor: (peer) => this.#options.targetFor(peer),
      events: {
        proved: (link, peer) => {
          this.#unproved.delete(link);
          return this.#adopt(link, peer);
        },
        up: (link, peer) => this.#up(link, peer),
        down: (link, end) => {
          this.#unproved.delete(link);
          this.#down(link, claimed, end);
        },
      },
    });
    link.start();
    this.#unproved.add(link);
    const [oldest] = this.#unproved;
    if (this.#unproved.size > limits.linksUnprovedMax) oldest?.close("too_many_links");
    return new Response(null, {
      status: 101,
      webSocket: client,
      headers: { "Sec-WebSocket-Protocol": linkSubprotocol },
    });
  }

  /**
   * A stub of the peer's target. A method of it is called by a string of its own: not `then`, nor one that capnweb's
   * stubs have themselves (`map`, `dup`, `onRpcBroken`). Arguments and results are what capnweb passes by value.
   * @param address host of the peer's deployment, with its port if it has one
   */
  to(peer: NodeName, address: string): Rpc {
    const call = (_: object, method: string | symbol): unknown =>
      typeof method === "string" && method !== "then"
        ? (...args: readonly unknown[]) => this.#call(peer, address, method, args)
        : undefined;
    return new Proxy({}, { get: call }) as Rpc;
  }

  /** Closes the link to the peer if there is one; a later call dials again. */
  close(peer: NodeName): void {
    this.#peers.get(peer)?.link?.close("closed");
    this.#failWaiting(peer, new LinkError(peer, "closed"));
  }

  #call(name: NodeName, address: string, method: string, args: readonly unknown[]): Promise<unknown> {
    const peer = this.#peerOf(name);
    if (peer.link !== undefined) return peer.link.call(method, args);
    if (peer.waiting.length >= limits.linkCallsMax) return Promise.reject(new LinkError(name, tooManyCalls));
    return new Promise((resolve, reject) => {
      peer.waiting.push({ method, args, resolve, reject });
      if (!peer.dialing) void this.#dial(name, address, peer);
    });
  }

  // ---- which link counts ------------------------------------------------------------------------------------------------

  /** Makes place for a link that was proved, unless the one that is there counts more. */
  #adopt(link: Link, name: NodeName): LinkRefusal | undefined {
    const current = this.#peers.get(name)?.link;
    if (current === undefined) return undefined;
    const smaller = this.#options.self < name ? "self" : "peer";
    if (link.dialer === current.dialer || link.dialer === smaller) {
      current.close("replaced");
      return undefined;
    }
    current.probe();
    return "already_linked";
  }

  #up(link: Link, name: NodeName): void {
    const peer = this.#peerOf(name);
    peer.link = link;
    // Before anybody else can call, so that they stay in order.
    for (const { method, args, resolve } of peer.waiting.splice(0)) resolve(link.call(method, args));
    this.#log("link_up", name, { dialer: link.dialer });
    this.#options.count("link.connected");
    this.#options.onUp(name);
  }

  /** @param name of one who has not proved it, what it called itself. */
  #down(link: Link, name: NodeName, { reason, by, refused }: LinkEnd): void {
    const peer = this.#peers.get(name);
    if (peer?.link === link) {
      peer.link = undefined;
      this.#forgetIdle(name);
      this.#log("link_down", name, { reason, by });
      this.#options.count("link.disconnected");
      this.#options.onDown(name, reason);
    } else if (refused && reason !== "already_linked") {
      this.#log("link_refused", name, { reason, by });
      this.#options.count("link.refused");
    }
  }

  #peerOf(name: NodeName): Peer {
    let peer = this.#peers.get(name);
    if (peer === undefined) this.#peers.set(name, (peer = { link: undefined, dialing: false, waiting: [] }));
    return peer;
  }

  #forgetIdle(name: NodeName): void {
    const peer = this.#peers.get(name);
    if (peer?.link === undefined && peer?.dialing === false && peer.waiting.length === 0) this.#peers.delete(name);
  }

  #failWaiting(name: NodeName, error: unknown): void {
    for (const { reject } of this.#peers.get(name)?.waiting.splice(0) ?? []) reject(error);
    this.#forgetIdle(name);
  }

  // ---- dial -------------------------------------------------------------------------------------------------------------

  async #dial(name: NodeName, address: string, peer: Peer): Promise<void> {
    peer.dialing = true;
    let failure: unknown = new LinkError(name, "down");
    try {
      await this.#connect(name, address, peer);
    } catch (error) {
      failure = error;
      // The link that counts more comes up here any moment, or its other end finds out that it is dead.
      const coming = error instanceof LinkError && error.reason === "already_linked";
      if (coming && peer.link === undefined) await new Promise((resolve) => setTimeout(resolve, limits.linkProofMs));
    }
    peer.dialing = false;
    // The link has taken them along when it came up.
    this.#failWaiting(name, failure);
  }

  /** Resolves when the link is up; rejects with a LinkError when it does not come up. */
  async #connect(name: NodeName, address: string, peer: Peer): Promise<void> {
    const { settings } = this.#options;
    if (settings.node.cookie === undefined) throw new LinkError(name, "node.cookie is not set: a link needs one");
    if (settings.driver === "tcp" && !isPlainAllowed(address, settings)) {
      const allowed = "allowed are loopback addresses and the hosts of rpc.tcp_allowed_hosts";
      throw new LinkError(name, `driver = "tcp": ${allowed}, and ${address} is none (driver = "ssl" encrypts)`);
    }
    const socket = await this.#open(name, address);
    await new Promise<void>((resolve, reject) => {
      // It has been linked from the other side meanwhile.
      if (peer.link !== undefined) {
        socket.close();
        return resolve();
      }
      const link = new Link(socket, {
        dialer: "self",
        conversation: dialConversation(this.#prover(), name),
        targetFor: (peer) => this.#options.targetFor(peer),
        events: {
          proved: (link) => this.#adopt(link, name),
          up: (link) => {
            this.#up(link, name);
            resolve();
          },
          down: (link, end) => {
            this.#down(link, name, end);
            reject(new LinkError(name, end.reason));
          },
        },
      });
      link.start();
    });
  }

  async #open(name: NodeName, address: string): Promise<WebSocket> {
    const { self, settings, env } = this.#options;
    const secure = settings.driver === "ssl" ? "s" : "";
    const path = `${address}/link?core=${encodeURIComponent(name)}&from=${encodeURIComponent(self)}`;
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(new Error("no answer")), limits.linkProofMs);
    try {
      const { webSocket, status, body } = await (env.LINKS ?? globalThis).fetch(`http${secure}://${path}`, {
        headers: { Upgrade: "websocket", "Sec-WebSocket-Protocol": linkSubprotocol },
        // Who answers at the address is who is meant, encrypted as it was asked for.
        redirect: "manual",
        signal: late.signal,
      });
      if (!webSocket) {
        await body?.cancel();
        throw new Error(`it answers ${status}`);
      }
      webSocket.accept();
      return webSocket;
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new LinkError(name, `ws${secure}://${address}/link cannot be reached: ${why}`);
    } finally {
      clearTimeout(timer);
    }
  }

  // ---- proof ------------------------------------------------------------------------------------------------------------

  #prover(): Prover {
    const { self, settings } = this.#options;
    const sign = (text: string): string => {
      if (settings.node.cookie === undefined) throw new Error("a proof needs a cookie");
      return createHmac("sha256", settings.node.cookie).update(text).digest("hex");
    };
    return {
      version: rpcVersion,
      cluster: settings.cluster.name,
      self,
      nonce: Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("hex"),
      sign,
      verify: (text, proof) => {
        const [right, given] = [Buffer.from(sign(text)), Buffer.from(proof)];
        return right.length === given.length && timingSafeEqual(right, given);
      },
    };
  }

  /** What speaks against a dialer that calls itself so. */
  #refusalOf(from: NodeName, { protocol }: URL): LinkRefusal | undefined {
    const { settings, env } = this.#options;
    if (settings.node.cookie === undefined) return "no_cookie";
    if (isMember(from, settings.domain)) return "bad_node_name";
    // What comes to a listener on loopback never was on a wire, or was decrypted by a proxy on this machine.
    if (protocol === "https:" || env.LOOPBACK === "true") return undefined;
    return settings.driver === "tcp" && isPlainAllowed(addressOf(from), settings) ? undefined : "tcp_not_allowed";
  }

  #log(event: string, peer: NodeName, facts: Readonly<Record<string, string>>): void {
    console.log(JSON.stringify({ event, core: this.#options.self, peer, ...facts }));
  }
}

/** May it be spoken to unencrypted? An address that may have a location before it, as the host of a name. */
function isPlainAllowed(address: string, { rpc }: LinkSettings): boolean {
  const host = hostnameOf(address);
  if (/(^|\.)(127(\.\d{1,3}){3}|\[::1\]|localhost)$/.test(host)) return true;
  return rpc.tcp_allowed_hosts.some((allowed) => host === allowed || host.endsWith(`.${allowed}`));
}
