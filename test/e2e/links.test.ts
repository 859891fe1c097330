// Two and three deployments on this machine, each a `workerd serve` of its own behind a proxy, and what links their cores.

import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { WebSocketServer, type WebSocket } from "ws";

import { bundleWorker, type Bundle } from "../../cli/bundle.ts";
import { rpcVersion } from "../../durable-objects/rpc.ts";
import { deploy as deployLinked, start, type Deployment, type DeployOptions } from "./linked.ts";
import type { Act, Outcome } from "./links-worker.ts";
import { Stranger } from "./stranger.ts";
import { patience } from "../support/patience.ts";

let directory: string;
let bundle: Bundle;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "trellis-links-"));
  bundle = await bundleWorker(directory, { entry: join(import.meta.dirname, "links-worker.ts") });
});

afterAll(async () => {
  await (await shared)?.end();
  await rm(directory, { recursive: true, force: true });
});

/** One that no test changes, for strangers. */
let shared: Promise<Deployment> | undefined;

function deployed(): Promise<Deployment> {
  return (shared ??= start({ bundle }));
}

function deploy(env: DeployOptions["env"] = {}, options: Pick<DeployOptions, "host"> = {}): Promise<Deployment> {
  return deployLinked({ bundle, env, ...options });
}

/** Two of them; the name of the first is the smaller one. */
async function deployTwo(): Promise<[Deployment, Deployment]> {
  const both = await Promise.all([deploy(), deploy()]);
  return both.sort((a, b) => (a.core < b.core ? -1 : 1)) as [Deployment, Deployment];
}

describe("a link", () => {
  test("carries calls both ways on one socket, in order, from whoever proved its name", async () => {
    const [a, b] = await deployTwo();
    const first = await a.act({ act: "call", peer: b.core, address: b.domain, method: "next", args: [], times: 20 });
    expect(first).toEqual(Array.from({ length: 20 }, (_, answer) => ({ answer })));
    expect(await a.call(b, "caller")).toEqual({ answer: a.core });
    expect(await b.call(a, "caller")).toEqual({ answer: b.core });
    expect(await a.call(b, "back", a.domain)).toEqual({ answer: b.core });
    expect(b.proxy.connections()).toBe(1);
    expect(a.proxy.connections()).toBe(0);
    expect(a.lines("link_up")).toEqual([{ event: "link_up", core: a.core, peer: b.core, dialer: "self" }]);
    expect(b.lines("link_up")).toEqual([{ event: "link_up", core: b.core, peer: a.core, dialer: "peer" }]);
    expect(await b.events()).toEqual(["count link.connected", `up ${a.core}`]);
  });

  test("passes values, bytes and errors as a Durable Object's stub does", async () => {
    const [a, b] = await deployTwo();
    const value = { text: 'ä "\u0000', list: [1, [2, null]], nested: { "": -0.5 } };
    expect(await a.call(b, "echo", value)).toEqual({ answer: value });
    for (const count of [0, 1, 65_536, 2_500_000])
      expect(await a.act({ act: "bytes", peer: b.core, address: b.domain, count })).toBe(true);
    expect(await a.call(b, "fail", "no such thing")).toEqual({
      name: "TypeError",
      error: "no such thing",
      overloaded: true,
    });
    expect(await a.call(b, "nothing")).toMatchObject({ name: "TypeError" });
  });
});

describe("[G9] a core that is refused", () => {
  test.each([
    ["bad_cookie", { TRELLIS_NODE__COOKIE: "another-cookie-of-the-tests" }],
    ["bad_cluster_name", { TRELLIS_CLUSTER__NAME: "other" }],
  ])("is told why, and it is logged and counted on both sides: %s", async (reason, env) => {
    const [a, b] = await Promise.all([deploy(), deploy(env)]);
    expect(await b.call(a, "echo", 1)).toMatchObject({ name: "LinkError", reason });
    expect(b.lines("link_refused")).toEqual([
      { event: "link_refused", core: b.core, peer: a.core, reason, by: "peer" },
    ]);
    expect(a.lines("link_refused")).toEqual([
      { event: "link_refused", core: a.core, peer: b.core, reason, by: "self" },
    ]);
    for (const one of [a, b]) expect(await one.events()).toEqual(["count link.refused"]);
    expect(await a.call(b, "echo", 1)).toMatchObject({ name: "LinkError", reason });
    expect(a.broker.output() + b.broker.output()).not.toContain("of-the-tests");
  });

  test("has no cookie, or meets one who has none: no link without", async () => {
    const [a, b] = await Promise.all([deploy(), deploy({ TRELLIS_NODE__COOKIE: undefined })]);
    expect(await a.call(b, "echo", 1)).toMatchObject({ name: "LinkError", reason: "no_cookie" });
    expect(await b.call(a, "echo", 1)).toMatchObject({ error: expect.stringContaining("node.cookie is not set") });
  });

  test("dials unencrypted over a network: driver and rpc.tcp_allowed_hosts decide", async () => {
    const a = await deploy({ TRELLIS_RPC__TCP_ALLOWED_HOSTS: "allowed.invalid" });
    const dial = (domain: string): Promise<Outcome> => a.call({ core: `core@${domain}`, domain }, "echo", 1);
    expect(await dial("eu.example.com:8084")).toMatchObject({
      error:
        'link to core@eu.example.com:8084: driver = "tcp": allowed are loopback addresses and the hosts of ' +
        'rpc.tcp_allowed_hosts, and eu.example.com:8084 is none (driver = "ssl" encrypts)',
    });
    expect(await dial("allowed.invalid")).toMatchObject({ error: expect.stringContaining("cannot be reached") });
  });

  test("is where the address says: no redirect is followed", async () => {
    const [a, b] = await deployTwo();
    const location = `http://${b.domain}/link?core=${encodeURIComponent(b.core)}`;
    const redirecting = http.createServer((_, response) => response.writeHead(307, { location }).end());
    redirecting.on("upgrade", (_, socket) => socket.end(`HTTP/1.1 307 Elsewhere\r\nLocation: ${location}\r\n\r\n`));
    await once(redirecting.listen(0, "127.0.0.1"), "listening");
    onTestFinished(() => {
      redirecting.close();
    });
    const { port } = redirecting.address() as AddressInfo;
    const outcome = await a.call({ core: b.core, domain: `127.0.0.1:${port}` }, "echo", 1);
    expect(outcome).toMatchObject({ error: expect.stringContaining("it answers 307") });
  });

  test("links unencrypted over a network", async () => {
    const host = "0.0.0.0";
    const allowed = { TRELLIS_RPC__TCP_ALLOWED_HOSTS: "eu.example.com" };
    const [open, ssl, loopback] = await Promise.all([
      deploy(allowed, { host }),
      deploy({ ...allowed, TRELLIS_DRIVER: "ssl" }, { host }),
      // As behind a proxy of this machine that speaks TLS.
      deploy({ TRELLIS_DRIVER: "ssl" }),
    ]);
    expect(await answerOf(open, "core@us.example.com")).toBe("tcp_not_allowed");
    expect(await answerOf(open, "core@eu.example.com")).toBe("challenge");
    expect(await answerOf(open, "core@weur.eu.example.com")).toBe("challenge");
    expect(await answerOf(open, "core@127.0.0.1:8084")).toBe("challenge");
    expect(await answerOf(ssl, "core@eu.example.com")).toBe("tcp_not_allowed");
    expect(await answerOf(ssl, "core@127.0.0.1:8084")).toBe("tcp_not_allowed");
    expect(await answerOf(loopback, "core@eu.example.com")).toBe("challenge");
  });
});

/** What a hello of this name is answered with. */
async function answerOf(deployment: Deployment, from: string): Promise<string> {
  const stranger = await Stranger.dial(deployment);
  stranger.send(stranger.hello({ from }));
  const answer = await stranger.next();
  return "closed" in answer ? answer.closed.reason : answer.frame[0]!;
}

describe("[G9] whoever has no cookie", () => {
  test("is let in with the proof, and only with it", async () => {
    const a = await deploy();
    const core = await Stranger.dial(a);
    const challenge = await core.greet();
    core.send(["proof", core.sign("dialer", challenge)]);
    expect(await core.next()).toEqual({ frame: ["proof", core.sign("acceptor", challenge)] });
    core.send(["push", ["pipeline", 0, ["caller"], []]]);
    core.send(["pull", 1]);
    expect(await core.next()).toEqual({ frame: ["resolve", 1, core.name] });
    expect(await a.events()).toEqual(["count link.connected", `up ${core.name}`]);
  });

  test.each<[string, string, (stranger: Stranger) => string | Buffer | readonly unknown[]]>([
    ["a call before the hello", "bad_frame", () => ["push", ["pipeline", 0, ["caller"], []]]],
    ["no JSON", "bad_frame", () => "hello"],
    ["no array", "bad_frame", () => '{"hello":1}'],
    ["no texts", "bad_frame", (it) => ["hello", rpcVersion, ...it.hello().slice(2)]],
    ["too few fields", "bad_frame", (it) => it.hello().slice(0, 5)],
    ["bytes", "bad_frame", () => Buffer.from("hello")],
    ["a frame that is too long", "bad_frame", (it) => it.hello({ nonce: "0".repeat(2_048) })],
    ["another version", "bad_version", (it) => it.hello({ version: String(rpcVersion + 1) })],
    ["another version, which says more", "bad_version", (it) => [...it.hello({ version: "99" }), "more"]],
    ["another cluster", "bad_cluster_name", (it) => it.hello({ cluster: "other" })],
    ["a hello for another core", "bad_node_name", (it) => it.hello({ to: "core@eu.example.com" })],
    ["the name of the core itself", "bad_node_name", (it) => it.hello({ from: it.deployment.core })],
    ["the name of a node beside it", "bad_node_name", (it) => it.hello({ from: `x@local.${it.deployment.domain}` })],
    ["no node name", "bad_node_name", (it) => it.hello({ from: "core@" })],
  ])("and says %s is told %s", async (_, reason, frameOf) => {
    const stranger = await Stranger.dial(await deployed());
    stranger.send(frameOf(stranger));
    expect(await stranger.next()).toEqual({ closed: { code: 4000, reason } });
  });

  test.each<[string, (it: Stranger, challenge: string) => string[] | Promise<string[]>]>([
    ["nothing", () => ["proof", ""]],
    ["a proof by another cookie", (it, challenge) => ["proof", it.sign("dialer", challenge, "another")]],
    ["the proof of the other side", (it, challenge) => ["proof", it.sign("acceptor", challenge)]],
    ["a proof of another connection", async (it) => ["proof", it.sign("dialer", await (await it.again()).greet())]],
    ["a part of the proof", (it, challenge) => ["proof", it.sign("dialer", challenge).slice(0, 32)]],
    ["the proof in other letters", (it, challenge) => ["proof", it.sign("dialer", challenge).toUpperCase()]],
  ])("and brings %s is told bad_cookie", async (_, frameOf) => {
    const stranger = await Stranger.dial(await deployed());
    const challenge = await stranger.greet();
    stranger.send(await frameOf(stranger, challenge));
    expect(await stranger.next()).toEqual({ closed: { code: 4000, reason: "bad_cookie" } });
  });

  test("and is dialed by a core cannot use what that core says: not to it, nor to another one (reflection)", async () => {
    const [a, b] = await Promise.all([deploy(), deploy()]);
    const impostor = new WebSocketServer({ host: "127.0.0.1", port: 0 });
    await once(impostor, "listening");
    onTestFinished(() => impostor.close());
    const { port } = impostor.address() as AddressInfo;
    const domain = `127.0.0.1:${port}`;
    const dialed = a.call({ core: `core@${domain}`, domain }, "echo", 1);
    const [socket] = (await once(impostor, "connection")) as [WebSocket];
    const frame = async (): Promise<string[]> => JSON.parse(String((await once(socket, "message"))[0])) as string[];
    const [kind, ...hello] = await frame();
    expect([kind, hello.slice(0, 4)]).toEqual(["hello", [String(rpcVersion), "emqxcl", a.core, `core@${domain}`]]);
    // It asks a what b asks of it.
    const other = await Stranger.dial(b);
    other.send(other.hello({ from: a.core, nonce: hello[4]! }));
    const challenge = await other.next();
    expect(challenge).toEqual({ frame: ["challenge", expect.any(String)] });
    socket.send(JSON.stringify((challenge as { frame: string[] }).frame));
    const [, proof] = await frame();
    other.send(["proof", proof]);
    expect(await other.next()).toEqual({ closed: { code: 4000, reason: "bad_cookie" } });
    socket.send(JSON.stringify(["proof", proof]));
    const [code, reason] = (await once(socket, "close")) as [number, Buffer];
    expect([code, reason.toString()]).toEqual([4000, "bad_cookie"]);
    expect(await dialed).toMatchObject({ name: "LinkError", reason: "bad_cookie" });
  });

  test("and says nothing is cut off after a while; and many of them make way for the next", async () => {
    const a = await deploy();
    const started = performance.now();
    const oldest = await Stranger.dial(a);
    const silent = await Promise.all(Array.from({ length: 63 }, () => Stranger.dial(a)));
    const late = await Stranger.dial(a);
    expect(await oldest.next()).toEqual({ closed: { code: 4001, reason: "too_many_links" } });
    expect(await late.greet()).toMatch(/^[0-9a-f]{64}$/);
    for (const stranger of [...silent, late])
      expect(await stranger.next()).toEqual({ closed: { code: 4000, reason: "timeout" } });
    expect(performance.now() - started).toBeGreaterThan(4_900);
  });
});

describe("/link over HTTP", () => {
  test.each<[number, string, Record<string, string>]>([
    [426, "", {}],
    [400, "", { "Sec-WebSocket-Protocol": "mqtt" }],
    [403, "", { "Sec-WebSocket-Protocol": "trellis-link", Origin: "http://127.0.0.1" }],
    [404, "", { "Sec-WebSocket-Protocol": "trellis-link" }],
    [404, "?core=core@eu.example.com", { "Sec-WebSocket-Protocol": "trellis-link" }],
  ])("%i: /link%s %j", async (status, query, headers) => {
    const { broker } = await deployed();
    const upgrade = status === 426 ? {} : { Connection: "Upgrade", Upgrade: "websocket" };
    const request = http.get(`http://127.0.0.1:${broker.port}/link${query}`, {
      headers: { ...upgrade, "Sec-WebSocket-Version": 13, "Sec-WebSocket-Key": "a2V5a2V5a2V5a2V5a2V5aw==", ...headers },
    });
    const [response] = (await once(request, "response")) as [http.IncomingMessage];
    expect(response.statusCode).toBe(status);
    response.resume();
  });
});

describe("bounds", () => {
  test("calls under way beyond the bound are refused, as by an object that is overloaded", async () => {
    const [a, b] = await deployTwo();
    const call: Act = { act: "call", peer: b.core, address: b.domain, method: "echo", args: [1], times: 4_100 };
    // The first time they wait for the link, the second time for their answers.
    for (const _ of [1, 2]) {
      const outcomes = await a.act<Outcome[]>(call);
      const refused = outcomes.filter((outcome) => "error" in outcome);
      expect(refused).toHaveLength(4);
      expect(refused[0]).toMatchObject({ name: "LinkError", reason: "too_many_calls", overloaded: true });
    }
    expect(await a.call(b, "caller")).toEqual({ answer: a.core });
  });

  test("a peer that makes too many calls, or sends too much at once, is cut off", async () => {
    const a = await deployed();
    const greedy = await Stranger.link(a);
    for (let i = 0; i < 4_097; i++) greedy.send(["push", ["pipeline", 0, ["wait"], [60_000]]]);
    expect(await greedy.next()).toEqual({ closed: { code: 4001, reason: "too_many_calls" } });
    const large = await Stranger.link(a);
    large.send(["push", ["pipeline", 0, ["echo"], ["x".repeat(8_388_608)]]]);
    expect(await large.next()).toEqual({ closed: { code: 4001, reason: "message_too_large" } });
    const binary = await Stranger.link(a);
    binary.send(Buffer.from("[]"));
    expect(await binary.next()).toEqual({ closed: { code: 4001, reason: "bad_frame" } });
    const garbage = await Stranger.link(a);
    garbage.send("[[");
    expect(await garbage.next()).toMatchObject({ frame: ["abort", expect.anything()] });
    expect(await garbage.next()).toMatchObject({ closed: { code: 4001, reason: expect.stringMatching(/^rpc: /) } });
  });

  test("what is too large fails its own call, and not the link", async () => {
    const [a, b] = await deployTwo();
    const outcome = await a.call(b, "echo", "x".repeat(9_000_000));
    expect(outcome).toMatchObject({ name: "LinkError", error: expect.stringContaining("arguments of echo") });
    expect(await a.call(b, "next")).toEqual({ answer: 0 });
  });
});

describe("both sides dial at once", () => {
  test("one socket is kept, whoever is first, and it stays", async () => {
    const [a, b] = await deployTwo();
    for (const [toA, toB] of [
      [0, 0],
      [40, 0],
      [0, 40],
      [20, 20],
      [7, 9],
    ] as const) {
      a.proxy.delay(toA);
      b.proxy.delay(toB);
      // A call may be lost with the socket that is not kept; those behind it are not.
      const lost = expect.stringMatching(/^(replaced|already_linked)$/);
      const named = expect.stringMatching(/^core@/);
      for (const outcome of await Promise.all([a.call(b, "caller"), b.call(a, "caller"), a.call(b, "caller")]))
        expect(outcome).toMatchObject("error" in outcome ? { name: "LinkError", reason: lost } : { answer: named });
      await vi.waitFor(() => expect(a.proxy.connections() + b.proxy.connections()).toBe(1), patience);
      const kept = [a.proxy.connections(), b.proxy.connections()];
      for (let i = 0; i < 3; i++) {
        expect(await a.call(b, "caller")).toEqual({ answer: a.core });
        expect(await b.call(a, "caller")).toEqual({ answer: b.core });
      }
      expect([a.proxy.connections(), b.proxy.connections()]).toEqual(kept);
      for (const one of [a, b]) await one.act({ act: "close", peer: one === a ? b.core : a.core });
      await vi.waitFor(() => expect(a.proxy.connections() + b.proxy.connections()).toBe(0), patience);
    }
    expect(a.lines("link_refused")).toEqual([]);
  });

  test("a core that cannot be reached can still be linked, by reaching out itself", async () => {
    const [a, b] = await deployTwo();
    // Nobody reaches b, and a keeps trying.
    b.proxy.silence();
    const vain = [a.call(b, "caller"), a.call(b, "caller")];
    expect(await b.call(a, "caller")).toEqual({ answer: b.core });
    // What waited for the dial goes by the link that came the other way.
    expect(await Promise.all(vain)).toEqual([{ answer: a.core }, { answer: a.core }]);
  });
});

describe("a bad network", () => {
  test("a cut fails the calls under way, and the next call links again", async () => {
    const [a, b] = await deployTwo();
    expect(await a.call(b, "next")).toEqual({ answer: 0 });
    const underWay = a.call(b, "wait", 60_000);
    await sleep(100);
    b.proxy.cut();
    expect(await underWay).toMatchObject({ name: "LinkError", error: expect.stringContaining(`link to ${b.core}: `) });
    const refused = await a.call(b, "next");
    expect(refused).toMatchObject({
      name: "LinkError",
      error: expect.stringMatching(new RegExp(`^link to ${b.core}: ws://${b.domain}/link cannot be reached: `)),
    });
    b.proxy.restore();
    expect(await a.call(b, "next")).toEqual({ answer: 0 });
    expect((await a.events()).filter((event) => !event.startsWith("count"))).toEqual([
      `up ${b.core}`,
      expect.stringContaining(`down ${b.core} `),
      `up ${b.core}`,
    ]);
  });

  test("[G7] a link whose other end is gone without a word is closed by the calls under way, not by a long call", async () => {
    const [a, b] = await deployTwo();
    const long = a.call(b, "wait", 11_000);
    await sleep(200);
    // The larger name dials: what it dials again counts more than what it dialed before, though not for its name.
    const [d, c] = await deployTwo();
    expect(await c.call(d, "next")).toEqual({ answer: 0 });
    d.proxy.silence();
    const started = performance.now();
    expect(await c.call(d, "next")).toMatchObject({ name: "LinkError", reason: "silent" });
    expect(performance.now() - started).toBeLessThan(patience.timeout);
    // d has heard nothing of it: when c comes again, the new link takes the place of the old one.
    d.proxy.restore();
    expect(await c.call(d, "next")).toEqual({ answer: 0 });
    expect(await d.call(c, "caller")).toEqual({ answer: d.core });
    expect(await d.events()).toContain(`down ${c.core} replaced`);
    expect(await long).toEqual({ answer: "waited" });
  });

  test("the core that did not dial finds out, too, and dials itself", async () => {
    const [a, b] = await deployTwo();
    expect(await a.call(b, "next")).toEqual({ answer: 0 });
    b.proxy.silence();
    expect(await b.call(a, "next")).toMatchObject({ reason: "silent" });
    // a still believes in the link that it dialed, which counts more than one that b dials, until it has looked.
    const outcome = await b.call(a, "next");
    if ("error" in outcome) expect(outcome).toMatchObject({ name: "LinkError", reason: "already_linked" });
    expect(await b.call(a, "caller")).toEqual({ answer: b.core });
    expect(await a.call(b, "caller")).toEqual({ answer: a.core });
    expect(a.proxy.connections()).toBe(1);
  });

  test("a broker that was killed and comes back is linked again", async () => {
    const [a, b] = await deployTwo();
    expect(await a.call(b, "next")).toEqual({ answer: 0 });
    const underWay = a.call(b, "wait", 60_000);
    await sleep(100);
    await b.broker.kill();
    expect(await underWay).toMatchObject({ name: "LinkError" });
    await b.broker.restart();
    expect(await a.call(b, "next")).toEqual({ answer: 0 });
    await a.broker.restart();
    expect(await b.call(a, "caller")).toEqual({ answer: b.core });
  });
});
