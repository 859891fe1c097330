import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";

import { holdDataDir } from "../../cli/data-dir.ts";

let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "trellis-data-"));
});

afterEach(() => rm(directory, { recursive: true, force: true }));

test("a data directory has one holder at a time", () => {
  const first = holdDataDir(directory);
  expect(() => holdDataDir(directory)).toThrow(`${directory} is in use by another broker`);
  first.release();
  holdDataDir(directory).release();
});

test("a holder that was killed leaves nothing in the way", async () => {
  await crashedHolder(1);
  holdDataDir(directory).release();
});

test("a workerd that outlived its launcher is ended, another program with its pid is not", async () => {
  const idle = ["--eval", "setInterval(() => {}, 1000)"];
  // A process with the configuration on its command line, as workerd has it.
  const leftOver = spawn(process.execPath, [...idle, join(directory, "workerd.capnp")], { stdio: "ignore" });
  const other = spawn(process.execPath, idle, { stdio: "ignore" });
  try {
    await Promise.all([once(leftOver, "spawn"), once(other, "spawn")]);
    const ended = once(leftOver, "exit");
    await crashedHolder(leftOver.pid);
    holdDataDir(directory).release();
    expect(await ended).toEqual([null, "SIGKILL"]);

    await crashedHolder(other.pid);
    holdDataDir(directory).release();
    expect(other.kill(0)).toBe(true);
  } finally {
    leftOver.kill("SIGKILL");
    other.kill("SIGKILL");
  }
});

/** A launcher that held the directory, had a workerd of this pid, and was killed. */
async function crashedHolder(workerdPid: number | undefined): Promise<void> {
  const module = join(import.meta.dirname, "..", "..", "cli", "data-dir.ts");
  const script = `import { holdDataDir } from ${JSON.stringify(module)};
    holdDataDir(${JSON.stringify(directory)}).remember(${workerdPid});
    console.log("held");
    setInterval(() => {}, 1000);`;
  const holder = spawn(process.execPath, ["--input-type=module", "--eval", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(holder.stdout, "data");
  expect(() => holdDataDir(directory)).toThrow(/in use/);
  holder.kill("SIGKILL");
  await once(holder, "exit");
}
