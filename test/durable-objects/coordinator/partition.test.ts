import { beforeEach, expect, test, vi } from "vitest";

import { a, b, Cores, eventually, met, of } from "./cores.ts";

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
  vi.spyOn(console, "error").mockImplementation(() => {});
});

test("[G8] that a partition is over both find, also when the answer of the first hello was lost", async () => {
  const cores = new Cores();
  const [one, other] = [cores.start(a, of(a, b)), cores.start(b, of(a, b))];
  await met([one, other]);
  cores.cut(a, b);
  await Promise.all([one.mesh.peers.check(b), other.mesh.peers.check(a)]);
  expect([one.mesh.peers.isUp(b), other.mesh.peers.isUp(a)]).toEqual([false, false]);
  cores.mend();

  cores.onAnswer = (from, _, method) => {
    if (from === b && method === "hello") throw new Error("the link is replaced");
  };
  expect(await other.mesh.peers.meet(a)).toBe(false);
  await eventually(() => expect(one.mesh.peers.isUp(b)).toBe(true));
  cores.onAnswer = () => {};
  expect(await one.mesh.peers.meet(b)).toBe(true);
  expect(one.mesh.peers.view()).toEqual([a]);
  expect(other.mesh.peers.view()).toEqual([b]);
});
