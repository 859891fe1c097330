// A broker's directory on disk, held by one broker at a time: two workerd processes on one directory crash.
//
//   lock              a SQLite database with one row: the pid of the workerd that writes here
//   workerd.capnp     what that workerd was started with
//   worker/           the bundle
//   durable-objects/  the databases of the nodes and the coordinator
//
// The lock is SQLite's own, which the kernel drops when its holder dies, however it dies; no pid is compared with a pid
// that has since been given to another program. What may outlive a launcher that was killed is its workerd: the next
// launcher finds its pid in the row, and ends it if that process still runs on this directory.

import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { DatabaseSync } from "node:sqlite";

/** A directory that this process holds until `release` or its own end. */
export interface DataDir {
  readonly worker: string;
  readonly config: string;
  readonly storage: string;
  /** Remembers the workerd that writes here, for a launcher that comes after a crash of this one. */
  remember(pid: number): void;
  release(): void;
}

/**
 * Creates the directory if needed and holds it.
 * Throws an Error of one line if another broker holds it.
 */
export function holdDataDir(path: string): DataDir {
  const directory = resolve(path);
  const config = join(directory, "workerd.capnp");
  const storage = join(directory, "durable-objects");
  mkdirSync(storage, { recursive: true });
  const lock = new DatabaseSync(join(directory, "lock"), { timeout: 0 });
  try {
    lock.exec("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE");
    lock.exec("CREATE TABLE IF NOT EXISTS workerd (pid INTEGER NOT NULL); COMMIT");
  } catch (error) {
    lock.close();
    if (!isBusy(error)) throw error;
    throw new Error(`${directory} is in use by another broker (DATA_DIR chooses another directory)`, { cause: error });
  }
  for (const { pid } of lock.prepare("SELECT pid FROM workerd").all()) endLeftOver(Number(pid), config);
  lock.exec("DELETE FROM workerd");
  return {
    worker: join(directory, "worker"),
    config,
    storage,
    remember(pid) {
      lock.exec("DELETE FROM workerd");
      lock.prepare("INSERT INTO workerd (pid) VALUES (?)").run(pid);
    },
    release() {
      if (!lock.isOpen) return;
      lock.exec("DELETE FROM workerd");
      lock.close();
    },
  };
}

function isBusy(error: unknown): boolean {
  const busy = 5; // SQLITE_BUSY
  return error instanceof Error && "errcode" in error && error.errcode === busy;
}

/** Ends a workerd that outlived its launcher, and waits until it is gone. A pid that is another program's is left alone. */
function endLeftOver(pid: number, config: string): void {
  const deadline = performance.now() + 5_000;
  while (commandLine(pid).includes(config)) {
    if (performance.now() > deadline) throw new Error(`workerd ${pid} of an earlier start does not end`);
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // Gone in between.
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
  }
}

/** The command line of a process; empty if there is none, or no way to tell. */
function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    // Not Linux, or no such process.
  }
  if (process.platform === "linux" || process.platform === "win32") return "";
  try {
    return execFileSync("ps", ["-o", "command=", "-p", String(pid)], { encoding: "utf8" });
  } catch {
    return "";
  }
}
