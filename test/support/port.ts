import { randomInt } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";

/** Below what systems give to whoever names no port: nobody else gets one while its broker starts, or is down. */
const from = 12_000;
/** Tests that run at once take ports of different lanes. */
const lanes = 8;
const portsOfLane = 2_500;
const lane = Number(process.env["VITEST_POOL_ID"] ?? 0) % lanes;
/** Somewhere, for there may be other runs on this machine. */
let next = randomInt(portsOfLane);

/** A port of loopback that nobody listens on, given once. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = from + lane + lanes * (next++ % portsOfLane);
    const server = createServer().listen(port, "127.0.0.1");
    const isFree = await once(server, "listening").then(
      () => true,
      () => false,
    );
    if (!isFree) continue;
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
}
