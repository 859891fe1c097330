import { scrypt, timingSafeEqual } from "node:crypto";
import { parsePasswordHash } from "../../cluster/password-hash.ts";

/** What is computed for a user that does not exist, so that the time tells nothing. */
const nobody = "$scrypt$ln=15,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/** Whether the password is the one whose hash is kept; false when there is none of either. */
export async function verifyPassword(hash: string | undefined, password: Uint8Array | undefined): Promise<boolean> {
  const expected = parsePasswordHash(hash ?? nobody);
  const { N, r, p, salt } = expected;
  const given = await new Promise<Uint8Array>((resolve, reject) => {
    const options = { N, r, p, maxmem: 256 * N * r };
    scrypt(password ?? new Uint8Array(), salt, expected.hash.length, options, (error, key) => {
      if (error) reject(error);
      else resolve(key);
    });
  });
  return timingSafeEqual(given, expected.hash) && hash !== undefined && password !== undefined;
}
