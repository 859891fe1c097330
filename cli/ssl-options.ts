// `ssl_options` on a machine of one's own: the files are looked at before workerd starts, whose own words for what is
// wrong with them are few.
//
// MQTT clients and links share one port. A client certificate (`fail_if_no_peer_cert`) is asked for by a whole port, and
// would lock out every MQTT client; so links that need one have a port of their own, LINK_PORT, as EMQX's RPC has. It is
// the port of `node.name`, unless something maps it.

import { createPrivateKey, X509Certificate, type KeyObject } from "node:crypto";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";

import type { Settings } from "../cluster/config.ts";
import { isLoopback } from "./loopback.ts";

/** Absolute paths of files in PEM. */
export interface SslFiles {
  /** The certificate, with its chain, and its key: of the listening sockets, and shown to a peer that asks for one. */
  readonly keypair: { readonly certfile: string; readonly keyfile: string } | undefined;
  /** Certificates that are trusted besides the public ones. */
  readonly cacertfile: string | undefined;
}

type SslOptions = Pick<Settings, "driver" | "ssl_options">;

/** Throws an Error of one line that names the key, the value and what is allowed. */
export function readSslFiles({ driver, ssl_options: { certfile, keyfile, cacertfile } }: SslOptions): SslFiles {
  if (cacertfile !== undefined) certificatesOf("cacertfile", cacertfile);
  const trusted = cacertfile === undefined ? undefined : resolve(cacertfile);
  if (driver === "tcp" || certfile === undefined || keyfile === undefined)
    return { keypair: undefined, cacertfile: trusted };
  const [leaf] = certificatesOf("certfile", certfile);
  if (!leaf?.checkPrivateKey(keyOf(keyfile)))
    throw faultOf("keyfile", keyfile, `allowed is the key of the certificate in ${JSON.stringify(certfile)}`);
  return { keypair: { certfile: resolve(certfile), keyfile: resolve(keyfile) }, cacertfile: trusted };
}

/**
 * The port of links that must have a client certificate; undefined: links come to the port of the MQTT clients.
 * @param port the variable LINK_PORT, if it is set
 */
export function readLinkPort({ driver, ssl_options }: SslOptions, host: string, port?: string): number | undefined {
  const { certfile, cacertfile, fail_if_no_peer_cert } = ssl_options;
  if (driver === "tcp") return undefined;
  if (certfile === undefined && !isLoopback(host)) {
    throw new Error(
      `driver = "ssl": ssl_options.certfile and .keyfile are needed, or HOST is a loopback address behind a proxy with TLS`,
    );
  }
  if (!fail_if_no_peer_cert) return undefined;
  const needed = { "ssl_options.certfile": certfile, "ssl_options.cacertfile": cacertfile, LINK_PORT: port };
  for (const [name, value] of Object.entries(needed))
    if (!value) throw new Error(`${name} is missing: ssl_options.fail_if_no_peer_cert = true needs it`);
  return readPort("LINK_PORT", port ?? "");
}

export function readPort(variable: string, text: string): number {
  const port = Number(text);
  if (!/^\d+$/.test(text) || port > 65535) {
    throw new Error(`${variable} = ${text}: allowed is a number from 0 to 65535`);
  }
  return port;
}

const blocks = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g;

function certificatesOf(key: string, file: string): X509Certificate[] {
  const certificates = contentOf(key, file).match(blocks) ?? [];
  try {
    if (certificates.length === 0) throw new Error("none");
    return certificates.map((certificate) => new X509Certificate(certificate));
  } catch {
    throw faultOf(key, file, "allowed is a file of certificates in PEM");
  }
}

function keyOf(file: string): KeyObject {
  const content = contentOf("keyfile", file);
  try {
    return createPrivateKey(content);
  } catch {
    throw faultOf("keyfile", file, "allowed is a file with a private key in PEM, not encrypted");
  }
}

function contentOf(key: string, file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw faultOf(key, file, `it cannot be read (${(error as NodeJS.ErrnoException).code})`);
  }
}

function faultOf(key: string, file: string, allowed: string): Error {
  return new Error(`ssl_options.${key} = ${JSON.stringify(file)}: ${allowed}`);
}
