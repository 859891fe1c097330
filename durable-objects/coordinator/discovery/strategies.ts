import type { NodeName } from "../../../cluster/name.ts";
import type { Fetch } from "./ask.ts";
import { dnsStrategy, type DnsSettings } from "./dns.ts";
import { EtcdStrategy, type EtcdSettings } from "./etcd.ts";
import { k8sStrategy, type K8sSettings } from "./k8s.ts";
import { lookup, type Strategy } from "./strategy.ts";

/** Of the settings, what discovery reads. */
export interface DiscoverySettings {
  readonly driver: "tcp" | "ssl";
  readonly cluster: {
    readonly discovery_strategy: "manual" | "static" | "dns" | "etcd" | "k8s" | "singleton";
    readonly static: { readonly seeds: readonly NodeName[] };
    readonly dns: DnsSettings;
    readonly etcd: EtcdSettings;
    readonly k8s: K8sSettings;
  };
}

const defaultPorts = { tcp: 80, ssl: 443 } as const;

/** How the others are found; undefined: they are not looked for (`manual`, `singleton`). */
export function strategyOf({ cluster, driver }: DiscoverySettings, self: NodeName, fetch: Fetch): Strategy | undefined {
  switch (cluster.discovery_strategy) {
    case "manual":
    case "singleton":
      return undefined;
    case "static": {
      const { seeds } = cluster.static;
      return lookup(`static ${seeds.join(", ")}`, async () => [...seeds]);
    }
    case "dns":
      return dnsStrategy(cluster.dns, self, defaultPorts[driver], fetch);
    case "etcd":
      return new EtcdStrategy(cluster.etcd, self, fetch);
    case "k8s":
      return k8sStrategy(cluster.k8s, self, fetch);
  }
}
