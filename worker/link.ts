import type { Settings } from "../cluster/config.ts";
import { linkSubprotocol } from "../durable-objects/coordinator/links.ts";
import { plain } from "./plain.ts";

/** What `npm start` says of the socket by which a request came. */
export interface SocketProps {
  readonly clientCertificate?: "verified";
}

/** Hands an upgrade at /link to the core that another deployment's core asks for. Who comes proves itself there. */
export function linkToCore(
  request: Request,
  url: URL,
  env: Env,
  settings: Settings,
  props: SocketProps,
): Response | Promise<Response> {
  if (request.headers.has("Origin")) return plain(403, "links are for brokers, not for web pages");
  if (request.headers.get("Sec-WebSocket-Protocol") !== linkSubprotocol)
    return plain(400, `the WebSocket subprotocol ${linkSubprotocol} is needed`);
  const core = settings.cluster.core_nodes.find((name) => name === url.searchParams.get("core"));
  if (core === undefined) return plain(404, "?core= names no core of this deployment");
  if (settings.ssl_options.fail_if_no_peer_cert && !isCertified(request, props))
    return plain(403, "a client certificate is needed (ssl_options.fail_if_no_peer_cert)");
  return env.COORDINATOR.getByName(core).fetch(request);
}

/** Under workerd the socket asks for certificates; Cloudflare says what came of it (client certificate variables). */
function isCertified(request: Request, props: SocketProps): boolean {
  if (props.clientCertificate === "verified") return true;
  const { tlsClientAuth } = (request.cf ?? {}) as Partial<IncomingRequestCfProperties>;
  return tlsClientAuth?.certVerified === "SUCCESS" && tlsClientAuth.certRevoked === "0";
}

/** Which of the settings have no effect, as one line; only `npm start` reads files. */
export function withoutEffect(settings: Settings, env: Env): string | undefined {
  const { certfile, keyfile, cacertfile } = settings.ssl_options;
  const set = Object.entries({ certfile, keyfile, cacertfile }).filter(([, file]) => file !== undefined);
  if (env.SSL_FILES === "true" || set.length === 0) return undefined;
  const keys = set.map(([key]) => `ssl_options.${key}`).join(", ");
  return `${keys}: without effect here, where TLS is Cloudflare's; the certificate of links is the binding LINKS (mtls_certificates)`;
}
