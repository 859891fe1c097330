/**
 * Password hashes as the settings hold them: scrypt, in the PHC string format, with what is needed to
 * compute them again.
 *
 *     $scrypt$ln=15,r=8,p=1$<salt>$<hash>        base64, with or without padding
 *
 * Each connection with a password costs 128 * 2^ln * r bytes and p times that much work, in an object
 * that serves other clients too: both are bounded here.
 *
 * No error says anything of the text itself: it is a secret.
 */

export interface PasswordHash {
  /** Cost, 2^ln. */
  readonly N: number;
  /** Block size. */
  readonly r: number;
  /** Parallelization. */
  readonly p: number;
  readonly salt: Uint8Array;
  readonly hash: Uint8Array;
}

const pattern = /^\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]+={0,2})\$([A-Za-z0-9+/]+={0,2})$/;
const textCharsMax = 512;
const [lnMin, lnMax, rMax, pMax] = [10, 17, 16, 4];
const memoryBytesMax = 64 * 1024 * 1024;
const [saltBytesMin, hashBytesMin, bytesMax] = [8, 16, 64];

/** Takes a password hash apart. Throws an Error of one line, without the text. */
export function parsePasswordHash(text: string): PasswordHash {
  const match = text.length <= textCharsMax ? pattern.exec(text) : null;
  if (match === null) throw new Error("allowed is a scrypt hash, $scrypt$ln=15,r=8,p=1$<base64 salt>$<base64 hash>");
  const [ln, r, p] = [Number(match[1]), Number(match[2]), Number(match[3])];
  if (ln < lnMin || ln > lnMax) throw new Error(`allowed for ln is ${lnMin} to ${lnMax}`);
  if (r < 1 || r > rMax) throw new Error(`allowed for r is 1 to ${rMax}`);
  if (p < 1 || p > pMax) throw new Error(`allowed for p is 1 to ${pMax}`);
  const N = 2 ** ln;
  if (128 * N * r > memoryBytesMax) throw new Error(`needs more than ${memoryBytesMax} bytes (128 * 2^ln * r)`);
  const salt = decodeBase64(match[4] ?? "");
  const hash = decodeBase64(match[5] ?? "");
  if (salt === undefined || salt.length < saltBytesMin || salt.length > bytesMax) {
    throw new Error(`allowed is a salt of ${saltBytesMin} to ${bytesMax} bytes in base64`);
  }
  if (hash === undefined || hash.length < hashBytesMin || hash.length > bytesMax) {
    throw new Error(`allowed is a hash of ${hashBytesMin} to ${bytesMax} bytes in base64`);
  }
  return { N, r, p, salt, hash };
}

function decodeBase64(text: string): Uint8Array | undefined {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    return undefined;
  }
}
