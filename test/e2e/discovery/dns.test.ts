// The strategy `dns` against a real DNS server, Debian's dnsmasq, over DNS-over-HTTPS; in workerd.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { settingsOf } from "../../support/discovery-settings.ts";
import { hasDnsmasq, startDnsServer, type DnsServer } from "../../support/dns-server.ts";
import { startInWorkerd, type InWorkerd } from "./in-workerd.ts";

const many = Array.from({ length: 300 }, (_, i) => `10.1.${i >> 8}.${i & 255}`);
const records = [
  "--host-record=cores.test,10.0.0.1,2001:db8::0:1",
  "--host-record=cores.test,10.0.0.2",
  "--cname=alias.test,cores.test",
  "--srv-host=_trellis._tcp.test,EU.example.test,8084",
  "--srv-host=_trellis._tcp.test,us.example.test,80",
  "--srv-host=_none._tcp.test",
  ...many.map((address) => `--host-record=many.test,${address}`),
];

describe.skipIf(!hasDnsmasq)("dns (skipped without dnsmasq)", () => {
  let server: DnsServer;
  let workerd: InWorkerd;

  beforeAll(async () => {
    server = await startDnsServer(records);
    workerd = await startInWorkerd();
  });

  afterAll(async () => {
    await server?.stop();
    await workerd?.stop();
  });

  async function discover(
    name: string,
    record_type: "a" | "aaaa" | "srv" = "a",
    self = "core@10.0.0.1",
  ): Promise<string[]> {
    const settings = settingsOf({ discovery_strategy: "dns", dns: { name, record_type, server: server.url } });
    return (await workerd.strategyOf(settings, self).discover()).sort();
  }

  test("A: nodes called as this one, at the addresses of a name, or of what it is an alias of", async () => {
    expect(await discover("cores.test", "a", "core@10.0.0.1")).toEqual(["core@10.0.0.1", "core@10.0.0.2"]);
    expect(await discover("alias.test", "a", "hub@10.0.0.1")).toEqual(["hub@10.0.0.1", "hub@10.0.0.2"]);
  });

  test("A: at the port of this node, if it has one", async () => {
    expect(await discover("cores.test", "a", "core@10.0.0.1:8084")).toEqual([
      "core@10.0.0.1:8084",
      "core@10.0.0.2:8084",
    ]);
  });

  test("AAAA: in brackets, in the one spelling of an address", async () => {
    expect(await discover("cores.test", "aaaa", "core@[2001:db8::1]:8084")).toEqual(["core@[2001:db8::1]:8084"]);
  });

  test("SRV: at the targets and ports of a service, but for the port that the driver has anyway", async () => {
    const nodes = ["core@eu.example.test:8084", "core@us.example.test"];
    expect(await discover("_trellis._tcp.test", "srv", "core@eu.example.test:8084")).toEqual(nodes);
    expect(await discover("_none._tcp.test", "srv", "core@eu.example.test")).toEqual([]);
  });

  test("many, in an answer that no UDP packet would hold", async () => {
    expect(await discover("many.test")).toHaveLength(many.length);
  });

  test("a name without such records is nobody, a name that does not exist is an error", async () => {
    expect(await discover("many.test", "aaaa")).toEqual([]);
    await expect(discover("nobody.test")).rejects.toThrow(`${server.url}: "nobody.test": NXDOMAIN`);
  });

  test("what is no name is not asked for", async () => {
    await expect(discover("x..y")).rejects.toThrow('"x..y" is not a DNS name');
  });
});
