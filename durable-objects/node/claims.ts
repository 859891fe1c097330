/**
 * How a connection comes to its session.
 *
 * One client id, one session, in the whole cluster (G4). A connection first claims its client id at the core, which
 * numbers the claims (`epoch`) and names the nodes that may hold a session of it; they close its connection and hand
 * the session over. Of two claims the later one wins, whatever the order in which their messages arrive: a node that is
 * asked for a session waits for its own older claim of it and refuses when its own is newer. So waiting only ever goes
 * from newer claims to older ones, and cannot go round.
 *
 * A holder that cannot be reached for a while is abandoned: the core will tell it, and the client gets a new session. At
 * once, if the core knows that its deployment is not in reach: a client may not wait as long as that takes to find out.
 *
 * How a session comes from another node is in takeover.ts.
 */
import type { OpenRequest } from "../../mqtt/channel.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import type { Session } from "../../mqtt/session.ts";
import { openedRecord, rpcVersion, type GrantedClaim, type TakenOver } from "../rpc.ts";
import type { Broker } from "./broker.ts";
import type { Connection } from "./connection.ts";
import { HolderLink, Unreachable } from "./holder-link.ts";
import { takenOver, type Sessions } from "./sessions.ts";
import { Takeover } from "./takeover.ts";

/** A connection on its way to its session. */
interface Opening {
  readonly connection: Connection;
  /** undefined: superseded before it claimed. */
  readonly claim: Promise<GrantedClaim | undefined>;
  readonly done: Promise<void>;
  /** The one that this one waits for before it claims. */
  before: Opening | undefined;
  superseded: boolean;
  /** Of the claim; 0 until it is answered. */
  epoch: number;
}

export class Claims {
  readonly #broker: Broker;
  readonly #openings = new Map<string, Opening>();

  constructor(broker: Broker) {
    this.#broker = broker;
  }

  get #sessions(): Sessions {
    return this.#broker.sessions;
  }

  isOpening(clientId: string): boolean {
    return this.#openings.has(clientId);
  }

  /** Client ids whose connections are on the way, each with the epoch of its claim: 0 while it is not answered. */
  opening(): (readonly [clientId: string, epoch: number])[] {
    return [...this.#openings].map(([clientId, { epoch }]) => [clientId, epoch]);
  }

  async open(connection: Connection, request: OpenRequest): Promise<void> {
    const { clientId } = request.facts;
    if (!this.#sessions.hasRoom() && !this.#sessions.byClientId(clientId))
      return connection.fail(new MqttError(ReasonCode.QuotaExceeded, "the node has no room for another session"));
    const before = this.#openings.get(clientId);
    if (before) supersede(before);
    const { promise: done, resolve } = Promise.withResolvers<void>();
    const claim = (before?.done ?? Promise.resolve()).then(() => {
      opening.before = undefined;
      return opening.superseded ? undefined : this.#broker.core.claim(clientId);
    });
    const opening: Opening = { connection, claim, done, before, superseded: false, epoch: 0 };
    this.#openings.set(clientId, opening);
    try {
      await this.#open(opening, request);
    } finally {
      if (this.#openings.get(clientId) === opening) this.#openings.delete(clientId);
      resolve();
    }
  }

  async #open(opening: Opening, request: OpenRequest): Promise<void> {
    const broker = this.#broker;
    const { connection } = opening;
    const { facts } = request;
    const { clientId, username } = facts;
    const claim = await opening.claim;
    if (!claim) return;
    const { epoch, since, holders, away } = claim;
    opening.epoch = epoch;
    const takeover = new Takeover(broker, clientId, epoch);
    let existing = this.#endStale(this.#sessions.byClientId(clientId), since);
    // The latest session is the one to go on with; older ones, left by failures, end where they are.
    const resume = !facts.cleanStart;
    const dismissals: Promise<boolean>[] = [];
    for (const { node, since: holderSince } of holders) {
      const holder = new HolderLink(node, {
        connect: () => broker.nodeAt(node),
        isWanted: () => !opening.superseded,
        isReached: () => broker.core.reaches(node),
      });
      try {
        if (away.includes(node)) throw new Unreachable(node);
        const taken = await holder.takeOver(clientId, epoch, resume);
        if (taken.kind === "superseded") opening.superseded = true;
        if (opening.superseded) break;
        if (taken.kind !== "session") continue;
        const own = this.#sessions.byClientId(clientId);
        const isStale = taken.session.epoch < holderSince;
        // A copy is older when it was taken over before and its giver did not hear that it was done.
        const isNewer = !isStale && (!own || own.epoch < taken.session.epoch);
        if (isNewer) await takeover.adopt(holder, taken.session);
        dismissals.push(takeover.dismiss(holder));
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error;
        if (!opening.superseded) opening.superseded = !(await broker.core.abandon(clientId, epoch, node));
        if (opening.superseded) break;
      }
    }
    if (opening.superseded) return connection.fail(takenOver());
    if (holders.length > 0) existing = this.#sessions.byClientId(clientId);
    const session = this.#resumeOrCreate(request, existing && this.#closed(existing));
    session.epoch = epoch;
    if (connection.closed) {
      // The client left while its session was sought: what there is stays, as after any lost connection.
      if (session.detached) this.#sessions.save([session]);
      else this.#sessions.end(session);
      return;
    }
    const sessionPresent = session.detached;
    broker.metrics["client.connected"]++;
    broker.metrics[sessionPresent ? "session.resumed" : "session.created"]++;
    session.username = username;
    session.expiryInterval = request.expiryInterval;
    session.will = request.will;
    session.attach(facts.receiveMaximum);
    broker.bind(session, connection, facts);
    broker.changeRoutes(broker.table.connectionChanged(session.subscriptions.keys()));
    // A transient session without a will has nothing to lose in a crash: it is written when it has lasted a while.
    if (session.onDisk || session.durable || session.will) this.#sessions.save([session]);
    // The registry forgets the others when none of them has anything of the session any more.
    if (holders.length > 0) void this.#sayOpened(clientId, epoch, dismissals);
    connection.channel.handleOpened(session, sessionPresent);
    connection.perform();
    connection.process(Date.now());
  }

  async #sayOpened(clientId: string, epoch: number, dismissals: readonly Promise<boolean>[]): Promise<void> {
    const heard = await Promise.all(dismissals);
    if (!heard.includes(false)) this.#broker.core.add(openedRecord(clientId, epoch), () => {});
  }

  /** What is here from before the cluster went on without this node is never resumed. @returns what is not. */
  #endStale(existing: Session | undefined, since: number): Session | undefined {
    if (!existing || existing.epoch >= since) return existing;
    const left = this.#closed(existing);
    if (left) this.#sessions.end(left);
    return undefined;
  }

  /** Its connection, if any, is closed. @returns the session, unless it was transient and has ended with it. */
  #closed(session: Session): Session | undefined {
    this.#sessions.closeConnection(session);
    return this.#sessions.has(session) ? session : undefined;
  }

  /** The session to go on with. One that was there before has been detached, and so has a deadline. */
  #resumeOrCreate({ facts: { clientId, username, cleanStart } }: OpenRequest, existing: Session | undefined): Session {
    if (existing) {
      const ended = this.#sessions.publishDueWill(existing, Date.now());
      // A session is its user's: whoever else has the client id does not get what was meant for them (G9).
      if (!cleanStart && !ended && existing.username === username) return existing; // [MQTT-3.1.2-5]
      // Its claim is the new session's by now. [MQTT-3.1.2-4]
      this.#sessions.discard(existing);
    }
    return this.#sessions.create(clientId);
  }

  // ---- moving between nodes ---------------------------------------------------------------------------------------

  /** This node had the client id; another one has claimed it. */
  async takeOver(clientId: string, epoch: number, resume: boolean): Promise<TakenOver> {
    let opening = this.#openings.get(clientId);
    // The one that has claimed: who waits behind it will have a newer claim, and waiting for that could go round.
    while (opening?.before) opening = opening.before;
    if (opening) {
      const own = await opening.claim.catch(() => undefined);
      // Two cores that are cut from each other may give one number twice: then neither waits for the other.
      if (own && own.epoch >= epoch) return { kind: "superseded" };
      supersede(opening);
      await opening.done;
    }
    const connected = this.#sessions.byClientId(clientId);
    if (connected && connected.epoch >= epoch) return { kind: "superseded" };
    if (connected) {
      this.#sessions.closeConnection(connected);
      // What the client publishes on its next node must not come before what is under way from here (G2).
      await this.#broker.whenAnswered(connected.id);
    }
    // A transient session has ended with its connection.
    const session = this.#sessions.byClientId(clientId);
    if (!session) return { kind: "none" };
    if (session.epoch > epoch) return { kind: "superseded" };
    const ended = this.#sessions.publishDueWill(session, Date.now());
    if (!resume || ended) {
      this.#sessions.end(session);
      return { kind: "none" };
    }
    // Its client is back in time, but its will stays until a connection is made. [MQTT-3.1.3-9]
    session.postponeExpiry(Date.now());
    this.#sessions.save([session]);
    return {
      kind: "session",
      session: {
        version: rpcVersion,
        epoch: session.epoch,
        expiryInterval: session.expiryInterval,
        username: session.username,
        subscriptions: [...session.subscriptions.values()],
        checkpoint: session.checkpoint(),
      },
    };
  }

  /** A later claim went on without this node: what is here ends, at once unless a connection is on its way to it. */
  handleEnded(clientId: string, epoch: number): void {
    this.takeOver(clientId, epoch, false).catch((error: unknown) => {
      console.error(`${clientId} could not be ended: ${String(error)}`);
    });
  }
}

function supersede(opening: Opening): void {
  opening.superseded = true;
  opening.connection.fail(takenOver());
}
