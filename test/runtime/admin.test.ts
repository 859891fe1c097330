// What a core tells operators of nodes that sleep, that do not answer, and that have clients on the way.

import { describe, expect, onTestFinished, test, vi } from "vitest";
import { limits } from "../../mqtt/limits.ts";
import type { CoreAdminRpc } from "../../durable-objects/rpc.ts";
import {
  converse,
  type Conversation,
  coreName,
  coreStub,
  durable,
  knock,
  newNode,
  publish,
  publishAndWait,
  rows,
  sleep,
  subscribe,
} from "./conversation.ts";
import { cut, heal, inject, useFaults } from "./faults.ts";
import { patience } from "../support/patience.ts";

useFaults();

const all = { offset: 0, limit: 1000 };
const { adminCallMsMax } = limits;

function core(): CoreAdminRpc {
  return coreStub();
}

function claims(clientId: string): Promise<unknown[]> {
  return rows(coreName, "SELECT node FROM claim WHERE client_id = ?", clientId);
}

describe("a node that sleeps", () => {
  test("lists its clients from disk, and each with what waits for it when it is asked for", async () => {
    const node = newNode();
    const client = await converse(node, {
      ...durable,
      clientId: `${node}-a`,
      properties: { receiveMaximum: 2, sessionExpiryInterval: 60 },
    });
    const away = await converse(node, { ...durable, clientId: `${node}-b` });
    const other = await converse(newNode());
    await subscribe(client, [`${node}/t`, `${node}/u`], { qos: 1 });
    await subscribe(away, `${node}/t`, { qos: 1 });
    await away.leave();
    await publishAndWait(other, `${node}/t`, "1", "2", "3");
    for (const payload of ["1", "2"]) await client.expectMessage(payload);
    client.send(publish(`${node}/x`, "", 2, { messageId: 7 }));
    await client.expect("pubrec");
    await sleep(node);

    const { items, ...page } = await core().clients(node, all);
    expect(page).toEqual({ count: 2, isCut: false, silent: [] });
    const [first, second] = items;
    expect(first).toMatchObject({ clientid: `${node}-a`, connected: true, proto_ver: 5, expiry_interval: 60 });
    expect(first).toMatchObject({ subscriptions_cnt: 2, inflight_cnt: 2, awaiting_rel_cnt: 1 });
    expect(first).not.toHaveProperty("mqueue_len");
    expect(second).toMatchObject({ clientid: `${node}-b`, connected: false, subscriptions_cnt: 1, inflight_cnt: 0 });
    expect(second).not.toHaveProperty("proto_ver");

    const asked = [await core().client(`${node}-a`), await core().client(`${node}-b`)];
    expect(asked.map(({ found }) => found)).toMatchObject([
      { inflight_cnt: 2, awaiting_rel_cnt: 1, mqueue_len: 1, connected: true },
      { inflight_cnt: 0, awaiting_rel_cnt: 0, mqueue_len: 3, connected: false },
    ]);

    // The one that is connected goes on as if nobody had asked.
    client.send({ cmd: "puback", messageId: 1, reasonCode: 0 });
    await client.expectMessage("3");
    const back = await converse(node, { ...durable, clientId: `${node}-b` });
    for (const payload of ["1", "2", "3"]) await back.expectMessage(payload);
    for (const each of [client, back, other]) await each.drop();
  });

  test("kicks a client whose socket is all that is left of it", async () => {
    const node = newNode();
    const client = await converse(node, { ...durable, clientId: `${node}-k` });
    await subscribe(client, `${node}/t`);
    await sleep(node);
    expect(await core().kick(`${node}-k`)).toEqual({ found: true, silent: [] });
    await client.expect("disconnect", { reasonCode: 0x98 });
    await client.expectClosed();
    expect(await core().client(`${node}-k`)).toEqual({ found: undefined, silent: [] });
    await vi.waitUntil(async () => (await claims(`${node}-k`)).length === 0, patience);
    expect((await core().topics({ topic: `${node}/t` }, all)).items).toEqual([]);
  });
});

describe("a node that does not answer", () => {
  test.each<[string, (node: string) => void]>([
    ["fails", cut],
    [
      "is silent",
      (node) => {
        inject(node, () => new Promise(() => {}));
        // Six times; the others are to answer within it, on a busy machine too.
        Object.assign(limits, { adminCallMsMax: 2_000 });
        onTestFinished(() => void Object.assign(limits, { adminCallMsMax }));
      },
    ],
  ])("is left out and named: it %s", async (_, break_) => {
    const [silent, other] = [newNode(), newNode()];
    const clients = [
      await converse(silent, { clientId: `${silent}-s` }),
      await converse(other, { clientId: `${other}-o` }),
    ];
    for (const client of clients) await subscribe(client, `${silent}/t`, { qos: 1 });
    break_(silent);
    const list = await core().clients(undefined, all);
    expect(list.silent).toEqual([silent]);
    const ids = list.items.map(({ clientid }) => clientid);
    expect(ids).toContain(`${other}-o`);
    expect(ids).not.toContain(`${silent}-s`);
    expect(list.count).toBe(ids.length);
    expect(await core().subscriptions({ topic: `${silent}/t` }, all)).toMatchObject({
      count: 1,
      items: [{ node: other, clientid: `${other}-o` }],
      silent: [silent],
    });
    expect(await core().clients(silent, all)).toEqual({ count: 0, items: [], isCut: false, silent: [silent] });
    expect(await core().client(`${silent}-s`)).toEqual({ found: undefined, silent: [silent] });
    expect(await core().kick(`${silent}-s`)).toEqual({ found: undefined, silent: [silent] });
    const nodes = await core().nodes(undefined);
    expect(nodes.find(({ node }) => node === silent)).toEqual({
      node: silent,
      role: "replicant",
      node_status: "running",
    });
    expect(nodes.find(({ node }) => node === other)).toMatchObject({ live_connections: 1 });
    // The routes are the core's own.
    expect((await core().topics({ node: silent }, all)).items).toEqual([{ topic: `${silent}/t`, node: silent }]);
    heal(silent);
    expect(await core().client(`${silent}-s`)).toMatchObject({ found: { clientid: `${silent}-s` }, silent: [] });
    for (const client of clients) await client.drop();
  });
});

describe("a page", () => {
  test("of several slices is whole and in order", async () => {
    const [a, b] = [newNode(), newNode()];
    const chunk = limits.adminChunkItemsMax;
    Object.assign(limits, { adminChunkItemsMax: 3 });
    try {
      const ids = (node: string, count: number) => Array.from({ length: count }, (_, at) => `${node}-page-${at}`);
      const wanted = [...ids(a, 7), ...ids(b, 4)];
      // Nodes are listed in the order in which they joined.
      const clients: Conversation[] = [];
      for (const clientId of wanted)
        clients.push(await converse(clientId.slice(0, clientId.indexOf("-page")), { clientId }));
      const listed = async (offset: number, limit: number) => {
        const { items } = await core().clients(undefined, { offset, limit });
        return items.map(({ clientid }) => clientid).filter((id) => wanted.includes(id));
      };
      expect(await listed(0, 1000)).toEqual(wanted);
      const before = (await core().clients(undefined, all)).items.findIndex(({ clientid }) => clientid === wanted[0]);
      for (let offset = 0; offset < wanted.length; offset += 5)
        expect(await listed(before + offset, 5)).toEqual(wanted.slice(offset, offset + 5));
      for (const client of clients) await client.drop();
    } finally {
      Object.assign(limits, { adminChunkItemsMax: chunk });
    }
  });
});

describe("a kick", () => {
  test("[G4] while its client comes to another node ends the session: the client gets a new one", async () => {
    const [old, next] = [newNode(), newNode()];
    const clientId = `${old}-moves`;
    const before = await converse(old, { ...durable, clientId });
    await subscribe(before, `${old}/t`);
    await before.leave();
    const { promise: mayGoOn, resolve: goOn } = Promise.withResolvers<void>();
    let isAsked = false;
    inject(old, async (call, name) => {
      if (name !== "takeOverMessages") return call();
      isAsked = true;
      await mayGoOn;
      return call();
    });
    const moving = await knock(next, { ...durable, clientId });
    await vi.waitUntil(() => isAsked, patience);
    expect(await core().kick(clientId)).toEqual({ found: true, silent: [] });
    goOn();
    heal(old);
    await moving.expect("connack", { reasonCode: 0, sessionPresent: false });
    expect((await core().client(clientId)).found).toMatchObject({ node: next, subscriptions_cnt: 0 });
    await vi.waitUntil(async () => (await core().clients(old, all)).count === 0, patience);
    expect((await core().topics({ topic: `${old}/t` }, all)).items).toEqual([]);
    await moving.drop();
  });
});
