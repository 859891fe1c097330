import type { Settings } from "../cluster/config.ts";
import { locationOf, parseNodeName, type NodeName } from "../cluster/name.ts";
import { locationHints, locationOfConnection, slots, type ConnectionRegion } from "../cluster/placement.ts";

/**
 * Hands the upgrade to a node: the one asked for, or the first of the client's region that is not full. The slots are
 * tried in the order that the client's address gives them, so that a client comes back to the node it knows and the
 * nodes fill evenly; without an address, in their own order.
 */
export async function connectToNode(
  request: Request,
  env: Env,
  settings: Settings,
  wanted: string | null,
): Promise<Response> {
  if (wanted !== null) {
    const fault = faultOf(wanted, settings);
    return fault === undefined
      ? nodeAt(env, wanted, settings.domain).fetch(request)
      : new Response(`${fault}\n`, { status: 400 });
  }
  const location = locationOfConnection(request.cf as ConnectionRegion | undefined);
  const address = request.headers.get("CF-Connecting-IP") ?? undefined;
  for (const node of slots(location, settings.domain, settings.node.slots, address)) {
    const response = await nodeAt(env, node, settings.domain).fetch(request);
    if (response.status !== 503) return response;
  }
  return new Response(`all nodes in ${location} are full\n`, { status: 503, headers: { "Retry-After": "10" } });
}

/** A core is no node that takes clients, and one name is not to be both. */
function faultOf(node: string, { cluster, domain }: Settings): string | undefined {
  try {
    parseNodeName(node);
  } catch (error) {
    return (error as Error).message;
  }
  if (cluster.core_nodes.includes(node)) return `${node} is a core: clients connect to nodes`;
  return locationOf(node, domain) === undefined ? `${node} is not a node of ${domain}` : undefined;
}

/** The location hint counts when the object is made, and never after. */
function nodeAt(env: Env, node: NodeName, domain: string) {
  const hint = locationHints.find((location) => location === locationOf(node, domain));
  return env.NODE.getByName(node, hint === undefined ? {} : { locationHint: hint });
}
