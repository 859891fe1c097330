import { once } from "node:events";
import { createServer } from "node:net";

/** Below what systems give to whoever names no port: nobody else gets one while its broker starts, or is down. */
const from = 12_000;
/** Test files run at once, each in a process of its own: each process has its own ports. */
const processes = 100;
const portsOfProcess = 200;
const first = from + (process.pid % processes) * portsOfProcess;
let given = 0;

/** A port of loopback that nobody listens on. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = first + (given++ % portsOfProcess);
    if (await isFree(port)) return port;
  }
}

export async function isFree(port: number): Promise<boolean> {
  const server = createServer().listen(port, "127.0.0.1");
  try {
    await once(server, "listening");
  } catch {
    return false;
  }
  await new Promise((resolve) => server.close(resolve));
  return true;
}
