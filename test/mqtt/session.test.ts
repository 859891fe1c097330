import { describe, expect, test } from "vitest";
import { limits } from "../../mqtt/limits.ts";
import { expiryNever, Session, type Delivery, type Outgoing, type Will, type Receipt } from "../../mqtt/session.ts";
import { random } from "../support/random.ts";
import { delivery, Disk, now, plenty, World } from "./session-world.ts";

function will(delaySeconds: number): Will {
  const nothing = new Uint8Array(0);
  return {
    topic: "w",
    payload: nothing,
    qos: 0,
    retain: false,
    properties: nothing,
    messageExpiryInterval: undefined,
    delaySeconds,
  };
}

function durable(): Session {
  const session = new Session(1, "c");
  session.expiryInterval = expiryNever;
  return session;
}

/** Everything that may leave now, as "1 a" (packet id and message), "1 a dup" and "1 pubrel". */
function sent(session: Session, load: (seq: number) => Delivery | undefined = () => undefined, at = now): string[] {
  return [...outgoing(session, load, at)].map((each) =>
    each.kind === "pubrel"
      ? `${each.packetId} pubrel`
      : `${each.packetId} ${each.delivery.message.id}${each.dup ? " dup" : ""}`,
  );
}

function* outgoing(
  session: Session,
  load: (seq: number) => Delivery | undefined,
  at: number,
): Generator<Outgoing, undefined> {
  for (let next = session.nextToSend(at, load); next; next = session.nextToSend(at, load)) yield next;
}

const some = Uint8Array.of(1);

describe("sending", () => {
  test("nothing is sent without a connection, and all of it with one", () => {
    const session = durable();
    session.enqueue(delivery("a"), plenty);
    expect(sent(session)).toEqual([]);
    session.attach(10);
    expect(sent(session)).toEqual(["1 a"]);
    expect(sent(session)).toEqual([]);
  });

  test("[MQTT-3.3.4-9] no more than the Receive Maximum is unacknowledged; each end of an exchange lets one more out", () => {
    const session = durable();
    for (const id of ["a", "b", "c", "d", "e"]) session.enqueue(delivery(id, { qos: id < "c" ? 1 : 2 }), plenty);
    session.attach(2);
    expect(sent(session)).toEqual(["1 a", "2 b"]);
    session.handlePuback(2);
    expect(sent(session)).toEqual(["3 c"]);
    session.handlePuback(1);
    expect(sent(session)).toEqual(["4 d"]);
    session.handlePubrec(3, 0);
    expect(sent(session)).toEqual([]);
    session.handlePubcomp(3);
    expect(sent(session)).toEqual(["5 e"]);
    session.handlePubrec(4, 0x80); // a refusal ends the exchange
    session.enqueue(delivery("f"), plenty);
    expect(sent(session)).toEqual(["6 f"]);
  });

  test("[MQTT-4.3.2-1] [MQTT-2.2.1-4] a packet id is not given out again while it is in use, past 65535 too", () => {
    const session = durable();
    session.restore(
      {
        nextSeq: 3,
        sentUpTo: 2,
        nextPacketId: 65_534,
        inflight: [],
        receiving: [],
        received: [],
        retainedReads: [],
        unsent: [],
      },
      [],
    );
    session.attach(65_535);
    for (const id of ["a", "b", "c", "d"]) session.enqueue(delivery(id), plenty);
    expect(sent(session)).toEqual(["65534 a", "65535 b", "1 c", "2 d"]);
    const again = durable();
    again.restore(
      {
        nextSeq: 3,
        sentUpTo: 2,
        nextPacketId: 65_535,
        inflight: [
          { packetId: 1, seq: 1, state: "pubrel" },
          { packetId: 65_535, seq: 2, state: "pubrel" },
        ],
        receiving: [],
        received: [],
        retainedReads: [],
        unsent: [],
      },
      [],
    );
    again.attach(10);
    again.enqueue(delivery("e"), plenty);
    expect(sent(again)).toEqual(["1 pubrel", "65535 pubrel", "2 e"]);
  });

  test("every packet id can be in use at once", () => {
    const session = durable();
    session.attach(65_535);
    for (let count = 0; count < 65_536; count++) session.enqueue(delivery("m"), 100_000);
    const ids = new Set([...outgoing(session, () => undefined, now)].map((each) => each.packetId));
    expect(ids.size).toBe(65_535);
    expect([Math.min(...ids), Math.max(...ids)]).toEqual([1, 65_535]);
    session.handlePuback(4711);
    expect(sent(session)).toEqual(["4711 m"]);
  });

  test("[MQTT-3.3.2-5] what has expired in the queue is not sent", () => {
    const session = durable();
    session.enqueue(delivery("a", { expiresAt: now + 1000 }), plenty);
    session.enqueue(delivery("b", { expiresAt: now + 1001, qos: 2 }), plenty);
    session.attach(10);
    expect(sent(session, undefined, now + 1000)).toEqual(["1 b"]);
    expect(session.queued).toBe(0);
  });

  test("[MQTT-3.1.2-25] what the client cannot take counts as delivered", () => {
    const session = durable();
    session.attach(1);
    session.enqueue(delivery("large"), plenty);
    session.enqueue(delivery("small"), plenty);
    expect(sent(session)).toEqual(["1 large"]);
    session.discard(1);
    expect(sent(session)).toEqual(["2 small"]);
  });

  test("an acknowledgement of an unknown id changes nothing", () => {
    const session = durable();
    session.attach(1);
    session.enqueue(delivery("a"), plenty);
    session.enqueue(delivery("b"), plenty);
    expect(sent(session)).toEqual(["1 a"]);
    session.handlePuback(7);
    session.handlePubrec(7, 0);
    session.handlePubrec(7, 0x80);
    session.handlePubcomp(7);
    session.discard(7);
    expect(sent(session)).toEqual([]);
    expect(session.inflightCount).toBe(1);
  });

  test("[MQTT-4.3.3-4] a repeated PUBREC asks for PUBREL again, and does not end the exchange", () => {
    const session = durable();
    session.attach(1);
    session.enqueue(delivery("a", { qos: 2 }), plenty);
    expect(sent(session)).toEqual(["1 a"]);
    session.handlePubrec(1, 0);
    session.handlePubrec(1, 0);
    expect(session.inflightCount).toBe(1);
    session.handlePubcomp(1);
    expect(session.inflightCount).toBe(0);
  });
});

describe("a new connection", () => {
  test("[MQTT-4.4.0-1] [MQTT-3.3.1-1] [MQTT-4.6.0-1] all that is unacknowledged comes again, in order, marked DUP, with its packet ids", () => {
    const session = durable();
    session.attach(4);
    for (const id of ["a", "b", "c", "d", "e"]) session.enqueue(delivery(id, { qos: id === "c" ? 2 : 1 }), plenty);
    expect(sent(session)).toEqual(["1 a", "2 b", "3 c", "4 d"]);
    session.handlePuback(2);
    session.detach(now);
    expect(sent(session)).toEqual([]);
    session.attach(10);
    expect(sent(session)).toEqual(["1 a dup", "3 c dup", "4 d dup", "5 e"]);
    expect(sent(session)).toEqual([]);
  });

  test("[MQTT-4.3.3-6] after PUBREC the message is not sent again, PUBREL is", () => {
    const session = durable();
    session.attach(4);
    session.enqueue(delivery("a", { qos: 2 }), plenty);
    expect(sent(session)).toEqual(["1 a"]);
    session.handlePubrec(1, 0);
    session.detach(now);
    session.attach(4);
    expect(sent(session)).toEqual(["1 pubrel"]);
    session.detach(now);
    session.attach(4);
    expect(sent(session)).toEqual(["1 pubrel"]);
    session.handlePubcomp(1);
    session.detach(now);
    session.attach(4);
    expect(sent(session)).toEqual([]);
  });

  test("[MQTT-3.3.4-9] a smaller Receive Maximum holds for what is sent again, before anything new", () => {
    const session = durable();
    session.attach(3);
    for (const id of ["a", "b", "c", "d"]) session.enqueue(delivery(id), plenty);
    expect(sent(session)).toEqual(["1 a", "2 b", "3 c"]);
    session.detach(now);
    session.attach(1);
    expect(sent(session)).toEqual(["1 a dup"]);
    session.handlePuback(1);
    expect(sent(session)).toEqual(["2 b dup"]);
    session.handlePuback(2);
    expect(sent(session)).toEqual(["3 c dup"]);
    session.handlePuback(3);
    expect(sent(session)).toEqual(["4 d"]);
  });

  test("[MQTT-3.3.4-10] PUBREL does not wait for the Receive Maximum", () => {
    const session = durable();
    session.attach(3);
    for (const id of ["a", "b", "c"]) session.enqueue(delivery(id, { qos: 2 }), plenty);
    expect(sent(session)).toEqual(["1 a", "2 b", "3 c"]);
    session.handlePubrec(2, 0);
    session.handlePubrec(3, 0);
    session.detach(now);
    session.attach(1);
    expect(sent(session).sort()).toEqual(["1 a dup", "2 pubrel", "3 pubrel"]);
  });

  test("an acknowledgement that comes before its message was sent again ends the exchange", () => {
    const session = durable();
    session.attach(2);
    for (const id of ["a", "b", "c"]) session.enqueue(delivery(id), plenty);
    expect(sent(session)).toEqual(["1 a", "2 b"]);
    session.detach(now);
    session.attach(1);
    expect(sent(session)).toEqual(["1 a dup"]);
    session.handlePuback(2);
    session.handlePuback(1);
    expect(sent(session)).toEqual(["3 c"]);
  });

  test("[MQTT-4.4.0-1] what was sent is sent again, also when it has expired since", () => {
    const session = durable();
    session.attach(3);
    session.enqueue(delivery("a", { expiresAt: now + 1000 }), plenty);
    session.enqueue(delivery("b", { expiresAt: now + 1000, qos: 2 }), plenty);
    session.enqueue(delivery("c"), plenty);
    expect(sent(session)).toEqual(["1 a", "2 b", "3 c"]);
    session.detach(now);
    session.attach(1);
    expect(sent(session, undefined, now + 1000)).toEqual(["1 a dup"]);
    session.handlePuback(1);
    expect(sent(session, undefined, now + 1000)).toEqual(["2 b dup"]);
    session.handlePubrec(2, 0);
    session.handlePubcomp(2);
    expect(sent(session, undefined, now + 1000)).toEqual(["3 c dup"]);
  });
});

describe("the queue's bounds [G6]", () => {
  test("the oldest waiting message makes room and its number is told", () => {
    const session = durable();
    expect(session.enqueue(delivery("a"), 2)).toEqual({ seq: 1, dropped: [] });
    expect(session.enqueue(delivery("b"), 2)).toEqual({ seq: 2, dropped: [] });
    expect(session.enqueue(delivery("c"), 2)).toEqual({ seq: 3, dropped: [1] });
    expect(session.queued).toBe(2);
    session.attach(10);
    expect(sent(session)).toEqual(["1 b", "2 c"]);
  });

  test("what has been sent is not dropped", () => {
    const session = durable();
    session.attach(1);
    session.enqueue(delivery("a"), 1);
    expect(sent(session)).toEqual(["1 a"]);
    expect(session.enqueue(delivery("b"), 1).dropped).toEqual([]);
    expect(session.enqueue(delivery("c"), 1).dropped).toEqual([2]);
    session.detach(now);
    session.attach(2);
    expect(sent(session)).toEqual(["1 a dup", "2 c"]);
  });

  test("a smaller bound drops as many as needed", () => {
    const session = durable();
    for (const id of ["a", "b", "c", "d"]) session.enqueue(delivery(id), plenty);
    expect(session.enqueue(delivery("e"), 2).dropped).toEqual([1, 2, 3]);
  });

  test("bytes are bounded as messages are, and what left the queue is not counted", () => {
    const session = durable();
    const third = Math.floor(limits.mqueueBytesMax / 3);
    for (const id of ["a", "b"]) expect(session.enqueue(delivery(id, { bytes: third }), plenty).dropped).toEqual([]);
    expect(session.enqueue(delivery("c", { bytes: third }), plenty).dropped).toEqual([1]);
    session.attach(1);
    expect(sent(session)).toEqual(["1 b"]);
    expect(session.enqueue(delivery("d", { bytes: third }), plenty).dropped).toEqual([]);
    expect(session.enqueue(delivery("e", { bytes: limits.mqueueBytesMax }), plenty).dropped).toEqual([3, 4]);
  });

  test("a message larger than the bound is alone, not refused", () => {
    const session = durable();
    session.enqueue(delivery("a", { bytes: limits.mqueueBytesMax + 1 }), plenty);
    session.attach(1);
    expect(sent(session)).toEqual(["1 a"]);
  });

  test.each([
    ["messages", 1, limits.mqueueLoadedMax],
    ["bytes", 100_000, Math.floor(limits.mqueueLoadedBytesMax / 100_100)],
  ])("of a long queue on disk only some is held in memory, by %s, and all of it is sent", (_, bytes, held) => {
    const session = durable();
    const disk = new Disk();
    session.attach(1);
    const ids = Array.from({ length: held + 20 }, (_, index) => `m${index}`);
    disk.enqueue(session, delivery("first"));
    const loaded: number[] = [];
    const load = (seq: number) => {
      loaded.push(seq);
      return disk.load(seq);
    };
    const all = sent(session, load);
    for (const id of ids) disk.enqueue(session, delivery(id, { bytes }));
    for (let packetId = 1; session.inflightCount > 0; packetId++) {
      session.handlePuback(packetId);
      all.push(...sent(session, load));
    }
    expect(all).toEqual(["first", ...ids].map((id, index) => `${index + 1} ${id}`));
    expect(loaded).toHaveLength(20);
  });

  test("while the client is away nothing that is on disk is held in memory", () => {
    const session = durable();
    const disk = new Disk();
    session.attach(1);
    for (const id of ["a", "b"]) disk.enqueue(session, delivery(id));
    session.detach(now);
    disk.enqueue(session, delivery("c"));
    session.enqueue(delivery("d"), plenty); // not on disk
    session.attach(plenty);
    const loaded: number[] = [];
    const load = (seq: number) => {
      loaded.push(seq);
      return disk.load(seq);
    };
    expect(sent(session, load)).toEqual(["1 a", "2 b", "3 c", "4 d"]);
    expect(loaded).toEqual([1, 2, 3]);
  });

  test("a message that is no longer on disk is passed over", () => {
    const session = durable();
    const disk = new Disk();
    for (let count = 0; count <= limits.mqueueLoadedMax + 1; count++) disk.enqueue(session, delivery(`m${count}`));
    const last = limits.mqueueLoadedMax + 2;
    disk.rows.delete(last - 1);
    session.attach(plenty);
    const left = sent(session, disk.load);
    expect(left).toHaveLength(last - 1);
    expect(left.at(-1)).toBe(`${last - 1} m${last - 1}`);
  });
});

describe("disk", () => {
  test("[G1] an old checkpoint and newer rows lose nothing: what was sent since comes again", () => {
    const session = durable();
    const disk = new Disk();
    session.attach(2);
    for (const id of ["a", "b", "c", "d"]) disk.enqueue(session, delivery(id));
    expect(sent(session, disk.load)).toEqual(["1 a", "2 b"]);
    disk.save(session);
    session.handlePuback(1);
    expect(sent(session, disk.load)).toEqual(["3 c"]);
    disk.enqueue(session, delivery("e"));
    const restored = disk.restore();
    expect(restored.queued).toBe(3);
    restored.attach(10);
    expect(sent(restored, disk.load)).toEqual(["1 a dup", "2 b dup", "3 c", "4 d", "5 e"]);
  });

  test("rows below the lowest number needed may go; a session being adopted needs them all", () => {
    const session = durable();
    const disk = new Disk();
    expect(session.lowestSeq).toBe(1);
    session.attach(2);
    for (const id of ["a", "b", "c"]) disk.enqueue(session, delivery(id));
    expect(sent(session)).toEqual(["1 a", "2 b"]);
    session.handlePuback(2);
    expect(session.lowestSeq).toBe(1);
    expect(sent(session)).toEqual(["3 c"]);
    session.handlePuback(1);
    expect(session.lowestSeq).toBe(3);
    session.handlePuback(3);
    expect(session.lowestSeq).toBe(4);
    session.adopting = true;
    expect(session.lowestSeq).toBe(0);
  });

  test("what is only in memory is written once: the window, then the queue", () => {
    const session = new Session(1, "c");
    session.attach(1);
    session.enqueue(delivery("a"), plenty);
    session.enqueue(delivery("b"), plenty);
    expect(sent(session)).toEqual(["1 a"]);
    expect([...session.unwritten()].map(({ seq }) => seq)).toEqual([1, 2]);
    expect([...session.unwritten()]).toEqual([]);
    session.enqueue(delivery("c"), plenty);
    expect([...session.unwritten()].map(({ seq }) => seq)).toEqual([3]);
  });

  test("[G1] QoS 2 states are urgent where the session outlives its connection, and only there", () => {
    for (const expiryInterval of [0, 60]) {
      const session = new Session(1, "c");
      session.expiryInterval = expiryInterval;
      const isUrgent = () => {
        const { urgent } = session;
        session.urgent = false;
        return urgent;
      };
      session.attach(2);
      session.enqueue(delivery("a", { qos: 2 }), plenty);
      session.enqueue(delivery("b"), plenty);
      expect(sent(session)).toEqual(["1 a", "2 b"]);
      expect(isUrgent()).toBe(expiryInterval > 0);
      session.handlePuback(2);
      expect(isUrgent()).toBe(false);
      session.handlePubrec(1, 0);
      expect(isUrgent()).toBe(expiryInterval > 0);
      const received = session.receive({ packetId: 9, payload: some }, "m9", 10);
      if (received === "full") throw new Error("full");
      session.handleReceived(received.receipt, 0);
      expect(isUrgent()).toBe(expiryInterval > 0);
      session.handlePubrel(9);
      expect(isUrgent()).toBe(expiryInterval > 0);
    }
  });

  test("every change makes the session dirty", () => {
    const session = durable();
    const changes: [string, () => void][] = [
      ["attach", () => session.attach(1)],
      ["enqueue", () => session.enqueue(delivery("a"), plenty)],
      ["send", () => sent(session)],
      ["puback", () => session.handlePuback(1)],
      ["detach", () => session.detach(now)],
    ];
    for (const [name, change] of changes) {
      session.dirty = false;
      const { revision } = session;
      change();
      expect({ name, dirty: session.dirty, risen: session.revision > revision }).toEqual({
        name,
        dirty: true,
        risen: true,
      });
    }
  });

  test("retained reads and incoming packet ids survive", () => {
    const session = durable();
    const disk = new Disk();
    const subscription = {
      filter: "a/#",
      qos: 1 as const,
      noLocal: false,
      retainAsPublished: false,
      retainHandling: 0 as const,
      subscriptionId: 7,
    };
    session.retainedReads.push({ subscription, after: "a/b" });
    const received = session.receive({ packetId: 300, payload: some }, "m300", 10);
    if (received === "full") throw new Error("full");
    session.handleReceived(received.receipt, 0);
    disk.save(session);
    const restored = disk.restore();
    expect(restored.retainedReads).toEqual([{ subscription, after: "a/b" }]);
    expect([...restored.receivedIds()]).toEqual([300]);
    expect(restored.receive({ packetId: 300, payload: some }, "other", 10)).toMatchObject({ isNew: false });
  });

  test("[MQTT-4.4.0-1] after sleep nothing is sent again on the connection that is still open", () => {
    const session = durable();
    const disk = new Disk();
    session.attach(3);
    for (const id of ["a", "b", "c", "d"]) disk.enqueue(session, delivery(id, { qos: 2 }));
    expect(sent(session)).toEqual(["1 a", "2 b", "3 c"]);
    session.handlePubrec(1, 0);
    disk.save(session);
    const woken = disk.restore();
    woken.connected = true;
    woken.reattach(3);
    expect(sent(woken, disk.load)).toEqual([]);
    woken.handlePubcomp(1);
    expect(sent(woken, disk.load)).toEqual(["4 d"]);
    woken.handlePubrec(2, 0);
    woken.handlePubcomp(2);
    woken.handlePubrec(3, 0x80);
    expect(sent(woken, disk.load)).toEqual([]);
    expect(woken.inflightCount).toBe(1);
  });

  test("[MQTT-4.4.0-1] what a small Receive Maximum held back before sleep is sent after it", () => {
    const session = durable();
    const disk = new Disk();
    session.attach(3);
    for (const id of ["a", "b", "c", "d"]) disk.enqueue(session, delivery(id));
    expect(sent(session)).toEqual(["1 a", "2 b", "3 c"]);
    session.detach(now);
    session.attach(1);
    expect(sent(session, disk.load)).toEqual(["1 a dup"]);
    disk.save(session);
    const woken = disk.restore();
    woken.connected = true;
    woken.reattach(1);
    expect(sent(woken, disk.load)).toEqual([]);
    woken.handlePuback(1);
    expect(sent(woken, disk.load)).toEqual(["2 b dup"]);
    woken.handlePuback(2);
    expect(sent(woken, disk.load)).toEqual(["3 c dup"]);
    woken.handlePuback(3);
    expect(sent(woken, disk.load)).toEqual(["4 d"]);
  });
});

describe("subscriptions", () => {
  const subscriptionTo = (filter: string) => ({
    filter,
    qos: 1 as const,
    noLocal: false,
    retainAsPublished: false,
    retainHandling: 0 as const,
    subscriptionId: 0,
  });

  test("[MQTT-3.8.4-3] one for each filter; their bytes are those of the filters", () => {
    const session = durable();
    session.subscribe(subscriptionTo("a/b"));
    session.subscribe(subscriptionTo("a/b"));
    session.subscribe({ ...subscriptionTo("c"), qos: 1 });
    expect([session.subscriptions.size, session.subscriptionBytes]).toEqual([2, 4]);
    expect(session.unsubscribe("a/b")).toBe(true);
    expect(session.unsubscribe("a/b")).toBe(false);
    expect([session.subscriptions.size, session.subscriptionBytes]).toEqual([1, 1]);
  });

  test("[MQTT-3.10.4-3] what was unsubscribed gets no more retained messages", () => {
    const session = durable();
    for (const filter of ["a", "b"]) {
      session.subscribe(subscriptionTo(filter));
      session.retainedReads.push({ subscription: subscriptionTo(filter), after: undefined });
    }
    session.unsubscribe("a");
    expect(session.retainedReads.map(({ subscription }) => subscription.filter)).toEqual(["b"]);
  });
});

describe("time", () => {
  test("[MQTT-3.1.2-8] without a delay the will is due when the connection is gone", () => {
    const session = durable();
    session.attach(1);
    session.will = will(0);
    expect(session.due(now).will).toBeUndefined();
    session.detach(now);
    expect(session.due(now)).toMatchObject({ will: { topic: "w" }, ended: false });
    expect(session.due(now).will).toBeUndefined();
  });

  test("[MQTT-3.1.3-9] the will waits for its delay, and a new connection within it takes it back", () => {
    const session = durable();
    session.will = will(10);
    session.attach(1);
    session.detach(now);
    expect(session.due(now + 9999).will).toBeUndefined();
    session.attach(1);
    expect(session.due(now + 20_000)).toEqual({ will: undefined, ended: false });
    session.detach(now + 20_000);
    expect(session.due(now + 29_999).will).toBeUndefined();
    expect(session.due(now + 30_000).will).toBeDefined();
  });

  test("[MQTT-3.1.2-8] the session's end does not wait for the will's delay", () => {
    const session = new Session(1, "c");
    session.expiryInterval = 5;
    session.will = will(10);
    session.attach(1);
    session.detach(now);
    expect(session.due(now + 4999)).toEqual({ will: undefined, ended: false });
    expect(session.due(now + 5000)).toMatchObject({ will: { topic: "w" }, ended: true });
  });

  test("[MQTT-3.1.2-23] the session ends its expiry interval after the connection: 0 at once, 2^32-1 never", () => {
    for (const [expiryInterval, at, ended] of [
      [0, now, true],
      [60, now + 59_999, false],
      [60, now + 60_000, true],
      [expiryNever - 1, now + (expiryNever - 1) * 1000, true],
      [expiryNever, now + expiryNever * 1000 * 1000, false],
    ] as const) {
      const session = new Session(1, "c");
      session.expiryInterval = expiryInterval;
      session.attach(1);
      expect(session.due(at).ended).toBe(false);
      session.detach(now);
      expect({ expiryInterval, at, ended: session.due(at).ended }).toEqual({ expiryInterval, at, ended });
    }
  });

  test("a session that was never attached has no deadline and is not detached", () => {
    const session = new Session(1, "c");
    expect(session.detached).toBe(false);
    expect(session.due(now)).toEqual({ will: undefined, ended: false });
  });
});

describe("receiving QoS 2", () => {
  const receive = (session: Session, packetId: number, max = 10, messageId = "m", payload = some) => {
    const received = session.receive({ packetId, payload }, messageId, max);
    if (received === "full") throw new Error("full");
    return received;
  };

  test("[MQTT-4.3.3-10] a packet id is new once, until its PUBREL", () => {
    const session = durable();
    const first = receive(session, 7);
    expect(first.isNew).toBe(true);
    expect(receive(session, 7)).toEqual({ receipt: first.receipt, isNew: false });
    session.handleReceived(first.receipt, 0);
    session.detach(now);
    session.attach(1);
    expect(receive(session, 7)).toEqual({
      receipt: { packetId: 7, qos: 2, messageId: "", digest: 0, reasonCode: 0 },
      isNew: false,
    });
    expect(session.handlePubrel(7)).toBe(true);
    expect(session.handlePubrel(7)).toBe(false);
    expect(receive(session, 7).isNew).toBe(true);
  });

  test("[G1] what comes again after a crash is the same message, with DUP or not, and another payload another one", () => {
    const disk = new Disk();
    const session = durable();
    expect(receive(session, 7, 10, "first").receipt.messageId).toBe("first");
    expect(receive(session, 8, 10, "second").receipt.messageId).toBe("second");
    disk.save(session);
    const restored = disk.restore();
    expect(restored.awaitingRelCount).toBe(2);
    expect(receive(restored, 7, 10, "new")).toMatchObject({ isNew: true, receipt: { messageId: "first" } });
    expect(receive(restored, 8, 10, "new", Uint8Array.of(2))).toMatchObject({
      isNew: true,
      receipt: { messageId: "new" },
    });
    expect(restored.awaitingRelCount).toBe(2);
  });

  test("[MQTT-4.3.3-9] a refused packet id is free again", () => {
    const session = durable();
    const { receipt } = receive(session, 7);
    session.handleReceived(receipt, 0x97);
    expect([...session.receivedIds()]).toEqual([]);
    expect(session.handlePubrel(7)).toBe(false);
    expect(receive(session, 7).isNew).toBe(true);
  });

  test("[G6] no more than max_awaiting_rel ids are held, and a known one is never refused", () => {
    const session = durable();
    const { receipt } = receive(session, 1, 2);
    session.handleReceived(receipt, 0);
    receive(session, 2, 2);
    expect(session.receive({ packetId: 3, payload: some }, "m", 2)).toBe("full");
    expect(receive(session, 1, 2).isNew).toBe(false);
    expect(receive(session, 2, 2).isNew).toBe(false);
    session.handlePubrel(1);
    expect(receive(session, 3, 2).isNew).toBe(true);
  });

  test("[MQTT-4.3.3-10] seeded: each message is published once, over reconnects, sleep and answers in any order", () => {
    for (let seed = 1; seed <= 200; seed++) {
      const next = random(seed);
      const pick = (below: number) => Math.floor(next() * below);
      const disk = new Disk();
      let session = durable();
      const published: string[] = [];
      /** The client's side: what it has not got PUBCOMP for. */
      const unacknowledged = new Map<number, { id: string; released: boolean }>();
      let receiving: Receipt[] = [];
      let messages = 0;
      const publish = (packetId: number) => {
        const received = receive(session, packetId, 100);
        if (!received.isNew) return;
        published.push(unacknowledged.get(packetId)!.id);
        receiving.push(received.receipt);
      };
      for (let step = 0; step < 200; step++) {
        const packetId = 1 + pick(5);
        const known = unacknowledged.get(packetId);
        switch (pick(5)) {
          case 0:
            if (known) break;
            unacknowledged.set(packetId, { id: `m${messages++}`, released: false });
            publish(packetId);
            break;
          case 1: {
            const [receipt] = receiving.splice(pick(receiving.length), 1);
            if (!receipt) break;
            session.handleReceived(receipt, 0);
            break;
          }
          case 2: // PUBREC has come: from now on only PUBREL is sent.
            if (!known || ![...session.receivedIds()].includes(packetId)) break;
            known.released = true;
            break;
          case 3: // PUBREL, and PUBCOMP gets through or not.
            if (!known?.released) break;
            session.handlePubrel(packetId);
            if (next() < 0.7) unacknowledged.delete(packetId);
            break;
          default: // A new connection, to a session that slept or not: everything again.
            if (receiving.length === 0 && next() < 0.5) {
              disk.save(session);
              session = disk.restore();
            }
            for (const [id, { released }] of unacknowledged) {
              if (!released) publish(id);
              else if (next() < 0.5) session.handlePubrel(id);
            }
        }
        if (session.urgent) disk.save(session);
      }
      expect({ seed, published }).toEqual({ seed, published: Array.from({ length: messages }, (_, n) => `m${n}`) });
      receiving = [];
    }
  });
});

describe("shared subscriptions", () => {
  test("[MQTT-4.8.2-5] at the session's end another member gets what was not sent, and QoS 1 unacknowledged", () => {
    const session = durable();
    const disk = new Disk();
    const shared = "$share/g/t";
    session.attach(3);
    disk.enqueue(session, delivery("acknowledged", { shared }));
    disk.enqueue(session, delivery("unacknowledged", { shared }));
    disk.enqueue(session, delivery("begun", { shared, qos: 2 }));
    disk.enqueue(session, delivery("not shared"));
    disk.enqueue(session, delivery("waiting 1", { shared }));
    disk.enqueue(session, delivery("waiting 2", { shared, qos: 2 }));
    expect(sent(session)).toHaveLength(3);
    session.handlePuback(1);
    const left = ["unacknowledged", "waiting 1", "waiting 2"];
    expect([...session.redispatchable(disk.load)].map(({ message }) => message.id)).toEqual(left);
    disk.save(session);
    expect([...disk.restore().redispatchable(disk.load)].map(({ message }) => message.id)).toEqual(left);
  });
});

describe("seeded, against a client written plainly", () => {
  test.each([
    ["a durable session: reconnects, crashes, sleep", true],
    ["a transient session: sleep", false],
  ])("[G1] [G2] [MQTT-3.3.4-9] [MQTT-4.6.0-1] %s", (_, isDurable) => {
    for (let seed = 1; seed <= 100; seed++) {
      const world = new World(seed, isDurable);
      try {
        for (let step = 0; step < 300; step++) world.step();
        world.drain();
        world.check();
      } catch (error) {
        throw new Error(`seed ${seed}`, { cause: error });
      }
    }
  });
});
