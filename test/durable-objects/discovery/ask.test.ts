// Requests that a discovery server does not answer as it should, over real HTTP.

import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import { ask, below, Refusal, Silence } from "../../../durable-objects/coordinator/discovery/ask.ts";
import { limits } from "../../../mqtt/limits.ts";
import { patience } from "../../support/patience.ts";

async function serve(answer: (response: ServerResponse) => void): Promise<URL> {
  const server = createServer((_, response) => answer(response));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    server.close();
    server.closeAllConnections();
  });
  return new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/path?secret=1`);
}

async function errorOf(url: URL, init: RequestInit = {}, timeoutMs = patience.timeout): Promise<Error> {
  return ask(fetch, url, init, timeoutMs).then(
    () => new Error("it was answered"),
    (error: Error) => error,
  );
}

describe("a question to a discovery server", () => {
  it("has a time, to the last byte of the answer", async () => {
    for (const answer of [() => {}, (response: ServerResponse) => void response.writeHead(200).write("[")]) {
      const url = await serve(answer);
      const error = await errorOf(url, {}, 200);
      expect(error).toBeInstanceOf(Silence);
      expect(error.message).toBe(`${url.origin}/path: no answer within 0.2 s`);
    }
  });

  it("[G6] takes no more than it may, however much comes", async () => {
    let sent = 0;
    const url = await serve((response) => {
      const more = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536))) sent += 65_536;
        response.once("drain", more);
      };
      more();
    });
    const { message } = await errorOf(url);
    expect(message).toBe(`${url.origin}/path: the answer is larger than ${limits.discoveryAnswerBytesMax} bytes`);
    expect(sent).toBeLessThan(64 * limits.discoveryAnswerBytesMax);
  });

  it("goes where it was sent, and not where the answer says", async () => {
    const elsewhere = await serve((response) => void response.end("secret received"));
    const url = await serve((response) => void response.writeHead(307, { location: elsewhere.href }).end());
    expect(await errorOf(url, { headers: { authorization: "Bearer secret" } })).toMatchObject({ status: 307 });
  });

  it("is refused with the server's reason, in a few words", async () => {
    const url = await serve((response) => {
      response.writeHead(403).end(JSON.stringify({ message: "no ".repeat(1_000) }));
    });
    const error = await errorOf(url);
    expect(error).toBeInstanceOf(Refusal);
    expect(error.message).toMatch(/path: answered 403 \(no no /);
    expect(error.message.length).toBeLessThan(300);
  });

  it("goes below the path that the server is at", () => {
    for (const server of ["https://example.com/etcd", "https://example.com/etcd/"])
      expect(below(server, "v3/kv/range").href).toBe("https://example.com/etcd/v3/kv/range");
    expect(below("http://127.0.0.1:2379", "v3/kv/range").href).toBe("http://127.0.0.1:2379/v3/kv/range");
  });

  it("says what is wrong, and neither the query nor what was sent", async () => {
    const url = new URL("http://127.0.0.1:1/path?secret=1");
    const { message } = await errorOf(url, { headers: { authorization: "secret" } });
    expect(message).toMatch("http://127.0.0.1:1/path: cannot be reached (");
    expect(message).not.toMatch("secret");
  });
});
