/**
 * Where the other cores of a cluster are: what a discovery strategy can do (EMQX's ekka_cluster_strategy). Each is fetch
 * and no more, so that it runs on Cloudflare, and keeps nothing that a core would have to remember through sleep.
 *
 * Every failure is an Error of one line that names the server, and no secret.
 */
import type { NodeName } from "../../../cluster/name.ts";

export interface Strategy {
  /** What is asked, and where; another text is another strategy. */
  readonly description: string;
  /** The names that are known, this core's own perhaps among them: whatever the server says. */
  discover(): Promise<string[]>;
  /** Waits until no other core is in its round; rejects when that takes too long. */
  lock(): Promise<void>;
  unlock(): Promise<void>;
  /** Lets others discover this core. Resolves to the ms after which it is to be called again, if that is needed. */
  register(): Promise<number | undefined>;
  unregister(): Promise<void>;
}

/** Strategies without a register of their own: an operator, or somebody else's system, says who is there. */
export function lookup(description: string, discover: () => Promise<string[]>): Strategy {
  const nothing = async (): Promise<undefined> => {};
  return { description, discover, lock: nothing, unlock: nothing, register: nothing, unregister: nothing };
}

/**
 * The name of a node at another address: it is called as this one is, and listens on the same port, unless that is known.
 *
 *     core@eu.example.com:8084, "10.0.0.2" -> core@10.0.0.2:8084
 */
export function namesake(self: NodeName, host: string, port = portOf(self)): NodeName {
  return `${self.slice(0, self.indexOf("@"))}@${host}${port === "" ? "" : `:${port}`}`;
}

/** "8084" of core@eu.example.com:8084, "" where there is none. */
function portOf(self: NodeName): string {
  return /:(\d+)$/.exec(self)?.[1] ?? "";
}

/** An address as it stands in a node's name: IPv6 in its one canonical spelling (RFC 5952), in brackets. */
export function hostOfAddress(address: string): string {
  if (!address.includes(":")) return address;
  const url = `http://[${address}]/`;
  return URL.canParse(url) ? new URL(url).hostname : address;
}
