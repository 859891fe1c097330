// Sleep and crash in the middle of the QoS 1 and 2 exchanges, at each step, in both directions.
//
// An exchange yields the name of each step it has reached; the test lets the node sleep, or crash, at one of them.

import { runInDurableObject } from "cloudflare:test";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { forwardRecord, joinRecords, matchedBytes } from "../../durable-objects/rpc.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import { writeMessage } from "../../mqtt/message.ts";
import { messageIdOf } from "../../mqtt/message-id-set.ts";
import {
  converse,
  coreName,
  crash,
  durable,
  newNode,
  nodeStub,
  publish,
  publishAndWait,
  sleep,
  subscribe,
} from "./conversation.ts";
import type { Conversation } from "./conversation.ts";

/** The client id of the party on the node. */
function clientIdAt(node: string): string {
  return `client-of-${node}`;
}

const kinds = [
  ["a transient session", {}],
  ["a durable session", durable],
] as const;

interface Parties {
  /** On the node that sleeps. */
  readonly client: Conversation;
  /** On another node, subscribed to what `client` publishes. */
  readonly watcher: Conversation;
  readonly topic: string;
}

type Exchange = AsyncGenerator<string, void, void>;

async function* incomingQoS1({ client, watcher, topic }: Parties): Exchange {
  client.send(publish(topic, "first", 1, { messageId: 7 }));
  yield "PUBLISH";
  await client.expect("puback", { messageId: 7 });
  await watcher.expectMessage("first");
  yield "PUBACK";
  client.send(publish(topic, "second", 1, { messageId: 7 }));
  await client.expect("puback", { messageId: 7 });
  await watcher.expectMessage("second");
  await watcher.expectNothing();
  await client.expectNothing();
}

async function* incomingQoS2({ client, watcher, topic }: Parties): Exchange {
  client.send(publish(topic, "first", 2, { messageId: 7 }));
  yield "PUBLISH";
  await client.expect("pubrec", { messageId: 7 });
  yield "PUBREC";
  // The client does not know whether its PUBLISH came. [MQTT-4.3.3-10]
  client.send(publish(topic, "first", 2, { messageId: 7, dup: true }));
  await client.expect("pubrec", { messageId: 7 });
  yield "the repeated PUBLISH";
  client.send({ cmd: "pubrel", messageId: 7 });
  yield "PUBREL";
  await client.expect("pubcomp", { messageId: 7 });
  await watcher.expectMessage("first");
  await watcher.expectNothing();
  yield "PUBCOMP";
  // [MQTT-4.3.3-11]
  client.send({ cmd: "pubrel", messageId: 7 });
  await client.expect("pubcomp", { messageId: 7 });
  yield "the repeated PUBREL";
  // The id is free: this is another message. [MQTT-4.3.3-12]
  client.send(publish(topic, "second", 2, { messageId: 7 }));
  await client.expect("pubrec", { messageId: 7 });
  client.send({ cmd: "pubrel", messageId: 7 });
  await client.expect("pubcomp", { messageId: 7 });
  await watcher.expectMessage("second");
  await watcher.expectNothing();
}

/** `watcher` publishes, `client` receives. */
async function* outgoingQoS1({ client, watcher, topic }: Parties): Exchange {
  await publishAndWait(watcher, topic, "first");
  const first = await client.expectMessage("first", { qos: 1, dup: false });
  yield "PUBLISH";
  await publishAndWait(watcher, topic, "second");
  const second = await client.expectMessage("second", { qos: 1, dup: false });
  expect(second.messageId).not.toBe(first.messageId);
  yield "the second PUBLISH";
  client.send({ cmd: "puback", messageId: first.messageId! });
  yield "PUBACK";
  client.send({ cmd: "puback", messageId: second.messageId! });
  await client.expectNothing();
  yield "the second PUBACK";
  await publishAndWait(watcher, topic, "third");
  const third = await client.expectMessage("third", { qos: 1, dup: false });
  client.send({ cmd: "puback", messageId: third.messageId! });
  await client.expectNothing();
}

async function* outgoingQoS2({ client, watcher, topic }: Parties): Exchange {
  watcher.send(publish(topic, "first", 2, { messageId: 5 }));
  await watcher.expect("pubrec", { messageId: 5 });
  watcher.send({ cmd: "pubrel", messageId: 5 });
  await watcher.expect("pubcomp", { messageId: 5 });
  const { messageId } = await client.expectMessage("first", { qos: 2, dup: false });
  yield "PUBLISH";
  client.send({ cmd: "pubrec", messageId: messageId! });
  yield "PUBREC";
  await client.expect("pubrel", { messageId });
  yield "PUBREL";
  // A client that lost it says PUBREC again.
  client.send({ cmd: "pubrec", messageId: messageId! });
  await client.expect("pubrel", { messageId });
  yield "the repeated PUBREL";
  client.send({ cmd: "pubcomp", messageId: messageId! });
  await client.expectNothing();
  yield "PUBCOMP";
  await client.expectNothing();
}

const exchanges = [
  { name: "incoming QoS 1", run: incomingQoS1, subscriber: "watcher", steps: ["PUBLISH", "PUBACK"] },
  {
    name: "incoming QoS 2",
    run: incomingQoS2,
    subscriber: "watcher",
    steps: ["PUBLISH", "PUBREC", "the repeated PUBLISH", "PUBREL", "PUBCOMP", "the repeated PUBREL"],
  },
  {
    name: "outgoing QoS 1",
    run: outgoingQoS1,
    subscriber: "client",
    steps: ["PUBLISH", "the second PUBLISH", "PUBACK", "the second PUBACK"],
  },
  {
    name: "outgoing QoS 2",
    run: outgoingQoS2,
    subscriber: "client",
    steps: ["PUBLISH", "PUBREC", "PUBREL", "the repeated PUBREL", "PUBCOMP"],
  },
] as const;

async function meet(node: string, fields: Parameters<typeof converse>[1], subscriber: "client" | "watcher") {
  const topic = `exchange/${node}`;
  const client = await converse(node, { clientId: clientIdAt(node), ...fields });
  const watcher = await converse(newNode());
  await subscribe(subscriber === "client" ? client : watcher, topic);
  return { client, watcher, topic };
}

describe.for(kinds)("%s", ([kind, fields]) => {
  describe.for(exchanges)("$name", ({ run, subscriber, steps }) => {
    test.concurrent.for(steps)("[G1] goes on after sleep behind %s", async (asleepAt) => {
      const node = newNode();
      const parties = await meet(node, fields, subscriber);
      const reached: string[] = [];
      for await (const step of run(parties)) {
        reached.push(step);
        if (step === asleepAt) await sleep(node);
      }
      expect(reached).toEqual(steps);
      if (kind === "a transient session") return;

      // What was acknowledged before sleep stays acknowledged in the next connection.
      await sleep(node);
      await parties.client.drop();
      const again = await converse(node, { clientId: clientIdAt(node), ...durable });
      expect(again.connack.sessionPresent).toBe(true);
      await again.expectNothing();
    });

    test.concurrent("[G1] goes on after sleep behind every step", async () => {
      const node = newNode();
      for await (const _ of run(await meet(node, fields, subscriber))) await sleep(node);
    });
  });
});

describe("a crash behind", () => {
  const crashAndReturn = async (node: string): Promise<Conversation> => {
    await crash(node);
    const again = await converse(node, { clientId: clientIdAt(node), ...durable });
    expect(again.connack.sessionPresent).toBe(true);
    return again;
  };

  test.concurrent("[G1] incoming QoS 1: PUBLISH", async () => {
    const node = newNode();
    const { client, watcher, topic } = await meet(node, durable, "watcher");
    client.send(publish(topic, "first", 1, { messageId: 7 }));
    const again = await crashAndReturn(node);
    again.send(publish(topic, "first", 1, { messageId: 7, dup: true }));
    await again.expect("puback", { messageId: 7, reasonCode: 0 });
    await watcher.expectMessage("first");
  });

  test.concurrent.for(["PUBREC", "PUBREL", "PUBCOMP"])("[G1] incoming QoS 2: %s", async (crashAt) => {
    const node = newNode();
    const { client, watcher, topic } = await meet(node, durable, "watcher");
    let current: Conversation = client;
    const step = async (name: string): Promise<void> => {
      if (name === crashAt) current = await crashAndReturn(node);
    };
    current.send(publish(topic, "first", 2, { messageId: 7 }));
    await current.expect("pubrec", { messageId: 7 });
    await step("PUBREC");
    current.send(publish(topic, "first", 2, { messageId: 7, dup: true }));
    await current.expect("pubrec", { messageId: 7 });
    current.send({ cmd: "pubrel", messageId: 7 });
    if (crashAt === "PUBREL") {
      await step("PUBREL");
      current.send({ cmd: "pubrel", messageId: 7 });
    }
    await current.expect("pubcomp", { messageId: 7 });
    await step("PUBCOMP");
    await watcher.expectMessage("first");
    await watcher.expectNothing();
    current.send(publish(topic, "second", 2, { messageId: 7 }));
    await current.expect("pubrec", { messageId: 7 });
    await watcher.expectMessage("second");
  });

  test.concurrent("[G1] [MQTT-4.4.0-1] outgoing QoS 1: PUBLISH", async () => {
    const node = newNode();
    const { watcher, client, topic } = await meet(node, durable, "client");
    await publishAndWait(watcher, topic, "first", "second");
    const { messageId } = await client.expectMessage("first");
    const again = await crashAndReturn(node);
    // The node may have forgotten that it sent them, never that it has them.
    const first = await again.expectMessage("first", { qos: 1 });
    const second = await again.expectMessage("second", { qos: 1 });
    expect(first.messageId).toBe(messageId);
    again.send({ cmd: "puback", messageId: first.messageId! }, { cmd: "puback", messageId: second.messageId! });
    await again.expectNothing();
  });

  test.concurrent.for(["PUBLISH", "PUBREC", "PUBREL"])("[G1] outgoing QoS 2: %s", async (crashAt) => {
    const node = newNode();
    const { watcher, client, topic } = await meet(node, durable, "client");
    let current: Conversation = client;
    watcher.send(publish(topic, "first", 2, { messageId: 5 }));
    await watcher.expect("pubrec", { messageId: 5 });
    let { messageId } = await current.expectMessage("first", { qos: 2, dup: false });
    if (crashAt === "PUBLISH") {
      current = await crashAndReturn(node);
      ({ messageId } = await current.expectMessage("first", { qos: 2, dup: true, messageId })); // [MQTT-4.4.0-1]
    }
    current.send({ cmd: "pubrec", messageId: messageId! });
    if (crashAt !== "PUBREC") await current.expect("pubrel", { messageId });
    if (crashAt === "PUBREL") {
      current = await crashAndReturn(node);
      await current.expect("pubrel", { messageId }); // [MQTT-4.4.0-1]: and not the PUBLISH again
    }
    if (crashAt === "PUBREC") {
      current = await crashAndReturn(node);
      // Whether the PUBREC was handled before the crash is open; both go on with the same packet id.
      const packet = await current.next();
      expect(packet).toMatchObject({ messageId });
      if (packet.cmd === "publish") {
        current.send({ cmd: "pubrec", messageId: messageId! });
        await current.expect("pubrel", { messageId });
      } else expect(packet.cmd).toBe("pubrel");
    }
    current.send({ cmd: "pubcomp", messageId: messageId! });
    await current.expectNothing();
    await sleep(node);
    current = await crashAndReturn(node);
    await current.expectNothing();
  });

  test.concurrent("[G1] [G2] while the client is away: its queue", async () => {
    const node = newNode();
    const { watcher, client, topic } = await meet(node, durable, "client");
    await client.drop();
    await publishAndWait(watcher, topic, "1", "2");
    await crash(node);
    await publishAndWait(watcher, topic, "3");
    await sleep(node);
    await publishAndWait(watcher, topic, "4");
    const again = await crashAndReturn(node);
    for (const payload of ["1", "2", "3", "4"]) await again.expectMessage(payload, { qos: 1 });
    await again.expectNothing();
  });
});

test.each(kinds)(
  "[MQTT-3.14.4-3] %s: a connection is closed when it is on disk that its client has left, with its will",
  async (_, fields) => {
    const node = newNode();
    const client = await converse(node, { ...fields, will: { topic: `exchange/${node}`, payload: "gone", qos: 1 } });
    const { storage, sockets } = await runInDurableObject(nodeStub(node), (_, state) => ({
      storage: state.storage,
      sockets: state.getWebSockets(),
    }));
    const wills: unknown[] = [];
    // oxlint-disable-next-line typescript/unbound-method -- it is called with the socket that it was called on
    const { close } = WebSocket.prototype;
    vi.spyOn(WebSocket.prototype, "close").mockImplementation(function (this: WebSocket, ...args) {
      if (sockets.includes(this))
        wills.push(storage.sql.exec("SELECT 1 FROM session WHERE will IS NOT NULL").toArray());
      close.apply(this, args);
    });
    onTestFinished(() => void vi.restoreAllMocks());
    await client.leave();
    expect(wills[0]).toEqual([]);
  },
);

describe("[G1] the core", () => {
  test("sleeps behind each PUBLISH", async () => {
    const { client, watcher, topic } = await meet(newNode(), {}, "watcher");
    for (const payload of ["1", "2", "3"]) {
      client.send(publish(topic, payload, 1, { messageId: 7 }));
      await sleep(coreName);
      await client.expect("puback", { messageId: 7, reasonCode: 0 });
      await watcher.expectMessage(payload);
    }
    await watcher.expectNothing();
  });

  test("crashes behind a PUBLISH: it is sent again and acknowledged", async () => {
    const { client, watcher, topic } = await meet(newNode(), {}, "watcher");
    client.send(publish(topic, "1", 1, { messageId: 7 }));
    await crash(coreName);
    await client.expect("puback", { messageId: 7, reasonCode: 0 });
    await watcher.expectMessage("1");
  });
});

describe("[G1] a QoS 2 message comes once", () => {
  test("when its publisher's node crashes as soon as it has come, and the client sends it again", async () => {
    const [node, other] = [newNode(), newNode()];
    const topic = `once/${node}`;
    const watcher = await converse(other, durable);
    await subscribe(watcher, topic, { qos: 2 });
    const publisher = { ...durable, clientId: clientIdAt(node) };
    for (let messageId = 1; messageId <= 8; messageId++) {
      const client = await converse(node, publisher);
      client.send(publish(topic, String(messageId), 2, { messageId }));
      const { messageId: deliveredId } = await watcher.expectMessage(String(messageId));
      await crash(node);
      const again = await converse(node, publisher);
      expect(again.connack.sessionPresent).toBe(true);
      // Whether the broker had told of it or not, MQTT wants the client to send it again. [MQTT-4.4.0-1]
      again.send(publish(topic, String(messageId), 2, { messageId, dup: true }));
      await again.expect("pubrec", { messageId });
      again.send({ cmd: "pubrel", messageId });
      await again.expect("pubcomp", { messageId });
      watcher.send({ cmd: "pubrec", messageId: deliveredId! });
      await watcher.expect("pubrel", { messageId: deliveredId! });
      watcher.send({ cmd: "pubcomp", messageId: deliveredId! });
      await watcher.expectNothing();
      await again.drop();
    }
  });

  test("when a core sends a batch again whose answer it did not get, and a QoS 1 message may come twice", async () => {
    const node = newNode();
    const client = await converse(node, durable);
    await subscribe(client, `again/${node}`, { qos: 2 });
    const batchOf = (qos: 1 | 2, number: number): Uint8Array => {
      const writer = new ByteWriter();
      const payload = new TextEncoder().encode(qos === 2 ? "once" : "twice");
      const topic = `again/${node}`;
      writeMessage(writer, {
        id: messageIdOf("0123456789ab", number),
        topic,
        payload,
        qos,
        retain: false,
        properties: new Uint8Array(),
        expiresAt: 0,
        from: "",
      });
      const record = forwardRecord(new ByteWriter(), matchedBytes([{ key: topic, ordinal: 0 }]), writer.take());
      return joinRecords([record], record.length);
    };
    for (const batch of [batchOf(2, 1), batchOf(2, 1), batchOf(1, 2), batchOf(1, 2)])
      expect(await nodeStub(node).forward(batch)).toEqual(Uint8Array.of(0));
    await client.expectMessage("once", { qos: 2 });
    await client.expectMessage("twice", { qos: 1 });
    await client.expectMessage("twice", { qos: 1 });
    await client.expectNothing();
  });
});
