// `npm run ctl -- cluster status`: the control command, as `emqx ctl`, over the API of a running broker.
//
//   TRELLIS_URL        the broker, http://127.0.0.1:8083
//   TRELLIS_API_TOKEN  the operators' token, the same that the broker has; never an argument, where others would see it
//
// Exit code 0 when what was asked for is so, or has been given whole; 1 otherwise.

import { parseArgs } from "node:util";

import type { ClientInfo, RouteInfo, SubscriptionInfo } from "../durable-objects/rpc.ts";

const timeoutMs = 60_000;
/** Items of a page, and of one that is always small enough to be given. */
const pageItems = 1000;
const pageItemsFew = 20;

interface Command {
  /** Words, then the <name> of an argument. */
  readonly usage: string;
  readonly about: string;
  readonly run: (argument: string) => Promise<void>;
}

const commands: readonly Command[] = [
  {
    usage: "cluster status",
    about: "Running and stopped nodes; --json: as JSON",
    run: async () => console.log(`Cluster status: ${erlangMap(await clusterStatus())}`),
  },
  {
    usage: "cluster join <Node>",
    about: "Join the cluster of another core",
    run: async (node) => {
      await change("PUT", `/cluster/${encoded(node)}/join`, "Failed to join the cluster");
      await printChanged("Join the cluster successfully.");
    },
  },
  {
    usage: "cluster leave",
    about: "Leave the cluster",
    run: async () => {
      await change("DELETE", "/cluster", "Failed to leave the cluster");
      await printChanged("Leave the cluster successfully.");
    },
  },
  {
    usage: "cluster force-leave <Node>",
    about: "Remove a node from the cluster",
    run: async (node) => {
      await change("DELETE", `/cluster/${encoded(node)}/force_leave`, "Failed to remove the node from cluster");
      await printChanged("Remove the node from cluster successfully.");
    },
  },
  {
    usage: "cluster discovery enable",
    about: "Enable and run cluster discovery",
    run: async () => {
      await change("PUT", "/cluster/discovery", "Failed to enable cluster discovery");
      console.log("Automatic cluster discovery enabled.");
    },
  },
  {
    usage: "topics list",
    about: "All routes: topic filter, node",
    run: () => printList("topics", routeLine),
  },
  {
    usage: "topics show <Topic>",
    about: "The routes of one topic filter",
    run: async (topic) => {
      for (const route of await ask<RouteInfo[]>("GET", `/topics/${encoded(topic)}`)) console.log(routeLine(route));
    },
  },
  {
    usage: "clients list",
    about: "All clients, connected or not",
    run: () => printList("clients", clientLine),
  },
  {
    usage: "clients show <ClientId>",
    about: "One client",
    run: async (clientId) => console.log(clientLine(await ask<ClientInfo>("GET", `/clients/${encoded(clientId)}`))),
  },
  {
    usage: "clients kick <ClientId>",
    about: "Close a client's connection and end its session",
    run: async (clientId) => {
      await ask("DELETE", `/clients/${encoded(clientId)}`);
      console.log("ok");
    },
  },
  {
    usage: "subscriptions list",
    about: "All subscriptions",
    run: () => printList("subscriptions", subscriptionLine),
  },
];

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    options: { json: { type: "boolean", default: false }, help: { type: "boolean", short: "h", default: false } },
    allowPositionals: true,
  });
  if (values.help) return console.log(usage());
  // EMQX's other name of them.
  const words = positionals[0] === "routes" ? ["topics", ...positionals.slice(1)] : positionals;
  if (values.json && words.join(" ") === "cluster status") return console.log(JSON.stringify(await clusterStatus()));
  const command = values.json ? undefined : commands.find((each) => isCalled(each, words));
  if (command === undefined) throw new Error(usage());
  await command.run(words.at(-1)!);
}

function isCalled({ usage }: Command, words: readonly string[]): boolean {
  const wanted = usage.split(" ");
  return wanted.length === words.length && wanted.every((word, at) => word.startsWith("<") || word === words[at]);
}

function usage(): string {
  const width = Math.max(...commands.map(({ usage }) => usage.length));
  const lines = commands.map(({ usage, about }) => `  ${usage.padEnd(width)}  ${about}`);
  return [
    "Usage: npm run ctl -- <command>    (an argument that begins with - goes behind another --)",
    "",
    ...lines,
    "",
    "TRELLIS_URL says where the broker is (default http://127.0.0.1:8083), TRELLIS_API_TOKEN the token that it has.",
  ].join("\n");
}

// ---- the API ----------------------------------------------------------------------------------------------------------

/** What the API has refused, in one line. */
class Refusal extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

function apiUrl(): string {
  const text = process.env.TRELLIS_URL || "http://127.0.0.1:8083";
  const url = URL.parse(text);
  if (!url || !/^https?:$/.test(url.protocol) || url.username !== "" || url.password !== "")
    throw new Error("TRELLIS_URL: allowed is an address as http://127.0.0.1:8083 or https://broker.example.com");
  return `${url.origin}${url.pathname.replace(/\/$/, "")}/api/v5`;
}

async function ask<T>(method: string, path: string): Promise<T> {
  const url = apiUrl();
  const token = process.env.TRELLIS_API_TOKEN;
  if (!token) throw new Error("TRELLIS_API_TOKEN is not set: it is the token that the broker was started with");
  const headers = new Headers();
  try {
    headers.set("Authorization", `Bearer ${token}`);
  } catch {
    throw new Error("TRELLIS_API_TOKEN holds characters that a header cannot");
  }
  const request = fetch(`${url}${path}`, { method, headers, signal: AbortSignal.timeout(timeoutMs) });
  const response = await request.catch((error: unknown) => {
    throw new Error(`${url} does not answer (${causeOf(error)})`);
  });
  const text = await response.text();
  let body: unknown;
  try {
    body = text === "" ? undefined : JSON.parse(text);
  } catch {
    throw new Error(`${url} answers ${response.status}, and not as the API of a broker`);
  }
  if (response.ok) return body as T;
  const { code = "", message = `${url} answers ${response.status}` } = (body ?? {}) as Partial<Refusal>;
  throw new Refusal(code, message);
}

function causeOf(error: unknown): string {
  const { cause, message } = error as Error;
  const { code, message: reason } = (cause ?? {}) as { code?: string; message?: string };
  return code ?? reason ?? message;
}

/** A change of the cluster, which says why it is not done as EMQX does. */
async function change(method: string, path: string, failed: string): Promise<void> {
  try {
    await ask(method, path);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    throw new Error(error.message.startsWith("ignore:") ? "Ignore." : `${failed}: ${error.message}`, { cause: error });
  }
}

function encoded(argument: string): string {
  return encodeURIComponent(argument);
}

// ---- what is printed --------------------------------------------------------------------------------------------------

interface ClusterStatus {
  readonly running_nodes: readonly string[];
  readonly stopped_nodes: readonly string[];
}

async function clusterStatus(): Promise<ClusterStatus> {
  const answer = await ask<{ nodes: string[]; stopped_nodes: string[] }>("GET", "/cluster");
  return { running_nodes: answer.nodes.sort(), stopped_nodes: answer.stopped_nodes.sort() };
}

async function printChanged(text: string): Promise<void> {
  console.log(text);
  console.log(`Cluster status: ${erlangMap(await clusterStatus())}`);
}

function erlangMap(lists: object): string {
  const entries = Object.entries(lists) as [string, readonly string[]][];
  return `#{${entries.map(([name, items]) => `${name} => [${items.map((each) => `'${each}'`).join(",")}]`).join(", ")}}`;
}

/** Prints all pages of a list; nodes that have not answered make it a failure in the end. */
async function printList<N extends keyof Lists>(name: N, lineOf: (item: Lists[N]) => string): Promise<void> {
  const silent = new Set<string>();
  let printed = 0;
  for (let page = 1, limit = pageItems, hasNext = true; hasNext; page++) {
    try {
      const { data, meta } = await ask<ListAnswer<Lists[N]>>("GET", `/${name}?page=${page}&limit=${limit}`);
      for (const item of data) console.log(lineOf(item));
      for (const node of meta.silent_nodes ?? []) silent.add(node);
      printed += data.length;
      hasNext = meta.hasnext;
    } catch (error) {
      if (!(error instanceof Refusal) || error.code !== "PAGE_TOO_LARGE" || limit === pageItemsFew) throw error;
      page = ((page - 1) * limit) / pageItemsFew;
      limit = pageItemsFew;
    }
  }
  if (silent.size > 0) throw new Error(`Not all is here: no answer from ${[...silent].join(", ")}`);
  if (printed === 0) console.log(`No ${name}.`);
}

interface Lists {
  readonly topics: RouteInfo;
  readonly clients: ClientInfo;
  readonly subscriptions: SubscriptionInfo;
}

interface ListAnswer<T> {
  readonly data: readonly T[];
  readonly meta: { readonly hasnext: boolean; readonly silent_nodes?: readonly string[] };
}

function routeLine({ topic, node }: RouteInfo): string {
  return `${shown(topic)} -> ${node}`;
}

function subscriptionLine({ clientid, topic, qos, nl, rh, rap }: SubscriptionInfo): string {
  return `${shown(clientid)} -> topic:${shown(topic)} qos:${qos} nl:${nl} rh:${rh} rap:${rap}`;
}

function clientLine(client: ClientInfo): string {
  const { ip_address, port, connected_at } = client;
  const facts: [name: string, value: string | number | boolean | undefined][] = [
    ["username", shown(client.username ?? "undefined")],
    ["peername", ip_address && (port === undefined ? ip_address : `${ip_address}:${port}`)],
    ["clean_start", client.clean_start],
    ["keepalive", client.keepalive],
    ["session_expiry_interval", client.expiry_interval],
    ["subscriptions", client.subscriptions_cnt],
    ["inflight", client.inflight_cnt],
    ["awaiting_rel", client.awaiting_rel_cnt],
    ["enqueued_msgs", client.mqueue_len],
    ["connected", client.connected],
    ["connected_at", connected_at && Date.parse(connected_at)],
    ["node", client.node],
  ];
  const known = facts.filter(([, value]) => value !== undefined).map(([name, value]) => `${name}=${value}`);
  return `Client(${[shown(client.clientid), ...known].join(", ")})`;
}

/** What a client has chosen must not write to the operator's terminal as if it were this command. */
function shown(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (char) => `\\u{${char.codePointAt(0)!.toString(16)}}`);
}

// A reader that has seen enough, as `head`, ends it.
process.stdout.on("error", () => process.exit(0));

await main().catch((error: unknown) => {
  const isMissing = error instanceof Refusal && error.code.endsWith("_NOT_FOUND");
  console.error(isMissing ? "Not Found." : error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
