/**
 * One client's socket: bytes in to packets, packets to the channel, the channel's effects performed, packets out.
 *
 * What goes to the socket in one turn leaves as one WebSocket frame, because the frame is what costs: see `flush`.
 * An unfinished packet or an unanswered CONNECT holds a timer, and so holds the object in memory; between packets
 * there is nothing here that the disk does not have.
 */
import { concatenate } from "../../mqtt/byte-buffer.ts";
import { Channel, type ConnectionFacts, type Effect } from "../../mqtt/channel.ts";
import { decode, encode, type ProtocolVersion, type ServerPacket } from "../../mqtt/codec.ts";
import { Fifo } from "../../mqtt/fifo.ts";
import { Framer } from "../../mqtt/frame.ts";
import { limits } from "../../mqtt/limits.ts";
import { PublishForms } from "../../mqtt/publish-forms.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import type { Delivery, Session } from "../../mqtt/session.ts";
import type { Broker } from "./broker.ts";

/** What survives hibernation with the socket itself. */
export interface Attachment {
  readonly sessionId: number;
  /** ms since the epoch. */
  readonly lastSeen: number;
  /** Seconds. */
  readonly keepAlive: number;
}

export class Connection {
  readonly socket: WebSocket;
  readonly channel: Channel;
  /** The session, from its opening to the end of the connection. */
  session: Session | undefined;
  /** The client's address and port, for operators; undefined: not known. */
  peer: string | undefined;
  /** ms since the epoch: when the last packet came. */
  lastSeen: number;
  /** Bytes of QoS 1 and 2 publishes that the cluster has not answered. */
  unansweredBytes = 0;
  /** The socket is closed or closing; nothing more is sent. */
  closed = false;
  readonly #broker: Broker;
  readonly #framer: Framer;
  readonly #aliasesOut = new Map<string, number>();
  #isProcessing = false;
  #connectingBytes = 0;
  /** Packets that wait, in order. */
  readonly #held = new Fifo<Uint8Array>();
  #heldBytes = 0;
  #frame: Uint8Array[] = [];
  #frameBytes = 0;
  #attachedLastSeen = 0;
  #isExpectingConnect = false;
  #isUnfinished = false;

  constructor(socket: WebSocket, broker: Broker, now: number) {
    this.socket = socket;
    this.#broker = broker;
    this.lastSeen = now;
    this.channel = new Channel(broker.channelContext);
    this.#framer = new Framer(broker.settings.mqtt.max_packet_size);
  }

  get facts(): ConnectionFacts | undefined {
    return this.channel.facts;
  }

  /** A fresh socket has `idle_timeout` to bring its CONNECT. [MQTT-3.1.4-1] Its TCP connection may end later: workerd's. */
  expectConnect(): void {
    this.#isExpectingConnect = true;
    this.#broker.expectingConnect.start(this, this.lastSeen);
  }

  /** The socket of a session that slept. */
  restore(attachment: Attachment, session: Session): void {
    const stored = this.#broker.store.loadConnection(attachment.sessionId);
    if (!stored) throw new Error(`session ${attachment.sessionId} is connected, but its connection is not on disk`);
    this.session = session;
    this.peer = stored.peer;
    this.lastSeen = attachment.lastSeen;
    this.#attachedLastSeen = attachment.lastSeen;
    this.channel.restore(stored.facts, session, stored.aliases);
    session.reattach(stored.facts.receiveMaximum);
  }

  receive(data: string | ArrayBuffer, now: number): void {
    if (this.closed) return;
    this.lastSeen = now;
    if (typeof data === "string") return this.fail(new MqttError(ReasonCode.ProtocolError, "a text frame came")); // [MQTT-6.0.0-1]
    this.#broker.metrics["frames.received"]++;
    this.#broker.metrics["bytes.received"] += data.byteLength;
    if (this.channel.stateName === "connecting") {
      this.#connectingBytes += data.byteLength;
      const bytesMax = this.#broker.settings.mqtt.max_packet_size + limits.connectingBytesMax;
      if (this.#connectingBytes > bytesMax)
        return this.fail(new MqttError(ReasonCode.QuotaExceeded, "too much came before CONNECT was answered"));
    }
    if (this.session) this.#broker.touchConnection(this);
    this.#framer.push(new Uint8Array(data));
    this.process(now);
  }

  /** Handles what packets are there, as far as none has to wait. */
  process(now: number): void {
    // A publish that is answered at once comes here again, from within.
    if (this.#isProcessing) return;
    this.#isProcessing = true;
    try {
      this.#handleHeld(now);
      while (this.channel.stateName === "idle" || this.channel.stateName === "connected") {
        const packet = this.#framer.next();
        if (!packet) break;
        if (this.#isUnfinished) this.#stopWatching();
        this.#broker.metrics["packets.received"]++;
        if (this.#isExpectingConnect) this.#stopExpecting();
        if (this.#mustWait(packet)) this.#hold(packet);
        else this.#handle(packet, now);
      }
      this.#handleHeld(now);
    } catch (error) {
      return this.fail(error);
    } finally {
      this.#isProcessing = false;
    }
    this.#watchUnfinished(now);
  }

  #handle(packet: Uint8Array, now: number): void {
    this.channel.handlePacket(decode(packet, this.facts?.version), now);
    this.perform();
  }

  /** Publishes wait while too many are unanswered, and what follows them waits too, but for acknowledgements and pings. */
  #mustWait(packet: Uint8Array): boolean {
    if (this.#held.length > 0) return !isAnswerOrPing(packet);
    return isAcknowledged(packet) && this.#isHoldingBack;
  }

  #hold(packet: Uint8Array): void {
    this.#heldBytes += packet.length;
    if (this.#heldBytes > limits.heldBytesMax)
      throw new MqttError(ReasonCode.QuotaExceeded, "too much came without waiting for acknowledgements");
    this.#held.push(packet);
  }

  get #isHoldingBack(): boolean {
    return this.channel.holdsBack || this.unansweredBytes >= limits.publishBytesUnansweredMax;
  }

  #handleHeld(now: number): void {
    for (let packet = this.#held.first; packet; packet = this.#held.first) {
      if (this.channel.stateName !== "connected" || (isAcknowledged(packet) && this.#isHoldingBack)) return;
      this.#held.shift();
      this.#heldBytes -= packet.length;
      this.#handle(packet, now);
    }
  }

  /** The socket is gone. Of what was held back, only QoS 1 and 2 publishes wait for an answer: the rest still counts. */
  handleSocketClosed(now: number): void {
    try {
      for (let packet = this.#held.shift(); packet; packet = this.#held.shift())
        if (!isAcknowledged(packet) && this.channel.stateName === "connected") this.#handle(packet, now);
    } catch (error) {
      this.fail(error);
    }
    this.#broker.handleGone(this);
  }

  /** Ends this connection, and nothing else, with the reason if the client's version has one (G5). */
  fail(error: unknown): void {
    if (!(error instanceof MqttError)) console.error("a connection failed:", error);
    this.channel.handleError(
      error instanceof MqttError ? error : new MqttError(ReasonCode.UnspecifiedError, "the broker failed here"),
    );
    this.perform();
  }

  /** Performs what the channel has decided. */
  perform(): void {
    for (const effect of this.channel.takeEffects()) this.#performOne(effect);
    if (this.session) this.#broker.touch(this.session);
    if (this.channel.aliasesChanged) this.#broker.touchConnection(this);
  }

  #performOne(effect: Effect): void {
    const broker = this.#broker;
    switch (effect.kind) {
      case "send":
        return this.#send(effect.packet, effect.version);
      case "close":
        return this.close();
      case "authenticate":
        return broker.authenticate(this, effect.username, effect.password);
      case "open":
        return broker.open(this, effect.request);
      case "publish":
        return broker.publish(this, effect.message, effect.receipt, effect.delaySeconds);
      case "subscribe":
        return broker.subscribe(this, effect.packetId, effect.codes, effect.wanted);
      case "unsubscribe":
        return broker.unsubscribe(this, effect.packetId, effect.filters);
      case "pump":
        return this.pump(Date.now());
      case "denied":
        broker.metrics["messages.dropped.not_authorized"]++;
        return;
    }
  }

  /**
   * Sends what the session holds as far as the window is open.
   * @param forms the encodings of one of its messages, if there are some
   */
  pump(now: number, forms?: PublishForms): void {
    const { session } = this;
    if (!session || this.closed) return;
    const load = this.#broker.dispatcher.load(session, now);
    for (let next = session.nextToSend(now, load); next; next = session.nextToSend(now, load)) {
      if (next.kind === "pubrel") {
        const { version } = this.facts!;
        this.#send({ cmd: "pubrel", messageId: next.packetId, reasonCode: ReasonCode.Success }, version);
        continue;
      }
      const { delivery, packetId, dup } = next;
      const own = forms?.message === delivery.message ? forms : new PublishForms(delivery.message, now);
      if (!this.sendPublish(delivery, packetId, dup, own)) session.discard(packetId);
    }
    this.#broker.retained.read(session);
    this.#broker.touch(session);
  }

  /** @returns whether the client takes packets of this size. */
  sendPublish(delivery: Delivery, packetId: number, dup: boolean, forms: PublishForms): boolean {
    const { facts } = this;
    if (!facts || this.closed) return true;
    const encodingsBefore = forms.encodings;
    const alias = facts.topicAliasMaximum === 0 ? undefined : this.#aliasFor(delivery.message.topic, facts);
    const bytes = forms.encode(
      {
        version: facts.version,
        qos: delivery.qos,
        dup,
        retain: delivery.retain,
        subscriptionIds: delivery.subscriptionIds,
        topicAlias: alias?.number ?? 0,
        topicOmitted: alias?.known === true,
      },
      packetId,
    );
    this.#broker.metrics["packets.encoded"] += forms.encodings - encodingsBefore;
    if (bytes.length > facts.maximumPacketSize) {
      this.#broker.metrics["delivery.dropped.too_large"]++; // [MQTT-3.1.2-25]
      return false;
    }
    if (alias && !alias.known) this.#aliasesOut.set(delivery.message.topic, alias.number);
    this.#broker.metrics["messages.sent"]++;
    this.#write(bytes);
    return true;
  }

  /** The first topics get the aliases there are [MQTT-3.1.2-26]; forgotten in sleep, they are just set again. */
  #aliasFor(topic: string, facts: ConnectionFacts): { number: number; known: boolean } | undefined {
    const known = this.#aliasesOut.get(topic);
    if (known !== undefined) return { number: known, known: true };
    const number = this.#aliasesOut.size + 1;
    if (number > Math.min(facts.topicAliasMaximum, limits.topicAliasesOutMax)) return undefined;
    return { number, known: false };
  }

  #send(packet: ServerPacket, version: ProtocolVersion): void {
    if (this.closed) return;
    let bytes = encode(packet, version);
    const bytesMax = this.facts?.maximumPacketSize ?? Number.MAX_SAFE_INTEGER;
    if (bytes.length > bytesMax && "properties" in packet && packet.properties?.reasonString !== undefined) {
      const { reasonString: _, ...properties } = packet.properties; // [MQTT-3.2.2-19] [MQTT-3.14.2-3]
      bytes = encode({ ...packet, properties } as ServerPacket, version);
    }
    // A client that cannot even be answered is not connected. [MQTT-3.1.2-24]
    if (bytes.length > bytesMax) return this.close();
    this.#write(bytes);
  }

  #write(bytes: Uint8Array): void {
    this.#frame.push(bytes);
    this.#frameBytes += bytes.length;
    if (this.#frame.length === 1) this.#broker.flushAtTurnsEnd(this);
    if (this.#frameBytes >= limits.frameBytesMax) this.#broker.flushNow(this);
  }

  /** Everything gathered leaves as one frame. */
  flush(): void {
    if (this.#frame.length === 0 || this.closed) return;
    const bytes = this.#frame.length === 1 ? this.#frame[0]! : concatenate(this.#frame, this.#frameBytes);
    this.#broker.metrics["frames.sent"]++;
    this.#broker.metrics["packets.sent"] += this.#frame.length;
    this.#broker.metrics["bytes.sent"] += this.#frameBytes;
    this.#frame = [];
    this.#frameBytes = 0;
    try {
      this.socket.send(bytes);
    } catch {
      // The client is gone already: its close event says so.
    }
  }

  close(): void {
    if (this.closed) return;
    this.#broker.flushNow(this);
    this.closed = true;
    this.#broker.closeAtTurnsEnd(this.socket);
    this.#broker.handleGone(this);
  }

  /** The connection has ended: nothing is waited for any more. */
  stopTimers(): void {
    if (this.#isExpectingConnect) this.#stopExpecting();
    if (this.#isUnfinished) this.#stopWatching();
  }

  #stopExpecting(): void {
    this.#isExpectingConnect = false;
    this.#broker.expectingConnect.stop(this);
  }

  #stopWatching(): void {
    this.#isUnfinished = false;
    this.#broker.unfinished.stop(this);
  }

  /** Writes down when the client was last heard of, for a keep-alive that outlasts sleep. */
  attach(): void {
    if (!this.session || this.closed || this.lastSeen === this.#attachedLastSeen) return;
    this.#attachedLastSeen = this.lastSeen;
    const keepAlive = this.facts?.keepAlive ?? 0;
    this.socket.serializeAttachment({
      sessionId: this.session.id,
      lastSeen: this.lastSeen,
      keepAlive,
    } satisfies Attachment);
  }

  /** What it needs after sleep. */
  write(): void {
    const { session, facts, channel, peer } = this;
    if (!session || !facts || this.closed) return;
    channel.aliasesChanged = false;
    this.#broker.store.putConnection(session.id, { facts, aliases: [...channel.topicAliases], peer });
  }

  /** The rest of an unfinished packet must come in time, however many fragments it comes in. */
  #watchUnfinished(now: number): void {
    if (this.#isUnfinished || this.#framer.pendingBytes === 0 || this.closed) return;
    this.#isUnfinished = true;
    this.#broker.unfinished.start(this, now);
  }
}

/** A PUBLISH at QoS 1 or 2. */
function isAcknowledged(packet: Uint8Array): boolean {
  return packet[0]! >> 4 === 3 && (packet[0]! & 0x06) !== 0;
}

/** PUBACK, PUBREC, PUBREL, PUBCOMP, PINGREQ. */
function isAnswerOrPing(packet: Uint8Array): boolean {
  const type = packet[0]! >> 4;
  return (type >= 4 && type <= 7) || type === 12;
}
