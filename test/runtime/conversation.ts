// A conversation with the broker from inside the runtime, and what can happen to its objects meanwhile.
//
//   converse   a WebSocket to a node, through the worker, and packets, one by one
//   sleep      the object hibernates: memory is gone, sockets and disk stay. As in production it happens only when no
//              timer is pending, so what is written behind has been written
//   crash      the object ends as a crash or a deploy ends it: at once, and its sockets with it
//
// Absence is proved, not waited for: what was sent to a client before its PINGREQ reaches it before the PINGRESP
// (`expectNothing`), and the PUBACK of a publish says that it has been handed to every subscriber.
//
// Tests may run at the same time: each has nodes of its own. Sockets and storage end with the file.

import { env as bindings, evictDurableObject, runInDurableObject, SELF } from "cloudflare:test";
import { generate, parser } from "mqtt-packet";
import type { IConnackPacket, IConnectPacket, IPublishPacket, ISubscription, Packet, PacketCmd } from "mqtt-packet";
import { expect, onTestFinished, vi } from "vitest";
import { Checkpoints } from "../../durable-objects/node/checkpoints.ts";
import { limits } from "../../mqtt/limits.ts";
import type { Checkpoint } from "../../mqtt/session.ts";
import { patience } from "../support/patience.ts";

type PacketOf<C extends PacketCmd> = Extract<Packet, { cmd: C }>;

const env = bindings as unknown as Env;

export interface Conversation {
  /** The session's client id. */
  readonly clientId: string;
  /** Sends the packets in one frame. */
  send(...packets: Packet[]): void;
  sendBytes(bytes: Uint8Array): void;
  next(): Promise<Packet>;
  /** The next packet, which must be of this type and have these fields. */
  expect<C extends PacketCmd>(cmd: C, fields?: Record<string, unknown>): Promise<PacketOf<C>>;
  /** The next packet is a PUBLISH of this payload. */
  expectMessage(payload: string, fields?: Record<string, unknown>): Promise<IPublishPacket>;
  /** PINGREQ; nothing comes before the PINGRESP. */
  expectNothing(): Promise<void>;
  /** The broker closes the connection, and nothing comes before that. */
  expectClosed(): Promise<void>;
  /** DISCONNECT. */
  leave(): Promise<void>;
  /** The connection is cut, without DISCONNECT. */
  drop(): Promise<void>;
}

export type ConnectFields = Partial<Omit<IConnectPacket, "cmd" | "protocolVersion" | "protocolId">> & {
  readonly version?: 4 | 5;
};

let clients = 0;

/** A durable session: what `connect` needs to make one, or to come back to it. */
export const durable = { clean: false, properties: { sessionExpiryInterval: 3600 } } as const;

/** Connects to the node; clean, with a client id of its own and without keep-alive unless the fields say otherwise. */
export async function converse(
  node: string,
  fields: ConnectFields = {},
): Promise<Conversation & { readonly connack: IConnackPacket }> {
  const conversation = await knock(node, fields);
  const connack = await conversation.expect("connack", fields.version === 4 ? { returnCode: 0 } : { reasonCode: 0 });
  return { ...conversation, connack };
}

/** As `converse`, but does not wait for CONNACK. */
export async function knock(node: string, { version = 5, ...fields }: ConnectFields = {}): Promise<Conversation> {
  const url = `http://example.com/mqtt?node=${node}`;
  const response = await SELF.fetch(url, { headers: { Upgrade: "websocket", "Sec-WebSocket-Protocol": "mqtt" } });
  const socket = response.webSocket;
  if (!socket) throw new Error(`${node} answered ${response.status}: ${await response.text()}`);
  socket.binaryType = "arraybuffer";

  const came: Packet[] = [];
  let closed = false;
  const decoder = parser({ protocolVersion: version });
  decoder.on("packet", (packet) => void came.push(packet));
  socket.addEventListener("message", ({ data }) => void decoder.parse(Buffer.from(data as ArrayBuffer)));
  socket.addEventListener("close", () => {
    closed = true;
    // The other half of the closing handshake.
    if (socket.readyState !== WebSocket.CLOSED) socket.close();
  });
  socket.accept();

  const until = (what: string, condition: () => boolean): Promise<unknown> =>
    vi.waitUntil(condition, { ...patience, interval: 2 }).catch(() => {
      throw new Error(`waited for ${what}, and ${closed ? "the connection was closed" : "nothing came"}`);
    });
  const close = (): void => {
    if (!closed) socket.close();
    closed = true;
  };

  const connect: IConnectPacket = {
    cmd: "connect",
    protocolId: "MQTT",
    protocolVersion: version,
    clean: true,
    clientId: `client-${++clients}`,
    keepalive: 0,
    ...fields,
  };
  const conversation: Conversation = {
    clientId: connect.clientId,
    send: (...packets) =>
      socket.send(Buffer.concat(packets.map((packet) => generate(packet, { protocolVersion: version })))),
    sendBytes: (bytes) => socket.send(bytes),
    async next() {
      await until("a packet", () => came.length > 0 || closed);
      const packet = came.shift();
      if (!packet) throw new Error("waited for a packet, and the connection was closed");
      return packet;
    },
    async expect(cmd, packetFields = {}) {
      const packet = await conversation.next().catch((error: unknown) => {
        throw new Error(`waited for ${cmd}`, { cause: error });
      });
      if (packet.cmd !== cmd) throw new Error(`waited for ${cmd}, and what came is ${JSON.stringify(packet)}`);
      expect(packet).toMatchObject(packetFields);
      return packet as PacketOf<typeof cmd>;
    },
    async expectMessage(payload, packetFields = {}) {
      const packet = await conversation.expect("publish", packetFields);
      expect(packet.payload.toString()).toBe(payload);
      return packet;
    },
    async expectNothing() {
      conversation.send({ cmd: "pingreq" });
      await conversation.expect("pingresp");
    },
    async expectClosed() {
      await until("the close", () => closed);
      expect(came).toEqual([]);
    },
    async leave() {
      conversation.send({ cmd: "disconnect", reasonCode: 0 });
      await conversation.expectClosed();
    },
    async drop() {
      close();
      await vi.waitUntil(() => sessionRow(node, connect.clientId).then((row) => row?.connected !== 1), patience);
    },
  };
  conversation.send(connect);
  return conversation;
}

// ---- packets --------------------------------------------------------------------------------------------------------

export function publish(
  topic: string,
  payload: string,
  qos: 0 | 1 | 2 = 0,
  fields: Partial<IPublishPacket> = {},
): IPublishPacket {
  return { cmd: "publish", topic, payload, qos, dup: false, retain: false, ...fields };
}

/** Subscribes to the filters with the highest QoS, and waits until the cluster knows. */
export async function subscribe(
  client: Conversation,
  filters: string | string[],
  { id, ...options }: Partial<Omit<ISubscription, "topic">> & { readonly id?: number } = {},
): Promise<void> {
  const subscriptions = [filters].flat().map((topic) => ({ qos: 2 as const, ...options, topic }));
  const properties = id === undefined ? {} : { properties: { subscriptionIdentifier: id } };
  client.send({ cmd: "subscribe", messageId: 900, subscriptions, ...properties });
  await client.expect("suback", { messageId: 900, granted: subscriptions.map(({ qos }) => qos) });
}

/** Publishes at QoS 1 and waits until every subscriber has been served. */
export async function publishAndWait(client: Conversation, topic: string, ...payloads: string[]): Promise<void> {
  for (const payload of payloads) {
    client.send(publish(topic, payload, 1, { messageId: 901 }));
    await client.expect("puback", { messageId: 901 });
  }
}

// ---- objects --------------------------------------------------------------------------------------------------------

export const coreName = "core@local.emqxcl";

let nodes = 0;

/** The name of a node that nobody else in this file uses. */
export function newNode(): string {
  return `node-${++nodes}@local.emqxcl`;
}

export function nodeStub(node: string) {
  return env.NODE.getByName(node);
}

export function coreStub() {
  return env.COORDINATOR.getByName(coreName);
}

/** The node, or the core, hibernates, if it is not asleep already: its sockets stay open. */
export async function sleep(name: string): Promise<void> {
  await evictDurableObject(name === coreName ? coreStub() : nodeStub(name)).catch((error: unknown) => {
    if (!String(error).includes("not currently running")) throw error;
  });
}

/** The node, or the core, is gone in the middle of whatever it does, and its sockets with it. */
export async function crash(name: string): Promise<void> {
  const abort = (_: unknown, state: DurableObjectState): void => state.abort("crash");
  const crashed = name === coreName ? runInDurableObject(coreStub(), abort) : runInDurableObject(nodeStub(name), abort);
  await crashed.catch(() => {});
}

/**
 * Nothing is written behind until the test says so: what a slow machine would write between two steps of a test counts
 * as one with what comes later.
 */
export function holdWrites(): () => void {
  const { setTimeout: set } = globalThis;
  let isHeld = true;
  vi.stubGlobal("setTimeout", (callback: (...args: unknown[]) => void, ms?: number, ...args: unknown[]) => {
    if (ms !== limits.checkpointDelayMs) return set(callback, ms, ...args);
    const run = (): void => {
      if (isHeld) set(run, 10);
      else callback(...args);
    };
    return set(run, ms);
  });
  const release = (): void => {
    isHeld = false;
    vi.unstubAllGlobals();
  };
  onTestFinished(release);
  return release;
}

/** The rows of a query on the object's disk. */
export async function rows<R extends Record<string, SqlStorageValue>>(
  name: string,
  query: string,
  ...bindings: SqlStorageValue[]
): Promise<R[]> {
  const read = (_: unknown, state: DurableObjectState): R[] => state.storage.sql.exec<R>(query, ...bindings).toArray();
  return name === coreName ? runInDurableObject(coreStub(), read) : runInDurableObject(nodeStub(name), read);
}

/** What is on a node's disk of a session's exchanges. */
export async function checkpointOf(node: string, clientId: string): Promise<Checkpoint> {
  const { id } = (await sessionRow(node, clientId))!;
  return runInDurableObject(nodeStub(node), (_, { storage }) => new Checkpoints(storage.sql).get(id));
}

export async function sessionRow(node: string, clientId: string) {
  const found = await rows<{ id: number; connected: number; expires_at: number; will_at: number }>(
    node,
    `SELECT session.*, connection.session IS NOT NULL AS connected
       FROM session LEFT JOIN connection ON connection.session = session.id WHERE client_id = ?`,
    clientId,
  );
  return found[0];
}
