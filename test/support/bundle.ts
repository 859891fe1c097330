// Vitest's global setup of the end-to-end tests: the worker is bundled once a run.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";

import { bundleWorker } from "../../cli/bundle.ts";
import type { Bundle } from "../../cli/bundle.ts";

declare module "vitest" {
  interface ProvidedContext {
    bundle: Bundle;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const directory = await mkdtemp(join(tmpdir(), "trellis-bundle-"));
  project.provide("bundle", await bundleWorker(directory));
  return () => rm(directory, { recursive: true, force: true });
}
