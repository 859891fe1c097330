/**
 * A line between two objects that call again and again. Each call on an object's stub is billed as a request to it; calls on
 * what a call has returned are part of that one (https://developers.cloudflare.com/durable-objects/platform/pricing). So who
 * has called a few times in a row opens a line, which is one more call, and sends what follows over it:
 *
 *     stub.route(1) stub.route(2) ... stub.open(), line.send(6) line.send(7) ... quiet: close
 *
 * An open line keeps both objects awake, which is billed too: it is closed when it has been quiet for as long as about two
 * calls cost, and slow callers never open one.
 *
 * Order (G2): what goes over a line comes behind the calls that were made on the stub before, since the line is opened on it.
 * The other way round it need not, so the stub is used again only when all that went over the line is answered. One that has
 * failed is used on until it is quiet, and fails on, as a stub does.
 */
import { RpcTarget } from "cloudflare:workers";
import { limits } from "../mqtt/limits.ts";
import type { SendBatch } from "./outbox.ts";

/** What is at the other end: takes the batches of one caller. */
export class Line extends RpcTarget {
  readonly #take: SendBatch;

  constructor(take: SendBatch) {
    super();
    this.#take = take;
  }

  send(batch: Uint8Array): Promise<Uint8Array> {
    return this.#take(batch);
  }
}

/** A stub of a line, on its way: what is sent over it waits until it is there. */
interface OpenLine extends PromiseLike<unknown>, Disposable {
  send(batch: Uint8Array): Promise<Uint8Array>;
}

type Method = (...args: readonly unknown[]) => Promise<Uint8Array>;

/** The stub; calls of one method, whose last argument is a batch, go over a line while there are many. */
export function overLine<T extends object>(stub: T, method: keyof T): T {
  const caller = new Caller(stub as Record<PropertyKey, unknown>, method);
  return new Proxy(stub, {
    get: (target, name) =>
      name === method
        ? (...args: readonly unknown[]) => caller.call(args)
        : (target as Record<PropertyKey, unknown>)[name],
  });
}

class Caller {
  readonly #stub: Record<PropertyKey, unknown>;
  readonly #method: PropertyKey;
  #line: OpenLine | undefined;
  #underWay = 0;
  /** ms since the epoch. */
  #calledAt = 0;
  /** Calls that came soon after the one before. */
  #inARow = 0;

  constructor(stub: Record<PropertyKey, unknown>, method: PropertyKey) {
    this.#stub = stub;
    this.#method = method;
  }

  call(args: readonly unknown[]): Promise<Uint8Array> {
    const now = Date.now();
    this.#inARow = now < this.#calledAt + limits.lineQuietMs ? this.#inARow + 1 : 0;
    this.#calledAt = now;
    if (!this.#line && this.#inARow >= limits.lineCallsMin) this.#open(args.slice(0, -1));
    if (this.#line) return this.#send(this.#line, args.at(-1) as Uint8Array);
    return (this.#stub[this.#method] as Method)(...args);
  }

  #open(args: readonly unknown[]): void {
    this.#line = (this.#stub["open"] as (...args: readonly unknown[]) => OpenLine)(...args);
    // Should it not open, all that is sent over it says so.
    this.#line.then(ignore, ignore);
    this.#closeWhenQuiet(this.#line);
  }

  async #send(line: OpenLine, batch: Uint8Array): Promise<Uint8Array> {
    this.#underWay++;
    try {
      return await line.send(batch);
    } finally {
      this.#underWay--;
    }
  }

  #closeWhenQuiet(line: OpenLine): void {
    setTimeout(() => {
      if (this.#underWay > 0 || Date.now() < this.#calledAt + limits.lineQuietMs) return this.#closeWhenQuiet(line);
      this.#line = undefined;
      this.#inARow = 0;
      line[Symbol.dispose]();
    }, limits.lineQuietMs);
  }
}

/** The runtime's promise of a stub takes functions alone. */
function ignore(): void {}
