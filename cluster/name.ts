/**
 * Names of nodes: `name@host`, for example `node-0@weur.emqxcl`.
 *
 * The host is an address. Inside one deployment it is made of the location and the cluster's name
 * (`weur` + `emqxcl`), and the runtime finds the node by the whole name. A host that does not end in
 * the cluster's name is a real address, of a node in another deployment.
 *
 * A name is an identity: two spellings of one host would be two nodes. So hosts are lower case only.
 */
import { IPV4_REGEX, IPV6_REGEX } from "valibot";

/** `name@host`, as checked by `parseNodeName`. */
export type NodeName = string;

const namePartCharsMax = 64;
/** RFC 1035: 253 characters of a host name, 63 of a label. */
const hostCharsMax = 253;
const labelPattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
const namePattern = /^[A-Za-z0-9_-]+$/;

/** Splits `name@host` and checks both. Throws an Error of one line that says what is wrong. */
export function parseNodeName(text: string): { name: string; host: string } {
  const shown = JSON.stringify(text.slice(0, namePartCharsMax + 1 + hostCharsMax));
  const at = text.indexOf("@");
  if (at < 0) throw new Error(`${shown} is not a node name: there is no "@" (as in node-0@weur.emqxcl)`);
  const name = text.slice(0, at);
  const host = text.slice(at + 1);
  if (name.length > namePartCharsMax) {
    throw new Error(`${shown} is not a node name: more than ${namePartCharsMax} characters before "@"`);
  }
  if (!namePattern.test(name)) {
    throw new Error(`${shown} is not a node name: letters, digits, "_" and "-" are allowed before "@"`);
  }
  if (!isHost(host)) {
    throw new Error(
      `${shown} is not a node name: the host is a lower-case DNS name with a dot, an IPv4 address or an IPv6 address in []`,
    );
  }
  return { name, host };
}

/** One part of a DNS name, in lower case: what a cluster's name and a location must be. */
export function isDnsLabel(text: string): boolean {
  return labelPattern.test(text);
}

/** "weur" + "emqxcl" -> "weur.emqxcl" */
export function hostOf(location: string, clusterName: string): string {
  return `${location}.${clusterName}`;
}

/** Whether the node is of this deployment: its host ends in the cluster's name. */
export function isMember(name: NodeName, clusterName: string): boolean {
  return name.endsWith(`.${clusterName}`);
}

/** The first part of the host: the location of a member, "weur" of `node-0@weur.emqxcl`. */
export function locationOf(name: NodeName): string {
  const host = name.slice(name.indexOf("@") + 1);
  const dot = host.indexOf(".");
  return dot < 0 ? host : host.slice(0, dot);
}

function isHost(host: string): boolean {
  if (host.length > hostCharsMax) return false;
  if (host.startsWith("[")) {
    return host.endsWith("]") && host === host.toLowerCase() && IPV6_REGEX.test(host.slice(1, -1));
  }
  const labels = host.split(".");
  // What ends in a number is an address or a mistake: no top-level domain is all digits (RFC 3696).
  if (/^\d+$/.test(labels.at(-1) ?? "")) return IPV4_REGEX.test(host);
  return labels.length > 1 && labels.every(isDnsLabel);
}
