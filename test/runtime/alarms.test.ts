// Deadlines of objects that sleep. The clock is moved by hand, and so are the alarms: a real one never rings here,
// because the clock that the objects see is an hour ahead.

import { runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import {
  checkpointOf,
  converse,
  coreName,
  coreStub,
  crash,
  durable,
  newNode,
  nodeStub,
  publish,
  publishAndWait,
  rows,
  sessionRow,
  sleep,
  subscribe,
} from "./conversation.ts";
import { patience } from "../support/patience.ts";

beforeEach(() => {
  // The clock alone, which stands still; timers go on.
  vi.setSystemTime(Date.now() + 3_600_000);
});

afterEach(() => {
  vi.useRealTimers();
});

/** Moves the clock. */
function pass(seconds: number): void {
  vi.setSystemTime(Date.now() + seconds * 1000);
}

function stubOf(name: string) {
  return name === coreName ? coreStub() : nodeStub(name);
}

/** Seconds until the alarm, by the clock of the test; undefined: none is set. */
async function secondsToAlarm(name: string): Promise<number | undefined> {
  const read = (_: unknown, state: DurableObjectState): Promise<number | null> => state.storage.getAlarm();
  const at =
    name === coreName ? await runInDurableObject(coreStub(), read) : await runInDurableObject(nodeStub(name), read);
  return at === null ? undefined : (at - Date.now()) / 1000;
}

/** The alarm rings, because it is time or because the runtime rings it again. */
async function ring(name: string): Promise<void> {
  if (await runDurableObjectAlarm(stubOf(name))) return;
  const again = (instance: DurableObject): void | Promise<void> => instance.alarm!();
  if (name === coreName) await runInDurableObject(coreStub(), again);
  else await runInDurableObject(nodeStub(name), again);
}

/** Time passes while the object sleeps, and the alarm rings if one is due. */
async function sleepFor(name: string, seconds: number): Promise<void> {
  await sleep(name);
  pass(seconds);
  const due = await secondsToAlarm(name);
  await sleep(name);
  if (due !== undefined && due <= 0) await ring(name);
}

describe("keep-alive [MQTT-3.1.2-22]", () => {
  test("a client that is silent for one and a half times its keep-alive is cut, though the node sleeps", async () => {
    const node = newNode();
    const watcher = await converse(newNode());
    await subscribe(watcher, "alarms/will");
    const client = await converse(node, { keepalive: 60, will: { topic: "alarms/will", payload: "gone", qos: 1 } });
    expect(await secondsToAlarm(node)).toBe(90);
    await sleepFor(node, 89);
    await client.expectNothing();
    await sleepFor(node, 89);
    await client.expectNothing();
    await sleepFor(node, 91);
    await client.expect("disconnect", { reasonCode: 0x8d });
    await client.expectClosed();
    await watcher.expectMessage("gone");
    await ring(node);
    await watcher.expectNothing();
    expect(await sessionRow(node, client.clientId)).toBeUndefined();
  });

  test("any packet will do: a client that only publishes at QoS 0", async () => {
    const node = newNode();
    const client = await converse(node, { keepalive: 60 });
    const watcher = await converse(newNode());
    await subscribe(watcher, "alarms/qos0");
    for (const payload of ["1", "2", "3", "4"]) {
      client.send(publish("alarms/qos0", payload));
      await watcher.expectMessage(payload);
      await sleepFor(node, 50);
    }
    await client.expectNothing();
  });

  test("any packet will do: a client that only acknowledges", async () => {
    const node = newNode();
    const client = await converse(node, { keepalive: 60 });
    const publisher = await converse(newNode());
    await subscribe(client, "alarms/acknowledged");
    for (const payload of ["1", "2", "3", "4"]) {
      await publishAndWait(publisher, "alarms/acknowledged", payload);
      const { messageId } = await client.expectMessage(payload);
      client.send({ cmd: "puback", messageId: messageId! });
      await vi.waitUntil(async () => (await checkpointOf(node, client.clientId)).inflight.length === 0, patience);
      await sleepFor(node, 50);
    }
    await client.expectNothing();
  });

  test("what the broker sends does not count", async () => {
    const node = newNode();
    const client = await converse(node, { keepalive: 60 });
    const publisher = await converse(newNode());
    await subscribe(client, "alarms/sent", { qos: 0 });
    await sleepFor(node, 50);
    await publishAndWait(publisher, "alarms/sent", "1");
    await client.expectMessage("1");
    await sleepFor(node, 50);
    await client.expect("disconnect", { reasonCode: 0x8d });
  });

  test("a client without keep-alive is left alone, and nothing rings", async () => {
    const node = newNode();
    const client = await converse(node);
    expect(await secondsToAlarm(node)).toBeUndefined();
    await sleepFor(node, 86_400);
    await client.expectNothing();
  });

  test("each client has its own, and the alarm is the earliest of them", async () => {
    const node = newNode();
    const slow = await converse(node, { keepalive: 600 });
    expect(await secondsToAlarm(node)).toBe(900);
    const quick = await converse(node, { keepalive: 10 });
    expect(await secondsToAlarm(node)).toBe(15);
    await sleepFor(node, 16);
    await quick.expect("disconnect", { reasonCode: 0x8d });
    expect(await secondsToAlarm(node)).toBe(900 - 16);
    await slow.expectNothing();
  });
});

describe("the will's delay [MQTT-3.1.3-9]", () => {
  const will = {
    topic: "alarms/delayed-will",
    payload: "gone",
    qos: 1 as const,
    properties: { willDelayInterval: 30 },
  };

  async function loseClient(node: string, sessionExpiryInterval: number) {
    const watcher = await converse(newNode());
    const topic = `alarms/${node}/will`;
    await subscribe(watcher, topic);
    const client = await converse(node, {
      clean: false,
      properties: { sessionExpiryInterval },
      will: { ...will, topic },
    });
    await client.drop();
    return { watcher, client, topic };
  }

  test("is kept in sleep, and the will comes once", async () => {
    const node = newNode();
    const { watcher } = await loseClient(node, 3600);
    expect(await secondsToAlarm(node)).toBe(30);
    await sleepFor(node, 29);
    await watcher.expectNothing();
    await ring(node);
    await watcher.expectNothing();
    await sleepFor(node, 1);
    await watcher.expectMessage("gone");
    await ring(node);
    await sleep(node);
    await ring(node);
    await watcher.expectNothing();
  });

  test("is kept over a crash", async () => {
    const node = newNode();
    const { watcher } = await loseClient(node, 3600);
    await crash(node);
    await sleepFor(node, 29);
    await watcher.expectNothing();
    await crash(node);
    await sleepFor(node, 1);
    await watcher.expectMessage("gone");
    await watcher.expectNothing();
  });

  test("counts from the crash for a client that the crash took", async () => {
    const node = newNode();
    const watcher = await converse(newNode());
    await subscribe(watcher, "alarms/crash-will");
    await converse(node, { ...durable, will: { ...will, topic: "alarms/crash-will" } });
    await crash(node);
    // The node hears of its crash when something wakes it.
    await converse(node);
    await vi.waitUntil(async () => (await secondsToAlarm(node)) === 30, patience);
    await watcher.expectNothing();
    await sleepFor(node, 31);
    await watcher.expectMessage("gone");
  });

  test("ends with the session, if that is earlier", async () => {
    const node = newNode();
    const { watcher, client } = await loseClient(node, 10);
    await sleepFor(node, 10);
    await watcher.expectMessage("gone");
    await watcher.expectNothing();
    expect(await sessionRow(node, client.clientId)).toBeUndefined();
  });

  test("is called off by the client's return", async () => {
    const node = newNode();
    const { watcher, client } = await loseClient(node, 3600);
    await sleepFor(node, 20);
    const again = await converse(node, { ...durable, clientId: client.clientId });
    await sleepFor(node, 20);
    await again.expectNothing();
    await watcher.expectNothing();
  });
});

describe("session expiry [MQTT-3.1.2-23]", () => {
  test("ends a session while its node sleeps, with its messages, its routes and its claim", async () => {
    const node = newNode();
    const topic = `alarms/${node}`;
    const publisher = await converse(newNode());
    const client = await converse(node, { clean: false, properties: { sessionExpiryInterval: 100 } });
    await subscribe(client, topic);
    await client.leave();
    await publishAndWait(publisher, topic, "1", "2");
    expect(await secondsToAlarm(node)).toBe(100);
    await sleepFor(node, 99);
    expect(await sessionRow(node, client.clientId)).toBeDefined();
    await sleepFor(node, 1);
    for (const table of ["session", "connection", "subscription", "queue"])
      expect(await rows(node, `SELECT count(*) AS n FROM ${table}`)).toEqual([{ n: 0 }]);
    await vi.waitUntil(async () => (await rows(node, "SELECT 1 FROM log")).length === 0, patience);
    publisher.send(publish(topic, "3", 1, { messageId: 3 }));
    await publisher.expect("puback", { messageId: 3, reasonCode: 0x10 });
    await vi.waitUntil(async () => {
      const claims = await rows(coreName, "SELECT 1 FROM claim WHERE client_id = ?", client.clientId);
      return claims.length === 0;
    }, patience);
    expect(await secondsToAlarm(node)).toBeUndefined();
    await ring(node);
  });

  test("is over at its time, even if the alarm is late", async () => {
    const node = newNode();
    const client = await converse(node, { clean: false, properties: { sessionExpiryInterval: 100 } });
    await client.leave();
    await sleep(node);
    pass(101);
    const again = await converse(node, { ...durable, clientId: client.clientId });
    expect(again.connack.sessionPresent).toBe(false);
    await ring(node);
    await again.expectNothing();
  });

  test("does not run while the client is connected", async () => {
    const node = newNode();
    const client = await converse(node, { clean: false, properties: { sessionExpiryInterval: 100 } });
    await client.leave();
    const again = await converse(node, { ...durable, clientId: client.clientId });
    await sleepFor(node, 101);
    await ring(node);
    await again.expectNothing();
  });
});

describe("delayed publish", () => {
  test("waits on the core's disk and comes once", async () => {
    const watcher = await converse(newNode());
    const client = await converse(newNode());
    await subscribe(watcher, "alarms/later");
    client.send(publish("$delayed/20/alarms/later", "second", 1, { messageId: 1 }));
    await client.expect("puback", { messageId: 1, reasonCode: 0 });
    client.send(publish("$delayed/10/alarms/later", "first", 2, { messageId: 2 }));
    await client.expect("pubrec", { messageId: 2 });
    expect(await secondsToAlarm(coreName)).toBe(10);
    await sleepFor(coreName, 9);
    await watcher.expectNothing();
    await ring(coreName);
    await watcher.expectNothing();
    await sleepFor(coreName, 1);
    await watcher.expectMessage("first", { qos: 2 });
    await ring(coreName);
    await watcher.expectNothing();
    await crash(coreName);
    await sleepFor(coreName, 10);
    await watcher.expectMessage("second", { qos: 1 });
    await ring(coreName);
    await watcher.expectNothing();
    expect(await rows(coreName, "SELECT count(*) AS n FROM delayed")).toEqual([{ n: 0 }]);
  });
});

describe("$SYS", () => {
  test("is published once a minute while somebody subscribes, by a core that sleeps in between [G7]", async () => {
    const node = newNode();
    const client = await converse(node);
    const topic = `$SYS/brokers/${coreName}/uptime`;
    await subscribe(client, topic, { qos: 0 });
    expect(await secondsToAlarm(coreName)).toBeLessThanOrEqual(1);
    pass(1);
    await ring(coreName);
    await client.expect("publish", { topic });
    expect(await secondsToAlarm(coreName)).toBeGreaterThan(1);
    await sleepFor(coreName, 62);
    // A core that has just waked may put it off a little.
    const due = await secondsToAlarm(coreName);
    if (due !== undefined && due <= 1) {
      pass(1);
      await ring(coreName);
    }
    await client.expect("publish", { topic });
    client.send({ cmd: "unsubscribe", messageId: 1, unsubscriptions: [topic] });
    await client.expect("unsuback");
    // UNSUBACK does not wait for the core.
    await vi.waitUntil(
      async () => (await rows(coreName, "SELECT 1 FROM route WHERE key = ?", topic)).length === 0,
      patience,
    );
    pass(62);
    await ring(coreName);
    await client.expectNothing();
    expect(await secondsToAlarm(coreName)).toBeUndefined();
    await ring(coreName);
    await client.expectNothing();
  });
});

test("a real alarm wakes a node that sleeps", async () => {
  vi.useRealTimers();
  const node = newNode();
  const watcher = await converse(newNode());
  const topic = `alarms/${node}`;
  await subscribe(watcher, topic);
  const client = await converse(node, {
    clean: false,
    properties: { sessionExpiryInterval: 2 },
    will: { topic, payload: "gone", qos: 1, properties: { willDelayInterval: 1 } },
  });
  await client.drop();
  await sleep(node);
  await watcher.expectMessage("gone");
  await sleep(node);
  await vi.waitUntil(
    async () => (await rows(coreName, "SELECT 1 FROM claim WHERE client_id = ?", client.clientId)).length === 0,
    patience,
  );
  // One more is set where the session's end has come with its will, which is looked after then.
  await vi.waitUntil(async () => (await secondsToAlarm(node)) === undefined, patience);
});
