// A persistent session that comes and goes: it disconnects, is cut, stays away, connects to another node while the older
// connection is still open. It may acknowledge slowly, share its subscription with a group, or end and renew it.

import { setTimeout as sleep } from "node:timers/promises";
import mqtt, { Store } from "mqtt";
import type { IConnackPacket, MqttClient } from "mqtt";
import type { Packet } from "mqtt-packet";
import { WebSocket } from "ws";

import type { Publisher, Sent } from "./publisher.ts";
import { lasting, pick, pinged, type Span, type World } from "./world.ts";

/** An older connection is closed before a newer one is let in; soon the broker is killed, and all connections with it. */
const closingMs = 800;

export interface SubscriberOptions {
  readonly version: 4 | 5;
  readonly qos: 1 | 2;
  readonly filters: readonly string[];
  /** The first level of the topics that they match. */
  readonly area: "chaos" | "rare" | "will";
  /** Reconnects to any of them; with one only it stays connected. */
  readonly nodes: readonly string[];
  /** How long it stays away, in ms at most; Infinity: once, until the end. */
  readonly awayMs: number;
  /** Subscribes again whenever it connects, as many clients do. */
  readonly resubscribes?: true;
  /** Unsubscribes and subscribes while it is connected. */
  readonly changes?: true;
  /** Its filters are those of this share group. */
  readonly group?: string;
  /** MQTT 5.0. */
  readonly receiveMaximum?: number;
  /** How long an acknowledgement takes, in ms at most. */
  readonly tardyMs?: number;
}

export interface Arrival {
  readonly at: number;
  /** Counts this subscriber's arrivals. */
  readonly order: number;
  readonly connection: number;
  readonly node: string;
  readonly packetId: number;
  readonly dup: boolean;
}

interface Link {
  readonly client: MqttClient;
  readonly socket: WebSocket;
  readonly node: string;
  readonly connection: number;
  readonly sessionPresent: boolean;
  readonly closed: Promise<void>;
}

export class Subscriber {
  readonly name: string;
  readonly options: SubscriberOptions;
  /** By publisher, then by number. */
  readonly arrivals = new Map<string, Arrival[][]>();
  /** From SUBACK to UNSUBSCRIBE, and from UNSUBACK to SUBSCRIBE. */
  readonly subscribed: Span[] = [];
  readonly unsubscribed: Span[] = [];
  readonly #world: World;
  readonly #random: () => number;
  /** QoS 2 messages between PUBLISH and PUBREL: a client keeps them with its session. */
  readonly #store = new Store({ clean: false });
  #arrived = 0;
  #connections = 0;
  #link: Link | undefined;
  #hasEnded = false;

  constructor(world: World, index: number, options: SubscriberOptions) {
    const { version, qos, area, nodes, group } = options;
    this.name = `${group ?? "s"}${index}-${area}-v${version}-qos${qos}${nodes.length > 1 ? "-moves" : ""}`;
    this.options = options;
    this.#world = world;
    this.#random = world.random();
  }

  /** The session begins. */
  async start(): Promise<void> {
    this.#link = await this.#connect();
    await this.#subscribe(this.#link);
  }

  async #subscribe({ client, connection }: Link): Promise<void> {
    const world = this.#world;
    const { filters, qos } = this.options;
    const asked = world.now;
    const before = this.unsubscribed.at(-1);
    if (before?.to === Infinity) before.to = asked;
    world.trace(`${this.name} c${connection} subscribes`);
    const current = this.subscribed.at(-1);
    try {
      await client.subscribeAsync([...filters], { qos });
    } catch (error) {
      // A SUBACK that refuses may end what there was; a connection that is cut does not.
      if ((error as { packet?: unknown }).packet === undefined) throw error;
      if (current?.to === Infinity) current.to = asked;
      if (!world.mayRefuse({ from: asked, to: world.now })) world.violate(`refused: ${this.name}: ${String(error)}`);
      throw error;
    }
    if (current?.to !== Infinity) this.subscribed.push({ from: world.now, to: Infinity });
  }

  async #unsubscribe({ client, connection }: Link): Promise<void> {
    const world = this.#world;
    const before = this.subscribed.at(-1);
    if (before?.to === Infinity) before.to = world.now;
    world.trace(`${this.name} c${connection} unsubscribes`);
    await client.unsubscribeAsync([...this.options.filters]);
    this.unsubscribed.push({ from: world.now, to: Infinity });
  }

  /** From before the message was sent until it was acknowledged. */
  wasSubscribed(sent: Sent): boolean {
    return this.#during(this.subscribed, sent);
  }

  wasUnsubscribed(sent: Sent): boolean {
    return this.#during(this.unsubscribed, sent);
  }

  #during(spans: readonly Span[], { attempts, acknowledgedAt = Infinity }: Sent): boolean {
    const sentAt = attempts[0]?.at ?? 0;
    return spans.some(({ from, to }) => {
      // What waited for a node out of reach goes to who has its filter there when it comes.
      const isLate = to < Infinity && this.#world.isOutage({ from: sentAt, to });
      return from < sentAt && acknowledgedAt < to && !isLate;
    });
  }

  /** Comes and goes until the world stops; then it is connected and subscribed, and stays so. */
  async run(): Promise<void> {
    const world = this.#world;
    const isAwayOnce = this.options.awayMs === Infinity;
    while (!world.stopping) {
      const link = this.#link ?? (await this.#connect());
      this.#link = link;
      const stays = this.options.nodes.length > 1 ? 50 + this.#random() * 1200 : 60_000;
      const leaving = sleep(stays, undefined, { ref: false });
      await Promise.race([link.closed, leaving, world.whenStopping, this.#change(link)]);
      if (world.stopping) break;
      this.#link = undefined;
      if (!link.client.connected) continue;
      await this.#leave(link);
      if (isAwayOnce) await world.whenStopping;
    }
    await this.#settle();
    void this.#stay();
  }

  /** Connected and, if it may not be, subscribed. */
  async #settle(): Promise<void> {
    const isInDoubt = this.options.changes ?? this.options.resubscribes ?? false;
    for (;;) {
      if (!this.#link?.client.connected) this.#link = await this.#connect();
      if (!isInDoubt) return;
      try {
        return await this.#subscribe(this.#link);
      } catch (error) {
        this.#world.trace(`${this.name} ${String(error)}`);
      }
    }
  }

  /** A node that dies may leave its end of a connection open: only the keep alive tells then. */
  async #stay(): Promise<void> {
    while (!this.#hasEnded) {
      await this.#link?.closed;
      if (this.#hasEnded) return;
      this.#world.trace(`${this.name} has lost its connection`);
      this.#link = await this.#connect();
    }
  }

  /** Ends and renews the subscription; never ends by itself. */
  async #change(link: Link): Promise<void> {
    const isOver = (): boolean => this.#world.stopping || this.#link !== link || !link.client.connected;
    try {
      while (this.options.changes && !isOver()) {
        await sleep(this.#random() * 800, undefined, { ref: false });
        if (isOver()) break;
        if (this.subscribed.at(-1)?.to === Infinity) await this.#unsubscribe(link);
        else await this.#subscribe(link);
      }
    } catch (error) {
      this.#world.trace(`${this.name} c${link.connection} ${String(error)}`);
    }
    return new Promise(() => {});
  }

  async #leave(link: Link): Promise<void> {
    const world = this.#world;
    const how = this.#random();
    const isMoving = how < 0.5 && this.options.awayMs < Infinity;
    world.trace(`${this.name} ${isMoving ? "moves" : how < 0.75 ? "cuts" : "disconnects"} c${link.connection}`);
    if (isMoving) {
      // It hears nothing more on the older connection, and the broker does not know.
      link.socket.pause();
      world.happened("moving");
      this.#link = await this.#connect();
      void this.#expectEnd(link);
      return;
    }
    if (how < 0.75) link.client.end(true);
    else link.client.end(false);
    await link.closed;
    if (this.options.awayMs < Infinity) await sleep(this.#random() * this.options.awayMs);
  }

  /** Another connection has the session: the broker closes this one. [G4] */
  async #expectEnd({ client, socket, connection, node }: Link): Promise<void> {
    // What comes on it is no concern of the client any more.
    client.removeAllListeners("message");
    client.removeAllListeners("packetreceive");
    socket.removeAllListeners("message");
    const isClosed = new Promise<boolean>((resolve) => socket.once("close", () => resolve(true)));
    if (socket.readyState === WebSocket.CLOSED) return;
    socket.resume();
    const isOver = await Promise.race([isClosed, sleep(closingMs, false, { ref: false })]);
    if (!isOver) this.#world.violate(`two: ${this.name} is still connected by connection ${connection} to ${node}`);
    client.end(true);
    socket.terminate();
  }

  async #connect(): Promise<Link> {
    for (;;) {
      await this.#world.whenUp();
      const link = await this.#tryConnect();
      if (link) return link;
      await sleep(20);
    }
  }

  async #tryConnect(): Promise<Link | undefined> {
    const world = this.#world;
    const { version, nodes, receiveMaximum, tardyMs } = this.options;
    const node = pick(nodes, this.#random());
    const connection = ++this.#connections;
    let socket: WebSocket | undefined;
    const client = mqtt.connect(world.broker.urlOf(node), {
      ...lasting(version, this.name, receiveMaximum === undefined ? {} : { receiveMaximum }),
      reconnectPeriod: 0,
      incomingStore: this.#store,
      createWebsocket: (url, protocols) => (socket = new WebSocket(url, protocols)),
      ...(tardyMs === undefined
        ? {}
        : {
            // Nothing is done for a connection that is gone.
            customHandleAcks: (_topic, _payload, _packet, done) =>
              setTimeout(() => client.connected && done(0), world.stopping ? 0 : this.#random() * tardyMs),
          }),
    });
    world.happened("connecting");
    client.on("error", (error) => world.trace(`${this.name} c${connection} error ${error.message}`));
    client.on("message", (topic, payload, { messageId = 0, dup }) =>
      this.#handleMessage(topic, payload.toString(), {
        at: world.now,
        order: this.#arrived++,
        connection,
        node,
        packetId: messageId,
        dup,
      }),
    );
    client.on("packetreceive", (packet) => this.#trace("<", packet, connection));
    client.on("packetsend", (packet) => this.#trace(">", packet, connection));
    const closed = new Promise<void>((resolve) => client.once("close", resolve));
    const connack = await Promise.race([
      new Promise<IConnackPacket>((resolve) => client.once("connect", resolve)),
      closed.then((): undefined => undefined),
    ]);
    if (!connack || !socket) {
      client.end(true);
      return undefined;
    }
    world.counts.connected++;
    world.happened("connected");
    world.trace(`${this.name} c${connection} connected to ${node} present ${connack.sessionPresent}`);
    const link: Link = { client, socket, node, connection, sessionPresent: connack.sessionPresent, closed };
    const isNew = this.subscribed.length === 0;
    if (!connack.sessionPresent && !isNew) {
      world.violate(`session: ${this.name} came back to none at ${node}, connection ${connection}`);
      await this.#subscribe(link).catch(() => {});
    } else if (this.options.resubscribes && !isNew)
      this.#subscribe(link).catch((error: unknown) => world.trace(`${this.name} c${connection} ${String(error)}`));
    return link;
  }

  #trace(direction: string, packet: Packet, connection: number): void {
    if (!this.#world.isTraced || packet.cmd === "pingreq" || packet.cmd === "pingresp") return;
    const id = "messageId" in packet ? ` id ${packet.messageId}` : "";
    const more = packet.cmd === "publish" ? ` ${packet.payload.toString()} qos ${packet.qos} dup ${packet.dup}` : "";
    const code = "reasonCode" in packet ? ` rc ${packet.reasonCode}` : "";
    this.#world.trace(`${this.name} c${connection} ${direction} ${packet.cmd}${id}${more}${code}`);
  }

  #handleMessage(topic: string, payload: string, arrival: Arrival): void {
    const world = this.#world;
    const { area } = this.options;
    const [publisher = "", number = ""] = payload.split(" ");
    const n = Number(number);
    if (topic !== `${area}/${publisher}`) return world.violate(`strange: ${this.name} got "${payload}" on ${topic}`);
    let ofPublisher = this.arrivals.get(publisher);
    if (!ofPublisher) this.arrivals.set(publisher, (ofPublisher = []));
    (ofPublisher[n] ??= []).push(arrival);
    world.counts.delivered++;
    world.happened("delivered");
  }

  arrivalsOf(name: string, number: number): readonly Arrival[] {
    return this.arrivals.get(name)?.[number] ?? [];
  }

  hears({ options }: Publisher): boolean {
    return options.area === this.options.area;
  }

  /** Still connected, and answered. */
  async ping(): Promise<void> {
    if (!this.#link) throw new Error(`${this.name} has no connection`);
    await pinged(this.#link.client, this.name);
  }

  end(): void {
    this.#hasEnded = true;
    this.#link?.client.end(true);
  }
}

export function where({ at, connection, node, packetId, dup }: Arrival): string {
  return `${at} ms on connection ${connection} to ${node} id ${packetId}${dup ? " dup" : ""}`;
}
