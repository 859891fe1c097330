// `npm start`: the broker on this machine, in the foreground.
//
//   HOST      address to listen on, 127.0.0.1; on another one, clients need a user name (see allow_anonymous)
//   PORT      8083
//   LINK_PORT where links come in when they must have a client certificate (ssl_options.fail_if_no_peer_cert)
//   DATA_DIR  ./.trellis/data
//   TRELLIS_* settings and secrets: TRELLIS_MQTT__SERVER_KEEPALIVE=60

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { readSettings } from "../cluster/config.ts";
import { descriptorsMax, settingNames, startWorkerd } from "./broker.ts";
import type { RunningBroker } from "./broker.ts";
import { bundleWorker } from "./bundle.ts";
import { isLoopback } from "./loopback.ts";
import { readLinkPort, readPort, readSslFiles } from "./ssl-options.ts";

async function main(): Promise<number> {
  const stopping = stopSignal();
  const broker = await start(stopping).catch((error: unknown) => {
    if (!stopping.aborted) throw error;
  });
  if (broker === undefined) return 0;

  if (!stopping.aborted) {
    const descriptors = descriptorsMax();
    console.log(`MQTT over WebSocket: ${broker.url}`);
    console.log("Ctrl-C stops it.");
    if (descriptors < fewDescriptors) {
      console.log(
        `The limit of open files is ${descriptors}: enough for about ${Math.floor(descriptors / 2)} clients.`,
      );
    }
  }
  const asked = new Promise<"asked">((resolve) => {
    if (stopping.aborted) resolve("asked");
    stopping.addEventListener("abort", () => resolve("asked"));
  });
  const end = await Promise.race([broker.ended, asked]);
  if (end === "asked") {
    await broker.stop();
    return 0;
  }
  console.error(`workerd ended by itself (${end.signal ?? `code ${end.code}`})`);
  return end.code || 1;
}

/** Two for each client; below this number a busy broker of one location runs out of them. */
const fewDescriptors = 20_000;

async function start(stopping: AbortSignal): Promise<RunningBroker> {
  const { env } = process;
  const host = env.HOST || "127.0.0.1";
  const port = readPort("PORT", env.PORT || "8083");
  const dataDir = env.DATA_DIR || join(".trellis", "data");

  const directory = await mkdtemp(join(tmpdir(), "trellis-"));
  try {
    const bundle = await bundleWorker(directory, { abort: stopping });
    const overrides = Object.fromEntries(settingNames(env).map((name) => [name, env[name]]));
    const loopback = isLoopback(host) && { LOOPBACK: "true" };
    const settings = readSettings({ ...bundle.worker.vars, ...overrides, ...loopback });
    if (!settings.allow_anonymous && Object.keys(settings.authentication).length === 0) {
      console.log(`On ${host} nobody can connect yet: say who may, with TRELLIS_AUTHENTICATION (npm run passwd).`);
    }
    const ssl = readSslFiles(settings);
    const linkPort = readLinkPort(settings, host, env.LINK_PORT);
    if (settings.driver === "tcp" && settings.ssl_options.certfile !== undefined)
      console.log('driver = "tcp": ssl_options.certfile and .keyfile are without effect.');
    return await startWorkerd({ bundle, dataDir, host, port, linkPort, ssl, env, output: "inherit" });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Aborted when this process is asked to end. */
function stopSignal(): AbortSignal {
  const controller = new AbortController();
  const stop = (): void => controller.abort();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, stop);
  if (process.env.npm_lifecycle_event !== undefined) {
    // npm passes signals to its shell, and not every shell passes them on: that it is gone is the sign then.
    const parent = process.ppid;
    setInterval(() => {
      if (process.ppid !== parent) stop();
    }, 500).unref();
  }
  return controller.signal;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
