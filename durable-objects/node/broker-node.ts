import { DurableObject } from "cloudflare:workers";
import { readSettings } from "../../cluster/config.ts";
import { parseNodeName, type NodeName } from "../../cluster/name.ts";
import { chooseSubprotocol } from "../../mqtt/subprotocol.ts";
import { Alarm } from "../alarm.ts";
import { countedCalls } from "../counted-calls.ts";
import { Line, overLine } from "../line.ts";
import { Metrics } from "../metrics.ts";
import type {
  ClientInfo,
  CoordinatorRpc,
  Holdings,
  Listed,
  NodeRoutes,
  NodeRpc,
  NodeStats,
  RegistryMove,
  Slice,
  StoredDelivery,
  SubscriptionInfo,
  SubscriptionQuery,
  TakenOver,
} from "../rpc.ts";
import { Broker } from "./broker.ts";
import { holdingsOf, routesOf } from "./inventory.ts";
import { NodeAdmin } from "./node-admin.ts";
import { Takeover } from "./takeover.ts";

const subprotocolHeader = "Sec-WebSocket-Protocol";

/** A node of the cluster, named `name@host`: WebSockets, alarm, storage and RPC for the Broker that decides. */
export class BrokerNode extends DurableObject<Env> implements NodeRpc {
  readonly #broker: Broker;
  readonly #alarm: Alarm;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    const name = ctx.id.name ?? "";
    parseNodeName(name);
    const settings = readSettings(env);
    const metrics = new Metrics();
    const addCall = (): void => void metrics["rpc.calls"]++;
    this.#alarm = new Alarm(ctx.storage, () => void metrics["alarms.set"]++);
    this.#broker = new Broker(name, settings, {
      metrics,
      storage: ctx.storage,
      sockets: ctx.getWebSockets(),
      coreAt: (core: NodeName) =>
        overLine(countedCalls<CoordinatorRpc>(env.COORDINATOR.getByName(core), addCall), "route"),
      nodeAt: (node: NodeName) => countedCalls<NodeRpc>(env.NODE.getByName(node), addCall),
      ringAt: (at) => this.#alarm.ringAt(at),
    });
  }

  /** The upgrade of one client, checked by the worker; 503 when the node is full, so that it tries the next one. */
  override fetch(request: Request): Response {
    if (this.#broker.connectionCount >= this.#broker.settings.node.max_connections)
      return new Response("the node is full\n", { status: 503 });
    const { 0: client, 1: server } = new WebSocketPair();
    this.ctx.acceptWebSocket(server);
    this.#broker.accept(server, peerOf(request));
    const subprotocol = chooseSubprotocol(request.headers.get(subprotocolHeader)) ?? "mqtt";
    return new Response(null, { status: 101, webSocket: client, headers: { [subprotocolHeader]: subprotocol } });
  }

  override webSocketMessage(socket: WebSocket, data: string | ArrayBuffer): void {
    this.#broker.connection(socket)?.receive(data, Date.now());
  }

  override webSocketClose(socket: WebSocket): void {
    this.#broker.connection(socket)?.handleSocketClosed(Date.now());
    // Without an answer to its close the client hangs.
    this.#broker.closeAtTurnsEnd(socket);
  }

  override webSocketError(socket: WebSocket): void {
    this.#broker.connection(socket)?.handleSocketClosed(Date.now());
  }

  override alarm(): void {
    this.#alarm.rang();
    this.#broker.handleAlarm(Date.now());
  }

  // ---- NodeRpc ----------------------------------------------------------------------------------------------------

  async forward(batch: Uint8Array): Promise<Uint8Array> {
    return this.#broker.dispatcher.dispatch(batch);
  }

  /** See `overLine`. */
  open(): Line {
    return new Line((batch) => this.forward(batch));
  }

  takeOver(clientId: string, epoch: number, resume: boolean): Promise<TakenOver> {
    return this.#broker.claims.takeOver(clientId, epoch, resume);
  }

  async takeOverKnown(clientId: string, epoch: number): Promise<Uint8Array> {
    return new Takeover(this.#broker, clientId, epoch).known();
  }

  async takeOverMessages(clientId: string, epoch: number, afterSeq: number): Promise<StoredDelivery[]> {
    return new Takeover(this.#broker, clientId, epoch).messages(afterSeq);
  }

  async takeOverDone(clientId: string, epoch: number, known: Uint8Array): Promise<void> {
    new Takeover(this.#broker, clientId, epoch).done(known);
  }

  async routes(after: string): Promise<NodeRoutes> {
    return routesOf(this.#broker, after);
  }

  async holdings(move: RegistryMove, after: string): Promise<Holdings> {
    return holdingsOf(this.#broker, move, after);
  }

  async stats(): Promise<NodeStats> {
    return this.#broker.stats();
  }

  // ---- NodeAdminRpc -----------------------------------------------------------------------------------------------

  async clients(slice: Slice): Promise<Listed<ClientInfo>> {
    return new NodeAdmin(this.#broker).clients(slice);
  }

  async client(clientId: string): Promise<ClientInfo | undefined> {
    return new NodeAdmin(this.#broker).client(clientId);
  }

  async kick(clientId: string): Promise<boolean> {
    return new NodeAdmin(this.#broker).kick(clientId);
  }

  async subscriptions(query: SubscriptionQuery, slice: Slice): Promise<Listed<SubscriptionInfo>> {
    return new NodeAdmin(this.#broker).subscriptions(query, slice);
  }
}

/**
 * Where a client connects from: workerd says it in `cf`, with the port; Cloudflare in a header, which there nobody else
 * can set.
 */
function peerOf(request: Request): string | undefined {
  const { clientIp, colo } = (request.cf ?? {}) as { clientIp?: string; colo?: string };
  return clientIp ?? (colo === undefined ? undefined : (request.headers.get("CF-Connecting-IP") ?? undefined));
}
