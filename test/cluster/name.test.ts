import { describe, expect, it } from "vitest";
import { hostOf, isDnsLabel, isMember, locationOf, parseNodeName } from "../../cluster/name.ts";

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
    `${"n".repeat(65)}@weur.emqxcl`,
    `n@${"a".repeat(64)}.emqxcl`,
    `n@${"a.".repeat(127)}ab`,
  ])("%j is none, in one line", (text) => {
    expect(() => parseNodeName(text)).toThrow(/^[^\n]* is not a node name: [^\n]+$/);
  });

  it("belongs to the cluster that its host ends in", () => {
    expect(isMember("node-0@weur.emqxcl", "emqxcl")).toBe(true);
    expect(isMember("node-0@weur.otheremqxcl", "emqxcl")).toBe(false);
    expect(isMember("core@10.0.0.1", "emqxcl")).toBe(false);
  });

  it("is made of a location and a cluster's name", () => {
    expect(hostOf("weur", "emqxcl")).toBe("weur.emqxcl");
    expect(locationOf(`node-0@${hostOf("apac-ne", "emqxcl")}`)).toBe("apac-ne");
  });

  it("has parts that are DNS labels", () => {
    expect(["emqxcl", "a", "a-1", "9"].filter(isDnsLabel)).toEqual(["emqxcl", "a", "a-1", "9"]);
    expect(["", "-a", "a-", "A", "a.b", "a_b", "a".repeat(64)].filter(isDnsLabel)).toEqual([]);
  });
});
