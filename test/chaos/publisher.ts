// Publishes numbered messages at QoS 1 or 2, a window at a time; after a reconnect MQTT.js sends again what was not
// acknowledged. What is refused is not sent again.

import { setTimeout as sleep } from "node:timers/promises";
import mqtt, { UniqueMessageIdProvider } from "mqtt";
import type { MqttClient } from "mqtt";
import type { Packet } from "mqtt-packet";

import { lasting, pick, type World } from "./world.ts";

/** Publishes of one publisher under way; below every Receive Maximum. */
const windowMax = 16;

export interface PublisherOptions {
  readonly version: 4 | 5;
  readonly qos: 1 | 2;
  /** The first level of its topics: who listens. */
  readonly area: "chaos" | "rare" | "keep";
  /** Reconnects to any of them. */
  readonly nodes: readonly string[];
  /** How long it pauses, in ms at most, and how much it publishes then at most. */
  readonly pauseMs: number;
  readonly burst: number;
  /** Retained, on so many topics in turn. */
  readonly retainedTopics?: number;
}

/** One publish, as its publisher sees it. */
export interface Sent {
  readonly number: number;
  readonly topic: string;
  readonly payload: string;
  /** Each time the PUBLISH left. */
  readonly attempts: { at: number; connection: number; node: string }[];
  /** ms since the start; the first PUBREC. */
  receivedAt: number | undefined;
  acknowledgedAt: number | undefined;
}

export class Publisher {
  readonly name: string;
  readonly options: PublisherOptions;
  readonly sent: Sent[] = [];
  readonly client: MqttClient;
  readonly #world: World;
  readonly #random: () => number;
  #node: string;
  #connection = 0;
  /** Which message has a packet id. */
  readonly #numberOf = new Map<number, number>();
  /** The message that leaves for the first time. */
  #leaving: number | undefined;
  #wasConnected = false;
  #isReady = false;
  #budget = 0;
  #underWay = 0;

  constructor(world: World, index: number, options: PublisherOptions) {
    const { version, qos, area, nodes } = options;
    this.name = `${area}${index}-v${version}-qos${qos}${nodes.length > 1 ? "-moves" : ""}`;
    this.options = options;
    this.#world = world;
    this.#random = world.random();
    this.#node = nodes[0]!;
    this.client = mqtt.connect(world.broker.url, {
      ...lasting(version, this.name),
      reconnectPeriod: 60,
      reconnectOnConnackError: true,
      // The lowest free packet id: what a session remembers of one by mistake soon meets the next message.
      messageIdProvider: new UniqueMessageIdProvider(),
      transformWsUrl: () => {
        this.#node = pick(nodes, this.#random());
        this.#connection++;
        world.happened("connecting");
        return world.broker.urlOf(this.#node);
      },
    });
    this.client.on("error", (error) => world.trace(`${this.name} error ${error.message}`));
    this.client.on("packetreceive", (packet) => this.#handlePacket(packet));
    this.client.on("packetsend", (packet) => this.#handleSend(packet));
    // MQTT.js says "connect" when it has sent again what was left, and each of it is acknowledged. A publish between
    // CONNACK and that moment would overtake the others.
    this.client.on("connect", () => {
      this.#isReady = true;
      this.#pump();
    });
    this.client.on("close", () => {
      this.#isReady = false;
      world.trace(`${this.name} closed`);
    });
  }

  /** What is to be acknowledged or sent yet. */
  get owed(): number {
    return this.#underWay + this.#budget;
  }

  async run(): Promise<void> {
    const { pauseMs, burst } = this.options;
    while (!this.#world.stopping) {
      this.#budget += Math.floor(this.#random() * burst);
      this.#pump();
      await sleep(this.#random() * pauseMs);
      if (this.#random() < 0.015) {
        this.#world.trace(`${this.name} cut`);
        this.client.stream.destroy();
      }
    }
    this.#budget = 0;
  }

  /** The last message. */
  mark(): void {
    this.#budget = 1;
    this.#pump();
  }

  #pump(): void {
    while (this.#isReady && this.#budget > 0 && this.#underWay < windowMax) {
      this.#budget--;
      this.#publish();
    }
  }

  #publish(): void {
    const world = this.#world;
    const { area, qos, retainedTopics } = this.options;
    const number = this.sent.length;
    const topic = `${area}/${this.name}${retainedTopics === undefined ? "" : `/${number % retainedTopics}`}`;
    // Some take the retained message away.
    const payload = retainedTopics !== undefined && this.#random() < 0.2 ? "" : `${this.name} ${number}`;
    const sent: Sent = { number, topic, payload, attempts: [], receivedAt: undefined, acknowledgedAt: undefined };
    this.sent.push(sent);
    this.#underWay++;
    world.counts.sent++;
    this.#leaving = number;
    this.client.publish(topic, payload, { qos, retain: retainedTopics !== undefined }, (error) => {
      this.#underWay--;
      if (error) {
        world.counts.refused++;
        const span = { from: sent.attempts[0]?.at ?? world.now, to: world.now };
        if (!world.mayRefuse(span)) world.violate(`refused: ${this.name} ${number}: ${error.message}`);
      } else {
        sent.acknowledgedAt = world.now;
        world.counts.acknowledged++;
        world.happened("acknowledged");
      }
      this.#pump();
    });
    this.#leaving = undefined;
  }

  #handleSend(packet: Packet): void {
    const world = this.#world;
    if (packet.cmd === "pubrel") world.happened("released");
    if (packet.cmd !== "publish") return;
    const id = packet.messageId ?? 0;
    if (this.#leaving !== undefined) this.#numberOf.set(id, this.#leaving);
    const number = this.#numberOf.get(id) ?? -1;
    this.sent[number]?.attempts.push({ at: world.now, connection: this.#connection, node: this.#node });
    world.trace(`${this.name} > publish ${number} id ${id} c${this.#connection} ${this.#node}`);
    world.happened("sent");
  }

  #handlePacket(packet: Packet): void {
    const world = this.#world;
    if (packet.cmd === "connack") {
      const code = packet.reasonCode ?? packet.returnCode ?? 0;
      world.trace(`${this.name} < connack ${code} present ${packet.sessionPresent} c${this.#connection} ${this.#node}`);
      if (code !== 0) return;
      if (this.#wasConnected && !packet.sessionPresent) world.violate(`session: ${this.name} came back to none`);
      this.#wasConnected = true;
      world.counts.connected++;
      world.happened("connected");
      return;
    }
    if (packet.cmd !== "puback" && packet.cmd !== "pubrec" && packet.cmd !== "pubcomp") return;
    const sent = this.sent[this.#numberOf.get(packet.messageId ?? 0) ?? -1];
    world.trace(`${this.name} < ${packet.cmd} ${sent?.number} id ${packet.messageId} rc ${packet.reasonCode ?? 0}`);
    // Somebody always listens, but to what is kept.
    if (packet.cmd === "puback" && packet.reasonCode === 0x10 && this.options.area !== "keep")
      world.violate(`unheard: ${this.name} ${sent?.number} had no matching subscribers`);
    if (packet.cmd !== "pubrec") return;
    if (sent) sent.receivedAt ??= world.now;
    world.happened("received");
  }
}
