/**
 * The node's home: the core that takes in what the node writes. It is the nearest one; when calls to it fail again and
 * again the node goes to the next, and back when the nearest is there again.
 *
 *   home  (core, term): the term rises with every change, so that a core knows a call from before
 */
import type { NodeName } from "../../cluster/name.ts";
import { limits } from "../../mqtt/limits.ts";
import type { Sql } from "../schema.ts";

export class Home {
  readonly #sql: Sql;
  readonly #cores: readonly [NodeName, ...NodeName[]];
  #core: NodeName;
  #term: number;
  #failures = 0;
  #changedAt = 0;

  /** @param cores the nearest first. */
  constructor(sql: Sql, cores: readonly [NodeName, ...NodeName[]]) {
    this.#sql = sql;
    this.#cores = cores;
    const [row] = sql.exec<{ core: string; term: number }>("SELECT core, term FROM home WHERE id = 1");
    this.#core = row?.core ?? cores[0];
    this.#term = row?.term ?? 0;
    if (!cores.includes(this.#core)) this.#goTo(cores[0], 0);
  }

  get core(): NodeName {
    return this.#core;
  }

  get term(): number {
    return this.#term;
  }

  handleAnswer(): void {
    this.#failures = 0;
  }

  /** A call to it has failed. */
  handleFailure(now: number): void {
    if (++this.#failures < limits.homeFailuresMax || this.#cores.length === 1) return;
    const next = this.#cores[(this.#cores.indexOf(this.#core) + 1) % this.#cores.length]!;
    console.log(JSON.stringify({ event: "home_changed", from: this.#core, to: next }));
    this.#goTo(next, now);
  }

  /** The nearest core, when it is time to look for it again. */
  nearestAgain(now: number): NodeName | undefined {
    const [nearest] = this.#cores;
    if (this.#core === nearest || now < this.#changedAt + limits.homeReturnMs) return undefined;
    this.#changedAt = now;
    return nearest;
  }

  return(now: number): void {
    this.#goTo(this.#cores[0], now);
  }

  #goTo(core: NodeName, now: number): void {
    this.#core = core;
    this.#term++;
    this.#failures = 0;
    this.#changedAt = now;
    this.#sql.exec("INSERT OR REPLACE INTO home VALUES (1, ?, ?)", this.#core, this.#term);
  }
}
