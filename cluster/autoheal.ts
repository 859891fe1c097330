/**
 * Autoheal: what to do when a partition is over (EMQX's ekka_autoheal).
 *
 * A core that sees another one come back, after each had taken the other for down, waits `confirmMs` and reports it to
 * the leader, the oldest core. When all cores are there again the leader asks each whom it sees: a core counts those as
 * seen that it has not lost since the last healing. Cores that see the same make a side:
 *
 *     views   a: [a b]   b: [a b]   c: [c]          sides   [a b] [c]
 *
 * The largest side wins; of equal ones the leader's. The oldest core of the winners is the coordinator: it has the others
 * restart one at a time, each of which takes over anew what the cluster knows, and has its nodes announce their routes.
 *
 * EMQX cannot heal two cores that each see themselves alone, nor more than two sides; here a side is what cores see
 * alike, so there may be any number of them, of any size.
 */
import type { NodeName } from "./name.ts";

export interface Healing {
  readonly coordinator: NodeName;
  /** To be restarted, in this order. */
  readonly minority: readonly NodeName[];
}

/**
 * @param views whom each core sees, itself too
 * @param byAge all cores, the oldest first; the first is the leader
 * @returns undefined: all see the same.
 */
export function planHealing(
  views: ReadonlyMap<NodeName, readonly NodeName[]>,
  byAge: readonly NodeName[],
): Healing | undefined {
  const sides = sidesOf(views, byAge);
  if (sides.length < 2) return undefined;
  // Sides are in the order of their oldest, the leader's first: of equal ones the first is taken.
  const winners = sides.reduce((best, side) => (side.length > best.length ? side : best));
  const minority = byAge.filter((core) => !winners.includes(core));
  return { coordinator: winners[0]!, minority };
}

/** The cores grouped by whom they see, each group and the groups by age. */
function sidesOf(views: ReadonlyMap<NodeName, readonly NodeName[]>, byAge: readonly NodeName[]): NodeName[][] {
  const sides = new Map<string, NodeName[]>();
  for (const core of byAge) {
    const seen = byAge.filter((other) => other === core || views.get(core)?.includes(other)).join(" ");
    const side = sides.get(seen);
    if (side) side.push(core);
    else sides.set(seen, [core]);
  }
  return [...sides.values()];
}
