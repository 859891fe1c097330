// Vitest's global setup of the chaos run: the worker in bad weather, bundled once a run.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";

import { bundleWorker } from "../../cli/bundle.ts";

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const directory = await mkdtemp(join(tmpdir(), "trellis-chaos-"));
  const entry = join(import.meta.dirname, "worker.ts");
  const { worker } = await bundleWorker(directory, { entry });
  const compatibilityFlags = [...worker.compatibilityFlags, "unsafe_module"];
  project.provide("bundle", { directory, worker: { ...worker, compatibilityFlags } });
  return () => rm(directory, { recursive: true, force: true });
}
