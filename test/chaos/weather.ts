// What calls between objects meet. The test sends a forecast, the worker under test lives in it (`worker.ts`).

/** What becomes of one call; all but the first end the stub that it was made on, as in production. */
export type Fate =
  | "answered"
  /** It never arrives. */
  | "lost"
  /** It is executed, and its answer never arrives. */
  | "unanswered"
  /** The callee has too much to do: an error with `overloaded`. */
  | "overloaded"
  /** It arrives, and the callee dies before it is done. */
  | "crashed";

/** Which calls do not arrive, by the names of caller and callee; undefined: any. */
export interface Cut {
  readonly from?: string;
  readonly to?: string;
}

export interface Forecast {
  readonly seed: number;
  /** Of each fate, how many of 1,000 calls. */
  readonly perMille: Readonly<Partial<Record<Exclude<Fate, "answered">, number>>>;
  readonly cuts: readonly Cut[];
  /** Some stubs are slower than others, by this at most: calls on different stubs overtake one another. */
  readonly latencyMsMax: number;
}

export const calm: Forecast = { seed: 0, perMille: {}, cuts: [], latencyMsMax: 0 };

export function fateOf({ perMille, cuts }: Forecast, from: string, to: string, draw: number): Fate {
  const isCut = cuts.some((cut) => (cut.from ?? from) === from && (cut.to ?? to) === to);
  if (isCut) return "lost";
  let left = draw * 1000;
  for (const fate of ["lost", "unanswered", "overloaded", "crashed"] as const) {
    left -= perMille[fate] ?? 0;
    if (left < 0) return fate;
  }
  return "answered";
}
