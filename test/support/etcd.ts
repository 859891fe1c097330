// A real etcd, Debian's etcd-server, on a free port and with data of its own.

import { spawn, spawnSync } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { freePort } from "./port.ts";

export const hasEtcd = spawnSync("etcd", ["--version"]).error === undefined;

export interface Etcd {
  readonly url: string;
  /** One call of the v3 API, as anybody may make it. */
  call(path: string, request: object): Promise<Record<string, unknown>>;
  /** The keys that begin so, and the revision of the store, which each write raises. */
  keys(prefix: string): Promise<{ readonly keys: readonly string[]; readonly revision: number }>;
  put(key: string, value: string): Promise<void>;
  /** SIGKILL. */
  kill(): Promise<void>;
  /** On the same port, with nothing in it. */
  restartEmpty(): Promise<void>;
  stop(): Promise<void>;
}

export async function startEtcd(): Promise<Etcd> {
  const [client, peer] = [await freePort(), await freePort()];
  const url = `http://127.0.0.1:${client}`;
  const peerUrl = `http://127.0.0.1:${peer}`;
  let dataDir = "";
  let running: ChildProcess;

  async function start(): Promise<void> {
    dataDir = await mkdtemp(join(tmpdir(), "trellis-etcd-"));
    const args = [
      ...["--data-dir", dataDir, "--unsafe-no-fsync", "--logger", "zap", "--log-level", "error"],
      ...["--listen-client-urls", url, "--advertise-client-urls", url],
      ...["--listen-peer-urls", peerUrl, "--initial-advertise-peer-urls", peerUrl],
      ...["--initial-cluster", `default=${peerUrl}`],
    ];
    running = spawn("etcd", args, { stdio: "ignore" });
    for (let attempt = 0; attempt < 400; attempt++) {
      try {
        await call("/v3/kv/range", { key: base64("x") });
        return;
      } catch {
        await sleep(50);
      }
    }
    throw new Error("etcd did not start");
  }

  async function kill(): Promise<void> {
    if (running.exitCode === null && running.signalCode === null) {
      const ended = once(running, "exit");
      running.kill("SIGKILL");
      await ended;
    }
    await rm(dataDir, { recursive: true, force: true });
  }

  async function call(path: string, request: object): Promise<Record<string, unknown>> {
    const response = await fetch(url + path, { method: "POST", body: JSON.stringify(request) });
    if (!response.ok) throw new Error(`etcd answered ${response.status}: ${await response.text()}`);
    return (await response.json()) as Record<string, unknown>;
  }

  await start();
  return {
    url,
    call,
    async keys(prefix) {
      const range_end = base64(prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1));
      const answer = await call("/v3/kv/range", { key: base64(prefix), range_end, keys_only: true });
      const { kvs = [], header } = answer as { kvs?: { key: string }[]; header: { revision: string } };
      return { keys: kvs.map(({ key }) => Buffer.from(key, "base64").toString()), revision: Number(header.revision) };
    },
    async put(key, value) {
      await call("/v3/kv/put", { key: base64(key), value: base64(value) });
    },
    kill,
    async restartEmpty() {
      await kill();
      await start();
    },
    stop: kill,
  };
}

function base64(text: string): string {
  return Buffer.from(text).toString("base64");
}
