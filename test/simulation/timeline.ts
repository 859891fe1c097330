/** What is to happen, ordered by time; of things at the same time the one that was scheduled first comes first. */
export class Timeline {
  /** ms since the epoch, with fractions. */
  now: number;
  readonly #heap: Scheduled[] = [];
  #count = 0;

  constructor(now: number) {
    this.now = now;
  }

  schedule(at: number, run: () => void | Promise<void>): Scheduled {
    const scheduled = new Scheduled(Math.max(at, this.now), this.#count++, run);
    const heap = this.#heap;
    let index = heap.push(scheduled) - 1;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (heap[parent]!.isBefore(scheduled)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = scheduled;
    return scheduled;
  }

  /** Moves the time to the next thing, unless that is later than `until`. */
  next(until: number): Scheduled | undefined {
    for (;;) {
      const first = this.#heap[0];
      if (!first || first.at > until) {
        this.now = Math.max(this.now, until);
        return undefined;
      }
      this.#removeFirst();
      if (first.cancelled) continue;
      this.now = first.at;
      return first;
    }
  }

  #removeFirst(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let index = 0;
    for (;;) {
      let child = index * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && heap[child + 1]!.isBefore(heap[child]!)) child++;
      if (last.isBefore(heap[child]!)) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = last;
  }
}

export class Scheduled {
  readonly at: number;
  readonly run: () => void | Promise<void>;
  cancelled = false;
  readonly #number: number;

  constructor(at: number, number: number, run: () => void | Promise<void>) {
    this.at = at;
    this.#number = number;
    this.run = run;
  }

  isBefore(other: Scheduled): boolean {
    return this.at === other.at ? this.#number < other.#number : this.at < other.at;
  }
}
