// Who may connect, publish and subscribe.

import { spawn } from "node:child_process";
import { join } from "node:path";
import { text as textOf } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connect, connectPacket, converse, converseConnected, slot, versions } from "../support/client.ts";
import type { ConnectOptions } from "../support/client.ts";

let broker: Broker;

const passwords = { alice: "correct horse", bob: "pässwörd" } as const;
type User = keyof typeof passwords;

/** The entry of `authentication` as the operator gets it. */
async function passwd(user: User): Promise<Record<string, string>> {
  const tool = spawn(process.execPath, [join(import.meta.dirname, "..", "..", "cli", "passwd.ts"), user], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  tool.stdin.end(`${passwords[user]}\n`);
  return JSON.parse(await textOf(tool.stdout)) as Record<string, string>;
}

beforeAll(async () => {
  const entries = await Promise.all([passwd("alice"), passwd("bob")]);
  broker = await startBroker({
    env: {
      TRELLIS_ALLOW_ANONYMOUS: "false",
      TRELLIS_AUTHENTICATION: JSON.stringify(Object.assign({}, ...entries)),
      TRELLIS_AUTHORIZATION: JSON.stringify([
        { permission: "deny", action: "subscribe", topics: ["secret/#"] },
        { permission: "deny", action: "publish", topics: ["readonly/#"] },
        { permission: "allow", action: "subscribe", topics: ["readonly/#", "$SYS/#"] },
        { permission: "allow", action: "all", topics: ["clients/${clientid}/#", "users/${username}"] },
        { permission: "allow", action: "publish", topics: ["secret/in"] },
        { permission: "allow", action: "all", topics: ["bob/#"], username: "bob" },
        { permission: "allow", action: "all", topics: ["one/#"], clientid: "the-one" },
      ]),
    },
  });
});

afterAll(() => broker.stop());

function as(user: User): { username: string; password: Buffer } {
  return { username: user, password: Buffer.from(passwords[user]) };
}

/** The code of the CONNACK that refuses this CONNECT. */
async function refusal(fields: Pick<ConnectOptions, "version" | "username" | "password">): Promise<number | undefined> {
  const client = await converse(broker.urlOf(slot(1)), fields.version === undefined ? {} : { version: fields.version });
  client.send(connectPacket(fields));
  const { reasonCode, returnCode, sessionPresent } = await client.expect("connack");
  expect(sessionPresent).toBe(false);
  await client.expectClose();
  return reasonCode ?? returnCode;
}

describe("[G9] authentication", () => {
  test.each(versions)("version %i: the right password lets in, on every node", async (protocolVersion) => {
    for (const user of ["alice", "bob"] as const) {
      for (const number of [0, 1]) {
        const client = await connect(broker.urlOf(slot(number)), { protocolVersion, ...as(user) });
        await client.expectNothing();
      }
    }
  });

  test.each([
    ["a wrong password", { username: "alice", password: Buffer.from("wrong") }, 0x86, 4],
    ["another user's password", { username: "alice", password: Buffer.from(passwords.bob) }, 0x86, 4],
    ["an empty password", { username: "alice", password: Buffer.alloc(0) }, 0x86, 4],
    ["no password", { username: "alice" }, 0x86, 4],
    ["an unknown user", { username: "eve", password: Buffer.from("x") }, 0x86, 4],
    ["a user named as what every object has", { username: "__proto__", password: Buffer.from("x") }, 0x86, 4],
    ["no user name", {}, 0x87, 5],
  ])("[MQTT-3.1.4-2] %s: refused", async (_name, fields, reasonCode, returnCode) => {
    expect(await refusal({ version: 5, ...fields })).toBe(reasonCode);
    expect(await refusal({ version: 4, ...fields })).toBe(returnCode);
  });

  test("an authentication method is refused: there is none", async () => {
    const client = await converse(broker.url);
    client.send(connectPacket({ ...as("alice"), properties: { authenticationMethod: "SCRAM-SHA-1" } }));
    expect(await client.expect("connack")).toMatchObject({ reasonCode: 0x8c });
    await client.expectClose();
  });

  test("what is sent with CONNECT, before its answer, is handled after it, or not at all", async () => {
    const accepted = await converse(broker.urlOf(slot(1)));
    accepted.send(
      connectPacket({ clientId: "eager", ...as("alice") }),
      { cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "clients/eager/x", qos: 0 }] },
      { cmd: "publish", topic: "users/alice", payload: "in", qos: 1, messageId: 2, dup: false, retain: true },
      { cmd: "pingreq" },
    );
    expect(await accepted.expect("connack")).toMatchObject({ reasonCode: 0 });
    const answers = [await accepted.next(), await accepted.next(), await accepted.next()];
    expect(new Set(answers.map(({ cmd }) => cmd))).toEqual(new Set(["suback", "puback", "pingresp"]));

    const refused = await converse(broker.urlOf(slot(1)));
    refused.send(connectPacket({ username: "alice", password: Buffer.from("wrong") }), {
      cmd: "publish",
      topic: "users/alice",
      payload: "out",
      qos: 0,
      dup: false,
      retain: true,
    });
    expect(await refused.expect("connack")).toMatchObject({ reasonCode: 0x86 });
    await refused.expectClose();
    const reader = await connect(broker.urlOf(slot(0)), as("alice"));
    await reader.subscribe("users/alice");
    expect(await reader.payloads(1)).toEqual(["in"]);
    await reader.expectNothing();
  });
});

describe("[G9] authorization", () => {
  test("a publish that no rule allows is refused with 0x87, and the connection stays", async () => {
    const publisher = await connect(broker.urlOf(slot(1)), { clientId: "p", ...as("alice") });
    const listener = await connect(broker.urlOf(slot(0)), as("bob"));
    await listener.subscribe(["readonly/#", "bob/#"], { qos: 1 });
    for (const topic of ["readonly/x", "bob/x", "clients/q/x", "users/bob", "elsewhere", "secret/out"])
      for (const qos of [1, 2] as const)
        await expect(publisher.publish(topic, "x", { qos })).rejects.toMatchObject({ code: 0x87 });
    await publisher.publish("bob/x", "x", { qos: 0 });
    await publisher.publish("clients/p/x", "x", { qos: 1 });
    await publisher.publish("secret/in", "x", { qos: 1 });
    await publisher.expectNothing();
    await listener.expectNothing();
  });

  test("3.1.1 cannot say no: such a publish is acknowledged and goes nowhere", async () => {
    const publisher = await connect(broker.urlOf(slot(1)), { protocolVersion: 4, ...as("alice") });
    const listener = await connect(broker.urlOf(slot(0)), as("bob"));
    await listener.subscribe("bob/#", { qos: 1 });
    await publisher.publish("bob/x", "x", { qos: 1 });
    await publisher.publish("bob/x", "x", { qos: 2 });
    await listener.expectNothing();
  });

  test("a topic alias and a delayed publish do not get round a rule", async () => {
    const publisher = await converseConnected(broker.urlOf(slot(1)), as("alice"));
    const publish = { cmd: "publish", payload: "", qos: 1, dup: false, retain: false } as const;
    publisher.send({ ...publish, messageId: 1, topic: "bob/x", properties: { topicAlias: 1 } });
    expect(await publisher.expect("puback")).toMatchObject({ messageId: 1, reasonCode: 0x87 });
    publisher.send({ ...publish, messageId: 2, topic: "", properties: { topicAlias: 1 } });
    expect(await publisher.expect("puback")).toMatchObject({ messageId: 2, reasonCode: 0x87 });
    publisher.send({ ...publish, messageId: 3, topic: "$delayed/0/bob/x" });
    expect(await publisher.expect("puback")).toMatchObject({ messageId: 3, reasonCode: 0x87 });
  });

  test.each([
    [5, 0x87],
    [4, 0x80],
  ] as const)(
    "version %i: a subscription is refused with %i, those beside it are granted",
    async (version, refused) => {
      const client = await converseConnected(broker.urlOf(slot(1)), { version, clientId: "me", ...as("alice") });
      const filters = [
        "secret/in",
        "readonly/+",
        "#",
        "+/in",
        "clients/me/#",
        "clients/+/x",
        "bob/x",
        "$share/g/bob/x",
      ];
      client.send({ cmd: "subscribe", messageId: 1, subscriptions: filters.map((topic) => ({ topic, qos: 1 })) });
      const { granted } = await client.expect("suback");
      expect(granted).toEqual([refused, 1, refused, refused, 1, refused, refused, refused]);
    },
  );

  test("rules by user name and by client id", async () => {
    const bob = await connect(broker.urlOf(slot(1)), as("bob"));
    expect(await bob.subscribe(["bob/#", "users/bob"], { qos: 0 })).toEqual([0, 0]);
    const one = await connect(broker.urlOf(slot(0)), { clientId: "the-one", ...as("alice") });
    expect(await one.subscribe("one/#", { qos: 0 })).toEqual([0]);
    await one.publish("users/alice", "x", { qos: 1 });
  });

  test("a client id that is no plain level gives nothing", async () => {
    for (const clientId of ["+", "#", "p/x", "$SYS"]) {
      const client = await converseConnected(broker.urlOf(slot(1)), { clientId, ...as("alice") });
      client.send({
        cmd: "subscribe",
        messageId: 1,
        subscriptions: [
          { topic: `clients/${clientId === "#" ? "#" : `${clientId}/#`}`, qos: 0 },
          { topic: "clients/other/x", qos: 0 },
        ],
      });
      const { granted } = await client.expect("suback");
      expect((granted as number[])[1]).toBe(0x87);
      if (clientId !== "$SYS") expect((granted as number[])[0]).toBe(0x87);
    }
  });

  test("a will that the client may not publish is refused with its CONNECT", async () => {
    for (const [version, code] of [
      [5, 0x87],
      [4, 5],
    ] as const) {
      const client = await converse(broker.url, { version });
      const will = { topic: "readonly/x", payload: "", qos: 0, retain: false } as const;
      client.send(connectPacket({ version, ...as("alice"), will }));
      const connack = await client.expect("connack");
      expect(connack.reasonCode ?? connack.returnCode).toBe(code);
      await client.expectClose();
    }
  });
});
