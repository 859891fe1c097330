/** The tables of a node, from the first version to this one. What they hold is said by those who use them. */
import { ByteWriter } from "../../mqtt/byte-buffer.ts";
import type { QoS } from "../../mqtt/message.ts";
import { MessageIdSet } from "../../mqtt/message-id-set.ts";
import type { Checkpoint } from "../../mqtt/session.ts";
import type { Migration, Sql } from "../schema.ts";
import { Checkpoints } from "./checkpoints.ts";
import { writeKnown } from "./session-store.ts";

/** Version 1: a checkpoint in each session's row, and a row for each session and message that it waits for. */
const queues = `
CREATE TABLE IF NOT EXISTS session (
  id INTEGER PRIMARY KEY,
  client_id TEXT NOT NULL UNIQUE,
  epoch INTEGER NOT NULL,
  username TEXT,
  connected INTEGER NOT NULL,
  expiry_interval INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  will_at INTEGER NOT NULL,
  due_at INTEGER,
  will BLOB,
  checkpoint TEXT NOT NULL,
  connection TEXT
);
CREATE INDEX IF NOT EXISTS session_due ON session (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS subscription (
  session INTEGER NOT NULL,
  filter TEXT NOT NULL,
  options INTEGER NOT NULL,
  subscription_id INTEGER NOT NULL,
  PRIMARY KEY (session, filter)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queue (
  session INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  qos INTEGER NOT NULL,
  shared INTEGER NOT NULL,
  delivery BLOB NOT NULL,
  PRIMARY KEY (session, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS known (
  session INTEGER NOT NULL,
  key TEXT NOT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY (session, key)
) WITHOUT ROWID;
`;

/** Version 2: the log, checkpoints that share rows, and numbers that hold for the whole node. */
const log = `
CREATE TABLE reserved (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
INSERT INTO reserved SELECT 1, 1 + max(
  (SELECT coalesce(max(seq), 0) FROM queue),
  (SELECT coalesce(max(json_extract(checkpoint, '$.nextSeq')), 0) FROM session)
);

CREATE TABLE checkpoint (page INTEGER PRIMARY KEY, states BLOB NOT NULL);

CREATE TABLE connection (session INTEGER PRIMARY KEY, facts TEXT NOT NULL);
INSERT INTO connection SELECT id, connection FROM session WHERE connected = 1 AND connection IS NOT NULL;

ALTER TABLE session ADD COLUMN durable INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN arrived_behind INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN known BLOB;
UPDATE session SET durable = 1 WHERE expiry_interval > 0;

ALTER TABLE subscription RENAME TO subscription_before;
CREATE TABLE subscription (
  filter TEXT NOT NULL,
  session INTEGER NOT NULL,
  options INTEGER NOT NULL,
  subscription_id INTEGER NOT NULL,
  since INTEGER NOT NULL,
  logged INTEGER NOT NULL,
  PRIMARY KEY (filter, session)
) WITHOUT ROWID;
CREATE INDEX subscription_session ON subscription (session);
INSERT INTO subscription
  SELECT filter, session, options, subscription_id, reserved.seq - 1,
         durable AND options & 3 > 0 AND filter NOT GLOB '$share/*' AND filter NOT GLOB '$queue/*'
    FROM subscription_before JOIN session ON session.id = session JOIN reserved;
DROP TABLE subscription_before;

CREATE TABLE log (
  filter TEXT NOT NULL,
  last INTEGER NOT NULL,
  at INTEGER NOT NULL,
  entries BLOB NOT NULL,
  records BLOB NOT NULL,
  PRIMARY KEY (filter, last)
) WITHOUT ROWID;

CREATE TABLE forgotten (id INTEGER PRIMARY KEY, at INTEGER NOT NULL);

CREATE TABLE adoption (session INTEGER PRIMARY KEY);

CREATE TABLE own (id INTEGER PRIMARY KEY, record BLOB NOT NULL);

ALTER TABLE known RENAME TO known_before;
CREATE TABLE known (
  origin TEXT NOT NULL,
  block INTEGER NOT NULL,
  seqs BLOB NOT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY (origin, block)
) WITHOUT ROWID;
`;

/** A checkpoint of version 1. */
interface CheckpointBefore {
  readonly sentUpTo: number;
  readonly nextPacketId: number;
  readonly inflight: readonly { packetId: number; seq: number; state: "publish" | "pubrel" }[];
  readonly unsent: readonly number[];
  readonly receiving?: readonly { packetId: number; messageId: string; digest: number }[];
  readonly received: readonly number[];
  readonly retainedReads: readonly { subscription: { filter: string }; after?: string }[];
}

export const migrations: readonly Migration[] = [
  queues,
  (sql) => {
    sql.exec(log);
    const checkpoints: [id: number, checkpoint: Checkpoint][] = [];
    for (const { id, checkpoint } of sql
      .exec<{ id: number; checkpoint: string }>("SELECT id, checkpoint FROM session")
      .toArray()) {
      const before = JSON.parse(checkpoint) as CheckpointBefore;
      const qosOf = ({ seq, state }: CheckpointBefore["inflight"][number]): QoS => {
        if (state === "pubrel") return 2;
        const rows = sql.exec<{ qos: number }>("SELECT qos FROM queue WHERE session = ? AND seq = ?", id, seq);
        return (rows.toArray()[0]?.qos ?? 1) as QoS;
      };
      const inflight = before.inflight.map((entry) => ({
        ...entry,
        qos: qosOf(entry),
        sent: !before.unsent.includes(entry.packetId),
      }));
      const retainedReads = before.retainedReads.map(({ subscription, after }) => ({
        filter: subscription.filter,
        after,
      }));
      checkpoints.push([id, { ...before, inflight, receiving: before.receiving ?? [], retainedReads }]);
      keepKnown(sql, id);
    }
    new Checkpoints(sql).put(checkpoints);
    sql.exec(`
      ALTER TABLE session DROP COLUMN connected;
      ALTER TABLE session DROP COLUMN checkpoint;
      ALTER TABLE session DROP COLUMN connection;
      ALTER TABLE queue DROP COLUMN qos;
      DROP TABLE known_before;
    `);
  },
  "CREATE TABLE home (id INTEGER PRIMARY KEY, core TEXT NOT NULL, term INTEGER NOT NULL)",
];

/** What was known for each session is what it knows from where it was. */
function keepKnown(sql: Sql, id: number): void {
  const known = new MessageIdSet();
  let latest = 0;
  for (const { key, at } of sql.exec<{ key: string; at: number }>(
    "SELECT key, at FROM known_before WHERE session = ?",
    id,
  )) {
    const space = key.indexOf(" ");
    known.add(key.slice(0, space), key.slice(space + 1) || undefined);
    latest = at;
  }
  if (latest === 0) return;
  sql.exec("UPDATE session SET known = ? WHERE id = ?", writeKnown(new ByteWriter(), known, latest), id);
}
