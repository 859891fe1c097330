// From runs to rows: medians of what was measured, and medians of ratios, each formed inside one round, so that what the
// machine does besides in the long run touches both sides of it.

import { goals, type Against, type Goal } from "./goals.ts";
import type { Faults, Figures, LoadResult } from "./load/spec.ts";
import type { Row, Scenario } from "./scenarios.ts";

/** "trellis", or whom it is compared with. */
export type Column = "trellis" | Against;

/** One broker, once. */
export interface Run {
  readonly column: Column;
  readonly round: number;
  readonly result: LoadResult;
}

export type Cell =
  | { readonly kind: "figures"; readonly median: Figures }
  /** One of its runs was; such figures are worth nothing. */
  | { readonly kind: "void"; readonly reason: string };

export type Ratios = ReadonlyMap<Against, { readonly median: number; readonly rounds: readonly number[] }>;

export interface RowResult {
  readonly name: string;
  readonly measure: Row["measure"];
  readonly cells: ReadonlyMap<Column, Cell>;
  /** Trellis' figure by the other's. */
  readonly ratios: Ratios;
  /** The same of the broker's CPU for each message. */
  readonly cpuRatios: Ratios;
  readonly goals: readonly {
    readonly goal: Goal;
    readonly ratio: number | undefined;
    readonly isMet: boolean | undefined;
  }[];
}

export interface ScenarioResult {
  readonly scenario: Scenario;
  readonly rows: readonly RowResult[];
  readonly runs: readonly Run[];
}

/** Why a run is worth nothing; undefined: it is valid. */
export function voidReason(result: LoadResult): string | undefined {
  if (result.kind === "failed") return result.reason;
  const faults = Object.entries(result.faults satisfies Faults).filter(([, count]) => count > 0);
  return faults.length === 0 ? undefined : faults.map(([name, count]) => `${count} ${name}`).join(", ");
}

export function scenarioResult(scenario: Scenario, runs: readonly Run[]): ScenarioResult {
  return { scenario, runs, rows: scenario.rows.map((row) => rowResult(scenario, row, runs)) };
}

function rowResult(scenario: Scenario, { phase, measure }: Row, runs: readonly Run[]): RowResult {
  const name = phase === "" ? scenario.name : `${scenario.name} ${phase}`;
  const cells = new Map<Column, Cell>();
  for (const column of new Set(runs.map((run) => run.column))) {
    const own = runs.filter((run) => run.column === column);
    cells.set(column, cellOf(own, phase));
  }
  const compared = [...cells.keys()].filter((column) => column !== "trellis");
  const ratiosOf = (key: keyof Figures): Ratios =>
    new Map(
      compared.flatMap((against) => {
        if (cells.get(against)?.kind !== "figures" || cells.get("trellis")?.kind !== "figures") return [];
        const rounds = ratiosByRound(runs, against, phase, key);
        return rounds.length === 0 ? [] : [[against, { median: median(rounds), rounds }] as const];
      }),
    );
  const ratios = ratiosOf(measure);
  const own = goals.filter((goal) => goal.row === name && cells.has(goal.against));
  return {
    name,
    measure,
    cells,
    ratios,
    cpuRatios: ratiosOf("cpuSecondsPerMillion"),
    goals: own.map((goal) => {
      const ratio = ratios.get(goal.against)?.median;
      return { goal, ratio, isMet: ratio === undefined ? undefined : isMet(goal, ratio) };
    }),
  };
}

function cellOf(runs: readonly Run[], phase: string): Cell {
  const reasons = runs.map(({ result }) => voidReason(result)).filter((reason) => reason !== undefined);
  if (reasons.length > 0) return { kind: "void", reason: reasons[0]! };
  const all = runs.map((run) => figuresOf(run, phase));
  const keys = new Set(all.flatMap((figures) => Object.keys(figures) as (keyof Figures)[]));
  const entries = [...keys].map((key) => {
    const values = all.map((figures) => figures[key]).filter((value) => value !== undefined);
    return [key, values.length === 0 ? undefined : median(values)] as const;
  });
  return { kind: "figures", median: Object.fromEntries(entries) };
}

function figuresOf({ result }: Run, phase: string): Figures {
  return result.kind === "done" ? (result.phases[phase] ?? {}) : {};
}

function ratiosByRound(runs: readonly Run[], against: Against, phase: string, key: keyof Figures): number[] {
  const valueOf = (column: Column, round: number): number | undefined => {
    const run = runs.find((run) => run.column === column && run.round === round);
    return run && figuresOf(run, phase)[key];
  };
  const rounds = [...new Set(runs.map(({ round }) => round))];
  return rounds.flatMap((round) => {
    const [ours, theirs] = [valueOf("trellis", round), valueOf(against, round)];
    return ours === undefined || theirs === undefined || theirs === 0 ? [] : [ours / theirs];
  });
}

function isMet({ limit }: Goal, ratio: number): boolean {
  return "atLeast" in limit ? ratio >= limit.atLeast : ratio <= limit.atMost;
}

/** Of an even number of values, the mean of the two in the middle. */
function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
