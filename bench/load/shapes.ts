// The shapes of load. Each connects its clients, warms the broker up, measures, and leaves; the figures of each phase have
// a name, "" where there is one phase.

import { setTimeout as sleep } from "node:timers/promises";

import { Histogram } from "./histogram.ts";
import { figures, inParallel, type Load, type Subscriber } from "./load.ts";
import { residentKilobytesOf } from "./processes.ts";
import type { Figures, Shape } from "./spec.ts";

type Phases = Record<string, Figures>;

/** SUBSCRIBE packets under way at once, and filters in one. */
const subscribingMax = 50;
/** Warming turns of a shape that fills and drains. */
const warmUpsMax = 40;

export function runShape(load: Load, shape: Shape): Promise<Phases> {
  switch (shape.kind) {
    case "connect":
      return connect(load, shape.clients, shape.atOnce);
    case "idle":
      return idle(load, shape.clients);
    case "pairs":
      return pairs(load, shape.pairs);
    case "fan-out":
      return fanOut(load, shape.subscribers);
    case "fan-in":
      return fanIn(load, shape.publishers);
    case "shared":
      return shared(load, shape.publishers, shape.members);
    case "wildcards":
      return wildcards(load, shape.filters, shape.subscribers);
    case "retained":
      return retained(load, shape.messages);
    case "queue":
      return queue(load, shape.messages);
  }
}

/** Subscriber `index` is on one node, its publisher on the next. */
function placing(load: Load): { subscriber: (index: number) => number; publisher: (index: number) => number } {
  const { nodes } = load.job.spec;
  return { subscriber: (index) => index % nodes, publisher: (index) => (index + 1) % nodes };
}

/** A share of the clients first, so that neither the broker's code nor its objects are cold. */
async function connect(load: Load, clients: number, atOnce: number): Promise<Phases> {
  await load.connect("warm", Math.ceil(clients / 4), { atOnce });
  const durations = new Histogram();
  const from = load.read();
  await load.connect("c", clients, { atOnce, connected: (_, ms) => durations.add(Math.round(ms * 1000)) });
  const to = load.read();
  const latency = { p50Us: durations.quantile(0.5), p99Us: durations.quantile(0.99) };
  return { "": { ...figures(from, to, clients), ...latency, ...load.memory() } };
}

async function idle(load: Load, clients: number): Promise<Phases> {
  const settleMs = load.job.seconds * 1000;
  await load.connect("warm", Math.ceil(clients / 50));
  await sleep(settleMs);
  const before = residentKilobytesOf(load.job.pid);
  await load.connect("i", clients);
  await sleep(settleMs);
  const after = residentKilobytesOf(load.job.pid);
  const kilobytesPerConnection = before === undefined || after === undefined ? undefined : (after - before) / clients;
  return { "": { kilobytesPerConnection, ...load.memory() } };
}

async function pairs(load: Load, count: number): Promise<Phases> {
  const { qos } = load.job.spec.traffic;
  const { subscriber, publisher } = placing(load);
  const subscribers = await load.connect("s", count, { nodeOf: subscriber });
  const clients = await load.connect("p", count, { nodeOf: publisher });
  await inParallel(count, subscribingMax, async (index) => {
    const topic = `pairs/${index}/t`;
    const { client, receiver } = subscribers[index]!;
    await client.subscribe([topic], qos);
    receiver.follow(load.publisher(clients[index]!.client, [topic]));
  });
  return { "": await load.steady() };
}

async function fanOut(load: Load, count: number): Promise<Phases> {
  const { qos } = load.job.spec.traffic;
  const { subscriber, publisher } = placing(load);
  const subscribers = await load.connect("s", count, { nodeOf: subscriber });
  const { client } = await load.connectOne("p", { node: publisher(0) });
  await inParallel(count, subscribingMax, (index) => subscribers[index]!.client.subscribe(["out/t"], qos));
  const from = load.publisher(client, ["out/t"], { copies: count });
  for (const { receiver } of subscribers) receiver.follow(from);
  return { "": await load.steady() };
}

async function fanIn(load: Load, count: number): Promise<Phases> {
  const { subscriber, publisher } = placing(load);
  const { client, receiver } = await load.connectOne("s", { node: subscriber(0) });
  const clients = await load.connect("p", count, { nodeOf: publisher });
  await client.subscribe(["in/+"], load.job.spec.traffic.qos);
  for (const [index, { client }] of clients.entries()) receiver.follow(load.publisher(client, [`in/${index}`]));
  return { "": await load.steady() };
}

async function shared(load: Load, count: number, members: number): Promise<Phases> {
  const group = await load.connect("s", members);
  const clients = await load.connect("p", count);
  for (const { client } of group) await client.subscribe(["$share/group/shared/#"], load.job.spec.traffic.qos);
  for (const [index, { client }] of clients.entries()) {
    const publisher = load.publisher(client, [`shared/${index}`]);
    for (const { receiver } of group) receiver.follow(publisher);
  }
  return { "": await load.steady() };
}

/**
 * Filter `i` is w/i/+/t, w/+/i/# or w/i/#, as i mod 3 says. A topic w/a/b/t matches that of `a`, unless it is of the
 * second kind, and that of `b` if it is: topics are chosen so that both match, for two different subscribers.
 */
async function wildcards(load: Load, filters: number, count: number): Promise<Phases> {
  const { qos } = load.job.spec.traffic;
  const filterOf = (i: number): string => [`w/${i}/+/t`, `w/+/${i}/#`, `w/${i}/#`][i % 3]!;
  const subscribers = await load.connect("s", count);
  await inParallel(count, 20, async (index) => {
    const own = Array.from({ length: Math.ceil((filters - index) / count) }, (_, n) => filterOf(index + n * count));
    for (let at = 0; at < own.length; at += subscribingMax)
      await subscribers[index]!.client.subscribe(own.slice(at, at + subscribingMax), qos);
  });
  const random = lcg(12345);
  const topics: string[] = [];
  while (topics.length < 4096) {
    const a = random(filters);
    const b = random(filters);
    if (a % 3 !== 1 && b % 3 === 1 && a % count !== b % count) topics.push(`w/${a}/${b}/t`);
  }
  const { client } = await load.connectOne("p");
  const publisher = load.publisher(client, topics, { copies: 2 });
  for (const { receiver } of subscribers) receiver.follow(publisher);
  return { "": await load.steady() };
}

async function retained(load: Load, messages: number): Promise<Phases> {
  const drain = async (topic: string, count: number): Promise<Phases> => {
    const receiver = load.receiver({ order: "any", retain: true });
    const { client } = await load.connectOne(`${topic}-s`, { receiver });
    const publishing = await load.connectOne(`${topic}-p`);
    const topics = Array.from({ length: count }, (_, index) => `${topic}/${index % 100}/${index}`);
    return inAndDrain(load, publishing, {
      topics,
      retain: true,
      count,
      receiver,
      drain: () => client.subscribe([`${topic}/#`], 0),
    });
  };
  await warmUp(load, messages, drain);
  return drain("retained", messages);
}

async function queue(load: Load, messages: number): Promise<Phases> {
  const drain = async (topic: string, count: number): Promise<Phases> => {
    const receiver = load.receiver();
    const clientId = `${topic}-s`;
    const { client } = await load.connectOne(clientId, { session: "kept", receiver });
    await client.subscribe([topic], 1);
    await load.close([client]);
    const publishing = await load.connectOne(`${topic}-p`);
    return inAndDrain(load, publishing, {
      topics: [topic],
      retain: false,
      count,
      receiver,
      drain: async () => void (await load.connectOne(clientId, { session: "kept", receiver })),
    });
  };
  await warmUp(load, messages, drain);
  return drain("queue", messages);
}

/** The same with fewer messages, again and again, until it is warm; what is retained of that stays. */
async function warmUp(
  load: Load,
  messages: number,
  drain: (topic: string, count: number) => Promise<unknown>,
): Promise<void> {
  const until = Date.now() + load.job.warmUpSeconds * 1000;
  for (let turn = 0; turn < warmUpsMax && (turn === 0 || Date.now() < until); turn++)
    await drain(`warm${turn}`, Math.ceil(messages / 10));
}

/** Publishes all, waits for the acknowledgements, then has `drain` bring them, and waits for the last. */
async function inAndDrain(
  load: Load,
  { client }: Subscriber,
  options: {
    topics: readonly string[];
    retain: boolean;
    count: number;
    receiver: Subscriber["receiver"];
    drain: () => Promise<void>;
  },
): Promise<Phases> {
  const { topics, retain, count, receiver, drain } = options;
  const { burst } = load.job.spec.traffic;
  const limit = Math.ceil(count / burst) * burst;
  const publisher = load.publisher(client, topics, { retain, limit, waitsFor: "acknowledgement" });
  receiver.follow(publisher);
  const from = load.read();
  load.publish();
  await load.until(() => publisher.acknowledged === limit);
  const between = load.read();
  await drain();
  await load.until(() => publisher.underWay === 0);
  const to = load.read();
  await load.allDelivered();
  return { in: { ...figures(from, between, limit), ...load.memory() }, drain: figures(between, to, limit) };
}

/** A generator of numbers below `bound`, the same ones each time. */
function lcg(seed: number): (bound: number) => number {
  let state = seed;
  return (bound) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 4) % bound; // Its lowest bits have short periods.
  };
}
