/**
 * Which web pages may connect. A browser sends the page's origin with an upgrade and asks nobody, so a page of anyone's
 * could reach a broker that its visitor can reach: on loopback, say, or with credentials that it knows. Allowed are the
 * origins that the operator lists and pages from the broker's own host; on loopback, pages from loopback (and not the
 * host that the request names: a name that an attacker owns may be made to point to 127.0.0.1). Clients that are not
 * browsers send no Origin and are not concerned.
 *
 * @returns why the request is refused, or undefined.
 */
export function refuseOrigin(
  request: Request,
  url: URL,
  allowed: readonly string[],
  onLoopback: boolean,
): string | undefined {
  const origin = request.headers.get("Origin");
  if (origin === null || allowed.includes("*") || allowed.includes(origin)) return undefined;
  const page = URL.parse(origin);
  if (page && (onLoopback ? isLoopback(page.hostname) : page.host === url.host)) return undefined;
  return `origin ${JSON.stringify(origin)} is not allowed: list it in the setting "origins"`;
}

function isLoopback(hostname: string): boolean {
  return hostname === "localhost" || hostname === "[::1]" || /^127(\.\d{1,3}){3}$/.test(hostname);
}
