/**
 * `npm run bench:cost`: what a fleet costs a month on Cloudflare, from what is counted (counts.ts) and what is published
 * (prices.ts), beside what it costs elsewhere. An estimate: what it assumes is in `assumed` and in the fleets.
 *
 *   requests   frames that come in (a twentieth each), calls between objects, upgrades, alarms
 *   duration   an event keeps its object awake for a while; events that come at random at a rate r and each hold it for h
 *              seconds have it awake for 1 - exp(-r * h) of the time
 *   rows       written
 *
 * Messages between objects are a call each where they are few, and nearly none on a link that is busy: there they go over a
 * line (durable-objects/line.ts), which keeps both objects awake.
 */
import { limits } from "../mqtt/limits.ts";
import { awsIotCore, cloudflare, emqxServerless, hiveMqServerless } from "./prices.ts";

const monthSeconds = 30 * 24 * 3600;

const assumed = {
  /** Clients on one node: `node.max_connections`. */
  clientsPerNode: 10_000,
  /** Of a message: a payload of 200 bytes, its topic and the headers. */
  messageBytes: 300,
  /** A call between two objects of one location, there and back; with a write on the way. */
  callSeconds: 0.005,
  writeSeconds: 0.01,
  /** Handling a frame without a call: it is over before the clock moves. */
  frameSeconds: 0.001,
  /** Each client comes anew: a client in the field loses its connection now and then. */
  connectsPerDay: 1,
} as const;

/** What is counted; tests pin it (test/e2e/counts.test.ts, test/runtime/cost.test.ts). */
const counted = {
  connect: { frames: 1, calls: 1, upgrades: 1, rows: 4 },
  /** A message logged and deleted, and a checkpoint of what was sent and acknowledged. */
  durableRows: 2.02,
  /** How long something unwritten keeps a node awake. */
  writtenBehindSeconds: limits.checkpointDelayMs / 1000,
} as const;

/** A fleet for `clients` devices; rates are a second, all clients together. */
interface Load {
  readonly clients: number;
  readonly publishes: number;
  readonly deliveries: number;
  readonly pings: number;
  readonly isAcknowledged: boolean;
  readonly isDurable: boolean;
  /** Where each message goes: to how many nodes. */
  readonly nodesPerMessage: (nodes: number) => number;
}

const minute = 1 / 60;
const one = (): number => 1;

const fleets: readonly { readonly name: string; readonly load: (clients: number) => Load }[] = [
  {
    name: "idle, a PINGREQ a minute",
    load: (clients) => ({
      ...{ clients, publishes: 0, deliveries: 0, pings: clients * minute },
      ...{ isAcknowledged: false, isDurable: false, nodesPerMessage: one },
    }),
  },
  {
    // Their messages take the place of pings.
    name: "sensors, a message a minute, QoS 1, to one consumer",
    load: (clients) => ({
      ...{ clients, publishes: clients * minute, deliveries: clients * minute, pings: 0 },
      ...{ isAcknowledged: true, isDurable: false, nodesPerMessage: one },
    }),
  },
  {
    name: "dashboards, 1 message in 10 s to all, QoS 0, a PINGREQ a minute",
    load: (clients) => ({
      ...{ clients, publishes: 0.1, deliveries: 0.1 * clients, pings: clients * minute },
      ...{ isAcknowledged: false, isDurable: false, nodesPerMessage: (nodes) => nodes },
    }),
  },
  {
    name: "devices, 10 commands a day each, QoS 1, durable, a PINGREQ a minute",
    load: (clients) => ({
      ...{ clients, publishes: (clients * 10) / 86_400, deliveries: (clients * 10) / 86_400, pings: clients * minute },
      ...{ isAcknowledged: true, isDurable: true, nodesPerMessage: one },
    }),
  },
];

/** Dollars a month. */
interface Bill {
  readonly requests: number;
  readonly duration: number;
  readonly rows: number;
  readonly total: number;
}

function awake(rate: number, heldSeconds: number): number {
  return 1 - Math.exp(-rate * heldSeconds);
}

/** How likely so many messages in a row come soon enough one after another, at so many a second on one link. */
function inARow(count: number, rate: number): number {
  return awake(rate, limits.lineQuietMs / 1000) ** count;
}

/** Calls a second for so many messages a second on one link: of those in a row, the first ones and the line. */
function callsFor(rate: number): number {
  return rate * (1 - inARow(limits.lineCallsMin + 1, rate));
}

function billOf({ clients, publishes, deliveries, pings, isAcknowledged, isDurable, nodesPerMessage }: Load): Bill {
  const nodes = Math.ceil(clients / assumed.clientsPerNode);
  const connects = (clients * assumed.connectsPerDay) / 86_400;
  const acknowledgements = isAcknowledged ? deliveries : 0;
  const frames = publishes + acknowledgements + pings + connects * counted.connect.frames;
  const forwarded = publishes * nodesPerMessage(nodes);
  const calls = nodes * (callsFor(publishes / nodes) + callsFor(forwarded / nodes)) + connects * counted.connect.calls;
  const requestsPerSecond = frames / cloudflare.webSocketMessagesPerRequest + calls + connects;

  const callSeconds = assumed.callSeconds + (isDurable ? assumed.writeSeconds : 0);
  // A frame leaves something to be written behind, if it is only when its client was last heard of.
  const nodeAwake = awake(frames / nodes + forwarded / nodes, counted.writtenBehindSeconds);
  const linesClosed = (1 - inARow(limits.lineCallsMin, publishes / nodes)) ** nodes;
  const coreAwake = 1 - (1 - awake(publishes + connects, callSeconds)) * linesClosed;
  const gigabyteSeconds = (nodes * nodeAwake + coreAwake) * cloudflare.objectGigabytes * monthSeconds;

  const rowsPerSecond = connects * counted.connect.rows + (isDurable ? deliveries * counted.durableRows : 0);
  const requests =
    priceOf(requestsPerSecond * monthSeconds, cloudflare.requests) +
    priceOf(connects * counted.connect.upgrades * monthSeconds, cloudflare.workerRequests);
  const duration = priceOf(gigabyteSeconds, cloudflare.gigabyteSeconds);
  const rows = priceOf(rowsPerSecond * monthSeconds, cloudflare.rowsWritten);
  return { requests, duration, rows, total: cloudflare.planMonth + requests + duration + rows };
}

function priceOf(
  amount: number,
  { included, million }: { readonly included: number; readonly million: number },
): number {
  return (Math.max(0, amount - included) / 1e6) * million;
}

function awsOf({ clients, publishes, deliveries, isAcknowledged }: Load): number {
  const messages = (publishes + deliveries * (isAcknowledged ? 2 : 1)) * monthSeconds;
  let [price, from] = [((clients * monthSeconds) / 60 / 1e6) * awsIotCore.connectionMinutesMillion, 0];
  for (const { upTo, price: million } of awsIotCore.messagesMillion) {
    price += (Math.max(0, Math.min(messages, upTo) - from) / 1e6) * million;
    from = upTo;
  }
  return price;
}

function emqxOf({ clients, publishes, deliveries }: Load): number | undefined {
  const { connectionsMax, messagesPerSecondMax, gigabytes } = emqxServerless;
  if (clients > connectionsMax || publishes + deliveries > messagesPerSecondMax) return undefined;
  const traffic = ((publishes + deliveries) * monthSeconds * assumed.messageBytes) / 2 ** 30;
  const minutes = (clients * monthSeconds) / 60;
  return priceOf(minutes, emqxServerless.sessionMinutes) + Math.max(0, traffic - gigabytes.included) * gigabytes.each;
}

// ---- the table --------------------------------------------------------------------------------------------------------

function dollars(amount: number | undefined): string {
  return amount === undefined ? "-" : amount < 100 ? amount.toFixed(2) : String(Math.round(amount));
}

/** For a million messages, published or delivered. */
function perMillion(total: number, { publishes, deliveries }: Load): number | undefined {
  const messages = (publishes + deliveries) * monthSeconds;
  return messages === 0 ? undefined : (total / messages) * 1e6;
}

const headings = ["clients", "requests", "duration", "rows", "in all", "/1k clients", "/M messages", "AWS", "EMQX"];

for (const { name, load } of fleets) {
  console.log(`\n${name}`);
  console.log(headings.map((heading) => heading.padStart(12)).join(""));
  for (const clients of [1_000, 10_000, 100_000]) {
    const fleet = load(clients);
    const { requests, duration, rows, total } = billOf(fleet);
    const cells = [
      String(clients),
      ...[requests, duration, rows, total, (total / clients) * 1000, perMillion(total, fleet)].map(dollars),
      ...[awsOf(fleet), emqxOf(fleet)].map(dollars),
    ];
    console.log(cells.map((cell) => cell.padStart(12)).join(""));
  }
}
console.log(
  `\nDollars a month. "in all" has the plan's ${cloudflare.planMonth} and what it includes. AWS: IoT Core without rules. EMQX: Serverless` +
    `, to ${emqxServerless.connectionsMax} clients.\nHiveMQ Cloud is free to ${hiveMqServerless.connectionsMax} clients; beyond, its prices are not published where they can be cited.`,
);
