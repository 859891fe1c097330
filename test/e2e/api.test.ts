// The API of operators, asked over HTTP while real clients are connected.

import { request } from "node:http";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import type { ClientInfo, RouteInfo, SubscriptionInfo } from "../../durable-objects/rpc.ts";
import { startBroker, type Broker } from "../support/broker.ts";
import { connect, converseConnected, range, slot } from "../support/client.ts";

const token = "an operator's token";
const core = "core@local.emqxcl";
const dashboard = "https://dash.example.com";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker({
    env: { TRELLIS_API_TOKEN: token, TRELLIS_ORIGINS: JSON.stringify([dashboard]), TRELLIS_NODE__SLOTS: "4" },
  });
});

afterAll(() => broker.stop());

interface Ask {
  readonly method?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

/** With the token, unless the headers say otherwise. */
function ask(path: string, { method = "GET", headers = {} }: Ask = {}): Promise<Response> {
  return fetch(`http://127.0.0.1:${broker.port}/api/v5${path}`, {
    method,
    headers: { Authorization: `Bearer ${token}`, ...headers },
  });
}

async function get<T>(path: string): Promise<T> {
  const response = await ask(path);
  expect({ path, status: response.status }).toEqual({ path, status: 200 });
  return (await response.json()) as T;
}

async function refusal(path: string, options: Ask = {}): Promise<{ status: number; code: string; message: string }> {
  const response = await ask(path, options);
  const { code, message } = (await response.json()) as { code: string; message: string };
  return { status: response.status, code, message };
}

interface List<T> {
  readonly data: readonly T[];
  readonly meta: { readonly page: number; readonly limit: number; readonly count: number; readonly hasnext: boolean };
}

/** The clients of the tests before leave while a list is read, if they are not gone. */
async function whenEmpty(path: string): Promise<void> {
  await expect.poll(async () => (await get<List<unknown>>(path)).data).toEqual([]);
}

const encoded = encodeURIComponent;

/** The status of a request that `fetch` would not send as it is. */
function statusOf(path: string, headers: Readonly<Record<string, string>> = {}): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const asked = request({ port: broker.port, path, headers }, (response) => {
      response.resume();
      resolve(response.statusCode);
    });
    asked.on("error", reject).end();
  });
}

describe("[G9] who may ask", () => {
  test.each(["", "Bearer ", "Bearer wrong", `Bearer ${token}x`, `Bearer ${token.slice(1)}`, token, "Basic YTpi"])(
    "not who comes with %j",
    async (authorization) => {
      for (const [method, path] of [
        ["GET", "/clients"],
        ["DELETE", "/clients/anyone"],
        ["GET", "/nothing"],
        ["DELETE", "/cluster"],
      ] as const) {
        const response = await ask(path, { method, headers: { Authorization: authorization } });
        expect(response.status).toBe(401);
        expect(response.headers.get("WWW-Authenticate")).toBe("Bearer");
        expect(await response.json()).toEqual({ code: "BAD_TOKEN", message: expect.any(String) as unknown });
      }
    },
  );

  test("nobody where no token is configured", async () => {
    const other = await startBroker();
    try {
      for (const authorization of ["Bearer ", "Bearer undefined", `Bearer ${token}`]) {
        const response = await fetch(`http://127.0.0.1:${other.port}/api/v5/cluster`, {
          headers: { Authorization: authorization },
        });
        expect(response.status).toBe(401);
      }
    } finally {
      await other.stop();
    }
  });

  test("no page of another origin, even with the token; one on the list may ask and read", async () => {
    const evil = await ask("/cluster", { headers: { Origin: "https://evil.example.com" } });
    expect(evil.status).toBe(403);
    const listed = await ask("/cluster", { headers: { Origin: dashboard } });
    expect(listed.status).toBe(200);
    expect(listed.headers.get("Access-Control-Allow-Origin")).toBe(dashboard);
    const preflight = { "Access-Control-Request-Method": "DELETE", Authorization: "" };
    const asked = await ask("/clients/c", { method: "OPTIONS", headers: { ...preflight, Origin: dashboard } });
    expect(asked.status).toBe(204);
    expect(asked.headers.get("Access-Control-Allow-Origin")).toBe(dashboard);
    const refused = await ask("/clients/c", {
      method: "OPTIONS",
      headers: { ...preflight, Origin: "https://evil.eu" },
    });
    expect(refused.status).toBe(403);
    const near = await ask("/cluster", { headers: { Origin: "http://localhost:3000" } });
    expect(near.status).toBe(200);
    for (const { headers } of [evil, refused, near, await ask("/cluster")])
      expect(headers.get("Access-Control-Allow-Origin")).toBeNull();
  });
});

describe("what is no request", () => {
  test("an unknown path is 404, a known one with another method 405 with what is allowed, both as JSON", async () => {
    for (const path of ["/", "/nothing", "/clients/a/b", "/clients/", "/cluster/x"])
      expect(await refusal(path)).toMatchObject({ status: 404, code: "NOT_FOUND" });
    for (const [method, path, allow] of [
      ["POST", "/clients", "GET"],
      ["PUT", "/clients/c", "GET, DELETE"],
      ["GET", `/cluster/${core}/invite`, "PUT"],
      ["OPTIONS", "/nodes", "GET"],
    ] as const) {
      const response = await ask(path, { method });
      expect({ path, status: response.status, allow: response.headers.get("Allow") }).toEqual({
        path,
        status: 405,
        allow,
      });
      expect(await response.json()).toMatchObject({ code: "METHOD_NOT_ALLOWED" });
    }
  });

  test.each([
    ["/clients?limit=0", "limit"],
    ["/clients?limit=1001", "limit"],
    ["/clients?limit=1e3", "limit"],
    ["/clients?page=0", "page"],
    ["/clients?page=-1", "page"],
    ["/clients?page=999999999999999", "page"],
    ["/clients?like_clientid=c", "like_clientid"],
    ["/clients?node=nowhere", "nowhere"],
    ["/subscriptions?qos=3", "qos"],
    ["/topics?clientid=c", "clientid"],
    ["/cluster/nowhere/force_leave", "nowhere"],
  ])("%s: 400, and says what is allowed", async (path, named) => {
    const { status, message } = await refusal(path, path.endsWith("leave") ? { method: "DELETE" } : {});
    expect(status).toBe(400);
    expect(message).toContain(named);
    expect(message).not.toContain("\n");
  });

  test("a path that is no path, and a body that nobody wants, do no harm", async () => {
    const authorization = { Authorization: `Bearer ${token}` };
    expect(await statusOf("/api/v5/clients/%zz%00%ff", authorization)).toBe(404);
    expect(await statusOf("/api/v5/topics/%", authorization)).toBe(404);
    expect(await statusOf("/api/v5/../api/v5/clients/../cluster", authorization)).toBe(404);
    const response = await fetch(`http://127.0.0.1:${broker.port}/api/v5/cluster/${core}/invite`, {
      method: "PUT",
      headers: authorization,
      body: "x".repeat(10_000),
    });
    expect(response.status).toBe(400);
  });
});

describe("the cluster", () => {
  test("/cluster, /cluster/topology and /nodes show the core and the nodes that have clients", async () => {
    await connect(broker.urlOf(slot(0)));
    await connect(broker.urlOf(slot(1)));
    expect(await get("/cluster")).toEqual({
      name: "emqxcl",
      self: core,
      nodes: expect.arrayContaining([core, slot(0), slot(1)]) as unknown,
      stopped_nodes: [],
    });
    // A node is a replicant of the core that has taken its routes in.
    const replicant = (node: string) => ({ node, lag: 0, bootstrap_num_keys: 0, bootstrap_time: expect.any(Number) });
    expect(await get("/cluster/topology")).toEqual([
      { core_node: core, replicant_nodes: expect.arrayContaining([replicant(slot(0)), replicant(slot(1))]) as unknown },
    ]);
    const node = await get<Record<string, unknown>>(`/nodes/${slot(1)}`);
    expect(node).toMatchObject({ node: slot(1), role: "replicant", node_status: "running", live_connections: 1 });
    expect(node["uptime"]).toEqual(expect.any(Number));
    const nodes = await get<Record<string, unknown>[]>("/nodes");
    expect(nodes[0]).toMatchObject({ node: core, role: "core", node_status: "running" });
    expect(nodes.map(({ node }) => node)).toEqual(expect.arrayContaining([slot(0), slot(1)]));
    expect(await refusal(`/nodes/${slot(3)}`)).toMatchObject({ status: 404, code: "NOT_FOUND" });
  });

  test("a cluster of one core refuses with EMQX's words", async () => {
    for (const [method, path, reason] of [
      ["PUT", `/cluster/${core}/join`, /^ignore: /],
      ["PUT", `/cluster/${core}/invite`, /^ignore: /],
      ["DELETE", `/cluster/${core}/force_leave`, /^ignore: /],
      ["DELETE", "/cluster", /^node_not_in_cluster: /],
    ] as const) {
      const { status, code, message } = await refusal(path, { method });
      expect({ path, status, code }).toEqual({ path, status: 400, code: "BAD_REQUEST" });
      expect(message).toMatch(reason);
    }
  });
});

describe("topics", () => {
  test("are the routes of all nodes, ordered, shared ones by their group", async () => {
    const [a, b] = [await connect(broker.urlOf(slot(0))), await connect(broker.urlOf(slot(1)))];
    await a.subscribe(["topics/+/x", "$share/g/topics/+/x", "$queue/topics/+/x"]);
    await b.subscribe(["topics/+/x", "topics/y", "$share/h/topics/+/x"]);
    const routes: RouteInfo[] = [
      { topic: "$queue/topics/+/x", node: slot(0) },
      { topic: "$share/g/topics/+/x", node: slot(0) },
      { topic: "$share/h/topics/+/x", node: slot(1) },
      { topic: "topics/+/x", node: slot(0) },
      { topic: "topics/+/x", node: slot(1) },
    ];
    expect(await get(`/topics/${encoded("topics/+/x")}`)).toEqual(routes);
    const { data, meta } = await get<List<RouteInfo>>(`/topics?topic=${encoded("topics/+/x")}`);
    expect(data).toEqual(routes);
    expect(meta).toEqual({ page: 1, limit: 100, count: 5, hasnext: false });
    expect(await get(`/topics/${encoded("$share/g/topics/+/x")}`)).toEqual([routes[1]]);
    const second = await get<List<RouteInfo>>(`/topics?topic=${encoded("topics/+/x")}&page=2&limit=2`);
    expect(second).toEqual({ data: routes.slice(2, 4), meta: { page: 2, limit: 2, count: 5, hasnext: true } });
    const there = await get<List<RouteInfo>>(`/topics?node=${slot(1)}`);
    expect(there.data.map(({ topic }) => topic)).toEqual(expect.arrayContaining(["topics/+/x", "topics/y"]));
    expect(new Set(there.data.map(({ node }) => node))).toEqual(new Set([slot(1)]));
    expect(await refusal("/topics/topics%2Fnone")).toMatchObject({ status: 404, code: "TOPIC_NOT_FOUND" });
    await b.unsubscribe("topics/y");
    // UNSUBACK is its node's: the core hears of it when it does.
    await expect.poll(() => refusal("/topics/topics%2Fy")).toMatchObject({ status: 404 });
  });
});

describe("clients", () => {
  test("one is shown as it has connected", async () => {
    const before = Date.now();
    const client = await connect(broker.urlOf(slot(2)), {
      clientId: "shown",
      username: "ann",
      password: "secret",
      clean: false,
      keepalive: 33,
      properties: { sessionExpiryInterval: 600 },
    });
    await client.subscribe(["shown/1", "shown/2"], { qos: 1 });
    const shown = await get<ClientInfo>("/clients/shown");
    expect(shown).toEqual({
      node: slot(2),
      clientid: "shown",
      username: "ann",
      connected: true,
      proto_name: "MQTT",
      proto_ver: 5,
      ip_address: "127.0.0.1",
      port: expect.any(Number) as unknown,
      keepalive: 33,
      clean_start: false,
      connected_at: expect.any(String) as unknown,
      expiry_interval: 600,
      subscriptions_cnt: 2,
      inflight_cnt: 0,
      awaiting_rel_cnt: 0,
      mqueue_len: 0,
    });
    expect(Date.parse(shown.connected_at!)).toBeGreaterThanOrEqual(before - 1);
    expect(Date.parse(shown.connected_at!)).toBeLessThanOrEqual(Date.now() + 1);
    await client.leave();
    const publisher = await connect(broker.urlOf(slot(0)));
    for (const payload of ["1", "2", "3"]) await publisher.publish("shown/1", payload, { qos: 1 });
    expect(await get("/clients/shown")).toEqual({
      node: slot(2),
      clientid: "shown",
      username: "ann",
      connected: false,
      expiry_interval: 600,
      subscriptions_cnt: 2,
      inflight_cnt: 0,
      awaiting_rel_cnt: 0,
      mqueue_len: 3,
    });
    const again = await connect(broker.urlOf(slot(2)), { clientId: "shown", username: "ann", clean: false });
    expect(await again.payloads(3)).toEqual(["1", "2", "3"]);
  });

  test("what a slow client has not acknowledged is counted", async () => {
    const slow = await converseConnected(broker.urlOf(slot(0)), {
      clientId: "slow",
      properties: { receiveMaximum: 2 },
    });
    slow.send({ cmd: "subscribe", messageId: 1, subscriptions: [{ topic: "slow", qos: 1 }] });
    await slow.expect("suback");
    const publisher = await connect(broker.urlOf(slot(1)));
    for (const payload of ["1", "2", "3", "4", "5"]) await publisher.publish("slow", payload, { qos: 1 });
    await slow.expect("publish");
    slow.send({ cmd: "publish", topic: "x", payload: "", qos: 2, messageId: 7, dup: false, retain: false });
    await slow.expect("publish");
    await slow.expect("pubrec");
    const counts = { inflight_cnt: 2, mqueue_len: 3, awaiting_rel_cnt: 1 };
    expect(await get<ClientInfo>("/clients/slow")).toMatchObject(counts);
    const { data } = await get<List<ClientInfo>>(`/clients?node=${slot(0)}`);
    expect(data.find(({ clientid }) => clientid === "slow")).toMatchObject(counts);
  });

  test("the pages of several nodes are one list, each client once", async () => {
    await whenEmpty("/clients");
    const ids = range(7).map((number) => `paged-${number}`);
    for (const [number, clientId] of ids.entries()) await connect(broker.urlOf(slot(number % 3)), { clientId });
    const all = await get<List<ClientInfo>>("/clients");
    expect(all.meta).toEqual({ page: 1, limit: 100, count: all.data.length, hasnext: false });
    for (const limit of [1, 2, 3, all.data.length - 1, all.data.length]) {
      const paged: ClientInfo[] = [];
      for (let page = 1, hasNext = true; hasNext; page++) {
        const { data, meta } = await get<List<ClientInfo>>(`/clients?page=${page}&limit=${limit}`);
        expect(meta).toMatchObject({ page, limit, count: all.data.length });
        expect(data).toHaveLength(Math.min(limit, all.data.length - paged.length));
        paged.push(...data);
        expect(meta.hasnext).toBe(paged.length < all.data.length);
        hasNext = meta.hasnext;
      }
      const keys = (list: readonly ClientInfo[]) => list.map(({ node, clientid }) => `${node} ${clientid}`);
      expect(keys(paged)).toEqual(keys(all.data));
      expect(new Set(keys(paged)).size).toBe(all.data.length);
    }
    expect(all.data.map(({ clientid }) => clientid)).toEqual(expect.arrayContaining(ids));
    const beyond = await get<List<ClientInfo>>("/clients?page=1000");
    expect(beyond).toMatchObject({ data: [], meta: { hasnext: false, count: all.data.length } });
    const node = await get<List<ClientInfo>>(`/clients?node=${slot(1)}`);
    expect(node.data).toEqual(all.data.filter((client) => client.node === slot(1)));
    expect(await get<List<ClientInfo>>(`/clients?node=${core}`)).toMatchObject({ data: [], meta: { count: 0 } });
    expect(await refusal(`/clients?node=${slot(3)}`)).toMatchObject({ status: 404, code: "NOT_FOUND" });
  });

  test.each(["a/b", "a%2Fb", "100%", "a b", "a?b#c", "+&=;", "Ä🦊", "..."])(
    "one whose id is %j is found and kicked",
    async (clientId) => {
      const client = await connect(broker.urlOf(slot(0)), { clientId });
      expect(await get(`/clients/${encoded(clientId)}`)).toMatchObject({ clientid: clientId });
      expect((await ask(`/clients/${encoded(clientId)}`, { method: "DELETE" })).status).toBe(204);
      expect(await client.ended).toBe(0x98);
    },
  );

  test("ids as long as MQTT has them fill a page, which says so, and 20 are always given", async () => {
    const long = "x".repeat(65_000);
    const clients = await Promise.all(
      range(70).map((number) => converseConnected(broker.urlOf(slot(3)), { clientId: `${number}-${long}` })),
    );
    expect(await refusal(`/clients?node=${slot(3)}`)).toMatchObject({ status: 400, code: "PAGE_TOO_LARGE" });
    const { data, meta } = await get<List<ClientInfo>>(`/clients?node=${slot(3)}&limit=20`);
    expect(data).toHaveLength(20);
    expect(meta).toMatchObject({ count: 70, hasnext: true });
    for (const client of clients) await client.drop();
  });
});

describe("kick", () => {
  test("tells a client of MQTT 5.0 why (0x98), publishes its will and ends its session", async () => {
    const watcher = await connect(broker.urlOf(slot(1)));
    await watcher.subscribe("kicked/will");
    const options = { clientId: "kicked", clean: false, properties: { sessionExpiryInterval: 600 } };
    const client = await connect(broker.urlOf(slot(0)), {
      ...options,
      will: { topic: "kicked/will", payload: Buffer.from("gone"), qos: 0, retain: false },
    });
    await client.subscribe("kicked/t", { qos: 1 });
    expect((await ask("/clients/kicked", { method: "DELETE" })).status).toBe(204);
    expect(await client.ended).toBe(0x98);
    expect(await watcher.next()).toMatchObject({ payload: "gone" });
    expect(await refusal("/clients/kicked")).toMatchObject({ status: 404, code: "CLIENTID_NOT_FOUND" });
    expect(await refusal("/clients/kicked", { method: "DELETE" })).toMatchObject({ code: "CLIENTID_NOT_FOUND" });
    expect(await refusal("/topics/kicked%2Ft")).toMatchObject({ code: "TOPIC_NOT_FOUND" });
    const again = await connect(broker.urlOf(slot(0)), options);
    expect(again.connack.sessionPresent).toBe(false);
  });

  test("closes the connection of a client of MQTT 3.1.1, and ends a session that is away", async () => {
    const client = await connect(broker.urlOf(slot(0)), { clientId: "old", protocolVersion: 4, clean: false });
    expect((await ask("/clients/old", { method: "DELETE" })).status).toBe(204);
    expect(await client.ended).toBeUndefined();
    const away = await connect(broker.urlOf(slot(1)), { clientId: "away", protocolVersion: 4, clean: false });
    await away.subscribe("away", { qos: 1 });
    await away.leave();
    expect((await ask("/clients/away", { method: "DELETE" })).status).toBe(204);
    for (const clientId of ["old", "away"]) {
      const again = await connect(broker.urlOf(slot(1)), { clientId, protocolVersion: 4, clean: false });
      expect(again.connack.sessionPresent).toBe(false);
    }
  });

  test("nobody else loses anything", async () => {
    const [kicked, stays] = [
      await connect(broker.urlOf(slot(0)), { clientId: "leaves" }),
      await connect(broker.urlOf(slot(0)), { clientId: "stays" }),
    ];
    await kicked.subscribe("both", { qos: 1 });
    await stays.subscribe("both", { qos: 1 });
    await ask("/clients/leaves", { method: "DELETE" });
    await kicked.ended;
    await stays.publish("both", "still here", { qos: 1 });
    expect((await stays.next()).payload).toBe("still here");
  });
});

describe("subscriptions", () => {
  test("are listed with their options, and by client, topic, QoS and node", async () => {
    await whenEmpty("/subscriptions");
    const [a, b] = [
      await connect(broker.urlOf(slot(0)), { clientId: "sub-a" }),
      await connect(broker.urlOf(slot(1)), { clientId: "sub-b" }),
    ];
    await a.subscribe("subs/1", { qos: 2, nl: true, rap: true, rh: 1 });
    await a.subscribe("$share/g/subs/1", { qos: 1 });
    await b.subscribe("subs/1", { qos: 1 });
    const [first, shared, second]: SubscriptionInfo[] = [
      { node: slot(0), clientid: "sub-a", topic: "subs/1", qos: 2, nl: 1, rap: 1, rh: 1 },
      { node: slot(0), clientid: "sub-a", topic: "$share/g/subs/1", qos: 1, nl: 0, rap: 0, rh: 0 },
      { node: slot(1), clientid: "sub-b", topic: "subs/1", qos: 1, nl: 0, rap: 0, rh: 0 },
    ];
    const list = (query: string) => get<List<SubscriptionInfo>>(`/subscriptions?${query}`);
    expect(await list("clientid=sub-a")).toEqual({
      data: [shared, first],
      meta: { page: 1, limit: 100, count: 2, hasnext: false },
    });
    expect((await list("topic=subs/1")).data).toEqual([first, second]);
    expect((await list("topic=subs/1&qos=1")).data).toEqual([second]);
    expect((await list("topic=subs/1&qos=2")).data).toEqual([first]);
    expect((await list(`topic=subs/1&node=${slot(0)}`)).data).toEqual([first]);
    expect((await list("clientid=nobody")).data).toEqual([]);
    const all = await list("");
    expect(all.data).toEqual(expect.arrayContaining([first, shared, second]));
    expect((await list("limit=1&page=2")).data).toEqual(all.data.slice(1, 2));
  });
});

test("after a crash everything is there as before, and clients that have gone are not connected", async () => {
  const options = { clientId: "survivor", protocolVersion: 4, clean: false } as const;
  const survivor = await connect(broker.urlOf(slot(0)), options);
  await survivor.subscribe("survivor/t", { qos: 1 });
  await broker.restart();
  await expect
    .poll(() => get<ClientInfo>("/clients/survivor"))
    .toMatchObject({ connected: false, subscriptions_cnt: 1 });
  expect(await get("/topics/survivor%2Ft")).toEqual([{ topic: "survivor/t", node: slot(0) }]);
  const { data } = await get<List<SubscriptionInfo>>("/subscriptions?clientid=survivor");
  expect(data).toMatchObject([{ topic: "survivor/t", qos: 1 }]);
  const again = await connect(broker.urlOf(slot(0)), options);
  expect(again.connack.sessionPresent).toBe(true);
});
