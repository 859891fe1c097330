/**
 * What a core lists for operators: its own table of routes, and what the nodes have.
 *
 * A list of several nodes is one list, node by node. Each is asked first how much it has, all at once; then those that
 * have a part of the page give it, in slices. A node that does not answer in time is left out and named. Between the two
 * questions clients come and go: a list is not a snapshot.
 */
import type { NodeName } from "../../cluster/name.ts";
import { limits } from "../../mqtt/limits.ts";
import type {
  ClientInfo,
  Found,
  Listed,
  MemberView,
  NodeInfo,
  NodeMetrics,
  NodeRpc,
  Page,
  RouteInfo,
  Slice,
  SubscriptionInfo,
  SubscriptionQuery,
  TopicQuery,
} from "../rpc.ts";
import type { Sql } from "../schema.ts";
import type { Core } from "./core.ts";

export class CoreAdmin {
  readonly #core: Core;

  constructor(core: Core) {
    this.#core = core;
  }

  // ---- routes -----------------------------------------------------------------------------------------------------

  topics({ topic, node }: TopicQuery, { offset, limit }: Slice): Page<RouteInfo> {
    const sql: Sql = this.#core.host.storage.sql;
    const conditions: string[] = ["TRUE"];
    const bindings: string[] = [];
    if (topic !== undefined) {
      conditions.push(
        `(key = ? OR key = '$queue/' || ?
          OR (key >= '$share/' AND key < '$share0' AND substr(key, instr(substr(key, 8), '/') + 8) = ?))`,
      );
      bindings.push(topic, topic, topic);
    }
    if (node !== undefined) {
      conditions.push("node = ?");
      bindings.push(node);
    }
    const from = `FROM route WHERE ${conditions.join(" AND ")}`;
    const { count } = sql.exec<{ count: number }>(`SELECT count(*) AS count ${from}`, ...bindings).one();
    const rows = sql.exec<{ topic: string; node: string }>(
      `SELECT key AS topic, node ${from} ORDER BY key, node LIMIT ? OFFSET ?`,
      ...bindings,
      limit,
      offset,
    );
    const page = new GrowingPage<RouteInfo>(limit);
    for (const route of rows) {
      page.add(route);
      if (page.isCut) break;
    }
    return { count, items: page.items, isCut: page.isCut, silent: [] };
  }

  // ---- nodes ------------------------------------------------------------------------------------------------------

  async nodes(only: NodeName | undefined): Promise<NodeInfo[]> {
    const { nodes } = this.#core.mesh.cluster.view();
    const wanted = nodes.filter(({ name }) => only === undefined || name === only);
    return Promise.all(wanted.map((member) => this.#nodeInfo(member)));
  }

  async #nodeInfo({ name, role, status }: MemberView): Promise<NodeInfo> {
    const core = this.#core;
    const about = { node: name, role, node_status: status };
    if (name === core.name) return { ...about, uptime: Date.now() - core.startedAt };
    if (role === "core" || status === "stopped") return about;
    const answer = await this.#ask(name, (node) => node.stats());
    if (!answer) return about;
    const { startedAt, stats } = answer;
    return {
      ...about,
      uptime: Date.now() - startedAt,
      connections: stats["connections.count"],
      live_connections: stats["live_connections.count"],
    };
  }

  async metrics(): Promise<NodeMetrics[]> {
    const core = this.#core;
    // Its own first: the calls to the nodes are not among what it shows.
    const own: NodeMetrics = { node: core.name, ...core.metrics.all() };
    const nodes = core.mesh.members.nodes().map(async ({ name }): Promise<NodeMetrics[]> => {
      const answer = await this.#ask(name, (node) => node.stats());
      return answer ? [{ node: name, ...answer.metrics }] : [];
    });
    return [own, ...(await Promise.all(nodes)).flat()];
  }

  // ---- clients ----------------------------------------------------------------------------------------------------

  clients(node: NodeName | undefined, slice: Slice): Promise<Page<ClientInfo>> {
    return this.#list(node, slice, (rpc, part) => rpc.clients(part));
  }

  subscriptions({ node, ...query }: SubscriptionQuery, slice: Slice): Promise<Page<SubscriptionInfo>> {
    return this.#list(node, slice, (rpc, part) => rpc.subscriptions(query, part));
  }

  /** The first of its holders is the one that claimed it last. */
  async client(clientId: string): Promise<Found<ClientInfo>> {
    const silent: NodeName[] = [];
    for (const name of await this.#core.mesh.holdersOf(clientId)) {
      const answer = await this.#ask(name, async (node) => ({ found: await node.client(clientId) }));
      if (!answer) silent.push(name);
      else if (answer.found) return { found: answer.found, silent };
    }
    return { found: undefined, silent };
  }

  /** Wherever something of it is. */
  async kick(clientId: string): Promise<Found<true>> {
    const holders = await this.#core.mesh.holdersOf(clientId);
    const answers = await Promise.all(
      holders.map((name) => this.#ask(name, async (node) => ({ isKicked: await node.kick(clientId) }))),
    );
    const isKicked = answers.some((answer) => answer?.isKicked);
    return { found: isKicked || undefined, silent: holders.filter((_, index) => !answers[index]) };
  }

  async #list<T extends object>(
    only: NodeName | undefined,
    { offset, limit }: Slice,
    list: (node: NodeRpc, slice: Slice) => Promise<Listed<T>>,
  ): Promise<Page<T>> {
    const { nodes } = this.#core.mesh.cluster.view();
    const members = nodes.filter(({ name, role }) => role === "replicant" && (only === undefined || name === only));
    const ask = (name: NodeName, part: Slice) => this.#ask(name, (node) => list(node, part));
    const counts = await Promise.all(
      members.map(async ({ name, status }) =>
        status === "running" ? (await ask(name, { offset: 0, limit: 0 }))?.count : undefined,
      ),
    );
    const page = new GrowingPage<T>(limit);
    const silent: NodeName[] = [];
    let count = 0;
    for (const [index, { name }] of members.entries()) {
      const here = counts[index];
      const first = Math.max(offset - count, 0);
      count += here ?? 0;
      const hasAnswered = here !== undefined && (await fill(page, first, here, (part) => ask(name, part)));
      if (!hasAnswered) silent.push(name);
    }
    return { count, items: page.items, isCut: page.isCut, silent };
  }

  /** undefined: the node does not answer. */
  async #ask<T>(name: NodeName, call: (node: NodeRpc) => Promise<T>): Promise<T | undefined> {
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => late.reject(new Error("it took too long")), limits.adminCallMsMax);
    try {
      return await Promise.race([call(this.#core.mesh.nodeAt(name)), late.promise]);
    } catch (error) {
      console.error(`${name} gave no answer for operators: ${String(error)}`);
      return undefined;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Takes one node's part of a page. @returns whether the node has answered. */
async function fill<T extends object>(
  page: GrowingPage<T>,
  first: number,
  end: number,
  ask: (part: Slice) => Promise<Listed<T> | undefined>,
): Promise<boolean> {
  for (let offset = first; offset < end && page.room > 0;) {
    const listed = await ask({ offset, limit: Math.min(page.room, limits.adminChunkItemsMax) });
    if (!listed) return false;
    if (listed.items.length === 0) break;
    for (const item of listed.items) page.add(item);
    offset += listed.items.length;
  }
  return true;
}

/** A page as it grows: what clients have chosen (ids, filters) may be long. */
class GrowingPage<T extends object> {
  readonly items: T[] = [];
  isCut = false;
  #chars = 0;
  readonly #limit: number;

  constructor(limit: number) {
    this.#limit = limit;
  }

  get room(): number {
    return this.isCut ? 0 : this.#limit - this.items.length;
  }

  add(item: T): void {
    for (const value of Object.values(item)) if (typeof value === "string") this.#chars += value.length;
    this.isCut ||= this.#chars > limits.adminPageCharsMax;
    if (!this.isCut) this.items.push(item);
  }
}
