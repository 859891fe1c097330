/**
 * What a node tells operators of its clients, and does with them for operators.
 *
 * Lists are read from disk, where every session is, in slices; of the sessions in memory they have what only memory
 * knows. Reading loads no session, so that a list neither fills the memory nor counts anything as dropped.
 */
import { limits } from "../../mqtt/limits.ts";
import { MqttError, ReasonCode } from "../../mqtt/reason-codes.ts";
import type { Session } from "../../mqtt/session.ts";
import type { ClientInfo, Listed, Slice, SubscriptionInfo, SubscriptionQuery } from "../rpc.ts";
import type { Sql } from "../schema.ts";
import type { Broker } from "./broker.ts";
import { subscriptionOptions, type StoredConnection } from "./session-store.ts";

type ClientRow = {
  id: number;
  client_id: string;
  username: string | null;
  expiry_interval: number;
  connection: string | null;
  subscriptions: number;
};

const clientRows = `
  SELECT session.id, client_id, username, expiry_interval, connection.facts AS connection,
         (SELECT count(*) FROM subscription WHERE subscription.session = session.id) AS subscriptions
    FROM session LEFT JOIN connection ON connection.session = session.id`;

export class NodeAdmin {
  readonly #broker: Broker;
  readonly #sql: Sql;

  constructor(broker: Broker) {
    this.#broker = broker;
    this.#sql = broker.host.storage.sql;
    broker.sessions.saveNew();
  }

  /** Ordered by client id. */
  clients({ offset, limit }: Slice): Listed<ClientInfo> {
    const query = `${clientRows} ORDER BY client_id LIMIT ? OFFSET ?`;
    const rows = this.#sql.exec<ClientRow>(query, Math.min(limit, limits.adminChunkItemsMax), offset).toArray();
    const { sessions, store } = this.#broker;
    return { count: store.count(), items: rows.map((row) => this.#clientInfo(row, sessions.loaded(row.id))) };
  }

  client(clientId: string): ClientInfo | undefined {
    const row = this.#sql.exec<ClientRow>(`${clientRows} WHERE client_id = ?`, clientId).toArray()[0];
    if (!row) return undefined;
    const { sessions } = this.#broker;
    const loaded = sessions.loaded(row.id);
    const session = loaded ?? sessions.byId(row.id);
    const info = this.#clientInfo(row, session);
    // Loaded for this alone: nobody else has it.
    if (session && !loaded && !session.dirty && !session.rowDirty) sessions.unload(session);
    return info;
  }

  #clientInfo(row: ClientRow, session: Session | undefined): ClientInfo {
    return {
      node: this.#broker.name,
      clientid: row.client_id,
      username: row.username,
      connected: row.connection !== null,
      ...(row.connection === null ? {} : connectionInfo(JSON.parse(row.connection) as StoredConnection)),
      expiry_interval: row.expiry_interval,
      subscriptions_cnt: row.subscriptions,
      ...(session ? countsInMemory(session) : this.#countsOnDisk(row.id)),
    };
  }

  #countsOnDisk(id: number) {
    const { inflight, receiving, received } = this.#broker.store.checkpoint(id);
    return { inflight_cnt: inflight.length, awaiting_rel_cnt: receiving.length + received.length };
  }

  /** As EMQX's `kick`: the connection is closed with 0x98, the will is published, the session ends. */
  kick(clientId: string): boolean {
    const { claims, sessions } = this.#broker;
    const session = sessions.byClientId(clientId);
    // One that is on its way here is with its giver still.
    if (!session || session.adopting) return false;
    this.#broker
      .connectionOf(session.id)
      ?.fail(new MqttError(ReasonCode.AdministrativeAction, "kicked out by an operator"));
    // While its client is being let in, its claim is the new session's.
    if (claims.isOpening(clientId)) sessions.discard(session);
    else sessions.end(session);
    return true;
  }

  /** Ordered by topic, then as the sessions came. */
  subscriptions({ clientid, topic, qos }: SubscriptionQuery, { offset, limit }: Slice): Listed<SubscriptionInfo> {
    const conditions: string[] = ["TRUE"];
    const bindings: (string | number)[] = [];
    const where = (condition: string, value: string | number | undefined): void => {
      if (value === undefined) return;
      conditions.push(condition);
      bindings.push(value);
    };
    where("client_id = ?", clientid);
    where("filter = ?", topic);
    where("options & 3 = ?", qos);
    const from = `FROM subscription JOIN session ON session.id = subscription.session WHERE ${conditions.join(" AND ")}`;
    const { count } = this.#sql.exec<{ count: number }>(`SELECT count(*) AS count ${from}`, ...bindings).one();
    const rows = this.#sql.exec<{ filter: string; client_id: string; options: number }>(
      `SELECT filter, client_id, options ${from} ORDER BY filter, subscription.session LIMIT ? OFFSET ?`,
      ...bindings,
      Math.min(limit, limits.adminChunkItemsMax),
      offset,
    );
    const items = rows.toArray().map((row) => {
      const { qos, noLocal, retainAsPublished, retainHandling } = subscriptionOptions(row.options);
      return {
        node: this.#broker.name,
        clientid: row.client_id,
        topic: row.filter,
        qos,
        nl: Number(noLocal),
        rap: Number(retainAsPublished),
        rh: retainHandling,
      };
    });
    return { count, items };
  }
}

function countsInMemory(session: Session) {
  return {
    inflight_cnt: session.inflightCount,
    awaiting_rel_cnt: session.awaitingRelCount,
    mqueue_len: session.queued,
  };
}

/** A connection of before the code knew them all has fewer facts. */
function connectionInfo({ facts, peer }: StoredConnection) {
  const { version, keepAlive, cleanStart, connectedAt } = facts as Partial<StoredConnection["facts"]>;
  const [, ipv6, ipv4, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(peer ?? "") ?? [];
  return {
    proto_name: version === 3 ? "MQIsdp" : "MQTT",
    proto_ver: version,
    ip_address: ipv6 ?? ipv4 ?? peer,
    port: port === undefined ? undefined : Number(port),
    keepalive: keepAlive,
    clean_start: cleanStart,
    connected_at: connectedAt === undefined ? undefined : new Date(connectedAt).toISOString(),
  };
}
