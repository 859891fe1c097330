import { beforeEach, describe, expect, test, vi } from "vitest";

import { ownerAmong } from "../../../cluster/placement.ts";
import type { Core } from "../../../durable-objects/coordinator/core.ts";
import { a, aWhile, b, c, Cores, eventually, hold, m, met, n, of, tell, together } from "./cores.ts";

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
  vi.spyOn(console, "error").mockImplementation(() => {});
});

function clientIdOf(wanted: (clientId: string) => boolean): string {
  for (let i = 0; ; i++) if (wanted(`client-${i}`)) return `client-${i}`;
}

const other = "node-1@weur.emqxcl";

describe("G4: claims when the cores change", () => {
  test("are made of a core that has not heard yet that their owner is gone", async () => {
    const cores = new Cores();
    const [first] = (await together(cores, of(a, b, c), a, b, c)) as [Core];
    await eventually(() => expect(first.mesh.share.ownerOf("x")).toBe(ownerAmong([a, b, c].sort(), "x")));
    await tell(first, n, 0);
    cores.crash(c);
    await first.mesh.peers.check(c);
    const id = clientIdOf((each) => ownerAmong([a, b], each) === b && ownerAmong([a, b, c], each) === c);
    expect(await first.mesh.claim(id, n, 0)).toMatchObject({ holders: [] });
  });

  test("of a core that was out wait for what others know, also after one more crash", async () => {
    const cores = new Cores();
    const [first, second] = (await together(cores, of(a, b), a, b)) as [Core, Core];
    const id = clientIdOf((each) => ownerAmong([a, b], each) === b);
    await tell(first, n, 0);
    await tell(second, m, 0);
    await second.mesh.claim(id, m, 0);
    cores.crash(b);
    await first.mesh.peers.check(b);
    await first.mesh.claim(id, n, 0);
    const asked = hold(cores, "onCall", b, "claimsFor");
    const given = hold(cores, "onAnswer", a, "claimsFor");
    cores.start(b, of(a, b));
    await asked.reached();
    cores.crash(b);
    asked.release();

    const third = cores.start(b, of(a, b));
    await met([first, third]);
    await tell(third, other, 0);
    await tell(third, m, 0);
    const { holders } = await third.mesh.claim(id, other, 0);
    expect(holders.map(({ node }) => node)).toContain(n);
    given.release();
  });

  test("of a core that is new wait for what the only one knew", async () => {
    const cores = new Cores();
    const id = clientIdOf((each) => ownerAmong([a, b], each) === b);
    const alone = cores.start(a, of(a));
    await tell(alone, n, 0);
    await alone.mesh.claim(id, n, 0);
    cores.crash(a);

    const claims = hold(cores, "onCall", b, "claimsFor");
    const [, second] = (await together(cores, of(a, b), a, b)) as [Core, Core];
    await claims.reached();
    const claim = second.mesh.claim(id, m, 0);
    await aWhile();
    claims.release();
    expect((await claim).holders.map(({ node }) => node)).toEqual([n]);
  });

  test("are made when all cores but one are gone from the settings, also after a crash on the way", async () => {
    const cores = new Cores();
    const [first] = (await together(cores, of(a, b), a, b)) as [Core];
    await tell(first, n, 0);
    await eventually(() => expect(first.store.fact("registry_cores")).toBe([a, b].sort().join(" ")));
    cores.crash(a);
    cores.crash(b);
    const holdings = hold(cores, "onCall", a, "holdings");
    cores.start(a, of(a));
    await holdings.reached();
    cores.crash(a);
    holdings.release();

    const alone = cores.start(a, of(a));
    const id = clientIdOf((each) => ownerAmong([a, b], each) === b);
    await alone.mesh.whenReady();
    expect(alone.mesh.share.ownerOf(id)).toBe(a);
  });
});
