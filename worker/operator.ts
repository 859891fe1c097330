import { createHash, timingSafeEqual } from "node:crypto";

/** Whether the request may name its node: anyone on loopback, elsewhere who has the operators' token. */
export function allowsNodeChoice(request: Request, env: Env): boolean {
  return env.LOOPBACK === "true" || isOperator(request, env);
}

/** Whether the request carries the operators' token (RFC 6750); without one configured nobody does. */
export function isOperator(request: Request, { TRELLIS_API_TOKEN: token }: Pick<Env, "TRELLIS_API_TOKEN">): boolean {
  const given = /^Bearer +(.+)$/i.exec(request.headers.get("Authorization") ?? "")?.[1];
  if (!token || given === undefined) return false;
  // Digests are of one length: not even the token's length shows in the time that this takes.
  return timingSafeEqual(digestOf(given), digestOf(token));
}

function digestOf(text: string): Uint8Array {
  return createHash("sha256").update(text).digest();
}
