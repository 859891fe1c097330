import { beforeEach, describe, expect, test, vi } from "vitest";

import type { Core } from "../../../durable-objects/coordinator/core.ts";
import { a, aWhile, b, c, Cores, eventually, hold, met, n, of, tell, together } from "./cores.ts";

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
  vi.spyOn(console, "error").mockImplementation(() => {});
});

describe("G8: what a core asks for while a node comes to it", () => {
  test("does not undo what the node says", async () => {
    const cores = new Cores();
    const [, second, third] = (await together(cores, of(a, b, c), a, b, c)) as [Core, Core, Core];
    const node = cores.node(n);
    await tell(cores.core(a), n, 0, node.add("t/1"), node.add("t/2"));
    cores.cut(a, b);
    await tell(cores.core(a), n, 0, node.remove("t/1"), node.add("t/old"));
    expect(cores.routesOf(c)).toEqual([`${n} t/2`, `${n} t/old`]);

    const changes = hold(cores, "onAnswer", b, "changes");
    const pull = second.mesh.replication.pull(n, second.mesh.peers.link(c));
    await changes.reached();
    node.remove("t/old");
    const moved = tell(second, n, 1, node.add("t/1"), node.add("t/3"));
    await aWhile();
    changes.release();
    await Promise.all([pull, moved]);

    await tell(second, n, 1, node.add("t/4"));
    const all = ["t/1", "t/2", "t/3", "t/4"].map((key) => `${n} ${key}`);
    expect(cores.routesOf(b)).toEqual(all);
    await eventually(() => expect(cores.routesOf(c)).toEqual(all));
    expect(third.store.versions.of(n)).toBe(second.store.versions.of(n));
  });

  test("is asked for again of who has more", async () => {
    const cores = new Cores();
    const [first, second] = (await together(cores, of(a, b, c), a, b, c)) as [Core, Core, Core];
    const node = cores.node(n);
    await tell(first, n, 0, node.add("t/1"));
    cores.cut(a, b);
    await tell(first, n, 0, node.add("t/2"));
    cores.cut(a, c);
    await tell(first, n, 0, node.add("t/3"));
    expect(cores.routesOf(c)).toEqual([`${n} t/1`, `${n} t/2`]);

    await aWhile();
    cores.mend();
    const changes = hold(cores, "onAnswer", b, "changes");
    const pull = second.mesh.replication.pull(n, second.mesh.peers.link(c));
    await changes.reached();
    const met = second.mesh.peers.meet(a);
    await aWhile();
    changes.release();
    await Promise.all([pull, met]);
    expect(cores.routesOf(b)).toEqual([`${n} t/1`, `${n} t/2`, `${n} t/3`]);
  });
});

test("G8: a node that has gone on while it was taken in is its next home's", async () => {
  const cores = new Cores();
  const [, second, third] = (await together(cores, of(a, b, c), a, b, c)) as [Core, Core, Core];
  const node = cores.node(n);
  const routes = hold(cores, "onAnswer", b, "routes");
  node.add("t/1");
  const late = tell(second, n, 1).catch(String);
  await routes.reached();
  node.remove("t/1");
  await tell(third, n, 2, node.add("t/2"));
  routes.release();
  await late;
  await tell(third, n, 2, node.add("t/3"));
  const all = [`${n} t/2`, `${n} t/3`];
  for (const core of [a, b, c]) await eventually(() => expect(cores.routesOf(core)).toEqual(all));
  for (const core of [a, b]) expect(cores.core(core).store.versions.of(n)).toBe(third.store.versions.of(n));
  expect(second.mesh.members.get(n)).toMatchObject({ home: c, term: 2 });
});

test("G8: routes of before there were several cores are told to the others", async () => {
  const cores = new Cores();
  await tell(cores.start(a, of(a)), n, 0, cores.node(n).add("t/1"));
  cores.crash(a);
  const disk = cores.disk(a);
  disk.sql.exec("UPDATE member SET home = '?' WHERE home <> ''");
  disk.commit();
  const other = cores.start(b, of(a, b));
  await eventually(() => expect(other.mesh.whenReady()).toBe(undefined));
  await met([cores.start(a, of(a, b)), other]);
  await eventually(() => expect(cores.routesOf(b)).toEqual([`${n} t/1`]));
});
