import { beforeEach, describe, expect, test, vi } from "vitest";

import { Cores, eventually, met, tell } from "./cores.ts";

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
  vi.spyOn(console, "error").mockImplementation(() => {});
});

describe("deployments that join", () => {
  const x = "core@127.0.0.1:8001";
  const y = "core@127.0.0.1:8002";
  const onX = "node-0@local.127.0.0.1:8001";
  const onY = "node-0@local.127.0.0.1:8002";
  const named = (name: string) => ({ TRELLIS_NODE__NAME: name, TRELLIS_NODE__COOKIE: "a-cookie-of-this-test" });

  test("G3 G8: tell each other all that they have, and what changes from then on", async () => {
    const cores = new Cores();
    const joined = cores.start(x, named(x));
    const joiner = cores.start(y, named(y));
    await tell(joined, onX, 0, cores.node(onX).add("x/1"));
    await tell(joiner, onY, 0, cores.node(onY).add("y/1"));
    expect(await joiner.mesh.cluster.join(x)).toEqual({ ok: true });
    await met([joined, joiner]);
    await tell(joined, onX, 0, cores.node(onX).add("x/2"));
    await tell(joiner, onY, 0, cores.node(onY).add("y/2"));
    const all = [`${onX} x/1`, `${onX} x/2`, `${onY} y/1`, `${onY} y/2`];
    for (const core of [x, y]) await eventually(() => expect(cores.routesOf(core)).toEqual(all));
  });

  test("join although the answer was lost", async () => {
    const cores = new Cores();
    const joined = cores.start(x, named(x));
    const joiner = cores.start(y, named(y));
    cores.onAnswer = (_, __, method) => {
      if (method === "acceptJoin") throw new Error("the answer is lost");
    };
    expect(await joiner.mesh.cluster.join(x)).toMatchObject({ ok: false, code: "node_down" });
    cores.onAnswer = () => {};
    expect(await joiner.mesh.cluster.join(x)).toEqual({ ok: true });
    await met([joined, joiner]);
  });
});
