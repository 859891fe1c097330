// The rule that keeps mqtt/ and cluster/ pure is only worth something if it fires.

import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createRequire } from "node:module";
import { beforeAll, describe, expect, test } from "vitest";

const root = join(import.meta.dirname, "..", "..");
const oxlint = join(dirname(createRequire(import.meta.url).resolve("oxlint/package.json")), "bin", "oxlint");

const impure: [what: string, source: string][] = [
  ["a Node module", 'import { hash } from "node:crypto"; export const x = hash;'],
  ["a Node module without its prefix", 'import fs from "fs"; export const x = fs;'],
  ["a module of Cloudflare", 'import { env } from "cloudflare:workers"; export const x = env;'],
  ["another package", 'import { Hono } from "hono"; export const x = new Hono();'],
  ["the MQTT client, whose name is like the codec's", 'import mqtt from "mqtt"; export const x = mqtt;'],
  ["a type of the shell", 'import type { X } from "../durable-objects/rpc.ts"; export type Y = X;'],
  ["the worker", 'export { default } from "../worker/index.ts";'],
  ["a lazy import", 'export const x = () => import("node:fs");'],
  ["Date.now", "export const x = Date.now();"],
  ["new Date", "export const x = new Date();"],
  ["performance", "export const x = performance.now();"],
  ["Math.random", "export const x = Math.random();"],
  ["Math.random, taken apart", "export const { random } = Math;"],
  ["crypto", "export const x = crypto.randomUUID();"],
  ["setTimeout", "setTimeout(() => {}, 1);"],
  ["setInterval", "setInterval(() => {}, 1);"],
  ["setImmediate", "setImmediate(() => {});"],
  ["queueMicrotask", "queueMicrotask(() => {});"],
  ["WebSocket", 'export const x = new WebSocket("ws://x");'],
  ["fetch", 'export const x = fetch("http://x");'],
  ["console", 'console.log("x");'],
  ["a global by way of globalThis", "export const x = globalThis.performance;"],
];

const pure = `import mqttPacket from "mqtt-packet";
  import * as v from "valibot";
  import { matches } from "./topic.ts";
  import { parseNodeName } from "../cluster/name.ts";
  export const all = [mqttPacket, v, matches, parseNodeName, new TextEncoder(), Math.floor(1.5)];`;

/** Lints the files, path to source, under this project's rules; the paths of those that break the rule. */
function impurePaths(files: ReadonlyMap<string, string>): Set<string> {
  const directory = mkdtempSync(join(tmpdir(), "trellis-lint-"));
  try {
    copyFileSync(join(root, ".oxlintrc.json"), join(directory, ".oxlintrc.json"));
    for (const [path, source] of files) {
      mkdirSync(join(directory, dirname(path)), { recursive: true });
      writeFileSync(join(directory, path), source);
    }
    const args = [oxlint, "--format", "json"];
    const { stdout } = spawnSync(process.execPath, args, { cwd: directory, encoding: "utf8" });
    const { diagnostics } = JSON.parse(stdout) as { diagnostics: { code: string; filename: string }[] };
    const broken = diagnostics.filter(({ code }) => code.includes("no-restricted"));
    return new Set(broken.map(({ filename }) => filename));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

describe("the purity rule", () => {
  const folders = ["mqtt", "cluster", "durable-objects"];
  let found: Set<string>;

  beforeAll(() => {
    const files = impure.flatMap(([, source], index) =>
      folders.map((folder) => [`${folder}/${index}.ts`, source] as const),
    );
    found = impurePaths(new Map([...files, ["mqtt/pure.ts", pure]]));
  });

  test.each(impure.map(([what], index) => [what, index] as const))(
    "forbids %s in the pure folders alone",
    (_, index) => {
      expect(folders.filter((folder) => found.has(`${folder}/${index}.ts`))).toEqual(["mqtt", "cluster"]);
    },
  );

  test("allows the codec, the schema library, and the pure folders themselves", () => {
    expect(found).not.toContain("mqtt/pure.ts");
  });
});
