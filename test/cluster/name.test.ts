import { describe, expect, it } from "vitest";
import {
  addressOf,
  familyOf,
  hostnameOf,
  hostOf,
  isAddress,
  isDnsLabel,
  isMember,
  locationOf,
  parseNodeName,
} from "../../cluster/name.ts";

describe("node names", () => {
  it.each([
    ["node-0@weur.emqxcl", "node-0", "weur.emqxcl"],
    ["core@local.emqxcl", "core", "local.emqxcl"],
    ["A_b-9@a.b.c.example.com", "A_b-9", "a.b.c.example.com"],
    ["core@10.0.0.1", "core", "10.0.0.1"],
    ["core@[2001:db8::1]", "core", "[2001:db8::1]"],
    ["core@[::1]", "core", "[::1]"],
    ["n@xn--bcher-kva.example", "n", "xn--bcher-kva.example"],
    ["n@1.example", "n", "1.example"],
    ["core@127.0.0.1:8084", "core", "127.0.0.1:8084"],
    ["core@[::1]:8084", "core", "[::1]:8084"],
    ["core@eu.example.com:1", "core", "eu.example.com:1"],
    ["core@eu.example.com:65535", "core", "eu.example.com:65535"],
    ["node-0@weur.eu.example.com:8443", "node-0", "weur.eu.example.com:8443"],
    ["node-0@local.127.0.0.1:8084", "node-0", "local.127.0.0.1:8084"],
    ["node-0@apac-ne.10.0.0.1", "node-0", "apac-ne.10.0.0.1"],
    ["node-0@local.[2001:db8::1]:8084", "node-0", "local.[2001:db8::1]:8084"],
    ["node-0@local.[::1]", "node-0", "local.[::1]"],
    [`${"n".repeat(64)}@weur.emqxcl:8084`, "n".repeat(64), "weur.emqxcl:8084"],
  ])("%s is a name", (text, name, host) => {
    expect(parseNodeName(text)).toEqual({ name, host });
  });

  it.each([
    "",
    "node-0",
    "@weur.emqxcl",
    "node-0@",
    "node-0@localhost",
    "node 0@weur.emqxcl",
    "node/0@weur.emqxcl",
    "n\u00f6de@weur.emqxcl",
    "node-0@weur..emqxcl",
    "node-0@.emqxcl",
    "node-0@weur.emqxcl.",
    "node-0@-weur.emqxcl",
    "node-0@weur-.emqxcl",
    "node-0@WEUR.emqxcl",
    "node-0@weur.emqxcl@weur.emqxcl",
    "node-0@10.0.0.256",
    "node-0@10.0.1",
    "node-0@10.0.0.1.2",
    "node-0@2001:db8::1",
    "node-0@[2001:db8::1",
    "node-0@[2001::db8::1]",
    "node-0@[10.0.0.1]",
    "node-0@weur.emqxcl\n",
    "core@eu.example.com:",
    "core@eu.example.com:0",
    "core@eu.example.com:08084",
    "core@eu.example.com:65536",
    "core@eu.example.com:80",
    "core@eu.example.com:443",
    "core@127.0.0.1:80",
    "core@[::1]:443",
    "core@eu.example.com:8084:8084",
    "core@eu.example.com:8084/link",
    "core@eu.example.com/link",
    "core@eu.example.com?core=x",
    "core@[::1]/link",
    "core@[::1]#x",
    "core@[0:0:0:0:0:0:0:1]",
    "core@[2001:DB8::1]",
    "core@[2001:0db8::1]",
    "core@[::ffff:10.0.0.1]",
    "core@[fe80::1%25eth0]",
    "core@[]",
    "core@127.0.0.01",
    "core@127.1",
    "core@1.0x7f",
    "core@localhost:8084",
    "core@emqxcl",
    "core@8.127.0.0.1",
    "core@local.weur.127.0.0.1",
    "core@local.127.0.0.1:80",
    "core@.127.0.0.1",
    "core@LOCAL.127.0.0.1",
    `${"n".repeat(65)}@weur.emqxcl`,
    `n@${"a".repeat(64)}.emqxcl`,
    `n@${"a.".repeat(127)}ab`,
  ])("%j is none, in one line", (text) => {
    expect(() => parseNodeName(text)).toThrow(/^[^\n]* is not a node name: [^\n]+$/);
  });

  it("belongs to the deployment whose domain its host is, or ends in", () => {
    expect(isMember("node-0@weur.emqxcl", "emqxcl")).toBe(true);
    expect(isMember("node-0@weur.otheremqxcl", "emqxcl")).toBe(false);
    expect(isMember("core@10.0.0.1", "emqxcl")).toBe(false);
    expect(isMember("core@127.0.0.1:8084", "127.0.0.1:8084")).toBe(true);
    expect(isMember("node-0@local.127.0.0.1:8084", "127.0.0.1:8084")).toBe(true);
    expect(isMember("node-0@local.127.0.0.1:8084", "127.0.0.1:8085")).toBe(false);
    expect(isMember("node-0@local.127.0.0.1:8084", "127.0.0.1")).toBe(false);
    expect(isMember("node-0@weur.eu.example.com", "eu.example.com")).toBe(true);
    expect(isMember("node-0@weur.eu.example.com", "us.example.com")).toBe(false);
  });

  it.each(["emqxcl", "eu.example.com", "127.0.0.1:8084", "[::1]:8084"])(
    "is made of a location and the domain %s",
    (domain) => {
      const name = `node-0@${hostOf("apac-ne", domain)}`;
      expect(parseNodeName(name).host).toBe(`apac-ne.${domain}`);
      expect(locationOf(name, domain)).toBe("apac-ne");
      expect(locationOf(`core@${domain}`, domain)).toBeUndefined();
      expect(locationOf(name, `other.${domain}`)).toBeUndefined();
    },
  );

  it("has an address, with a port or without", () => {
    expect(addressOf("core@eu.example.com:8443")).toBe("eu.example.com:8443");
    expect(["127.0.0.1:8084", "[::1]:8084", "[::1]", "eu.example.com"].map(hostnameOf)).toEqual([
      "127.0.0.1",
      "[::1]",
      "[::1]",
      "eu.example.com",
    ]);
    expect(["127.0.0.1:8084", "[::1]:8084", "eu.example.com:8084", "1.2.3.4.example"].map(familyOf)).toEqual([
      "inet",
      "inet6",
      "name",
      "name",
    ]);
    expect(["eu.example.com", "127.0.0.1:8084", "[::1]"].filter(isAddress)).toHaveLength(3);
    expect(["local.127.0.0.1", "emqxcl", "", ":8084", "user@[::1]"].filter(isAddress)).toEqual([]);
  });

  it("has parts that are DNS labels", () => {
    expect(["emqxcl", "a", "a-1", "9"].filter(isDnsLabel)).toEqual(["emqxcl", "a", "a-1", "9"]);
    expect(["", "-a", "a-", "A", "a.b", "a_b", "a".repeat(64)].filter(isDnsLabel)).toEqual([]);
  });
});
