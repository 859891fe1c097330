// What Linux says of the broker's process and of the whole machine. Elsewhere there is nothing: the columns stay empty.

import { readFileSync } from "node:fs";

/** USER_HZ, which Linux keeps at 100 for all programs to see, whatever its clock is. */
const ticksPerSecond = 100;

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return undefined;
  }
}

/** Seconds of CPU that the process has used, all its threads together. */
export function cpuSecondsOf(pid: number): number | undefined {
  const stat = read(`/proc/${pid}/stat`);
  if (stat === undefined) return undefined;
  // The name in parentheses may hold anything; utime and stime are the 14th and 15th field. proc_pid_stat(5)
  const [user, system] = stat
    .slice(stat.lastIndexOf(")") + 2)
    .split(" ")
    .slice(11, 13)
    .map(Number) as [number, number];
  return (user + system) / ticksPerSecond;
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
