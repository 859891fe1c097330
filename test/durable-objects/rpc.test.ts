import { describe, expect, test } from "vitest";
import {
  addRouteRecord,
  endedRecord,
  fenceRecord,
  forwardFenceRecord,
  forwardRecord,
  joinRecords,
  matchedBytes,
  openedRecord,
  publishRecord,
  readForwarded,
  readNodeRecords,
  releaseRecord,
  removeRouteRecord,
  rpcVersion,
  type NodeRecord,
} from "../../durable-objects/rpc.ts";
import { ByteReader, ByteWriter } from "../../mqtt/byte-buffer.ts";
import { readMessage, writeMessage, type Message } from "../../mqtt/message.ts";

const message: Message = {
  id: "m1",
  topic: "a/é",
  payload: Uint8Array.of(1, 2, 3),
  qos: 2,
  retain: true,
  properties: Uint8Array.of(0x01, 1),
  expiresAt: 1_700_000_000_000,
  from: "c",
};
const small: Message = { ...message, id: "m2", qos: 0, retain: false, payload: new Uint8Array(0), expiresAt: 0 };

function batchOf(...records: Uint8Array[]): Uint8Array {
  return joinRecords(
    records,
    records.reduce((sum, each) => sum + each.length, 0),
  );
}

function record(each: Message): Uint8Array {
  const writer = new ByteWriter();
  writeMessage(writer, each);
  return writer.take();
}

describe("from node to core", () => {
  const longest = 4_294_967;
  const records: [Uint8Array, NodeRecord][] = [
    [fenceRecord(), { kind: "fence" }],
    [
      publishRecord(new ByteWriter(), { message, delaySeconds: longest, only: "$share/g/a/+" }),
      { kind: "publish", message, bytes: record(message), delaySeconds: longest, only: "$share/g/a/+" },
    ],
    [addRouteRecord("a/+", 0, 1), { kind: "addRoute", key: "a/+", members: 0, version: 1 }],
    [
      addRouteRecord("$share/g/é", 70_000, 2 ** 48 - 1),
      { kind: "addRoute", key: "$share/g/é", members: 70_000, version: 2 ** 48 - 1 },
    ],
    [removeRouteRecord("#", 3), { kind: "removeRoute", key: "#", version: 3 }],
    [openedRecord("c", 1_700_000_000_001), { kind: "opened", clientId: "c", epoch: 1_700_000_000_001 }],
    [releaseRecord("", 2 ** 48 - 1), { kind: "release", clientId: "", epoch: 2 ** 48 - 1 }],
    [
      publishRecord(new ByteWriter(), { message: small, delaySeconds: 0, only: "" }),
      { kind: "publish", message: small, bytes: record(small), delaySeconds: 0, only: "" },
    ],
  ];

  test("[G2] what goes into a batch comes out, in order", () => {
    const batch = batchOf(...records.map(([bytes]) => bytes));
    expect([...readNodeRecords(batch)]).toEqual(records.map(([, expected]) => expected));
    expect([...readNodeRecords(batchOf())]).toEqual([]);
  });

  test("the message of a publish is passed on as it came", () => {
    const [publish] = readNodeRecords(batchOf(publishRecord(new ByteWriter(), { message, delaySeconds: 1, only: "" })));
    if (publish?.kind !== "publish") throw new Error("no publish");
    const matched = [{ key: "a/+", ordinal: 0 }];
    const [forward] = readForwarded(batchOf(forwardRecord(new ByteWriter(), matchedBytes(matched), publish.bytes)));
    if (forward?.kind !== "forward") throw new Error("no forward");
    expect(forward).toMatchObject({ matched, message });
    expect(forward.bytes).toEqual(publish.bytes);
    expect(readMessage(new ByteReader(publish.bytes))).toEqual(message);
  });

  test("a batch of another version is refused, whatever it holds", () => {
    for (const version of [0, rpcVersion + 1, 255]) {
      const batch = batchOf(fenceRecord());
      batch[0] = version;
      expect(() => [...readNodeRecords(batch)]).toThrow(`version ${version}`);
      expect(() => [...readForwarded(batch)]).toThrow(`version ${version}`);
    }
  });

  test("[G1] a record that cannot be read does not keep back the others of its batch", () => {
    const unknown = fenceRecord();
    unknown[0] = 99;
    const cut = publishRecord(new ByteWriter(), { message, delaySeconds: 0, only: "" }).slice(0, 20);
    new DataView(cut.buffer).setUint32(1, 15);
    const kinds = [...readNodeRecords(batchOf(cut, removeRouteRecord("a", 1), unknown, fenceRecord()))].map(
      ({ kind }) => kind,
    );
    expect(kinds).toEqual(["unreadable", "removeRoute", "unreadable", "fence"]);
  });

  test("a batch that is cut within a record is an error", () => {
    const batch = batchOf(...records.map(([bytes]) => bytes));
    const ends = new Set<number>();
    let at = 1;
    for (const [bytes] of records) ends.add((at += bytes.length));
    for (let end = 0; end < batch.length; end++) {
      if (end === 1 || ends.has(end)) continue;
      expect(() => [...readNodeRecords(batch.subarray(0, end))]).toThrow(RangeError);
    }
  });
});

describe("from core to node", () => {
  test("[G1] a record that cannot be read does not keep back the others of its batch", () => {
    const unknown = forwardFenceRecord();
    unknown[0] = 99;
    const cut = forwardRecord(
      new ByteWriter(),
      matchedBytes([{ key: "a", ordinal: 0 }]),
      record(message).subarray(0, 20),
    );
    const whole = forwardRecord(new ByteWriter(), matchedBytes([{ key: "a", ordinal: 0 }]), record(message));
    const kinds = [...readForwarded(batchOf(cut, whole, unknown, forwardFenceRecord()))].map(({ kind }) => kind);
    expect(kinds).toEqual(["unreadable", "forward", "unreadable", "fence"]);
  });

  test("[G2] messages with the routes they matched, in order, and fences between them", () => {
    const many = Array.from({ length: 70_000 }, (_, ordinal) => ({ key: `$share/g${ordinal}/t`, ordinal }));
    const batch = batchOf(
      forwardRecord(new ByteWriter(), matchedBytes([{ key: "a/é", ordinal: 0 }]), record(message)),
      forwardFenceRecord(),
      endedRecord("c", 1_700_000_000_001),
      forwardRecord(new ByteWriter(), matchedBytes(many), record(small)),
      forwardRecord(new ByteWriter(), matchedBytes([]), record(message)),
    );
    const read = [...readForwarded(batch)].map((each) =>
      each.kind === "forward" ? { matched: each.matched, message: each.message } : each,
    );
    expect(read).toEqual([
      { matched: [{ key: "a/é", ordinal: 0 }], message },
      { kind: "fence" },
      { kind: "ended", clientId: "c", epoch: 1_700_000_000_001 },
      { matched: many, message: small },
      { matched: [], message },
    ]);
  });
});
