// The edge: what is answered before MQTT begins.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { WebSocket } from "ws";
import type { ClientOptions } from "ws";

import { startWorkerd } from "../../cli/broker.ts";
import { startBroker } from "../support/broker.ts";
import type { Broker } from "../support/broker.ts";
import { connectPacket, converse, converseConnected, slot } from "../support/client.ts";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker({
    env: {
      TRELLIS_NODE__SLOTS: "2",
      TRELLIS_NODE__MAX_CONNECTIONS: "1",
      TRELLIS_ORIGINS: '["https://dash.example.com"]',
      // Longer than a client's CONNECT is on its way.
      TRELLIS_MQTT__IDLE_TIMEOUT: "3s",
    },
  });
});

afterAll(() => broker.stop());

type Upgrade =
  | { readonly status: 101; readonly subprotocol: string; readonly socket: WebSocket }
  | { readonly status: number; readonly body: string; readonly headers: Readonly<Record<string, unknown>> };

/** Asks for a WebSocket. */
async function upgrade(
  url: string,
  subprotocols: readonly string[] = ["mqtt"],
  options: ClientOptions = {},
): Promise<Upgrade> {
  const socket = new WebSocket(url, [...subprotocols], options);
  onTestFinished(() => socket.terminate());
  return new Promise((resolve, reject) => {
    socket.on("open", () => resolve({ status: 101, subprotocol: socket.protocol, socket }));
    socket.on("error", reject);
    socket.on("unexpected-response", (_request, response) => {
      let body = "";
      response.on("data", (chunk: Buffer) => (body += chunk.toString()));
      response.on("end", () => resolve({ status: response.statusCode ?? 0, body, headers: response.headers }));
    });
  });
}

/** The client's end of it: its node has room again. */
async function leave(upgraded: Upgrade): Promise<void> {
  if (!("socket" in upgraded)) return;
  const { socket } = upgraded;
  const over = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  socket.terminate();
  await over;
}

function http(path: string): string {
  return `http://127.0.0.1:${broker.port}${path}`;
}

describe("HTTP", () => {
  test.each([
    ["GET", "/nothing", 404],
    ["GET", "/mqtt/", 404],
    ["POST", "/mqtt", 405],
    ["HEAD", "/mqtt", 405],
    ["DELETE", "/", 405],
    ["GET", "/mqtt", 426],
    ["GET", "/", 426],
    ["GET", "/mqtt?node=node-1@local.emqxcl", 426],
  ])("%s %s: %i", async (method, path, status) => {
    const response = await fetch(http(path), { method });
    expect(response.status).toBe(status);
    const body = await response.text();
    if (method !== "HEAD") expect(body).toMatch(/^\S.*\n$/);
    if (status === 405) expect(response.headers.get("Allow")).toBe("GET");
  });
});

describe("the WebSocket upgrade", () => {
  test.each(["mqtt", "mqttv5", "mqttv3.1.1", "mqttv3.1"])("[MQTT-6.0.0-4] echoes %s", async (subprotocol) => {
    for (const path of ["/mqtt", "/"]) {
      const upgraded = await upgrade(`ws://127.0.0.1:${broker.port}${path}`, [subprotocol]);
      expect(upgraded).toMatchObject({ status: 101, subprotocol });
      await leave(upgraded);
    }
  });

  test("[MQTT-6.0.0-3] chooses one that it knows, and refuses when it knows none", async () => {
    const chosen = await upgrade(broker.url, ["chat", "mqttv5", "mqtt"]);
    expect(chosen).toMatchObject({ status: 101, subprotocol: "mqttv5" });
    await leave(chosen);
    for (const offered of [[], ["chat"], ["MQTT"], ["mqtt2"]])
      expect(await upgrade(broker.url, offered)).toMatchObject({ status: 400, body: /mqtt/ });
  });

  test("[G9] from a page of another origin is refused, from one on the list or on this machine not", async () => {
    for (const origin of [
      "https://evil.example.com",
      "https://dash.example.com.evil.com",
      "http://dash.example.com",
      "null",
    ])
      expect(await upgrade(broker.url, ["mqtt"], { origin })).toMatchObject({ status: 403, body: /origin/ });
    for (const origin of ["https://dash.example.com", "http://localhost:3000", "http://127.0.0.1"]) {
      const upgraded = await upgrade(broker.url, ["mqtt"], { origin });
      expect(upgraded.status).toBe(101);
      await leave(upgraded);
    }
  });

  test.each([
    ["node-1@local.other", 400],
    ["node-1@example.com", 400],
    ["node-1", 400],
    ["", 400],
    ["../node-1@local.emqxcl", 400],
    ["core@local.emqxcl".toUpperCase(), 400],
    [`${"x".repeat(65)}@local.emqxcl`, 400],
  ])("?node=%s: %i", async (node, status) => {
    expect(await upgrade(broker.urlOf(node))).toMatchObject({ status, body: expect.stringMatching(/^\S.*\n$/) });
  });

  test("[G9] ?node= is for operators where others can reach the broker, and so is a name for every client", async () => {
    const dataDir = await mkdtemp(join(tmpdir(), "trellis-open-"));
    const token = "an operator's token";
    const open = await startWorkerd({
      bundle: inject("bundle"),
      dataDir,
      host: "0.0.0.0",
      port: 0,
      env: { PATH: process.env.PATH, TRELLIS_API_TOKEN: token },
      output: () => {},
    });
    onTestFinished(async () => {
      open.process.kill("SIGKILL");
      await open.ended;
      await rm(dataDir, { recursive: true, force: true });
    });
    const url = `ws://127.0.0.1:${open.port}/mqtt`;
    const chosen = `${url}?node=${slot(1)}`;
    expect(await upgrade(chosen)).toMatchObject({ status: 403 });
    for (const authorization of [token, "Bearer ", "Bearer wrong", `Bearer ${token}x`])
      expect(await upgrade(chosen, ["mqtt"], { headers: { authorization } })).toMatchObject({ status: 403 });
    expect(await upgrade(chosen, ["mqtt"], { headers: { authorization: `Bearer ${token}` } })).toMatchObject({
      status: 101,
    });
    expect(await upgrade(url, ["mqtt"], { origin: "http://localhost" })).toMatchObject({ status: 403 });
    const anonymous = await converse(url);
    anonymous.send(connectPacket());
    expect(await anonymous.expect("connack")).toMatchObject({ reasonCode: 0x87 });
    await anonymous.expectClose();
  });
});

describe("placement", () => {
  test("a full node sends the next client to the next slot, and all full: 503", async () => {
    const first = await converseConnected(broker.url);
    const second = await converseConnected(broker.url);
    for (const number of [0, 1]) expect(await upgrade(broker.urlOf(slot(number)))).toMatchObject({ status: 503 });
    expect(await upgrade(broker.url)).toMatchObject({ status: 503, headers: { "retry-after": "10" } });
    // Both stay as they are.
    await first.expectNothing();
    await second.expectNothing();
    first.send({ cmd: "disconnect" });
    await first.expectClose();
    const third = await converseConnected(broker.url);
    await third.expectNothing();
    expect(await upgrade(broker.urlOf(slot(0)))).toMatchObject({ status: 503 });
    await second.drop();
    await third.drop();
  });

  test("a socket that brings no CONNECT has its place only for the idle timeout", async () => {
    /** Not by the close event: workerd ends the TCP connection of a client that never spoke ten seconds later. */
    const place = (number: number): Promise<void> =>
      vi.waitFor(
        async () => {
          const { status } = await upgrade(broker.urlOf(slot(number)));
          expect(status).toBe(101);
        },
        { timeout: 10_000, interval: 50 },
      );
    for (const _ of [1, 2]) {
      await place(0);
      await place(1);
    }
  });
});
