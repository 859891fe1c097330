import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import mqtt from "mqtt";

import { busyNodes, pick, type World } from "./world.ts";

/** Clean sessions that subscribe to everything for a while, one after the other: routes come and go. */
export class Passer {
  readonly #world: World;
  readonly #random: () => number;

  constructor(world: World) {
    this.#world = world;
    this.#random = world.random();
  }

  async run(): Promise<void> {
    const world = this.#world;
    while (!world.stopping) {
      await world.whenUp();
      const client = mqtt.connect(world.broker.urlOf(pick(busyNodes, this.#random())), {
        protocolVersion: 5,
        clientId: `passer-${randomUUID()}`,
        reconnectPeriod: 0,
      });
      client.on("error", () => {});
      const closed = new Promise<void>((resolve) => client.once("close", () => resolve()));
      client.once("connect", () => client.subscribe("chaos/#", { qos: 1 }));
      await Promise.race([closed, sleep(100 + this.#random() * 600)]);
      if (this.#random() < 0.5 && client.connected) client.unsubscribe("chaos/#");
      client.end(true);
      await sleep(this.#random() * 300);
    }
  }
}
