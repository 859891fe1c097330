/**
 * The edge: every request comes here first. An upgrade to MQTT goes to a node of the client's region; what
 * is under /api/v5 is for operators; everything else gets a plain answer.
 */
import { readSettings, type Settings } from "../cluster/config.ts";
import { answerOperator, apiPath } from "./api.ts";
import { allowsNodeChoice } from "./operator.ts";
import { refuseOrigin } from "./origin.ts";
import { connectToNode } from "./placement.ts";
import { chooseSubprotocol, subprotocols } from "./subprotocol.ts";

export { BrokerNode } from "../durable-objects/node/broker-node.ts";
export { Coordinator } from "../durable-objects/coordinator/coordinator.ts";

const paths = ["/", "/mqtt"];

/** The settings of each environment, which never changes: read once. */
const settingsOf = new WeakMap<Env, Settings>();

export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    let settings: Settings;
    try {
      settings = settingsOf.get(env) ?? readSettings(env);
      settingsOf.set(env, settings);
    } catch (error) {
      console.error(error instanceof Error ? error.message : error);
      return plain(500, "the settings of this broker are wrong: see its log");
    }
    return answer(request, env, settings);
  },
} satisfies ExportedHandler<Env>;

function answer(request: Request, env: Env, settings: Settings): Response | Promise<Response> {
  const url = new URL(request.url);
  if (url.pathname.startsWith(`${apiPath}/`)) return answerOperator(request, env, settings);
  if (!paths.includes(url.pathname))
    return plain(404, `nothing is here: MQTT over WebSocket is at ${paths.join(" and ")}`);
  if (request.method !== "GET") return plain(405, "only GET is answered here", { Allow: "GET" });
  if (request.headers.get("Upgrade")?.toLowerCase() !== "websocket")
    return plain(426, "this is an MQTT broker: connect with an MQTT client over WebSocket");
  const refusal = refuseOrigin(request, url, settings.origins, env.LOOPBACK === "true");
  if (refusal !== undefined) return plain(403, refusal);
  const subprotocol = chooseSubprotocol(request.headers.get("Sec-WebSocket-Protocol"));
  if (subprotocol === undefined)
    return plain(400, `a WebSocket subprotocol is needed, one of ${subprotocols.join(", ")}`); // [MQTT-6.0.0-3]
  const wanted = url.searchParams.get("node");
  if (wanted !== null && !allowsNodeChoice(request, env))
    return plain(403, "?node= is for operators: send Authorization: Bearer with the API token");
  return connectToNode(request, env, settings, subprotocol, wanted);
}

function plain(status: number, text: string, headers: Record<string, string> = {}): Response {
  return new Response(`${text}\n`, { status, headers: { "Content-Type": "text/plain; charset=utf-8", ...headers } });
}
