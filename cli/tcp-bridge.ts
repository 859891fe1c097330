// TCP on one side, WebSocket on the other, the same bytes both ways: for MQTT clients that speak TCP only.
//
// Each TCP connection gets a WebSocket of its own, and neither outlives the other. Nothing is read from a client before
// its WebSocket is open, and nothing while more than `webSocketBytesMax` wait to be sent, so TCP's own flow control slows
// a fast client down. The other way a WebSocket client cannot be paused: a TCP client that leaves more than
// `tcpBytesMax` unread is disconnected.
//
// WebSocket has no half-close. When a client ends its side, what it sent is delivered and then the WebSocket is closed;
// without a DISCONNECT among those bytes, the broker takes that for a lost connection and publishes the will.

import { createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";

export interface BridgeOptions {
  readonly host: string;
  /** 0: the system chooses one. */
  readonly port: number;
  /** Address of the broker, ws:// or wss://. */
  readonly to: string;
  readonly subprotocol: string;
  /** Gets a line for each connection that failed. */
  readonly log: (line: string) => void;
}

export interface Bridge {
  readonly port: number;
  /** Ends all connections. */
  close(): Promise<void>;
}

const connectionsMax = 10_000;
/** Bytes from a client that wait to be sent to the broker before the client is paused. */
const webSocketBytesMax = 256 * 1024;
/** Bytes from the broker that wait for a client. */
const tcpBytesMax = 16 * 1024 * 1024;
/** WebSocket has no event for "buffer empty". */
const drainPollMilliseconds = 5;
/** How long a connection may take to take leave of the other side. */
const farewellMilliseconds = 5_000;

/** Resolves when the bridge listens. Rejects if it cannot. */
export async function startBridge(options: BridgeOptions): Promise<Bridge> {
  const sockets = new Set<Socket>();
  const server = createServer(
    { allowHalfOpen: true, pauseOnConnect: true, noDelay: true, keepAlive: true },
    (socket) => {
      sockets.add(socket);
      socket.once("close", () => sockets.delete(socket));
      connect(socket, options);
    },
  );
  server.maxConnections = connectionsMax;
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port, options.host, resolve);
  });
  server.on("error", (error) => options.log(error.message)); // Out of descriptors, for one: later clients may fare better.
  const { port } = server.address() as AddressInfo;
  return {
    port,
    close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const socket of sockets) socket.destroy();
      return closed;
    },
  };
}

/** Node's WebSocket; the types of the Workers runtime, which has no such field, are the ones in scope. */
type ClientWebSocket = WebSocket & { readonly bufferedAmount: number };

function connect(tcp: Socket, { to, subprotocol, log }: BridgeOptions): void {
  const client = `${tcp.remoteAddress}:${tcp.remotePort}`;
  const webSocket = new WebSocket(to, [subprotocol]) as ClientWebSocket;
  webSocket.binaryType = "arraybuffer";
  let opened = false;

  const resumeWhenDrained = (): void => {
    if (webSocket.readyState !== WebSocket.OPEN || tcp.destroyed) return;
    if (webSocket.bufferedAmount > webSocketBytesMax / 2) setTimeout(resumeWhenDrained, drainPollMilliseconds);
    else tcp.resume();
  };

  webSocket.addEventListener("open", () => {
    opened = true;
    tcp.resume();
  });
  webSocket.addEventListener("message", ({ data }) => {
    if (tcp.writableEnded || tcp.destroyed) return;
    if (typeof data === "string") {
      log(`${client}: the broker sent text, MQTT is binary`);
      tcp.destroy();
      return;
    }
    tcp.write(Buffer.from(data as ArrayBuffer));
    if (tcp.writableLength > tcpBytesMax) {
      log(`${client}: does not read what it is sent (${tcp.writableLength} bytes wait)`);
      tcp.destroy();
    }
  });
  webSocket.addEventListener("error", () => {
    if (!opened && !tcp.destroyed) log(`${client}: no WebSocket to ${to} (is the broker there, and does it allow it?)`);
  });
  webSocket.addEventListener("close", () => {
    if (tcp.destroyed) return;
    tcp.end();
    tcp.resume(); // Or the end of a paused socket is never seen.
    setTimeout(() => tcp.destroy(), farewellMilliseconds).unref();
  });

  tcp.on("data", (bytes) => {
    if (webSocket.readyState !== WebSocket.OPEN) return;
    webSocket.send(bytes);
    if (webSocket.bufferedAmount <= webSocketBytesMax) return;
    tcp.pause();
    resumeWhenDrained();
  });
  tcp.on("end", () => {
    webSocket.close();
    setTimeout(() => tcp.destroy(), farewellMilliseconds).unref();
  });
  tcp.on("error", () => {}); // A reset; "close" follows.
  tcp.on("close", () => webSocket.close());
}
