// Chaos: what G1, G2 and G4 promise, while the broker is killed again and again.
//
// Publishers send numbered messages at QoS 1 and 2, a window at a time, and resend after a reconnect what was not
// acknowledged, as MQTT.js does by itself. Subscribers have persistent sessions; they disconnect, are cut, connect to
// another node while the older connection is still open, and stay away for a while. Meanwhile workerd gets SIGKILL at
// moments that the seed chooses, most of them within milliseconds of a packet, and is started again on the same data.
//
// At the end everything drains: the last message of each publisher is its marker. Messages of one publisher arrive in
// order, so whoever has the marker has all that will ever come, but for what a PINGRESP still shows. Then:
//
//   lost        acknowledged, and not there at a session that was subscribed all along
//   twice       at QoS 2 from end to end
//   order       a first arrival behind a later message's
//   session     not present at a reconnect
//   stuck       nothing moves any more, and something is still owed
//
//   CHAOS_SEED=7 npm run chaos     the same decisions again (not the same timing)
//   CHAOS_RESTARTS=200 ...           a longer run
//   CHAOS_TRACE=trace.txt ...        everything that happened, line by line

import { randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import mqtt, { Store, UniqueMessageIdProvider } from "mqtt";
import type { IClientOptions, IConnackPacket, MqttClient } from "mqtt";
import type { Packet } from "mqtt-packet";
import { expect, test } from "vitest";
import { WebSocket } from "ws";

import { startBroker, type Broker } from "../support/broker.ts";
import { slot } from "../support/client.ts";
import { random } from "../support/random.ts";

const seed = Number(process.env.CHAOS_SEED ?? 3);
const restarts = Number(process.env.CHAOS_RESTARTS ?? 20);
const traceFile = process.env.CHAOS_TRACE;

const nodes = 4;
/** Publishes of one publisher under way; below every Receive Maximum. */
const windowMax = 16;
/** Without any progress for this long, whoever still waits is stuck. */
const patienceMs = 20_000;
const filterOfAll = "chaos/#";

/** What happens, for the moments at which the broker is killed. */
type Happening =
  | "sent"
  | "acknowledged"
  | "received"
  | "released"
  | "delivered"
  | "connecting"
  | "connected"
  | "moving";
const happenings: readonly Happening[] = [
  "sent",
  "acknowledged",
  "received",
  "released",
  "delivered",
  "connecting",
  "connected",
  "moving",
];

interface Arrival {
  readonly at: number;
  readonly connection: number;
  readonly node: string;
  readonly packetId: number;
  readonly dup: boolean;
}

/** One publish, as its publisher sees it. */
interface Sent {
  readonly number: number;
  /** Each time the PUBLISH left. */
  readonly attempts: { at: number; connection: number; node: string }[];
  /** ms since the start; the first PUBREC. */
  receivedAt: number | undefined;
  acknowledgedAt: number | undefined;
}

class World {
  readonly #random: () => number;
  readonly violations: string[] = [];
  readonly publishers: Publisher[] = [];
  readonly subscribers: Subscriber[] = [];
  readonly kills: number[] = [];
  readonly counts = { sent: 0, acknowledged: 0, delivered: 0, connected: 0 };
  broker!: Broker;
  stopping = false;
  readonly #stopped = Promise.withResolvers<void>();
  lastProgress = Date.now();
  #up = Promise.resolve();
  #awaited: { kind: Happening; count: number; resolve: () => void } | undefined;
  readonly #startedAt = Date.now();
  readonly #trace: string[] = [];

  constructor(seed: number) {
    this.#random = random(seed);
  }

  /** A source of its own for each actor: what one draws does not depend on when the others do. */
  random(): () => number {
    return random(Math.floor(this.#random() * 2 ** 32));
  }

  get now(): number {
    return Date.now() - this.#startedAt;
  }

  trace(line: string): void {
    this.#trace.push(`${this.now} ${line}`);
  }

  violate(line: string): void {
    this.trace(`VIOLATION ${line}`);
    this.violations.push(line);
  }

  progress(line: string): void {
    this.trace(line);
    process.stdout.write(`chaos ${(this.now / 1000).toFixed(1)} s: ${line}\n`);
  }

  happened(kind: Happening): void {
    // Connections alone are none: a client that comes back again and again may be stuck all the same.
    if (kind === "acknowledged" || kind === "received" || kind === "delivered") this.lastProgress = Date.now();
    const awaited = this.#awaited;
    if (awaited?.kind !== kind || --awaited.count > 0) return;
    this.#awaited = undefined;
    awaited.resolve();
  }

  /** Resolves at once when it has happened so many times more, or when it does not come. */
  async next(kind: Happening, count: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#awaited = { kind, count, resolve };
    await Promise.race([promise, sleep(2000)]);
    this.#awaited = undefined;
  }

  get whenStopping(): Promise<void> {
    return this.#stopped.promise;
  }

  stop(): void {
    this.stopping = true;
    this.#stopped.resolve();
  }

  whenUp(): Promise<void> {
    return this.#up;
  }

  async crash(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#up = promise;
    this.kills.push(this.now);
    this.trace("KILL");
    await this.broker.kill();
    await this.broker.restart();
    this.trace("RESTARTED");
    resolve();
  }

  /** Polls, as what is waited for has no event of its own; ends when nothing moves any more. */
  async until(what: string, waiting: () => string[]): Promise<void> {
    this.lastProgress = Date.now();
    for (;;) {
      const left = waiting();
      if (left.length === 0) return;
      if (Date.now() > this.lastProgress + patienceMs) {
        for (const who of left) this.violate(`stuck: ${who} (${what})`);
        return;
      }
      await sleep(20);
    }
  }

  writeTrace(): void {
    if (traceFile) writeFileSync(traceFile, `${this.#trace.join("\n")}\n\n${this.broker.output()}`);
  }
}

interface PublisherOptions {
  readonly version: 4 | 5;
  readonly qos: 1 | 2;
  /** Reconnects to any node, or always to the same. */
  readonly moves: boolean;
}

class Publisher {
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
  #wasConnected = false;
  #ready = false;
  #budget = 0;
  #underWay = 0;

  constructor(world: World, index: number, options: PublisherOptions) {
    this.name = `p${index}-v${options.version}-qos${options.qos}${options.moves ? "-moves" : ""}`;
    this.options = options;
    this.#world = world;
    this.#random = world.random();
    this.#node = slot(index % nodes);
    this.client = mqtt.connect(world.broker.url, {
      ...lasting(options.version, this.name),
      reconnectPeriod: 60,
      reconnectOnConnackError: true,
      // The lowest free packet id: what a session remembers of one by mistake soon meets the next message.
      messageIdProvider: new UniqueMessageIdProvider(),
      transformWsUrl: () => {
        if (options.moves) this.#node = slot(Math.floor(this.#random() * nodes));
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
      this.#ready = true;
      this.#pump();
    });
    this.client.on("close", () => {
      this.#ready = false;
      world.trace(`${this.name} closed`);
    });
  }

  /** What is to be acknowledged or sent yet. */
  get owed(): number {
    return this.#underWay + this.#budget;
  }

  async run(): Promise<void> {
    while (!this.#world.stopping) {
      this.#budget += Math.floor(this.#random() * windowMax * 1.5);
      this.#pump();
      await sleep(this.#random() * 150);
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
    while (this.#ready && this.#budget > 0 && this.#underWay < windowMax) {
      this.#budget--;
      this.#publish();
    }
  }

  #publish(): void {
    const world = this.#world;
    const number = this.sent.length;
    const sent: Sent = {
      number,
      attempts: [],
      receivedAt: undefined,
      acknowledgedAt: undefined,
    };
    this.sent.push(sent);
    this.#underWay++;
    world.counts.sent++;
    this.client.publish(`chaos/${this.name}`, `${this.name} ${number}`, { qos: this.options.qos }, (error) => {
      this.#underWay--;
      if (error) {
        world.violate(`refused: ${this.name} ${number}: ${error.message}`);
      } else {
        sent.acknowledgedAt = world.now;
        world.counts.acknowledged++;
        world.happened("acknowledged");
      }
      this.#pump();
    });
  }

  #handleSend(packet: Packet): void {
    if (packet.cmd === "pubrel") this.#world.happened("released");
    if (packet.cmd !== "publish") return;
    const number = Number(packet.payload.toString().split(" ")[1]);
    this.#numberOf.set(packet.messageId ?? 0, number);
    this.sent[number]?.attempts.push({ at: this.#world.now, connection: this.#connection, node: this.#node });
    this.#world.trace(`${this.name} > publish ${number} id ${packet.messageId} c${this.#connection} ${this.#node}`);
    this.#world.happened("sent");
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
    // Everybody subscribes all along.
    if (packet.cmd === "puback" && packet.reasonCode === 0x10)
      world.violate(`unheard: ${this.name} ${sent?.number} had no matching subscribers`);
    if (packet.cmd !== "pubrec") return;
    if (sent) sent.receivedAt ??= world.now;
    world.happened("received");
  }
}

interface SubscriberOptions {
  readonly version: 4 | 5;
  readonly qos: 1 | 2;
  readonly filters: readonly string[];
  /** Reconnects to any node, or always to the same. */
  readonly moves: boolean;
  /** How long it stays away, in ms at most. */
  readonly awayMs: number;
  /** Subscribes again whenever it connects, as many clients do. */
  readonly resubscribes?: true;
  /** MQTT 5.0. */
  readonly receiveMaximum?: number;
}

interface Link {
  readonly client: MqttClient;
  readonly socket: WebSocket;
  readonly node: string;
  readonly connection: number;
  readonly sessionPresent: boolean;
  readonly closed: Promise<void>;
}

class Subscriber {
  readonly name: string;
  readonly options: SubscriberOptions;
  /** By publisher, then by number. */
  readonly arrivals = new Map<string, Arrival[][]>();
  readonly #world: World;
  readonly #random: () => number;
  readonly #home: string;
  /** QoS 2 messages between PUBLISH and PUBREL: a client keeps them with its session. */
  readonly #store = new Store({ clean: false });
  readonly #latest = new Map<string, number>();
  #connections = 0;
  #link: Link | undefined;

  constructor(world: World, index: number, options: SubscriberOptions) {
    this.name = `s${index}-v${options.version}-qos${options.qos}${options.moves ? "-moves" : ""}`;
    this.options = options;
    this.#world = world;
    this.#random = world.random();
    this.#home = slot(index % nodes);
  }

  /** The session begins. */
  async subscribe(): Promise<void> {
    const link = await this.#connect();
    await this.#subscribeOn(link);
    this.#link = link;
  }

  async #subscribeOn({ client }: Link): Promise<void> {
    const granted = await client.subscribeAsync([...this.options.filters], { qos: this.options.qos });
    for (const { topic, qos } of granted)
      if (qos !== this.options.qos) this.#world.violate(`refused: ${this.name} ${topic} was granted ${qos}`);
  }

  /** Comes and goes until the world stops; then it is connected. */
  async run(): Promise<void> {
    const world = this.#world;
    while (!world.stopping) {
      const link = this.#link ?? (await this.#connect());
      this.#link = undefined;
      const stays = this.options.moves ? 50 + this.#random() * 1200 : 60_000;
      await Promise.race([link.closed, sleep(stays, undefined, { ref: false }), world.whenStopping]);
      if (world.stopping && !link.client.connected) break;
      if (world.stopping) {
        this.#link = link;
        return;
      }
      if (!link.client.connected) continue;
      await this.#leave(link);
    }
    this.#link = await this.#connect();
  }

  async #leave(link: Link): Promise<void> {
    const world = this.#world;
    const how = this.#random();
    const isMoving = how < 0.5;
    world.trace(`${this.name} ${isMoving ? "moves" : how < 0.75 ? "cuts" : "disconnects"} c${link.connection}`);
    if (isMoving) {
      // It hears nothing more on the older connection, and the broker does not know.
      link.socket.pause();
      world.happened("moving");
      this.#link = await this.#connect();
      link.client.end(true);
      link.socket.terminate();
      return;
    }
    if (how < 0.75) link.client.end(true);
    else link.client.end(false);
    await link.closed;
    await sleep(this.#random() * this.options.awayMs);
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
    const { version, moves, receiveMaximum } = this.options;
    const node = moves ? slot(Math.floor(this.#random() * nodes)) : this.#home;
    const connection = ++this.#connections;
    let socket: WebSocket | undefined;
    const client = mqtt.connect(world.broker.urlOf(node), {
      ...lasting(version, this.name, receiveMaximum),
      reconnectPeriod: 0,
      incomingStore: this.#store,
      createWebsocket: (url, protocols) => (socket = new WebSocket(url, protocols)),
    });
    world.happened("connecting");
    client.on("error", (error) => world.trace(`${this.name} c${connection} error ${error.message}`));
    client.on("message", (topic, payload, { messageId = 0, dup }) =>
      this.#handleMessage(topic, payload.toString(), { at: world.now, connection, node, packetId: messageId, dup }),
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
    const link: Link = { client, socket, node, connection, sessionPresent: connack.sessionPresent, closed };
    if (!connack.sessionPresent && this.arrivals.size > 0) {
      world.violate(`session: ${this.name} came back to none at ${node}, connection ${connection}`);
      await this.#subscribeOn(link).catch(() => {});
    } else if (this.options.resubscribes && this.arrivals.size > 0)
      this.#subscribeOn(link).catch((error: unknown) => world.trace(`${this.name} c${connection} ${String(error)}`));
    return link;
  }

  #trace(direction: string, packet: Packet, connection: number): void {
    if (!traceFile || packet.cmd === "pingreq" || packet.cmd === "pingresp") return;
    const id = "messageId" in packet ? ` id ${packet.messageId}` : "";
    const more = packet.cmd === "publish" ? ` ${packet.payload.toString()} qos ${packet.qos} dup ${packet.dup}` : "";
    const code = "reasonCode" in packet ? ` rc ${packet.reasonCode}` : "";
    this.#world.trace(`${this.name} c${connection} ${direction} ${packet.cmd}${id}${more}${code}`);
  }

  #handleMessage(topic: string, payload: string, arrival: Arrival): void {
    const world = this.#world;
    const [publisher = "", number = ""] = payload.split(" ");
    const n = Number(number);
    if (topic !== `chaos/${publisher}`) return world.violate(`strange: ${this.name} got "${payload}" on ${topic}`);
    let ofPublisher = this.arrivals.get(publisher);
    if (!ofPublisher) this.arrivals.set(publisher, (ofPublisher = []));
    const arrivals = (ofPublisher[n] ??= []);
    arrivals.push(arrival);
    world.counts.delivered++;
    world.happened("delivered");
    if (arrivals.length > 1) return;
    const latest = this.#latest.get(publisher) ?? -1;
    if (n < latest) world.violate(`order: ${this.name} got ${publisher} ${n} after ${latest} at ${where(arrival)}`); // [G2]
    else this.#latest.set(publisher, n);
  }

  hasArrived({ name, sent }: Publisher): boolean {
    return this.arrivals.get(name)?.[sent.length - 1] !== undefined;
  }

  /** Still connected, and answered. */
  async ping(): Promise<void> {
    if (!this.#link) throw new Error(`${this.name} has no connection`);
    await pinged(this.#link.client, this.name);
  }

  end(): void {
    this.#link?.client.end(true);
  }
}

/** A clean session that subscribes to everything for a while: routes come and go. */
class Passer {
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
      const client = mqtt.connect(world.broker.urlOf(slot(Math.floor(this.#random() * nodes))), {
        protocolVersion: 5,
        clientId: `passer-${randomUUID()}`,
        reconnectPeriod: 0,
      });
      client.on("error", () => {});
      const closed = new Promise<void>((resolve) => client.once("close", () => resolve()));
      client.once("connect", () => client.subscribe(filterOfAll, { qos: 1 }));
      await Promise.race([closed, sleep(100 + this.#random() * 600)]);
      if (this.#random() < 0.5 && client.connected) client.unsubscribe(filterOfAll);
      client.end(true);
      await sleep(this.#random() * 300);
    }
  }
}

/** Options of a session that lasts, in each version's own terms. */
function lasting(version: 4 | 5, clientId: string, receiveMaximum?: number): IClientOptions {
  const properties = { sessionExpiryInterval: 1000, ...(receiveMaximum === undefined ? {} : { receiveMaximum }) };
  return {
    protocolVersion: version,
    clientId,
    clean: false,
    keepalive: 60,
    connectTimeout: 15_000,
    resubscribe: false,
    ...(version === 5 ? { properties } : {}),
  };
}

async function pinged(client: MqttClient, name: string): Promise<void> {
  const answered = new Promise<void>((resolve) => {
    client.on("packetreceive", (packet) => {
      if (packet.cmd === "pingresp") resolve();
    });
  });
  client.sendPing();
  const late = sleep(patienceMs, undefined, { ref: false }).then(() => {
    throw new Error(`${name} has no PINGRESP`);
  });
  await Promise.race([answered, late]);
}

function where({ at, connection, node, packetId, dup }: Arrival): string {
  return `${at} ms on connection ${connection} to ${node} id ${packetId}${dup ? " dup" : ""}`;
}

/** What came more than once of what may come once, by what its publisher saw. */
function duplicates(world: World): Map<string, string[]> {
  const found = new Map<string, string[]>();
  const exact = world.subscribers.filter(({ options }) => options.qos === 2);
  for (const publisher of world.publishers)
    for (const sent of publisher.options.qos === 2 ? publisher.sent : []) {
      const twice = exact.filter((each) => (each.arrivals.get(publisher.name)?.[sent.number]?.length ?? 0) > 1);
      if (twice.length === 0) continue;
      const homes = new Set(sent.attempts.map(({ node }) => node));
      const pattern =
        sent.attempts.length === 1
          ? "PUBLISH left once"
          : homes.size > 1
            ? "PUBLISH resent on another node"
            : "PUBLISH resent on the same node";
      const lines = found.get(pattern) ?? [];
      found.set(pattern, lines);
      const tried = sent.attempts.map(({ at, connection, node }) => `${at} ms c${connection} ${node}`).join(", ");
      const came = twice.map(
        (each) => `${each.name}: ${each.arrivals.get(publisher.name)![sent.number]!.map(where).join(" and ")}`,
      );
      lines.push(
        `${publisher.name} ${sent.number} (sent ${tried}; PUBREC ${sent.receivedAt}) at ${twice.length} of ${exact.length}: ${came.join("; ")}`,
      );
    }
  return found;
}

/** The first of each kind, and how many there are. */
function summary(violations: readonly string[]): string[] {
  const kinds = Map.groupBy(violations, (line) => line.split(":")[0]!);
  return [...kinds].flatMap(([kind, lines]) => [`${lines.length} ${kind}`, ...lines.slice(0, 10)]);
}

test(
  `[G1] [G2] [G4] what was acknowledged arrives, in order, over ${restarts} crashes (CHAOS_SEED=${seed})`,
  { timeout: 240_000 + restarts * 3000 },
  async ({ onTestFinished }) => {
    const world = new World(seed);
    const draw = world.random();
    world.broker = await startBroker({
      env: { TRELLIS_MQTT__MAX_MQUEUE_LEN: "100000" },
    });
    onTestFinished(async () => {
      for (const publisher of world.publishers) publisher.client.end(true);
      for (const subscriber of world.subscribers) subscriber.end();
      world.writeTrace();
      await world.broker.stop();
    });

    const kinds = [
      { version: 4, qos: 1, moves: false },
      { version: 5, qos: 1, moves: false },
      { version: 4, qos: 2, moves: false },
      { version: 5, qos: 2, moves: false },
      { version: 5, qos: 1, moves: true },
      { version: 4, qos: 2, moves: true },
    ] as const;
    const topics = kinds.map(
      ({ version, qos, moves }, index) => `chaos/p${index}-v${version}-qos${qos}${moves ? "-moves" : ""}`,
    );
    const listeners: SubscriberOptions[] = [
      { version: 5, qos: 2, filters: [filterOfAll], moves: true, awayMs: 300 },
      { version: 4, qos: 2, filters: topics, moves: true, awayMs: 300, resubscribes: true },
      { version: 5, qos: 2, filters: [filterOfAll, "chaos/+"], moves: false, awayMs: 0 },
      { version: 5, qos: 1, filters: ["chaos/+"], moves: true, awayMs: 300, receiveMaximum: 4 },
      { version: 4, qos: 1, filters: [filterOfAll], moves: false, awayMs: 0 },
      { version: 5, qos: 2, filters: ["chaos/+"], moves: true, awayMs: 3000, receiveMaximum: 7 },
    ];
    for (const [index, options] of listeners.entries()) world.subscribers.push(new Subscriber(world, index, options));
    await Promise.all(world.subscribers.map((subscriber) => subscriber.subscribe()));
    for (const [index, options] of kinds.entries()) world.publishers.push(new Publisher(world, index, options));
    const publishing = Promise.all(world.publishers.map((each) => each.run()));
    const others = [...world.subscribers, new Passer(world), new Passer(world)];
    const comingAndGoing = Promise.all(others.map((each) => each.run()));

    for (let count = 1; count <= restarts; count++) {
      const kind = happenings[Math.floor(draw() * happenings.length * 1.2)];
      const times = 1 + Math.floor(draw() * 40);
      const isSoon = draw() < 0.2;
      if (!isSoon) await sleep(draw() * 2400);
      if (kind) await world.next(kind, kind === "connecting" || kind === "connected" || kind === "moving" ? 1 : times);
      if (draw() < 0.5) await sleep(draw() * 8);
      await world.crash();
      const { sent, acknowledged, delivered, connected } = world.counts;
      world.progress(
        `crash ${count} of ${restarts} ${kind ?? "at any time"}: ${sent} sent, ${acknowledged} acknowledged, ` +
          `${delivered} delivered, ${connected} connections, ${world.violations.length} violations`,
      );
    }

    world.stop();
    await publishing;
    const owing = () =>
      world.publishers.filter(({ owed }) => owed > 0).map(({ name, owed }) => `${name} waits for ${owed} publishes`);
    await world.until("acknowledgements", owing);
    for (const publisher of world.publishers) publisher.mark();
    await world.until("acknowledgements of the markers", owing);
    await Promise.race([comingAndGoing, sleep(patienceMs)]);
    await world.until("markers", () =>
      world.subscribers.flatMap((subscriber) =>
        world.publishers
          .filter((publisher) => !subscriber.hasArrived(publisher))
          .map((publisher) => `${subscriber.name} has not got the marker of ${publisher.name}`),
      ),
    );
    for (const subscriber of world.subscribers)
      await subscriber.ping().catch((error: unknown) => world.violate(`stuck: ${String(error)}`));
    for (const { client, name } of world.publishers)
      await pinged(client, name).catch((error: unknown) => world.violate(`stuck: ${String(error)}`));

    for (const subscriber of world.subscribers)
      for (const publisher of world.publishers)
        for (const { number, acknowledgedAt, attempts } of publisher.sent) {
          if (acknowledgedAt === undefined || subscriber.arrivals.get(publisher.name)?.[number]) continue;
          const tried = attempts.map(({ at, connection, node }) => `${at} ms c${connection} ${node}`).join(", ");
          world.violate(
            `lost: ${publisher.name} ${number} (sent ${tried}; acknowledged ${acknowledgedAt}) at ${subscriber.name}`,
          );
        }
    for (const [pattern, lines] of duplicates(world)) {
      world.progress(`twice at QoS 2, ${pattern}: ${lines.length}`);
      for (const line of lines) world.violate(`twice: ${pattern}: ${line}`);
    }
    const { sent, delivered } = world.counts;
    world.progress(`drained: ${sent} sent, ${delivered} delivered, ${world.violations.length} violations`);
    expect(
      summary(world.violations),
      `CHAOS_SEED=${seed}: ${world.violations.length} violations, crashes at ${world.kills.join(", ")} ms`,
    ).toEqual([]);
    expect(world.broker.output(), `CHAOS_SEED=${seed}`).not.toMatch(/exception|uncaught/i);
  },
);
