/**
 * Placement: which node does a connection go to?
 *
 *     request.cf -> location "weur" -> slots node-0@weur.emqxcl ... node-7@weur.emqxcl, in an order
 *
 * The worker tries the slots in that order until one has room, so a cluster grows by itself. With a key
 * (something that stays the same for one client) the order is by rendezvous hashing: each client has an
 * order of its own, that does not change when slots are added but for the clients that the new slots
 * take. Without a key it is the natural order, and a small cluster stays on node-0.
 *
 * Cost: one hash a slot and a sort, 0.2 ms for 1000 slots.
 */
import { hash32 } from "./hash.ts";
import { hostOf } from "./name.ts";
import type { NodeName } from "./name.ts";

/** Where Cloudflare can be asked to create a Durable Object. */
export const locationHints = [
  "wnam",
  "enam",
  "sam",
  "weur",
  "eeur",
  "apac",
  "apac-ne",
  "apac-se",
  "oc",
  "afr",
  "me",
] as const;

export type LocationHint = (typeof locationHints)[number];

/** The part of `request.cf` that says where a connection comes from; longitude in degrees, as text. */
export interface ConnectionRegion {
  readonly continent?: string | undefined;
  readonly country?: string | undefined;
  readonly longitude?: string | undefined;
}

/** Between the Rocky Mountains and the Mississippi; between Germany and Poland. Degrees east. */
const northAmericaSplit = -100;
const europeSplit = 15;

const middleEast = countries("AE BH CY EG IL IQ IR JO KW LB OM PS QA SA SY TR YE");
const northEastAsia = countries("CN HK JP KP KR MN MO TW");
const southEastAsia = countries("BN ID KH LA MM MY PH SG TH TL VN");

/** The location nearest to a connection; "local" where the region is not known (no Cloudflare, Tor). */
export function locationOfConnection(cf: ConnectionRegion | undefined): LocationHint | "local" {
  const country = cf?.country ?? "";
  if (middleEast.has(country)) return "me";
  const longitude = Number.parseFloat(cf?.longitude ?? "");
  switch (cf?.continent) {
    case "NA":
      return longitude < northAmericaSplit ? "wnam" : "enam";
    case "SA":
      return "sam";
    case "EU":
      return longitude > europeSplit ? "eeur" : "weur";
    case "AS":
      if (northEastAsia.has(country)) return "apac-ne";
      return southEastAsia.has(country) ? "apac-se" : "apac";
    case "OC":
    case "AN":
      return "oc";
    case "AF":
      return "afr";
    default:
      return "local";
  }
}

/**
 * The names in the key's order: by the hash of key and name, highest first (rendezvous hashing). A name
 * that is added or removed changes the first choice only of the keys that it gains or loses. Stable for
 * ever, as `hash32` is.
 */
export function rendezvous(key: string, names: readonly string[]): string[] {
  return names
    .map((name) => ({ name, weight: hash32(`${key}\n${name}`) }))
    .sort((a, b) => b.weight - a.weight || (a.name < b.name ? -1 : 1))
    .map(({ name }) => name);
}

/** The `count` nodes of a location in the key's order; without a key node-0 first. */
export function slots(location: string, domain: string, count: number, key: string | undefined): NodeName[] {
  const host = hostOf(location, domain);
  const names = Array.from({ length: count }, (_, slot) => `node-${slot}@${host}`);
  return key === undefined ? names : rendezvous(key, names);
}

function countries(codes: string): ReadonlySet<string> {
  return new Set(codes.split(" "));
}
