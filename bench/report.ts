// The tables, as text.

import type { Against, Goal } from "./goals.ts";
import type { Figures } from "./load/spec.ts";
import type { Cell, Column, RowResult, ScenarioResult } from "./results.ts";
import type { Row } from "./scenarios.ts";

const columns: readonly Column[] = ["trellis", "mosquitto", "aedes", "bare", "gateways", "store", "reference"];

const units: Readonly<Record<Row["measure"], string>> = {
  perSecond: "per second",
  p50Us: "p50 us",
  kilobytesPerConnection: "kB/conn.",
};

/** A generator that is this busy is what was measured. */
const generatorBusy = 0.95;
/** Programs besides that take this much of a CPU have disturbed the run. */
const disturbed = 0.3;

/** All that was measured of one scenario: a line for each broker. */
export function scenarioTable({ scenario, rows }: ScenarioResult): string {
  const lines = [`${scenario.name}: ${scenario.about}`];
  for (const row of rows) {
    lines.push(
      line([row.name, units[row.measure], "trellis is", "CPU s/M", "trellis is", "p50 us", "p99 us", "MB", "noise"]),
      ...columns.filter((column) => row.cells.has(column)).map((column) => cellLine(scenario.reference, row, column)),
      ...row.goals.map(({ goal, ratio, isMet }) => `  ${goalText(goal)}: ${verdict(isMet)} (${ratioText(ratio)})`),
    );
  }
  return lines.join("\n");
}

function cellLine(reference: string | undefined, row: RowResult, column: Column): string {
  const cell = row.cells.get(column)!;
  const name = `  ${column === "reference" ? reference : column}`;
  if (cell.kind === "void") return `${name.padEnd(24)} void: ${cell.reason}`;
  const { p50Us, p99Us, cpuSecondsPerMillion, brokerMegabytes, otherCpus } = cell.median;
  return line([
    name,
    figureText(cell.median, row.measure),
    column === "trellis" ? "" : ratioText(row.ratios.get(column)?.median),
    number(cpuSecondsPerMillion),
    column === "trellis" ? "" : ratioText(row.cpuRatios.get(column)?.median),
    number(p50Us),
    number(p99Us),
    number(brokerMegabytes),
    otherCpus !== undefined && otherCpus > disturbed ? `${otherCpus.toFixed(1)} CPUs` : "",
  ]);
}

/** One line for each row, with the ratios to all others. */
export function summaryTable(results: readonly ScenarioResult[]): string {
  const others = columns.filter((column): column is Against => column !== "trellis");
  const heads = ["", "trellis", "", "CPU s/M", ...others.map((other) => `x ${other}`), "goals"];
  const lines = results.flatMap(({ rows }) =>
    rows.map((row) => {
      const cell = row.cells.get("trellis");
      const figures = cell?.kind === "figures" ? cell.median : {};
      return line([
        row.name,
        cell?.kind === "void" ? "void" : figureText(figures, row.measure),
        units[row.measure],
        number(figures.cpuSecondsPerMillion),
        ...others.map((other) => otherText(row, other)),
        row.goals.map(({ goal, isMet }) => `${goalText(goal)} ${verdict(isMet)}`).join("; "),
      ]);
    }),
  );
  return [line(heads), ...lines].join("\n");
}

function otherText({ cells, ratios }: RowResult, other: Against): string {
  const cell: Cell | undefined = cells.get(other);
  return cell?.kind === "void" ? "void" : ratioText(ratios.get(other)?.median);
}

function goalText({ against, limit }: Goal): string {
  return "atLeast" in limit ? `>= ${limit.atLeast} x ${against}` : `<= ${limit.atMost} x ${against}`;
}

function verdict(isMet: boolean | undefined): string {
  if (isMet === undefined) return "unknown";
  return isMet ? "met" : "missed";
}

function figureText(figures: Figures, measure: Row["measure"]): string {
  const isBound = measure === "perSecond" && (figures.generatorCpus ?? 0) > generatorBusy;
  return `${isBound ? ">=" : ""}${number(figures[measure])}`;
}

function ratioText(ratio: number | undefined): string {
  return ratio === undefined ? "-" : ratio.toFixed(2);
}

/** Three digits that count, or all before the point. */
function number(value: number | undefined): string {
  if (value === undefined) return "-";
  return value < 100 ? String(Number(value.toPrecision(3))) : Math.round(value).toLocaleString("en-US");
}

/** The first cell to the left, the others to the right, the last as it is. */
function line([first = "", ...rest]: readonly string[]): string {
  const cells = rest.map((cell, index) => (index === rest.length - 1 ? `  ${cell}` : cell.padStart(13)));
  return `${first.padEnd(24)}${cells.join("")}`.trimEnd();
}
