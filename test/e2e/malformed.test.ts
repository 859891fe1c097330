// What clients send that is no MQTT, or not in frames as one would expect.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { generate } from "mqtt-packet";
import type { Packet } from "mqtt-packet";
import { malformedPackets } from "../mqtt/malformed.ts";
import type { Malformed } from "../mqtt/malformed.ts";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connect, connectPacket, converse, converseConnected, slot, versions } from "../support/client.ts";
import type { Conversation } from "../support/client.ts";
import { random } from "../support/random.ts";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker();
});

afterAll(() => broker.stop());

/** A client on the same node, which must not notice anything; and one that can tell. */
async function bystander(): Promise<{ stays: () => Promise<void> }> {
  const [here, elsewhere] = [await connect(broker.urlOf(slot(1))), await connect(broker.urlOf(slot(0)))];
  await here.subscribe("bystander", { qos: 1 });
  let count = 0;
  return {
    async stays() {
      await elsewhere.publish("bystander", `${++count}`, { qos: 1 });
      expect(await here.payloads(1)).toEqual([`${count}`]);
      await here.expectNothing();
    },
  };
}

async function conversation({ version, afterConnect }: Malformed): Promise<Conversation> {
  return afterConnect
    ? await converseConnected(broker.urlOf(slot(1)), { version })
    : await converse(broker.urlOf(slot(1)), { version });
}

async function expectAnswer(client: Conversation, { answer, reasonCode }: Malformed): Promise<void> {
  if (answer !== "close") {
    const packet = await client.expect(answer);
    expect(packet).toMatchObject({ cmd: answer, reasonCode });
    if (packet.cmd === "connack") expect(packet.sessionPresent).toBe(false);
  }
  await client.expectClose();
}

describe("[G5] a malformed packet is answered, and ends its own connection", () => {
  test.each(malformedPackets)("$name", async (row) => {
    const wrong = await conversation(row);
    wrong.sendFrame(row.bytes);
    await expectAnswer(wrong, row);
  });

  test("all of them at once, byte by byte, next to a client that stays connected and hears the next message", async () => {
    const { stays } = await bystander();
    const sendOne = async (row: Malformed): Promise<void> => {
      const wrong = await conversation(row);
      for (const byte of row.bytes) wrong.sendFrame(Uint8Array.of(byte));
      await expectAnswer(wrong, row);
    };
    await Promise.all(malformedPackets.map(sendOne));
    await stays();
  });

  test("what follows a malformed packet in the same frame is not looked at", async () => {
    const listener = await connect(broker.urlOf(slot(0)));
    await listener.subscribe("after/wrong");
    const client = await converseConnected(broker.urlOf(slot(1)));
    const publish = generate(publishPacket("after/wrong", "x"), { protocolVersion: 5 });
    client.sendFrame(Buffer.concat([Uint8Array.of(0x00, 0x00), publish]));
    expect(await client.expect("disconnect")).toMatchObject({ reasonCode: 0x82 });
    await client.expectClose();
    await listener.publish("after/wrong", "marker");
    expect(await listener.payloads(1)).toEqual(["marker"]);
  });

  test("nor what follows in later frames, a CONNECT of another session among them", async () => {
    const listener = await connect(broker.urlOf(slot(0)));
    await listener.subscribe("second/life");
    const client = await converseConnected(broker.urlOf(slot(1)));
    for (const packets of [
      [{ cmd: "disconnect", reasonCode: 0 }],
      [connectPacket({ clientId: "second-life" })],
      [publishPacket("second/life", "x")],
    ] satisfies Packet[][])
      client.send(...packets);
    await client.expectClose();
    await listener.publish("second/life", "marker", { qos: 1 });
    expect(await listener.payloads(1)).toEqual(["marker"]);
  });

  test("a thousand sockets of noise", async () => {
    const { stays } = await bystander();
    const next = random(1);
    for (let round = 0; round < 20; round++) {
      const noise = Array.from({ length: 50 }, () =>
        Uint8Array.from({ length: 1 + Math.floor(next() * 200) }, () => Math.floor(next() * 256)),
      );
      await Promise.all(
        noise.map(async (bytes, n) => {
          const connected = n % 2 === 0;
          const client = connected
            ? await converseConnected(broker.urlOf(slot(1)))
            : await converse(broker.urlOf(slot(1)));
          client.sendFrame(bytes);
          // A packet that is not finished is not wrong yet.
          await client.drop();
        }),
      );
    }
    await stays();
  });
});

function publishPacket(topic: string, payload: string): Packet {
  return { cmd: "publish", topic, payload, qos: 0, dup: false, retain: false };
}

describe("[MQTT-6.0.0-1] a text frame ends the connection", () => {
  test.each(versions)("version %i", async (version) => {
    const { stays } = await bystander();
    const client = await converseConnected(broker.urlOf(slot(1)), { version });
    client.sendFrame("\u00c0\u0000");
    if (version === 5) expect(await client.expect("disconnect")).toMatchObject({ reasonCode: 0x82 });
    await client.expectClose();
    const before = await converse(broker.urlOf(slot(1)), { version });
    before.sendFrame("hello");
    await before.expectClose();
    await stays();
  });
});

describe.each(versions)("[MQTT-6.0.0-2] packets need not agree with frames, version %i", (version) => {
  const filter = "frames/#";
  const payload = "p".repeat(300);

  /** A whole conversation, CONNECT to DISCONNECT, as one stretch of bytes. */
  function stream(): Buffer {
    const packets: Packet[] = [
      connectPacket({ version }),
      { cmd: "subscribe", messageId: 1, subscriptions: [{ topic: filter, qos: 2 }] },
      { cmd: "publish", messageId: 2, topic: "frames/a", payload, qos: 1, dup: false, retain: false },
      { cmd: "publish", messageId: 3, topic: "frames/b", payload: "", qos: 2, dup: false, retain: false },
      { cmd: "pubrel", messageId: 3 },
      publishPacket("frames/c", payload),
      { cmd: "pingreq" },
      { cmd: "unsubscribe", messageId: 4, unsubscriptions: ["frames/none"] },
    ];
    return Buffer.concat(packets.map((packet) => generate(packet, { protocolVersion: version })));
  }

  /** The answers; of the messages that come back only that they come. */
  async function expectAnswers(client: Conversation): Promise<void> {
    expect(await client.expect("connack")).toMatchObject({ sessionPresent: false });
    const wanted = ["suback", "puback", "pubrec", "pubcomp", "publish", "publish", "publish", "pingresp", "unsuback"];
    const got: string[] = [];
    while (got.length < wanted.length) got.push((await client.next()).cmd);
    expect(got.sort()).toEqual(wanted.sort());
  }

  test("all in one frame", async () => {
    const client = await converse(broker.urlOf(slot(1)), { version });
    client.sendFrame(stream());
    await expectAnswers(client);
  });

  test("a frame for each byte", async () => {
    const client = await converse(broker.urlOf(slot(1)), { version });
    for (const byte of stream()) client.sendFrame(Uint8Array.of(byte));
    await expectAnswers(client);
  });

  test.each([1, 2, 3, 4, 5])("cut anywhere, seed %i, with empty frames between", async (seed) => {
    const next = random(seed);
    const client = await converse(broker.urlOf(slot(1)), { version });
    let rest = stream();
    while (rest.length > 0) {
      const length = Math.floor(next() * 40);
      client.sendFrame(rest.subarray(0, length));
      rest = rest.subarray(length);
    }
    await expectAnswers(client);
  });

  test("a large packet in many frames, beside a busy client", async () => {
    const busy = await connect(broker.urlOf(slot(1)), { protocolVersion: version });
    await busy.subscribe("busy");
    const listener = await connect(broker.urlOf(slot(0)), { protocolVersion: version });
    await listener.subscribe("large", { qos: 1 });
    const client = await converseConnected(broker.urlOf(slot(1)), { version });
    const large = "l".repeat(400_000);
    const bytes = generate(
      { cmd: "publish", messageId: 1, topic: "large", payload: large, qos: 1, dup: false, retain: false },
      { protocolVersion: version },
    );
    for (let at = 0; at < bytes.length; at += 10_000) {
      client.sendFrame(bytes.subarray(at, at + 10_000));
      await busy.publish("busy", `${at}`);
      expect(await busy.payloads(1)).toEqual([`${at}`]);
    }
    await client.expect("puback");
    expect(await listener.payloads(1)).toEqual([large]);
  });

  test("[G6] the broker's packets of one turn share frames", async () => {
    const subscriber = await converseConnected(broker.urlOf(slot(1)), { version });
    subscriber.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "turn", qos: 0 }] });
    await subscriber.expect("suback");
    const before = subscriber.frames.length;
    const publisher = await converseConnected(broker.urlOf(slot(0)), { version });
    publisher.send(...Array.from({ length: 200 }, (_, n) => publishPacket("turn", `${n}`)));
    for (let n = 0; n < 200; n++) expect((await subscriber.expect("publish")).payload.toString()).toBe(`${n}`);
    expect(subscriber.frames.length - before).toBeLessThan(100);
  });
});
