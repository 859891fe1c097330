import { cloudflareTest } from "@cloudflare/vitest-plugin";
import { defineConfig } from "vitest/config";
import { patience } from "./test/support/patience.ts";

/** So a busy machine fails no test: a test waits a few times at most. ms. */
const patient = { testTimeout: 60_000, hookTimeout: 60_000, expect: { poll: patience } };

// Four ways to run a test, by folder; `npm test` runs the first three:
//   pure     in Node: protocol, cluster, command line. Milliseconds.
//   runtime  inside workerd, next to the Durable Objects: eviction, alarms, storage.
//   e2e      in Node, real clients against a real broker (`workerd serve`).
//   chaos    the same, while the broker is killed again and again.
export default defineConfig({
  test: {
    projects: [
      {
        // The simulation runs the Durable Object classes in Node.
        resolve: { alias: { "cloudflare:workers": `${import.meta.dirname}/test/simulation/cloudflare-workers.ts` } },
        test: {
          ...patient,
          name: "pure",
          include: ["test/**/*.test.ts"],
          exclude: ["test/runtime/**", "test/e2e/**", "test/chaos/**"],
        },
      },
      {
        plugins: [
          cloudflareTest({
            wrangler: { configPath: "./wrangler.toml" },
            // As on a developer's machine: anyone may connect, and choose the node.
            miniflare: { bindings: { LOOPBACK: "true" } },
          }),
        ],
        test: {
          ...patient,
          name: "runtime",
          include: ["test/runtime/**/*.test.ts"],
          // mqtt-packet is CommonJS; Vite's optimizer turns it into something workerd can import.
          deps: { optimizer: { ssr: { enabled: true, include: ["mqtt-packet"] } } },
        },
      },
      {
        test: {
          ...patient,
          // Brokers and whole clusters start in a test, bundle, are killed and heal, one after the other.
          testTimeout: 180_000,
          name: "e2e",
          include: ["test/e2e/**/*.test.ts"],
          globalSetup: ["test/support/bundle.ts"],
          // After the others; the clients mostly wait, so more files at once than there are spare cores.
          sequence: { groupOrder: 1 },
          maxWorkers: 2,
        },
      },
      {
        test: {
          name: "chaos",
          include: ["test/chaos/**/*.test.ts"],
          globalSetup: ["test/chaos/bundle.ts"],
        },
      },
    ],
  },
});
