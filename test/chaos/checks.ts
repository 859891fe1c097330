// What must hold when all has drained, see chaos.test.ts.

import { setTimeout as sleep } from "node:timers/promises";
import mqtt from "mqtt";

import type { Mortal } from "./mortal.ts";
import type { Publisher, Sent } from "./publisher.ts";
import { where, type Subscriber } from "./subscriber.ts";
import { patienceMs, pinged, quietNodes, type World } from "./world.ts";

/** Acknowledged, and not at a session that was subscribed meanwhile. [G1] [G3] */
export function findLost(publishers: readonly Publisher[], subscribers: readonly Subscriber[]): string[] {
  return pairs(publishers, subscribers)
    .filter(({ subscriber }) => subscriber.options.group === undefined)
    .filter(({ publisher, sent, subscriber }) => {
      const isOwed = sent.acknowledgedAt !== undefined && subscriber.wasSubscribed(sent);
      return isOwed && subscriber.arrivalsOf(publisher.name, sent.number).length === 0;
    })
    .map(({ publisher, sent, subscriber }) => `${describe(publisher, sent)} at ${subscriber.name}`);
}

/** Sent and acknowledged while the session was not subscribed, and there all the same. [MQTT-3.10.4-2] */
export function findUnasked(publishers: readonly Publisher[], subscribers: readonly Subscriber[]): string[] {
  return pairs(publishers, subscribers)
    .filter(({ subscriber }) => subscriber.options.group === undefined)
    .filter(({ publisher, sent, subscriber }) => {
      return subscriber.wasUnsubscribed(sent) && subscriber.arrivalsOf(publisher.name, sent.number).length > 0;
    })
    .map(({ publisher, sent, subscriber }) => `${describe(publisher, sent)} at ${subscriber.name}`);
}

/** More than once at QoS 2 from end to end. [G1] */
export function findTwice(publishers: readonly Publisher[], subscribers: readonly Subscriber[]): string[] {
  return pairs(publishers, subscribers)
    .filter(({ publisher, subscriber }) => publisher.options.qos === 2 && subscriber.options.qos === 2)
    .filter(({ subscriber }) => subscriber.options.group === undefined)
    .flatMap(({ publisher, sent, subscriber }) => {
      const arrivals = subscriber.arrivalsOf(publisher.name, sent.number);
      if (arrivals.length < 2) return [];
      return [`${describe(publisher, sent)} at ${subscriber.name}: ${arrivals.map(where).join(" and ")}`];
    });
}

/** A first arrival behind a later message's, of those that were owed. A group's messages may go from one to another. [G2] */
export function findDisorder(publishers: readonly Publisher[], subscribers: readonly Subscriber[]): string[] {
  const listeners = subscribers.filter(({ options }) => options.group === undefined);
  return listeners.flatMap((subscriber) =>
    publishers
      .filter((publisher) => subscriber.hears(publisher))
      .flatMap((publisher) => {
        let latest = -1;
        return publisher.sent
          .filter((sent) => subscriber.wasSubscribed(sent))
          .flatMap((sent) => {
            const [arrival] = subscriber.arrivalsOf(publisher.name, sent.number);
            if (!arrival) return [];
            if (arrival.order < latest)
              return [`${describe(publisher, sent)} at ${subscriber.name}: ${where(arrival)}, behind a later one`];
            latest = arrival.order;
            return [];
          });
      }),
  );
}

/** Acknowledged, and at no member of the share group. [G1] */
export function findLostToGroup(publishers: readonly Publisher[], subscribers: readonly Subscriber[]): string[] {
  const members = subscribers.filter(({ options }) => options.group !== undefined);
  return publishers
    .filter((publisher) => members.some((member) => member.hears(publisher)))
    .flatMap((publisher) =>
      publisher.sent
        .filter(({ acknowledgedAt }) => acknowledgedAt !== undefined)
        .filter(({ number }) => members.every((member) => member.arrivalsOf(publisher.name, number).length === 0))
        .map((sent) => describe(publisher, sent)),
    );
}

/** At any of those who listen to wills all along. */
export function findMissingWills(mortals: readonly Mortal[], listeners: readonly Subscriber[]): string[] {
  return listeners.flatMap((listener) =>
    mortals.flatMap((mortal) =>
      mortal
        .missing((number) => listener.arrivalsOf(mortal.name, number).length)
        .map((what) => `${what} at ${listener.name}`),
    ),
  );
}

export function findSurplusWills(mortals: readonly Mortal[], listeners: readonly Subscriber[]): string[] {
  return listeners
    .filter(({ options }) => options.qos === 2)
    .flatMap((listener) =>
      mortals.flatMap((mortal) =>
        mortal
          .surplus((number) => listener.arrivalsOf(mortal.name, number).length)
          .map((what) => `${what} at ${listener.name}`),
      ),
    );
}

/** A new subscriber gets, of each topic, the message that was acknowledged last, or one that was refused since. */
export async function checkRetained(world: World, publishers: readonly Publisher[], version: 4 | 5): Promise<void> {
  const allowed = new Map<string, string[]>();
  for (const { sent } of publishers)
    for (const { topic, payload, acknowledgedAt } of sent)
      if (acknowledgedAt === undefined) allowed.set(topic, [...(allowed.get(topic) ?? [""]), payload]);
      else allowed.set(topic, [payload]);
  const name = `reader-v${version}`;
  const client = mqtt.connect(world.broker.urlOf(quietNodes[0]!), {
    protocolVersion: version,
    clientId: name,
    reconnectPeriod: 0,
  });
  client.on("error", (error) => world.trace(`${name} ${error.message}`));
  const got = new Map<string, string[]>();
  const wrong = (): string[] =>
    [...allowed]
      .filter(([topic, payloads]) => !payloads.includes(got.get(topic)?.join() ?? ""))
      .map(
        ([topic, payloads]) => `${name} got [${got.get(topic)?.join() ?? ""}] of ${topic}, not [${payloads.join()}]`,
      );
  client.on("message", (topic, payload) => {
    got.set(topic, [...(got.get(topic) ?? []), payload.toString()]);
    world.happened("delivered");
  });
  try {
    await Promise.race([
      new Promise((resolve) => client.once("connect", resolve)),
      sleep(patienceMs, undefined, { ref: false }),
    ]);
    await client.subscribeAsync("keep/#", { qos: version === 5 ? 2 : 1 });
    // What is missing then is a violation of its own.
    await world.settled(wrong);
    await pinged(client, name);
  } catch (error) {
    world.violate(`stuck: ${name}: ${String(error)}`);
  } finally {
    client.end(true);
  }
  for (const line of wrong()) world.violate(`retained: ${line}`);
}

interface Pair {
  readonly publisher: Publisher;
  readonly sent: Sent;
  readonly subscriber: Subscriber;
}

function pairs(publishers: readonly Publisher[], subscribers: readonly Subscriber[]): Pair[] {
  return publishers.flatMap((publisher) =>
    subscribers
      .filter((subscriber) => subscriber.hears(publisher))
      .flatMap((subscriber) => publisher.sent.map((sent) => ({ publisher, sent, subscriber }))),
  );
}

function describe({ name }: Publisher, { number, attempts, receivedAt, acknowledgedAt }: Sent): string {
  const tried = attempts.map(({ at, connection, node }) => `${at} ms c${connection} ${node}`).join(", ");
  const received = receivedAt === undefined ? "" : `; PUBREC ${receivedAt}`;
  return `${name} ${number} (sent ${tried}${received}; acknowledged ${acknowledgedAt})`;
}
