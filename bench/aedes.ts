// Aedes over `ws`, as its documentation shows, with no compression. Prints its port when it listens.

import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

import { Aedes } from "aedes";
import { createWebSocketStream, WebSocketServer } from "ws";

const broker = await Aedes.createBroker();
const server = createServer();
new WebSocketServer({ server, perMessageDeflate: false }).on("connection", (socket, request) => {
  const stream = createWebSocketStream(socket);
  stream.on("error", () => {}); // A client that is gone is none of its errors.
  broker.handle(stream, request);
});
server.listen(0, "127.0.0.1");
await once(server, "listening");
console.log((server.address() as AddressInfo).port);
