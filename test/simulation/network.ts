/**
 * Calls between objects. A stub is a connection: what is called on it arrives in order, and when it breaks, all that is
 * under way on it fails, whether it has been executed or not; it stays dead then. Calls on different stubs, and answers,
 * overtake one another. Nothing is shared: values are copied.
 *
 * A cut keeps objects from calling one another for a while: what they call does not arrive, or they do not hear of what
 * has come of it. Who remembers cuts, and for how long they may be felt, is in splits.ts.
 *
 * A line (durable-objects/line.ts) is a connection of its own, to what a life of the callee has given: it keeps the callee
 * from sleeping until it is closed, and dies with that life. What is sent over it arrives behind the call that opens it,
 * and in no order with later calls on the stub.
 */
import type { Life } from "./object.ts";
import type { World } from "./world.ts";

export interface Stub {
  readonly from: Life;
  readonly to: string;
  readonly underWay: Set<Call>;
  lastArrivalAt: number;
  broken: Error | undefined;
  /** A cut has taken what was on it, and its caller does not know yet: nothing arrives any more. */
  isSilent: boolean;
  /** Of a line: what is at its other end, once it is open. */
  end: { readonly life: Life; readonly target: object } | undefined;
}

export interface Call {
  readonly stub: Stub;
  readonly method: string;
  readonly args: unknown[];
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
  /** The line that it opens. */
  readonly opens: Stub | undefined;
  /** The callee's life, once the call has arrived. */
  executing: Life | undefined;
  isOver: boolean;
}

/** A destination that cannot be reached for a while. */
export interface Outage {
  readonly to: string;
  readonly from: number;
  readonly until: number;
  readonly kind: "unreachable" | "overloaded";
}

/** Objects on different sides cannot call one another for a while; those of no side can call all. */
export interface Cut {
  readonly from: number;
  readonly until: number;
  /** Sides by the names of objects. */
  readonly sides: ReadonlyMap<string, number>;
  /** `upwards`: from a lower side to a higher one calls do not arrive, the other way they do. */
  readonly takes: "calls" | "answers" | "calls upwards";
  /** ms until a caller is told that it will hear nothing. */
  readonly silenceMs: number;
}

export class Network {
  readonly #world: World;
  readonly #stubs = new Set<Stub>();
  #outages: Outage[] = [];
  #cuts: Cut[] = [];
  /** Settings beside the bindings. */
  variables: Readonly<Record<string, string>> = {};
  calls = 0;
  lines = 0;
  broken = 0;

  constructor(world: World) {
    this.#world = world;
  }

  /** What the runtime hands to the constructor as `env`. */
  envOf(life: Life): Env {
    for (const stub of this.#stubs) if (stub.from.name === life.name) this.#drop(stub);
    const namespace = { getByName: (name: string) => this.#stubOf(life, name) };
    return { ...this.variables, NODE: namespace, COORDINATOR: namespace } as unknown as Env;
  }

  addOutage(outage: Outage): void {
    this.#outages.push(outage);
  }

  get outages(): readonly Outage[] {
    return this.#outages;
  }

  addCut(cut: Cut): void {
    this.#cuts.push(cut);
  }

  get cuts(): readonly Cut[] {
    return this.#cuts;
  }

  /** Whatever was to come. */
  endFaults(): void {
    const { now } = this.#world;
    const ended = <T extends { readonly until: number }>(each: T): T => ({ ...each, until: Math.min(each.until, now) });
    this.#outages = this.#outages.map(ended);
    this.#cuts = this.#cuts.map(ended);
  }

  /** What takes a call now, or its answer. */
  #cutBetween(caller: string, callee: string, takes: "call" | "answer"): Cut | undefined {
    const { now } = this.#world;
    return this.#cuts.find(({ from, until, sides, takes: kind }) => {
      const [above, below] = [sides.get(callee), sides.get(caller)];
      if (now < from || now >= until || above === undefined || below === undefined || above === below) return false;
      return kind === "calls upwards" ? takes === "call" && above > below : takes === "answer" || kind === "calls";
    });
  }

  #outageOf(name: string): Outage | undefined {
    const { now } = this.#world;
    return this.#outages.find(({ to, from, until }) => to === name && from <= now && now < until);
  }

  #stubOf(from: Life, to: string): unknown {
    const stub = this.#connect(from, to);
    return new Proxy(
      {},
      {
        // A stub is no thenable: it may be returned from an async function.
        get: (_, method) =>
          typeof method === "string" && method !== "then"
            ? (...args: unknown[]) => (method === "open" ? this.#openLine(stub, args) : this.#call(stub, method, args))
            : undefined,
      },
    );
  }

  #connect(from: Life, to: string): Stub {
    const stub: Stub = {
      from,
      to,
      underWay: new Set(),
      lastArrivalAt: 0,
      broken: undefined,
      isSilent: false,
      end: undefined,
    };
    this.#stubs.add(stub);
    return stub;
  }

  #openLine(stub: Stub, args: unknown[]) {
    this.lines++;
    const line = this.#connect(stub.from, stub.to);
    const opened = this.#call(stub, "open", args, line);
    return {
      send: (batch: Uint8Array) => this.#call(line, "send", [batch]),
      // oxlint-disable-next-line unicorn/no-thenable -- as the runtime's
      then: opened.then.bind(opened),
      [Symbol.dispose]: () => {
        line.broken ??= new Error("a line was used after it was closed");
        this.#world.after(this.#world.latency(), () => this.#letGo(line));
      },
    };
  }

  /** The callee may sleep, for all of this line. */
  #letGo(line: Stub): void {
    line.end?.life.linesIn.delete(line);
  }

  #call(stub: Stub, method: string, args: unknown[], opens?: Stub): Promise<unknown> {
    const { from } = stub;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const call: Call = {
      stub,
      method,
      args: args.map(copy),
      resolve,
      reject,
      opens,
      executing: undefined,
      isOver: false,
    };
    this.calls++;
    from.callsOut.add(call);
    from.output(() => this.#send(call));
    return promise;
  }

  #send(call: Call): void {
    const { stub } = call;
    if (stub.broken) return this.#fail(call, stub.broken);
    stub.underWay.add(call);
    stub.lastArrivalAt = Math.max(stub.lastArrivalAt, this.#world.now + this.#world.latency());
    if (call.opens) call.opens.lastArrivalAt = stub.lastArrivalAt;
    this.#world.timeline.schedule(stub.lastArrivalAt, () => this.#arrive(call));
  }

  async #arrive(call: Call): Promise<void> {
    const { stub, method, args } = call;
    if (call.isOver || stub.isSilent) return;
    if (method === "abandon") this.#world.handleAbandoned(String(args[0]), String(args[2]));
    const outage = this.#outageOf(stub.to);
    if (outage) return this.#break(stub, errorOf(outage.kind), `is ${outage.kind}`);
    const cut = this.#cutBetween(stub.from.name, stub.to, "call");
    if (cut) return this.#silence(stub, cut, `cannot call ${method}`);
    if (this.#world.loses("call")) return this.#break(stub, errorOf("unreachable"), `loses ${method}`);
    const object = this.#world.objects.get(stub.to);
    if (!object) throw new Error(`${stub.to} is not simulated`);
    const hasArrived = await object.deliver(this.#describe(call), (shell, life) => {
      call.executing = life;
      life.callsIn.add(call);
      execute(stub.end?.target ?? shell, method, args).then(
        (value) => this.#handleExecuted(call, life, value),
        (error: unknown) => life.output(() => this.#answer(call, { error })),
      );
    });
    if (!hasArrived) this.#break(stub, errorOf("unreachable"), "crashed while it woke");
  }

  #handleExecuted(call: Call, life: Life, value: unknown): void {
    const { opens: line } = call;
    if (line) {
      line.end = { life, target: value as object };
      if (!line.broken && line.from.isAlive) life.linesIn.add(line);
    }
    life.output(() => this.#answer(call, { value: copy(value) }));
  }

  #answer(call: Call, answer: { value: unknown } | { error: unknown }): void {
    const { stub, executing, method } = call;
    executing?.callsIn.delete(call);
    if (call.isOver || stub.isSilent) return;
    const cut = this.#cutBetween(stub.from.name, stub.to, "answer");
    if (cut) return this.#silence(stub, cut, `does not hear what came of ${method}`);
    if (this.#world.loses("answer") || this.#outageOf(stub.to)?.kind === "unreachable")
      return this.#break(stub, errorOf("unreachable"), `loses the answer to ${method}`);
    stub.underWay.delete(call);
    if ("error" in answer) {
      // An exception of the object: the stub stays dead, what is under way goes on.
      stub.broken ??= errorOf("unreachable");
      return this.#fail(call, answer.error);
    }
    this.#settle(call, `gets the answer to ${method}`, () => call.resolve(answer.value));
  }

  #fail(call: Call, error: unknown): void {
    this.#settle(call, `gets an error from ${call.method}: ${String(error)}`, () => call.reject(error));
  }

  #settle(call: Call, what: string, settle: () => void): void {
    const { from } = call.stub;
    call.isOver = true;
    this.#world.after(this.#world.latency(), () => {
      from.callsOut.delete(call);
      return this.#world.turn(from, what, settle);
    });
  }

  /** It breaks, now or when its caller has heard nothing for long enough. */
  #silence(stub: Stub, { silenceMs }: Cut, why: string): void {
    if (silenceMs === 0) return this.#break(stub, errorOf("unreachable"), why);
    this.#world.log(`${stub.from.name} -> ${stub.to} ${why}`);
    stub.isSilent = true;
    this.#world.after(silenceMs, () => this.#break(stub, errorOf("unreachable"), "has been silent"));
  }

  #break(stub: Stub, error: Error, why: string): void {
    // Of a caller that is gone nothing arrives behind what was lost.
    if (!stub.from.isAlive) return this.#drop(stub);
    this.broken++;
    this.#world.log(`${stub.from.name} -> ${stub.to} ${why}`);
    stub.broken ??= error;
    this.#letGo(stub);
    for (const call of stub.underWay) {
      this.#fail(call, error);
      if (call.opens) this.#break(call.opens, error, "was not opened");
    }
    stub.underWay.clear();
  }

  /**
   * What was under way to it fails, now or at the next call. What was under way from it may arrive still, until its next
   * life begins, or not.
   */
  handleCrash(life: Life): void {
    for (const stub of this.#stubs) {
      if (stub.from === life) {
        this.#letGo(stub);
        if (this.#world.faultChance(0.5)) this.#drop(stub);
      } else if (stub.to === life.name && !stub.broken) {
        const isUsed = [...stub.underWay].some((call) => call.executing === life);
        if (isUsed || stub.end?.life === life || this.#world.faultChance(0.5))
          this.#break(stub, errorOf("unreachable"), "has crashed");
      }
    }
  }

  /** Its caller is gone: what has not arrived does not. */
  #drop(stub: Stub): void {
    this.#stubs.delete(stub);
    this.#letGo(stub);
    for (const call of stub.underWay) call.isOver = true;
  }

  #describe({ stub, method, args }: Call): string {
    return this.#world.trace ? `<- ${stub.from.name} ${method}(${args.map(describeArgument).join(", ")})` : method;
  }
}

async function execute(target: object, method: string, args: unknown[]): Promise<unknown> {
  const methods = target as Record<string, (...args: unknown[]) => unknown>;
  if (typeof methods[method] !== "function") throw new TypeError(`there is no method ${method}`);
  return methods[method](...args);
}

function errorOf(kind: Outage["kind"]): Error {
  return kind === "overloaded"
    ? Object.assign(new Error("Durable Object is overloaded."), { overloaded: true, remote: true })
    : Object.assign(new Error("Network connection lost."), { retryable: true, remote: true });
}

/** As it comes out on the other side. Most of it is bytes, for which structuredClone is slow. */
function copy(value: unknown): unknown {
  if (value instanceof Uint8Array) return value.slice();
  return typeof value === "object" && value !== null ? structuredClone(value) : value;
}

/** Of bytes the message names in them, which is what one looks for in a trace. */
function describeArgument(argument: unknown): string {
  if (!(argument instanceof Uint8Array)) return JSON.stringify(argument) ?? "undefined";
  const names = Buffer.from(argument)
    .toString("latin1")
    .match(/[\w-]+#\d+/g);
  return `${argument.length} bytes${names ? `: ${names.join(" ")}` : ""}`;
}
