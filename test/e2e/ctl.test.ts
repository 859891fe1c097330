// `npm run ctl`, as an operator types it, against a broker with real clients.

import { spawn } from "node:child_process";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";

import { startBroker, type Broker } from "../support/broker.ts";
import { connect, slot } from "../support/client.ts";

const root = join(import.meta.dirname, "..", "..");
const token = "an operator's token";
const core = "core@local.emqxcl";

let broker: Broker;

beforeAll(async () => {
  broker = await startBroker({ env: { TRELLIS_API_TOKEN: token } });
});

afterAll(() => broker.stop());

interface Run {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command with what the operator's environment has; undefined takes a variable out. */
function ctl(args: readonly string[], changed: Readonly<Record<string, string | undefined>> = {}): Promise<Run> {
  const environment = {
    PATH: process.env["PATH"],
    TRELLIS_URL: `http://127.0.0.1:${broker.port}`,
    TRELLIS_API_TOKEN: token,
    ...changed,
  };
  const child = spawn(process.execPath, [join(root, "cli", "ctl.ts"), ...args], { cwd: root, env: environment });
  return new Promise((resolve, reject) => {
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
    child.on("error", reject);
    child.on("close", (code) => resolve({ code: code ?? -1, stdout, stderr }));
  });
}

async function printed(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await ctl(args);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return stdout;
}

describe("ctl cluster", () => {
  test("status shows running and stopped nodes as emqx ctl does, or as JSON", async () => {
    await connect(broker.urlOf(slot(1)));
    expect(await printed("cluster", "status")).toBe(
      `Cluster status: #{running_nodes => ['${core}','${slot(1)}'], stopped_nodes => []}\n`,
    );
    const json = await printed("cluster", "status", "--json");
    expect(JSON.parse(json)).toEqual({ running_nodes: [core, slot(1)], stopped_nodes: [] });
  });

  test.each([
    [["join", core], "Ignore.\n"],
    [["force-leave", core], "Ignore.\n"],
    [["leave"], `Failed to leave the cluster: node_not_in_cluster: this deployment is in no cluster of others\n`],
    [["join", "core@elsewhere"], /^Failed to join the cluster: "core@elsewhere" is not a node name: .*\n$/],
  ])("%j fails as emqx ctl does, with an exit code", async (args, stderr) => {
    expect(await ctl(["cluster", ...args])).toEqual({
      code: 1,
      stdout: "",
      stderr: typeof stderr === "string" ? stderr : (expect.stringMatching(stderr) as unknown),
    });
  });
});

describe("ctl clients, topics, subscriptions", () => {
  test("say so when there is nothing", async () => {
    const empty = await startBroker({ env: { TRELLIS_API_TOKEN: token } });
    onTestFinished(() => empty.stop());
    for (const name of ["clients", "topics", "subscriptions"])
      expect(await ctl([name, "list"], { TRELLIS_URL: `http://127.0.0.1:${empty.port}/` })).toEqual({
        code: 0,
        stdout: `No ${name}.\n`,
        stderr: "",
      });
  });

  test("list and show a line for each", async () => {
    const client = await connect(broker.urlOf(slot(0)), { clientId: "ctl-a", username: "ann", keepalive: 20 });
    await client.subscribe("ctl/+", { qos: 1, nl: true, rap: true, rh: 2 });
    await client.subscribe("$share/g/ctl/+", { qos: 0 });
    const other = await connect(broker.urlOf(slot(1)), { clientId: "ctl-b" });
    await other.subscribe("ctl/+", { qos: 1 });

    const line =
      /^Client\(ctl-a, username=ann, peername=127\.0\.0\.1:\d+, clean_start=true, keepalive=20, session_expiry_interval=0, subscriptions=2, inflight=0, awaiting_rel=0, enqueued_msgs=0, connected=true, connected_at=\d{13}, node=node-0@local\.emqxcl\)$/m;
    expect(await printed("clients", "list")).toMatch(line);
    expect(await printed("clients", "show", "ctl-a")).toMatch(line);
    expect(await printed("clients", "show", "ctl-b")).toMatch(/^Client\(ctl-b, username=undefined, /);

    const routes = [`$share/g/ctl/+ -> ${slot(0)}`, `ctl/+ -> ${slot(0)}`, `ctl/+ -> ${slot(1)}`];
    expect(await printed("topics", "show", "ctl/+")).toBe(`${routes.join("\n")}\n`);
    for (const name of ["topics", "routes"])
      expect((await printed(name, "list")).split("\n")).toEqual(expect.arrayContaining(routes));

    expect((await printed("subscriptions", "list")).split("\n")).toEqual(
      expect.arrayContaining([
        "ctl-a -> topic:ctl/+ qos:1 nl:1 rh:2 rap:1",
        "ctl-a -> topic:$share/g/ctl/+ qos:0 nl:0 rh:0 rap:0",
        "ctl-b -> topic:ctl/+ qos:1 nl:0 rh:0 rap:0",
      ]),
    );
  });

  test("kick one out; what is not there is not found", async () => {
    const client = await connect(broker.urlOf(slot(0)), { clientId: "-odd/one" });
    expect(await printed("clients", "kick", "--", "-odd/one")).toBe("ok\n");
    expect(await client.ended).toBe(0x98);
    for (const args of [
      ["clients", "kick", "--", "-odd/one"],
      ["clients", "show", "nobody"],
      ["topics", "show", "no"],
    ])
      expect(await ctl(args)).toEqual({ code: 1, stdout: "", stderr: "Not Found.\n" });
  });

  test("a list longer than a page is given whole, smaller pages of it where one would be too large", async () => {
    const limits: string[] = [];
    const routes = Array.from({ length: 2_345 }, (_, number) => ({ topic: `t/${number}`, node: slot(0) }));
    const server = createServer((request, response) => {
      const { searchParams } = new URL(request.url ?? "", "http://x");
      const [page, limit] = [Number(searchParams.get("page")), Number(searchParams.get("limit"))];
      limits.push(`${page}/${limit}`);
      const data = routes.slice((page - 1) * limit, page * limit);
      const isTooLarge = limit > 20 && page === 2;
      if (isTooLarge) response.statusCode = 400;
      const meta = {
        page,
        limit,
        count: routes.length,
        hasnext: page * limit < routes.length,
        silent_nodes: ["n@a.b"],
      };
      response.end(JSON.stringify(isTooLarge ? { code: "PAGE_TOO_LARGE", message: "ask for fewer" } : { data, meta }));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void server.close());
    const { port } = server.address() as AddressInfo;
    const { code, stdout, stderr } = await ctl(["topics", "list"], { TRELLIS_URL: `http://127.0.0.1:${port}` });
    expect(stdout.trimEnd().split("\n")).toEqual(routes.map(({ topic, node }) => `${topic} -> ${node}`));
    expect(limits.slice(0, 4)).toEqual(["1/1000", "2/1000", "51/20", "52/20"]);
    expect({ code, stderr }).toEqual({ code: 1, stderr: "Not all is here: no answer from n@a.b\n" });
  });

  test("what a broker answers cannot write to the terminal", async () => {
    const server = createServer((_, response) =>
      response.end(JSON.stringify([{ topic: "a\u001b[2Jb\nc\u202ed", node: slot(0) }])),
    );
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void server.close());
    const { port } = server.address() as AddressInfo;
    const { stdout } = await ctl(["topics", "show", "x"], { TRELLIS_URL: `http://127.0.0.1:${port}` });
    expect(stdout).toBe(`a\\u{1b}[2Jb\\u{a}c\\u{202e}d -> ${slot(0)}\n`);
  });
});

describe("ctl that cannot", () => {
  test.each<[string, Readonly<Record<string, string | undefined>>, RegExp]>([
    ["no token", { TRELLIS_API_TOKEN: undefined }, /^TRELLIS_API_TOKEN is not set: .*\n$/],
    ["a wrong token", { TRELLIS_API_TOKEN: "wrong" }, /^Authorization: Bearer .*\n$/],
    ["a token that no header takes", { TRELLIS_API_TOKEN: "a\nb" }, /^TRELLIS_API_TOKEN holds characters .*\n$/],
    [
      "no broker",
      { TRELLIS_URL: "http://127.0.0.1:2" },
      /^http:\/\/127\.0\.0\.1:2\/api\/v5 does not answer \(\w+\)\n$/,
    ],
    ["no address", { TRELLIS_URL: "127.0.0.1" }, /^TRELLIS_URL: allowed is an address as .*\n$/],
    ["another scheme", { TRELLIS_URL: "ws://127.0.0.1:8083" }, /^TRELLIS_URL: allowed is an address as .*\n$/],
    ["a password in it", { TRELLIS_URL: "http://a:hush@127.0.0.1" }, /^TRELLIS_URL: allowed is an address as .*\n$/],
  ])("[G9] %s: one line, and no secret in it", async (_, environment, line) => {
    const { code, stdout, stderr } = await ctl(["cluster", "status"], environment);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(line);
    for (const secret of [token, "wrong", "hush"]) expect(stderr).not.toContain(secret);
  });

  test("what is no command gets the usage and an exit code; --help is one", async () => {
    const help = await printed("--help");
    expect(help).toMatch(/^Usage: npm run ctl -- <command>/);
    for (const args of [[], ["cluster"], ["clients", "show"], ["clients", "list", "x"], ["topics", "list", "--json"]])
      expect(await ctl(args)).toEqual({ code: 1, stdout: "", stderr: help });
    const unknown = await ctl(["clients", "list", "--token", "x"]);
    expect(unknown).toMatchObject({ code: 1, stdout: "" });
    expect(unknown.stderr).toMatch(/^Unknown option '--token'.*\n$/);
  });
});
