// The floors, on one worker: ws://host:port/bare, /store, and /gateway?node=3, a gateway of that name.

import { Bare } from "./bare.ts";
import { Gateway, Hub, type GatewayBindings } from "./gateways.ts";
import { Store } from "./store.ts";

export { Bare, Gateway, Hub, Store };

// wrangler.toml names these classes: without them there is no bundle.
export { DurableObject as BrokerNode, DurableObject as Coordinator } from "cloudflare:workers";

interface Bindings extends GatewayBindings {
  readonly BARE: DurableObjectNamespace<Bare>;
  readonly STORE: DurableObjectNamespace<Store>;
}

export default {
  async fetch(request: Request, env: Bindings): Promise<Response> {
    const { pathname, searchParams } = new URL(request.url);
    switch (pathname) {
      case "/bare":
        return env.BARE.getByName("bare").fetch(request);
      case "/store":
        return env.STORE.getByName("store").fetch(request);
      case "/gateway":
        return env.GATEWAY.getByName(`gateway-${searchParams.get("node") ?? "0"}`).fetch(request);
      default:
        return new Response("a floor\n");
    }
  },
};
