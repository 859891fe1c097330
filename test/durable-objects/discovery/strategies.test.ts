import { describe, expect, it } from "vitest";
import { strategyOf, type DiscoverySettings } from "../../../durable-objects/coordinator/discovery/strategies.ts";
import { settingsOf } from "../../support/discovery-settings.ts";

const self = "core@a.example.com";

function strategy(cluster: Partial<DiscoverySettings["cluster"]>): ReturnType<typeof strategyOf> {
  return strategyOf(settingsOf(cluster), self, () => Promise.reject(new Error("no server is asked")));
}

describe("a strategy", () => {
  it("there is none for manual and singleton: nobody is looked for", () => {
    expect(strategy({ discovery_strategy: "manual" })).toBeUndefined();
    expect(strategy({ discovery_strategy: "singleton" })).toBeUndefined();
  });

  it("static: the seeds, no lock, and nothing to renew", async () => {
    const seeds = [self, "core@b.example.com"];
    const found = strategy({ discovery_strategy: "static", static: { seeds } })!;
    await found.lock();
    expect(await found.discover()).toEqual(seeds);
    expect(await found.register()).toBeUndefined();
    await found.unlock();
  });

  it("has another description when something else is asked, so that it is asked", () => {
    const etcd = { server: ["http://127.0.0.1:2379"], prefix: "emqxcl", node_ttl: 60_000 };
    const k8s = { ...settingsOf({}).cluster.k8s, token: "eyJ.secret" };
    const all = [
      strategy({ discovery_strategy: "static", static: { seeds: [self] } }),
      strategy({ discovery_strategy: "static", static: { seeds: ["core@b.example.com"] } }),
      strategy({ discovery_strategy: "dns", dns: { name: "a.test", record_type: "a", server: "https://dns.test/" } }),
      strategy({ discovery_strategy: "dns", dns: { name: "a.test", record_type: "srv", server: "https://dns.test/" } }),
      strategy({ discovery_strategy: "etcd", etcd }),
      strategy({ discovery_strategy: "etcd", etcd: { ...etcd, prefix: "other" } }),
      strategy({ discovery_strategy: "k8s", k8s }),
      strategy({ discovery_strategy: "k8s", k8s: { ...k8s, address_type: "dns" } }),
    ].map((each) => each?.description);
    expect(new Set(all).size).toBe(all.length);
    expect(all.join()).not.toMatch("secret");
  });
});
