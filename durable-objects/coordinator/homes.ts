/**
 * The nodes whose home this core is: it takes in what they write.
 *
 * A node that comes for the first time, or from another core, is asked for all its routes before anything that it sends is
 * taken: what its last core had not told anybody is known then. Its term tells a node that has just come back from a call
 * that has been under way since before it left.
 */
import type { Member, Membership } from "../../cluster/membership.ts";
import type { NodeName } from "../../cluster/name.ts";
import type { Connection, NodeRoutes, NodeRpc } from "../rpc.ts";
import type { Replication } from "./replication.ts";

/** What the core gives. */
export interface HomesHost {
  readonly self: NodeName;
  readonly domain: string;
  readonly members: Membership;
  readonly replication: Replication;
  readonly nodeAt: (name: NodeName) => NodeRpc;
  readonly isReplicated: () => boolean;
  /** Before anything is taken in; undefined: now. */
  readonly whenReady: () => Promise<void> | undefined;
  /** A member's record has changed here: it is kept and told. */
  readonly changeMember: (member: Member) => void;
}

export class Homes {
  readonly #host: HomesHost;
  /** Nodes that are on the way in, and what waits for them. */
  readonly #moving = new Map<NodeName, Promise<void>>();
  /** The last connection of each node that was refused. */
  readonly #refused = new Map<NodeName, number>();
  /** The nodes' numbers up to which their changes came with their routes. */
  readonly #takenIn = new Map<NodeName, number>();
  /** How long the last move took, and how many routes it brought. */
  readonly bootstraps = new Map<NodeName, { readonly timeMs: number; readonly keys: number }>();

  constructor(host: HomesHost) {
    this.#host = host;
  }

  /** Whether this core takes in what the node writes, and it has been here before. */
  isHome(node: NodeName): boolean {
    const member = this.#host.members.get(node);
    return member?.state === "in" && member.home === this.#host.self;
  }

  /** A change with this number came already, with the node's routes. */
  isTakenIn(node: NodeName, sent: number): boolean {
    return sent <= (this.#takenIn.get(node) ?? 0);
  }

  /** As `whenIn`. A connection that was refused stays so: what comes behind must not overtake what was refused (G2). */
  whenConnected(node: NodeName, { id, term }: Connection): Promise<void> | undefined {
    if (this.#refused.get(node) === id) return Promise.reject(new Error(`${node} is to connect again`));
    const coming = this.whenIn(node, term);
    return coming?.catch((error: unknown) => {
      this.#refused.set(node, id);
      throw error;
    });
  }

  /** Resolves when the node may be served here; undefined: at once. In the order of the calls. */
  whenIn(node: NodeName, term: number): Promise<void> | undefined {
    const moving = this.#moving.get(node);
    if (moving) return moving.then(() => this.whenIn(node, term));
    const ready = this.#host.whenReady();
    if (ready) return ready.then(() => this.whenIn(node, term));
    const member = this.#host.members.get(node);
    if (this.isHome(node) && member!.term === term) return undefined;
    const next = this.#nextHome(node, term);
    if (next !== undefined) return Promise.reject(new Error(`${node} has gone to ${next} since`));
    return this.#move(node, () => this.#takeIn(node, term));
  }

  /** Where the node went after this term. */
  #nextHome(node: NodeName, term: number): NodeName | undefined {
    const { members, self } = this.#host;
    const member = members.get(node);
    if (member?.state !== "in" || member.home === "?") return undefined;
    const isLater = member.home === self ? member.term > term : member.term >= term;
    return isLater ? member.home : undefined;
  }

  /** All that the node has is asked for again. */
  takeInAgain(node: NodeName): Promise<void> {
    const { members } = this.#host;
    return this.#moving.get(node) ?? this.#move(node, () => this.#takeIn(node, members.get(node)?.term ?? 0));
  }

  #move(node: NodeName, run: () => Promise<void>): Promise<void> {
    const moving = run().finally(() => this.#moving.delete(node));
    this.#moving.set(node, moving);
    return moving;
  }

  async #takeIn(node: NodeName, term: number): Promise<void> {
    const { replication, nodeAt, isReplicated } = this.#host;
    const startedAt = Date.now();
    const taking = replication.takeIn(node);
    for (let after: string | undefined = ""; after !== undefined;) {
      const page: NodeRoutes = await nodeAt(node).routes(after);
      const next = this.#nextHome(node, term);
      if (next !== undefined) throw new Error(`${node} has gone to ${next} meanwhile`);
      after = page.next;
      // Should this core crash on the way, it begins again: the node has not been here with the term before.
      this.#settle(node, after === undefined ? term : term - 1);
      taking.add(page, isReplicated() ? term : undefined);
    }
    this.#takenIn.set(node, taking.sent);
    this.bootstraps.set(node, { timeMs: Date.now() - startedAt, keys: taking.keys });
  }

  #settle(node: NodeName, term: number): void {
    const { self, domain, members, changeMember } = this.#host;
    const now = Date.now();
    const before = members.get(node);
    const joinedAt = before?.state === "in" ? before.joinedAt : now;
    const changedAt = members.nextChangeAt(node, now);
    changeMember({ name: node, role: "replicant", domain, home: self, term, joinedAt, state: "in", changedAt });
  }
}
