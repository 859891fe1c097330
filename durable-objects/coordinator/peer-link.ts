/**
 * A core's link to another core.
 *
 *   up     what is relayed goes into the outbox, in order, and is awaited
 *   down   the core does not answer: what is relayed is dropped, because it is asked for when the two meet again
 *
 * Nothing is sent to know whether a core is there: it goes down when calls to it fail, and is then tried at growing
 * intervals. An idle cluster is silent (G7).
 */
import type { NodeName } from "../../cluster/name.ts";
import { limits, retryDelayMs } from "../../mqtt/limits.ts";
import { Outbox } from "../outbox.ts";
import type { PeerRpc } from "../rpc.ts";

/** What the core gives. */
export interface PeerLinkHost {
  readonly self: NodeName;
  /** Makes a fresh stub. */
  readonly connect: () => PeerRpc;
  readonly handleDown: (link: PeerLink, reason: string) => void;
}

export class PeerLink {
  readonly name: NodeName;
  readonly #host: PeerLinkHost;
  #outbox: Outbox | undefined;
  /** Called when a relay is answered, or the core goes down. */
  readonly #relays = new Set<() => void>();
  /** It was down since the two last spoke: each may lack what the other has. */
  hasLost = false;
  /** ms since the epoch; when it was last there, as far as is known. */
  downAt = 0;
  nextTryAt = 0;
  #checking: Promise<void> | undefined;
  /** Whether it is there is being asked. */
  #asking: Promise<boolean> | undefined;
  /** It is being met. */
  meeting: Promise<boolean> | undefined;

  constructor(name: NodeName, host: PeerLinkHost) {
    this.name = name;
    this.#host = host;
  }

  get isUp(): boolean {
    return this.#outbox !== undefined;
  }

  /** Relays that the core has not answered. */
  get lag(): number {
    return this.#relays.size;
  }

  /** The two have met. */
  goUp(): void {
    if (this.#outbox) return;
    const connect = () => {
      const peer = this.#host.connect();
      return (batch: Uint8Array) => this.#within(peer.relay(this.#host.self, batch));
    };
    const nothingDropped = (): void => {};
    this.#outbox = new Outbox(connect, nothingDropped, () => this.#goDown("relays fail"));
    this.hasLost = false;
  }

  #goDown(reason: string): void {
    if (!this.#outbox) return;
    this.#outbox.close();
    this.#outbox = undefined;
    for (const settle of this.#relays) settle();
    this.hasLost = true;
    this.downAt = Date.now();
    this.pause(this.downAt);
    this.#host.handleDown(this, reason);
  }

  /** Until the next try. */
  pause(now: number, lastMs: number = limits.probeLastMs): void {
    this.nextTryAt = now + Math.min(lastMs, Math.max(limits.probeFirstMs, now - this.downAt));
  }

  /** Resolves when the core has applied it, or is down. Where it finds no room the core is down, to be told all when met. */
  relay(record: Uint8Array): Promise<void> {
    if (this.#outbox?.full) this.#goDown("too much waits for it");
    const outbox = this.#outbox;
    if (!outbox) return Promise.resolve();
    return new Promise((resolve) => {
      const settle = (): void => {
        this.#relays.delete(settle);
        resolve();
      };
      this.#relays.add(settle);
      outbox.add(record, settle);
    });
  }

  /** A call that may be made twice. Rejects when the core is down, or goes down by it. */
  async call<T>(call: (peer: PeerRpc) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      if (!this.#outbox) throw new Error(`${this.name} is down`);
      try {
        return await this.tryOnce(call);
      } catch (error) {
        if (attempt >= limits.attemptsMax) this.#goDown(String(error));
        else await scheduler.wait(retryDelayMs(attempt));
      }
    }
  }

  /** Resolves when it has answered, or is down. */
  check(): Promise<void> {
    this.#checking ??= this.call((peer) => peer.view()).then(
      () => (this.#checking = undefined),
      () => (this.#checking = undefined),
    );
    return this.#checking;
  }

  /** Up or down. */
  async tryOnce<T>(call: (peer: PeerRpc) => Promise<T>): Promise<T> {
    return this.#within(call(this.#host.connect()));
  }

  /**
   * A core that does not answer at all is down at once: who waits for it would wait for each try. One that takes long over
   * a call, because it waits for others, is there: it says so when it is asked.
   */
  async #within<T>(answer: Promise<T>): Promise<T> {
    const { promise: end, reject } = Promise.withResolvers<never>();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const look = async (): Promise<void> => {
      timer = undefined;
      if (!(await this.#isThere())) {
        reject(new Error("no answer came in time"));
        this.#goDown("no answer came in time");
      } else if (isAwaited) timer = setTimeout(() => void look(), limits.peerSilentMsMax / 2);
    };
    let isAwaited = true;
    timer = setTimeout(() => void look(), limits.peerSilentMsMax / 2);
    try {
      return await Promise.race([answer, end]);
    } finally {
      isAwaited = false;
      clearTimeout(timer);
    }
  }

  /** Whether it answers what takes no time. */
  #isThere(): Promise<boolean> {
    this.#asking ??= this.#ask().finally(() => (this.#asking = undefined));
    return this.#asking;
  }

  async #ask(): Promise<boolean> {
    const { promise: silence, resolve } = Promise.withResolvers<boolean>();
    const timer = setTimeout(() => resolve(false), limits.peerSilentMsMax / 2);
    const answer = async (): Promise<boolean> => {
      await this.#host.connect().view();
      return true;
    };
    try {
      return await Promise.race([answer(), silence]);
    } catch {
      return false;
    } finally {
      clearTimeout(timer);
    }
  }
}
