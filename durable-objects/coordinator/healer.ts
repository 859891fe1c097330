/** Autoheal on one core: what cluster/autoheal.ts decides, done at its time by calls to the other cores. */
import { planHealing } from "../../cluster/autoheal.ts";
import type { Membership } from "../../cluster/membership.ts";
import type { NodeName } from "../../cluster/name.ts";
import { limits } from "../../mqtt/limits.ts";
import type { Peers } from "./peers.ts";

/** What the core gives. */
export interface HealerHost {
  readonly self: NodeName;
  readonly members: Membership;
  readonly peers: Peers;
  /** Makes sure that `handleAlarm` is called at this time or before. */
  readonly ringAt: (at: number) => void;
  readonly tell: (event: string, facts: Readonly<Record<string, unknown>>) => void;
}

export class Healer {
  readonly #host: HealerHost;
  /** ms since the epoch: when a partition with each core is confirmed. */
  readonly #confirmAt = new Map<NodeName, number>();
  /** When the leader heals; 0: nothing is reported. */
  #healAt = 0;

  constructor(host: HealerHost) {
    this.#host = host;
  }

  /** A core is back after both had taken each other for down. */
  handlePartitionOver(peer: NodeName, now: number): void {
    this.#host.tell("partition_found", { core: peer });
    this.#confirmAt.set(peer, now + limits.partitionConfirmMs);
    this.#host.ringAt(now + limits.partitionConfirmMs);
  }

  /** On the leader. */
  handleReport(from: NodeName, peer: NodeName, now: number): void {
    this.#host.tell("partition_reported", { by: from, core: peer });
    if (this.#healAt > 0) return;
    this.#healAt = now + limits.partitionHealMs;
    this.#host.ringAt(this.#healAt);
  }

  handleAlarm(now: number): void {
    for (const [peer, at] of this.#confirmAt) if (at <= now) this.#confirm(peer);
    if (this.#healAt > 0 && this.#healAt <= now) void this.#heal(now);
    for (const at of [...this.#confirmAt.values(), this.#healAt]) if (at > now) this.#host.ringAt(at);
  }

  #confirm(peer: NodeName): void {
    const { self, members, peers } = this.#host;
    this.#confirmAt.delete(peer);
    // It has gone again, or has been healed.
    if (!peers.isUp(peer) || !peers.lost.has(peer)) return;
    const leader = members.cores().find(({ name }) => name === self || peers.isUp(name))!.name;
    if (leader === self) return this.handleReport(self, peer, Date.now());
    const report = peers.link(leader).call((core) => core.reportPartition(self, peer));
    report.catch((error: unknown) => console.error(`${leader} was not told of a partition: ${String(error)}`));
  }

  async #heal(now: number): Promise<void> {
    const { self, members, peers, ringAt, tell } = this.#host;
    const byAge = members.cores().map(({ name }) => name);
    // When all are there again.
    if (!byAge.every((core) => core === self || peers.isUp(core))) {
      this.#healAt = now + limits.partitionHealMs;
      return ringAt(this.#healAt);
    }
    this.#healAt = 0;
    try {
      const views = new Map<NodeName, readonly NodeName[]>([[self, peers.view()]]);
      for (const core of byAge) if (core !== self) views.set(core, await peers.link(core).call((peer) => peer.view()));
      const healing = planHealing(views, byAge);
      if (!healing) return;
      const { coordinator, minority } = healing;
      tell("partition_healing", { views: Object.fromEntries(views), coordinator, minority });
      if (coordinator === self) await this.restartAll(minority);
      else await peers.link(coordinator).tryOnce((peer) => peer.heal(minority));
    } catch (error) {
      console.error(`the partition is not healed yet: ${String(error)}`);
      this.handleReport(self, self, Date.now());
    }
  }

  /** The coordinator's part. */
  async restartAll(minority: readonly NodeName[]): Promise<void> {
    const { peers, tell } = this.#host;
    for (const core of minority) await peers.link(core).call((peer) => peer.restart());
    tell("partition_healed", { restarted: minority });
  }
}
