// `npm run bridge -- --listen 1883 --to ws://127.0.0.1:8083/mqtt`: a TCP port for clients that have no WebSocket.

import { parseArgs } from "node:util";

import { startBridge } from "./tcp-bridge.ts";

const usage = `Usage: npm run bridge -- [--listen [host:]port] [--to ws://host:port/mqtt] [--subprotocol mqtt]

  --listen       where TCP clients connect; on loopback unless a host is named (default 1883)
  --to           the broker (default ws://127.0.0.1:8083/mqtt)
  --subprotocol  what is offered to the broker (default mqtt)`;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      listen: { type: "string", default: "1883" },
      to: { type: "string", default: "ws://127.0.0.1:8083/mqtt" },
      subprotocol: { type: "string", default: "mqtt" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) {
    console.log(usage);
    return;
  }
  const { host, port } = readListen(values.listen);
  const to = readTarget(values.to);
  const bridge = await startBridge({ host, port, to, subprotocol: values.subprotocol, log: console.error });
  console.log(`MQTT over TCP: ${host.includes(":") ? `[${host}]` : host}:${bridge.port}, to ${to}`);
  console.log("Ctrl-C stops it.");
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.once(signal, () => void bridge.close().then(() => process.exit(0)));
  }
}

function readListen(text: string): { host: string; port: number } {
  const match = /^(?:(?:\[([^\]]+)\]|([^:]+)):)?(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port > 65535) throw new Error(`--listen ${text}: allowed is a port or host:port`);
  return { host: match[1] ?? match[2] ?? "127.0.0.1", port };
}

function readTarget(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !["ws:", "wss:"].includes(url.protocol)) {
    throw new Error(`--to ${text}: allowed is ws://host:port/path or wss://host/path`);
  }
  return url.href;
}

await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
