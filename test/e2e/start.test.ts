// What a newcomer does: `npm start`, and how it ends.

import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

const root = join(import.meta.dirname, "..", "..");
let directory: string;
let launchers: ChildProcess[];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "trellis-start-"));
  launchers = [];
});

afterEach(async () => {
  for (const launcher of launchers) await end(launcher, "SIGKILL");
  await rm(directory, { recursive: true, force: true });
});

/** Runs cli/start.ts, as `npm start` does, on a port that the system chooses unless `env` says otherwise. */
function launch(env: Record<string, string> = {}) {
  const { PATH, TMPDIR } = process.env;
  const launcher = spawn(process.execPath, [join(root, "cli", "start.ts")], {
    cwd: root,
    env: { PATH, TMPDIR, PORT: "0", DATA_DIR: join(directory, "data"), ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  launchers.push(launcher);
  const closed = once(launcher, "close");
  let output = "";
  const url = new Promise<string>((resolve) => {
    const collect = (chunk: Buffer): void => {
      output += chunk.toString();
      const match = /^MQTT over WebSocket: (ws:\S+)\nCtrl-C stops it\.\n/m.exec(output);
      if (match?.[1] !== undefined) resolve(match[1]);
    };
    launcher.stdout.on("data", collect);
    launcher.stderr.on("data", collect);
  });
  const ended = closed.then(([code]) => ({ code: code as number | null, output }));
  const ready = Promise.race([url, ended.then(() => Promise.reject(new Error(`It ended:\n${output}`)))]);
  ready.catch(() => {}); // Not every test waits for it.
  return { launcher, url: ready, ended };
}

async function end(launcher: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (launcher.exitCode !== null || launcher.signalCode !== null) return;
  const exit = once(launcher, "exit");
  launcher.kill(signal);
  await exit;
}

/** Opens a WebSocket as an MQTT client does. */
async function open(url: string): Promise<WebSocket> {
  const socket = new WebSocket(url, ["mqtt"]);
  await once(socket, "open");
  return socket;
}

async function isRefused(url: string): Promise<boolean> {
  return fetch(url.replace("ws:", "http:")).then(
    () => false,
    () => true,
  );
}

describe("npm start", () => {
  test("[G9] ends on SIGINT with code 0 while a client is connected, and has written no secret to its disk", async () => {
    const secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0";
    const authentication = JSON.stringify({ alice: `$scrypt$ln=15,r=8,p=1$c2FsdHNhbHQ$${secret}` });
    const { launcher, url, ended } = launch({ TRELLIS_AUTHENTICATION: authentication });
    const socket = await open(await url);
    const closed = once(socket, "close");
    launcher.kill("SIGINT");
    expect((await ended).code).toBe(0);
    await closed;
    expect(await isRefused(await url)).toBe(true);

    const files = await readdir(directory, { recursive: true, withFileTypes: true });
    const contents = files
      .filter((file) => file.isFile())
      .map(async (file) => [file.name, await readFile(join(file.parentPath, file.name), "latin1")] as const);
    const found = await Promise.all(contents);
    expect(found.map(([name]) => name)).toContain("workerd.capnp");
    expect(found.filter(([, content]) => content.includes(secret)).map(([name]) => name)).toEqual([]);
  });

  test("leaves no workerd behind when it is killed, and starts again on the same data", async () => {
    const first = launch();
    const socket = await open(await first.url);
    const closed = once(socket, "close");
    first.launcher.kill("SIGKILL");
    await closed;
    const second = launch();
    (await open(await second.url)).close();
    second.launcher.kill("SIGTERM");
    expect((await second.ended).code).toBe(0);
  });

  test("refuses a held data directory, a taken port and a bad setting in one line, with code 1", async () => {
    const { port } = new URL(await launch().url);
    const refused = [
      launch(),
      launch({ PORT: port, DATA_DIR: join(directory, "other") }),
      launch({ TRELLIS_MQTT__MAX_QOS_ALLOWED: "7", DATA_DIR: join(directory, "other") }),
    ];
    const ends = await Promise.all(refused.map(({ ended }) => ended));
    expect(ends.map(({ code }) => code)).toEqual([1, 1, 1]);
    expect(ends.map(({ output }) => output)).toEqual([
      `${join(directory, "data")} is in use by another broker (DATA_DIR chooses another directory)\n`,
      `Port ${port} of 127.0.0.1 is in use (PORT chooses another port)\n`,
      "mqtt.max_qos_allowed = 7: allowed are 0, 1, 2\n",
    ]);
  });
});
