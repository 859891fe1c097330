// One MQTT 3.1.1 client over WebSocket, as lean as it can be: a socket, a splitter of frames, a splitter of packets. It
// acknowledges what it gets, at once: what came in one read is answered in one write.

import { createHash, randomBytes } from "node:crypto";
import { connect, type Socket } from "node:net";

import { acknowledgementFrames, connectPacket, frame, subscribePacket, type Acknowledgements } from "./wire.ts";

/** A PUBLISH that came, as places in `bytes`; they are good until the handler returns. */
export interface Delivery {
  bytes: Buffer;
  topicStart: number;
  topicEnd: number;
  payloadStart: number;
  end: number;
  retain: boolean;
}

export interface ClientOptions {
  readonly url: URL;
  readonly clientId: string;
  readonly session: "clean" | "kept";
  /** Acknowledgements of one read leave in one frame, or each in its own. */
  readonly acknowledgements: "one" | "each";
  /** Shared by all clients: what is read into it is handled before anything else happens. */
  readonly readBuffer: Buffer;
  /** What comes, counted. */
  readonly counts: { frames: number; packets: number };
  readonly onPublish: (delivery: Delivery) => void;
  /** PUBACK or PUBCOMP. */
  readonly onAcknowledged: (client: Client) => void;
  /** All that one read brought has been handled. */
  readonly onRead: () => void;
  /** The broker has ended the connection. */
  readonly onLost: () => void;
}

/** RFC 6455, 1.3. */
const webSocketGuid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

export class Client {
  readonly #options: ClientOptions;
  readonly #socket: Socket;
  readonly #key = randomBytes(16).toString("base64");
  readonly #delivery: Delivery;
  readonly #subscribing = new Map<number, { resolve: () => void; reject: (error: Error) => void }>();
  #state: "upgrading" | "connecting" | "connected" | "closing" | "lost" = "upgrading";
  /** A frame, and a packet, of which a part has come. */
  #frameRest: Buffer | undefined;
  #packetRest: Buffer | undefined;
  #acknowledgements: Acknowledgements = [];
  #packetId = 0;
  #connected: { resolve: (client: Client) => void; reject: (error: Error) => void } | undefined;

  /** Resolves with CONNACK. */
  static connect(options: ClientOptions): Promise<Client> {
    return new Promise((resolve, reject) => {
      const client = new Client(options);
      client.#connected = { resolve, reject };
    });
  }

  private constructor(options: ClientOptions) {
    this.#options = options;
    const { url, readBuffer } = options;
    this.#delivery = { bytes: readBuffer, topicStart: 0, topicEnd: 0, payloadStart: 0, end: 0, retain: false };
    const onread = { buffer: readBuffer, callback: (length: number) => this.#read(readBuffer.subarray(0, length)) };
    this.#socket = connect({ host: url.hostname, port: Number(url.port), noDelay: true, onread });
    this.#socket.on("connect", () => this.#socket.write(this.#upgrade()));
    this.#socket.on("error", (error) => this.#lose(error));
    this.#socket.on("close", () => this.#lose(new Error("the broker closed the connection")));
  }

  get isConnected(): boolean {
    return this.#state === "connected";
  }

  write(bytes: Buffer): void {
    this.#socket.write(bytes);
  }

  /** Resolves with SUBACK; rejects if a filter was refused. */
  subscribe(filters: readonly string[], qos: number): Promise<void> {
    const packetId = ++this.#packetId;
    return new Promise((resolve, reject) => {
      this.#subscribing.set(packetId, { resolve, reject });
      this.write(frame(subscribePacket(packetId, filters, qos)));
    });
  }

  /** DISCONNECT and a close frame; resolves when the broker has closed, or after `patienceMs`. */
  async close(patienceMs: number): Promise<void> {
    if (this.#state === "lost") return;
    this.#state = "closing";
    const closed = new Promise<void>((resolve) => this.#socket.once("close", () => resolve()));
    const timer = setTimeout(() => this.#socket.destroy(), patienceMs);
    this.#socket.write(Buffer.concat([frame(Uint8Array.of(0xe0, 0)), frame(new Uint8Array(), 8)]));
    await closed;
    clearTimeout(timer);
  }

  #upgrade(): string {
    const { url } = this.#options;
    const lines = [
      `GET ${url.pathname}${url.search} HTTP/1.1`,
      `Host: ${url.host}`,
      "Upgrade: websocket",
      "Connection: Upgrade",
      `Sec-WebSocket-Key: ${this.#key}`,
      "Sec-WebSocket-Version: 13",
      "Sec-WebSocket-Protocol: mqtt",
    ];
    return `${lines.join("\r\n")}\r\n\r\n`;
  }

  #lose(error: Error): void {
    if (this.#state === "lost") return;
    const wasClosing = this.#state === "closing";
    this.#state = "lost";
    this.#socket.destroy();
    if (wasClosing) return;
    this.#connected?.reject(error);
    for (const { reject } of this.#subscribing.values()) reject(error);
    this.#options.onLost();
  }

  #read(chunk: Buffer): boolean {
    const bytes = this.#frameRest ? Buffer.concat([this.#frameRest, chunk]) : chunk;
    this.#frameRest = undefined;
    let at = 0;
    if (this.#state === "upgrading") {
      at = this.#readUpgrade(bytes);
      if (at === 0) return this.#keep(bytes);
    }
    while (bytes.length - at >= 2) {
      let length = bytes[at + 1]! & 127;
      let head = 2;
      if (length === 126) {
        if (bytes.length - at < 4) break;
        length = bytes.readUInt16BE(at + 2);
        head = 4;
      } else if (length === 127) {
        if (bytes.length - at < 10) break;
        length = Number(bytes.readBigUInt64BE(at + 2));
        head = 10;
      }
      const end = at + head + length;
      if (bytes.length < end) break;
      this.#frame(bytes[at]! & 15, bytes.subarray(at + head, end));
      at = end;
    }
    if (at < bytes.length) this.#keep(bytes.subarray(at));
    this.#acknowledge();
    this.#options.onRead();
    return true;
  }

  /** The read buffer is overwritten by the next read. */
  #keep(rest: Buffer): true {
    this.#frameRest = Buffer.from(rest);
    return true;
  }

  /** Where the frames begin; 0: the answer is not complete. */
  #readUpgrade(bytes: Buffer): number {
    const end = bytes.indexOf("\r\n\r\n");
    if (end < 0) return 0;
    const answer = bytes.toString("latin1", 0, end);
    const accept = createHash("sha1")
      .update(this.#key + webSocketGuid)
      .digest("base64");
    const isMqtt = /^sec-websocket-protocol: *mqtt *$/im.test(answer);
    const isPlain = !/^sec-websocket-extensions:/im.test(answer);
    if (!answer.startsWith("HTTP/1.1 101") || !answer.includes(accept) || !isMqtt || !isPlain) {
      this.#lose(new Error(`the upgrade was answered with: ${answer.slice(0, 200)}`));
      return bytes.length;
    }
    this.#state = "connecting";
    this.write(frame(connectPacket(this.#options.clientId, this.#options.session)));
    return end + 4;
  }

  #frame(opcode: number, payload: Buffer): void {
    if (opcode === 9) this.write(frame(payload, 10));
    else if (opcode === 8) this.#socket.end();
    else {
      this.#options.counts.frames++;
      this.#packets(payload);
    }
  }

  #packets(payload: Buffer): void {
    const bytes = this.#packetRest ? Buffer.concat([this.#packetRest, payload]) : payload;
    this.#packetRest = undefined;
    let at = 0;
    while (at < bytes.length) {
      let length = 0;
      let body = at + 1;
      let byte = 128;
      for (let shift = 0; byte > 127 && body < bytes.length; shift += 7) {
        byte = bytes[body++]!;
        length |= (byte & 127) << shift;
      }
      if (byte > 127 || bytes.length < body + length) break;
      this.#options.counts.packets++;
      this.#packet(bytes[at]!, bytes, body, body + length);
      at = body + length;
    }
    if (at < bytes.length) this.#packetRest = Buffer.from(bytes.subarray(at));
  }

  #packet(firstByte: number, bytes: Buffer, start: number, end: number): void {
    switch (firstByte >> 4) {
      case 3:
        this.#publish(firstByte, bytes, start, end);
        break;
      case 4: // PUBACK
      case 7: // PUBCOMP
        this.#options.onAcknowledged(this);
        break;
      case 5: // PUBREC
        this.#acknowledgements.push([0x62, bytes.readUInt16BE(start)]);
        break;
      case 6: // PUBREL
        this.#acknowledgements.push([0x70, bytes.readUInt16BE(start)]);
        break;
      case 2:
        this.#connack(bytes[start + 1]!);
        break;
      case 9:
        this.#suback(bytes.readUInt16BE(start), bytes.subarray(start + 2, end));
        break;
    }
  }

  #publish(firstByte: number, bytes: Buffer, start: number, end: number): void {
    const qos = (firstByte >> 1) & 3;
    const delivery = this.#delivery;
    const topicEnd = start + 2 + bytes.readUInt16BE(start);
    delivery.bytes = bytes;
    delivery.topicStart = start + 2;
    delivery.topicEnd = topicEnd;
    delivery.payloadStart = qos > 0 ? topicEnd + 2 : topicEnd;
    delivery.end = end;
    delivery.retain = (firstByte & 1) === 1;
    this.#options.onPublish(delivery);
    if (qos > 0) this.#acknowledgements.push([qos === 1 ? 0x40 : 0x50, bytes.readUInt16BE(topicEnd)]);
  }

  #acknowledge(): void {
    if (this.#acknowledgements.length === 0) return;
    this.write(acknowledgementFrames(this.#acknowledgements, this.#options.acknowledgements));
    this.#acknowledgements = [];
  }

  #connack(code: number): void {
    if (code !== 0) {
      this.#lose(new Error(`CONNACK with code ${code}`));
      return;
    }
    this.#state = "connected";
    this.#connected?.resolve(this);
  }

  #suback(packetId: number, codes: Uint8Array): void {
    const subscribing = this.#subscribing.get(packetId);
    this.#subscribing.delete(packetId);
    const refused = codes.find((code) => code > 2);
    if (refused === undefined) subscribing?.resolve();
    else subscribing?.reject(new Error(`SUBACK with code ${refused}`));
  }
}
