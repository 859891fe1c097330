import { describe, expect, test } from "vitest";

import { workerdConfig } from "../../cli/workerd-config.ts";
import type { Deployment, WorkerDefinition } from "../../cli/workerd-config.ts";

const worker: WorkerDefinition = {
  name: "trellis",
  modules: [{ name: "index.js", path: "worker/index.js" }],
  compatibilityDate: "2026-10-23",
  compatibilityFlags: ["no_web_socket_compression"],
  vars: { motto: 'quotes " and \\ and\nlines', mqtt: { max_inflight: 32 } },
  durableObjects: [
    { binding: "NODE", className: "BrokerNode" },
    { binding: "COORDINATOR", className: "Coordinator" },
  ],
};
const deployment: Deployment = {
  address: "127.0.0.1:8083",
  linkAddress: undefined,
  keypair: undefined,
  cacertfile: undefined,
  storage: "/data",
  environment: [],
  bindings: {},
};

test("the unique keys of the namespaces never change: what is on disk is named after them", () => {
  const text = workerdConfig(worker, deployment);
  expect(text).toContain('(className = "BrokerNode", uniqueKey = "trellis-BrokerNode", enableSql = true)');
  expect(text).toContain('(className = "Coordinator", uniqueKey = "trellis-Coordinator", enableSql = true)');
});

test("strings are text bindings, escaped, and all else is JSON", () => {
  const text = workerdConfig(worker, deployment);
  expect(text).toContain(String.raw`(name = "motto", text = "quotes \" and \\ and\x0alines")`);
  expect(text).toContain(String.raw`(name = "mqtt", json = "{\"max_inflight\":32}")`);
});

test("[G9] a variable of the environment is named, and its value is not written", () => {
  const text = workerdConfig(worker, { ...deployment, environment: ["TRELLIS_AUTHENTICATION"] });
  expect(text).toContain('(name = "TRELLIS_AUTHENTICATION", fromEnvironment = "TRELLIS_AUTHENTICATION")');
});

test("the deployment's own binding goes before a variable of the same name", () => {
  const text = workerdConfig(
    { ...worker, vars: { LOOPBACK: "false" } },
    { ...deployment, bindings: { LOOPBACK: "true" } },
  );
  expect(text.match(/name = "LOOPBACK"/g)).toHaveLength(1);
  expect(text).toContain('(name = "LOOPBACK", text = "true")');
});

test("a module of an unknown kind is refused by name", () => {
  const modules = [...worker.modules, { name: "logo.xyz", path: "worker/logo.xyz" }];
  expect(() => workerdConfig({ ...worker, modules }, deployment)).toThrow(/logo\.xyz/);
});

describe("TLS", () => {
  const keypair = { certfile: "../eu.pem", keyfile: "../eu.key" };
  const shown = 'keypair = (privateKey = embed "../eu.key", certificateChain = embed "../eu.pem")';
  const network = (tls: string): string => `network = (allow = ["public", "private"], tlsOptions = (${tls}))`;

  test("none: the socket speaks HTTP, and what goes out trusts the public authorities", () => {
    const text = workerdConfig(worker, deployment);
    expect(text).toContain('(name = "http", address = "127.0.0.1:8083", http = (), service = "worker")');
    expect(text).toContain(`(name = "internet", ${network("trustBrowserCas = true")})`);
    expect(text).not.toContain("links");
  });

  test("certfile and keyfile: the socket speaks HTTPS, and links show the certificate", () => {
    const text = workerdConfig(worker, { ...deployment, keypair });
    const https = `https = (options = (), tlsOptions = (${shown}))`;
    expect(text).toContain(`(name = "http", address = "127.0.0.1:8083", ${https}, service = "worker")`);
    expect(text).toContain(`(name = "links", ${network(`trustBrowserCas = true, ${shown}`)})`);
    expect(text).toContain('(name = "LINKS", service = "links")');
  });

  test("cacertfile: it is trusted beside the public authorities", () => {
    const text = workerdConfig(worker, { ...deployment, keypair, cacertfile: "../ca.pem" });
    const trusted = 'trustBrowserCas = true, trustedCertificates = [embed "../ca.pem"]';
    expect(text).toContain(`(name = "internet", ${network(trusted)})`);
    expect(text).toContain(`(name = "links", ${network(`${trusted}, ${shown}`)})`);
  });

  test("[G9] a port of their own: links need a certificate of that authority alone", () => {
    const linkAddress = "127.0.0.1:8084";
    const text = workerdConfig(worker, { ...deployment, linkAddress, keypair, cacertfile: "../ca.pem" });
    const tls = `${shown}, requireClientCerts = true, trustedCertificates = [embed "../ca.pem"]`;
    const props = String.raw`props = (json = "{\"clientCertificate\":\"verified\"}")`;
    expect(text).toContain(
      `(name = "links", address = "${linkAddress}", https = (options = (), tlsOptions = (${tls})), ` +
        `service = (name = "worker", ${props}))`,
    );
  });
});
