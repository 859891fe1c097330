import { execFile } from "node:child_process";
import { scryptSync } from "node:crypto";
import { join } from "node:path";
import { expect, test } from "vitest";

import { readSettings } from "../../cluster/config.ts";
import { parsePasswordHash } from "../../cluster/password-hash.ts";

/** Runs `npm run passwd -- ...args` without npm; rejects if it fails. */
function passwd(args: readonly string[], input: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const script = join(import.meta.dirname, "..", "..", "cli", "passwd.ts");
    const child = execFile(process.execPath, [script, ...args], (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(new Error(stderr));
    });
    child.stdin?.end(input);
  });
}

test("[G9] the entry is a setting, and its hash is that of the line read", async () => {
  const entry = await passwd(["al ice"], "secret word\nnot this\n");
  const { authentication } = readSettings({ TRELLIS_AUTHENTICATION: entry });
  expect(Object.keys(authentication)).toEqual(["al ice"]);
  const text = (JSON.parse(entry) as Record<string, string>)["al ice"] ?? "";
  const { N, r, p, salt, hash } = parsePasswordHash(text);
  const maxmem = 64 * 1024 * 1024;
  expect(scryptSync("secret word", salt, hash.length, { N, r, p, maxmem }).equals(hash)).toBe(true);
});

test("[G9] the same password has another salt each time", async () => {
  expect(await passwd(["alice"], "secret")).not.toBe(await passwd(["alice"], "secret"));
});

test("no user name, and no password, are errors", async () => {
  await expect(passwd([], "secret\n")).rejects.toThrow(/Usage/);
  await expect(passwd(["alice"], "")).rejects.toThrow(/empty password/);
});
