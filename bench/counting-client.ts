/**
 * A client that sends several packets in one WebSocket frame and answers what came in one frame with one frame. It checks
 * what it gets: every message once and in order, or the counts would be those of another load.
 */
import { randomUUID } from "node:crypto";
import { generate, parser } from "mqtt-packet";
import type { IConnectPacket, IPublishPacket, Packet, QoS } from "mqtt-packet";
import { WebSocket } from "ws";

/** What is not there after this long will not come. */
const patienceMs = 20_000;

export class CountingClient {
  /** Messages received. */
  received = 0;
  /** Own messages whose exchange is over: at QoS 0, sent. */
  completed = 0;
  readonly #socket: WebSocket;
  #published = 0;
  /** Received at QoS 2. */
  #unreleased = 0;
  #answers: Packet[] = [];
  #failure: Error | undefined;
  #handled: PromiseWithResolvers<void> = Promise.withResolvers();
  /** Packets of one kind that were waited for, by `cmd`. */
  readonly #came = new Map<string, number>();

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    const decoder = parser({ protocolVersion: 4 });
    decoder.on("packet", (packet) => this.#handle(packet));
    socket.on("message", (data: Buffer) => {
      decoder.parse(data);
      this.#send(this.#answers);
      this.#answers = [];
      this.#handled.resolve();
      this.#handled = Promise.withResolvers();
    });
    socket.on("close", () => {
      this.#failure ??= new Error("the broker has closed a connection");
      this.#handled.resolve();
    });
  }

  /** @param received by the session so far. */
  static async connect(url: string, fields: Partial<IConnectPacket>, received = 0): Promise<CountingClient> {
    const socket = new WebSocket(url, ["mqtt"], { perMessageDeflate: false });
    await new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject));
    const client = new CountingClient(socket);
    client.received = received;
    const connect = { cmd: "connect", protocolId: "MQTT", protocolVersion: 4, clean: true, keepalive: 0 } as const;
    client.#send([{ ...connect, clientId: randomUUID(), ...fields }]);
    await client.#until(() => client.#came.has("connack"));
    return client;
  }

  async subscribe(topic: string, qos: QoS): Promise<void> {
    this.#send([{ cmd: "subscribe", messageId: 1, subscriptions: [{ topic, qos }] }]);
    await this.#until(() => this.#came.has("suback"));
  }

  /** Sends the next messages of a topic, in one frame. */
  publish(topic: string, qos: QoS, count: number): void {
    const packets = Array.from({ length: count }, (): IPublishPacket => {
      const number = ++this.#published;
      const payload = String(number).padStart(64, ".");
      const messageId = (number % 65_535) + 1;
      return { cmd: "publish", topic, payload, qos, dup: false, retain: false, ...(qos > 0 && { messageId }) };
    });
    this.#send(packets);
    if (qos === 0) this.completed += count;
  }

  /** Resolves when so many messages have come, all that were to be released are, and so many of its own are over. */
  async waitFor(received: number, completed: number): Promise<void> {
    await this.#until(() => this.received >= received && this.#unreleased === 0 && this.completed >= completed);
  }

  /** Resolves when what was sent before has been handled, and what it has caused here has come. */
  async ping(): Promise<void> {
    const before = this.#came.get("pingresp") ?? 0;
    this.#send([{ cmd: "pingreq" }]);
    await this.#until(() => (this.#came.get("pingresp") ?? 0) > before);
  }

  async leave(): Promise<void> {
    const closed = new Promise((resolve) => this.#socket.once("close", resolve));
    this.#send([{ cmd: "disconnect" }]);
    await closed;
  }

  #send(packets: readonly Packet[]): void {
    if (packets.length > 0) this.#socket.send(Buffer.concat(packets.map((packet) => generate(packet))));
  }

  #handle(packet: Packet): void {
    switch (packet.cmd) {
      case "publish": {
        const messageId = packet.messageId!;
        if (packet.payload.toString() !== String(++this.received).padStart(64, "."))
          this.#failure ??= new Error(`message ${this.received} is ${packet.payload.toString()}`);
        if (packet.qos === 1) this.#answers.push({ cmd: "puback", messageId });
        else if (packet.qos === 2) {
          this.#unreleased++;
          this.#answers.push({ cmd: "pubrec", messageId });
        }
        return;
      }
      case "pubrec":
        return void this.#answers.push({ cmd: "pubrel", messageId: packet.messageId! });
      case "pubrel":
        this.#unreleased--;
        return void this.#answers.push({ cmd: "pubcomp", messageId: packet.messageId! });
      case "puback":
      case "pubcomp":
        this.completed++;
        return;
      default:
        this.#came.set(packet.cmd, (this.#came.get(packet.cmd) ?? 0) + 1);
    }
  }

  async #until(condition: () => boolean): Promise<void> {
    const timeout = setTimeout(() => {
      this.#failure ??= new Error(`nothing came for ${patienceMs / 1000} s`);
      this.#handled.resolve();
    }, patienceMs);
    while (!condition() && !this.#failure) await this.#handled.promise;
    clearTimeout(timeout);
    if (this.#failure) throw this.#failure;
  }
}
