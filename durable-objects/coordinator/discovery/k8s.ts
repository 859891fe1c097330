import * as v from "valibot";

import type { NodeName } from "../../../cluster/name.ts";
import { limits } from "../../../mqtt/limits.ts";
import { askJson, below, type Fetch } from "./ask.ts";
import { hostOfAddress, lookup, namesake, type Strategy } from "./strategy.ts";

export interface K8sSettings {
  readonly apiserver: string;
  readonly service_name: string;
  readonly address_type: "ip" | "dns" | "hostname";
  readonly namespace: string;
  readonly suffix: string;
  /** Of a service account that may get endpoints. */
  readonly token: string | undefined;
}

/** Addresses that are ready; those that are not are a list of their own (Endpoints of the API's core/v1). */
const endpoints = v.object({
  subsets: v.nullish(
    v.array(
      v.object({ addresses: v.nullish(v.array(v.object({ ip: v.string(), hostname: v.nullish(v.string()) })), []) }),
    ),
    [],
  ),
});

/**
 * `k8s`: the pods of a service, by the Kubernetes API. Their names are made as EMQX makes them (ekka_cluster_k8s):
 *
 *     ip        core@10.1.0.7
 *     dns       core@10-1-0-7.<namespace>.<suffix>
 *     hostname  core@<hostname>.<service>.<namespace>.<suffix>    of a StatefulSet
 */
export function k8sStrategy(k8s: K8sSettings, self: NodeName, fetch: Fetch): Strategy {
  const { apiserver, service_name: service, namespace, token } = k8s;
  const path = `api/v1/namespaces/${encodeURIComponent(namespace)}/endpoints/${encodeURIComponent(service)}`;
  const description = `k8s ${k8s.address_type} ${namespace}/${service} ${k8s.suffix} at ${apiserver}`;
  return lookup(description, async () => {
    const url = below(apiserver, path);
    const headers: Record<string, string> = { accept: "application/json" };
    if (token !== undefined) headers["authorization"] = bearer(token);
    const answer = v.safeParse(endpoints, await askJson(fetch, url, { headers }, limits.discoveryAnswerMs));
    if (!answer.success) throw new Error(`${url.href}: the answer is not an Endpoints object`);
    const addresses = (answer.output.subsets ?? []).flatMap((subset) => subset.addresses ?? []);
    return addresses.flatMap(({ ip, hostname }) => {
      const host = hostOf(k8s, ip, hostname ?? undefined);
      return host === undefined ? [] : [namesake(self, host)];
    });
  });
}

/** undefined: the address has no such name. */
function hostOf(k8s: K8sSettings, ip: string, hostname: string | undefined): string | undefined {
  const { service_name: service, namespace, suffix } = k8s;
  switch (k8s.address_type) {
    case "ip":
      return hostOfAddress(ip);
    case "dns":
      return joined(ip.replaceAll(/[.:]/g, "-"), suffix === "" ? [] : [namespace, suffix]);
    case "hostname":
      return hostname === undefined ? undefined : joined(hostname, suffix === "" ? [] : [service, namespace, suffix]);
  }
}

function joined(first: string, rest: readonly string[]): string {
  return [first, ...rest].join(".");
}

/** fetch would put a value that is no header into its message. */
function bearer(token: string): string {
  const trimmed = token.trim();
  if (!/^[\x21-\x7e]+$/.test(trimmed)) throw new Error("cluster.k8s.token: allowed are printable characters");
  return `Bearer ${trimmed}`;
}
