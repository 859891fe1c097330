// A client with a will, over and over. Each connection has a will of its own, told by its number; when the connection is
// cut, by the client, by a crash or by the client's next connection, it is published: at once, or when its delay is over
// and the client has not come back.

import { setTimeout as sleep } from "node:timers/promises";
import mqtt from "mqtt";
import type { IConnackPacket, MqttClient } from "mqtt";
import { WebSocket } from "ws";

import { busyNodes, lasting, pick, type World } from "./world.ts";

export interface MortalOptions {
  readonly version: 4 | 5;
  readonly qos: 1 | 2;
  /** MQTT 5.0. */
  readonly delaySeconds: number;
}

/** One connection that was let in, and how it ended as the client sees it; in ms since the start. */
interface Life {
  readonly number: number;
  readonly node: string;
  readonly triedAt: number;
  readonly connectedAt: number;
  endedAt: number;
  /** left: with DISCONNECT, and the broker has closed in turn. cut: without. unclear: DISCONNECT may not have come. */
  end: "left" | "cut" | "unclear";
}

/** Between what the client sees and what the broker sees of an end. */
const slackMs = 700;

export class Mortal {
  readonly name: string;
  readonly options: MortalOptions;
  readonly lives: Life[] = [];
  readonly #world: World;
  readonly #random: () => number;
  #connections = 0;

  constructor(world: World, index: number, options: MortalOptions) {
    this.name = `mortal${index}-v${options.version}-qos${options.qos}-delay${options.delaySeconds}`;
    this.options = options;
    this.#world = world;
    this.#random = world.random();
  }

  async run(): Promise<void> {
    while (!this.#world.stopping) {
      await this.#world.whenUp();
      await this.#live();
      await sleep(this.#random() * (this.options.delaySeconds > 0 ? 2500 : 600));
    }
  }

  async #live(): Promise<void> {
    const world = this.#world;
    const { version, qos, delaySeconds } = this.options;
    const number = this.#connections++;
    const node = pick(busyNodes, this.#random());
    const triedAt = world.now;
    let socket!: WebSocket;
    let code = 0;
    const client: MqttClient = mqtt.connect(world.broker.urlOf(node), {
      ...lasting(version, this.name),
      reconnectPeriod: 0,
      will: {
        topic: `will/${this.name}`,
        payload: Buffer.from(`${this.name} ${number}`),
        qos,
        retain: false,
        ...(version === 5 ? { properties: { willDelayInterval: delaySeconds } } : {}),
      },
      createWebsocket: (url, protocols) => {
        socket = new WebSocket(url, protocols);
        socket.once("close", (closeCode) => (code = closeCode));
        return socket;
      },
    });
    client.on("error", (error) => world.trace(`${this.name} c${number} error ${error.message}`));
    const closed = new Promise<void>((resolve) => client.once("close", resolve));
    const connack = await Promise.race([
      new Promise<IConnackPacket>((resolve) => client.once("connect", resolve)),
      closed.then((): undefined => undefined),
    ]);
    if (!connack) return void client.end(true);
    world.trace(`${this.name} c${number} connected to ${node} present ${connack.sessionPresent}`);
    if (this.lives.length > 0 && !connack.sessionPresent)
      world.violate(`session: ${this.name} came back to none at ${node}, connection ${number}`);
    const life: Life = { number, node, triedAt, connectedAt: world.now, endedAt: Infinity, end: "cut" };
    this.lives.push(life);
    await Promise.race([closed, sleep(50 + this.#random() * 1200, undefined, { ref: false })]);
    const how = this.#random();
    if (!client.connected) {
      // The broker was killed, or the node has crashed.
    } else if (how < 0.35) {
      client.end(false);
      await closed;
      // 1006: not closed by the broker, which may not have read what came before.
      life.end = code === 1006 ? "unclear" : "left";
    } else if (how < 0.7) socket.terminate();
    else {
      // The client forgets the connection, and the broker is to find out when the next one comes.
      socket.pause();
      void world.whenStopping.then(() => socket.terminate());
    }
    life.endedAt = world.now;
    world.trace(`${this.name} c${number} ended: ${life.end} (${code})`);
  }

  /** What must have come by now and has not, at a listener who was there all along. */
  missing(came: (number: number) => number): string[] {
    return this.lives
      .filter((life, index) => this.#isDue(life, this.lives[index + 1]) && !this.#hasCome(life, came))
      .map((life) => this.#describe(life));
  }

  /** Or that of a later connection, which the broker may have let in without the client's knowing: it was back in time. */
  #hasCome({ number }: Life, came: (number: number) => number): boolean {
    const until = this.options.delaySeconds === 0 ? number : this.#connections - 1;
    for (let each = number; each <= until; each++) if (came(each) > 0) return true;
    return false;
  }

  /** What must not have come, or not that often. */
  surplus(came: (number: number) => number): string[] {
    return this.lives.flatMap((life, index) => {
      const times = came(life.number);
      if (times > 0 && this.#isAverted(life, this.lives[index + 1])) return [`published: ${this.#describe(life)}`];
      if (times > 1 && this.options.qos === 2) return [`${times} times: ${this.#describe(life)}`];
      return [];
    });
  }

  #isDue(life: Life, next: Life | undefined): boolean {
    if (life.end !== "cut") return false;
    if (this.options.delaySeconds === 0) return true;
    // The delay begins when the broker notices the end, which a crash puts off, so a client that comes back may be in time.
    return next === undefined;
  }

  #isAverted(life: Life, next: Life | undefined): boolean {
    if (life.end === "left") return true;
    return next !== undefined && next.connectedAt + slackMs < life.endedAt + this.options.delaySeconds * 1000;
  }

  #describe({ number, node, connectedAt, endedAt, end }: Life): string {
    return `${this.name} ${number} (at ${node} from ${connectedAt} to ${endedAt} ms, ${end})`;
  }
}
