/**
 * What nodes and cores must hold when all is calm.
 *
 *   left        rows that nobody needs, routes that lead nowhere
 *   apart       cores that do not have the same                                                                     G8
 *   two         a session that its client id's claim does not name                                                  G4
 *   awake       a timer or a call that never ends                                                                   G7
 *
 * The names of tables are here and nowhere else.
 */
import { coresByDistance, ownerAmong } from "../../cluster/placement.ts";
import type { SimulatedObject } from "./object.ts";
import type { World } from "./world.ts";

/** The name of a cluster's deployment. */
const domain = "emqxcl";

/** The core that a node talks to; "" where there is one core. */
export function homeOf({ objects, splits: { cores } }: World, node: string): string {
  if (cores.length < 2) return "";
  const { disk } = objects.get(node)!;
  const [row] = disk.tables.includes("home") ? disk.rows<{ core: string }>("SELECT core FROM home") : [];
  return row?.core ?? coresByDistance(node, domain, cores)[0]!;
}

/**
 * Whether a node may not know, by design, what another one has of a client: those who answer it, of whom there are its home
 * and the owner of the client id, may have been out of reach of that one, of its home, or of the owner that it had claimed
 * from, and know it not even now.
 */
export function isHidden(world: World, clientId: string, holder: string, node: string): boolean {
  const { splits, now } = world;
  const felt = splits.during(now, now);
  if (felt.length === 0) return false;
  const isSplit = (a: string, b: string): boolean => felt.some(({ isBetween }) => isBetween(a, b));
  const owner = ownerAmong([...splits.cores].sort(), clientId)!;
  const answering = [node, homeOf(world, node), owner];
  const asked = [holder, homeOf(world, holder), owner];
  return answering.some((one) => asked.some((other) => isSplit(one, other)));
}

/** Whether any node has a session of the client that may be hidden from this one. */
export function hasHiddenSession(world: World, clientId: string, node: string): boolean {
  const nodes = [...world.objects.values()].filter(({ disk }) => disk.tables.includes("session"));
  const isHolder = ({ disk }: SimulatedObject): boolean =>
    disk.rows<Session>("SELECT client_id FROM session").some(({ client_id }) => client_id === clientId);
  return nodes.some((each) => isHidden(world, clientId, each.name, node) && isHolder(each));
}

interface Session {
  readonly client_id: string;
}

/** Tables whose rows may outlive all sessions. */
const lasting: ReadonlySet<string> = new Set([
  "member",
  "retained",
  "schema_version",
  "counter",
  "reserved",
  "known",
  "forgotten",
  "home",
  "fact",
  "writer",
  "removed",
  "cleared",
]);

/** What every core must have alike. */
const shared = {
  routes: "SELECT key, node, members FROM route ORDER BY key, node",
  "retained messages": "SELECT topic, writer, version, hex(message) AS message FROM retained ORDER BY topic",
  versions: "SELECT name, version FROM writer ORDER BY name",
  members: "SELECT name, role, home, term, joined_at, state, changed_at, down_at FROM member ORDER BY name",
};

/** All cores have the same, and take all members for running. */
export function checkReplicas(world: World, cores: readonly SimulatedObject[]): void {
  const [first, ...others] = cores as [SimulatedObject, ...SimulatedObject[]];
  for (const [what, query] of Object.entries(shared)) {
    const rowsOf = ({ disk }: SimulatedObject): string[] => disk.rows(query).map((row) => JSON.stringify(row));
    const rows = rowsOf(first);
    for (const core of others) {
      const theirs = rowsOf(core);
      const missing = rows.filter((row) => !theirs.includes(row));
      const more = theirs.filter((row) => !rows.includes(row));
      if (missing.length > 0)
        world.violate(`apart: ${what} of ${first.name} not of ${core.name}: ${missing.join(" ")}`);
      if (more.length > 0) world.violate(`apart: ${what} of ${core.name} not of ${first.name}: ${more.join(" ")}`);
    }
  }
  for (const { name, disk } of cores)
    for (const member of disk.rows<{ name: string }>("SELECT name FROM member WHERE down_at > 0 OR state <> 'in'"))
      world.violate(`apart: ${name} takes ${member.name} for down`);
}

/** Routes of a core are those of the nodes' subscriptions. */
export function checkRoutes(world: World, nodes: readonly SimulatedObject[], core: SimulatedObject): void {
  const held = nodes.flatMap((node) =>
    node.disk
      .rows<{ filter: string }>("SELECT DISTINCT filter FROM subscription WHERE session IN (SELECT id FROM session)")
      .map(({ filter }) => `${filter} on ${node.name}`),
  );
  // A group's route without connected members is taken back when nobody else is there to take a message.
  const known = core.disk
    .rows<{ key: string; node: string }>("SELECT key, node FROM route WHERE members > 0 OR key NOT LIKE '$share/%'")
    .map(({ key, node }) => `${key} on ${node}`);
  for (const route of held)
    if (!known.includes(route) && !route.startsWith("$share/")) world.violate(`left: no route for ${route}`);
  for (const route of known) if (!held.includes(route)) world.violate(`left: a route without subscribers, ${route}`);
}

export function checkNodes(world: World, nodes: readonly SimulatedObject[]): void {
  for (const node of nodes) {
    for (const table of ["connection", "subscription", "queue", "adoption"]) {
      const orphans = node.disk.rows(`SELECT * FROM ${table} WHERE session NOT IN (SELECT id FROM session)`);
      if (orphans.length > 0) world.violate(`left: ${orphans.length} rows of no session in ${table} of ${node.name}`);
    }
    const unread = node.disk.rows("SELECT * FROM log WHERE filter NOT IN (SELECT filter FROM subscription)");
    if (unread.length > 0) world.violate(`left: ${unread.length} rows that nobody reads in the log of ${node.name}`);
    const own = node.disk.rows("SELECT * FROM own");
    if (own.length > 0) world.violate(`left: ${own.length} messages of its own that ${node.name} has not sent`);
  }
}

/** Each session has a claim that names its node, on the core that owns its client id and on no other. */
export function checkClaims(world: World, nodes: readonly SimulatedObject[], cores: readonly SimulatedObject[]): void {
  const names = cores.map(({ name }) => name).sort();
  for (const core of cores) {
    const claims = core.disk.rows<{ client_id: string; node: string; holders: string }>("SELECT * FROM claim");
    for (const { client_id, node } of claims)
      if (ownerAmong(names, client_id) !== core.name)
        world.violate(`left: a claim of ${client_id} for ${node} on ${core.name}, which does not own it`);
    for (const node of nodes)
      for (const { client_id } of node.disk.rows<Session>("SELECT client_id FROM session")) {
        if (ownerAmong(names, client_id) !== core.name) continue;
        const claim = claims.find((each) => each.client_id === client_id);
        // A holder is one whose session is older, and goes when the client connects next.
        if (claim?.node !== node.name && !claim?.holders.split(" ").some((each) => each.startsWith(`${node.name}/`)))
          world.violate(`two: ${client_id} has a session on ${node.name} and a claim on ${claim?.node}`);
      }
  }
}

/** When the last session has ended nothing of any is left. */
export function checkEmpty(world: World): void {
  for (const { name, disk } of world.objects.values())
    for (const table of disk.tables) {
      const [{ count }] = disk.rows<{ count: number }>(`SELECT count(*) AS count FROM ${table}`) as [{ count: number }];
      // A claim that a crash kept from being released is the next one's to replace.
      if (count > 0 && !lasting.has(table) && table !== "claim")
        world.violate(`left: ${count} rows in ${table} of ${name}`);
    }
}

/** Nothing is under way: every object may sleep. */
export function checkAsleep(world: World): void {
  for (const { name, life } of world.objects.values())
    if (life && !life.maySleep) {
      const calls = `${life.callsIn.size + life.callsOut.size} calls, ${life.linesIn.size} lines`;
      world.violate(`awake: ${name} has ${life.timers.size} timers, ${calls}`);
    }
}
