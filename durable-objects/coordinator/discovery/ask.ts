import { limits } from "../../../mqtt/limits.ts";

export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** The server has answered, and not with success. */
export class Refusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.name = "Refusal";
    this.status = status;
  }
}

/** It has not answered in time. */
export class Silence extends Error {
  constructor(message: string) {
    super(message);
    this.name = "Silence";
  }
}

const reasonCharsMax = 200;

/** "https://host/etcd", "v3/kv/range" -> https://host/etcd/v3/kv/range */
export function below(server: string, path: string): URL {
  return new URL(path, server.replace(/\/*$/, "/"));
}

/** One request, bounded in time and in size. Its errors say the address without the query and nothing of what was sent. */
export async function ask(fetch: Fetch, url: URL, init: RequestInit, answerMs: number): Promise<Uint8Array> {
  const where = `${url.origin}${url.pathname}`;
  const signal = AbortSignal.timeout(answerMs);
  let response: Response;
  let body: Uint8Array | undefined;
  try {
    // A redirect would take the token elsewhere.
    response = await fetch(url.href, { ...init, redirect: "manual", signal });
    body = await read(response);
  } catch (error) {
    if (signal.aborted) throw new Silence(`${where}: no answer within ${answerMs / 1000} s`);
    throw new Error(`${where}: cannot be reached (${causeOf(error)})`, { cause: error });
  }
  if (body === undefined) {
    throw new Error(`${where}: the answer is larger than ${limits.discoveryAnswerBytesMax} bytes`);
  }
  if (!response.ok) throw new Refusal(response.status, `${where}: answered ${response.status}${reasonOf(body)}`);
  return body;
}

/** As `ask`; the answer is JSON, and nothing is known of its form. */
export async function askJson(fetch: Fetch, url: URL, init: RequestInit, answerMs: number): Promise<unknown> {
  const body = await ask(fetch, url, init, answerMs);
  try {
    return JSON.parse(new TextDecoder().decode(body)) as unknown;
  } catch {
    throw new Error(`${url.origin}${url.pathname}: the answer is not JSON`);
  }
}

/** The body; undefined if it is too large. */
async function read(response: Response): Promise<Uint8Array | undefined> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  const reader = (response.body as ReadableStream<Uint8Array> | null)?.getReader();
  for (;;) {
    const { value } = (await reader?.read()) ?? {};
    if (value === undefined) break;
    size += value.length;
    if (size > limits.discoveryAnswerBytesMax) {
      await reader?.cancel();
      return undefined;
    }
    chunks.push(value);
  }
  const body = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    body.set(chunk, at);
    at += chunk.length;
  }
  return body;
}

/** The `message` of an error that is JSON, as etcd and Kubernetes give it. */
function reasonOf(body: Uint8Array): string {
  try {
    const { message } = JSON.parse(new TextDecoder().decode(body)) as { readonly message?: unknown };
    return typeof message === "string" ? ` (${message.slice(0, reasonCharsMax)})` : "";
  } catch {
    return "";
  }
}

/** In Node the reason is below a "fetch failed". */
function causeOf(error: unknown): string {
  if (!(error instanceof Error)) return "for an unknown reason";
  const { message } = error.cause instanceof Error ? error.cause : error;
  return message.slice(0, reasonCharsMax);
}
