/**
/**
 * The edge: every request comes here first. An upgrade to MQTT goes to a node of the client's region, one of another
 * deployment's core to the core it asks for; what is under /api/v5 is for operators; everything else gets a plain answer.
 */
import { readSettings, type Settings } from "../cluster/config.ts";
import { chooseSubprotocol, subprotocols } from "../mqtt/subprotocol.ts";
import { answerOperator, apiPath } from "./api.ts";
import { linkToCore, withoutEffect, type SocketProps } from "./link.ts";
import { allowsNodeChoice } from "./operator.ts";
import { refuseOrigin } from "./origin.ts";
import { connectToNode } from "./placement.ts";
import { plain } from "./plain.ts";

export { BrokerNode } from "../durable-objects/node/broker-node.ts";
export { Coordinator } from "../durable-objects/coordinator/coordinator.ts";

const paths = ["/", "/mqtt"];
const linkPath = "/link";

/** The settings of each environment, which never changes: read once. */
const settingsOf = new WeakMap<Env, Settings>();

export default {
  async fetch(request: Request, env: Env, { props }: ExecutionContext<SocketProps>): Promise<Response> {
    let settings: Settings;
    try {
      settings = settingsOf.get(env) ?? start(env);
    } catch (error) {
      console.error(error instanceof Error ? error.message : error);
      return plain(500, "the settings of this broker are wrong: see its log");
    }
    return answer(request, env, settings, props);
  },
} satisfies ExportedHandler<Env, unknown, unknown, SocketProps>;

function start(env: Env): Settings {
  const settings = readSettings(env);
  settingsOf.set(env, settings);
  const line = withoutEffect(settings, env);
  if (line !== undefined) console.log(line);
  // A core looks for its cluster once it is awake, and clients may be long in coming.
  if (settings.node.name !== undefined) void env.COORDINATOR.getByName(settings.node.name).isReady();
  return settings;
}

function answer(request: Request, env: Env, settings: Settings, props: SocketProps): Response | Promise<Response> {
  const url = new URL(request.url);
  if (url.pathname.startsWith(`${apiPath}/`)) return answerOperator(request, env, settings);
  if (url.pathname !== linkPath && !paths.includes(url.pathname))
    return plain(404, `nothing is here: MQTT over WebSocket is at ${paths.join(" and ")}`);
  if (request.method !== "GET") return plain(405, "only GET is answered here", { Allow: "GET" });
  if (request.headers.get("Upgrade")?.toLowerCase() !== "websocket")
    return plain(426, "this is an MQTT broker: connect with an MQTT client over WebSocket");
  if (url.pathname === linkPath) return linkToCore(request, url, env, settings, props);
  const refusal = refuseOrigin(request, url, settings.origins, env.LOOPBACK === "true");
  if (refusal !== undefined) return plain(403, refusal);
  if (chooseSubprotocol(request.headers.get("Sec-WebSocket-Protocol")) === undefined)
    return plain(400, `a WebSocket subprotocol is needed, one of ${subprotocols.join(", ")}`); // [MQTT-6.0.0-3]
  const wanted = url.searchParams.get("node");
  if (wanted !== null && !allowsNodeChoice(request, env))
    return plain(403, "?node= is for operators: send Authorization: Bearer with the API token");
  return connectToNode(request, env, settings, wanted);
}
