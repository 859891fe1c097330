// `npm run passwd -- alice`: the entry of a user for `authentication`. The password comes from stdin: typed without an
// echo on a terminal, one line of it otherwise. It is never an argument, where other users of the machine would see it.

import { randomBytes, scrypt } from "node:crypto";
import { stdin, stderr } from "node:process";
import { createInterface } from "node:readline";
import { Writable } from "node:stream";

async function main(args: readonly string[]): Promise<void> {
  const [username] = args;
  if (username === undefined || username === "" || args.length > 1) {
    throw new Error("Usage: npm run passwd -- <username>    (the password is read from standard input)");
  }
  const password = await readPassword();
  if (password === "") throw new Error("An empty password is no password");
  console.log(JSON.stringify({ [username]: await hashPassword(password) }));
}

/** The password in PHC string format, `$scrypt$ln=15,r=8,p=1$<salt>$<hash>`. */
async function hashPassword(password: string): Promise<string> {
  const [ln, r, p] = [15, 8, 1];
  const salt = randomBytes(16);
  const hash = await new Promise<Buffer>((resolve, reject) => {
    // Node's default bound of 32 MB is exactly what these parameters need, and is refused.
    const options = { N: 2 ** ln, r, p, maxmem: 64 * 1024 * 1024 };
    scrypt(password, salt, 32, options, (error, key) => (error === null ? resolve(key) : reject(error)));
  });
  return `$scrypt$ln=${ln},r=${r},p=${p}$${unpadded(salt)}$${unpadded(hash)}`;
}

function unpadded(bytes: Buffer): string {
  return bytes.toString("base64").replace(/=+$/, "");
}

async function readPassword(): Promise<string> {
  if (stdin.isTTY) stderr.write("Password: ");
  // With `terminal`, readline does the echo itself, and writes it here.
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
  const lines = createInterface({ input: stdin, output: nowhere, terminal: stdin.isTTY });
  lines.once("SIGINT", () => process.exit(130));
  try {
    for await (const line of lines) return line;
    return "";
  } finally {
    lines.close();
    if (stdin.isTTY) stderr.write("\n");
  }
}

await main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
