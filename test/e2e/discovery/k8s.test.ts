// The strategy `k8s`, in workerd, against an HTTPS server with a certificate of its own authority that answers with
// objects as the API's reference documents them (Endpoints and Status, core/v1).

import { once } from "node:events";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { K8sSettings } from "../../../durable-objects/coordinator/discovery/k8s.ts";
import { hasOpenssl, makeCertificates } from "../../support/certificates.ts";
import { settingsOf } from "../../support/discovery-settings.ts";
import { startInWorkerd, type InWorkerd } from "./in-workerd.ts";

const token = "eyJhbGciOiJSUzI1NiJ9.test.token-of-a-service-account";

function pod(name: string, ip: string, hostname?: string): object {
  return { ip, hostname, nodeName: "node-1", targetRef: { kind: "Pod", namespace: "iot", name, uid: "1d5b" } };
}

const endpoints: Readonly<Record<string, object>> = {
  "iot/emqx": {
    apiVersion: "v1",
    kind: "Endpoints",
    metadata: { name: "emqx", namespace: "iot", resourceVersion: "4711" },
    subsets: [
      {
        addresses: [pod("emqx-0", "10.1.0.7", "emqx-0"), pod("emqx-1", "10.1.0.8", "emqx-1")],
        notReadyAddresses: [pod("emqx-2", "10.1.0.9", "emqx-2")],
        ports: [{ name: "ws", port: 8083, protocol: "TCP" }],
      },
      { addresses: [pod("extra", "2001:db8::0:7")], ports: [{ name: "ws", port: 8083, protocol: "TCP" }] },
    ],
  },
  "iot/waiting": {
    apiVersion: "v1",
    kind: "Endpoints",
    metadata: { name: "waiting", namespace: "iot" },
    subsets: [{ notReadyAddresses: [pod("emqx-0", "10.1.0.7")], ports: [] }],
  },
  "iot/empty": { apiVersion: "v1", kind: "Endpoints", metadata: { name: "empty", namespace: "iot" } },
  "iot/odd": { apiVersion: "v1", kind: "Endpoints", subsets: [{ addresses: [{ ip: 7 }] }] },
};

function status(code: number, reason: string, message: string): object {
  return { apiVersion: "v1", kind: "Status", metadata: {}, status: "Failure", message, reason, code };
}

describe.skipIf(!hasOpenssl)("k8s (skipped without openssl)", () => {
  const certificates = makeCertificates();
  let server: Server;
  let trusting: InWorkerd;
  let apiserver: string;

  beforeAll(async () => {
    server = createServer(certificates, (request, response) => {
      const answer = (code: number, body: object): void => {
        response.writeHead(code, { "content-type": "application/json" }).end(JSON.stringify(body));
      };
      const [, namespace, service] =
        /^\/api\/v1\/namespaces\/([^/]+)\/endpoints\/([^/]+)$/.exec(request.url ?? "") ?? [];
      if (request.headers.authorization !== `Bearer ${token}`)
        return answer(401, status(401, "Unauthorized", "Unauthorized"));
      if (namespace === "other") {
        const message = 'endpoints "emqx" is forbidden: User "system:serviceaccount:iot:default" cannot get resource';
        return answer(403, status(403, "Forbidden", message));
      }
      const found = endpoints[`${namespace}/${service}`];
      if (found === undefined) return answer(404, status(404, "NotFound", `endpoints "${service}" not found`));
      answer(200, found);
    });
    server.listen(0, "localhost");
    await once(server, "listening");
    apiserver = `https://localhost:${(server.address() as AddressInfo).port}`;
    trusting = await startInWorkerd(certificates.ca);
  });

  afterAll(async () => {
    server?.close();
    server?.closeAllConnections();
    await trusting?.stop();
  });

  function discover(k8s: Partial<K8sSettings> = {}, self = "core@10.1.0.7", workerd = trusting): Promise<string[]> {
    const all: K8sSettings = {
      apiserver,
      service_name: "emqx",
      address_type: "ip",
      namespace: "iot",
      suffix: "",
      token,
      ...k8s,
    };
    return workerd.strategyOf(settingsOf({ discovery_strategy: "k8s", k8s: all }), self).discover();
  }

  test("ip: nodes called as this one, at the addresses that are ready", async () => {
    expect(await discover()).toEqual(["core@10.1.0.7", "core@10.1.0.8", "core@[2001:db8::7]"]);
    expect(await discover({}, "core@10.1.0.7:8083")).toEqual([
      "core@10.1.0.7:8083",
      "core@10.1.0.8:8083",
      "core@[2001:db8::7]:8083",
    ]);
  });

  test("dns: by their names in the cluster's DNS", async () => {
    expect(await discover({ address_type: "dns", suffix: "pod.cluster.local" })).toEqual([
      "core@10-1-0-7.iot.pod.cluster.local",
      "core@10-1-0-8.iot.pod.cluster.local",
      "core@2001-db8--0-7.iot.pod.cluster.local",
    ]);
  });

  test("hostname: those that have one, below the service", async () => {
    expect(await discover({ address_type: "hostname", suffix: "svc.cluster.local" })).toEqual([
      "core@emqx-0.emqx.iot.svc.cluster.local",
      "core@emqx-1.emqx.iot.svc.cluster.local",
    ]);
  });

  test("pods that are not ready are nobody, and so is a service without any", async () => {
    expect(await discover({ service_name: "waiting" })).toEqual([]);
    expect(await discover({ service_name: "empty" })).toEqual([]);
  });

  test("[G9] an API server whose certificate nobody vouches for is not talked to", async () => {
    const distrustful = await startInWorkerd();
    try {
      await expect(discover({}, "core@10.1.0.7", distrustful)).rejects.toThrow(/cannot be reached/);
    } finally {
      await distrustful.stop();
    }
  });

  test.each<[what: string, Partial<K8sSettings>, said: string]>([
    ["no token", { token: undefined }, "answered 401 (Unauthorized)"],
    ["another token", { token: "wrong" }, "answered 401 (Unauthorized)"],
    ["no right", { namespace: "other" }, 'answered 403 (endpoints "emqx" is forbidden: User'],
    ["no such service", { service_name: "mqtt" }, 'answered 404 (endpoints "mqtt" not found)'],
    ["a service with a path for a name", { service_name: "../pods" }, "/endpoints/..%2Fpods: answered 404"],
    ["an object of another form", { service_name: "odd" }, "the answer is not an Endpoints object"],
  ])("%s: an error that says so", async (_, k8s, said) => {
    await expect(discover(k8s)).rejects.toThrow(said);
  });

  test("[G9] a token is in no message, not even one that is none", async () => {
    for (const wrong of ["se\ncret", "sécret", "secret\0", " "]) {
      const error = await discover({ token: wrong }).then(String, ({ message }: Error) => message);
      expect(error).toBe("cluster.k8s.token: allowed are printable characters");
    }
  });

  test("a token that ends in a line break, as a file does, is taken without it", async () => {
    expect(await discover({ token: `${token}\n` })).toHaveLength(3);
  });
});
