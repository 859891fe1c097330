/**
 * The one alarm of an object. Whoever has a deadline makes sure that the alarm rings by then; when it rings, all look
 * at what is due and say when it must ring next. So it may ring early or twice, and never late.
 */
export class Alarm {
  readonly #storage: DurableObjectStorage;
  readonly #addSet: () => void;
  /** ms since the epoch; undefined: not known since the object woke, 0 = none is set. */
  #at: number | undefined;
  #isAsking = false;

  /** @param addSet counts how often it is set. */
  constructor(storage: DurableObjectStorage, addSet: () => void) {
    this.#storage = storage;
    this.#addSet = addSet;
  }

  /** Rings at this time, in ms since the epoch, or before. Each call that moves it writes a row. */
  ringAt(at: number): void {
    if (this.#at !== undefined && this.#at !== 0 && this.#at <= at) return;
    const isKnown = this.#at !== undefined;
    this.#at = at;
    if (!isKnown) void this.#setUnlessEarlier();
    else if (!this.#isAsking) void this.#set(at);
  }

  /** It has rung: none is set any more. */
  rang(): void {
    this.#at = 0;
  }

  /** After sleep the alarm set before it may be earlier: until that is known only the earliest wish is remembered. */
  async #setUnlessEarlier(): Promise<void> {
    this.#isAsking = true;
    const set = await this.#storage.getAlarm();
    this.#isAsking = false;
    // It rang meanwhile: its handler has looked at all deadlines.
    if (this.#at === undefined || this.#at === 0) return;
    if (set !== null && set <= this.#at) this.#at = set;
    else await this.#set(this.#at);
  }

  #set(at: number): Promise<void> {
    this.#addSet();
    return this.#storage.setAlarm(at);
  }
}
