/**
 * What must hold, and the ledger of what the clients have seen.
 *
 *   lost        acknowledged, and not there at a session that was subscribed when it was published and ever since   G1
 *   twice       at QoS 2 from end to end                                                                            G1
 *   order       a first arrival behind a later message's                                                            G2
 *   will        not there where a connection was lost, or there where it was not
 *   retained    not there, or not the last one
 *   two         connections of one client id that are both open                                                     G4
 *   session     not present where it must be, or the other way round                                                G4
 *   stuck       nothing moves any more, and something is still owed
 *
 * `session` and `two` are noticed when they happen (client.ts, socket.ts), the others at the end; what objects must hold
 * is in replicas.ts.
 *
 * Cores that are cut from one another go on without each other, so this alone is not owed while a cut is felt (splits.ts):
 *
 *   lost        to a session whose route the core of the publisher could not know, because the session subscribed, or came
 *               to its node, behind the cut after it began; to one that has left the node behind the cut that the message
 *               waits for; to one whose node was cleaned
 *   two         a client id may have a session on each side; the latest holds, and what a side has given to the
 *               one before is not counted for it
 *   will        not of a connection that ended meanwhile
 */
import { matches, parseShared } from "../../mqtt/topic.ts";
import type { ClientPlan, Filter, Leaving, WillPlan } from "./client.ts";
import { homeOf } from "./replicas.ts";
import type { Wire } from "./socket.ts";
import type { World } from "./world.ts";

/** One publish, as its publisher sees it. */
export interface Publication {
  /** "p1#7", the payload. */
  readonly name: string;
  readonly publisher: string;
  readonly topic: string;
  readonly qos: 1 | 2;
  readonly number: number;
  readonly retain: boolean;
  /** 0 = never. */
  readonly expirySeconds: number;
  /** Nothing failed when it was sent: it comes once. */
  readonly isCalm: boolean;
  readonly firstSentAt: number;
  acknowledgedAt: number | undefined;
  refusedAt: number | undefined;
  /** Sent anew, because the session that had it was behind a cut. */
  isAnew: boolean;
  /** The nodes that it was sent to, and their home cores then. */
  readonly by: Set<string>;
}

/** A subscription, from SUBACK to UNSUBSCRIBE. */
export interface Interest extends Filter {
  readonly session: SessionRecord;
  readonly since: number;
  until: number | undefined;
}

export interface SessionRecord {
  readonly clientId: string;
  /** It outlives its connections; for longer than the run. */
  readonly isDurable: boolean;
  readonly lasts: boolean;
  /** Of a share group. */
  readonly isMember: boolean;
  readonly interests: Interest[];
  readonly arrivals: Arrival[];
  /** Where it has been: each node with its home core then, from the CONNACK there. */
  readonly places: Place[];
}

interface Place {
  readonly at: number;
  readonly node: string;
  readonly home: string;
}

/** A connection, from the client's wish for it; all that is undefined has not happened. */
export interface ConnectionRecord {
  /** "p1-will#7". */
  readonly name: string;
  readonly wire: Wire;
  will: WillPlan | undefined;
  startsClean: boolean;
  /** When CONNECT was sent, and when CONNACK came. */
  askedAt: number | undefined;
  at: number | undefined;
  left: Leaving | undefined;
  leftAt: number | undefined;
  /** The server has closed after a DISCONNECT, as it should. */
  isOrderly: boolean;
}

export interface Arrival {
  readonly name: string;
  readonly topic: string;
  readonly qos: number;
  readonly retain: boolean;
  readonly at: number;
}

export class Ledger {
  readonly #world: World;
  readonly sessions: SessionRecord[] = [];
  readonly publications = new Map<string, Publication>();
  /** By client, in their order. */
  readonly connections = new Map<string, ConnectionRecord[]>();

  constructor(world: World) {
    this.#world = world;
  }

  addSession({ name, expirySeconds, filters }: ClientPlan): SessionRecord {
    const session = {
      clientId: name,
      isMember: filters.some(({ filter }) => parseShared(filter).group !== undefined),
      isDurable: expirySeconds > 0,
      lasts: expirySeconds > 3600,
      interests: [],
      arrivals: [],
      places: [],
    };
    this.sessions.push(session);
    return session;
  }

  addInterest(session: SessionRecord, { filter, qos }: Filter, since: number): Interest {
    const interest = { session, filter, qos, since, until: undefined };
    session.interests.push(interest);
    return interest;
  }

  addConnection(clientId: string, wire: Wire): ConnectionRecord {
    const connections = this.connections.get(clientId) ?? [];
    this.connections.set(clientId, connections);
    const record: ConnectionRecord = {
      name: `${clientId}-will#${connections.length}`,
      wire,
      will: undefined,
      startsClean: false,
      askedAt: undefined,
      at: undefined,
      left: undefined,
      leftAt: undefined,
      isOrderly: false,
    };
    connections.push(record);
    return record;
  }

  addPlace(session: SessionRecord, node: string): void {
    session.places.push({ at: this.#world.now, node, home: homeOf(this.#world, node) });
  }

  /** It is sent to a node, or acknowledged there. */
  addHop(publication: Publication, node: string): void {
    publication.by.add(node).add(homeOf(this.#world, node));
  }

  addPublication(
    given: Omit<Publication, "name" | "firstSentAt" | "acknowledgedAt" | "refusedAt" | "isAnew" | "by">,
  ): Publication {
    const publication: Publication = {
      ...given,
      name: `${given.publisher}#${given.number}`,
      firstSentAt: this.#world.now,
      acknowledgedAt: undefined,
      refusedAt: undefined,
      isAnew: false,
      by: new Set(),
    };
    this.publications.set(publication.name, publication);
    return publication;
  }

  addArrival(session: SessionRecord, arrival: Omit<Arrival, "at">): void {
    session.arrivals.push({ ...arrival, at: this.#world.now });
  }
}

/** What the clients have seen, when all is over. */
export function checkDeliveries(world: World, ledger: Ledger): void {
  for (const session of ledger.sessions) {
    checkLost(world, ledger, session);
    if (session.isDurable) checkTwice(world, ledger, session);
    checkOrder(world, ledger, session);
  }
  checkGroups(world, ledger);
  for (const connections of ledger.connections.values()) checkWills(world, ledger, connections);
}

function checkLost(world: World, ledger: Ledger, session: SessionRecord): void {
  const arrived = new Set(session.arrivals.flatMap(({ name, retain }) => (retain ? [] : [name])));
  for (const interest of session.interests) {
    const { filter, qos, since, until } = interest;
    if (until !== undefined || qos === 0 || parseShared(filter).group !== undefined) continue;
    for (const publication of ledger.publications.values()) {
      const isMissing = isOwed(publication, filter, since) && !arrived.has(publication.name);
      if (isMissing && !isSevered(world, publication, interest))
        world.violate(
          `lost: ${publication.name} (QoS ${publication.qos}) to ${session.clientId}, subscribed to ${filter}`,
        );
    }
  }
}

/** Whether the core that a message came to cannot have known where the session is. */
function isSevered(
  world: World,
  { by, firstSentAt, acknowledgedAt = world.now }: Publication,
  interest: Interest,
): boolean {
  const { places } = interest.session;
  return world.splits.during(firstSentAt, acknowledgedAt).some((split) =>
    places.some(({ at, node, home }, index) => {
      const leftAt = places.slice(index + 1).find((next) => next.node !== node)?.at ?? Infinity;
      if (at > split.until || leftAt < split.from) return false;
      const isBehind = [...by].some((hop) => split.isBetween(hop, node) || split.isBetween(hop, home));
      const isNew = Math.max(at, interest.since) >= split.from;
      return isBehind && (isNew || leftAt < split.until || split.mayClean);
    }),
  );
}

function isOwed(publication: Publication, filter: string, since: number): boolean {
  return (
    publication.acknowledgedAt !== undefined && publication.expirySeconds === 0 && isAfter(publication, filter, since)
  );
}

function isAfter({ topic, firstSentAt }: Publication, filter: string, since: number): boolean {
  return firstSentAt > since && matches(filter, topic);
}

function checkTwice(world: World, ledger: Ledger, session: SessionRecord): void {
  if (session.isMember) return;
  const seen = new Set<string>();
  for (const { name, qos, retain } of session.arrivals) {
    const publication = ledger.publications.get(name);
    if (!publication || retain || !(publication.isCalm || qos === 2)) continue;
    // A publisher whose session is gone sends anew what it does not know to have arrived.
    const isAnew = publication.isAnew || world.abandoned.has(publication.publisher);
    if (seen.has(name) && !isAnew) world.violate(`twice: ${name} to ${session.clientId}`);
    seen.add(name);
  }
}

/** Whether both were sent to one core alone, however often. */
function haveOneCore(a: Publication, b: Publication): boolean {
  return new Set([...a.by, ...b.by].filter((hop) => hop.startsWith("core"))).size === 1;
}

function checkOrder(world: World, ledger: Ledger, session: SessionRecord): void {
  if (session.isMember) return;
  const latest = new Map<string, Publication>();
  const seen = new Set<string>();
  for (const { name, qos, retain } of session.arrivals) {
    const publication = ledger.publications.get(name);
    // At QoS 0 what came first may have been dropped, and its repetition is not.
    if (!publication || qos === 0 || retain || seen.has(name)) continue;
    // What was published before the subscription may be matched late, when its batch is sent again.
    if (!session.interests.some(({ filter, since }) => isAfter(publication, filter, since))) continue;
    seen.add(name);
    const key = `${publication.publisher} ${publication.topic}`;
    const before = latest.get(key);
    // What waits on one core's disk does not hold up what a publisher that has moved gives to another.
    if (before && before.number > publication.number && haveOneCore(before, publication))
      world.violate(`order: ${name} behind ${before.name} to ${session.clientId}`);
    latest.set(key, publication);
  }
}

/** A group of durable members gets each message at least once, among them. */
function checkGroups(world: World, ledger: Ledger): void {
  const groups = new Map<string, Interest[]>();
  for (const { interests } of ledger.sessions)
    for (const interest of interests)
      if (parseShared(interest.filter).group !== undefined)
        groups.set(interest.filter, [...(groups.get(interest.filter) ?? []), interest]);
  for (const [filter, interests] of groups) {
    // What a member is given that cannot keep it is out of reach.
    if (!interests.every(({ qos, session }) => qos > 0 && session.lasts)) continue;
    const since = Math.min(...interests.map((each) => (each.until === undefined ? each.since : Infinity)));
    // Also with a session that a member took for another one than before, and that did not last until it had subscribed.
    const members = new Set(interests.map(({ session }) => session.clientId));
    const sessions = ledger.sessions.filter(({ clientId }) => members.has(clientId));
    const arrived = new Set(sessions.flatMap(({ arrivals }) => arrivals.map(({ name }) => name)));
    // What a member was sent at QoS 2 ends with its session. [MQTT-4.8.2-5]
    const qosMax = interests.some(({ until }) => until !== undefined) ? 1 : 2;
    for (const publication of ledger.publications.values())
      if (isOwed(publication, parseShared(filter).filter, since) && !arrived.has(publication.name))
        if (publication.qos <= qosMax && !interests.every((each) => isSevered(world, publication, each)))
          world.violate(`lost: ${publication.name} (QoS ${publication.qos}) to the group ${filter}`);
  }
}

/** Longer than a node needs to notice that a deadline is over. */
const willSlackMs = 5000;

function checkWills(world: World, ledger: Ledger, connections: readonly ConnectionRecord[]): void {
  for (const [index, { name, wire, will, askedAt, at, left, leftAt = Infinity, isOrderly }] of connections.entries()) {
    if (!will || at === undefined) continue;
    const delayMs = will.delaySeconds * 1000;
    const overAt = wire.overAtServerAt ?? Infinity;
    const next = connections.slice(index + 1).find((each) => each.at !== undefined);
    const asked = connections.slice(index + 1).find((each) => each.askedAt !== undefined);
    const isBackInTime = next?.startsClean === false && next.at! < Math.min(leftAt, overAt) + delayMs;
    // A client that is back elsewhere may be back before its old node can be told.
    const mayNot = isOrderly || left === undefined || (isBackInTime && next?.wire.nodeName === wire.nodeName);
    // A server that has not missed the client yet does when it comes back, or some time later.
    const isSplit = world.splits.during(leftAt, leftAt + delayMs + willSlackMs).length > 0;
    const isMissed = (asked?.askedAt ?? world.now) > overAt + delayMs + willSlackMs;
    // Of a connection that the client has given up the CONNECT may come last: the session goes on there.
    const isOvertaken = connections
      .slice(0, index)
      .some((each) => each.at === undefined && (each.wire.overAtServerAt ?? Infinity) > overAt);
    const isOver = isMissed && !isOvertaken;
    const must = left !== "disconnect" && (isOver || (delayMs === 0 && asked !== undefined));
    for (const { session, filter, qos, since, until } of ledger.sessions.flatMap(({ interests }) => interests)) {
      const hasCome = session.arrivals.some((arrival) => arrival.name === name);
      const isWatching =
        qos > 0 && matches(filter, will.topic) && since < (askedAt ?? at) && until === undefined && session.lasts;
      if (mayNot && hasCome) world.violate(`will: ${name} came to ${session.clientId}, and was not to`);
      if (must && !isSplit && !mayNot && isWatching && !hasCome)
        world.violate(`will: ${name} did not come to ${session.clientId}`);
    }
  }
}

/** What a new subscriber got: the last message of each topic that was acknowledged, or a later one. */
export function checkRetained(world: World, ledger: Ledger, { arrivals }: SessionRecord): void {
  const last = new Map<string, Publication>();
  for (const publication of ledger.publications.values())
    if (publication.retain && publication.acknowledgedAt !== undefined) last.set(publication.topic, publication);
  for (const [topic, { name, number }] of last) {
    const got = arrivals.filter((arrival) => arrival.topic === topic && arrival.retain);
    const latest = ledger.publications.get(got[0]?.name ?? "");
    if (got.length !== 1) world.violate(`retained: ${got.length} messages on ${topic}`);
    else if (latest!.number < number) world.violate(`retained: ${latest!.name} on ${topic}, behind ${name}`);
  }
}
