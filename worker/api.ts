/**
 * The API of operators, under /api/v5: EMQX's paths, names and JSON (https://docs.emqx.com/en/emqx/latest/admin/api.html),
 * as far as this broker has what they are about.
 *
 *   {"data": [...], "meta": {"page": 1, "limit": 100, "count": 3, "hasnext": false}}
 *   {"code": "CLIENTID_NOT_FOUND", "message": "..."}
 *
 * Every request carries the operators' bearer token; without one configured the answer is 401 to all. One core of this
 * deployment answers, the first that can; it asks the nodes. Bodies are not read: no request has a need of one.
 *
 * Not EMQX's, which has these for its control command alone: PUT /cluster/:node/join, DELETE /cluster (leave) and
 * PUT /cluster/discovery (enable).
 */
import type { Context } from "hono";
import { Hono } from "hono/tiny";

import type { Settings } from "../cluster/config.ts";
import { parseNodeName, type NodeName } from "../cluster/name.ts";
import { limits } from "../mqtt/limits.ts";
import type { AdminAnswer, ClusterView, CoreAdminRpc, Found, NodeInfo, Page, Slice } from "../durable-objects/rpc.ts";
import { isOperator } from "./operator.ts";
import { refuseOrigin } from "./origin.ts";

export const apiPath = "/api/v5";

interface Surroundings {
  readonly env: Env;
  readonly settings: Settings;
}

type ApiContext = Context<{ Bindings: Surroundings }>;

/** What a request is answered with when it is not granted; the codes are EMQX's. */
class ApiError extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// ---- cluster ----------------------------------------------------------------------------------------------------------

async function cluster(c: ApiContext) {
  const { name, self, nodes } = (await askCore(c)).view;
  const named = (status: string) => nodes.filter((node) => node.status === status).map((node) => node.name);
  return c.json({ name, self, nodes: named("running"), stopped_nodes: named("stopped") });
}

/** The replicants of each running core, and how far their copies are, by mria's names. */
async function topology(c: ApiContext) {
  const { nodes } = (await askCore(c)).view;
  const cores = nodes.filter(({ role, status }) => role === "core" && status === "running");
  return c.json(
    cores.map(({ name: core_node }) => ({
      core_node,
      replicant_nodes: nodes
        .filter(({ role, home }) => role === "replicant" && home === core_node)
        .map(({ name: node, replication }) => ({
          node,
          lag: replication?.lag,
          bootstrap_time: replication?.bootstrapTimeMs,
          bootstrap_num_keys: replication?.bootstrapKeys,
        })),
    })),
  );
}

async function join(c: ApiContext) {
  return done(c, await (await askCore(c)).core.join(nodeParam(c)), 200);
}

async function invite(c: ApiContext) {
  return done(c, await (await askCore(c)).core.invite(nodeParam(c)), 200);
}

async function forceLeave(c: ApiContext) {
  return done(c, await (await askCore(c)).core.forceLeave(nodeParam(c)), 204);
}

async function leave(c: ApiContext) {
  return done(c, await (await askCore(c)).core.leave(), 204);
}

async function enableDiscovery(c: ApiContext) {
  return done(c, await (await askCore(c)).core.enableDiscovery(), 200);
}

function done(c: ApiContext, answer: AdminAnswer, status: 200 | 204): Response {
  if (answer.ok) return c.body(null, status);
  throw new ApiError(400, "BAD_REQUEST", `${answer.code}: ${answer.message}`);
}

// ---- nodes ------------------------------------------------------------------------------------------------------------

async function nodes(c: ApiContext) {
  return c.json(await (await askCore(c)).core.nodes(undefined));
}

async function node(c: ApiContext) {
  const name = nodeParam(c);
  const [info]: readonly NodeInfo[] = await (await askCore(c)).core.nodes(name);
  if (!info) throw noMember(name);
  return c.json(info);
}

/** EMQX's without `aggregate`. */
async function metrics(c: ApiContext) {
  return c.json(await (await askCore(c)).core.metrics());
}

// ---- topics -----------------------------------------------------------------------------------------------------------

async function topics(c: ApiContext) {
  const query = readQuery(c, ["topic", "node"]);
  const { core } = await askCore(c);
  return page(c, await core.topics({ topic: query["topic"], node: nodeOf(query) }, sliceOf(c)));
}

async function topic(c: ApiContext) {
  const { core } = await askCore(c);
  const all = { offset: 0, limit: limits.adminPageItemsMax };
  const { count, items } = await core.topics({ topic: c.req.param("topic") }, all);
  if (items.length < count) throw tooLarge("there are too many routes of this topic: ask for pages, by /topics?topic=");
  if (items.length === 0) throw new ApiError(404, "TOPIC_NOT_FOUND", "there is no route of this topic");
  return c.json(items);
}

// ---- clients ----------------------------------------------------------------------------------------------------------

async function clients(c: ApiContext) {
  const node = nodeOf(readQuery(c, ["node"]));
  const { core, view } = await askCore(c);
  return page(c, await core.clients(memberOf(view, node), sliceOf(c)));
}

async function client(c: ApiContext) {
  const { core } = await askCore(c);
  return c.json(foundOf(await core.client(clientParam(c))));
}

async function kick(c: ApiContext) {
  const { core } = await askCore(c);
  foundOf(await core.kick(clientParam(c)));
  return c.body(null, 204);
}

async function subscriptions(c: ApiContext) {
  const { clientid, topic, qos, ...rest } = readQuery(c, ["clientid", "topic", "qos", "node"]);
  if (qos !== undefined && !/^[012]$/.test(qos)) throw invalid(`qos=${qos}: allowed are 0, 1 and 2`);
  const { core, view } = await askCore(c);
  const node = memberOf(view, nodeOf(rest));
  const query = { node, clientid, topic, qos: qos === undefined ? undefined : Number(qos) };
  return page(c, await core.subscriptions(query, sliceOf(c)));
}

/** A client that was not found may be on a node that did not answer. */
function foundOf<T>({ found, silent }: Found<T>): T {
  if (found !== undefined) return found;
  if (silent.length > 0) throw new ApiError(503, "NODE_DOWN", `${silent.join(", ")}: no answer`);
  throw new ApiError(404, "CLIENTID_NOT_FOUND", "there is no session of this client id");
}

// ---- what a request says ----------------------------------------------------------------------------------------------

type Query = Readonly<Record<string, string | undefined>>;

/** Beside `page` and `limit` only these: a filter that is not known would be one that does not filter. */
function readQuery(c: ApiContext, names: readonly string[]): Query {
  const query = c.req.query();
  for (const name of Object.keys(query))
    if (!["page", "limit", ...names].includes(name))
      throw invalid(`${JSON.stringify(name)}: allowed are page, limit, ${names.join(", ")}`);
  return query;
}

function sliceOf(c: ApiContext): Slice & { readonly page: number } {
  const page = numberOf(c, "page", 1, Number.MAX_SAFE_INTEGER / limits.adminPageItemsMax);
  const limit = numberOf(c, "limit", 100, limits.adminPageItemsMax);
  return { page, limit, offset: (page - 1) * limit };
}

function numberOf(c: ApiContext, name: string, byDefault: number, max: number): number {
  const text = c.req.query(name) ?? String(byDefault);
  const number = /^\d{1,15}$/.test(text) ? Number(text) : 0;
  if (number < 1 || number > max)
    throw invalid(`page_limit_invalid: ${name}=${text.slice(0, 20)}: allowed are numbers from 1 to ${Math.floor(max)}`);
  return number;
}

function nodeParam(c: ApiContext): NodeName {
  return nodeNameOf(c.req.param("node") ?? "", "BAD_REQUEST");
}

function nodeOf({ node }: Query): NodeName | undefined {
  return node === undefined ? undefined : nodeNameOf(node, "INVALID_PARAMETER");
}

function nodeNameOf(text: string, code: string): NodeName {
  try {
    parseNodeName(text);
    return text;
  } catch (error) {
    throw new ApiError(400, code, (error as Error).message);
  }
}

function memberOf(view: ClusterView, node: NodeName | undefined): NodeName | undefined {
  if (node !== undefined && !view.nodes.some(({ name }) => name === node)) throw noMember(node);
  return node;
}

function clientParam(c: ApiContext): string {
  return c.req.param("clientid") ?? "";
}

function noMember(node: NodeName): ApiError {
  return new ApiError(404, "NOT_FOUND", `${node} is not a node of this cluster`);
}

function tooLarge(message: string): ApiError {
  return new ApiError(400, "PAGE_TOO_LARGE", message);
}

function invalid(message: string): ApiError {
  return new ApiError(400, "INVALID_PARAMETER", message);
}

// ---- what it is answered ----------------------------------------------------------------------------------------------

function page<T>(c: ApiContext, { count, items, isCut, silent }: Page<T>): Response {
  const { page, limit, offset } = sliceOf(c);
  if (isCut) throw tooLarge(`limit=${limit}: this page is too large to be given: ask for fewer`);
  const meta = { page, limit, count, hasnext: offset + limit < count };
  return c.json({ data: items, meta: silent.length > 0 ? { ...meta, silent_nodes: silent } : meta });
}

function failure({ status, code, message }: ApiError): Response {
  return Response.json({ code, message }, { status });
}

/** The first core of this deployment that answers. What follows is asked of it alone: `leave` is not for just any core. */
async function askCore({ env: { env, settings } }: ApiContext): Promise<{ core: CoreAdminRpc; view: ClusterView }> {
  for (const name of settings.cluster.core_nodes) {
    try {
      const core: CoreAdminRpc = env.COORDINATOR.getByName(name);
      return { core, view: await core.clusterView() };
    } catch (error) {
      console.error(`${name} gave no answer for operators: ${String(error)}`);
    }
  }
  throw new ApiError(503, "SERVICE_UNAVAILABLE", "no core of this deployment answers");
}

// ---- routes -----------------------------------------------------------------------------------------------------------

const routes: Readonly<Record<string, Readonly<Record<string, (c: ApiContext) => Promise<Response>>>>> = {
  "/cluster": { GET: cluster, DELETE: leave },
  "/cluster/topology": { GET: topology },
  "/cluster/discovery": { PUT: enableDiscovery },
  "/cluster/:node/join": { PUT: join },
  "/cluster/:node/invite": { PUT: invite },
  "/cluster/:node/force_leave": { DELETE: forceLeave },
  "/nodes": { GET: nodes },
  "/nodes/:node": { GET: node },
  "/metrics": { GET: metrics },
  "/topics": { GET: topics },
  "/topics/:topic": { GET: topic },
  "/clients": { GET: clients },
  "/clients/:clientid": { GET: client, DELETE: kick },
  "/subscriptions": { GET: subscriptions },
};

const app = new Hono<{ Bindings: Surroundings }>().basePath(apiPath);
// The router takes a path with a slash at its end for the one without: `/clients/` would be all, not the client "".
app.use((c, next) => (c.req.path.endsWith("/") ? Promise.resolve(c.notFound()) : next()));
for (const [path, handlers] of Object.entries(routes)) {
  for (const [method, handle] of Object.entries(handlers)) app.on(method, path, handle);
  const allowed = Object.keys(handlers).join(", ");
  app.all(path, () => {
    const response = failure(new ApiError(405, "METHOD_NOT_ALLOWED", `allowed here: ${allowed}`));
    response.headers.set("Allow", allowed);
    return response;
  });
}
app.notFound(() => failure(new ApiError(404, "NOT_FOUND", "there is nothing at this path")));
app.onError((error) => {
  if (error instanceof ApiError) return failure(error);
  console.error("a request of an operator failed:", error);
  return failure(new ApiError(500, "INTERNAL_ERROR", "the broker failed here: see its log"));
});

/** Answers a request under `apiPath`. */
export async function answerOperator(request: Request, env: Env, settings: Settings): Promise<Response> {
  const refusal = refuseOrigin(request, new URL(request.url), settings.origins, env.LOOPBACK === "true");
  if (refusal !== undefined) return failure(new ApiError(403, "FORBIDDEN", refusal));
  const response = await answer(request, env, settings);
  const origin = request.headers.get("Origin");
  // Other pages than the listed ones are given nothing to read.
  if (origin !== null && (settings.origins.includes(origin) || settings.origins.includes("*"))) {
    response.headers.set("Access-Control-Allow-Origin", origin);
    response.headers.set("Vary", "Origin");
  }
  return response;
}

async function answer(request: Request, env: Env, settings: Settings): Promise<Response> {
  // A browser asks first, and without the token.
  if (request.method === "OPTIONS" && request.headers.has("Access-Control-Request-Method"))
    return new Response(null, {
      status: 204,
      headers: { "Access-Control-Allow-Methods": "GET, PUT, DELETE", "Access-Control-Allow-Headers": "Authorization" },
    });
  if (!isOperator(request, env)) {
    const response = failure(new ApiError(401, "BAD_TOKEN", "Authorization: Bearer with the API token is needed"));
    response.headers.set("WWW-Authenticate", "Bearer");
    return response;
  }
  return app.fetch(request, { env, settings });
}
