/**
 * `$SYS/brokers/...`, as EMQX publishes it: the running nodes, and of each its version, uptime, stats and metrics. Once
 * a minute, and at once for a new subscriber; only while someone subscribes, so that an idle cluster sleeps (G7).
 */
import type { NodeName } from "../../cluster/name.ts";
import { version } from "../version.ts";
import type { Core } from "./core.ts";

const intervalMs = 60_000;
/** From a new subscription to what it gets: several of one SUBSCRIBE are served together. */
const firstMs = 500;

const encoder = new TextEncoder();

export class SysTopics {
  readonly #core: Core;
  /** ms since the epoch; 0 = nobody subscribes. */
  #dueAt = 0;

  constructor(core: Core) {
    this.#core = core;
    if (core.routes.hasFilterUnder("$SYS/")) this.publishSoon();
  }

  publishSoon(): void {
    this.#ringAt(Date.now() + firstMs);
  }

  /** What has happened to a member, as JSON. */
  publishEvent(event: string, line: string): void {
    this.#publish(`$SYS/brokers/${this.#core.name}/events/${event}`, line);
  }

  async handleAlarm(now: number): Promise<void> {
    if (this.#dueAt === 0) return;
    if (this.#dueAt > now) return this.#core.host.ringAt(this.#dueAt);
    this.#dueAt = 0;
    if (!this.#core.routes.hasFilterUnder("$SYS/")) return;
    this.#ringAt(now + intervalMs);
    await this.#publishAll(now);
  }

  #ringAt(at: number): void {
    if (this.#dueAt !== 0 && this.#dueAt <= at) return;
    this.#dueAt = at;
    this.#core.host.ringAt(at);
  }

  async #publishAll(now: number): Promise<void> {
    const core = this.#core;
    const { members } = core.mesh;
    const nodes = [...members.coordinators(), ...members.nodes()].map(({ name }) => name);
    this.#publish("$SYS/brokers", nodes.join(","));
    this.#publishNode(core.name, core.startedAt, now);
    this.#publishNumbers(core.name, "metrics", core.metrics.all());
    this.#publishNumbers(core.name, "stats", {
      "nodes.count": members.nodes().length,
      "topics.count": core.routes.size,
      "retained.count": core.store.retained.count,
      "delayed.count": core.store.delayedCount(),
      "sessions.count": core.store.claimCount(),
      "parked.count": core.forwarder.parked.messages,
      "parked.bytes": core.forwarder.parked.bytes,
    });
    // Each core tells of the nodes whose home it is.
    const own = members.nodes().filter(({ home }) => home === core.name);
    await Promise.all(own.map(({ name }) => this.#publishMember(name, now)));
  }

  async #publishMember(node: NodeName, now: number): Promise<void> {
    try {
      const { startedAt, stats, metrics } = await this.#core.mesh.nodeAt(node).stats();
      this.#publishNode(node, startedAt, now);
      this.#publishNumbers(node, "stats", stats);
      this.#publishNumbers(node, "metrics", metrics);
    } catch (error) {
      console.error(`${node} gave no stats: ${String(error)}`);
    }
  }

  #publishNode(node: NodeName, startedAt: number, now: number): void {
    this.#publish(`$SYS/brokers/${node}/version`, version);
    this.#publish(`$SYS/brokers/${node}/sysdescr`, "Trellis");
    this.#publish(`$SYS/brokers/${node}/uptime`, String(now - startedAt));
    this.#publish(`$SYS/brokers/${node}/datetime`, new Date(now).toISOString());
  }

  #publishNumbers(node: NodeName, group: "stats" | "metrics", numbers: Readonly<Record<string, number>>): void {
    for (const [name, value] of Object.entries(numbers))
      this.#publish(`$SYS/brokers/${node}/${group}/${name.replaceAll(".", "/")}`, String(value));
  }

  #publish(topic: string, text: string): void {
    this.#core.publishOwn({
      id: "",
      topic,
      payload: encoder.encode(text),
      qos: 0,
      retain: false,
      properties: new Uint8Array(),
      expiresAt: 0,
      from: this.#core.name,
    });
  }
}
