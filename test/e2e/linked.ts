// Deployments that can be linked: each a `workerd serve` of the worker in links-worker.ts behind a proxy, at whose port
// the others reach it.

import http from "node:http";
import https from "node:https";
import { text } from "node:stream/consumers";
import { onTestFinished } from "vitest";

import type { Bundle } from "../../cli/bundle.ts";
import { startBroker, type Broker, type StartOptions } from "../support/broker.ts";
import { startCutProxy, type CutProxy } from "../support/cut-proxy.ts";
import { freePort } from "../support/port.ts";
import type { Act, Outcome } from "./links-worker.ts";

export const cookie = "a-cookie-of-the-tests";

export interface Deployment {
  readonly broker: Broker;
  readonly proxy: CutProxy;
  readonly core: string;
  readonly domain: string;
  act<T>(act: Act): Promise<T>;
  call(peer: Pick<Deployment, "core" | "domain">, method: string, ...args: unknown[]): Promise<Outcome>;
  /** What its core has seen since it woke. */
  events(): Promise<string[]>;
  /** The lines of its log of one event. */
  lines(event: string): Record<string, string>[];
  end(): Promise<void>;
}

export interface DeployOptions extends Pick<StartOptions, "host" | "env" | "ssl"> {
  readonly bundle: Bundle;
  /** Where links come in. */
  readonly links?: "port of their own";
}

/** Ends with the test. */
export async function deploy(options: DeployOptions): Promise<Deployment> {
  const deployment = await start(options);
  onTestFinished(() => deployment.end());
  return deployment;
}

export async function start({ env, links, ...options }: DeployOptions): Promise<Deployment> {
  const port = await freePort();
  const linkPort = links && (await freePort());
  const proxy = await startCutProxy(linkPort ?? port);
  const domain = `127.0.0.1:${proxy.port}`;
  const core = `core@${domain}`;
  const broker = await startBroker({
    ...options,
    port,
    ...(linkPort !== undefined && { linkPort }),
    env: { TRELLIS_NODE__NAME: core, TRELLIS_NODE__COOKIE: cookie, ...env },
  });
  const scheme = broker.url.startsWith("wss:") ? "https" : "http";
  const act = async <T>(act: Act): Promise<T> => {
    const url = `${scheme}://127.0.0.1:${port}/test?core=${encodeURIComponent(core)}`;
    return JSON.parse(await post(url, JSON.stringify(act))) as T;
  };
  return {
    broker,
    proxy,
    core,
    domain,
    act,
    async call({ core: peer, domain: address }, method, ...args) {
      const [outcome] = await act<Outcome[]>({ act: "call", peer, address, method: method as "echo", args, times: 1 });
      return outcome!;
    },
    events: () => act({ act: "events" }),
    lines: (event) =>
      broker
        .output()
        .split("\n")
        .filter((line) => line.startsWith(`{"event":"${event}"`))
        .map((line) => JSON.parse(line) as Record<string, string>),
    async end() {
      await broker.stop();
      await proxy.close();
    },
  };
}

function post(url: string, body: string): Promise<string> {
  const options = { method: "POST", rejectUnauthorized: false };
  return new Promise((resolve, reject) => {
    const request = url.startsWith("https:") ? https.request(url, options) : http.request(url, options);
    request.once("response", (response) => resolve(text(response)));
    request.once("error", reject);
    request.end(body);
  });
}
