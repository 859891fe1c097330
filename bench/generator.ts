// Runs one load in a process of its own.

import { execFile } from "node:child_process";
import { join } from "node:path";

import type { LoadJob, LoadResult } from "./load/spec.ts";

/** Longer than any load takes that makes progress. */
const patienceMs = 180_000;

/** Ends it when `signal` says so. */
export function runLoad(job: LoadJob, signal: AbortSignal): Promise<LoadResult> {
  const args = [join(import.meta.dirname, "load/main.ts"), JSON.stringify(job)];
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      args,
      { timeout: patienceMs, killSignal: "SIGKILL", signal },
      (error, stdout, stderr) => {
        if (stdout !== "") resolve(JSON.parse(stdout) as LoadResult);
        else resolve({ kind: "failed", reason: error?.killed ? "it did not end" : `the generator failed: ${stderr}` });
      },
    );
  });
}
