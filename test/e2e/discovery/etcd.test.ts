// The strategy `etcd` against a real etcd, Debian's etcd-server; and the autocluster on top of it.

import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";

import type { AutoclusterState } from "../../../cluster/autocluster.ts";
import { Autocluster } from "../../../durable-objects/coordinator/discovery/autocluster.ts";
import { EtcdStrategy } from "../../../durable-objects/coordinator/discovery/etcd.ts";
import type { Strategy } from "../../../durable-objects/coordinator/discovery/strategy.ts";
import { settingsOf } from "../../support/discovery-settings.ts";
import { hasEtcd, startEtcd, type Etcd } from "../../support/etcd.ts";
import { patience } from "../../support/patience.ts";
import { freePort } from "../../support/port.ts";
import { startInWorkerd, type InWorkerd } from "./in-workerd.ts";

const [a, b, c] = ["core@a.example.com", "core@b.example.com", "core@c.example.com"] as const;

describe.skipIf(!hasEtcd)("etcd (skipped without etcd-server)", () => {
  let etcd: Etcd;
  let workerd: InWorkerd;
  let count = 0;

  beforeAll(async () => {
    etcd = await startEtcd();
    workerd = await startInWorkerd();
  });

  afterAll(async () => {
    await etcd?.stop();
    await workerd?.stop();
  });

  /** A prefix for each test. */
  function fresh(): string {
    return `test-${++count}`;
  }

  function inWorkerd(
    prefix: string,
    self: string,
    node_ttl = 60_000,
    server: readonly string[] = [etcd.url],
  ): Strategy {
    return workerd.strategyOf(settingsOf({ discovery_strategy: "etcd", etcd: { server, prefix, node_ttl } }), self);
  }

  test("a node that registers is discovered, until it unregisters", async () => {
    const prefix = fresh();
    const [first, second] = [inWorkerd(prefix, a), inWorkerd(prefix, b)];
    expect(await first.discover()).toEqual([]);
    expect(await first.register()).toBe(20_000);
    expect(await second.discover()).toEqual([a]);
    await second.register();
    expect(await first.discover()).toEqual([a, b]);
    await first.unregister();
    expect(await second.discover()).toEqual([b]);
    await first.unregister();
  });

  test("what is beside the prefix is not discovered, and what is below it is no matter what it is", async () => {
    const prefix = fresh();
    for (const key of [`${prefix}/nodes`, `${prefix}/nodes0`, `${prefix}/nodesx/${b}`, `${prefix}0/nodes/${b}`, "zzz"])
      await etcd.put(key, b);
    const strategy = inWorkerd(prefix, a);
    expect(await strategy.discover()).toEqual([]);
    await etcd.put(`${prefix}/nodes/x/y`, "");
    await etcd.call("/v3/kv/put", {
      key: Buffer.concat([Buffer.from(`${prefix}/nodes/`), Buffer.from([0xff, 0xfe])]).toString("base64"),
    });
    expect(await strategy.discover()).toEqual(["x/y", "\ufffd\ufffd"]);
  });

  test("a node that gives no sign of life is no longer discovered, one that does is", async () => {
    const prefix = fresh();
    const [dead, alive] = [inWorkerd(prefix, a, 2_000), inWorkerd(prefix, b, 2_000)];
    await dead.register();
    await vi.waitUntil(async () => {
      await alive.register();
      return (await alive.discover()).join() === b;
    }, patience);
    // Or its end would be a write in the next test.
    await alive.unregister();
  });

  test("to give a sign of life writes nothing; a key that somebody deleted is put again", async () => {
    const prefix = fresh();
    const strategy = inWorkerd(prefix, a);
    await strategy.register();
    const { revision } = await etcd.keys(`${prefix}/`);
    await strategy.register();
    await strategy.register();
    expect((await etcd.keys(`${prefix}/`)).revision).toBe(revision);
    await etcd.call("/v3/kv/deleterange", { key: Buffer.from(`${prefix}/nodes/${a}`).toString("base64") });
    expect(await strategy.discover()).toEqual([]);
    await strategy.register();
    expect(await strategy.discover()).toEqual([a]);
  });

  test("a lock is one node's at a time, and the next one's when it is unlocked", async () => {
    const prefix = fresh();
    const [first, second] = [inWorkerd(prefix, a), inWorkerd(prefix, b)];
    await first.lock();
    let isSecond = false;
    const waiting = second.lock().then(() => (isSecond = true));
    await vi.waitUntil(async () => (await etcd.keys(`${prefix}/lock/`)).keys.length === 2, patience);
    expect(isSecond).toBe(false);
    await first.unlock();
    await waiting;
    expect((await etcd.keys(`${prefix}/lock/`)).keys).toHaveLength(1);
    await second.unlock();
    expect((await etcd.keys(`${prefix}/lock/`)).keys).toEqual([]);
  });

  test("a node that crashed with the lock gets it again, and others get it within 30 seconds", async () => {
    const prefix = fresh();
    await inWorkerd(prefix, a).lock();
    await inWorkerd(prefix, a).lock();
    const { keys } = await etcd.keys(`${prefix}/lock/`);
    expect(keys).toHaveLength(1);
    const lease = BigInt(`0x${keys[0]?.split("/").at(-1)}`);
    const { grantedTTL } = await etcd.call("/v3/lease/timetolive", { ID: `${lease}` });
    expect(grantedTTL).toBe("30");
  });

  test("who stops waiting for the lock does not stand in the way of others", async () => {
    const prefix = fresh();
    const settings = { server: [etcd.url], prefix, node_ttl: 60_000 };
    const first = new EtcdStrategy(settings, a, fetch);
    const impatient = new EtcdStrategy(settings, b, (url, init) =>
      fetch(url, url.endsWith("/lock/lock") ? { ...init, signal: AbortSignal.timeout(300) } : init),
    );
    const third = new EtcdStrategy(settings, c, fetch);
    await first.lock();
    await expect(impatient.lock()).rejects.toThrow("/v3/lock/lock: cannot be reached");
    await impatient.unlock();
    await first.unlock();
    await third.lock();
    expect((await etcd.keys(`${prefix}/lock/`)).keys).toHaveLength(1);
    await third.unlock();
  });

  test("of several servers the next is asked when one does not answer", async () => {
    const dead = `http://127.0.0.1:${await freePort()}`;
    const strategy = inWorkerd(fresh(), a, 60_000, [dead, etcd.url]);
    await strategy.lock();
    await strategy.register();
    await strategy.unlock();
    expect(await strategy.discover()).toEqual([a]);
    await strategy.unregister();
  });

  test("the error of a server that is not there names it", async () => {
    const port = await freePort();
    for (const verb of ["discover", "lock", "unlock", "register", "unregister"] as const) {
      const strategy = inWorkerd(fresh(), a, 60_000, [`http://127.0.0.1:${port}`]);
      const error = await strategy[verb]().then(String, ({ message }: Error) => message);
      expect(error).toMatch(new RegExp(`^http://127\\.0\\.0\\.1:${port}/v3/[a-z/]+: cannot be reached \\([^\n]+\\)$`));
    }
  });

  describe("a server that is none", () => {
    async function serve(answer: string, status = 200, headers: Record<string, string> = {}): Promise<string> {
      const server = createServer((_, response) => response.writeHead(status, headers).end(answer));
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
      onTestFinished(() => void server.close());
      return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    }

    test.each([
      ["HTML", "<!doctype html>", 200, "/v3/kv/range: the answer is not JSON"],
      ["other JSON", '{"kvs":{}}', 200, "/v3/kv/range: the answer is not one of etcd"],
      ["null", "null", 200, "/v3/kv/range: the answer is not one of etcd"],
      ["a redirect", "", 302, "/v3/kv/range: answered 302"],
      [
        "an error",
        '{"message":"etcdserver: user name is empty"}',
        400,
        "answered 400 (etcdserver: user name is empty)",
      ],
      ["a megabyte and more", "x".repeat(1_100_000), 200, "the answer is larger than 1048576 bytes"],
    ])("%s is refused", async (_, answer, status, said) => {
      const url = await serve(answer, status, { location: etcd.url });
      await expect(inWorkerd(fresh(), a, 60_000, [url]).discover()).rejects.toThrow(said);
    });
  });

  test("cores that start at once become one cluster; etcd may go, and come back empty", async () => {
    const own = await startEtcd();
    onTestFinished(() => own.stop());
    const prefix = fresh();
    const events: unknown[] = [];
    const clusters = new Map([a, b, c].map((name) => [name as string, new Set<string>([name])]));
    let alarms: NodeJS.Timeout[] = [];
    const view = (name: string): { size: number; oldest: string } => ({
      size: clusters.get(name)!.size,
      oldest: [...clusters.get(name)!].sort()[0]!,
    });
    const strategies = [a, b, c].map(
      (self) => new EtcdStrategy({ server: [own.url], prefix, node_ttl: 3_000 }, self, fetch),
    );
    const cores = [a, b, c].map((self, index) => {
      let state: AutoclusterState | undefined;
      const core: Autocluster = new Autocluster(self, strategies[index]!, {
        load: () => state,
        save: (saved) => (state = saved),
        now: Date.now,
        random: Math.random,
        ringAt: (at) => alarms.push(setTimeout(() => core.handleAlarm(), Math.max(0, at - Date.now()))),
        log: (event) => events.push(event),
        members: () => clusters.get(self)!,
        viewOf: async (node) => view(node),
        join: async (joiner, target) => {
          clusters.get(joiner)!.delete(joiner);
          clusters.set(joiner, clusters.get(target)!.add(joiner));
        },
      });
      return core;
    });
    onTestFinished(() => {
      for (const alarm of alarms) clearTimeout(alarm);
      alarms = [];
    });

    const listed = async (): Promise<string> => (await strategies[0]!.discover().catch(() => [])).join();
    await vi.waitUntil(async () => (await listed()) === [a, b, c].join(), patience);
    expect(new Set(clusters.values()).size).toBe(1);
    expect(events).toEqual([]);

    await own.kill();
    await vi.waitUntil(() => events.length === 3, patience);
    // Long enough for a second try and a third.
    await sleep(3_000);
    expect(events).toHaveLength(3);
    expect(events[0]).toMatchObject({ event: "discovery_failed", strategy: `etcd ${prefix} at ${own.url}` });
    expect(new Set(clusters.values()).size).toBe(1);

    await own.restartEmpty();
    await vi.waitUntil(async () => (await listed()) === [a, b, c].join(), patience);
    await vi.waitUntil(() => events.length === 6, patience);
    expect(events.slice(3)).toEqual(
      events.slice(3).map(() => expect.objectContaining({ event: "discovery_recovered" })),
    );
    await Promise.all(cores.map((core) => core.disable()));
    expect(await listed()).toBe("");
  });
});
