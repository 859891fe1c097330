import { execFileSync, spawnSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { readLinkPort, readSslFiles } from "../../cli/ssl-options.ts";
import type { Settings } from "../../cluster/config.ts";

type Given = Partial<Settings["ssl_options"]> & { readonly driver?: Settings["driver"] };

function settings({ driver = "ssl", ...given }: Given): Pick<Settings, "driver" | "ssl_options"> {
  const unset = { certfile: undefined, keyfile: undefined, cacertfile: undefined, fail_if_no_peer_cert: false };
  return { driver, ssl_options: { ...unset, ...given } };
}

const hasOpenssl = spawnSync("openssl", ["version"]).status === 0;
if (!hasOpenssl) console.warn("openssl is not installed: the files of ssl_options are not tested");

describe.skipIf(!hasOpenssl)("the files of ssl_options", () => {
  let directory: string;
  const at = (name: string): string => join(directory, name);

  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), "trellis-ssl-"));
    const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", at("eu.key"), "-nodes"];
    execFileSync("openssl", ["req", "-x509", ...key, "-out", at("eu.pem"), "-subj", "/CN=eu"], { stdio: "pipe" });
    const { privateKey } = generateKeyPairSync("ed25519");
    writeFileSync(at("other.key"), privateKey.export({ type: "pkcs8", format: "pem" }));
    const encrypted = { type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: "secret" } as const;
    writeFileSync(at("encrypted.key"), privateKey.export(encrypted));
    writeFileSync(at("text.pem"), "hello\n");
  });

  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  test("are found where they are", () => {
    const given = { certfile: at("eu.pem"), keyfile: at("eu.key"), cacertfile: at("eu.pem") };
    const { cacertfile, ...keypair } = given;
    expect(readSslFiles(settings(given))).toEqual({ keypair, cacertfile: resolve(cacertfile) });
    expect(readSslFiles(settings({ ...given, driver: "tcp" }))).toEqual({ keypair: undefined, cacertfile });
    expect(readSslFiles(settings({}))).toEqual({ keypair: undefined, cacertfile: undefined });
  });

  test.each([
    ["certfile", "none.pem", "it cannot be read (ENOENT)"],
    ["certfile", "text.pem", "allowed is a file of certificates in PEM"],
    ["certfile", "eu.key", "allowed is a file of certificates in PEM"],
    ["cacertfile", "text.pem", "allowed is a file of certificates in PEM"],
    ["keyfile", ".", "it cannot be read (EISDIR)"],
    ["keyfile", "eu.pem", "allowed is a file with a private key in PEM, not encrypted"],
    ["keyfile", "encrypted.key", "allowed is a file with a private key in PEM, not encrypted"],
  ])("that are wrong are refused in one line: %s = %s", (key, file, why) => {
    const given = { certfile: at("eu.pem"), keyfile: at("eu.key"), [key]: at(file) };
    expect(() => readSslFiles(settings(given))).toThrow(
      new Error(`ssl_options.${key} = ${JSON.stringify(at(file))}: ${why}`),
    );
  });

  test("must belong together", () => {
    expect(() => readSslFiles(settings({ certfile: at("eu.pem"), keyfile: at("other.key") }))).toThrow(
      `ssl_options.keyfile = ${JSON.stringify(at("other.key"))}: allowed is the key of the certificate in `,
    );
  });
});

describe("LINK_PORT", () => {
  const all = { certfile: "eu.pem", keyfile: "eu.key", cacertfile: "ca.pem", fail_if_no_peer_cert: true };

  test("is where links come in that must have a certificate, and only they", () => {
    expect(readLinkPort(settings(all), "0.0.0.0", "8084")).toBe(8084);
    expect(readLinkPort(settings({ ...all, fail_if_no_peer_cert: false }), "0.0.0.0", "8084")).toBeUndefined();
    expect(readLinkPort(settings({ ...all, driver: "tcp" }), "0.0.0.0")).toBeUndefined();
  });

  test.each<[string, Given, string | undefined]>([
    ["LINK_PORT is missing", {}, undefined],
    ["LINK_PORT is missing", {}, ""],
    ["LINK_PORT = 8o84: allowed is a number from 0 to 65535", {}, "8o84"],
    ["ssl_options.cacertfile is missing: ssl_options.fail_if_no_peer_cert = true", { cacertfile: undefined }, "8084"],
  ])("%s", (message, given, port) => {
    expect(() => readLinkPort(settings({ ...all, ...given }), "127.0.0.1", port)).toThrow(message);
  });

  test('[G9] driver = "ssl" without a certificate is for what a proxy of this machine encrypts', () => {
    expect(readLinkPort(settings({}), "127.0.0.1")).toBeUndefined();
    expect(() => readLinkPort(settings({}), "0.0.0.0")).toThrow('driver = "ssl": ssl_options.certfile and .keyfile');
  });
});
