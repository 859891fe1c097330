/** A node of another deployment: its calls go through a core, which alone has links. */
import type { NodeRpc } from "./rpc.ts";

const methods = [
  "forward",
  "takeOver",
  "takeOverKnown",
  "takeOverMessages",
  "takeOverDone",
  "routes",
  "holdings",
  "stats",
  "clients",
  "client",
  "kick",
  "subscriptions",
] as const satisfies readonly (keyof NodeRpc)[];

type Call = (method: keyof NodeRpc, args: readonly unknown[]) => Promise<unknown>;

/** @param call makes the call through a core. */
export function remoteNode(call: Call): NodeRpc {
  const entries = methods.map((method) => [method, (...args: readonly unknown[]) => call(method, args)]);
  return Object.fromEntries(entries) as NodeRpc;
}

/** Whether a node has a method of this name: calls come from other deployments. */
export function isNodeMethod(name: string): name is keyof NodeRpc {
  return (methods as readonly string[]).includes(name);
}
