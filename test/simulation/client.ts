/**
 * An MQTT client that does what the specification asks of clients, and no more: it keeps its session state across
 * connections, sends again in order what is unacknowledged, releases what was received. Its life is restless: it leaves
 * in every way there is, connects to another node while the older connection is open, loses patience while it connects.
 *
 * What it has seen goes to the ledger.
 */
import {
  generate,
  parser,
  type IConnackPacket,
  type IConnectPacket,
  type IPublishPacket,
  type Packet,
} from "mqtt-packet";
import type { ConnectionRecord, Interest, Ledger, Publication, SessionRecord } from "./oracle.ts";
import type { SimulatedObject } from "./object.ts";
import { hasHiddenSession } from "./replicas.ts";
import { Wire, type ClientEnd } from "./socket.ts";
import type { Scheduled } from "./timeline.ts";
import type { Dice, World } from "./world.ts";

export interface ClientPlan {
  readonly name: string;
  readonly version: 4 | 5;
  /** Seconds that the session outlives a connection; 0 = it does not, and every connection starts clean. */
  readonly expirySeconds: number;
  readonly receiveMaximum: number;
  /** Seconds. */
  readonly keepAlive: number;
  /** Where it connects to. */
  readonly nodes: readonly SimulatedObject[];
  /** ms on average, connected and not. */
  readonly staysMs: number;
  readonly awayMs: number;
  readonly filters: readonly Filter[];
  /** Subscribed to for some time, again and again. */
  readonly fancies: readonly Filter[];
  readonly publishes: PublishPlan | undefined;
  readonly will: WillPlan | undefined;
  /** The chance for a connection to begin a new session. */
  readonly restarts: number;
  /** It goes without a word, and does not come back. */
  readonly vanishes: boolean;
}

export interface Filter {
  readonly filter: string;
  readonly qos: 0 | 1 | 2;
}

export interface PublishPlan {
  readonly topics: readonly string[];
  /** Each topic in its turn, or any. */
  readonly isInTurn: boolean;
  readonly qos: 1 | 2;
  readonly count: number;
  readonly pauseMs: number;
  readonly windowMax: number;
  readonly retain: boolean;
  /** 0 = never. */
  readonly expirySeconds: number;
  /** Nothing fails. */
  readonly isCalm: boolean;
}

/** A will at QoS 1; a new one for each connection. */
export interface WillPlan {
  readonly topic: string;
  readonly delaySeconds: number;
}

interface Outgoing {
  readonly publication: Publication;
  state: "publish" | "pubrel";
}

/** How a connection ends, as its client sees it. `move`: it is left open, and another one is opened. */
export type Leaving = "disconnect" | "close" | "cut" | "move" | "lost";
const waysToLeave: readonly Leaving[] = ["disconnect", "close", "cut", "move"];

const patienceMs = 30_000;
/** The time in which a CONNECT that was given up takes effect, or never. */
const doubtMs = 40_000;

export class Client {
  readonly plan: ClientPlan;
  readonly #world: World;
  readonly #ledger: Ledger;
  readonly #dice: Dice;
  #attempt: Attempt | undefined;
  /** The next thing it does by itself: leave, connect, lose patience. */
  #next: Scheduled | undefined;
  #publishing: Scheduled | undefined;
  #isRestless = true;
  /** It connects once more, to end its session. */
  #isEnding = false;
  #hasEnded = false;
  /** It has vanished. */
  #isGone = false;

  /** The session as the client knows it. */
  session: SessionRecord;
  /** The last connection that a CONNACK has confirmed, and with it the session. */
  #latest: ConnectionRecord | undefined;
  #hasAskedForSession = false;
  #wantsRestart: boolean;
  /** It has asked for its session, since it had it, where that may have been taken for lost. */
  #isHidden = false;
  readonly #outgoing = new Map<number, Outgoing>();
  readonly #incoming = new Set<number>();
  readonly #wanted: Map<string, Filter>;
  readonly #interests = new Map<string, Interest>();
  readonly #unsubscribing = new Set<string>();
  readonly #asking = new Map<number, readonly string[]>();
  #published = 0;
  #nextAskId = 60_000;

  constructor(world: World, ledger: Ledger, plan: ClientPlan) {
    this.plan = plan;
    this.#world = world;
    this.#ledger = ledger;
    this.#dice = world.dice();
    this.#wantsRestart = plan.expirySeconds === 0;
    this.#wanted = new Map(plan.filters.map((filter) => [filter.filter, filter]));
    this.session = ledger.addSession(plan);
    this.#plan(this.#dice.between(0, 50), () => this.#connect());
  }

  get name(): string {
    return this.plan.name;
  }

  /** It stays connected from now on, and finishes what it has begun. */
  settle(): void {
    if (this.plan.vanishes) return this.#vanish();
    this.#isRestless = false;
    for (const filter of this.#wanted.values())
      if (!this.plan.filters.includes(filter)) this.#unsubscribe(filter.filter);
    if (!this.#attempt?.isConnected) this.#leave("cut", 0);
    else this.#forget();
    this.#pump();
  }

  #vanish(): void {
    this.#isGone = true;
    for (const interest of this.#interests.values()) interest.until ??= this.#world.now;
    this.#leave("cut", 0);
    this.#forget();
  }

  /** It ends its session, unless that ends by itself. */
  end(): void {
    if (this.#isGone && !this.session.lasts) return;
    this.#isGone = false;
    this.#isEnding = true;
    this.#wantsRestart = true;
    this.#leave("cut", 0);
  }

  /** What it still waits for. */
  get owed(): string | undefined {
    if (this.#isGone) return undefined;
    if (this.#isEnding) return this.#hasEnded ? undefined : "the end of its session";
    if (!this.#attempt?.isConnected) return "a connection";
    if (this.#outgoing.size > 0) return `acknowledgements of ${[...this.#outgoing.keys()].join(", ")}`;
    if (this.#published < (this.plan.publishes?.count ?? 0)) return "its turn to publish";
    if (this.#asking.size > 0) return "SUBACK or UNSUBACK";
    if (this.#incoming.size > 0) return `PUBREL of ${[...this.#incoming].join(", ")}`;
    return undefined;
  }

  // ---- coming and going -------------------------------------------------------------------------------------------

  #plan(ms: number, run: () => void): void {
    this.#forget();
    this.#next = this.#world.after(ms, run);
  }

  #forget(): void {
    if (this.#next) this.#next.cancelled = true;
    this.#next = undefined;
  }

  #connect(): void {
    const node = this.#dice.pick(this.plan.nodes);
    this.#attempt = new Attempt(this, node, (wire) => this.#ledger.addConnection(this.name, wire));
    const patience = this.#isRestless && this.#dice.chance(0.1) ? this.#dice.between(0, 60) : patienceMs;
    this.#plan(patience, () => {
      this.log("loses patience");
      this.#leave(this.#dice.pick(["cut", "move"]), 0);
    });
  }

  #leave(way: Leaving, awayMs: number): void {
    const attempt = this.#attempt;
    this.#attempt = undefined;
    if (this.#publishing) this.#publishing.cancelled = true;
    this.#publishing = undefined;
    if (attempt) {
      this.log(`leaves: ${way}`);
      // What it asked for may come true late, and would end the session that it begins next.
      if (attempt.record.startsClean && !attempt.isConnected && this.plan.expirySeconds > 0) awayMs = doubtMs;
      attempt.record.left = way;
      attempt.record.leftAt = this.#world.now;
      attempt.leave(way, this.#dice.between(0, 5000));
    }
    this.#plan(awayMs, () => this.#connect());
  }

  /** The connection has ended, by the server or the network. */
  handleClosed(attempt: Attempt, isClean: boolean): void {
    if (attempt !== this.#attempt) return;
    this.log(isClean ? "is closed" : "has lost the connection");
    if (this.plan.vanishes && this.#world.hasStormed) return this.#vanish();
    this.#leave("lost", this.#dice.between(20, 500));
  }

  handleOpen(attempt: Attempt): void {
    if (attempt !== this.#attempt) return;
    const { name, version, expirySeconds, receiveMaximum, keepAlive } = this.plan;
    this.#wantsRestart ||= expirySeconds === 0 || this.#dice.chance(this.plan.restarts);
    const { record } = attempt;
    record.askedAt = this.#world.now;
    record.startsClean = this.#wantsRestart;
    this.#isHidden ||= hasHiddenSession(this.#world, this.name, record.wire.nodeName);
    const sessionExpiryInterval = this.#isEnding ? 0 : expirySeconds;
    attempt.send({
      cmd: "connect",
      protocolId: "MQTT",
      protocolVersion: version,
      clientId: name,
      clean: record.startsClean,
      keepalive: this.#isEnding ? 0 : keepAlive,
      ...(version === 5 ? { properties: { sessionExpiryInterval, receiveMaximum } } : {}),
      ...this.#will(record),
    });
    if (!record.startsClean) this.#hasAskedForSession = true;
  }

  #will(record: ConnectionRecord): Partial<IConnectPacket> {
    const { will, version, expirySeconds } = this.plan;
    if (!will || this.#isEnding) return {};
    // It does not outlast its session. [MQTT-3.1.3-9]
    record.will = { ...will, delaySeconds: version === 5 ? Math.min(will.delaySeconds, expirySeconds) : 0 };
    const properties = version === 5 ? { properties: { willDelayInterval: will.delaySeconds } } : {};
    return { will: { topic: will.topic, payload: record.name, qos: 1, ...properties } };
  }

  // ---- what comes -------------------------------------------------------------------------------------------------

  handlePacket(attempt: Attempt, packet: Packet): void {
    if (packet.cmd === "disconnect") attempt.isSentAway = true;
    if (attempt !== this.#attempt) return;
    if (this.#world.trace) this.log(`<- ${describePacket(packet)}`);
    if (packet.cmd === "connack") return this.#handleConnack(attempt, packet);
    if (!attempt.isConnected) return this.#wonders(packet);
    const packetId = packet.messageId ?? 0;
    const failed = ("reasonCode" in packet ? (packet.reasonCode ?? 0) : 0) >= 0x80;
    switch (packet.cmd) {
      case "publish":
        return this.#handlePublish(attempt, packet);
      case "puback":
        return this.#handleAcknowledged(packet, 1, failed);
      case "pubrec":
        this.#handleAcknowledged(packet, 2, failed);
        if (!failed) attempt.send({ cmd: "pubrel", messageId: packetId });
        return;
      case "pubcomp": {
        if (this.#outgoing.get(packetId)?.state !== "pubrel") return this.#wonders(packet);
        this.#outgoing.delete(packetId);
        return this.#pump();
      }
      case "pubrel":
        this.#incoming.delete(packetId);
        return attempt.send({ cmd: "pubcomp", messageId: packetId });
      case "suback":
        return this.#handleSuback(attempt, packetId, packet.granted as number[]);
      case "unsuback":
        for (const filter of this.#asking.get(packetId) ?? []) this.#unsubscribing.delete(filter);
        this.#asking.delete(packetId);
        return;
      case "disconnect":
        this.log(`is sent away: ${packet.reasonCode}`);
        return;
      case "pingresp":
        return;
      default:
        return this.#wonders(packet);
    }
  }

  /** A server has no reason to send this. */
  #wonders(packet: Packet): void {
    this.#world.violate(`unexpected: ${this.name} got ${describePacket(packet)}`);
  }

  #handleConnack(attempt: Attempt, { reasonCode, returnCode, sessionPresent, properties }: IConnackPacket): void {
    const code = reasonCode ?? returnCode ?? 0;
    if (code !== 0) {
      this.log(`is refused: ${code}`);
      return this.#leave("close", this.#dice.between(200, 1000));
    }
    if (this.#isEnding) {
      this.#hasEnded = true;
      attempt.isConnected = true;
      this.#attempt = undefined;
      this.#forget();
      attempt.leave("disconnect", 0);
      return;
    }
    // What it had there may be taken for lost, or come back later: what it is owed from now on is this session's.
    const isHidden = this.#isHidden || hasHiddenSession(this.#world, this.name, attempt.wire.nodeName);
    this.#isHidden = false;
    this.#checkSessionPresent(attempt.record, sessionPresent, isHidden);
    attempt.isConnected = true;
    attempt.record.at = this.#world.now;
    this.#asking.clear();
    // One that may have expired may be another one by now, of a CONNECT whose CONNACK was lost.
    if (!sessionPresent || isHidden || this.#mayHaveExpired) this.#beginSession();
    this.#ledger.addPlace(this.session, attempt.wire.nodeName);
    this.#latest = attempt.record;
    this.#wantsRestart = this.plan.expirySeconds === 0;
    attempt.windowMax = properties?.receiveMaximum ?? 65_535;
    // A session that is out of reach has had them.
    if (isHidden) for (const { publication } of this.#outgoing.values()) publication.isAnew = true;
    this.#sendAgain(attempt, sessionPresent);
    this.#subscribe([...this.#wanted.values()].filter(({ filter }) => !this.#interests.has(filter)));
    if (this.#unsubscribing.size > 0) this.#ask(attempt, "unsubscribe", [...this.#unsubscribing]);
    if (this.plan.keepAlive > 0) this.#ping(attempt);
    this.#pump();
    if (this.#isRestless) this.#planLeaving();
    else this.#forget();
  }

  #planLeaving(): void {
    const { staysMs, awayMs, fancies } = this.plan;
    const ms = this.#dice.between(0, 2 * staysMs);
    for (const fancy of fancies) {
      if (this.#dice.chance(0.5)) continue;
      const attempt = this.#attempt;
      this.#world.after(this.#dice.between(0, ms), () => {
        if (attempt === this.#attempt && this.#isRestless) this.#change(fancy);
      });
    }
    this.#plan(ms, () => {
      const way = this.#dice.pick(waysToLeave);
      this.#leave(way, way === "move" ? 0 : this.#dice.between(0, 2 * awayMs));
    });
  }

  /** @param isHidden a session of it may be out of reach. */
  #checkSessionPresent({ startsClean, wire }: ConnectionRecord, isPresent: boolean, isHidden: boolean): void {
    if (startsClean && isPresent) this.#world.violate(`session: present for ${this.name}, which started clean`);
    if (startsClean) return;
    if (isPresent && !this.#hasAskedForSession) this.#world.violate(`session: present for ${this.name}, a new client`);
    if (!isPresent && !isHidden && !this.#mayHaveExpired && !this.#world.abandoned.has(this.name))
      this.#world.violate(`session: not present for ${this.name} on ${wire.nodeName}`);
  }

  /** The server learns of a connection's end when it is there or later, and counts from then. */
  get #mayHaveExpired(): boolean {
    if (!this.#latest) return true;
    const { leftAt = Infinity, wire } = this.#latest;
    const endedAt = Math.min(leftAt, wire.overAtServerAt ?? Infinity);
    return this.#world.now >= endedAt + this.plan.expirySeconds * 1000;
  }

  #beginSession(): void {
    this.#incoming.clear();
    if (this.#latest) this.session = this.#ledger.addSession(this.plan);
    for (const interest of this.#interests.values()) interest.until = this.#world.now;
    this.#interests.clear();
    this.#unsubscribing.clear();
  }

  /** It connects anew, and must find its session. */
  wander(): void {
    if (this.#isGone) return;
    this.#leave(this.#dice.pick(["cut", "move"]), 0);
  }

  // ---- subscribing ------------------------------------------------------------------------------------------------

  #change(fancy: Filter): void {
    if (this.#wanted.has(fancy.filter)) this.#unsubscribe(fancy.filter);
    else {
      this.#wanted.set(fancy.filter, fancy);
      this.#unsubscribing.delete(fancy.filter);
      this.#subscribe([fancy]);
    }
  }

  #subscribe(filters: readonly Filter[]): void {
    const attempt = this.#attempt;
    if (filters.length === 0 || !attempt?.isConnected) return;
    const packetId = this.#nextAskId++;
    this.#asking.set(
      packetId,
      filters.map(({ filter }) => filter),
    );
    attempt.send({
      cmd: "subscribe",
      messageId: packetId,
      subscriptions: filters.map(({ filter, qos }) => ({ topic: filter, qos, nl: false, rap: false, rh: 0 })),
    });
  }

  #handleSuback(attempt: Attempt, packetId: number, granted: readonly number[]): void {
    const failed: Filter[] = [];
    for (const [index, filter] of (this.#asking.get(packetId) ?? []).entries()) {
      const wanted = this.#wanted.get(filter);
      if (!wanted) continue;
      if (granted[index]! >= 0x80) failed.push(wanted);
      else if (!this.#interests.has(filter))
        this.#interests.set(filter, this.#ledger.addInterest(this.session, wanted, this.#world.now));
    }
    this.#asking.delete(packetId);
    if (failed.length > 0)
      this.#world.after(1000, () => {
        if (attempt === this.#attempt) this.#subscribe(failed);
      });
  }

  #unsubscribe(filter: string): void {
    this.#wanted.delete(filter);
    const interest = this.#interests.get(filter);
    if (interest) interest.until = this.#world.now;
    this.#interests.delete(filter);
    this.#unsubscribing.add(filter);
    if (this.#attempt?.isConnected) this.#ask(this.#attempt, "unsubscribe", [filter]);
  }

  #ask(attempt: Attempt, cmd: "unsubscribe", filters: readonly string[]): void {
    const packetId = this.#nextAskId++;
    this.#asking.set(packetId, filters);
    attempt.send({ cmd, messageId: packetId, unsubscriptions: [...filters] });
  }

  // ---- receiving --------------------------------------------------------------------------------------------------

  #handlePublish(attempt: Attempt, packet: IPublishPacket): void {
    const { qos, messageId = 0, payload, topic, retain } = packet;
    const isRepeated = qos === 2 && this.#incoming.has(messageId);
    if (!isRepeated) this.#ledger.addArrival(this.session, { name: payload.toString(), topic, qos, retain });
    if (qos === 1) attempt.send({ cmd: "puback", messageId });
    if (qos < 2) return;
    this.#incoming.add(messageId);
    attempt.send({ cmd: "pubrec", messageId });
  }

  // ---- publishing -------------------------------------------------------------------------------------------------

  #pump(): void {
    const { publishes } = this.plan;
    if (!publishes || this.#publishing) return;
    this.#publishing = this.#world.after(this.#dice.between(0, 2 * publishes.pauseMs), () => {
      this.#publishing = undefined;
      const attempt = this.#attempt;
      if (!attempt?.isConnected) return;
      const burst: Packet[] = [];
      do {
        if (this.#published >= publishes.count) break;
        if (this.#outgoing.size >= Math.min(publishes.windowMax, attempt.windowMax)) break;
        burst.push(this.#publish(publishes));
      } while (this.#dice.chance(0.5));
      attempt.send(...burst);
      if (burst.length > 0) this.#pump();
    });
  }

  #publish({ topics, isInTurn, qos, retain, expirySeconds, isCalm }: PublishPlan): Packet {
    let packetId = 1;
    while (this.#outgoing.has(packetId)) packetId++;
    const topic = isInTurn ? topics[this.#published % topics.length]! : this.#dice.pick(topics);
    const number = this.#published++;
    const publication = this.#ledger.addPublication({
      publisher: this.name,
      topic,
      qos,
      number,
      retain,
      expirySeconds,
      isCalm,
    });
    this.#outgoing.set(packetId, { publication, state: "publish" });
    return this.#packet(packetId, publication, false);
  }

  /** In the order in which it was sent first. [MQTT-4.6.0-1] */
  #sendAgain(attempt: Attempt, isPresent: boolean): void {
    const packets: Packet[] = [];
    for (const [packetId, { publication, state }] of this.#outgoing) {
      if (state === "publish") packets.push(this.#packet(packetId, publication, isPresent));
      else if (isPresent) packets.push({ cmd: "pubrel", messageId: packetId });
      else this.#outgoing.delete(packetId);
    }
    attempt.send(...packets);
  }

  #packet(messageId: number, publication: Publication, dup: boolean): Packet {
    const { name, topic, qos, retain, expirySeconds } = publication;
    this.#ledger.addHop(publication, this.#attempt!.wire.nodeName);
    const expires = this.plan.version === 5 && expirySeconds > 0;
    const properties = expires ? { properties: { messageExpiryInterval: expirySeconds } } : {};
    return { cmd: "publish", topic, payload: name, qos, retain, dup, messageId, ...properties };
  }

  #handleAcknowledged(packet: Packet, qos: 1 | 2, failed: boolean): void {
    const packetId = packet.messageId ?? 0;
    const outgoing = this.#outgoing.get(packetId);
    if (outgoing?.publication.qos !== qos) return this.#wonders(packet);
    if (outgoing.state === "pubrel") return;
    const { publication } = outgoing;
    if (failed) publication.refusedAt = this.#world.now;
    else publication.acknowledgedAt = this.#world.now;
    this.#ledger.addHop(publication, this.#attempt!.wire.nodeName);
    if (qos === 2 && !failed) outgoing.state = "pubrel";
    else this.#outgoing.delete(packetId);
    this.#pump();
  }

  #ping(attempt: Attempt): void {
    this.#world.after(this.plan.keepAlive * 1000 * this.#dice.between(0.5, 0.9), () => {
      if (attempt !== this.#attempt) return;
      attempt.send({ cmd: "pingreq" });
      this.#ping(attempt);
    });
  }

  log(line: string): void {
    if (this.#world.trace) this.#world.log(`${this.name} ${line}`);
  }

  get world(): World {
    return this.#world;
  }
}

/** One connection of a client; its client may have turned to another one long ago. */
class Attempt implements ClientEnd {
  readonly wire: Wire;
  readonly record: ConnectionRecord;
  isConnected = false;
  /** The server has said DISCONNECT. */
  isSentAway = false;
  windowMax = 0;
  readonly #client: Client;
  readonly #parser: ReturnType<typeof parser>;

  constructor(client: Client, node: SimulatedObject, open: (wire: Wire) => ConnectionRecord) {
    this.#client = client;
    client.log(`connects to ${node.name}`);
    this.#parser = parser({ protocolVersion: client.plan.version });
    this.#parser.on("packet", (packet: Packet) => client.handlePacket(this, packet));
    this.#parser.on("error", (error: Error) => client.world.violate(`${client.name} cannot parse: ${error.message}`));
    this.wire = new Wire(node, this, client.name);
    this.record = open(this.wire);
  }

  send(...packets: Packet[]): void {
    if (packets.length === 0) return;
    const options = { protocolVersion: this.#client.plan.version };
    const bytes = new Uint8Array(Buffer.concat(packets.map((packet) => generate(packet, options))));
    if (this.#client.world.trace) this.#client.log(`-> ${packets.map(describePacket).join(", ")}`);
    if (bytes.length < 4 || !this.#client.world.faultChance(0.02)) return this.wire.send(bytes);
    this.wire.send(bytes.subarray(0, bytes.length >> 1));
    this.wire.send(bytes.subarray(bytes.length >> 1));
  }

  /** @param ghostMs how long a connection that was left open stays so. */
  leave(way: Leaving, ghostMs: number): void {
    if (way === "cut" || way === "lost") return this.wire.cut();
    if (way === "close") return this.wire.close();
    if (way === "disconnect") this.send({ cmd: "disconnect" });
    // The server closes after DISCONNECT, and the older one of two connections; if it does not, the network does.
    this.#client.world.after(way === "disconnect" ? 5000 : ghostMs, () => this.wire.cut());
  }

  handleOpen(): void {
    this.#client.handleOpen(this);
  }

  handleFrame(bytes: Uint8Array): void {
    this.#parser.parse(Buffer.from(bytes));
  }

  handleClose(isClean: boolean): void {
    // Before 5.0 a client is not told that another connection has taken its place.
    const isSaid = this.#client.plan.version === 5 && !this.isSentAway;
    this.record.isOrderly = isClean && isSaid && this.record.left === "disconnect";
    this.#client.handleClosed(this, isClean);
  }
}

function describePacket(packet: Packet): string {
  const { cmd, messageId } = packet;
  const id = messageId === undefined ? "" : ` ${messageId}`;
  if (packet.cmd === "publish")
    return `publish${id} ${packet.payload.toString()} qos ${packet.qos}${packet.dup ? " dup" : ""}`;
  if (packet.cmd === "connect" && packet.clean) return "connect clean";
  const code = "reasonCode" in packet && packet.reasonCode ? ` 0x${packet.reasonCode.toString(16)}` : "";
  return `${cmd}${id}${code}${packet.cmd === "connack" && packet.sessionPresent ? " session present" : ""}`;
}
