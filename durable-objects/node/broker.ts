/**
 * What a node does for its clients, between their sockets and the core.
 *
 *   publish    a client's message goes to the core, in the outbox               Connection -> CoreLink
 *   dispatch   a forwarded message goes to the sessions that subscribe          Dispatcher -> SubscriptionTable -> Sessions
 *   deliver    a session's message goes to its socket                           Session -> Connection
 *
 * A turn of the event loop ends with `endTurn`: what must be on disk before it is said is written first, then every
 * socket gets what was gathered for it as one frame, and the sessions whose connections have ended are settled, in one
 * transaction. The runtime holds frames and answers back until the writes are durable. Everything else is written behind
 * by a timer, which keeps the object from sleeping while it owes a write.
 */
import type { Settings } from "../../cluster/config.ts";
import { isMember, type NodeName } from "../../cluster/name.ts";
import { coresByDistance } from "../../cluster/placement.ts";
import { SubscriptionTable, type RouteChange, type Subscriber } from "../../cluster/subscription-table.ts";
import type { ChannelContext, ConnectionFacts, OpenRequest, Wanted } from "../../mqtt/channel.ts";
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import type { Message } from "../../mqtt/message.ts";
import { limits } from "../../mqtt/limits.ts";
import { lifeChars, messageIdOf } from "../../mqtt/message-id-set.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import {
  QueueMemory,
  type Delivery,
  type Receipt,
  type Session,
  type Subscription,
  type Will,
} from "../../mqtt/session.ts";
import { isShared, parseDelayed } from "../../mqtt/topic.ts";
import { countedSql } from "../counted-sql.ts";
import type { Metrics } from "../metrics.ts";
import { remoteNode } from "../remote-node.ts";
import { migrate, type Database } from "../schema.ts";
import {
  addRouteRecord,
  fenceRecord,
  publishRecord,
  removeRouteRecord,
  type CoordinatorRpc,
  type NodeRpc,
  type NodeStats,
} from "../rpc.ts";
import { SharedTimer } from "../shared-timer.ts";
import { Turn } from "../turn.ts";
import { Authenticator } from "./authenticator.ts";
import { Claims } from "./claims.ts";
import { Connection, type Attachment } from "./connection.ts";
import { CoreLink } from "./core-link.ts";
import { Dispatcher } from "./dispatcher.ts";
import { Home } from "./home.ts";
import { KnownMessages } from "./known-messages.ts";
import { MessageLog } from "./message-log.ts";
import { migrations } from "./node-schema.ts";
import { OwnMessages } from "./own-messages.ts";
import { RetainedReader } from "./retained-reader.ts";
import { Sequence } from "./sequence.ts";
import { SessionStore } from "./session-store.ts";
import { Sessions } from "./sessions.ts";

/** What the Durable Object gives. */
export interface BrokerHost {
  readonly metrics: Metrics;
  readonly storage: Database;
  readonly sockets: readonly WebSocket[];
  readonly coreAt: (name: NodeName) => CoordinatorRpc;
  /** A node of this deployment. */
  readonly nodeAt: (name: NodeName) => NodeRpc;
  /** Makes sure that the alarm rings at this time or before. */
  readonly ringAt: (at: number) => void;
}

export class Broker {
  readonly name: NodeName;
  readonly settings: Settings;
  readonly metrics: Metrics;
  readonly sequence: Sequence;
  readonly queueMemory = new QueueMemory();
  readonly log: MessageLog;
  readonly known: KnownMessages;
  readonly store: SessionStore;
  readonly sessions: Sessions;
  readonly claims: Claims;
  readonly dispatcher: Dispatcher;
  readonly retained: RetainedReader;
  readonly table: SubscriptionTable;
  readonly core: CoreLink;
  readonly own: OwnMessages;
  readonly channelContext: ChannelContext;
  readonly host: BrokerHost;
  readonly expectingConnect: SharedTimer<Connection>;
  /** A part of a packet has come. */
  readonly unfinished: SharedTimer<Connection>;
  readonly #startedAt = Date.now();
  readonly #writer = new ByteWriter();
  /** The socket of each connected session; its Connection is made when something happens to it. */
  readonly #sockets = new Map<number, WebSocket>();
  readonly #connections = new Map<WebSocket, Connection>();
  /** Those that no session is on yet. */
  readonly #unbound = new Set<Connection>();
  readonly #toFlush = new Set<Connection>();
  readonly #toClose = new Set<WebSocket>();
  readonly #turn = new Turn(() => this.#endTurn());
  readonly #touchedConnections = new Set<Connection>();
  /** Publishes of each session that the core has not answered, and who waits for that. */
  readonly #unanswered = new Map<number, number>();
  readonly #whenAnswered = new Map<number, PromiseWithResolvers<void>>();
  readonly #authenticator: Authenticator;
  readonly #hasUsers: boolean;

  constructor(name: NodeName, settings: Settings, host: BrokerHost) {
    this.name = name;
    this.settings = settings;
    this.host = host;
    this.metrics = host.metrics;
    migrate(host.storage, migrations);
    const sql = countedSql(host.storage.sql, (rows) => (this.metrics["rows.written"] += rows));
    this.sequence = new Sequence(sql);
    const { max_mqueue_len: messagesMax } = settings.mqtt;
    const { message_retention_period: retentionMs } = settings.durable_sessions;
    this.log = new MessageLog(
      sql,
      { messagesMax, retentionMs },
      {
        of: (filter) => this.sessions.readersOf(filter),
        handleCut: (filter, seqs) => this.sessions.handleCut(filter, seqs),
        countExpired: (count) => (this.metrics["delivery.dropped.expired"] += count),
      },
    );
    this.known = new KnownMessages(sql);
    this.store = new SessionStore(sql, this.log, {
      memory: this.queueMemory,
      queueLengthMax: messagesMax,
      countDropped: (count) => (this.metrics["delivery.dropped.queue_full"] += count),
    });
    this.table = new SubscriptionTable({
      load: (key) => this.store.subscribers(key),
      isConnected: (sessionId) => this.#sockets.has(sessionId),
    });
    const { domain, cluster } = settings;
    const cores = coresByDistance(name, domain, cluster.core_nodes) as [NodeName, ...NodeName[]];
    this.core = new CoreLink(name, new Home(sql, cores), host.coreAt, {
      beforeSend: () => this.sessions.saveUrgent(),
      countDropped: (reason, count) => (this.metrics[`messages.dropped.${reason}`] += count),
    });
    this.own = new OwnMessages(sql, { core: this.core, ringAt: host.ringAt });
    this.sessions = new Sessions(this);
    this.claims = new Claims(this);
    this.dispatcher = new Dispatcher(this);
    this.retained = new RetainedReader(this);
    const late = (what: string) => (connection: Connection) =>
      connection.fail(new MqttError(ReasonCode.KeepAliveTimeout, what));
    this.expectingConnect = new SharedTimer(settings.mqtt.idle_timeout, late("no CONNECT came"));
    this.unfinished = new SharedTimer(limits.unfinishedPacketMs, late("a packet was not finished in time"));
    this.#hasUsers = Object.keys(settings.authentication).length > 0;
    this.#authenticator = new Authenticator(settings.authentication);
    const life = crypto.randomUUID().replaceAll("-", "").slice(0, lifeChars);
    let messages = 0;
    this.channelContext = {
      settings: settings.mqtt,
      rules: settings.authorization,
      messageId: () => messageIdOf(life, messages++),
      assignClientId: () => `trellis-${crypto.randomUUID()}`,
    };
    this.#wake();
  }

  /** The first event of a life: after sleep the sockets are still there; after a crash or a deploy they are gone. */
  #wake(): void {
    for (const socket of this.host.sockets) {
      const attachment = socket.deserializeAttachment() as Attachment | null;
      if (attachment) this.#sockets.set(attachment.sessionId, socket);
    }
    // Sleep leaves all sockets and a crash none: where there is one, none was lost.
    const lost = this.#sockets.size > 0 ? [] : this.store.connectedIds();
    if (lost.length > 0) {
      this.log.handleCrash();
      this.sessions.saveSoon();
      setImmediate(() => this.sessions.handleLost(lost));
    }
    this.store.clearAdoptions();
    this.own.sendAll();
    const due = this.store.nextDue();
    if (due !== undefined) this.host.ringAt(due);
  }

  /** A node, wherever it is. */
  nodeAt(node: NodeName): NodeRpc {
    if (isMember(node, this.settings.domain)) return this.host.nodeAt(node);
    return remoteNode((method, args) => this.core.callNode(node, method, args));
  }

  // ---- sockets ----------------------------------------------------------------------------------------------------

  /** Of sessions, asleep or not, and of clients that have not said CONNECT. */
  get connectionCount(): number {
    return this.#sockets.size + this.#unbound.size;
  }

  /** @param peer the client's address, as far as it is known. */
  accept(socket: WebSocket, peer: string | undefined): void {
    const connection = new Connection(socket, this, Date.now());
    connection.peer = peer;
    this.#connections.set(socket, connection);
    this.#unbound.add(connection);
    connection.expectConnect();
  }

  /** undefined: its connection has ended already, and the client's side of the close is still to come. */
  connection(socket: WebSocket): Connection | undefined {
    const known = this.#connections.get(socket);
    if (known) return known;
    const attachment = socket.deserializeAttachment() as Attachment | null;
    const session = attachment && this.sessions.byId(attachment.sessionId);
    // A socket that is just being closed is not among those that a node wakes with, so its session may have been lost.
    if (!attachment || !session?.connected) return undefined;
    if (!this.#sockets.has(session.id)) this.#sockets.set(session.id, socket);
    const connection = new Connection(socket, this, Date.now());
    connection.restore(attachment, session);
    this.#connections.set(socket, connection);
    return connection;
  }

  connectionOf(sessionId: number): Connection | undefined {
    const socket = this.#sockets.get(sessionId);
    return socket && this.connection(socket);
  }

  /** A session is on this socket from now on. */
  bind(session: Session, connection: Connection, { keepAlive }: ConnectionFacts): void {
    this.#sockets.set(session.id, connection.socket);
    this.#unbound.delete(connection);
    connection.session = session;
    connection.attach();
    if (keepAlive > 0) this.host.ringAt(Date.now() + keepAlive * 1500);
  }

  /** A connection has ended, by whomever. */
  handleGone(connection: Connection): void {
    if (!this.#connections.delete(connection.socket)) return;
    connection.closed = true;
    connection.stopTimers();
    connection.channel.handleClosed();
    this.#touchedConnections.delete(connection);
    this.#toFlush.delete(connection);
    this.#unbound.delete(connection);
    connection.socket.serializeAttachment(null);
    const { session } = connection;
    if (!session || this.#sockets.get(session.id) !== connection.socket) return;
    this.#sockets.delete(session.id);
    this.metrics["client.disconnected"]++;
    this.sessions.handleDisconnected(session);
    this.#turn.endSoon();
  }

  flushAtTurnsEnd(connection: Connection): void {
    this.#toFlush.add(connection);
    this.#turn.endSoon();
  }

  flushNow(connection: Connection): void {
    this.sessions.saveUrgent();
    this.#toFlush.delete(connection);
    connection.flush();
  }

  /** When it is on disk that the connection has ended: a client that sees it closed counts on its will not being sent. */
  closeAtTurnsEnd(socket: WebSocket): void {
    this.#toClose.add(socket);
    this.#turn.endSoon();
  }

  /** @returns how many frames were sent, and how many sessions left. */
  #endTurn(): number {
    this.sessions.saveUrgent();
    const { size } = this.#toFlush;
    for (const connection of this.#toFlush) connection.flush();
    this.#toFlush.clear();
    return size + this.closeSockets();
  }

  /** @returns how many sessions left. */
  closeSockets(): number {
    const left = this.sessions.settleDisconnected();
    for (const socket of this.#toClose) {
      try {
        socket.close(1000);
      } catch {
        // Closed already.
      }
    }
    this.#toClose.clear();
    return left;
  }

  touch(session: Session): void {
    this.sessions.touch(session);
  }

  touchConnection(connection: Connection): void {
    this.#touchedConnections.add(connection);
    this.sessions.saveSoon();
  }

  /** Written with the sessions' checkpoints: what connections need after sleep. */
  saveConnections(): void {
    for (const connection of this.#touchedConnections) {
      connection.attach();
      if (connection.session?.onDisk && connection.channel.aliasesChanged) connection.write();
    }
    this.#touchedConnections.clear();
  }

  // ---- connecting -------------------------------------------------------------------------------------------------

  authenticate(connection: Connection, username: string | undefined, password: Uint8Array | undefined): void {
    this.metrics["client.connect"]++;
    const decide = (reasonCode: ReasonCode) => {
      if (reasonCode !== ReasonCode.Success) this.metrics["client.auth.failure"]++;
      connection.channel.handleAuthenticated(reasonCode);
      connection.perform();
    };
    const { allow_anonymous: isOpen } = this.settings;
    // With no users at all on an open broker, a user name is only a name.
    const isNameOnly = username === undefined || !this.#hasUsers;
    if (isOpen && isNameOnly) return decide(ReasonCode.Success);
    if (username === undefined) return decide(ReasonCode.NotAuthorized);
    this.#authenticator.verify(username, password).then(decide, (error: unknown) => connection.fail(error));
  }

  open(connection: Connection, request: OpenRequest): void {
    this.claims.open(connection, request).catch((error: unknown) => {
      console.error(`${request.facts.clientId} could not be opened: ${String(error)}`);
      connection.fail(new MqttError(ReasonCode.ServerUnavailable, "the cluster does not answer"));
    });
  }

  // ---- publish: client -> core ------------------------------------------------------------------------------------

  publish(connection: Connection, message: Message, receipt: Receipt | undefined, delaySeconds: number): void {
    this.metrics["messages.received"]++;
    const { session } = connection;
    const record = publishRecord(this.#writer, { message, delaySeconds, only: "" });
    if (!receipt || !session) return this.core.outbox.addUnacknowledged(record);
    if (this.core.outbox.full) return this.#handleRouted(session, connection, receipt, ReasonCode.QuotaExceeded);
    const { length } = record;
    connection.unansweredBytes += length;
    this.#unanswered.set(session.id, (this.#unanswered.get(session.id) ?? 0) + 1);
    this.core.add(record, (reasonCode) => {
      connection.unansweredBytes -= length;
      this.#handleAnswered(session.id);
      this.#handleRouted(session, connection, receipt, reasonCode);
    });
  }

  #handleAnswered(sessionId: number): void {
    const left = this.#unanswered.get(sessionId)! - 1;
    if (left > 0) return void this.#unanswered.set(sessionId, left);
    this.#unanswered.delete(sessionId);
    this.#whenAnswered.get(sessionId)?.resolve();
    this.#whenAnswered.delete(sessionId);
  }

  /** Resolves when the core has answered what the session's client has published; undefined: it has. */
  whenAnswered(sessionId: number): Promise<void> | undefined {
    if (!this.#unanswered.has(sessionId)) return undefined;
    const waiting = this.#whenAnswered.get(sessionId) ?? Promise.withResolvers<void>();
    this.#whenAnswered.set(sessionId, waiting);
    return waiting.promise;
  }

  #handleRouted(session: Session, from: Connection, receipt: Receipt, reasonCode: ReasonCode): void {
    // The client may be on another connection by now: its acknowledgement goes there.
    const connection = this.connectionOf(session.id) ?? from;
    connection.channel.handleReceipt(receipt, session, reasonCode);
    connection.perform();
    connection.process(Date.now());
    this.touch(session);
  }

  /** What a share group's member has left, for another one: a message of its own, as sessions know those they were given. */
  passOn({ message, shared }: Delivery): void {
    if (shared === undefined) return;
    this.own.publish({ ...message, id: this.channelContext.messageId() }, shared, 0, Date.now());
  }

  publishWill(clientId: string, will: Will, now: number): void {
    const { payload, qos, retain, properties, messageExpiryInterval } = will;
    const { topic, delaySeconds } = parseDelayed(will.topic, now) ?? { topic: will.topic, delaySeconds: 0 };
    const expiresAt = messageExpiryInterval === undefined ? 0 : now + messageExpiryInterval * 1000;
    const id = this.channelContext.messageId();
    const message = { id, topic, payload, qos, retain, properties, expiresAt, from: clientId };
    this.own.publish(message, "", delaySeconds, now);
  }

  // ---- subscribe --------------------------------------------------------------------------------------------------

  /** SUBACK waits until the cluster knows the routes (G3), and the disk the subscriptions. */
  subscribe(connection: Connection, packetId: number, codes: number[], wanted: readonly Wanted[]): void {
    const session = connection.session!;
    if (this.core.outbox.full) {
      const refused = codes.map((code) => (code < 0x80 ? ReasonCode.QuotaExceeded : code));
      connection.channel.handleSubscribed(packetId, refused);
      return connection.perform();
    }
    const changes: RouteChange[] = [];
    for (const { subscription } of wanted) {
      const { filter } = subscription;
      if (session.changesWith(subscription)) this.sessions.keepAsSubscribed(session, filter);
      session.subscribe(subscription);
      const before = this.table.subscriber(filter, session.id);
      const subscriber = this.subscriberOf(session, subscription);
      const change = this.table.add(filter, subscriber);
      if (change) changes.push(change);
      if (before?.isLogged && !subscriber.isLogged) this.log.handleReaderLeft(filter);
    }
    const refused = new Set<string>();
    for (const change of changes)
      this.core.add(this.#routeRecord(change), (reasonCode) => {
        if (reasonCode >= 0x80) refused.add(change.key);
      });
    session.subscribing++;
    this.core.add(fenceRecord(), () => {
      session.subscribing--;
      if (this.sessions.has(session)) this.#handleSubscribed(connection, session, packetId, codes, wanted, refused);
      for (const { subscription } of wanted) this.table.saved(subscription.filter);
    });
  }

  /** @param refused filters whose routes the core does not have */
  #handleSubscribed(
    connection: Connection,
    session: Session,
    packetId: number,
    codes: number[],
    wanted: readonly Wanted[],
    refused: ReadonlySet<string>,
  ): void {
    // The client has left meanwhile: the session is to be saved and let go.
    if (!session.connected) session.changed();
    // Its subscriptions are to be found by it after a crash.
    if (!session.onDisk) this.sessions.save([session]);
    for (const { index, subscription, isNew } of wanted) {
      const { filter } = subscription;
      const current = session.subscriptions.get(filter);
      if (current && this.retained.wants(subscription, isNew)) session.readRetained(filter);
      // Another SUBSCRIBE has replaced it meanwhile.
      if (current !== subscription) continue;
      if (!refused.has(filter)) this.store.putSubscription(subscription, this.table.subscriber(filter, session.id)!);
      else {
        codes[index] = ReasonCode.UnspecifiedError;
        this.removeSubscription(session, filter);
      }
    }
    connection.channel.handleSubscribed(packetId, codes);
    connection.perform();
    this.touch(session);
    this.retained.read(session);
  }

  /** A subscription that is made now; one that takes the place of another goes on where that one began. */
  subscriberOf({ id: sessionId, durable }: Session, { filter, qos }: Subscription): Subscriber {
    const isLogged = durable && qos > 0 && !isShared(filter);
    const before = this.table.subscriber(filter, sessionId);
    return { sessionId, since: before?.isLogged === isLogged ? before.since : this.sequence.last, isLogged };
  }

  unsubscribe(connection: Connection, packetId: number, filters: readonly string[]): void {
    const session = connection.session!;
    const codes = filters.map((filter) =>
      this.removeSubscription(session, filter) ? ReasonCode.Success : ReasonCode.NoSubscriptionExisted,
    );
    connection.channel.handleUnsubscribed(packetId, codes);
    connection.perform();
  }

  removeSubscription(session: Session, filter: string): boolean {
    this.sessions.keepAsSubscribed(session, filter);
    if (!session.unsubscribe(filter)) return false;
    this.changeRoutes([this.table.remove(filter, session.id)]);
    this.store.deleteSubscription(session.id, filter);
    this.log.handleReaderLeft(filter);
    this.touch(session);
    return true;
  }

  changeRoutes(changes: readonly (RouteChange | undefined)[]): void {
    for (const change of changes) if (change) this.core.add(this.#routeRecord(change), () => {});
  }

  #routeRecord(change: RouteChange): Uint8Array {
    const version = this.sequence.next();
    if (change.kind === "remove") return removeRouteRecord(change.key, version);
    return addRouteRecord(change.key, change.members, version);
  }

  // ---- time -------------------------------------------------------------------------------------------------------

  /** Everything that is due; says when to ring next. */
  handleAlarm(now: number): void {
    let next = this.sessions.handleDue(now);
    if (this.own.isWaiting) next = Math.min(next, now + limits.ownMessagesRetryMs);
    for (const [sessionId, socket] of this.#sockets) {
      const connection = this.#connections.get(socket);
      const { lastSeen, keepAlive } = connection
        ? { lastSeen: connection.lastSeen, keepAlive: connection.facts?.keepAlive ?? 0 }
        : (socket.deserializeAttachment() as Attachment);
      if (keepAlive === 0) continue;
      const deadline = lastSeen + keepAlive * 1500; // [MQTT-3.1.2-22]
      if (deadline > now) next = Math.min(next, deadline);
      else
        this.connectionOf(sessionId)?.fail(
          new MqttError(ReasonCode.KeepAliveTimeout, `silent for ${keepAlive * 1.5} s`),
        );
    }
    if (next < Infinity) this.host.ringAt(next);
  }

  stats(): NodeStats {
    this.sessions.saveNew();
    const { all, shared } = this.store.subscriptionCounts();
    return {
      startedAt: this.#startedAt,
      stats: {
        "connections.count": this.connectionCount,
        "live_connections.count": this.#sockets.size,
        "sessions.count": this.store.count(),
        "subscriptions.count": all,
        "subscriptions.shared.count": shared,
      },
      metrics: this.metrics.all(),
    };
  }
}
