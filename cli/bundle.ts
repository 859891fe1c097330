// The worker as wrangler deploys it: bundled by wrangler itself, described by wrangler.toml. What runs on a machine of
// one's own is therefore byte for byte what runs on Cloudflare.

import { execFile } from "node:child_process";
import { readdir, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename, dirname, join, relative } from "node:path";

import type { WorkerDefinition } from "./workerd-config.ts";

/** A bundle on disk; the paths of `worker.modules` are relative to `directory`. */
export interface Bundle {
  readonly directory: string;
  readonly worker: WorkerDefinition;
}

export interface BundleOptions {
  readonly abort?: AbortSignal;
  /** The module to start from, instead of the one that wrangler.toml names. */
  readonly entry?: string;
}

const root = join(import.meta.dirname, "..");

/**
 * Bundles the worker into `directory`, whose content is replaced. Takes about two seconds.
 * Throws an Error with wrangler's output if the worker does not build, and when `abort` says so.
 */
export async function bundleWorker(directory: string, options: BundleOptions = {}): Promise<Bundle> {
  await rm(directory, { recursive: true, force: true });
  const [{ main, ...config }] = await Promise.all([readConfig(), build(directory, options)]);
  const files = await readdir(directory, { recursive: true, withFileTypes: true });
  const names = files
    .filter((file) => file.isFile() && !/\.map$|^README\.md$/.test(file.name))
    .map((file) => relative(directory, join(file.parentPath, file.name)));
  // wrangler names the entry after the source; all else in the directory is what the entry imports.
  const entry = `${basename(options.entry ?? main, ".ts")}.js`;
  if (!names.includes(entry)) throw new Error(`wrangler wrote no ${entry}`);
  const modules = [entry, ...names.filter((name) => name !== entry)].map((name) => ({ name, path: name }));
  return { directory, worker: { ...config, modules } };
}

/** What is read of wrangler.toml; the types that wrangler ships for it are empty. */
interface WranglerConfig {
  readonly name?: string;
  readonly main?: string;
  readonly compatibility_date?: string;
  readonly compatibility_flags: readonly string[];
  readonly vars: Readonly<Record<string, unknown>>;
  readonly durable_objects: { readonly bindings: readonly { readonly name: string; readonly class_name: string }[] };
}

async function readConfig(): Promise<Omit<WorkerDefinition, "modules"> & { readonly main: string }> {
  // Loaded here and not above: it takes more than a second, next to the build.
  const { unstable_readConfig } = await import("wrangler");
  const config: WranglerConfig = unstable_readConfig({ config: join(root, "wrangler.toml") });
  if (config.name === undefined || config.main === undefined || config.compatibility_date === undefined) {
    throw new Error("wrangler.toml: name, main and compatibility_date are needed");
  }
  return {
    main: config.main,
    name: config.name,
    compatibilityDate: config.compatibility_date,
    compatibilityFlags: config.compatibility_flags,
    vars: config.vars,
    durableObjects: config.durable_objects.bindings.map((binding) => ({
      binding: binding.name,
      className: binding.class_name,
    })),
  };
}

function build(directory: string, { abort: signal, entry }: BundleOptions): Promise<void> {
  const wrangler = join(dirname(createRequire(import.meta.url).resolve("wrangler")), "..", "bin", "wrangler.js");
  const args = [wrangler, "deploy", ...(entry === undefined ? [] : [entry]), "--dry-run", "--outdir", directory];
  return new Promise((resolve, reject) => {
    execFile(process.execPath, args, { cwd: root, signal }, (error, stdout, stderr) => {
      if (error === null) resolve();
      else reject(new Error(`The worker does not build:\n${stdout}${stderr}`));
    });
  });
}
