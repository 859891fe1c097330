import type { Packet, QoS } from "mqtt-packet";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packet, properties, text } from "../mqtt/malformed.ts";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connect, converseConnected, range, slot, versions } from "../support/client.ts";
import type { Client } from "../support/client.ts";

let broker: Broker;

beforeAll(async () => {
  // Windows that let MQTT.js, which knows of no Receive Maximum, have hundreds of messages in flight.
  broker = await startBroker({
    env: { TRELLIS_MQTT__MAX_INFLIGHT: "1000", TRELLIS_MQTT__MAX_AWAITING_REL: "1000" },
  });
});

afterAll(() => broker.stop());

const qualities: readonly QoS[] = [0, 1, 2];

describe.each(versions)("from a client of version %i", (from) => {
  describe.each(versions)("to one of version %i on another node", (to) => {
    test.each(qualities)("QoS %i", async (qos) => {
      const subscriber = await connect(broker.urlOf(slot(1)), { protocolVersion: to });
      const publisher = await connect(broker.urlOf(slot(0)), { protocolVersion: from });
      expect(await subscriber.subscribe(`d/${qos}/+`, { qos: 2 })).toEqual([2]);
      const payloads = ["", "x", "y".repeat(70_000), "z".repeat(500_000)];
      for (const payload of payloads) await publisher.publish(`d/${qos}/t`, payload, { qos });
      for (const payload of payloads) {
        expect(await subscriber.next()).toMatchObject({ topic: `d/${qos}/t`, payload, qos, retain: false });
      }
      await subscriber.expectNothing();
    });
  });
});

test("3.1 talks to 5.0", async () => {
  const old = await converseConnected(broker.urlOf(slot(0)), { version: 3 });
  const young = await connect(broker.urlOf(slot(1)));
  await young.subscribe("3.1/up");
  old.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "3.1/down", qos: 1 }] });
  expect(await old.expect("suback")).toMatchObject({ messageId: 1, granted: [1] });
  old.send({ cmd: "publish", topic: "3.1/up", payload: "hello", qos: 0, dup: false, retain: false });
  expect(await young.next()).toMatchObject({ payload: "hello" });
  await young.publish("3.1/down", "good day", { qos: 1, properties: { contentType: "text/plain" } });
  const { messageId = 0, ...publish } = await old.expect("publish");
  expect(publish).toMatchObject({ topic: "3.1/down", payload: Buffer.from("good day"), qos: 1 });
  old.send({ cmd: "puback", messageId });
  await old.expectNothing();
});

test("[MQTT-3.8.4-8] the QoS of a delivery is the lower one of publish and subscription", async () => {
  const publisher = await connect(broker.urlOf(slot(0)));
  for (const granted of qualities) {
    const subscriber = await connect(broker.urlOf(slot(1)));
    expect(await subscriber.subscribe("lower", { qos: granted })).toEqual([granted]);
    for (const qos of qualities) await publisher.publish("lower", `${qos}`, { qos });
    const received = [await subscriber.next(), await subscriber.next(), await subscriber.next()];
    expect(received.map(({ qos }) => qos)).toEqual(qualities.map((qos) => Math.min(qos, granted)));
    await subscriber.leave();
  }
});

test("3.1.1 [MQTT-3.8.4-5] one SUBACK grants and refuses filter by filter", async () => {
  const client = await connect(broker.url, { protocolVersion: 4 });
  expect(await client.subscribe(["one", "two/#", "+/three"], { qos: 1 })).toEqual([1, 1, 1]);
});

describe("order", () => {
  test.each([
    [0, 4],
    [1, 4],
    [2, 4],
    [0, 5],
    [1, 5],
    [2, 5],
  ] as const)("[G2] 400 messages at QoS %i in flight at once, version %i", async (qos, protocolVersion) => {
    const topic = `order/${qos}/${protocolVersion}`;
    const subscribers: Client[] = [];
    for (const number of [0, 1, 2]) {
      const subscriber = await connect(broker.urlOf(slot(number)), {
        protocolVersion,
        // A window that opens and closes all the time.
        ...(protocolVersion === 5 && number === 2 && { properties: { receiveMaximum: 3 } }),
      });
      await subscriber.subscribe(topic, { qos });
      subscribers.push(subscriber);
    }
    const publisher = await connect(broker.urlOf(slot(0)), { protocolVersion });
    const payloads = range(400).map(String);
    await Promise.all(payloads.map((payload) => publisher.publish(topic, payload, { qos })));
    for (const subscriber of subscribers) expect(await subscriber.payloads(400)).toEqual(payloads);
    for (const subscriber of subscribers) await subscriber.expectNothing();
  });

  test("[G2] two publishers on two nodes: each one's order is kept, and nothing is lost or doubled", async () => {
    const subscriber = await connect(broker.urlOf(slot(2)));
    await subscriber.subscribe("order/two/#", { qos: 2 });
    const publishers = [await connect(broker.urlOf(slot(0))), await connect(broker.urlOf(slot(1)))];
    const sent = range(200).flatMap((n) =>
      publishers.map((publisher, p) => publisher.publish(`order/two/${p}`, `${p}-${n}`, { qos: 2 })),
    );
    await Promise.all(sent);
    const received = await subscriber.payloads(400);
    for (const p of [0, 1]) {
      const ownOrder = received.filter((payload) => payload.startsWith(`${p}-`));
      expect(ownOrder).toEqual(range(200).map((n) => `${p}-${n}`));
    }
  });
});

describe("subscriptions", () => {
  test("[G3] a publish anywhere after SUBACK is delivered: 24 subscribers on 6 nodes at once, five times over", async () => {
    const publishers = await Promise.all([0, 5, 6].map((number) => connect(broker.urlOf(slot(number)))));
    const subscribers = await Promise.all(range(24).map((n) => connect(broker.urlOf(slot(n % 6)))));
    const subscribeAndHear = async (subscriber: Client, n: number, round: number): Promise<void> => {
      expect(await subscriber.subscribe(`g3/${n}/+`, { qos: 1 })).toEqual([1]);
      // At once, by each of them: whichever node the publish comes to, it knows the route.
      await Promise.all(publishers.map((publisher) => publisher.publish(`g3/${n}/${round}`, "now")));
      for (const _ of publishers) expect(await subscriber.next()).toMatchObject({ topic: `g3/${n}/${round}` });
      expect(await subscriber.unsubscribe(`g3/${n}/+`)).toEqual([0]);
    };
    for (const round of range(5)) {
      await Promise.all(subscribers.map((subscriber, n) => subscribeAndHear(subscriber, n, round)));
    }
  });

  test("[G3] SUBACK waits for the route, also when the subscriber's node has much to send before it", async () => {
    const away = await connect(broker.urlOf(slot(2)), { properties: { sessionExpiryInterval: 100 } });
    await away.subscribe("load", { qos: 1 });
    await away.leave();
    const subscriber = await converseConnected(broker.urlOf(slot(1)));
    const publisher = await converseConnected(broker.urlOf(slot(0)));
    const payload = Buffer.alloc(700_000);
    const publish = { cmd: "publish", payload, dup: false, retain: false } as const;
    for (const round of range(8)) {
      // Each a batch of its own, answered when it is on the disk of another node: more than may be under way at once.
      const load = range(10).map((n): Packet => ({ ...publish, topic: "load", qos: 1, messageId: n + 1 }));
      const topic = `behind/${round}`;
      subscriber.send(...load, { cmd: "subscribe", messageId: 99, subscriptions: [{ topic, qos: 0 }] });
      let acknowledged = 0;
      let received = await subscriber.next();
      for (; received.cmd === "puback"; received = await subscriber.next()) acknowledged++;
      expect(received).toMatchObject({ cmd: "suback", granted: [0] });
      publisher.send({ ...publish, topic, payload: "", qos: 0 });
      received = await subscriber.next();
      for (; received.cmd === "puback"; received = await subscriber.next()) acknowledged++;
      expect(received).toMatchObject({ cmd: "publish", topic });
      for (; acknowledged < load.length; acknowledged++) await subscriber.expect("puback");
    }
  });

  test("[G3] subscribers that share a filter come and go, and those who stay hear everything", async () => {
    const publisher = await connect(broker.urlOf(slot(0)));
    const stays = await connect(broker.urlOf(slot(1)));
    const comes = await connect(broker.urlOf(slot(1)));
    await stays.subscribe("stay/#", { qos: 1 });
    for (const round of range(30)) {
      const changed = round % 2 === 0 ? comes.subscribe("stay/#", { qos: 0 }) : comes.unsubscribe("stay/#");
      await Promise.all([changed, publisher.publish("stay/here", `${round}`, { qos: 1 })]);
    }
    expect(await stays.payloads(30)).toEqual(range(30).map(String));
  });

  test.each(versions)("[MQTT-3.10.4-2] nothing is delivered after UNSUBACK, version %i", async (protocolVersion) => {
    const subscriber = await connect(broker.urlOf(slot(1)), { protocolVersion });
    const publisher = await connect(broker.urlOf(slot(0)), { protocolVersion });
    await subscriber.subscribe(["leave/a", "leave/+"], { qos: 1 });
    await publisher.publish("leave/a", "both", { qos: 1 });
    expect(await subscriber.payloads(1)).toEqual(["both"]);
    await subscriber.unsubscribe("leave/a");
    await publisher.publish("leave/a", "one", { qos: 1 });
    expect(await subscriber.payloads(1)).toEqual(["one"]);
    const codes = await subscriber.unsubscribe(["leave/+", "never/there"]);
    expect(codes).toEqual(protocolVersion === 5 ? [0x00, 0x11] : []);
    await publisher.publish("leave/a", "none", { qos: 1 });
    await publisher.publish("never/there", "none", { qos: 1 });
    await subscriber.expectNothing();
  });

  test("[MQTT-3.8.4-3] the same filter again replaces the subscription", async () => {
    const client = await connect(broker.urlOf(slot(0)));
    await client.subscribe("again", { qos: 0, properties: { subscriptionIdentifier: 1 } });
    await client.subscribe("again", { qos: 2, properties: { subscriptionIdentifier: 2 } });
    await client.publish("again", "", { qos: 2 });
    expect(await client.next()).toMatchObject({ qos: 2, properties: { subscriptionIdentifier: 2 } });
    await client.expectNothing();
  });

  test("[MQTT-3.3.4-3] overlapping subscriptions deliver once, at the highest QoS, with all identifiers", async () => {
    const subscriber = await connect(broker.urlOf(slot(1)));
    const publisher = await connect(broker.urlOf(slot(0)));
    for (const [filter, qos, subscriptionIdentifier] of [
      ["over/#", 0, 11],
      ["over/+", 2, 268_435_455],
      ["over/lap", 1, 300],
    ] as const)
      await subscriber.subscribe(filter, { qos, properties: { subscriptionIdentifier } });
    await subscriber.subscribe("+/lap", { qos: 0 });
    await publisher.publish("over/lap", "once", { qos: 2 });
    const { qos, payload, properties } = await subscriber.next();
    expect({ qos, payload }).toEqual({ qos: 2, payload: "once" });
    expect(new Set([properties.subscriptionIdentifier].flat())).toEqual(new Set([11, 300, 268_435_455]));
    await publisher.publish("over/two", "once", { qos: 1 });
    const second = await subscriber.next();
    expect(second.qos).toBe(1);
    expect(new Set([second.properties.subscriptionIdentifier].flat())).toEqual(new Set([11, 268_435_455]));
    await subscriber.expectNothing();
  });

  test("3.1.1: overlapping subscriptions deliver once, at the highest QoS", async () => {
    const subscriber = await connect(broker.urlOf(slot(1)), { protocolVersion: 4 });
    const publisher = await connect(broker.urlOf(slot(0)), { protocolVersion: 4 });
    await subscriber.subscribe("lap/#", { qos: 0 });
    await subscriber.subscribe("lap/+", { qos: 2 });
    await publisher.publish("lap/a", "once", { qos: 2 });
    expect(await subscriber.next()).toMatchObject({ qos: 2, payload: "once" });
    await subscriber.expectNothing();
  });

  test("[MQTT-3.8.3-3] no-local: not to oneself, but to others and from others", async () => {
    const own = await connect(broker.urlOf(slot(0)));
    const other = await connect(broker.urlOf(slot(1)));
    for (const client of [own, other]) await client.subscribe("local/#", { qos: 1, nl: true });
    await own.publish("local/t", "mine", { qos: 1 });
    expect(await other.payloads(1)).toEqual(["mine"]);
    await own.expectNothing();
    await other.publish("local/t", "yours", { qos: 1 });
    expect(await own.payloads(1)).toEqual(["yours"]);
    await other.expectNothing();
  });

  test("[MQTT-3.3.1-12] [MQTT-3.3.1-13] RETAIN is kept on the way only for retain-as-published", async () => {
    const asPublished = await connect(broker.urlOf(slot(1)));
    const plain = await connect(broker.urlOf(slot(1)));
    const publisher = await connect(broker.urlOf(slot(0)));
    await asPublished.subscribe("rap", { rap: true });
    await plain.subscribe("rap");
    for (const retain of [true, false]) await publisher.publish("rap", "x", { qos: 1, retain });
    expect([(await asPublished.next()).retain, (await asPublished.next()).retain]).toEqual([true, false]);
    expect([(await plain.next()).retain, (await plain.next()).retain]).toEqual([false, false]);
    await publisher.publish("rap", "", { retain: true, qos: 1 });
  });

  test.each([
    ["sport/tennis/#", ["sport/tennis", "sport/tennis/a", "sport/tennis/a/b"], ["sport", "sport/tennisx"]],
    ["sport/+", ["sport/", "sport/a"], ["sport", "sport/a/b"]],
    ["+/+", ["/finance", "a/b"], ["finance", "/a/b"]],
    ["/+", ["/finance"], ["finance", "a/finance"]],
    ["+/x/#", ["a/x", "/x/y"], ["x", "$a/x"]],
    ["#", ["/", "a", "a/b"], ["$sys", "$a/b"]],
    ["$a/#", ["$a", "$a/b"], ["a", "$b/a"]],
  ])("[MQTT-4.7.1-1] [MQTT-4.7.2-1] %s", async (filter, matching, others) => {
    const subscriber = await connect(broker.urlOf(slot(1)));
    const publisher = await connect(broker.urlOf(slot(0)));
    await subscriber.subscribe(filter);
    for (const topic of [...others, ...matching]) await publisher.publish(topic, topic, { qos: 1 });
    expect(await subscriber.payloads(matching.length)).toEqual(matching);
    await subscriber.expectNothing();
  });

  test("only the broker speaks under $SYS/", async () => {
    const client = await connect(broker.url);
    await client.subscribe("$SYS/mine");
    await expect(client.publish("$SYS/mine", "x", { qos: 1 })).rejects.toMatchObject({ code: 0x87 });
    await client.expectNothing();
  });

  test("PUBACK tells a client of 5.0 that nobody subscribed", async () => {
    const client = await converseConnected(broker.url);
    // Under $: those who subscribed to "#" before may not be gone yet.
    const topic = "$nobody/here";
    const publish = { cmd: "publish", topic, payload: "", dup: false, retain: false } as const;
    client.send({ ...publish, qos: 1, messageId: 1 });
    expect(await client.expect("puback")).toMatchObject({ messageId: 1, reasonCode: 0x10 });
    client.send({ cmd: "subscribe", messageId: 2, subscriptions: [{ topic, qos: 0 }] });
    await client.expect("suback");
    client.send({ ...publish, qos: 1, messageId: 3 });
    const answers = [await client.next(), await client.next()];
    expect(answers.find(({ cmd }) => cmd === "puback")).toMatchObject({ messageId: 3, reasonCode: 0 });
    expect(answers.find(({ cmd }) => cmd === "publish")).toMatchObject({ topic });
  });
});

describe("properties", () => {
  test("all that is forwarded arrives", async () => {
    const subscriber = await connect(broker.urlOf(slot(1)));
    const publisher = await connect(broker.urlOf(slot(0)));
    await subscriber.subscribe("properties", { qos: 2 });
    const sent = {
      payloadFormatIndicator: true,
      contentType: "text/plain; charset=utf-8",
      responseTopic: "answer/here",
      correlationData: Buffer.from([0, 1, 2, 255]),
    };
    await publisher.publish("properties", "grüß dich", { qos: 2, properties: sent });
    const received = await subscriber.next();
    expect(received.payload).toBe("grüß dich");
    expect(received.properties).toMatchObject(sent);
  });

  test("[MQTT-3.3.2-17] [MQTT-3.3.2-18] user properties arrive unaltered and in order, names repeated", async () => {
    const subscriber = await converseConnected(broker.urlOf(slot(1)));
    const publisher = await converseConnected(broker.urlOf(slot(0)));
    subscriber.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "u", qos: 0 }] });
    await subscriber.expect("suback");
    const user = [
      ...[0x26, ...text("b"), ...text("1")],
      ...[0x26, ...text("a"), ...text("")],
      ...[0x26, ...text("b"), ...text("3")],
      ...[0x26, ...text(""), ...text("b")],
    ];
    const publish = packet(0x30, text("u"), properties(user), 0x70);
    publisher.sendFrame(publish);
    expect(await subscriber.expect("publish")).toMatchObject({ topic: "u" });
    expect(subscriber.frames.at(-1)).toEqual(Buffer.from(publish));
  });

  test("[MQTT-3.3.2-6] a message goes on with what is left of its expiry interval", async () => {
    const subscriber = await connect(broker.urlOf(slot(1)));
    const publisher = await connect(broker.urlOf(slot(0)));
    await subscriber.subscribe("expiry", { qos: 1 });
    await publisher.publish("expiry", "", { qos: 1, properties: { messageExpiryInterval: 100 } });
    const { messageExpiryInterval = 0 } = (await subscriber.next()).properties;
    expect(messageExpiryInterval).toBeGreaterThan(0);
    expect(messageExpiryInterval).toBeLessThanOrEqual(100);
  });

  test("[MQTT-3.3.2-5] a message whose time is over is not sent, and the remaining interval is", async () => {
    const url = broker.urlOf(slot(1));
    const session = { clientId: "expiring", clean: false, properties: { sessionExpiryInterval: 100 } };
    const first = await connect(url, session);
    await first.subscribe("expiring", { qos: 1 });
    await first.leave();
    const publisher = await connect(broker.urlOf(slot(0)));
    await publisher.publish("expiring", "short", { qos: 1, properties: { messageExpiryInterval: 1 } });
    await publisher.publish("expiring", "long", { qos: 1, properties: { messageExpiryInterval: 1000 } });
    await new Promise((resolve) => setTimeout(resolve, 1100)); // The second that it lives.
    const second = await connect(url, session);
    const { payload, properties: received } = await second.next();
    expect(payload).toBe("long");
    expect(received.messageExpiryInterval).toBeLessThan(1000);
    await second.expectNothing();
  });
});

describe("topic aliases", () => {
  const publish = { cmd: "publish", qos: 0, dup: false, retain: false } as const;

  test("[MQTT-3.3.2-12] from the client: set, used, set anew, used", async () => {
    const subscriber = await connect(broker.urlOf(slot(1)));
    const publisher = await converseConnected(broker.urlOf(slot(0)));
    expect(publisher.connack.properties).toMatchObject({ topicAliasMaximum: 65_535 });
    await subscriber.subscribe("alias/#");
    for (const [topic, topicAlias] of [
      ["alias/one", 1],
      ["alias/last", 65_535],
      ["", 1],
      ["", 65_535],
      ["alias/two", 1],
      ["", 1],
    ] as const)
      publisher.send({ ...publish, topic, payload: "", properties: { topicAlias } });
    const topics: string[] = [];
    while (topics.length < 6) topics.push((await subscriber.next()).topic);
    expect(topics).toEqual(["alias/one", "alias/last", "alias/one", "alias/last", "alias/two", "alias/two"]);
  });

  test("[MQTT-3.3.2-7] an alias ends with its connection, and using one that is not set ends the connection", async () => {
    const session = { clientId: "aliases", clean: false, properties: { sessionExpiryInterval: 100 } };
    const first = await converseConnected(broker.urlOf(slot(0)), session);
    first.send({ ...publish, topic: "alias/old", payload: "", properties: { topicAlias: 3 } });
    await first.expectNothing();
    await first.drop();
    const second = await converseConnected(broker.urlOf(slot(0)), session);
    expect(second.connack.sessionPresent).toBe(true);
    second.sendFrame(packet(0x30, text(""), properties(0x23, 0, 3)));
    expect(await second.expect("disconnect")).toMatchObject({ reasonCode: 0x82 });
    await second.expectClose();
  });

  test("[MQTT-3.1.2-26] to the client: as many as it takes, and the topic but once", async () => {
    const subscriber = await converseConnected(broker.urlOf(slot(1)), { properties: { topicAliasMaximum: 2 } });
    const publisher = await connect(broker.urlOf(slot(0)));
    subscriber.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "out/#", qos: 0 }] });
    await subscriber.expect("suback");
    const topics = ["out/a", "out/b", "out/a", "out/c", "out/b"];
    for (const topic of topics) await publisher.publish(topic, topic);
    const seen = new Map<number, string>();
    for (const expected of topics) {
      const { topic, payload, properties: received } = await subscriber.expect("publish");
      const alias = received?.topicAlias;
      if (alias !== undefined) expect([1, 2]).toContain(alias);
      if (alias !== undefined && topic !== "") {
        expect(seen.has(alias)).toBe(false);
        seen.set(alias, topic);
      }
      expect(topic === "" ? seen.get(alias ?? 0) : topic).toBe(expected);
      expect(payload.toString()).toBe(expected);
    }
    expect(seen.size).toBe(2);
  });

  test("none to a client that takes none", async () => {
    const subscriber = await converseConnected(broker.urlOf(slot(1)));
    subscriber.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "plain/#", qos: 0 }] });
    await subscriber.expect("suback");
    const publisher = await connect(broker.urlOf(slot(0)));
    for (const _ of range(2)) await publisher.publish("plain/a", "");
    for (const _ of range(2)) {
      const received = await subscriber.expect("publish");
      expect(received.topic).toBe("plain/a");
      expect(received.properties?.topicAlias).toBeUndefined();
    }
  });

  test("MQTT.js with aliases of its own choice, both ways", async () => {
    const subscriber = await connect(broker.urlOf(slot(1)), { properties: { topicAliasMaximum: 10 } });
    const publisher = await connect(broker.urlOf(slot(0)), { autoAssignTopicAlias: true });
    await subscriber.subscribe("auto/#", { qos: 1 });
    for (const n of range(20)) await publisher.publish(`auto/${n % 3}`, `${n}`, { qos: 1 });
    for (const n of range(20)) {
      expect(await subscriber.next()).toMatchObject({ topic: `auto/${n % 3}`, payload: `${n}` });
    }
  });
});

describe("bounds", () => {
  test("[MQTT-3.1.2-24] a client gets no packet above its Maximum Packet Size, and all others", async () => {
    const subscriber = await converseConnected(broker.urlOf(slot(1)), { properties: { maximumPacketSize: 100 } });
    const publisher = await connect(broker.urlOf(slot(0)));
    subscriber.send({
      cmd: "subscribe",
      messageId: 1,
      subscriptions: [
        { topic: "size/0", qos: 0 },
        { topic: "size/1", qos: 1 },
      ],
    });
    await subscriber.expect("suback");
    for (const qos of [0, 1] as const) {
      const overhead = 2 + 2 + "size/0".length + (qos > 0 ? 2 : 0) + 1;
      for (const payload of ["first", "x".repeat(101 - overhead), "y".repeat(100 - overhead), "last"])
        await publisher.publish(`size/${qos}`, payload, { qos });
      for (const payload of ["first", "y".repeat(100 - overhead), "last"]) {
        const received = await subscriber.expect("publish");
        expect(received.payload.toString()).toBe(payload);
        if (qos === 1) subscriber.send({ cmd: "puback", messageId: received.messageId ?? 0 });
      }
    }
    await subscriber.expectNothing();
  });

  test("[MQTT-3.2.2-15] a client that sends more than the broker's Maximum Packet Size is told and cut off", async () => {
    const client = await converseConnected(broker.urlOf(slot(1)));
    const { maximumPacketSize = 0 } = client.connack.properties ?? {};
    expect(maximumPacketSize).toBe(1024 * 1024);
    const subscriber = await connect(broker.urlOf(slot(0)));
    await subscriber.subscribe("big", { qos: 0 });
    const header = 1 + 3 + 2 + "big".length + 1; // Type, length, topic, properties.
    const payload = Buffer.alloc(maximumPacketSize - header, "b");
    client.send({ cmd: "publish", topic: "big", payload, qos: 0, dup: false, retain: false });
    expect((await subscriber.next()).payload).toHaveLength(payload.length);
    const larger = Buffer.alloc(payload.length + 1);
    client.send({ cmd: "publish", topic: "big", payload: larger, qos: 0, dup: false, retain: false });
    expect(await client.expect("disconnect")).toMatchObject({ reasonCode: 0x95 });
    await client.expectClose();
    await subscriber.expectNothing();
  });

  test.each([1, 2] as const)("[MQTT-3.3.4-9] no more than Receive Maximum at once at QoS %i", async (qos) => {
    const subscriber = await converseConnected(broker.urlOf(slot(1)), { properties: { receiveMaximum: 2 } });
    const publisher = await connect(broker.urlOf(slot(0)));
    subscriber.send({
      cmd: "subscribe",
      messageId: 1,
      subscriptions: [
        { topic: `window/${qos}`, qos },
        { topic: `beside/${qos}`, qos: 0 },
      ],
    });
    await subscriber.expect("suback");
    for (const n of range(5)) await publisher.publish(`window/${qos}`, `${n}`, { qos });
    const inFlight: number[] = [];
    const expectMessage = async (payload: string): Promise<void> => {
      const received = await subscriber.expect("publish");
      expect(received.payload.toString()).toBe(payload);
      inFlight.push(received.messageId ?? 0);
    };
    await expectMessage("0");
    await expectMessage("1");
    await subscriber.expectNothing();
    // QoS 0 is not held up.
    await publisher.publish(`beside/${qos}`, "beside");
    expect((await subscriber.expect("publish")).payload.toString()).toBe("beside");
    for (const n of [2, 3, 4]) {
      const messageId = inFlight.shift() ?? 0;
      if (qos === 1) subscriber.send({ cmd: "puback", messageId });
      else {
        subscriber.send({ cmd: "pubrec", messageId });
        await subscriber.expect("pubrel");
        await subscriber.expectNothing();
        subscriber.send({ cmd: "pubcomp", messageId });
      }
      await expectMessage(`${n}`);
      await subscriber.expectNothing();
    }
  });
});
