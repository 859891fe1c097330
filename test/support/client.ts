// Clients for the end-to-end tests.
//
//   connect    MQTT.js, as an application would use it
//   converse   a WebSocket and packets, one by one, for what no library would do
//
// Both end with the test that made them. Absence is proved, not waited for: what was sent to a client before its
// PINGREQ reaches it before the PINGRESP (`expectNothing`), and the PUBACK of a publish at QoS 1 says that it has been
// handed to every subscriber.

import { randomUUID } from "node:crypto";
import mqtt from "mqtt";
import type { IClientOptions, IClientPublishOptions, IClientSubscribeOptions, MqttClient } from "mqtt";
import { generate, parser } from "mqtt-packet";
import type { IConnackPacket, IConnectPacket, IPublishPacket, Packet, PacketCmd, QoS } from "mqtt-packet";
import { expect, onTestFinished } from "vitest";
import { WebSocket } from "ws";
import type { ClientOptions } from "ws";
import { patience } from "./patience.ts";

/** "node-1@local.emqxcl": a node of the default cluster. */
export function slot(number: number): string {
  return `node-${number}@local.emqxcl`;
}

/** 0 to count - 1. */
export function range(count: number): number[] {
  return Array.from({ length: count }, (_, index) => index);
}

/** Both versions that matter, for `describe.each`. */
export const versions = [4, 5] as const;

/** What came and was not asked for yet, or was asked for and has not come yet. */
class Inbox<T> {
  readonly #items: T[] = [];
  readonly #waiting: { resolve: (item: T) => void; reject: (error: Error) => void }[] = [];
  #ended: Error | undefined;

  get items(): readonly T[] {
    return this.#items;
  }

  put(item: T): void {
    const first = this.#waiting.shift();
    if (first) first.resolve(item);
    else this.#items.push(item);
  }

  end(error: Error): void {
    this.#ended = error;
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }

  next(): Promise<T> {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift()!);
    if (this.#ended) return Promise.reject(this.#ended);
    return soon(new Promise((resolve, reject) => this.#waiting.push({ resolve, reject })));
  }
}

/** The promise, or an error when patience is over. */
async function soon<T>(promise: Promise<T>): Promise<T> {
  const error = new Error(`nothing came within ${patience.timeout / 1000} s`);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(error), patience.timeout);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

// ---- MQTT.js --------------------------------------------------------------------------------------------------------

export interface Received {
  readonly topic: string;
  readonly payload: string;
  readonly qos: QoS;
  readonly retain: boolean;
  readonly properties: NonNullable<IPublishPacket["properties"]>;
}

export interface Client {
  readonly mqtt: MqttClient;
  readonly connack: IConnackPacket;
  /** The codes of the SUBACK. */
  subscribe(filter: string | string[], options?: Partial<IClientSubscribeOptions>): Promise<number[]>;
  /** The codes of the UNSUBACK; MQTT 3.1.1 has none. */
  unsubscribe(filter: string | string[]): Promise<number[]>;
  /** Resolves when it is acknowledged as its QoS wants; at QoS 0 when it has left. Rejects with the reason code as `code`. */
  publish(topic: string, payload: string | Buffer, options?: IClientPublishOptions): Promise<void>;
  /** The next message. */
  next(): Promise<Received>;
  /** The payloads of the next messages. */
  payloads(count: number): Promise<string[]>;
  /** Nothing has been sent to this client that was not asked for. */
  expectNothing(): Promise<void>;
  /** Leaves with DISCONNECT. */
  leave(options?: Parameters<MqttClient["endAsync"]>[1]): Promise<void>;
  /** The connection is cut, without DISCONNECT. */
  drop(): Promise<void>;
  /** Resolves when the connection is over, to the reason code of the broker's DISCONNECT if there was one. */
  readonly ended: Promise<number | undefined>;
}

/** Connects, with MQTT 5.0 unless the options say otherwise. Rejects with the code of a refusal as `code`. */
export async function connect(url: string, options: IClientOptions = {}): Promise<Client> {
  const client = mqtt.connect(url, {
    protocolVersion: 5,
    reconnectPeriod: 0,
    keepalive: 60,
    clientId: `client-${randomUUID()}`,
    ...options,
  });
  const inbox = new Inbox<Received>();
  let reasonCode: number | undefined;
  client.on("message", (topic, payload, { qos, retain, properties = {} }) =>
    inbox.put({ topic, payload: payload.toString(), qos, retain, properties }),
  );
  client.on("disconnect", (packet) => {
    ({ reasonCode } = packet);
  });
  const ended = new Promise<number | undefined>((resolve) => {
    client.on("close", () => {
      inbox.end(new Error(`the connection is over (${reasonCode ?? "no reason code"})`));
      resolve(reasonCode);
    });
  });
  const connack = await soon(
    new Promise<IConnackPacket>((resolve, reject) => {
      client.once("connect", resolve).once("error", reject);
      void ended.then(() => reject(new Error("the connection was closed before CONNACK")));
    }),
  );
  client.on("error", () => {}); // What follows is seen by `ended`.
  onTestFinished(() => void client.end(true));
  return {
    mqtt: client,
    connack,
    ended,
    subscribe: (filter, subscribeOptions) =>
      soon(
        new Promise((resolve, reject) => {
          client.subscribe(filter, { qos: 0, ...subscribeOptions }, (error, _granted, packet) => {
            if (packet) resolve(packet.granted as number[]);
            else reject(error ?? new Error("no SUBACK"));
          });
        }),
      ),
    unsubscribe: (filter) =>
      soon(
        new Promise((resolve, reject) => {
          client.unsubscribe(filter, (error, packet) => {
            if (error) reject(error);
            else resolve((packet as { granted?: number[] } | undefined)?.granted ?? []);
          });
        }),
      ),
    publish: (topic, payload, publishOptions = {}) =>
      soon(
        new Promise((resolve, reject) => {
          client.publish(topic, payload, publishOptions, (error) => {
            if (error) reject(error);
            else resolve();
          });
        }),
      ),
    next: () => inbox.next(),
    async payloads(count) {
      const taken: string[] = [];
      while (taken.length < count) taken.push((await inbox.next()).payload);
      return taken;
    },
    async expectNothing() {
      const answered = new Promise<void>((resolve) => {
        const listen = (packet: Packet): void => {
          if (packet.cmd !== "pingresp") return;
          client.off("packetreceive", listen);
          resolve();
        };
        client.on("packetreceive", listen);
      });
      client.sendPing();
      await soon(answered);
      expect(inbox.items).toEqual([]);
    },
    async leave(disconnect) {
      await client.endAsync(false, disconnect);
    },
    async drop() {
      await client.endAsync(true);
    },
  };
}

// ---- packets --------------------------------------------------------------------------------------------------------

type PacketOf<C extends PacketCmd> = Extract<Packet, { cmd: C }>;

export interface Conversation {
  /** The subprotocol that the broker chose. */
  readonly subprotocol: string;
  /** The frames that came, as they came. */
  readonly frames: readonly Buffer[];
  /** Sends the packets in one frame. */
  send(...packets: Packet[]): void;
  /** Sends one frame, binary or text. */
  sendFrame(data: Uint8Array | string): void;
  /** The next packet, which must be of this type. */
  expect<C extends PacketCmd>(cmd: C): Promise<PacketOf<C>>;
  /** The next packet. */
  next(): Promise<Packet>;
  /** PINGREQ; nothing comes before the PINGRESP. */
  expectNothing(): Promise<void>;
  /** Resolves when the broker has closed the WebSocket; nothing more came before that. */
  expectClose(): Promise<void>;
  /** Resolves when the WebSocket is closed. */
  readonly closed: Promise<void>;
  /** The connection is cut, without DISCONNECT. */
  drop(): Promise<void>;
}

export interface ConverseOptions extends ClientOptions {
  readonly version?: 3 | 4 | 5;
  readonly subprotocol?: string;
}

/** Opens a WebSocket; CONNECT is the test's. */
export async function converse(url: string, options: ConverseOptions = {}): Promise<Conversation> {
  const { version = 5, subprotocol = "mqtt", ...rest } = options;
  const socket = new WebSocket(url, [subprotocol], rest);
  const inbox = new Inbox<Packet>();
  const frames: Buffer[] = [];
  const decoder = parser({ protocolVersion: version });
  decoder.on("packet", (packet) => inbox.put(packet));
  decoder.on("error", (error: unknown) => inbox.end(error as Error));
  socket.on("message", (data: Buffer) => {
    frames.push(data);
    decoder.parse(data);
  });
  const closed = new Promise<void>((resolve) => {
    socket.on("close", () => {
      inbox.end(new Error("the broker has closed the connection"));
      resolve();
    });
  });
  await soon(new Promise<unknown>((resolve, reject) => socket.once("open", resolve).once("error", reject)));
  socket.on("error", () => {}); // "close" follows.
  onTestFinished(() => socket.terminate());
  const next = (): Promise<Packet> => inbox.next();
  const send = (...packets: Packet[]): void =>
    socket.send(Buffer.concat(packets.map((packet) => generate(packet, { protocolVersion: version }))));
  const conversation: Conversation = {
    subprotocol: socket.protocol,
    frames,
    closed,
    next,
    send,
    sendFrame: (data) => socket.send(data),
    async expect(cmd) {
      const packet = await next();
      expect(packet).toMatchObject({ cmd });
      return packet as PacketOf<typeof cmd>;
    },
    async expectNothing() {
      send({ cmd: "pingreq" });
      await conversation.expect("pingresp");
    },
    async expectClose() {
      await soon(closed);
      expect(inbox.items).toEqual([]);
    },
    async drop() {
      socket.terminate();
      await closed;
    },
  };
  return conversation;
}

export type ConnectOptions = ConverseOptions & Partial<Omit<IConnectPacket, "cmd" | "protocolVersion" | "protocolId">>;

/** A CONNECT packet; clean, with a new client id and without keep-alive unless the options say otherwise. */
export function connectPacket({
  version = 5,
  ...fields
}: Omit<ConnectOptions, keyof ClientOptions> = {}): IConnectPacket {
  return {
    cmd: "connect",
    protocolId: version === 3 ? "MQIsdp" : "MQTT",
    protocolVersion: version,
    clean: true,
    clientId: `client-${randomUUID().slice(0, 8)}`,
    keepalive: 0,
    ...fields,
  };
}

/** Opens a WebSocket and connects. */
export async function converseConnected(
  url: string,
  { version = 5, ...fields }: Omit<ConnectOptions, keyof ClientOptions> = {},
): Promise<Conversation & { readonly connack: IConnackPacket }> {
  const conversation = await converse(url, { version });
  conversation.send(connectPacket({ version, ...fields }));
  const connack = await conversation.expect("connack");
  expect(connack.reasonCode ?? connack.returnCode).toBe(0);
  return { ...conversation, connack };
}

/** Connects, and is cut off at once. @returns whether its session was there. */
export async function hadSession(...[url, options]: Parameters<typeof converseConnected>): Promise<boolean> {
  const client = await converseConnected(url, options);
  await client.drop();
  return client.connack.sessionPresent;
}
