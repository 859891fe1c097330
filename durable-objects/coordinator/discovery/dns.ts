import type { NodeName } from "../../../cluster/name.ts";
import { limits } from "../../../mqtt/limits.ts";
import { ask, type Fetch } from "./ask.ts";
import { decodeAnswer, encodeQuestion, type DnsRecord, type RecordType } from "./dns-message.ts";
import { hostOfAddress, lookup, namesake, type Strategy } from "./strategy.ts";

export interface DnsSettings {
  readonly name: string;
  readonly record_type: RecordType;
  /** The address of a DNS-over-HTTPS server. */
  readonly server: string;
}

const contentType = "application/dns-message";

/**
 * `dns`: the addresses of a name, or the targets of a service, by DNS over HTTPS (RFC 8484): the runtime has no other, and
 * every such server speaks it. `defaultPort` is that of the links: a name does not have it.
 */
export function dnsStrategy(dns: DnsSettings, self: NodeName, defaultPort: number, fetch: Fetch): Strategy {
  const { name, record_type: type, server } = dns;
  return lookup(`dns ${type.toUpperCase()} ${name} at ${server}`, async () => {
    const url = new URL(server);
    url.searchParams.set("dns", base64Url(encodeQuestion(name, type)));
    const answer = await ask(fetch, url, { headers: { accept: contentType } }, limits.discoveryAnswerMs);
    return records(answer).map(({ host, port }) =>
      port === undefined
        ? namesake(self, hostOfAddress(host))
        : namesake(self, host, port === defaultPort ? "" : `${port}`),
    );
  });

  function records(answer: Uint8Array): DnsRecord[] {
    try {
      return decodeAnswer(answer, name, type);
    } catch (error) {
      throw new Error(`${server}: ${error instanceof Error ? error.message : "not understood"}`, { cause: error });
    }
  }
}

/** RFC 4648, section 5, without padding. */
function base64Url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
}
