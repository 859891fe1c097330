import { afterEach, beforeEach, expect, test, vi } from "vitest";

import type { Core } from "../../../durable-objects/coordinator/core.ts";
import { publishRecord } from "../../../durable-objects/rpc.ts";
import { ByteWriter } from "../../../mqtt/byte-buffer.ts";
import { limits } from "../../../mqtt/limits.ts";
import { lifeChars, messageIdOf } from "../../../mqtt/message-id-set.ts";
import { a, b, Cores, eventually, met, n, of, tell, together } from "./cores.ts";

const bounds: { -readonly [name in keyof typeof limits]: number } = limits;
const { removalsPerWriterMax, pageEntriesMax } = limits;

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
  vi.spyOn(console, "error").mockImplementation(() => {});
});
afterEach(() => void Object.assign(bounds, { removalsPerWriterMax, pageEntriesMax }));

let messages = 0;

function retained(topic: string, payload: string): Uint8Array {
  const message = {
    id: messageIdOf("0".repeat(lifeChars), messages++),
    from: "client",
    topic,
    payload: new TextEncoder().encode(payload),
    qos: 1 as const,
    retain: true,
    expiresAt: 0,
    properties: new Uint8Array(),
  };
  return publishRecord(new ByteWriter(), { message, delaySeconds: 0, only: "" });
}

const topicsOf = (cores: Cores, core: string): string[] =>
  cores
    .disk(core)
    .rows<{ topic: string }>("SELECT topic FROM retained ORDER BY topic")
    .map(({ topic }) => topic);

test("G8: a pull that can tell of changes no more, half-way, begins again with all there is", async () => {
  const cores = new Cores();
  const [first] = (await together(cores, of(a, b), a, b)) as [Core];
  const node = cores.node(n);
  for (const key of ["1", "2", "3", "4"]) await tell(first, n, 0, node.add(`old/${key}`));
  cores.crash(b);
  await first.mesh.peers.check(b);
  for (const key of ["1", "2", "3", "4"]) await tell(first, n, 0, node.add(`new/${key}`));

  bounds.pageEntriesMax = 2;
  let pages = 0;
  cores.onCall = (from, _, method) => {
    if (from !== b || method !== "changes" || ++pages !== 3) return;
    bounds.removalsPerWriterMax = 2;
    for (const key of ["1", "2", "3"]) void tell(first, n, 0, node.add(`gone/${key}`));
    for (const key of ["1", "2", "3"]) void tell(first, n, 0, node.remove(`gone/${key}`));
  };
  await met([first, cores.start(b, of(a, b))]);
  await eventually(() => expect(cores.routesOf(b)).toEqual(cores.routesOf(a)));
  expect(cores.routesOf(b)).toHaveLength(8);
});

test("G8: what was cleared longer ago than is remembered is cleared on a core that was away", async () => {
  const cores = new Cores();
  const [first] = (await together(cores, of(a, b), a, b)) as [Core];
  const topics = Array.from({ length: 12 }, (_, i) => `t/${i}`);
  await tell(first, n, 0, ...topics.map((topic) => retained(topic, "here")));
  await eventually(() => expect(topicsOf(cores, b)).toHaveLength(12));
  cores.crash(b);
  await first.mesh.peers.check(b);

  bounds.removalsPerWriterMax = 4;
  bounds.pageEntriesMax = 3;
  await tell(first, n, 0, ...topics.slice(0, 8).map((topic) => retained(topic, "")));
  await tell(first, n, 0, retained("t/9", "again"), retained("u", "new"));
  await met([first, cores.start(b, of(a, b))]);
  await eventually(() => expect(topicsOf(cores, b)).toEqual(["t/10", "t/11", "t/8", "t/9", "u"]));
  expect(topicsOf(cores, a)).toEqual(topicsOf(cores, b));
});

test("G6: what is remembered of removals is bounded, however often the core sleeps", async () => {
  const cores = new Cores();
  bounds.removalsPerWriterMax = 6;
  cores.start(b, of(a, b));
  for (let life = 0; life < 8; life++) {
    const core = cores.start(a, of(a, b));
    await met([core, cores.core(b)]);
    for (const key of ["1", "2"]) {
      await tell(core, n, 0, cores.node(n).add(`${life}/${key}`), retained(`${life}/${key}`, "here"));
      await tell(core, n, 0, cores.node(n).remove(`${life}/${key}`), retained(`${life}/${key}`, ""));
    }
    cores.crash(a);
  }
  for (const table of ["removed", "cleared"])
    for (const core of [a, b]) expect(cores.disk(core).rows(`SELECT * FROM ${table}`).length).toBeLessThanOrEqual(6);
});
