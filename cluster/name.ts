/**
 * Names of nodes: `name@host`, for example `node-0@weur.emqxcl`.
 *
 * A deployment has a domain. It is the host of its nodes, behind their location where they have one:
 *
 *     domain            a core                 a node
 *     emqxcl            core@local.emqxcl      node-0@weur.emqxcl
 *     eu.example.com    core@eu.example.com    node-0@weur.eu.example.com
 *     127.0.0.1:8084    core@127.0.0.1:8084    node-0@local.127.0.0.1:8084
 *
 * The domain is the address at which other deployments reach this one, so names are unique in a cluster
 * of several; a deployment that is alone has the cluster's name for it. Inside a deployment the runtime
 * finds a node by its whole name.
 *
 * A name is an identity: two spellings of one host would be two nodes. So a host is spelt as a URL spells
 * it: in lower case, IPv6 in its shortest form, and without the port of ws:// or wss://.
 */

/** `name@host`, as checked by `parseNodeName`. */
export type NodeName = string;

const namePartCharsMax = 64;
/** RFC 1035: 253 characters of a host name, 63 of a label. */
const hostCharsMax = 253;
const labelPattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
const namePattern = /^[A-Za-z0-9_-]+$/;
const portPattern = /:[1-9]\d*$/;
const ipv4Pattern = /^\d+(?:\.\d+){3}$/;

/** Splits `name@host` and checks both. Throws an Error of one line that says what is wrong. */
export function parseNodeName(text: string): { name: string; host: string } {
  const fault = faultOfNodeName(text);
  if (fault !== undefined) {
    const shown = JSON.stringify(text.slice(0, namePartCharsMax + 1 + hostCharsMax));
    throw new Error(`${shown} is not a node name: ${fault}`);
  }
  return { name: text.slice(0, text.indexOf("@")), host: addressOf(text) };
}

/** What keeps a text from being a node name, in a few words. */
export function faultOfNodeName(text: string): string | undefined {
  const at = text.indexOf("@");
  if (at < 0) return 'there is no "@" (as in node-0@weur.emqxcl)';
  if (at > namePartCharsMax) return `more than ${namePartCharsMax} characters before "@"`;
  if (!namePattern.test(text.slice(0, at))) return 'letters, digits, "_" and "-" are allowed before "@"';
  if (isHost(text.slice(at + 1))) return undefined;
  return (
    "the host is a lower-case DNS name with a dot, an IPv4 address or an IPv6 address in [] as short as can be, " +
    "with its port unless it is 80 or 443"
  );
}

/** One part of a DNS name, in lower case: what a cluster's name and a location must be. */
export function isDnsLabel(text: string): boolean {
  return labelPattern.test(text);
}

/** Whether a deployment can be reached at it: a DNS name or an IP address, perhaps with a port. */
export function isAddress(text: string): boolean {
  const hostname = hostnameOf(text);
  const labels = hostname.split(".");
  if (!hostname.startsWith("[") && !(labels.length > 1 && labels.every(isDnsLabel))) return false;
  // What ends in a number is an IPv4 address to a URL, "10.1" is 10.0.0.1, and "0x7f.1" 127.0.0.1.
  return ["ws:", "wss:"].every((scheme) => {
    const url = `${scheme}//${text}`;
    return URL.canParse(url) && new URL(url).host === text;
  });
}

/** "weur" + "emqxcl" -> "weur.emqxcl" */
export function hostOf(location: string, domain: string): string {
  return `${location}.${domain}`;
}

/** The host of a name. Of a core whose host is its domain it is the address of its deployment. */
export function addressOf(name: NodeName): string {
  return name.slice(name.indexOf("@") + 1);
}

/** The address without its port: "[::1]" of "[::1]:8084". What is left of the address is ":" and the port. */
export function hostnameOf(address: string): string {
  return address.replace(portPattern, "");
}

/** The kind of host that an address has. */
export function familyOf(address: string): "inet" | "inet6" | "name" {
  if (address.startsWith("[")) return "inet6";
  return ipv4Pattern.test(hostnameOf(address)) ? "inet" : "name";
}

/** Whether the node is of the deployment that has the domain. */
export function isMember(name: NodeName, domain: string): boolean {
  const host = addressOf(name);
  return host === domain || host.endsWith(`.${domain}`);
}

/** The location of a member, "weur" of `node-0@weur.emqxcl`; undefined: its host is the domain alone. */
export function locationOf(name: NodeName, domain: string): string | undefined {
  const host = addressOf(name);
  return host === domain || !isMember(name, domain) ? undefined : host.slice(0, host.indexOf("."));
}

function isHost(host: string): boolean {
  if (hostnameOf(host).length > hostCharsMax) return false;
  if (isAddress(host)) return true;
  // A location before an IP address is no DNS name.
  const dot = host.indexOf(".");
  const location = host.slice(0, dot);
  const address = host.slice(dot + 1);
  return isDnsLabel(location) && !/^\d+$/.test(location) && isAddress(address) && familyOf(address) !== "name";
}
