/**
 * A client talking to a channel, with as much of a broker around it as the channel needs.
 *
 *     const { client, broker } = start(5);
 *     client.connect();
 *     client.sends({ cmd: "publish", topic: "t", qos: 1, messageId: 1 });
 *     broker.answers(0x10);
 *     client.receives()   // [{ cmd: "puback", messageId: 1, reasonCode: 0x10 }]
 *
 * What the client sends goes through bytes and `decode`, as from a socket, and an MqttError goes to `handleError`, as in
 * a connection. What leaves goes through `encode`, so a packet that cannot be encoded fails the test.
 */
import { generate, type Packet } from "mqtt-packet";
import { readSettings } from "../../cluster/config.ts";
import type { Rule } from "../../mqtt/authorization.ts";
import { Channel, type ChannelContext, type Effect, type OpenRequest } from "../../mqtt/channel.ts";
import { decode, encode, type ProtocolVersion, type ServerPacket } from "../../mqtt/codec.ts";
import type { Message } from "../../mqtt/message.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import { QueueMemory, Session, type Delivery, type Receipt } from "../../mqtt/session.ts";

export const now = 1_700_000_000_000;

type Mqtt = ChannelContext["settings"];

export interface StartOptions {
  readonly settings?: Partial<Mqtt>;
  readonly rules?: readonly Rule[];
}

/** "closed", a packet, or a PUBLISH as `publish <id> QoS <qos> <message>`. */
export type Received =
  | ServerPacket
  | { readonly cmd: "publish"; readonly packetId: number; readonly id: string }
  | "closed";

type Fields = { readonly cmd: Packet["cmd"]; readonly [field: string]: unknown };

/** The sessions of a node and what its channels ask of it. */
export class FakeBroker {
  readonly context: ChannelContext;
  readonly sessions = new Map<string, Session>();
  readonly opened: OpenRequest[] = [];
  readonly published: { readonly message: Message; readonly delaySeconds: number }[] = [];
  readonly wills: string[] = [];
  droppedCount = 0;
  /** The number of the last message for a session. */
  seq = 0;
  /** Publishes of QoS 1 and 2 that the cluster has not answered, in order. */
  readonly unanswered: { readonly receipt: Receipt; readonly session: Session; readonly client: Client }[] = [];
  readonly subscribes: Extract<Effect, { kind: "subscribe" }>[] = [];
  readonly unsubscribes: Extract<Effect, { kind: "unsubscribe" }>[] = [];
  #ids = 0;

  constructor({ settings = {}, rules = [] }: StartOptions) {
    let clients = 0;
    this.context = {
      settings: { ...readSettings({}).mqtt, ...settings },
      rules,
      messageId: () => `m${this.#ids++}`,
      assignClientId: () => `assigned-${clients++}`,
    };
  }

  /** The cluster answers the `which`th unanswered publish: its client, or the one that has the session now, is told. */
  answers(reasonCode: number, which = 0, to?: Client): void {
    const [publish] = this.unanswered.splice(which, 1);
    if (!publish) throw new Error("no publish is unanswered");
    const { receipt, session, client } = publish;
    const teller = to ?? client;
    teller.channel.handleReceipt(receipt, session, reasonCode as ReasonCode);
    teller.perform();
  }
}

export class Client {
  readonly channel: Channel;
  readonly version: ProtocolVersion;
  readonly broker: FakeBroker;
  /** The names of all effects, in order. */
  readonly effects: string[] = [];
  /** Whether the node answers `authenticate` and `open` at once. */
  credentials: { username: string | undefined; password: Uint8Array | undefined } | undefined;
  opens = true;
  verdict: ReasonCode | undefined = ReasonCode.Success;
  closed = false;
  #received: Received[] = [];

  constructor(version: ProtocolVersion, broker: FakeBroker) {
    this.version = version;
    this.broker = broker;
    this.channel = new Channel(broker.context);
  }

  /** What has come since the last look. */
  receives(): Received[] {
    const received = this.#received;
    this.#received = [];
    return received;
  }

  sends(fields: Fields): void {
    this.sendsBytes(bytesOf(fields, this.version));
  }

  sendsBytes(bytes: Uint8Array): void {
    try {
      this.channel.handlePacket(decode(bytes, this.channel.facts?.version), now);
    } catch (error) {
      if (!(error instanceof MqttError)) throw error;
      this.channel.handleError(error);
    }
    this.perform();
  }

  /** CONNECT and, looked away from, CONNACK. */
  connect(fields: Record<string, unknown> = {}): Session {
    this.sends({ cmd: "connect", ...fields });
    const [connack] = this.receives();
    if (connack === "closed" || connack?.cmd !== "connack" || this.closed)
      throw new Error(`not connected: ${JSON.stringify(connack)}`);
    return this.channel.session!;
  }

  fails(reasonCode: ReasonCode): void {
    this.channel.handleError(new MqttError(reasonCode, "the reason"));
    this.perform();
  }

  /** The socket is gone without a DISCONNECT. */
  vanishes(): void {
    const { session } = this.channel;
    this.channel.handleClosed();
    this.#leave(session);
  }

  perform(): void {
    for (const effect of this.channel.takeEffects()) {
      this.effects.push(effect.kind === "send" ? effect.packet.cmd : effect.kind);
      this.#perform(effect);
    }
  }

  #perform(effect: Effect): void {
    const { broker, channel } = this;
    switch (effect.kind) {
      case "send":
        if (this.closed) throw new Error(`${effect.packet.cmd} is sent on a closed connection`);
        encode(effect.packet, effect.version);
        this.#received.push(effect.packet);
        return;
      case "close":
        this.#received.push("closed");
        this.closed = true;
        this.#leave(this.#session);
        return;
      case "authenticate":
        this.credentials = effect;
        if (this.verdict === undefined) return;
        channel.handleAuthenticated(this.verdict);
        return this.perform();
      case "open":
        broker.opened.push(effect.request);
        if (this.opens) this.opensNow(effect.request);
        return;
      case "publish":
        broker.published.push(effect);
        if (effect.receipt) broker.unanswered.push({ receipt: effect.receipt, session: this.#session!, client: this });
        return;
      case "subscribe":
        broker.subscribes.push(effect);
        return;
      case "unsubscribe":
        broker.unsubscribes.push(effect);
        return;
      case "pump":
        return this.#pump();
      case "denied":
        broker.droppedCount++;
    }
  }

  #session: Session | undefined;

  opensNow({ facts: { clientId, cleanStart }, expiryInterval, will }: OpenRequest): void {
    const { sessions } = this.broker;
    const existing = cleanStart ? undefined : sessions.get(clientId);
    const session = existing ?? new Session(1, clientId, new QueueMemory());
    sessions.set(clientId, session);
    session.expiryInterval = expiryInterval;
    session.will = will;
    session.attach(this.channel.facts!.receiveMaximum);
    this.#session = session;
    this.channel.handleOpened(session, existing !== undefined);
    this.perform();
  }

  /** The cluster knows the oldest SUBSCRIBE: the codes of the SUBACK. */
  subscribed(): number[] {
    const { packetId, codes, wanted } = this.broker.subscribes.shift()!;
    for (const { subscription } of wanted) this.channel.session?.subscribe(subscription);
    this.channel.handleSubscribed(packetId, codes);
    this.perform();
    const [suback] = this.receives();
    if (suback === "closed" || suback?.cmd !== "suback") throw new Error(`no SUBACK: ${JSON.stringify(suback)}`);
    return suback.granted as number[];
  }

  /** A message for the client's session. */
  gets(delivery: Delivery): void {
    this.#session!.enqueue({ seq: ++this.broker.seq, filter: undefined }, delivery, 1000);
    this.#pump();
  }

  #pump(): void {
    const session = this.#session!;
    const load = () => undefined;
    for (let next = session.nextToSend(now, load); next; next = session.nextToSend(now, load))
      if (next.kind === "pubrel") this.#received.push({ cmd: "pubrel", messageId: next.packetId, reasonCode: 0 });
      else this.#received.push({ cmd: "publish", packetId: next.packetId, id: next.delivery.message.id });
  }

  #leave(session: Session | undefined): void {
    this.#session = undefined;
    if (!session) return;
    session.detach(now);
    const { will, ended } = session.due(now);
    if (will) this.broker.wills.push(will.topic);
    if (ended) this.broker.sessions.delete(session.clientId);
  }
}

export function start(version: ProtocolVersion, options: StartOptions = {}): { client: Client; broker: FakeBroker } {
  const broker = new FakeBroker(options);
  return { client: new Client(version, broker), broker };
}

const defaults: { readonly [cmd: string]: object } = {
  connect: { clientId: "c", clean: true, keepalive: 60 },
  publish: { topic: "t", payload: "p", qos: 0, dup: false, retain: false },
  disconnect: { reasonCode: 0 },
  auth: { reasonCode: 0x18, properties: { authenticationMethod: "SCRAM" } },
};

/** A packet as a client of this version sends it. */
export function bytesOf(fields: Fields, version: ProtocolVersion): Uint8Array {
  const protocol = { protocolId: version === 3 ? "MQIsdp" : "MQTT", protocolVersion: version };
  const packet = { ...protocol, ...defaults[fields.cmd], ...fields } as unknown as Packet;
  // As from a socket, without Node's Buffer.
  return Uint8Array.from(generate(packet, { protocolVersion: version }));
}
