import { beforeEach, expect, test, vi } from "vitest";

import type { Core } from "../../../durable-objects/coordinator/core.ts";
import type { Broker } from "../../../durable-objects/node/broker.ts";
import { holdingsOf, routesOf } from "../../../durable-objects/node/inventory.ts";
import { firstPage } from "../../../durable-objects/page.ts";
import { limits } from "../../../mqtt/limits.ts";
import { a, b, Cores, eventually, met, n, of, tell, together } from "./cores.ts";

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
  vi.spyOn(console, "error").mockImplementation(() => {});
});

test("G6: a page of routes is bounded in bytes", async () => {
  const cores = new Cores();
  const [first] = (await together(cores, of(a, b), a, b)) as [Core];
  const node = cores.node(n);
  for (let i = 0; i < 60; i++) await tell(first, n, 0, node.add(`${"x".repeat(60_000)}/${i}`));
  expect(first.mesh.replication.changes(n, 0, "").entries.length).toBeLessThan(limits.pageBytesMax + 70_000);
  cores.crash(b);
  cores.disk(b).sql.exec("DELETE FROM route");
  cores.disk(b).sql.exec("DELETE FROM writer");
  await met([first, cores.start(b, of(a, b))]);
  await eventually(() => expect(cores.routesOf(b)).toEqual(cores.routesOf(a)));
});

test("G6: a page ends at what it may hold, and has one entry whatever its size", () => {
  const rows = (...lengths: number[]) => lengths.map((length) => "x".repeat(length));
  const most = limits.pageBytesMax;
  expect(firstPage(rows(1, 2, 3), String)).toEqual({ items: rows(1, 2, 3), isLast: true });
  expect(firstPage(rows(most + 1), String)).toMatchObject({ items: { length: 1 }, isLast: true });
  expect(firstPage(rows(most + 1, 1), String)).toMatchObject({ items: { length: 1 }, isLast: false });
  expect(firstPage(rows(most, 1), String)).toMatchObject({ items: { length: 1 }, isLast: false });
  const many = Array.from({ length: limits.pageEntriesMax }, () => "x");
  expect(firstPage(many, String)).toMatchObject({ items: { length: many.length }, isLast: false });
});

test("G3 G4: what is not on a node's disk yet is on the first page: it may be there when the pages are past it", () => {
  const unsaved = ["a/unsaved"];
  const opening: [string, number][] = [["a-client", 0]];
  const broker = {
    store: {
      filters: (after: string) => ({
        items: after === "" ? [{ filter: "m" }] : [{ filter: "n" }],
        isLast: after !== "",
      }),
      clientIds: (after: string) => ({ items: [{ clientId: `${after}m`, epoch: 1 }], isLast: after !== "" }),
    },
    sessions: { saveNew: () => {} },
    table: { unsaved: () => unsaved },
    claims: { opening: () => opening, isOpening: () => false },
    sequence: { last: 7 },
  } as unknown as Broker;
  const first = routesOf(broker, "");
  expect(first.routes.map(({ key }) => key)).toEqual(["a/unsaved", "m"]);
  expect(routesOf(broker, first.next!).routes.map(({ key }) => key)).toEqual(["n"]);
  const move = { owner: "core@a.emqxcl", before: [], after: ["core@a.emqxcl"] };
  expect(holdingsOf(broker, move, "").sessions.map(({ clientId }) => clientId)).toEqual(["m", "a-client"]);
  expect(holdingsOf(broker, move, "m").sessions.map(({ clientId }) => clientId)).toEqual(["mm"]);
});
