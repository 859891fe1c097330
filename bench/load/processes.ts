// What Linux says of the broker's process and of the whole machine. Elsewhere there is nothing: the columns stay empty.

import { readdirSync, readFileSync } from "node:fs";

/** USER_HZ, which Linux keeps at 100 for all programs to see, whatever its clock is. */
const ticksPerSecond = 100;

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return undefined;
  }
}

/**
 * Seconds of CPU that the process has used, all its threads together, to the nanosecond: the ticks of /proc/PID/stat are
 * longer than what a thousand messages take.
 */
export function cpuSecondsOf(pid: number): number | undefined {
  const threads = readDirectory(`/proc/${pid}/task`);
  if (threads === undefined) return undefined;
  const nanoseconds = threads.map((thread) => Number(read(`/proc/${pid}/task/${thread}/schedstat`)?.split(" ", 1)[0]));
  return nanoseconds.reduce((sum, value) => sum + (value || 0), 0) / 1e9;
}

function readDirectory(path: string): string[] | undefined {
  try {
    return readdirSync(path);
  } catch {
    return undefined;
  }
}

/** Kilobytes of the process in memory. */
export function residentKilobytesOf(pid: number): number | undefined {
  const kilobytes = /VmRSS:\s+(\d+)/.exec(read(`/proc/${pid}/status`) ?? "")?.[1];
  return kilobytes === undefined ? undefined : Number(kilobytes);
}

/** Seconds of CPU that the machine has been busy, all cores together. */
export function busySeconds(): number | undefined {
  const line = read("/proc/stat")?.split("\n", 1)[0];
  if (line === undefined) return undefined;
  const [user = 0, nice = 0, system = 0, , , irq = 0, softIrq = 0, steal = 0] = line
    .trim()
    .split(/\s+/)
    .slice(1)
    .map(Number);
  return (user + nice + system + irq + softIrq + steal) / ticksPerSecond;
}
