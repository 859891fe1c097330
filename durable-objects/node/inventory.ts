/** What a node has, told page by page to a core that comes to answer for it: its routes, and the client ids it holds. */
import { ownerAmong } from "../../cluster/placement.ts";
import { isShared } from "../../mqtt/topic.ts";
import type { HeldSession, Holdings, NodeRoutes, RegistryMove } from "../rpc.ts";
import type { Broker } from "./broker.ts";

/**
 * All routes. Those of subscriptions that are not on disk yet come first: when they are, the pages may be past them.
 */
export function routesOf({ store, table, sequence }: Broker, after: string): NodeRoutes {
  const version = sequence.last;
  const { items, isLast } = store.filters(after);
  const saved = items.map(({ filter }) => filter);
  const keys = new Set([...(after === "" ? table.unsaved() : []), ...saved]);
  const routes = [...keys].flatMap((key) => {
    if (!isShared(key)) return [{ key, members: 0 }];
    const route = table.routeOf(key);
    return route.kind === "add" ? [{ key, members: route.members }] : [];
  });
  return { version, routes, next: isLast ? undefined : saved.at(-1) };
}

/** Those whose connection is still on the way come first, too: with epoch 0 while the claim is not answered. */
export function holdingsOf({ store, sessions: all, claims }: Broker, move: RegistryMove, after: string): Holdings {
  const hasCome = (clientId: string): boolean =>
    ownerAmong(move.after, clientId) === move.owner && ownerAmong(move.before, clientId) !== move.owner;
  all.saveNew();
  const { items: saved, isLast } = store.clientIds(after);
  const held = saved.map(({ clientId, epoch }) => ({ clientId, epoch, isOpening: claims.isOpening(clientId) }));
  const opening: HeldSession[] =
    after === "" ? claims.opening().map(([clientId, epoch]) => ({ clientId, epoch, isOpening: true })) : [];
  const sessions = [...held, ...opening].filter(({ clientId }) => hasCome(clientId));
  return { sessions, next: isLast ? undefined : saved.at(-1)?.clientId };
}
