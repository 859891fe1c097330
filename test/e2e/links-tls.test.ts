// Links by wss://, with certificates that openssl makes here.

import { execFileSync, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { WebSocket } from "ws";

import { bundleWorker, type Bundle } from "../../cli/bundle.ts";
import { deploy, type Deployment, type DeployOptions } from "./linked.ts";

const hasOpenssl = spawnSync("openssl", ["version"]).status === 0;
if (!hasOpenssl) console.warn("openssl is not installed: TLS of links is not tested");

let directory: string;
let bundle: Bundle;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "trellis-tls-"));
  if (!hasOpenssl) return;
  bundle = await bundleWorker(join(directory, "worker"), { entry: join(import.meta.dirname, "links-worker.ts") });
  for (const ca of ["ours", "theirs"]) await makeAuthority(ca);
  await makeCertificate("eu", "ours", "IP:127.0.0.1");
  await makeCertificate("us", "ours", "IP:127.0.0.1");
  await makeCertificate("other-host", "ours", "DNS:eu.example.com");
  await makeCertificate("stranger", "theirs", "IP:127.0.0.1");
});

afterAll(() => rm(directory, { recursive: true, force: true }));

function openssl(...args: string[]): void {
  execFileSync("openssl", args, { cwd: directory, stdio: "pipe" });
}

const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

async function makeAuthority(name: string): Promise<void> {
  openssl(
    "req",
    "-x509",
    ...newKey,
    "-keyout",
    `${name}.key`,
    "-out",
    `${name}.pem`,
    "-days",
    "2",
    "-subj",
    `/CN=${name}`,
  );
}

async function makeCertificate(name: string, ca: string, subject: string): Promise<void> {
  openssl("req", ...newKey, "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
  await writeFile(join(directory, `${name}.ext`), `subjectAltName=${subject}\n`);
  const by = ["-CA", `${ca}.pem`, "-CAkey", `${ca}.key`, "-CAcreateserial", "-extfile", `${name}.ext`, "-days", "2"];
  openssl("x509", "-req", "-in", `${name}.csr`, ...by, "-out", `${name}.pem`);
}

/** One with this certificate that trusts the authority; `certificates: "asked for"`: of whoever links to it. */
function deployWith(
  name: string,
  ca: string,
  certificates: "asked for" | "not asked for" = "not asked for",
): Promise<Deployment> {
  const keypair = { certfile: join(directory, `${name}.pem`), keyfile: join(directory, `${name}.key`) };
  const asked = certificates === "asked for";
  const options: DeployOptions = {
    bundle,
    ssl: { keypair, cacertfile: join(directory, `${ca}.pem`) },
    env: { TRELLIS_DRIVER: "ssl", TRELLIS_SSL_OPTIONS__FAIL_IF_NO_PEER_CERT: String(asked) },
    ...(asked && { links: "port of their own" as const }),
  };
  return deploy(options);
}

const unreachable = (of: Deployment): object => ({
  name: "LinkError",
  error: expect.stringContaining(`wss://${of.domain}/link cannot be reached: `),
});

describe.skipIf(!hasOpenssl)("[G9] driver = ssl", () => {
  test("links by a certificate of a trusted authority, both ways", async () => {
    const [eu, us] = await Promise.all([deployWith("eu", "ours"), deployWith("us", "ours")]);
    expect(await eu.call(us, "caller")).toEqual({ answer: eu.core });
    expect(await us.call(eu, "caller")).toEqual({ answer: us.core });
    expect(us.proxy.connections()).toBe(1);
  });

  test("does not link to one of another authority, or for another host", async () => {
    const [eu, stranger, other] = await Promise.all([
      deployWith("eu", "ours"),
      deployWith("stranger", "theirs"),
      deployWith("other-host", "ours"),
    ]);
    expect(await eu.call(stranger, "caller")).toMatchObject(unreachable(stranger));
    expect(await eu.call(other, "caller")).toMatchObject(unreachable(other));
    expect(await stranger.call(eu, "caller")).toMatchObject(unreachable(eu));
  });

  test("fail_if_no_peer_cert: who links shows a certificate; MQTT clients need none, and links cannot come their way", async () => {
    const [eu, us, stranger] = await Promise.all([
      deployWith("eu", "ours", "asked for"),
      deployWith("us", "ours", "asked for"),
      deployWith("stranger", "ours"),
    ]);
    expect(await us.call(eu, "caller")).toEqual({ answer: us.core });
    expect(await eu.call(us, "caller")).toEqual({ answer: eu.core });
    expect(await stranger.call(eu, "caller")).toMatchObject(unreachable(eu));
    const ca = await readFile(join(directory, "ours.pem"));
    const client = new WebSocket(eu.broker.url, ["mqtt"], { ca });
    await once(client, "open");
    client.terminate();
    const byMqttPort = { core: eu.core, domain: `127.0.0.1:${eu.broker.port}` };
    expect(await stranger.call(byMqttPort, "caller")).toMatchObject({
      error: expect.stringContaining("cannot be reached: it answers 403"),
    });
  });
});
