/**
 * When to do, once, what events of the runtime have made necessary: at the end of each event while they are few, and
 * together for all that are there already when they are many.
 *
 *     few   |frame|    |frame|         many  |frame|frame|frame|frame|
 *     done        ^          ^                                       ^
 *
 * One message on its own so waits for nothing: `setImmediate` of an idle runtime takes a millisecond. Under load what
 * many events have brought leaves together, which costs a fraction (a frame, or a call, for each costs more than the
 * messages in them).
 */
import { limits } from "../mqtt/limits.ts";

export class Turn {
  readonly #end: () => number;
  /** Since the last look: events, and what had to be done at their ends. */
  #work = 0;
  #isInEvent = false;
  #isDue = false;
  /** ms since the epoch; 0: not lately. */
  #manyUntil = 0;
  #isLooking = false;

  /** @param end returns how much there was to do: frames, calls */
  constructor(end: () => number) {
    this.#end = end;
  }

  endSoon(): void {
    this.#isDue = true;
    if (this.#isInEvent) return;
    this.#isInEvent = true;
    // The runtime's queueMicrotask takes 5 us, and this 0.1.
    void Promise.resolve().then(() => this.#endEvent());
  }

  #endEvent(): void {
    this.#isInEvent = false;
    this.#work++;
    this.#lookSoon();
    if (!this.#areMany) this.#endNow();
  }

  /** They come in waves: a client's acknowledgements of what the last turn has brought it. */
  get #areMany(): boolean {
    return this.#work > limits.turnWorkMax || (this.#manyUntil > 0 && Date.now() < this.#manyUntil);
  }

  #lookSoon(): void {
    if (this.#isLooking) return;
    this.#isLooking = true;
    setImmediate(() => {
      this.#isLooking = false;
      if (this.#work > limits.turnWorkMax) this.#manyUntil = Date.now() + limits.turnGathersMs;
      this.#work = 0;
      this.#endNow();
    });
  }

  #endNow(): void {
    if (!this.#isDue) return;
    this.#isDue = false;
    try {
      this.#work += this.#end();
    } catch (error) {
      console.error("a turn could not be ended:", error);
    }
  }
}
