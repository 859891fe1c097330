/**
 * The members of a cluster, as one core knows them.
 *
 *     core@local.emqxcl      coordinator, core        home: none
 *     node-0@weur.emqxcl     node, replicant          home: the coordinator that it talks to
 *     edge@10.0.0.7:8083     coordinator, replicant   of a deployment that has no core of its own
 *
 * Every core has all members and tells the others of each change; of two records of one member the later one holds
 * (`changedAt`, which rises with every change whatever the clock says). So the order in which changes arrive does not
 * matter, and what was missed is made up for by exchanging all records when two cores meet.
 *
 * A member that has left stays as a record, so that an older record does not bring it back. The age of members is the
 * order in which they joined (EMQX's guid): the oldest running core is the leader.
 */
import { limits } from "../mqtt/limits.ts";
import { faultOfNodeName, isMember, type NodeName } from "./name.ts";

export type Role = "core" | "replicant";

export interface Member {
  readonly name: NodeName;
  readonly role: Role;
  /** The address of its deployment, or the cluster's name for one that others do not link to. */
  readonly domain: string;
  /** The coordinator that a node talks to; "" for a coordinator. */
  readonly home: NodeName;
  /** How often the node has changed its home. */
  readonly term: number;
  /** ms; when it joined. One that left and came back is a new member. */
  readonly joinedAt: number;
  /** `cleaned`: it could not be reached for too long; should it come back, it joins again. */
  readonly state: "in" | "left" | "cleaned";
  /** ms, and always more than before. */
  readonly changedAt: number;
}

export class Membership {
  readonly #members = new Map<NodeName, Member>();

  constructor(members: Iterable<Member>) {
    for (const member of members) this.#members.set(member.name, member);
  }

  get(name: NodeName): Member | undefined {
    return this.#members.get(name);
  }

  /** Whether the member is in the cluster. */
  has(name: NodeName): boolean {
    return this.#members.get(name)?.state === "in";
  }

  /** All records, also of those that have left. */
  all(): Iterable<Member> {
    return this.#members.values();
  }

  /** Those in the cluster, the oldest first. */
  present(): Member[] {
    return [...this.#members.values()].filter(({ state }) => state === "in").sort(byAge);
  }

  /** The coordinators in the cluster, the oldest first. */
  coordinators(): Member[] {
    return this.present().filter(isCoordinator);
  }

  cores(): Member[] {
    return this.coordinators().filter(({ role }) => role === "core");
  }

  /** The nodes in the cluster. */
  nodes(): Member[] {
    return this.present().filter((member) => !isCoordinator(member));
  }

  /** Whether the record is later than the one known. */
  isNews(member: Member): boolean {
    const known = this.#members.get(member.name);
    return !known || isLater(member, known);
  }

  /** Takes the record if it is later than the one known. @returns whether it was. */
  merge(member: Member): boolean {
    if (!this.isNews(member)) return false;
    const known = this.#members.has(member.name);
    if (!known && this.#members.size >= limits.membersMax && !this.#forgetOne()) return false;
    this.#members.set(member.name, member);
    return true;
  }

  /** Of a change that is made now. */
  nextChangeAt(name: NodeName, now: number): number {
    return Math.max(now, (this.#members.get(name)?.changedAt ?? 0) + 1);
  }

  forget(name: NodeName): void {
    this.#members.delete(name);
  }

  /** The record of somebody who has left makes room. @returns whether there was one. */
  #forgetOne(): boolean {
    for (const { name, state } of this.#members.values()) if (state !== "in") return this.#members.delete(name);
    return false;
  }
}

export function isCoordinator({ home }: Member): boolean {
  return home === "";
}

/** What is wrong with a record that another deployment has sent, in a few words. */
export function faultOfMember(value: unknown): string | undefined {
  const { name, role, domain, home, term, joinedAt, state, changedAt } = (value ?? {}) as {
    [key in keyof Member]: unknown;
  };
  if (typeof name !== "string" || faultOfNodeName(name) !== undefined) return "its name is none";
  if (typeof domain !== "string" || !isMember(name, domain)) return "its name is not of its domain";
  if (typeof home !== "string") return "its home is none";
  if (role !== "core" && role !== "replicant") return "its role is none";
  if (state !== "in" && state !== "left" && state !== "cleaned") return "its state is none";
  return [term, joinedAt, changedAt].every(Number.isSafeInteger) ? undefined : "its times or its term are no numbers";
}

/** Two records of one moment must not make two cores disagree. */
function isLater(a: Member, b: Member): boolean {
  if (a.changedAt !== b.changedAt) return a.changedAt > b.changedAt;
  return JSON.stringify(a) > JSON.stringify(b);
}

function byAge(a: Member, b: Member): number {
  return a.joinedAt - b.joinedAt || (a.name < b.name ? -1 : 1);
}
