// The benchmark's load generator against a small broker that can be told to fail: what a broker does wrong must show.

import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { describe, expect, test } from "vitest";
import { WebSocketServer, type WebSocket } from "ws";

import { Histogram } from "../../bench/load/histogram.ts";
import { Load } from "../../bench/load/load.ts";
import type { Faults, LoadJob, Traffic } from "../../bench/load/spec.ts";
import { random as seededRandom } from "../support/random.ts";

/** What the broker makes of the messages that it is to deliver: the one that it has, and those that it held back. */
type Fault = (packet: Buffer, held: Buffer[]) => readonly Buffer[];

const faultless: Faults = { lost: 0, duplicated: 0, reordered: 0, corrupt: 0, cut: 0 };

describe.concurrent("a load of one pair", () => {
  const loads: { readonly name: string; readonly fault: Fault; readonly expected: Partial<Faults> }[] = [
    { name: "delivered as it was sent", fault: (packet) => [packet], expected: {} },
    { name: "with a message lost", fault: () => [], expected: { lost: 1 } },
    { name: "with a message delivered twice", fault: (packet) => [packet, packet], expected: { duplicated: 1 } },
    {
      name: "with two messages in the wrong order",
      fault: (packet, held) => (held.length === 0 ? (held.push(packet), []) : [packet, held[0]!]),
      expected: { reordered: 1 },
    },
    ...[
      ["its topic", 4],
      ["its publisher", 16],
      ["its number", 20],
      ["its content", 40],
      ["its last byte", -1],
    ].map(([what, at]) => ({
      name: `with a message that is changed in ${what}`,
      fault: (packet: Buffer) => [changed(packet, at as number)],
      expected: { lost: 1, corrupt: 1 },
    })),
    {
      name: "with a message that is cut short",
      fault: (packet) => [Buffer.concat([Buffer.of(0x30, packet[1]! - 1), packet.subarray(2, -1)])],
      expected: { lost: 1, corrupt: 1 },
    },
  ];

  for (const { name, fault, expected } of loads) {
    test(`${name} has ${JSON.stringify(expected)} as its faults`, async () => {
      expect(await faultsOf(1, fault)).toEqual({ ...faultless, ...expected });
    });
  }
});

test("a message that reaches the subscriber of another pair is corrupt there and lost where it belongs", async () => {
  const toTheOther: Fault = (packet) => {
    const other = Buffer.from(packet);
    const at = other.indexOf("pairs/") + "pairs/".length;
    other[at] = other[at]! ^ 1; // pairs/0/t and pairs/1/t
    return [other];
  };
  expect(await faultsOf(2, toTheOther)).toEqual({ ...faultless, lost: 1, corrupt: 1 });
});

test("a histogram's quantiles are those of the sorted values, to 1.6 %", () => {
  const random = seededRandom(1);
  const histogram = new Histogram();
  const values = Array.from({ length: 5000 }, () => Math.floor(2 ** (random() * 26)));
  for (const value of values) histogram.add(value);
  values.sort((a, b) => a - b);
  for (const fraction of [0.01, 0.5, 0.9, 0.99, 1]) {
    const exact = values[Math.ceil(values.length * fraction) - 1]!;
    const found = histogram.quantile(fraction)!;
    expect(found).toBeLessThanOrEqual(exact);
    expect(found).toBeGreaterThan(exact * 0.984 - 1);
  }
});

/** 20 messages in each pair; `fault` is asked for the tenth of all, and for the next if it held that one back. */
async function faultsOf(pairs: number, fault: Fault): Promise<Faults> {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
  await once(server, "listening");
  const subscribers = new Map<string, WebSocket>();
  const held: Buffer[] = [];
  let deliveries = 0;
  const deliver = (packet: Buffer): void => {
    const topic = packet.toString("latin1", 4, 4 + packet.readUInt16BE(2));
    const [first] = subscribers.values();
    (subscribers.get(topic) ?? first)?.send(packet);
  };
  server.on("connection", (socket) => {
    socket.on("message", (packet: Buffer) => {
      switch (packet[0]! >> 4) {
        case 1:
          socket.send(Buffer.of(0x20, 2, 0, 0));
          break;
        case 3: {
          deliveries++;
          const isFaulty = deliveries === 10 || (deliveries === 11 && held.length > 0);
          for (const each of isFaulty ? fault(packet, held) : [packet]) deliver(each);
          break;
        }
        case 8:
          subscribers.set(packet.toString("latin1", 6, 6 + packet.readUInt16BE(4)), socket);
          socket.send(Buffer.of(0x90, 3, packet[2]!, packet[3]!, 0));
          break;
      }
    });
  });
  try {
    const { port } = server.address() as AddressInfo;
    const traffic: Traffic = { qos: 0, size: 64, burst: 1, window: 4 };
    const job: LoadJob = {
      spec: { shape: { kind: "pairs", pairs }, traffic, nodes: 1 },
      urls: [`ws://127.0.0.1:${port}/`],
      pid: process.pid,
      warmUpSeconds: 0,
      seconds: 0,
      // What is under way when the machine stands still for less is not lost.
      stallMs: 5000,
    };
    const load = new Load(job);
    for (let pair = 0; pair < pairs; pair++) {
      const topic = `pairs/${pair}/t`;
      const { client, receiver } = await load.connectOne(`s${pair}`);
      await client.subscribe([topic], 0);
      const publishing = await load.connectOne(`p${pair}`);
      receiver.follow(load.publisher(publishing.client, [topic], { limit: 20 }));
    }
    load.publish();
    await load.allDelivered();
    await load.close();
    return load.faults;
  } finally {
    server.close();
  }
}

function changed(packet: Buffer, at: number): Buffer {
  const copy = Buffer.from(packet);
  const index = at < 0 ? copy.length + at : at;
  copy[index] = copy[index]! ^ 1;
  return copy;
}
