import { beforeEach, describe, expect, test, vi } from "vitest";

import type { Core } from "../../../durable-objects/coordinator/core.ts";
import { changesRecord, joinRecords } from "../../../durable-objects/rpc.ts";
import { a, b, Cores, eventually, n, of, tell, together } from "./cores.ts";

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
  vi.spyOn(console, "error").mockImplementation(() => {});
});

describe("G8: a living node that others have given up", () => {
  test("keeps its routes at its home, and the others get them again", async () => {
    const cores = new Cores();
    const [home, other] = (await together(cores, of(a, b), a, b)) as [Core, Core];
    await tell(home, n, 0, cores.node(n).add("t/1"));
    expect(cores.routesOf(b)).toEqual([`${n} t/1`]);

    const member = other.mesh.members.get(n)!;
    other.mesh.cluster.change({ ...member, state: "cleaned", changedAt: member.changedAt + 1 });
    await eventually(() => expect(other.mesh.members.has(n)).toBe(true));

    expect(cores.routesOf(a)).toEqual([`${n} t/1`]);
    await eventually(() => expect(cores.routesOf(b)).toEqual([`${n} t/1`]));
    expect(other.routes.size).toBe(1);
  });

  test("has nothing written about it that was not taken", async () => {
    const cores = new Cores();
    const [home, other] = (await together(cores, of(a, b), a, b)) as [Core, Core];
    await tell(home, n, 0, cores.node(n).add("t/1"));
    const member = other.mesh.members.get(n)!;
    other.mesh.cluster.handleMember({ ...member, state: "cleaned", changedAt: member.changedAt + 1 });

    await tell(home, n, 0, cores.node(n).add("t/2"));
    expect(other.store.versions.of(n)).toBe(0);
    const record = changesRecord({ writer: n, before: 0, version: 7, entries: new Uint8Array() });
    await other.mesh.handleRelay(a, joinRecords([record], record.length));
    expect(other.store.versions.of(n)).toBe(0);
  });

  test("and that has changed meanwhile is known anew to cores that had not given it up", async () => {
    const cores = new Cores();
    const [home, other] = (await together(cores, of(a, b), a, b)) as [Core, Core];
    for (let i = 0; i < 5; i++) await tell(home, n, 0, cores.node(n).add(`t/${i}`));
    cores.cut(a, b);
    await home.mesh.peers.check(b);
    const member = home.mesh.members.get(n)!;
    home.mesh.cluster.change({ ...member, state: "cleaned", changedAt: member.changedAt + 1 });
    for (let i = 0; i < 5; i++) cores.node(n).remove(`t/${i}`);
    await tell(home, n, 0, cores.node(n).add("t/new"));
    expect(cores.routesOf(a)).toEqual([`${n} t/new`]);

    cores.mend();
    await home.mesh.peers.meet(b);
    await eventually(() => expect(cores.routesOf(b)).toEqual([`${n} t/new`]));
    expect(other.store.versions.of(n)).toBe(home.store.versions.of(n));
  });

  test("and is back is asked again when it fails to answer", async () => {
    const cores = new Cores();
    const [home] = (await together(cores, of(a, b), a, b)) as [Core];
    await tell(home, n, 0, cores.node(n).add("t/1"));
    const member = home.mesh.members.get(n)!;
    home.mesh.cluster.change({ ...member, state: "cleaned", changedAt: member.changedAt + 1 });
    await eventually(() => expect(cores.routesOf(b)).toEqual([]));

    let failures = 2;
    cores.onCall = (_, to, method) => {
      if (to === n && method === "routes" && failures-- > 0) throw new Error("it has crashed");
    };
    home.mesh.handleReach(n, true);
    await eventually(() => expect(cores.routesOf(b)).toEqual([`${n} t/1`]));
    expect(home.mesh.members.has(n)).toBe(true);
  });
});
