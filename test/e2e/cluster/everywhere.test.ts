// Three deployments as one broker: what a client does on one of them is so on all.

import { Store } from "mqtt";
import { describe, expect, test } from "vitest";

import { connect, range, type Client } from "../../support/client.ts";
import { connectDurable, startCluster, whenRoutesAgree } from "../../support/cluster.ts";

/** Payloads as they come, until the connection is over. */
function collect(client: Client, payloads: string[]): void {
  const take = async (): Promise<never> => {
    for (;;) payloads.push((await client.next()).payload);
  };
  take().catch(() => {});
}

describe("sessions", () => {
  test("[G1] [G4] move between deployments with their queue, connected or not", async () => {
    const [a, b, c] = await startCluster(3);
    const publisher = await connect(a.urlOf(1));
    const first = await connectDurable(a.urlOf(0), "mover");
    await first.subscribe(["q/1", "q/2"], { qos: 2 });
    await first.leave();
    for (const n of range(30)) await publisher.publish(`q/${1 + (n % 2)}`, `${n}`, { qos: n % 2 === 0 ? 1 : 2 });

    const second = await connectDurable(b.urlOf(0), "mover");
    expect(second.connack.sessionPresent).toBe(true);
    expect((await second.payloads(30)).toSorted()).toEqual(range(30).map(String).toSorted());
    await second.expectNothing();
    const third = await connectDurable(c.urlOf(0), "mover");
    expect(await second.ended).toBe(0x8e);
    expect(third.connack.sessionPresent).toBe(true);
    await publisher.publish("q/2", "on c", { qos: 2 });
    expect(await third.payloads(1)).toEqual(["on c"]);
    await third.expectNothing();
    await whenRoutesAgree(a, b, c);
  });

  test("[G2] [G4] move while messages come, at QoS 2 each once and in order", async () => {
    const [a, b, c] = await startCluster(3);
    for (const { proxy } of [a, b, c]) proxy.delay(20);
    const publisher = await connect(c.urlOf(1));
    const received: string[] = [];
    const over = new AbortController();
    const publishing = (async () => {
      for (let n = 0; !over.signal.aborted; n++) await publisher.publish("order", `${n}`, { qos: 2 });
    })();
    const urls = [a.urlOf(0), b.urlOf(0), c.urlOf(0), a.urlOf(0)];
    // It may leave between PUBREC and PUBREL: its half of the session goes with it, too.
    const incomingStore = new Store({ clean: false });
    let client: Client | undefined;
    for (const url of urls) {
      await client?.leave();
      client = await connectDurable(url, "mover", { incomingStore });
      if (received.length === 0) await client.subscribe("order", { qos: 2 });
      else expect(client.connack.sessionPresent).toBe(true);
      const before = received.length;
      collect(client, received);
      await expect.poll(() => received.length).toBeGreaterThan(before + 8);
    }
    over.abort();
    await publishing;
    await publisher.publish("order", "end", { qos: 2 });
    await expect.poll(() => received.at(-1)).toBe("end");
    const numbers = received.slice(0, -1).map(Number);
    expect(numbers).toEqual(range(numbers.length).map((n) => numbers[0]! + n));
  });

  test("a will is published everywhere, and retained everywhere", async () => {
    const [a, b, c] = await startCluster(3);
    const watchers = await Promise.all([a, b, c].map((each) => connect(each.urlOf(0))));
    for (const watcher of watchers) await watcher.subscribe("will/#", { qos: 1 });
    const will = { topic: "will/of", payload: Buffer.from("gone"), qos: 1 as const, retain: true };
    const client = await connect(b.urlOf(1), { will });
    await client.drop();
    for (const watcher of watchers) expect(await watcher.payloads(1)).toEqual(["gone"]);
    const late = await connect(c.urlOf(1));
    await late.subscribe("will/#", { qos: 1 });
    expect(await late.payloads(1)).toEqual(["gone"]);
  });
});

describe("shared subscriptions", () => {
  test("[G1] have their members on several deployments, and each message goes to one", async () => {
    const [a, b, c] = await startCluster(3);
    const got = new Map<string, string[]>();
    const join = async (url: string, name: string): Promise<Client> => {
      const member = await connectDurable(url, name);
      got.set(name, []);
      collect(member, got.get(name)!);
      await member.subscribe("$share/g/work/+", { qos: 2 });
      return member;
    };
    await join(a.urlOf(0), "on-a");
    await join(b.urlOf(0), "on-b");
    const onC = await join(c.urlOf(0), "on-c");
    const publishers = await Promise.all([a, b, c].map((each) => connect(each.urlOf(1))));
    const publish = (round: string): Promise<unknown> =>
      Promise.all(
        publishers.flatMap((publisher, from) =>
          range(20).map((n) => publisher.publish(`work/${from}`, `${round} ${from}.${n}`, { qos: 2 })),
        ),
      );
    const all = (round: string): string[] => range(3).flatMap((from) => range(20).map((n) => `${round} ${from}.${n}`));
    const received = (): string[] => [...got.values()].flat().toSorted();

    await publish("first");
    await expect.poll(received).toEqual(all("first").toSorted());
    for (const payloads of got.values()) expect(payloads.length).toBeGreaterThan(0);
    // One that is away gets what was on its way to it when it is back, and no more.
    const before = got.get("on-c")!.length;
    await onC.leave();
    await publish("second");
    const again = await connectDurable(c.urlOf(0), "on-c");
    collect(again, got.get("on-c")!);
    await expect.poll(received).toEqual([...all("first"), ...all("second")].toSorted());
    expect(got.get("on-c")!.length).toBeLessThan(before + 20);
  });
});

describe("retained messages", () => {
  test("[G3] are everywhere when they are acknowledged, or at once behind a subscription; cleared ones nowhere", async () => {
    const all = await startCluster(3);
    for (const [from, deployment] of all.entries()) {
      const publisher = await connect(deployment.urlOf(0));
      for (const n of range(20))
        await publisher.publish(`state/${from}/${n}`, `${from}.${n}`, { qos: 1, retain: true });
      await publisher.publish(`state/${(from + 2) % 3}/0`, "", { qos: 1, retain: true });
    }
    // 0 clears of 2 what is not there yet, 1 of 0 and 2 of 1 what is.
    const expected = range(3).flatMap((from) => range(20).map((n) => `${from}.${n}`));
    const kept = expected.filter((payload) => payload !== "0.0" && payload !== "1.0").toSorted();
    for (const deployment of all) {
      await expect
        .poll(async () => {
          const client = await connect(deployment.urlOf(1));
          const payloads: string[] = [];
          client.mqtt.on("message", (_, payload) => payloads.push(payload.toString()));
          await client.subscribe("state/#", { qos: 1 });
          await new Promise((resolve) => setTimeout(resolve, 100));
          await client.leave();
          return payloads.toSorted();
        })
        .toEqual(kept);
    }
  });
});
