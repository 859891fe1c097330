import { setTimeout as sleep } from "node:timers/promises";
import mqtt from "mqtt";
import type { MqttClient } from "mqtt";

import { busyNodes, pick, pinged, type World } from "./world.ts";

/** Clean sessions, each with a topic of its own: what another node publishes right after their SUBACK reaches them. [G3] */
export class Prober {
  readonly #name: string;
  readonly #world: World;
  readonly #random: () => number;

  constructor(world: World, index: number) {
    this.#name = `probe${index}`;
    this.#world = world;
    this.#random = world.random();
  }

  async run(): Promise<void> {
    const world = this.#world;
    for (let number = 0; !world.stopping; number++) {
      await world.whenUp();
      const name = `${this.#name}-${number}`;
      const clients = [this.#connect(`${name}-from`), this.#connect(`${name}-to`)] as const;
      try {
        await this.#probe(...clients, `probe/${name}`);
      } catch (error) {
        // Nothing is known of a message whose publisher or subscriber is gone.
        world.trace(`${name} ${String(error)}`);
      }
      for (const client of clients) client.end(true);
      await sleep(this.#random() * 100);
    }
  }

  #connect(clientId: string): MqttClient {
    const url = this.#world.broker.urlOf(pick(busyNodes, this.#random()));
    const client = mqtt.connect(url, { protocolVersion: 5, clientId, reconnectPeriod: 0 });
    client.on("error", (error) => this.#world.trace(`${clientId} ${error.message}`));
    return client;
  }

  async #probe(from: MqttClient, to: MqttClient, topic: string): Promise<void> {
    const gone = new Promise<never>((_, reject) => {
      for (const client of [from, to]) client.once("close", () => reject(new Error("a connection is gone")));
    });
    const held = <T>(promise: Promise<T>): Promise<T> => Promise.race([promise, gone]);
    let count = 0;
    to.on("message", () => count++);
    await held(Promise.all([from, to].map((client) => new Promise((resolve) => client.once("connect", resolve)))));
    await held(to.subscribeAsync(topic, { qos: 1 }));
    const sentAt = this.#world.now;
    await held(from.publishAsync(topic, "heard", { qos: 1 }));
    await held(pinged(to, topic));
    // What is meant for a node that cannot be reached comes later.
    const isLate = this.#world.isOutage({ from: sentAt, to: this.#world.now });
    if (count === 0 && !isLate) this.#world.violate(`unheard: ${topic} was published after SUBACK`);
  }
}
