// A real DNS server, Debian's dnsmasq, behind a front that speaks DNS over HTTPS (RFC 8484; without TLS): it takes the
// message out of the request, passes it on over TCP, and looks at nothing of it.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import type { IncomingMessage } from "node:http";
import { connect, type AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { freePort } from "./port.ts";

export const hasDnsmasq = spawnSync("dnsmasq", ["--version"]).error === undefined;

export interface DnsServer {
  /** For `cluster.dns.server`. */
  readonly url: string;
  stop(): Promise<void>;
}

/** `records` are options of dnsmasq, for names under ".test". */
export async function startDnsServer(records: readonly string[]): Promise<DnsServer> {
  const port = await freePort();
  const options = ["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-resolv", "--no-hosts"];
  const listen = [`--port=${port}`, "--listen-address=127.0.0.1", "--bind-interfaces", "--user=", "--group="];
  const dnsmasq = spawn("dnsmasq", [...options, ...listen, "--local=/test/", ...records], { stdio: "ignore" });

  const front = createServer((request, response) => {
    resolve(request).then(
      (answer) => response.writeHead(200, { "content-type": "application/dns-message" }).end(answer),
      (error: unknown) => response.writeHead(400).end(String(error)),
    );
  });
  await new Promise<void>((resolve) => front.listen(0, "127.0.0.1", resolve));

  async function resolve(request: IncomingMessage): Promise<Buffer> {
    const url = new URL(request.url ?? "", "http://front");
    const dns = url.searchParams.get("dns");
    // [RFC 8484 4.1, 6] GET, base64url without padding, and the one media type.
    if (request.method !== "GET" || dns === null || !/^[\w-]+$/.test(dns)) throw new Error("no question");
    if (request.headers.accept !== "application/dns-message") throw new Error("no DNS message is wanted");
    const question = Buffer.from(dns, "base64url");
    const socket = connect(port, "127.0.0.1");
    await once(socket, "connect");
    const length = Buffer.alloc(2);
    length.writeUInt16BE(question.length);
    socket.write(Buffer.concat([length, question]));
    let answer = Buffer.alloc(0);
    for await (const chunk of socket) {
      answer = Buffer.concat([answer, chunk as Buffer]);
      if (answer.length >= 2 && answer.length - 2 >= answer.readUInt16BE()) break;
    }
    socket.destroy();
    return answer.subarray(2);
  }

  for (let attempt = 0; ; attempt++) {
    const socket = connect(port, "127.0.0.1");
    const isThere = await once(socket, "connect").then(
      () => true,
      () => false,
    );
    socket.destroy();
    if (isThere) break;
    if (attempt === 400 || dnsmasq.exitCode !== null) throw new Error("dnsmasq did not start");
    await sleep(50);
  }
  return {
    url: `http://127.0.0.1:${(front.address() as AddressInfo).port}/dns-query`,
    async stop() {
      front.close();
      front.closeAllConnections();
      const ended = once(dnsmasq, "exit");
      if (dnsmasq.kill("SIGKILL")) await ended;
    },
  };
}
