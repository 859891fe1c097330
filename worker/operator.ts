import { timingSafeEqual } from "node:crypto";

/** Whether the request may name its node: anyone on loopback, elsewhere who has the operators' token. */
export function allowsNodeChoice(request: Request, env: Env): boolean {
  return env.LOOPBACK === "true" || isOperator(request, env);
}

function isOperator(request: Request, { TRELLIS_API_TOKEN: token }: Env): boolean {
  const given = /^Bearer (.+)$/.exec(request.headers.get("Authorization") ?? "")?.[1];
  if (!token || given === undefined) return false;
  const encoder = new TextEncoder();
  const [a, b] = [encoder.encode(given), encoder.encode(token)];
  return a.length === b.length && timingSafeEqual(a, b);
}
