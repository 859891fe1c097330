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
import { hostOf, locationOf } from "./name.ts";
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

/** The first of the key's order; undefined: there are no names. */
export function ownerAmong(names: readonly string[], key: string): string | undefined {
  return names.length < 2 ? names[0] : rendezvous(key, names)[0];
}

/** Degrees north and east of the middle of each location. */
const places: { readonly [location in LocationHint]: readonly [north: number, east: number] } = {
  wnam: [37, -120],
  enam: [40, -78],
  sam: [-23, -47],
  weur: [50, 3],
  eeur: [52, 21],
  apac: [20, 78],
  "apac-ne": [35, 135],
  "apac-se": [5, 105],
  oc: [-33, 148],
  afr: [-26, 28],
  me: [25, 50],
};

/** The cores as a node should try them: the nearest first, equally near ones in the node's own order. */
export function coresByDistance(node: NodeName, domain: string, cores: readonly NodeName[]): NodeName[] {
  const here = placeOf(node, domain);
  const order = rendezvous(node, cores).map((core) => ({ core, distance: distance(here, placeOf(core, domain)) }));
  return order.sort((a, b) => a.distance - b.distance).map(({ core }) => core);
}

function placeOf(name: NodeName, domain: string): readonly [number, number] | undefined {
  const location = locationHints.find((hint) => hint === locationOf(name, domain));
  return location && places[location];
}

/** By the angle between the two; where one is not known, all are equally far. */
function distance(a: readonly [number, number] | undefined, b: readonly [number, number] | undefined): number {
  if (!a || !b) return 0;
  const [northA, eastA, northB, eastB] = [...a, ...b].map((degrees) => (degrees * Math.PI) / 180) as [
    number,
    number,
    number,
    number,
  ];
  const cosine = Math.sin(northA) * Math.sin(northB) + Math.cos(northA) * Math.cos(northB) * Math.cos(eastA - eastB);
  return Math.acos(Math.min(1, cosine));
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
