import { describe, expect, test } from "vitest";
import { limits } from "../../mqtt/limits.ts";
import { messageBytes, type Message, type QoS } from "../../mqtt/message.ts";
import {
  expiryNever,
  neededFrom,
  QueueMemory,
  Session,
  type Checkpoint,
  type Delivery,
  type Load,
  type Outgoing,
  type Place,
  type Receipt,
  type Subscription,
  type Will,
} from "../../mqtt/session.ts";
import { random } from "../support/random.ts";
import { delivery, Disk, now, plenty, World } from "./session-world.ts";

function will(delaySeconds: number): Will {
  const none = new Uint8Array(0);
  return {
    topic: "w",
    payload: none,
    qos: 0,
    retain: false,
    properties: none,
    messageExpiryInterval: undefined,
    delaySeconds,
  };
}

function durable(memory = new QueueMemory()): Session {
  const session = new Session(1, "c", memory);
  session.expiryInterval = expiryNever;
  return session;
}

/** Everything that may leave now, as "1 a" (packet id and message), "1 a dup" and "1 pubrel". */
function sent(session: Session, load: Load = () => undefined, at = now): string[] {
  return [...outgoing(session, load, at)].map((each) =>
    each.kind === "pubrel"
      ? `${each.packetId} pubrel`
      : `${each.packetId} ${each.delivery.message.id}${each.dup ? " dup" : ""}`,
  );
}

function* outgoing(session: Session, load: Load, at: number): Generator<Outgoing, undefined> {
  for (let next = session.nextToSend(at, load); next; next = session.nextToSend(at, load)) yield next;
}

const some = Uint8Array.of(1);

/** The checkpoint of a session that has sent and received nothing. */
const nothing: Checkpoint = {
  sentUpTo: 0,
  nextPacketId: 1,
  inflight: [],
  receiving: [],
  received: [],
  retainedReads: [],
};

const keysOf = (...keys: readonly string[]) => keys.map((key) => ({ key }));

function subscriptionTo(filter: string, options: Partial<Subscription> = {}): Subscription {
  return {
    filter,
    qos: 2,
    noLocal: false,
    retainAsPublished: false,
    retainHandling: 0,
    subscriptionId: 0,
    ...options,
  };
}

describe("sending", () => {
  test("nothing is sent without a connection, and all of it with one", () => {
    const disk = new Disk();
    const session = durable();
    disk.hold(session, delivery("a"));
    expect(sent(session)).toEqual([]);
    session.attach(10);
    expect(sent(session)).toEqual(["1 a"]);
    expect(sent(session)).toEqual([]);
  });

  test("[MQTT-3.3.4-9] no more than the Receive Maximum is unacknowledged; each end of an exchange lets one more out", () => {
    const disk = new Disk();
    const session = durable();
    for (const id of ["a", "b", "c", "d", "e"]) disk.hold(session, delivery(id, { qos: id < "c" ? 1 : 2 }));
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
    disk.hold(session, delivery("f"));
    expect(sent(session)).toEqual(["6 f"]);
  });

  test("[MQTT-4.3.2-1] [MQTT-2.2.1-4] a packet id is not given out again while it is in use, past 65535 too", () => {
    const disk = new Disk();
    const session = durable();
    session.restore({ ...nothing, nextPacketId: 65_534 }, []);
    session.attach(65_535);
    for (const id of ["a", "b", "c", "d"]) disk.hold(session, delivery(id));
    expect(sent(session)).toEqual(["65534 a", "65535 b", "1 c", "2 d"]);
    const again = durable();
    again.restore(
      {
        ...nothing,
        sentUpTo: 2,
        nextPacketId: 65_535,
        inflight: [
          { packetId: 1, seq: 1, qos: 2, state: "pubrel", sent: true },
          { packetId: 65_535, seq: 2, qos: 2, state: "pubrel", sent: true },
        ],
      },
      [],
    );
    again.attach(10);
    disk.hold(again, delivery("e"));
    expect(sent(again)).toEqual(["1 pubrel", "65535 pubrel", "2 e"]);
  });

  test("every packet id can be in use at once", () => {
    const disk = new Disk();
    const session = durable();
    session.attach(65_535);
    for (let count = 0; count < 65_536; count++) disk.hold(session, delivery("m"), 100_000);
    const ids = new Set([...outgoing(session, () => undefined, now)].map((each) => each.packetId));
    expect(ids.size).toBe(65_535);
    expect([Math.min(...ids), Math.max(...ids)]).toEqual([1, 65_535]);
    session.handlePuback(4711);
    expect(sent(session)).toEqual(["4711 m"]);
  });

  test("[MQTT-3.3.2-5] what has expired in the queue is not sent", () => {
    const disk = new Disk();
    const session = durable();
    disk.hold(session, delivery("a", { expiresAt: now + 1000 }));
    disk.hold(session, delivery("b", { expiresAt: now + 1001, qos: 2 }));
    session.attach(10);
    expect(sent(session, undefined, now + 1000)).toEqual(["1 b"]);
    expect(session.queued).toBe(0);
  });

  test("[MQTT-3.1.2-25] what the client cannot take counts as delivered", () => {
    const disk = new Disk();
    const session = durable();
    session.attach(1);
    disk.hold(session, delivery("large"));
    disk.hold(session, delivery("small"));
    expect(sent(session)).toEqual(["1 large"]);
    session.discard(1);
    expect(sent(session)).toEqual(["2 small"]);
  });

  test("an acknowledgement of an unknown id changes nothing", () => {
    const disk = new Disk();
    const session = durable();
    session.attach(1);
    disk.hold(session, delivery("a"));
    disk.hold(session, delivery("b"));
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
    const disk = new Disk();
    const session = durable();
    session.attach(1);
    disk.hold(session, delivery("a", { qos: 2 }));
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
    const disk = new Disk();
    const session = durable();
    session.attach(4);
    for (const id of ["a", "b", "c", "d", "e"]) disk.hold(session, delivery(id, { qos: id === "c" ? 2 : 1 }));
    expect(sent(session)).toEqual(["1 a", "2 b", "3 c", "4 d"]);
    session.handlePuback(2);
    session.detach(now);
    expect(sent(session)).toEqual([]);
    session.attach(10);
    expect(sent(session)).toEqual(["1 a dup", "3 c dup", "4 d dup", "5 e"]);
    expect(sent(session)).toEqual([]);
  });

  test("[MQTT-4.3.3-6] after PUBREC the message is not sent again, PUBREL is", () => {
    const disk = new Disk();
    const session = durable();
    session.attach(4);
    disk.hold(session, delivery("a", { qos: 2 }));
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
    const disk = new Disk();
    const session = durable();
    session.attach(3);
    for (const id of ["a", "b", "c", "d"]) disk.hold(session, delivery(id));
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
    const disk = new Disk();
    const session = durable();
    session.attach(3);
    for (const id of ["a", "b", "c"]) disk.hold(session, delivery(id, { qos: 2 }));
    expect(sent(session)).toEqual(["1 a", "2 b", "3 c"]);
    session.handlePubrec(2, 0);
    session.handlePubrec(3, 0);
    session.detach(now);
    session.attach(1);
    expect(sent(session).sort()).toEqual(["1 a dup", "2 pubrel", "3 pubrel"]);
  });

  test("an acknowledgement that comes before its message was sent again ends the exchange", () => {
    const disk = new Disk();
    const session = durable();
    session.attach(2);
    for (const id of ["a", "b", "c"]) disk.hold(session, delivery(id));
    expect(sent(session)).toEqual(["1 a", "2 b"]);
    session.detach(now);
    session.attach(1);
    expect(sent(session)).toEqual(["1 a dup"]);
    session.handlePuback(2);
    session.handlePuback(1);
    expect(sent(session)).toEqual(["3 c"]);
  });

  test("[MQTT-4.4.0-1] what was sent is sent again, also when it has expired since", () => {
    const disk = new Disk();
    const session = durable();
    session.attach(3);
    disk.hold(session, delivery("a", { expiresAt: now + 1000 }));
    disk.hold(session, delivery("b", { expiresAt: now + 1000, qos: 2 }));
    disk.hold(session, delivery("c"));
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
    const disk = new Disk();
    const session = durable();
    expect(disk.hold(session, delivery("a"), 2)).toEqual([]);
    expect(disk.hold(session, delivery("b"), 2)).toEqual([]);
    expect(disk.hold(session, delivery("c"), 2)).toEqual([1]);
    expect(session.queued).toBe(2);
    session.attach(10);
    expect(sent(session)).toEqual(["1 b", "2 c"]);
  });

  test("what has been sent is not dropped", () => {
    const disk = new Disk();
    const session = durable();
    session.attach(1);
    disk.hold(session, delivery("a"), 1);
    expect(sent(session)).toEqual(["1 a"]);
    expect(disk.hold(session, delivery("b"), 1)).toEqual([]);
    expect(disk.hold(session, delivery("c"), 1)).toEqual([2]);
    session.detach(now);
    session.attach(2);
    expect(sent(session)).toEqual(["1 a dup", "2 c"]);
  });

  test("a smaller bound drops as many as needed", () => {
    const disk = new Disk();
    const session = durable();
    for (const id of ["a", "b", "c", "d"]) disk.hold(session, delivery(id));
    expect(disk.hold(session, delivery("e"), 2)).toEqual([1, 2, 3]);
  });

  test("bytes are bounded as messages are, and what left the queue is not counted", () => {
    const disk = new Disk();
    const session = durable();
    const third = Math.floor(limits.mqueueBytesMax / 3);
    for (const id of ["a", "b"]) expect(disk.hold(session, delivery(id, { bytes: third }))).toEqual([]);
    expect(disk.hold(session, delivery("c", { bytes: third }))).toEqual([1]);
    session.attach(1);
    expect(sent(session)).toEqual(["1 b"]);
    expect(disk.hold(session, delivery("d", { bytes: third }))).toEqual([]);
    expect(disk.hold(session, delivery("e", { bytes: limits.mqueueBytesMax }))).toEqual([3, 4]);
  });

  test("a message larger than the bound is alone, not refused", () => {
    const disk = new Disk();
    const session = durable();
    disk.hold(session, delivery("a", { bytes: limits.mqueueBytesMax + 1 }));
    session.attach(1);
    expect(sent(session)).toEqual(["1 a"]);
  });

  test.each([
    ["small", 1, 5_000],
    ["large", 100_000, 50],
  ])("[G6] of a long queue on disk only some is held in memory, and all of it is sent: %s", (_, bytes, count) => {
    const memory = new QueueMemory();
    const session = durable(memory);
    const disk = new Disk();
    session.attach(1);
    const ids = Array.from({ length: count }, (_, index) => `m${index}`);
    disk.enqueue(session, delivery("first"));
    const loaded: number[] = [];
    const load = (place: Place) => {
      loaded.push(place.seq);
      return disk.load(place);
    };
    const all = sent(session, load);
    for (const id of ids) disk.enqueue(session, delivery(id, { bytes }), { max: ids.length });
    expect(memory.bytes).toBeLessThanOrEqual(limits.queueHeldBytesMax);
    const held = Math.round(memory.bytes / (messageBytes(delivery("m0", { bytes }).message) + 512));
    expect(held).toBeGreaterThan(10);
    for (let packetId = 1; session.inflightCount > 0; packetId++) {
      session.handlePuback(packetId);
      all.push(...sent(session, load));
    }
    expect(all).toEqual(["first", ...ids].map((id, index) => `${index + 1} ${id}`));
    expect(loaded.length).toBe(count - held);
    expect(memory.bytes).toBe(0);
  });

  describe("[G6] all queues of a node", () => {
    const bytes = 100_000;

    /** Clients that do not acknowledge, and more waits for each than may be held for it. */
    function slow(count: number) {
      const memory = new QueueMemory();
      const sessions = Array.from({ length: count }, () => {
        const session = durable(memory);
        const disk = new Disk();
        session.attach(1);
        disk.enqueue(session, delivery("m0", { bytes }));
        expect(sent(session, disk.load)).toEqual(["1 m0"]);
        for (let next = 1; next <= 25; next++) disk.enqueue(session, delivery(`m${next}`, { bytes }));
        return { session, disk };
      });
      return { memory, sessions };
    }

    test("hold no more in memory than a few do, and one message each", () => {
      const { memory, sessions } = slow(40);
      const few = Math.ceil(limits.queuesHeldBytesMax / limits.queueHeldBytesMax);
      expect(few).toBeLessThan(40);
      expect(memory.bytes).toBeGreaterThan(limits.queuesHeldBytesMax);
      expect(memory.bytes).toBeLessThan(limits.queuesHeldBytesMax + 40 * 1.01 * bytes);
      for (const { session, disk } of sessions) {
        const all: string[] = [];
        for (let packetId = 1; session.inflightCount > 0; packetId++) {
          session.handlePuback(packetId);
          all.push(...sent(session, disk.load));
        }
        expect(all).toEqual(Array.from({ length: 25 }, (_, index) => `${index + 2} m${index + 1}`));
      }
      expect(memory.bytes).toBe(0);
    });

    test.each<[string, (session: Session) => void]>([
      ["leaves", (session) => session.detach(now)],
      ["is not in memory any more", (session) => session.release()],
      ["is no more in memory, and then leaves", (session) => (session.release(), session.detach(now))],
    ])("have room again when one %s", (_, end) => {
      const { memory, sessions } = slow(2);
      const both = memory.bytes;
      end(sessions[0]!.session);
      expect(memory.bytes).toBe(both / 2);
      sessions[1]!.session.makeRoom(0, 0);
      expect(memory.bytes).toBe(0);
    });
  });

  test("while the client is away nothing that is on disk is held in memory", () => {
    const session = durable();
    const disk = new Disk();
    session.attach(1);
    for (const id of ["a", "b"]) disk.enqueue(session, delivery(id));
    session.detach(now);
    disk.enqueue(session, delivery("c"));
    disk.hold(session, delivery("d")); // not on disk
    session.attach(plenty);
    const loaded: number[] = [];
    const load = (place: Place) => {
      loaded.push(place.seq);
      return disk.load(place);
    };
    expect(sent(session, load)).toEqual(["1 a", "2 b", "3 c", "4 d"]);
    expect(loaded).toEqual([1, 2, 3]);
  });

  test("a message that is no longer on disk is passed over", () => {
    const session = durable();
    const disk = new Disk();
    for (const id of ["a", "b", "c"]) disk.enqueue(session, delivery(id));
    disk.rows.delete(2);
    session.attach(plenty);
    expect(sent(session, disk.load)).toEqual(["1 a", "2 c"]);
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

  test("rows below the lowest number needed may go: what waits for PUBREC is needed, what waits for PUBCOMP is not", () => {
    const session = durable();
    const disk = new Disk();
    expect(session.lowestSeq).toBe(Infinity);
    session.attach(2);
    for (const id of ["a", "b", "c"]) disk.enqueue(session, delivery(id, { qos: 2 }));
    expect(sent(session)).toEqual(["1 a", "2 b"]);
    session.handlePubrec(2, 0);
    session.handlePubcomp(2);
    expect(session.lowestSeq).toBe(1);
    expect(sent(session)).toEqual(["3 c"]);
    session.handlePubrec(1, 0);
    expect(session.lowestSeq).toBe(3);
    session.handlePubrec(3, 0);
    expect(session.lowestSeq).toBe(Infinity);
    disk.save(session);
    expect(disk.rows.size).toBe(0);
  });

  test("what is only in memory is written once: the window, then the queue", () => {
    const disk = new Disk();
    const session = new Session(1, "c", new QueueMemory());
    session.attach(1);
    disk.hold(session, delivery("a"));
    disk.hold(session, delivery("b"));
    expect(sent(session)).toEqual(["1 a"]);
    expect([...session.unwritten()].map(({ seq }) => seq)).toEqual([1, 2]);
    expect([...session.unwritten()]).toEqual([]);
    disk.hold(session, delivery("c"));
    expect([...session.unwritten()].map(({ seq }) => seq)).toEqual([3]);
  });

  test("[G1] QoS 2 states are urgent where the session outlives its connection, and only there", () => {
    for (const expiryInterval of [0, 60]) {
      const disk = new Disk();
      const session = new Session(1, "c", new QueueMemory());
      session.expiryInterval = expiryInterval;
      const isUrgent = () => {
        const { urgent } = session;
        session.urgent = false;
        return urgent;
      };
      session.attach(2);
      disk.hold(session, delivery("a", { qos: 2 }));
      disk.hold(session, delivery("b"));
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

  test("every change makes the session dirty: its row or its state, and not the other", () => {
    const session = durable();
    const disk = new Disk();
    const message = delivery("a", { qos: 2 });
    const receipt = () => session.receive({ packetId: 9, payload: some }, "m9", 10);
    const changes: [string, "row" | "state", () => unknown][] = [
      ["expiry interval", "row", () => (session.expiryInterval = 60)],
      ["attach", "row", () => session.attach(1)],
      ["enqueue", "state", () => disk.hold(session, message)],
      ["send", "state", () => sent(session)],
      ["pubrec", "state", () => session.handlePubrec(1, 0)],
      ["pubcomp", "state", () => session.handlePubcomp(1)],
      ["pass", "state", () => session.pass(++disk.seq)],
      ["receive", "state", receipt],
      ["pubrel", "state", () => session.handlePubrel(9)],
      ["retained", "state", () => session.readRetained("a/#")],
      ["detach", "row", () => session.detach(now)],
      ["will", "row", () => session.due(now)],
      ["make room", "state", () => session.makeRoom(0, 0)],
    ];
    for (const [name, what, change] of changes) {
      if (name === "pubrel") {
        const received = receipt();
        if (received !== "full") session.handleReceived(received.receipt, 0);
      }
      if (name === "will") session.will = will(0);
      if (name === "will") session.willAt = now;
      if (name === "make room") disk.hold(session, message);
      session.dirty = session.rowDirty = false;
      const { revision } = session;
      change();
      expect({ name, row: session.rowDirty, state: session.dirty, risen: session.revision > revision }).toEqual({
        name,
        row: what === "row",
        state: what === "state",
        risen: what === "state",
      });
    }
  });

  test("what is to be sent again on a new connection is state: after sleep it is not taken for sent", () => {
    const session = durable();
    const disk = new Disk();
    session.attach(1);
    disk.enqueue(session, delivery("a"));
    expect(sent(session)).toEqual(["1 a"]);
    session.detach(now);
    disk.save(session);
    session.attach(1);
    expect(session.dirty).toBe(true);
  });

  test("a session is at rest when nothing of it is in memory alone", () => {
    const session = durable();
    const disk = new Disk();
    const isAtRest = () => {
      disk.save(session);
      return session.atRest;
    };
    expect(session.atRest).toBe(false);
    expect(isAtRest()).toBe(true);
    session.attach(1);
    expect(isAtRest()).toBe(false);
    session.subscribing = 1;
    session.detach(now);
    expect(session.atRest).toBe(false);
    expect(isAtRest()).toBe(false);
    session.subscribing = 0;
    expect(session.atRest).toBe(true);
    const received = session.receive({ packetId: 1, payload: some }, "m1", 10);
    if (received === "full") throw new Error("full");
    expect(isAtRest()).toBe(false);
    session.handleReceived(received.receipt, 0);
    expect(session.atRest).toBe(false);
    expect(isAtRest()).toBe(true);
    session.adopting = true;
    expect(isAtRest()).toBe(false);
  });

  test("[G1] once durable, a session stays so until it ends", () => {
    const session = new Session(1, "c", new QueueMemory());
    session.expiryInterval = 0;
    expect(session.durable).toBe(false);
    session.expiryInterval = 60;
    session.expiryInterval = 0;
    expect([session.durable, session.expiryInterval]).toEqual([true, 0]);
  });

  test("retained reads and incoming packet ids survive", () => {
    const session = durable();
    const disk = new Disk();
    session.readRetained("a/#");
    session.retainedReads = [{ filter: "a/#", after: "a/b" }];
    const received = session.receive({ packetId: 300, payload: some }, "m300", 10);
    if (received === "full") throw new Error("full");
    session.handleReceived(received.receipt, 0);
    disk.save(session);
    const restored = disk.restore();
    expect(restored.retainedReads).toEqual([{ filter: "a/#", after: "a/b" }]);
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
      session.readRetained(filter);
    }
    session.dirty = false;
    session.unsubscribe("a");
    expect(session.retainedReads).toEqual([{ filter: "b", after: undefined }]);
    // Nor does it after a restart.
    expect(session.dirty).toBe(true);
  });

  test("[MQTT-3.8.4-3] subscribed again while they are read, they are read from the start, once", () => {
    const session = durable();
    for (const filter of ["a", "b"]) session.readRetained(filter);
    session.retainedReads = [{ filter: "a", after: "a/b" }, ...session.retainedReads.slice(1)];
    session.readRetained("a");
    expect(session.retainedReads).toEqual([
      { filter: "b", after: undefined },
      { filter: "a", after: undefined },
    ]);
  });
});

describe("the node's log", () => {
  const filters = ["t"];

  test("[G1] a logged message is never a row of the session's own, and is read under the filter that it is logged under", () => {
    const session = durable();
    const disk = new Disk();
    disk.enqueue(session, delivery("a"), { filters: ["t", "+"] });
    disk.enqueue(session, delivery("b"));
    disk.save(session);
    expect([...disk.rows.keys()]).toEqual([2]);
    expect(session.hasRows).toBe(true);
    const places: Place[] = [];
    const load = ({ seq, filter }: Place) => {
      places.push({ seq, filter });
      return disk.load({ seq, filter });
    };
    session.attach(10);
    expect(sent(session, load)).toEqual(["1 a", "2 b"]);
    expect(places).toEqual([
      { seq: 1, filter: "t" },
      { seq: 2, filter: undefined },
    ]);
  });

  test("[G2] what waits under several filters and alone is sent in the order of its numbers, each once", () => {
    const session = durable();
    const disk = new Disk();
    disk.save(session);
    disk.append(1, delivery("a"), ["t"]);
    disk.append(2, delivery("b"), ["+", "t"]);
    disk.rows.set(3, delivery("c"));
    disk.append(4, delivery("d"), ["+"]);
    const restored = disk.restore();
    restored.attach(10);
    expect(sent(restored, disk.load)).toEqual(["1 a", "2 b", "3 c", "4 d"]);
  });

  test("[G1] what came while the session was away and what comes with it are not taken for two", () => {
    const disk = new Disk();
    disk.save(durable());
    disk.append(7, delivery("a"), filters);
    const restored = disk.restore();
    expect(restored.enqueue({ seq: 7, filter: "t" }, delivery("a"), 1)).toEqual([]);
    restored.written(7);
    restored.attach(10);
    expect(sent(restored, disk.load)).toEqual(["1 a"]);
    expect(restored.enqueue({ seq: 7, filter: "t" }, delivery("a"), 1)).toEqual([]);
    expect(sent(restored, disk.load)).toEqual([]);
  });

  test("[G6] while it was away nobody counted: the oldest make room when it is loaded, and stay away", () => {
    const disk = new Disk();
    disk.save(durable());
    for (const seq of [1, 2, 4]) disk.append(seq, delivery(`m${seq}`), filters);
    disk.rows.set(3, delivery("m3"));
    const restored = disk.restore();
    const all = restored.makeRoom(4, limits.mqueueBytesMax);
    expect(all).toEqual([]);
    expect(restored.dirty).toBe(false);
    const dropped = restored.makeRoom(1, limits.mqueueBytesMax).map(({ seq, filter }) => ({ seq, filter }));
    expect(dropped).toEqual([
      { seq: 1, filter: "t" },
      { seq: 2, filter: "t" },
      { seq: 3, filter: undefined },
    ]);
    expect(restored.dirty).toBe(true);
    disk.save(restored);
    expect(disk.restore().queued).toBe(1);
  });

  test("[G6] room is made by bytes too", () => {
    const disk = new Disk();
    disk.save(durable());
    for (const seq of [1, 2, 3]) disk.append(seq, delivery(`m${seq}`, { bytes: 1000 }), filters);
    const restored = disk.restore();
    expect(restored.makeRoom(3, 3500)).toEqual([]);
    expect(restored.makeRoom(3, 2500).map(({ seq }) => seq)).toEqual([1]);
    expect(restored.makeRoom(3, 0)).toHaveLength(2);
  });

  test("a message that is not for the session is not waited for", () => {
    const session = durable();
    const disk = new Disk();
    disk.append(5, "pass", filters);
    session.pass(5);
    expect(neededFrom(session.checkpoint())).toBe(6);
    session.pass(4);
    expect(neededFrom(session.checkpoint())).toBe(6);
    session.enqueue({ seq: 5, filter: "t" }, delivery("late"), plenty);
    expect(session.queued).toBe(0);
  });

  test("[G1] behind one that waits it is passed in turn, before a restart and after it", () => {
    const session = durable();
    const disk = new Disk();
    disk.enqueue(session, delivery("a"), { filters });
    disk.append(++disk.seq, "pass", filters);
    session.pass(2);
    disk.enqueue(session, delivery("b"), { filters });
    disk.save(session);
    expect(neededFrom(disk.checkpoint!)).toBe(1);
    const restored = disk.restore();
    for (const each of [session, restored]) {
      each.attach(10);
      expect(sent(each, disk.load)).toEqual(["1 a", "2 b"]);
      expect(each.queued).toBe(0);
    }
  });

  test("of the log a session needs the oldest message sent and not acknowledged, or else what it has not sent", () => {
    const session = durable();
    const disk = new Disk();
    const needed = () => neededFrom(session.checkpoint());
    expect(needed()).toBe(1);
    session.attach(2);
    for (const id of ["a", "b", "c"]) disk.enqueue(session, delivery(id, { qos: 2 }), { filters });
    expect(sent(session)).toEqual(["1 a", "2 b"]);
    expect(needed()).toBe(1);
    session.handlePubrec(1, 0);
    expect(needed()).toBe(2);
    session.handlePubrec(2, 0);
    expect(needed()).toBe(3);
    session.handlePubcomp(1);
    expect(sent(session)).toEqual(["3 c"]);
    expect(needed()).toBe(3);
    disk.save(session);
    expect(session.neededFrom).toBe(3);
    expect(disk.restore().neededFrom).toBe(3);
    session.handlePubrec(3, 0x80);
    expect(needed()).toBe(4);
  });

  test("[G1] what the log gives up is the session's own, sent or not, and outlives a restart", () => {
    const session = durable();
    const disk = new Disk();
    session.attach(1);
    for (const id of ["a", "b", "c"]) disk.enqueue(session, delivery(id), { filters });
    disk.enqueue(session, delivery("d"), { filters: ["+"] });
    expect(sent(session)).toEqual(["1 a"]);
    session.detach(now);
    expect([...session.waiting()].map(({ seq, filter }) => [seq, filter])).toEqual([
      [1, "t"],
      [2, "t"],
      [3, "t"],
      [4, "+"],
    ]);
    disk.cut(session, "t", 2);
    expect([...session.waiting()].map(({ filter }) => filter)).toEqual([undefined, undefined, "t", "+"]);
    disk.save(session);
    expect([...disk.rows.keys()]).toEqual([1, 2]);
    for (const each of [disk.restore(), session]) {
      each.attach(10);
      expect(sent(each, disk.load)).toEqual(["1 a dup", "2 b", "3 c", "4 d"]);
    }
  });

  test("a released message waits for nothing on disk", () => {
    const session = durable();
    const disk = new Disk();
    session.attach(1);
    disk.enqueue(session, delivery("a", { qos: 2 }), { filters });
    expect(sent(session)).toEqual(["1 a"]);
    session.handlePubrec(1, 0);
    expect([...session.waiting()]).toEqual([]);
  });

  test("the filter that a message is found under is one that the session has it logged by", () => {
    const session = durable();
    session.subscribe(subscriptionTo("#", { qos: 0 }));
    session.subscribe(subscriptionTo("t", { qos: 1, noLocal: true }));
    session.subscribe(subscriptionTo("+", { qos: 2 }));
    expect(session.logFilter(keysOf("other", "#", "t", "+"))).toBe("t");
    expect(session.logFilter(keysOf("#"))).toBeUndefined();
    expect(session.logFilter(keysOf("other"))).toBeUndefined();
    const transient = new Session(2, "d", new QueueMemory());
    transient.subscribe(subscriptionTo("t"));
    expect(transient.logFilter(keysOf("t"))).toBeUndefined();
  });
});

describe("what its subscriptions make of a message", () => {
  const messageOf = (fields: Partial<Message> = {}): Message => ({ ...delivery("m", { qos: 2 }).message, ...fields });

  /** "QoS [ids]", and `retain`; undefined: the session does not get it. */
  const show = (got: Delivery | undefined): string | undefined =>
    got && `${got.qos} [${got.subscriptionIds.join(" ")}]${got.retain ? " retain" : ""}`;

  const subscriber = (...subscriptions: readonly Subscription[]) => {
    const session = new Session(1, "c1", new QueueMemory());
    for (const each of subscriptions) session.subscribe(each);
    return session;
  };

  test("[MQTT-3.8.4-8] the QoS is the smaller of the message's and the subscription's, in a share group too", () => {
    for (const key of ["t", "$share/g/t"])
      for (const published of [0, 1, 2] as QoS[])
        for (const granted of [0, 1, 2] as QoS[]) {
          const session = subscriber(subscriptionTo(key, { qos: granted }));
          const got = session.deliveryOf(messageOf({ qos: published }), keysOf(key));
          expect(show(got)).toBe(`${Math.min(published, granted)} []`);
        }
  });

  test("without a subscription by a key that matches it gets nothing", () => {
    const session = subscriber(subscriptionTo("t"));
    expect(session.deliveryOf(messageOf(), keysOf("gone", "#"))).toBeUndefined();
    expect(session.deliveryOf(messageOf(), [])).toBeUndefined();
    session.unsubscribe("t");
    expect(session.deliveryOf(messageOf(), keysOf("t"))).toBeUndefined();
  });

  test("[MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-5] overlapping subscriptions: once, with the highest QoS and all identifiers", () => {
    const session = subscriber(
      subscriptionTo("t", { qos: 0, subscriptionId: 7 }),
      subscriptionTo("+", { qos: 1, subscriptionId: 8 }),
      subscriptionTo("#", { qos: 0 }),
      subscriptionTo("t/#", { qos: 0, subscriptionId: 7 }),
    );
    expect(show(session.deliveryOf(messageOf(), keysOf("t", "+", "#", "t/#")))).toBe("1 [7 8 7]");
    // The subscriptions are as before: what was merged was merged for one message.
    expect(show(session.deliveryOf(messageOf(), keysOf("t")))).toBe("0 [7]");
  });

  test("[MQTT-3.8.4-3] a subscription made again is the one that counts", () => {
    const session = subscriber(subscriptionTo("t", { qos: 0, subscriptionId: 1 }));
    session.subscribe(subscriptionTo("t", { qos: 1, subscriptionId: 2 }));
    expect(show(session.deliveryOf(messageOf(), keysOf("t")))).toBe("1 [2]");
  });

  test("[MQTT-3.8.3-3] with no local the publisher does not get its own message, and others do", () => {
    const session = subscriber(subscriptionTo("t", { noLocal: true }));
    expect(session.deliveryOf(messageOf({ from: "c1" }), keysOf("t"))).toBeUndefined();
    expect(show(session.deliveryOf(messageOf({ from: "c2" }), keysOf("t")))).toBe("2 []");
  });

  test("[MQTT-3.8.3-3] an overlapping subscription without no local still brings it, in its own terms", () => {
    const session = subscriber(
      subscriptionTo("t", { noLocal: true, retainAsPublished: true, qos: 2, subscriptionId: 1 }),
      subscriptionTo("#", { qos: 1, subscriptionId: 2 }),
    );
    for (const keys of [keysOf("t", "#"), keysOf("#", "t")])
      expect(show(session.deliveryOf(messageOf({ from: "c1", retain: true }), keys))).toBe("1 [2]");
    expect(show(session.deliveryOf(messageOf({ from: "c9" }), keysOf("t", "#")))).toBe("2 [1 2]");
  });

  test("[MQTT-3.3.1-12] [MQTT-3.3.1-13] RETAIN is cleared, unless one of the subscriptions asks for it as published", () => {
    const asks = subscriptionTo("t", { retainAsPublished: true });
    const asksInGroup = subscriptionTo("$share/g/t", { retainAsPublished: true });
    const session = subscriber(asks, subscriptionTo("#"), asksInGroup);
    const retained = messageOf({ retain: true });
    expect(show(session.deliveryOf(retained, keysOf("#")))).toBe("2 []");
    for (const keys of [keysOf("t"), keysOf("t", "#"), keysOf("#", "t"), keysOf("$share/g/t")]) {
      expect(show(session.deliveryOf(retained, keys))).toBe("2 [] retain");
      expect(show(session.deliveryOf(messageOf(), keys))).toBe("2 []");
    }
  });

  test("[MQTT-4.8.2-4] the group's copy comes besides a subscription of the member's own, and each group's own", () => {
    const session = subscriber(
      subscriptionTo("t", { qos: 2, subscriptionId: 1 }),
      subscriptionTo("$share/g/t", { qos: 1, subscriptionId: 2 }),
      subscriptionTo("$share/h/t", { qos: 0, subscriptionId: 3 }),
    );
    const got = ["t", "$share/g/t", "$share/h/t"].map((key) => show(session.deliveryOf(messageOf(), keysOf(key))));
    expect(got).toEqual(["2 [1]", "1 [2]", "0 [3]"]);
  });

  test("seeded, against a list", () => {
    const keys = ["a", "b", "+", "#", "a/#"];
    for (let seed = 1; seed <= 60; seed++) {
      const next = random(seed);
      const pick = (below: number) => Math.floor(next() * below);
      const session = subscriber();
      let list: Subscription[] = [];
      for (let step = 0; step < 60; step++) {
        const filter = keys[pick(keys.length)]!;
        list = list.filter((each) => each.filter !== filter);
        if (next() < 0.3) session.unsubscribe(filter);
        else {
          const noLocal = next() < 0.3;
          const retainAsPublished = next() < 0.3;
          const each = subscriptionTo(filter, {
            qos: pick(3) as QoS,
            subscriptionId: pick(3),
            noLocal,
            retainAsPublished,
          });
          session.subscribe(each);
          list.push(each);
        }
        const asked = keys.filter(() => next() < 0.6);
        const message = messageOf({ qos: pick(3) as QoS, retain: next() < 0.5, from: `c${pick(2)}` });
        const hits = asked
          .flatMap((key) => list.filter((each) => each.filter === key))
          .filter((each) => !each.noLocal || message.from !== "c1");
        const expected = {
          qos: Math.max(...hits.map((each) => Math.min(each.qos, message.qos))) as QoS,
          retain: message.retain && hits.some((each) => each.retainAsPublished),
          subscriptionIds: hits.map((each) => each.subscriptionId).filter((id) => id > 0),
          message,
          shared: undefined,
        };
        expect({ seed, step, got: show(session.deliveryOf(message, keysOf(...asked))) }).toEqual({
          seed,
          step,
          got: hits.length === 0 ? undefined : show(expected),
        });
      }
    }
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
    const session = new Session(1, "c", new QueueMemory());
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
      const session = new Session(1, "c", new QueueMemory());
      session.expiryInterval = expiryInterval;
      session.attach(1);
      expect(session.due(at).ended).toBe(false);
      session.detach(now);
      expect({ expiryInterval, at, ended: session.due(at).ended }).toEqual({ expiryInterval, at, ended });
    }
  });

  test("a session that was never attached has no deadline and is not detached", () => {
    const session = new Session(1, "c", new QueueMemory());
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
