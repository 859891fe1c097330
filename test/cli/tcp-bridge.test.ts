import { once } from "node:events";
import { connect } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import { WebSocketServer } from "ws";
import type { WebSocket as ServerSocket } from "ws";

import { startBridge } from "../../cli/tcp-bridge.ts";
import { random } from "../support/random.ts";

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** A WebSocket server in place of the broker, and a bridge to it. `serve` gets each connection. */
async function bridgeTo(serve: (socket: ServerSocket) => void, subprotocol = "mqtt") {
  const server = new WebSocketServer({
    port: 0,
    host: "127.0.0.1",
    handleProtocols: (offered) => [...offered][0] ?? false,
  });
  server.on("connection", serve);
  await once(server, "listening");
  cleanups.push(() => {
    for (const client of server.clients) client.terminate();
    return new Promise((resolve) => server.close(resolve));
  });
  const to = `ws://127.0.0.1:${(server.address() as AddressInfo).port}/mqtt`;
  return { server, ...(await bridge(to, subprotocol)) };
}

async function bridge(to: string, subprotocol = "mqtt") {
  const lines: string[] = [];
  const started = await startBridge({ host: "127.0.0.1", port: 0, to, subprotocol, log: (line) => lines.push(line) });
  cleanups.push(() => started.close());
  return { port: started.port, lines };
}

function tcpTo(port: number): Socket {
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => {});
  cleanups.push(() => socket.destroy());
  return socket;
}

/** All bytes until the other side ends. */
async function readAll(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of socket) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

function bytesOf(length: number, seed: number): Buffer {
  const next = random(seed);
  return Buffer.from(Uint8Array.from({ length }, () => Math.floor(next() * 256)));
}

describe("the TCP bridge", () => {
  test("carries bytes both ways unchanged, and offers the subprotocol", async () => {
    const { server, port } = await bridgeTo((socket) => socket.on("message", (data) => socket.send(data)), "mqttv3.1");
    const connected = once(server, "connection") as Promise<[ServerSocket]>;
    const tcp = tcpTo(port);
    const sent = bytesOf(300_000, 1);
    tcp.write(sent); // Before the WebSocket is open.
    let received = Buffer.alloc(0);
    for await (const chunk of tcp.iterator({ destroyOnReturn: false })) {
      received = Buffer.concat([received, chunk as Buffer]);
      if (received.length >= sent.length) break;
    }
    expect(received.equals(sent)).toBe(true);
    const [socket] = await connected;
    expect(socket.protocol).toBe("mqttv3.1");
  });

  test("delivers what a client sent before it ended its side, then closes the WebSocket", async () => {
    const got: Buffer[] = [];
    const { server, port } = await bridgeTo((socket) => socket.on("message", (data) => got.push(data as Buffer)));
    const sent = bytesOf(1_000_000, 2);
    const closed = once(server, "connection").then(([socket]) => once(socket as ServerSocket, "close"));
    const tcp = tcpTo(port);
    tcp.end(sent);
    tcp.resume();
    await Promise.all([closed, once(tcp, "close")]);
    expect(Buffer.concat(got).equals(sent)).toBe(true);
  });

  test("delivers what the broker sent before it closed, then ends the TCP side", async () => {
    const sent = bytesOf(1_000_000, 3);
    const { port } = await bridgeTo((socket) => {
      socket.send(sent.subarray(0, 10));
      socket.send(sent.subarray(10));
      socket.close(1000);
    });
    const tcp = tcpTo(port);
    expect((await readAll(tcp)).equals(sent)).toBe(true);
  });

  test("closes the WebSocket of a client that resets its connection, and serves the next one", async () => {
    const { server, port } = await bridgeTo((socket) => socket.on("message", (data) => socket.send(data)));
    const connected = once(server, "connection") as Promise<[ServerSocket]>;
    const first = tcpTo(port);
    const [socket] = await connected;
    const closed = once(socket, "close");
    first.resetAndDestroy();
    await closed;
    const second = tcpTo(port);
    second.write("ping");
    const [echo] = (await once(second, "data")) as [Buffer];
    expect(echo.toString()).toBe("ping");
  });

  test("ends its clients when the broker goes away, and says why it cannot connect them again", async () => {
    const { server, port, lines } = await bridgeTo(() => {});
    const connected = once(server, "connection") as Promise<[ServerSocket]>;
    const first = tcpTo(port);
    const [socket] = await connected;
    socket.terminate();
    await readAll(first);
    server.close();
    const second = tcpTo(port);
    second.write("lost");
    expect(await readAll(second)).toHaveLength(0);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(/^127\.0\.0\.1:\d+: no WebSocket to ws:/);
  });

  test("slows a fast client down when the broker does not read", async () => {
    const { server, port } = await bridgeTo((socket) => socket.pause());
    const connected = once(server, "connection") as Promise<[ServerSocket]>;
    const tcp = tcpTo(port);
    const sent = bytesOf(64 * 1024, 4);
    const rounds = 1024; // 64 MB, more than the kernel and the bridge hold.
    for (let round = 0; round < rounds; round++) tcp.write(sent);
    const [socket] = await connected;
    // As long as bytes leave the client, look again.
    for (let before = -1; before !== tcp.bytesWritten - tcp.writableLength;) {
      before = tcp.bytesWritten - tcp.writableLength;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    expect(tcp.writableLength).toBeGreaterThan(32 * 1024 * 1024);
    let received = 0;
    socket.on("message", (data: Buffer) => (received += data.length));
    socket.resume();
    tcp.end();
    await once(socket, "close");
    expect(received).toBe(rounds * sent.length);
  });

  test("disconnects a client that does not read, at a bound", async () => {
    const sent = bytesOf(1024 * 1024, 5);
    const { server, port, lines } = await bridgeTo((socket) => {
      for (let round = 0; round < 64; round++) socket.send(sent, () => {});
    });
    const connected = once(server, "connection") as Promise<[ServerSocket]>;
    const tcp = tcpTo(port);
    tcp.pause();
    const [socket] = await connected;
    await once(socket, "close");
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(/does not read/);
  });

  test("takes text from the broker for an error", async () => {
    const { port, lines } = await bridgeTo((socket) => socket.send("text"));
    const tcp = tcpTo(port);
    expect(await readAll(tcp).catch(() => Buffer.alloc(0))).toHaveLength(0);
    expect(lines[0]).toMatch(/text/);
  });

  test("rejects when the port is taken", async () => {
    const { port } = await bridge("ws://127.0.0.1:1/mqtt");
    const second = startBridge({ host: "127.0.0.1", port, to: "ws://x/", subprotocol: "mqtt", log: () => {} });
    await expect(second).rejects.toThrow(/EADDRINUSE/);
  });
});
