/** Durations in whole microseconds, up to 100 s, in buckets that grow: 64 to the octave, so a quantile is off by 1.6 % at most. */
export class Histogram {
  static readonly #octaves = 22;
  static readonly #longest = 1e8;
  readonly #buckets = new Uint32Array(64 * (Histogram.#octaves + 1));
  #count = 0;

  add(microseconds: number): void {
    const value = Math.min(microseconds, Histogram.#longest);
    const octave = value < 64 ? 0 : 31 - Math.clz32(value) - 5;
    const place = octave === 0 ? value : (value >>> (octave - 1)) & 63;
    this.#buckets[octave * 64 + place]!++;
    this.#count++;
  }

  /** The value that the share `fraction` of all values does not exceed; undefined: there are none. */
  quantile(fraction: number): number | undefined {
    if (this.#count === 0) return undefined;
    let left = Math.ceil(this.#count * fraction);
    const index = this.#buckets.findIndex((count) => (left -= count) <= 0);
    const octave = index >> 6;
    return octave === 0 ? index : (64 + (index & 63)) * 2 ** (octave - 1);
  }
}
