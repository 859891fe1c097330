/**
 * One timer for all that have the same time for something: what began first is late first. A timer of the runtime costs
 * 6 us, and a pending one keeps the object awake, so there is none while nothing is awaited.
 */
export class SharedTimer<T> {
  readonly #ms: number;
  readonly #handleLate: (item: T) => void;
  /** ms since the epoch, rising. */
  readonly #began = new Map<T, number>();
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(ms: number, handleLate: (item: T) => void) {
    this.#ms = ms;
    this.#handleLate = handleLate;
  }

  /** An item's time begins, unless it has begun. */
  start(item: T, now: number): void {
    if (this.#began.has(item)) return;
    this.#began.set(item, now);
    this.#timer ??= setTimeout(() => this.#look(), this.#ms);
  }

  stop(item: T): void {
    if (!this.#began.delete(item) || this.#began.size > 0) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #look(): void {
    this.#timer = undefined;
    const now = Date.now();
    for (const [item, began] of this.#began) {
      if (began + this.#ms > now) break;
      this.#began.delete(item);
      this.#handleLate(item);
    }
    const [began] = this.#began.values();
    if (began === undefined) return;
    // One that has begun meanwhile may have set it for itself.
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#look(), began + this.#ms - now);
  }
}
