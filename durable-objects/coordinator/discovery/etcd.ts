/**
 * `etcd`: cores find one another under a prefix of an etcd, by its v3 API as JSON
 * (https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/).
 *
 *     <prefix>/nodes/core@eu.example.com    a core that is there: under its lease, which it keeps alive
 *     <prefix>/lock/<lease>                 who is in its round, and who waits: under a lease of its own
 *
 * A core that crashes is gone when its leases end, so it holds the lock for 30 seconds at most. The id of a lease is made
 * of what it is for, not given by etcd, so a core that has slept or crashed knows its leases, and nothing is to be
 * remembered.
 *
 * Several servers are one cluster: the one that answered last is asked first, and the next when it does not.
 */
import * as v from "valibot";

import type { NodeName } from "../../../cluster/name.ts";
import { limits } from "../../../mqtt/limits.ts";
import { askJson, below, Refusal, Silence, type Fetch } from "./ask.ts";
import type { Strategy } from "./strategy.ts";

export interface EtcdSettings {
  readonly server: readonly string[];
  readonly prefix: string;
  /** ms without a sign of life after which a core is no longer listed. */
  readonly node_ttl: number;
}

/** 64-bit integers are texts, zeros are left out. */
const integer = v.optional(v.pipe(v.string(), v.regex(/^\d{1,19}$/), v.transform(Number)), "0");
const leaseAnswer = v.object({ TTL: integer });
const keepAliveAnswer = v.object({ result: leaseAnswer });
const rangeAnswer = v.object({ kvs: v.optional(v.array(v.object({ key: v.string() })), []) });
const anyAnswer = v.object({});

interface Lease {
  readonly id: string;
  readonly seconds: number;
}

export class EtcdStrategy implements Strategy {
  readonly description: string;
  readonly #servers: readonly string[];
  readonly #fetch: Fetch;
  readonly #nodes: string;
  readonly #lock: string;
  readonly #self: NodeName;
  readonly #ttl: number;
  /** The server that is asked first. */
  #first = 0;

  constructor({ server, prefix, node_ttl }: EtcdSettings, self: NodeName, fetch: Fetch) {
    this.description = `etcd ${prefix} at ${server.join(", ")}`;
    this.#servers = server;
    this.#fetch = fetch;
    this.#nodes = `${prefix}/nodes/`;
    this.#lock = `${prefix}/lock`;
    this.#self = self;
    this.#ttl = node_ttl;
  }

  async discover(): Promise<string[]> {
    // All keys that begin so: up to the first that does not. One more than is taken, so that it is seen.
    const range_end = base64(this.#nodes.slice(0, -1) + String.fromCharCode("/".charCodeAt(0) + 1));
    const limit = limits.discoveredNodesMax + 2;
    const request = { key: base64(this.#nodes), range_end, limit, keys_only: true };
    const { kvs } = await this.#ask("v3/kv/range", request, rangeAnswer);
    return kvs.map(({ key }) => textOf(key).slice(this.#nodes.length));
  }

  async lock(): Promise<void> {
    const lease = await leaseFor(`${this.#lock}/${this.#self}`, limits.discoveryLockLeaseMs);
    await this.#hold(lease);
    const request = { name: base64(this.#lock), lease: lease.id };
    await this.#ask("v3/lock/lock", request, anyAnswer, limits.discoveryLockWaitMs);
  }

  /** The lock is gone with its lease, and so is a place among those who wait for it. */
  async unlock(): Promise<void> {
    await this.#revoke(await leaseFor(`${this.#lock}/${this.#self}`, limits.discoveryLockLeaseMs));
  }

  /** Puts the key if it is not there, or is under another lease: so it costs etcd nothing while all is well. */
  async register(): Promise<number> {
    const lease = await leaseFor(this.#nodes + this.#self, this.#ttl);
    const seconds = await this.#hold(lease);
    const key = base64(this.#nodes + this.#self);
    await this.#ask(
      "v3/kv/txn",
      {
        compare: [{ key, target: "LEASE", result: "EQUAL", lease: lease.id }],
        failure: [{ request_put: { key, value: base64(this.#self), lease: lease.id } }],
      },
      anyAnswer,
    );
    return Math.floor((seconds * 1000) / 3);
  }

  async unregister(): Promise<void> {
    await this.#revoke(await leaseFor(this.#nodes + this.#self, this.#ttl));
  }

  /** Keeps a lease alive; one that has ended, or never was, begins. Resolves to its seconds. */
  async #hold({ id, seconds }: Lease): Promise<number> {
    const { result } = await this.#ask("v3/lease/keepalive", { ID: id }, keepAliveAnswer);
    if (result.TTL > 0) return result.TTL;
    const { TTL } = await this.#ask("v3/lease/grant", { ID: id, TTL: `${seconds}` }, leaseAnswer);
    return TTL > 0 ? TTL : seconds;
  }

  async #revoke({ id }: Lease): Promise<void> {
    try {
      await this.#ask("v3/lease/revoke", { ID: id }, anyAnswer);
    } catch (error) {
      // There is no such lease any more.
      if (!(error instanceof Refusal) || error.status !== 404) throw error;
    }
  }

  async #ask<T>(
    path: string,
    request: object,
    form: v.GenericSchema<unknown, T>,
    answerMs: number = limits.discoveryAnswerMs,
  ): Promise<T> {
    const failures: unknown[] = [];
    for (let turn = 0; turn < this.#servers.length; turn++) {
      const index = (this.#first + turn) % this.#servers.length;
      const url = below(this.#servers[index]!, path);
      try {
        const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(request) };
        const answer = await askJson(this.#fetch, url, init, answerMs);
        const result = v.safeParse(form, answer);
        if (!result.success) throw new Error(`${url.href}: the answer is not one of etcd`);
        this.#first = index;
        return result.output;
      } catch (error) {
        failures.push(error);
        // What this server refuses the others refuse, too; a lock that is waited for is waited for with all.
        if (error instanceof Refusal && error.status < 500) break;
        if (error instanceof Silence && path === "v3/lock/lock") {
          throw new Error(`${url.origin}: another node has held the lock for ${answerMs / 1000} s`, { cause: error });
        }
      }
    }
    throw failures[0];
  }
}

/** A positive 63-bit id, the same each time for the same purpose and time. */
async function leaseFor(purpose: string, ms: number): Promise<Lease> {
  const seconds = Math.max(1, Math.ceil(ms / 1000));
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(`${purpose} ${seconds}`));
  const id = BigInt.asUintN(63, new DataView(digest).getBigUint64(0));
  return { id: `${id}`, seconds };
}

function base64(text: string): string {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

/** A key may hold any bytes: what is no base64 and no UTF-8 is no name either. */
function textOf(key: string): string {
  try {
    return new TextDecoder().decode(Uint8Array.from(atob(key), (char) => char.charCodeAt(0)));
  } catch {
    return "";
  }
}
