/**
 * What cuts mean to a cluster: between which objects there was none for a while, and until when that may be felt.
 *
 * A cut that is over before anybody gives up must not be felt at all. A longer one makes sides that go on without each
 * other, by design, until they have found each other again: a member that is down is tried at intervals, and then what each
 * side has done is put together. So a cut lasts, for what is owed to clients, until that is over.
 */
import type { Cut, Network, Outage } from "./network.ts";

/** Shorter ones change nothing: whatever fails is tried for longer. */
const feltMsMin = 2500;

export interface Split {
  readonly from: number;
  /** When it is felt no more. */
  readonly until: number;
  /** It was so long, with the others before it, that members may have been cleaned. */
  readonly mayClean: boolean;
  /** Whether these are on different sides. */
  readonly isBetween: (a: string, b: string) => boolean;
}

export interface SplitsPlan {
  /** Those who go on without others; where there is one alone nobody does. */
  readonly cores: readonly string[];
  /** ms after a cut until it is felt no more. */
  readonly recoveryMs: number;
  /** `cluster.autoclean` */
  readonly autocleanMs: number;
}

export class Splits {
  readonly cores: readonly string[];
  readonly #network: Network;
  readonly #plan: SplitsPlan;

  constructor(network: Network, plan: SplitsPlan) {
    this.cores = plan.cores;
    this.#network = network;
    this.#plan = plan;
  }

  /** Those that were felt at some time between the two. */
  during(from: number, until: number): Split[] {
    if (this.cores.length < 2) return [];
    return this.#all().filter((split) => split.from <= until && from < split.until);
  }

  #all(): Split[] {
    const { cuts, outages } = this.#network;
    const { recoveryMs, autocleanMs } = this.#plan;
    const felt = [...cuts, ...outages].filter((cut) => lengthOf(cut) >= feltMsMin);
    const lengthMs = felt.reduce((sum, cut) => sum + lengthOf(cut), 0);
    const mayClean = autocleanMs > 0 && lengthMs >= autocleanMs;
    return felt.map((cut) => {
      const isBetween = (a: string, b: string): boolean => isCut(cut, a, b);
      return { from: cut.from, until: cut.from + lengthOf(cut) + recoveryMs, mayClean, isBetween };
    });
  }
}

/** Until the last caller has been told. */
function lengthOf(cut: Cut | Outage): number {
  return cut.until - cut.from + ("silenceMs" in cut ? cut.silenceMs : 0);
}

function isCut(cut: Cut | Outage, a: string, b: string): boolean {
  if (!("sides" in cut)) return a !== b && (a === cut.to || b === cut.to);
  const [one, other] = [cut.sides.get(a), cut.sides.get(b)];
  return one !== undefined && other !== undefined && one !== other;
}
