import { beforeEach, expect, test, vi } from "vitest";

import type { Member } from "../../../cluster/membership.ts";
import type { Core } from "../../../durable-objects/coordinator/core.ts";
import { a, b, Cores, met, n, of, tell, together } from "./cores.ts";

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
  vi.spyOn(console, "error").mockImplementation(() => {});
});

const faults: readonly (readonly [string, unknown])[] = [
  ["no record", null],
  ["no name", { name: 5 }],
  ["a name that is none", { name: "nobody" }],
  ["a name of another domain", { name: "node-0@weur.elsewhere" }],
  ["no home", { home: undefined }],
  ["another role", { role: "leader" }],
  ["another state", { state: "lost" }],
  ["no term", { term: undefined }],
  ["no time", { changedAt: "now" }],
  ["a time that none comes after", { changedAt: Number.MAX_VALUE }],
];

test.each(faults)("G5: a peer's record with %s is not taken, and what else it says is", async (_, fault) => {
  const cores = new Cores();
  const [first, second] = (await together(cores, of(a, b), a, b)) as [Core, Core];
  await tell(first, n, 0, cores.node(n).add("t/1"));
  const good = { ...first.mesh.members.get(n)!, name: "node-9@weur.emqxcl" };
  const bad = fault === null ? null : { ...good, name: "node-8@weur.emqxcl", ...(fault as object) };
  const hello = first.mesh.peers.hello(first.mesh.peers.link(b));
  second.mesh.handleHello(a, { ...hello, members: [...hello.members, bad as Member, good] });
  const names = second.mesh.members.present().map(({ name }) => name);
  expect(names.sort()).toEqual([a, b, n, "node-9@weur.emqxcl"].sort());
  expect(second.mesh.cluster.handleJoin("core@x.example.com", [bad as Member])).toMatchObject({ code: "bad_members" });

  cores.crash(b);
  await met([first, cores.start(b, of(a, b))]);
});
