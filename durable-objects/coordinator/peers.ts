/**
 * The other cores, and replicants, of the cluster: who is there.
 *
 * Two coordinators meet with one call, `hello`, which tells each what the other has: then they are up for each other until
 * a call fails. One that is down is tried by the alarm, at growing intervals; its own hello, when it is back, comes sooner.
 */
import type { NodeName } from "../../cluster/name.ts";
import type { Membership } from "../../cluster/membership.ts";
import { limits } from "../../mqtt/limits.ts";
import { rpcVersion, type Hello, type PeerRpc } from "../rpc.ts";
import { PeerLink } from "./peer-link.ts";

/** What the core gives. */
export interface PeersHost {
  readonly self: NodeName;
  readonly cluster: string;
  readonly members: Membership;
  readonly vector: () => Readonly<Record<NodeName, number>>;
  readonly registryCores: () => Hello["registryCores"];
  readonly bootstrap: () => Hello["bootstrap"];
  /** Makes a fresh stub. */
  readonly peerAt: (name: NodeName) => PeerRpc;
  /** Makes sure that `handleAlarm` is called at this time or before. */
  readonly ringAt: (at: number) => void;
  /** Two have met; resolves when this core has what the other one has. */
  readonly handleMet: (link: PeerLink, hello: Hello, meeting: Meeting) => Promise<void>;
  readonly handleDown: (link: PeerLink, reason: string) => void;
}

export interface Meeting {
  /** It had been down, for all that this core knows. */
  readonly wasDown: boolean;
  /** Each had taken the other for down. */
  readonly isPartitionOver: boolean;
}

export class Peers {
  readonly #host: PeersHost;
  readonly #links = new Map<NodeName, PeerLink>();
  /** Cores that have been lost and found again, until autoheal is through. */
  readonly lost = new Set<NodeName>();

  constructor(host: PeersHost) {
    this.#host = host;
  }

  link(name: NodeName): PeerLink {
    const known = this.#links.get(name);
    if (known) return known;
    const { self, peerAt, handleDown } = this.#host;
    const link = new PeerLink(name, {
      self,
      connect: () => peerAt(name),
      handleDown: (down, reason) => {
        this.#host.ringAt(down.nextTryAt);
        handleDown(down, reason);
      },
    });
    this.#links.set(name, link);
    return link;
  }

  isUp(name: NodeName): boolean {
    return this.#links.get(name)?.isUp ?? false;
  }

  up(): PeerLink[] {
    return [...this.#links.values()].filter(({ isUp }) => isUp);
  }

  /** The member is gone from the cluster. */
  forget(name: NodeName): void {
    this.#links.delete(name);
    this.lost.delete(name);
  }

  /** Tries each coordinator that is not up. Resolves when all have been met, or do not answer. */
  async meetAll(): Promise<void> {
    const { members, self } = this.#host;
    const names = members.coordinators().flatMap(({ name }) => (name === self || this.isUp(name) ? [] : [name]));
    await Promise.all(names.map((name) => this.meet(name)));
  }

  /** @returns whether it is there. */
  meet(name: NodeName): Promise<boolean> {
    const link = this.link(name);
    link.meeting ??= this.#meet(link).finally(() => (link.meeting = undefined));
    return link.meeting;
  }

  async #meet(link: PeerLink): Promise<boolean> {
    try {
      const { self } = this.#host;
      const said = this.hello(link);
      const answer = await link.tryOnce((peer) => peer.hello(self, said));
      if (!answer) throw new Error(`${self} is no member for it`);
      const met = this.#handleHello(link, answer);
      // What has changed since was not said, and not relayed to a core that was not up yet.
      const again = isSaid(said, this.hello(link)) || link.call((peer) => peer.hello(self, this.hello(link)));
      await Promise.all([met, again]);
      return true;
    } catch (error) {
      const now = Date.now();
      if (link.downAt === 0) link.downAt = now;
      const isCleaned = this.#host.members.get(link.name)?.state === "cleaned";
      link.pause(now, isCleaned ? limits.probeCleanedMs : limits.probeLastMs);
      this.#host.ringAt(link.nextTryAt);
      console.log(JSON.stringify({ event: "core_not_met", core: link.name, reason: String(error) }));
      return false;
    }
  }

  /** Finds out whether the core is there. */
  async check(name: NodeName): Promise<void> {
    const link = this.link(name);
    if (!link.isUp) await this.meet(name);
    else await link.check();
  }

  /** What this core tells the other one. */
  hello(link: PeerLink): Hello {
    const { cluster, members, vector, registryCores, bootstrap } = this.#host;
    return {
      version: rpcVersion,
      cluster,
      members: [...members.all()],
      vector: vector(),
      // Again, until it is healed: the last time may have been lost on the way.
      sawDown: link.hasLost || this.lost.has(link.name),
      registryCores: registryCores(),
      view: this.view(),
      bootstrap: bootstrap(),
    };
  }

  /** The cores that this one sees, itself too. */
  view(): NodeName[] {
    return [this.#host.self, ...this.up().flatMap(({ name }) => (this.lost.has(name) ? [] : [name]))];
  }

  /** Another core's hello. The answer does not wait for what is asked of it. */
  handleHello(from: NodeName, hello: Hello): Hello {
    const link = this.link(from);
    const answer = this.hello(link);
    this.#handleHello(link, hello).catch((error: unknown) => {
      console.error(`${from} went away before all was asked of it: ${String(error)}`);
    });
    return answer;
  }

  #handleHello(link: PeerLink, hello: Hello): Promise<void> {
    const { cluster, self } = this.#host;
    if (hello.version !== rpcVersion)
      throw new Error(`${link.name} speaks version ${hello.version}, not ${rpcVersion}`);
    if (hello.cluster !== cluster) throw new Error(`${link.name} is of the cluster ${hello.cluster}, not ${cluster}`);
    const meeting = { wasDown: !link.isUp, isPartitionOver: link.hasLost && hello.sawDown };
    link.goUp();
    if (meeting.isPartitionOver) this.lost.add(link.name);
    else if (hello.view.includes(self)) this.lost.delete(link.name);
    return this.#host.handleMet(link, hello, meeting);
  }

  handleAlarm(now: number): void {
    const { members, self } = this.#host;
    for (const { name, home, state } of members.all()) {
      if (home !== "" || name === self || state === "left" || this.isUp(name)) continue;
      const { nextTryAt } = this.link(name);
      if (nextTryAt <= now) void this.meet(name);
      else this.#host.ringAt(nextTryAt);
    }
  }
}

/** Whether the one has the members and versions of the other. */
function isSaid(said: Hello, now: Hello): boolean {
  return JSON.stringify([said.members, said.vector]) === JSON.stringify([now.members, now.vector]);
}
