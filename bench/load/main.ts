// The load generator's process, one for each run, so that no run pays for the garbage of another. The job comes as JSON
// in the first argument; the result goes out as JSON on standard output.

import { Load } from "./load.ts";
import { runShape } from "./shapes.ts";
import type { LoadJob, LoadResult } from "./spec.ts";

async function run(job: LoadJob): Promise<LoadResult> {
  const load = new Load(job);
  const phases = await runShape(load, job.spec.shape);
  await load.close();
  return { kind: "done", phases, faults: load.faults };
}

const job = JSON.parse(process.argv[2]!) as LoadJob;
const result = await run(job).catch((error: unknown): LoadResult => ({
  kind: "failed",
  reason: error instanceof Error ? error.message : String(error),
}));
process.stdout.write(JSON.stringify(result), () => process.exit(0));
