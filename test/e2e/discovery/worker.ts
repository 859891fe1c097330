// Strategies where they run: in workerd, on its fetch. One request is one call of one strategy.

import { strategyOf, type DiscoverySettings } from "../../../durable-objects/coordinator/discovery/strategies.ts";

// wrangler.toml names these classes: without them there is no bundle.
export { DurableObject as BrokerNode, DurableObject as Coordinator } from "cloudflare:workers";

export interface Call {
  readonly settings: DiscoverySettings;
  readonly self: string;
  readonly verb: "discover" | "lock" | "unlock" | "register" | "unregister";
}

export type Answer = { readonly result: unknown } | { readonly error: string };

export default {
  async fetch(request: Request): Promise<Response> {
    const { settings, self, verb } = (await request.json()) as Call;
    const strategy = strategyOf(settings, self, (url, init) => fetch(url, init));
    const answer: Answer = await Promise.resolve(strategy?.[verb]()).then(
      (result: unknown) => ({ result }),
      (error: unknown) => ({ error: error instanceof Error ? error.message : "no Error" }),
    );
    return Response.json(answer);
  },
};
