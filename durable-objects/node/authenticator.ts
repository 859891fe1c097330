/**
 * Checks passwords against their scrypt hashes.
 *
 * A check takes tens of milliseconds of the object's only thread, and anyone may ask for one. So they are made one at a
 * time, with a turn of the event loop for the others between two; few may wait; and who was right once is known again
 * without scrypt, by a keyed digest that dies with the object's memory: else every restart would begin with a check for
 * each of its clients.
 */
import { createHmac, randomBytes, scrypt, timingSafeEqual } from "node:crypto";
import { parsePasswordHash } from "../../cluster/password-hash.ts";
import { limits } from "../../mqtt/limits.ts";
import { ReasonCode } from "../../mqtt/reason-codes.ts";

const nobody = "$scrypt$ln=15,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

export class Authenticator {
  readonly #hashes: Readonly<Record<string, string>>;
  /** What is computed for a user that does not exist, at the cost of one that does, so that the time tells nothing. */
  readonly #somebody: string;
  readonly #key = randomBytes(32);
  /** User name -> digest of the hash and password that were right together. */
  readonly #known = new Map<string, Buffer>();
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  /** @param hashes user name -> password hash in PHC format. */
  constructor(hashes: Readonly<Record<string, string>>) {
    this.#hashes = hashes;
    this.#somebody = Object.values(hashes)[0] ?? nobody;
  }

  /** The reason code for CONNACK: Success, Bad User Name or Password, or Server busy when too many checks wait. */
  async verify(username: string, password: Uint8Array | undefined): Promise<ReasonCode> {
    const hash = this.#hashes[username];
    const digest = createHmac("sha256", this.#key)
      .update(`${hash}\n`)
      .update(password ?? "")
      .digest();
    const known = this.#known.get(username);
    if (known && timingSafeEqual(known, digest)) return ReasonCode.Success;
    if (this.#waiting >= limits.passwordChecksWaitingMax) return ReasonCode.ServerBusy;
    this.#waiting++;
    const check = this.#last.then(() => compare(hash ?? this.#somebody, password ?? new Uint8Array()));
    this.#last = check.catch(() => undefined).then(() => scheduler.wait(0));
    try {
      const isRight = (await check) && hash !== undefined && password !== undefined;
      if (isRight) this.#remember(username, digest);
      return isRight ? ReasonCode.Success : ReasonCode.BadUserNameOrPassword;
    } finally {
      this.#waiting--;
    }
  }

  #remember(username: string, digest: Buffer): void {
    this.#known.delete(username);
    this.#known.set(username, digest);
    if (this.#known.size <= limits.passwordsKnownMax) return;
    const [oldest] = this.#known.keys();
    this.#known.delete(oldest!);
  }
}

async function compare(hash: string, password: Uint8Array): Promise<boolean> {
  const { N, r, p, salt, hash: expected } = parsePasswordHash(hash);
  const given = await new Promise<Uint8Array>((resolve, reject) => {
    scrypt(password, salt, expected.length, { N, r, p, maxmem: 256 * N * r }, (error, key) => {
      if (error) reject(error);
      else resolve(key);
    });
  });
  return timingSafeEqual(given, expected);
}
