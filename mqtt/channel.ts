/**
 * The channel: the protocol state machine of one connection, for MQTT 3.1, 3.1.1 and 5.0 alike.
 *
 *   idle --CONNECT--> connecting --handleAuthenticated, handleOpened--> connected --> closed
 *
 * `handle*` takes what happened (a decoded packet, an answer of the cluster, an error) and leaves effects, which
 * `takeEffects` hands to the connection that performs them in order. While `connecting` the connection holds bytes
 * back, so no packet is handled before its CONNECT is answered.
 *
 * Acknowledgements leave in the order in which the publishes came [MQTT-4.6.0-2] [MQTT-4.6.0-3], whatever the order
 * of the cluster's answers: `receipts` is that order.
 *
 * Pure: time, ids and settings are given.
 */
import { authorize, refusalOf, type Rule } from "./authorization.ts";
import type {
  ClientPacket,
  ConnectPacket,
  DisconnectPacket,
  ProtocolVersion,
  ServerPacket,
  SubscribePacket,
  UnsubscribePacket,
} from "./codec.ts";
import { limits } from "./limits.ts";
import type { Message, QoS } from "./message.ts";
import type { Publish } from "./publish.ts";
import { MqttError, ReasonCode } from "./reason-codes.ts";
import { ConnectError, SilentError } from "./refusal.ts";
import { expiryNever, type Receipt, type Session, type Subscription, type Will } from "./session.ts";
import type { MqttSettings } from "./settings.ts";
import { checkTopicFilter, checkTopicName, hasWildcard, parseDelayed, parseShared } from "./topic.ts";

/** What a channel is given by its surroundings. */
export interface ChannelContext {
  readonly settings: MqttSettings;
  readonly rules: readonly Rule[];
  /** A new message id, unique in the cluster. */
  readonly messageId: () => string;
  /** A client id for a client that sent none, unique in the cluster. */
  readonly assignClientId: () => string;
}

/** What CONNECT settled for the rest of the connection. */
export interface ConnectionFacts {
  readonly version: ProtocolVersion;
  readonly clientId: string;
  readonly username: string | undefined;
  /** Seconds; 0 = none. */
  readonly keepAlive: number;
  readonly receiveMaximum: number;
  /** Bytes; what is larger is not sent to this client. */
  readonly maximumPacketSize: number;
  readonly topicAliasMaximum: number;
  readonly cleanStart: boolean;
  /** ms since the epoch. */
  readonly connectedAt: number;
}

export interface OpenRequest {
  readonly facts: ConnectionFacts;
  readonly expiryInterval: number;
  readonly will: Will | undefined;
}

export type Effect =
  | { readonly kind: "send"; readonly packet: ServerPacket; readonly version: ProtocolVersion }
  /** Close the socket when everything sent has left. */
  | { readonly kind: "close" }
  | { readonly kind: "authenticate"; readonly username: string | undefined; readonly password: Uint8Array | undefined }
  | { readonly kind: "open"; readonly request: OpenRequest }
  | {
      readonly kind: "publish";
      readonly message: Message;
      readonly receipt: Receipt | undefined;
      readonly delaySeconds: number;
    }
  | { readonly kind: "subscribe"; readonly packetId: number; readonly codes: number[]; readonly wanted: Wanted[] }
  | { readonly kind: "unsubscribe"; readonly packetId: number; readonly filters: string[] }
  /** The window may have opened: send what waits. */
  | { readonly kind: "pump" }
  /** A publish is not authorized. */
  | { readonly kind: "denied" };

/** A granted subscription; `index` is its place among the codes of the SUBACK. */
export interface Wanted {
  readonly index: number;
  readonly subscription: Subscription;
  readonly isNew: boolean;
}

interface Connecting {
  readonly name: "connecting";
  readonly facts: ConnectionFacts;
  readonly request: OpenRequest;
  /** The client sent no client id. */
  readonly assigned: boolean;
  /** The client asked for another keep alive. */
  readonly keepAliveReplaced: boolean;
}

type State =
  | { readonly name: "idle" }
  | Connecting
  | { readonly name: "connected"; readonly facts: ConnectionFacts; readonly session: Session }
  | { readonly name: "closed" };

/** Why a client may not connect. */
const refusals: { readonly [reasonCode: number]: string } = {
  [ReasonCode.NotAuthorized]: "a user name and a password are needed",
  [ReasonCode.BadUserNameOrPassword]: "the user name or the password is wrong",
  [ReasonCode.ServerBusy]: "too many passwords are being checked",
};

/** CONNACK return codes of MQTT 3.x for reason codes of 5.0; the others close without a CONNACK. */
const returnCodes: { readonly [reasonCode: number]: number } = {
  [ReasonCode.UnsupportedProtocolVersion]: 1,
  [ReasonCode.ClientIdentifierNotValid]: 2,
  [ReasonCode.ServerUnavailable]: 3,
  [ReasonCode.ServerBusy]: 3,
  [ReasonCode.BadUserNameOrPassword]: 4,
  [ReasonCode.NotAuthorized]: 5,
};

/** What CONNACK can say, section 3.2.2.2. */
const connackCodes: ReadonlySet<ReasonCode> = new Set([
  ReasonCode.UnspecifiedError,
  ReasonCode.MalformedPacket,
  ReasonCode.ProtocolError,
  ReasonCode.ImplementationSpecificError,
  ReasonCode.UnsupportedProtocolVersion,
  ReasonCode.ClientIdentifierNotValid,
  ReasonCode.BadUserNameOrPassword,
  ReasonCode.NotAuthorized,
  ReasonCode.ServerUnavailable,
  ReasonCode.ServerBusy,
  ReasonCode.Banned,
  ReasonCode.BadAuthenticationMethod,
  ReasonCode.TopicNameInvalid,
  ReasonCode.PacketTooLarge,
  ReasonCode.QuotaExceeded,
  ReasonCode.PayloadFormatInvalid,
  ReasonCode.RetainNotSupported,
  ReasonCode.QoSNotSupported,
]);

/**
 * Codes that leave open what the client should change: a Reason String says it. Only CONNACK and DISCONNECT have one,
 * and no packet a User Property, so Request Problem Information has nothing to withhold. [MQTT-3.1.2-29]
 */
const explained: ReadonlySet<ReasonCode> = new Set([
  ReasonCode.UnspecifiedError,
  ReasonCode.BadUserNameOrPassword,
  ReasonCode.NotAuthorized,
  ReasonCode.ServerUnavailable,
  ReasonCode.ServerBusy,
  ReasonCode.KeepAliveTimeout,
  ReasonCode.SessionTakenOver,
  ReasonCode.QuotaExceeded,
]);

export class Channel {
  readonly #context: ChannelContext;
  #state: State = { name: "idle" };
  #effects: Effect[] = [];
  #receipts: Receipt[] = [];
  /** Packet ids that the client's send quota is spent on. [MQTT-4.9.0-2] */
  readonly #quota = new Set<number>();
  #aliases = new Map<number, string>();
  #aliasBytes = 0;
  /** The aliases have changed since they were last written. */
  aliasesChanged = false;

  constructor(context: ChannelContext) {
    this.#context = context;
  }

  /** How many QoS 1 and 2 publishes a 5.0 client may have under way; QoS 2 holds its place until PUBREL. */
  get #receiveMaximum(): number {
    const { max_inflight, max_awaiting_rel } = this.#context.settings;
    return Math.min(max_inflight, max_awaiting_rel);
  }

  /**
   * Whether the next QoS 1 or 2 PUBLISH has to wait. A 5.0 client that runs ahead of acknowledgements which the broker
   * owes is held back; one that has got them all and still goes over its Receive Maximum is not waited for, it is in
   * error. A 3.x client cannot know of any limit, so it is held back at each.
   */
  get holdsBack(): boolean {
    const state = this.#state;
    if (state.name !== "connected") return false;
    if (this.#receipts.length >= limits.publishesUnansweredMax) return true;
    if (state.facts.version === 5) return this.#receipts.length > 0 && this.#quota.size >= this.#receiveMaximum;
    return state.session.awaitingRelCount >= this.#context.settings.max_awaiting_rel;
  }

  get stateName(): State["name"] {
    return this.#state.name;
  }

  get facts(): ConnectionFacts | undefined {
    return this.#state.name === "connecting" || this.#state.name === "connected" ? this.#state.facts : undefined;
  }

  get session(): Session | undefined {
    return this.#state.name === "connected" ? this.#state.session : undefined;
  }

  get topicAliases(): ReadonlyMap<number, string> {
    return this.#aliases;
  }

  takeEffects(): Effect[] {
    const taken = this.#effects;
    if (taken.length > 0) this.#effects = [];
    return taken;
  }

  /** A connection that slept: its socket is open, its session is back from disk. */
  restore(facts: ConnectionFacts, session: Session, aliases: Iterable<readonly [number, string]>): void {
    this.#state = { name: "connected", facts, session };
    for (const packetId of session.receivedIds()) this.#quota.add(packetId);
    for (const [alias, topic] of aliases) this.#setAlias(alias, topic);
    this.aliasesChanged = false;
  }

  handlePacket(packet: ClientPacket, now: number): void {
    const state = this.#state;
    switch (state.name) {
      case "idle":
        // [MQTT-3.1.0-1]
        if (packet.cmd !== "connect") throw new MqttError(ReasonCode.ProtocolError, "the first packet must be CONNECT");
        return this.#handleConnect(packet, now);
      case "connected":
        return this.#handleConnectedPacket(packet, state.facts, state.session, now);
      case "connecting":
        throw new Error("a packet was handled before its CONNECT was answered");
      case "closed":
        return; // [MQTT-3.14.4-1]: what follows a DISCONNECT is discarded
    }
  }

  /** The client broke the protocol, or the broker refuses it: say why where the version can, and close. */
  handleError(error: MqttError): void {
    const state = this.#state;
    if (state.name === "closed") return;
    if (error instanceof SilentError) return this.#close();
    if (state.name === "connected") this.#sendDisconnect(error, state.facts.version);
    else if (error instanceof ConnectError) this.#sendRefusal(error, error.connackVersion);
    else if (state.name === "connecting") this.#sendRefusal(error, state.facts.version);
    this.#close();
  }

  /** The socket is gone, or is being closed from our side without a word to the client. */
  handleClosed(): void {
    this.#state = { name: "closed" };
    this.#receipts = [];
  }

  // ---- CONNECT ----------------------------------------------------------------------------------------------------

  #handleConnect(packet: ConnectPacket, now: number): void {
    const { settings } = this.#context;
    const version = packet.protocolVersion;
    const properties = packet.properties ?? {};
    const { clean } = packet;
    const assigned = packet.clientId === "";
    const facts: ConnectionFacts = {
      version,
      clientId: assigned ? this.#context.assignClientId() : packet.clientId,
      username: packet.username,
      keepAlive: this.#keepAliveFor(packet),
      receiveMaximum: Math.min(properties.receiveMaximum ?? 65_535, settings.max_inflight),
      maximumPacketSize: properties.maximumPacketSize ?? Number.MAX_SAFE_INTEGER,
      topicAliasMaximum: properties.topicAliasMaximum ?? 0,
      cleanStart: clean,
      connectedAt: now,
    };
    const refuse = (reasonCode: ReasonCode, reason: string) =>
      this.handleError(new ConnectError(reasonCode, reason, version));
    if (assigned && (version === 3 || (version === 4 && !clean)))
      return refuse(ReasonCode.ClientIdentifierNotValid, "a client identifier is needed"); // [MQTT-3.1.3-8]
    if (properties.authenticationMethod !== undefined)
      return refuse(ReasonCode.BadAuthenticationMethod, "no authentication method is known"); // [MQTT-4.12.0-1]
    const will = packet.will && willOf(packet.will);
    if (will) {
      if (will.qos > settings.max_qos_allowed)
        return refuse(ReasonCode.QoSNotSupported, `will QoS above ${settings.max_qos_allowed}`); // [MQTT-3.2.2-12]
      if (will.retain && !settings.retain_available)
        return refuse(ReasonCode.RetainNotSupported, "retained messages are off"); // [MQTT-3.2.2-13]
      const fault = faultOf(() => checkTopicName(topicOf(will.topic), settings.max_topic_levels));
      if (fault) return refuse(fault.reasonCode, fault.message);
    }
    const expiryInterval =
      version === 5
        ? (properties.sessionExpiryInterval ?? 0)
        : clean
          ? 0
          : Math.min(Math.floor(settings.session_expiry_interval / 1000), expiryNever);
    const request: OpenRequest = { facts, expiryInterval, will };
    const keepAliveReplaced = facts.keepAlive !== packet.keepalive;
    this.#state = { name: "connecting", facts, request, assigned, keepAliveReplaced };
    this.#effects.push({ kind: "authenticate", username: packet.username, password: packet.password });
  }

  handleAuthenticated(reasonCode: ReasonCode): void {
    if (this.#state.name !== "connecting") return;
    const { facts, request } = this.#state;
    if (reasonCode !== ReasonCode.Success)
      return this.handleError(new MqttError(reasonCode, refusals[reasonCode] ?? "not accepted"));
    if (request.will && !this.#mayPublish(facts, topicOf(request.will.topic)))
      return this.handleError(new MqttError(ReasonCode.NotAuthorized, "not authorized for the will's topic"));
    this.#effects.push({ kind: "open", request });
  }

  /** The session is claimed and loaded: answer, then send what it holds. */
  handleOpened(session: Session, sessionPresent: boolean): void {
    const connecting = this.#state;
    if (connecting.name !== "connecting") return;
    this.#state = { name: "connected", facts: connecting.facts, session };
    this.#send(this.#connack(connecting, sessionPresent));
    this.#effects.push({ kind: "pump" });
  }

  /** Says what differs from what the client asked for or may assume, and no more: its packets may have to be small. */
  #connack({ facts, assigned, keepAliveReplaced }: Connecting, sessionPresent: boolean): ServerPacket {
    const { settings } = this.#context;
    if (facts.version !== 5)
      // 3.1 has no session present flag
      return { cmd: "connack", sessionPresent: facts.version === 4 && sessionPresent, returnCode: 0 };
    return {
      cmd: "connack",
      sessionPresent, // [MQTT-3.2.2-2] [MQTT-3.2.2-3]
      reasonCode: ReasonCode.Success,
      properties: {
        receiveMaximum: this.#receiveMaximum,
        maximumPacketSize: settings.max_packet_size,
        topicAliasMaximum: settings.max_topic_alias,
        ...(settings.max_qos_allowed < 2 ? { maximumQoS: settings.max_qos_allowed } : {}), // [MQTT-3.2.2-9]
        ...(settings.retain_available ? {} : { retainAvailable: false }),
        ...(settings.wildcard_subscription ? {} : { wildcardSubscriptionAvailable: false }),
        ...(settings.shared_subscription ? {} : { sharedSubscriptionAvailable: false }),
        ...(keepAliveReplaced ? { serverKeepAlive: facts.keepAlive } : {}), // [MQTT-3.2.2-21]
        ...(assigned ? { assignedClientIdentifier: facts.clientId } : {}), // [MQTT-3.2.2-16]
      },
    };
  }

  /** Before CONNACK there is only CONNACK to say it with. [MQTT-3.14.0-1] */
  #sendRefusal(error: MqttError, version: ProtocolVersion): void {
    const sessionPresent = false; // [MQTT-3.2.2-6]
    if (version === 5) {
      const reasonCode = connackCodes.has(error.reasonCode) ? error.reasonCode : ReasonCode.UnspecifiedError;
      const properties = explanation(reasonCode, error.message);
      return this.#send({ cmd: "connack", sessionPresent, reasonCode, properties }, version);
    }
    const returnCode = returnCodes[error.reasonCode];
    if (returnCode !== undefined) this.#send({ cmd: "connack", sessionPresent, returnCode }, version);
  }

  /** [MQTT-4.13.1-1]; before 5.0 the close says it all. */
  #sendDisconnect(error: MqttError, version: ProtocolVersion): void {
    if (version !== 5) return;
    // A CONNECT where none may be has no other fault. [MQTT-3.1.0-2]
    const isOfConnect = error instanceof ConnectError || error.reasonCode === ReasonCode.UnsupportedProtocolVersion;
    const reasonCode = isOfConnect ? ReasonCode.ProtocolError : error.reasonCode;
    this.#send({ cmd: "disconnect", reasonCode, properties: explanation(reasonCode, error.message) });
  }

  // ---- connected --------------------------------------------------------------------------------------------------

  #handleConnectedPacket(packet: ClientPacket, facts: ConnectionFacts, session: Session, now: number): void {
    switch (packet.cmd) {
      case "publish":
        return this.#handlePublish(packet, facts, session, now);
      case "puback":
        if (session.handlePuback(packet.messageId)) this.#effects.push({ kind: "pump" });
        return;
      case "pubrec":
        return this.#handlePubrec(session, packet.messageId, packet.reasonCode);
      case "pubrel": {
        // An id that is not known was released before: the answer is the same. [MQTT-4.3.3-11]
        session.handlePubrel(packet.messageId);
        this.#quota.delete(packet.messageId);
        return this.#send({ cmd: "pubcomp", messageId: packet.messageId, reasonCode: ReasonCode.Success });
      }
      case "pubcomp":
        if (session.handlePubcomp(packet.messageId)) this.#effects.push({ kind: "pump" });
        return;
      case "subscribe":
        return this.#handleSubscribe(packet, facts, session);
      case "unsubscribe":
        return this.#handleUnsubscribe(packet);
      case "pingreq":
        return this.#send({ cmd: "pingresp" }); // [MQTT-3.12.4-1]
      case "disconnect":
        return this.#handleDisconnect(packet, session);
      case "connect":
        throw new MqttError(ReasonCode.ProtocolError, "a second CONNECT"); // [MQTT-3.1.0-2]
      case "auth":
        throw new MqttError(ReasonCode.ProtocolError, "AUTH without an authentication method"); // [MQTT-4.12.1-1]
    }
  }

  #handlePublish(packet: Publish, facts: ConnectionFacts, session: Session, now: number): void {
    const { settings } = this.#context;
    if (packet.qos > settings.max_qos_allowed)
      throw new MqttError(ReasonCode.QoSNotSupported, `QoS above ${settings.max_qos_allowed}`); // [MQTT-3.2.2-11]
    if (packet.retain && !settings.retain_available)
      throw new MqttError(ReasonCode.RetainNotSupported, "retained messages are off"); // [MQTT-3.2.2-14]
    const named = this.#resolveAlias(packet);
    checkTopicName(named, settings.max_topic_levels);
    const delayed = parseDelayed(named, now);
    const topic = delayed?.topic ?? named;
    const receipt = this.#receiptFor(packet, facts, session);
    if (receipt === "repeated") return;
    if (!this.#mayPublish(facts, topic)) {
      this.#effects.push({ kind: "denied" });
      if (receipt) this.handleReceipt(receipt, session, ReasonCode.NotAuthorized);
      return;
    }
    const { messageExpiryInterval } = packet;
    const message: Message = {
      // Only what is queued is ever told from its copies.
      id: receipt?.messageId ?? "",
      topic,
      payload: packet.payload,
      qos: packet.qos,
      retain: packet.retain,
      properties: packet.properties,
      expiresAt: messageExpiryInterval === undefined ? 0 : now + messageExpiryInterval * 1000,
      from: facts.clientId,
    };
    this.#effects.push({ kind: "publish", message, receipt, delaySeconds: delayed?.delaySeconds ?? 0 });
  }

  /** The place of a QoS 1 or 2 publish among the acknowledgements; `repeated` when it must not be published again. */
  #receiptFor(packet: Publish, facts: ConnectionFacts, session: Session): Receipt | "repeated" | undefined {
    if (packet.qos === 0) return undefined;
    const { settings } = this.#context;
    this.#quota.add(packet.packetId);
    if (facts.version === 5 && this.#quota.size > this.#receiveMaximum)
      throw new MqttError(ReasonCode.ReceiveMaximumExceeded, `more than ${this.#receiveMaximum} at once`); // [MQTT-3.3.4-7]
    const messageId = this.#context.messageId();
    if (packet.qos === 1) {
      const receipt: Receipt = { packetId: packet.packetId, qos: 1, messageId, digest: 0, reasonCode: undefined };
      this.#receipts.push(receipt);
      return receipt;
    }
    const received = session.receive(packet, messageId, settings.max_awaiting_rel);
    if (received === "full")
      throw new MqttError(ReasonCode.ReceiveMaximumExceeded, `more than ${settings.max_awaiting_rel} await PUBREL`);
    if (!this.#receipts.includes(received.receipt)) this.#receipts.push(received.receipt);
    if (received.isNew) return received.receipt;
    this.#flushReceipts();
    return "repeated";
  }

  /** The cluster, or a rule, has decided on a publish. Also for a receipt of an earlier connection of the session. */
  handleReceipt(receipt: Receipt, session: Session, reasonCode: ReasonCode): void {
    if (reasonCode >= 0x80 && !this.#canRefuse(reasonCode)) session.handleUnanswered(receipt, reasonCode);
    else session.handleReceived(receipt, reasonCode);
    this.#flushReceipts();
  }

  /** 3.x cannot say no: a refusal by rule is acknowledged [MQTT-3.3.5-2 of 3.1.1], a failure ends the connection. */
  #canRefuse(reasonCode: number): boolean {
    return this.facts !== undefined && (this.facts.version === 5 || reasonCode === ReasonCode.NotAuthorized);
  }

  #flushReceipts(): void {
    let sent = 0;
    for (const { packetId, qos, reasonCode } of this.#receipts) {
      if (reasonCode === undefined) break;
      if (reasonCode >= 0x80 && !this.#canRefuse(reasonCode))
        return this.handleError(new MqttError(ReasonCode.ServerBusy, "the message could not be routed"));
      if (qos === 1 || reasonCode >= 0x80) this.#quota.delete(packetId);
      if (qos === 1) this.#send({ cmd: "puback", messageId: packetId, reasonCode });
      // "No matching subscribers" is only said by PUBACK: many clients take any PUBREC but 0 for a refusal.
      else this.#send({ cmd: "pubrec", messageId: packetId, reasonCode: reasonCode < 0x80 ? 0 : reasonCode });
      sent++;
    }
    if (sent > 0) this.#receipts.splice(0, sent);
  }

  #handlePubrec(session: Session, packetId: number, reasonCode: number): void {
    session.handlePubrec(packetId, reasonCode);
    if (reasonCode >= 0x80) this.#effects.push({ kind: "pump" });
    else this.#send({ cmd: "pubrel", messageId: packetId, reasonCode: ReasonCode.Success }); // [MQTT-4.3.3-4]
  }

  #handleSubscribe(packet: SubscribePacket, facts: ConnectionFacts, session: Session): void {
    const codes: number[] = [];
    const wanted: Wanted[] = [];
    let count = session.subscriptions.size;
    let bytes = session.subscriptionBytes;
    for (const { topic: filter, qos, nl, rap, rh } of packet.subscriptions) {
      const isNew = !session.subscriptions.has(filter);
      const isOverQuota =
        isNew &&
        (count >= limits.subscriptionsPerSessionMax || bytes + filter.length > limits.subscriptionBytesPerSessionMax);
      const refusal = isOverQuota ? ReasonCode.QuotaExceeded : this.#refuseSubscription(filter, facts);
      if (refusal !== undefined) {
        codes.push(refusal);
        continue;
      }
      const granted = Math.min(qos, this.#context.settings.max_qos_allowed) as QoS;
      const subscription: Subscription = {
        filter,
        qos: granted,
        noLocal: nl === true,
        retainAsPublished: rap === true,
        retainHandling: (rh ?? 0) as 0 | 1 | 2,
        subscriptionId: packet.properties?.subscriptionIdentifier ?? 0,
      };
      wanted.push({ index: codes.length, subscription, isNew });
      codes.push(granted);
      if (isNew) {
        count++;
        bytes += filter.length;
      }
    }
    this.#effects.push({ kind: "subscribe", packetId: packet.messageId, codes, wanted });
  }

  #refuseSubscription(filter: string, facts: ConnectionFacts): ReasonCode | undefined {
    const { settings, rules } = this.#context;
    const fault = faultOf(() => checkTopicFilter(filter, settings.max_topic_levels));
    if (fault) return fault.reasonCode;
    const { group, filter: bare } = parseShared(filter);
    if (group !== undefined && !settings.shared_subscription) return ReasonCode.SharedSubscriptionsNotSupported;
    if (hasWildcard(bare) && !settings.wildcard_subscription) return ReasonCode.WildcardSubscriptionsNotSupported;
    return refusalOf(rules, facts, "subscribe", bare);
  }

  /** The routes are known to the cluster (G3): now the client may be told. [MQTT-3.8.4-1] */
  handleSubscribed(packetId: number, codes: readonly number[]): void {
    if (this.#state.name !== "connected") return;
    // 3.x knows one failure. [MQTT-3.9.3-2 of 3.1.1]
    const granted = codes.map((code) => (code >= 0x80 && this.facts?.version !== 5 ? 0x80 : code));
    this.#send({ cmd: "suback", messageId: packetId, granted });
  }

  #handleUnsubscribe(packet: UnsubscribePacket): void {
    this.#effects.push({ kind: "unsubscribe", packetId: packet.messageId, filters: packet.unsubscriptions });
  }

  handleUnsubscribed(packetId: number, codes: number[]): void {
    if (this.#state.name === "connected") this.#send({ cmd: "unsuback", messageId: packetId, granted: codes });
  }

  #handleDisconnect(packet: DisconnectPacket, session: Session): void {
    const expiry = packet.properties?.sessionExpiryInterval;
    if (expiry !== undefined) {
      if (session.expiryInterval === 0 && expiry !== 0)
        throw new MqttError(ReasonCode.ProtocolError, "a session without expiry cannot get one now"); // [MQTT-3.14.2-2]
      session.expiryInterval = expiry;
    }
    // [MQTT-3.14.4-3]; 0x04 asks for the will
    if (packet.reasonCode === ReasonCode.Success) session.will = undefined;
    this.#close();
  }

  /**
   * The keep alive that holds, in seconds. `mqtt.server_keepalive` takes the place of a longer one and of none; a
   * shorter one is the client's wish to be missed sooner. Before 5.0 it cannot be told, so it is not changed.
   */
  #keepAliveFor({ protocolVersion, keepalive }: ConnectPacket): number {
    const longest = this.#context.settings.server_keepalive;
    if (protocolVersion !== 5 || longest === undefined) return keepalive;
    return keepalive === 0 ? longest : Math.min(keepalive, longest); // [MQTT-3.1.2-21]
  }

  // ---- shared -----------------------------------------------------------------------------------------------------

  #mayPublish(who: ConnectionFacts, topic: string): boolean {
    // Only the broker speaks under $SYS. [MQTT-4.7.2-1 advises servers to prevent it]
    return !topic.startsWith("$SYS/") && authorize(this.#context.rules, who, "publish", topic);
  }

  #resolveAlias({ topic, topicAlias }: Publish): string {
    if (topicAlias === 0) return topic;
    if (topicAlias > this.#context.settings.max_topic_alias)
      throw new MqttError(ReasonCode.TopicAliasInvalid, `topic alias above ${this.#context.settings.max_topic_alias}`); // [MQTT-3.3.2-9]
    if (topic !== "") {
      this.#setAlias(topicAlias, topic); // [MQTT-3.3.2-12]
      return topic;
    }
    const known = this.#aliases.get(topicAlias);
    if (known === undefined) throw new MqttError(ReasonCode.ProtocolError, `topic alias ${topicAlias} was never set`);
    return known;
  }

  #setAlias(alias: number, topic: string): void {
    const before = this.#aliases.get(alias);
    if (before === topic) return;
    this.#aliasBytes += topic.length + 8 - (before === undefined ? 0 : before.length + 8);
    if (this.#aliasBytes > limits.topicAliasBytesMax)
      throw new MqttError(ReasonCode.QuotaExceeded, `topic aliases above ${limits.topicAliasBytesMax} bytes`);
    this.#aliases.set(alias, topic);
    this.aliasesChanged = true;
  }

  #send(packet: ServerPacket, version = this.facts?.version): void {
    if (version !== undefined) this.#effects.push({ kind: "send", packet, version });
  }

  #close(): void {
    this.#state = { name: "closed" };
    this.#receipts = [];
    this.#effects.push({ kind: "close" });
  }
}

function willOf({ properties = {}, ...will }: NonNullable<ConnectPacket["will"]>): Will {
  return {
    topic: will.topic,
    // Copies: the will is kept, and must not keep the frame that it came in.
    payload: typeof will.payload === "string" ? new TextEncoder().encode(will.payload) : will.payload.slice(),
    qos: will.qos ?? 0,
    retain: will.retain === true,
    properties: will.forwardedProperties.slice(),
    messageExpiryInterval: properties.messageExpiryInterval,
    delaySeconds: properties.willDelayInterval ?? 0,
  };
}

/** Where a message to this name goes in the end, whenever that is. */
function topicOf(name: string): string {
  return parseDelayed(name, Infinity)?.topic ?? name;
}

/** The client's error that a check throws. */
function faultOf(check: () => void): MqttError | undefined {
  try {
    check();
    return undefined;
  } catch (error) {
    if (error instanceof MqttError) return error;
    throw error;
  }
}

function explanation(reasonCode: ReasonCode, reason: string): { reasonString?: string } {
  return explained.has(reasonCode) ? { reasonString: reason } : {};
}
