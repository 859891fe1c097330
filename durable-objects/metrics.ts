/**
 * Counters since the object started, by EMQX's names: what `$SYS/brokers/{node}/metrics/...` and `/api/v5/metrics` show.
 * The last five, which EMQX has not, are what Cloudflare bills for: frames received, calls made to other objects, rows
 * written and alarms set; and frames sent, which are free and cost time.
 */
export const metricNames = [
  "bytes.received",
  "bytes.sent",
  "packets.received",
  "packets.sent",
  "messages.received",
  "messages.sent",
  "messages.publish",
  "messages.delayed",
  "messages.parked",
  "messages.dropped",
  "messages.dropped.not_authorized",
  "messages.dropped.no_subscribers",
  "messages.dropped.outbox_full",
  "messages.dropped.parked_full",
  "messages.dropped.overloaded",
  "messages.dropped.unreachable",
  "messages.dropped.failed",
  "messages.dropped.quota",
  "delivery.dropped",
  "delivery.dropped.queue_full",
  "delivery.dropped.too_large",
  "delivery.dropped.qos0_msg",
  "delivery.dropped.not_authorized",
  "delivery.dropped.expired",
  "client.connect",
  "client.connected",
  "client.disconnected",
  "client.auth.failure",
  "session.created",
  "session.resumed",
  "session.takenover",
  "session.terminated",
  "link.connected",
  "link.disconnected",
  "link.refused",
  "frames.received",
  "frames.sent",
  "rpc.calls",
  "rows.written",
  "alarms.set",
] as const;

export type MetricName = (typeof metricNames)[number];

const totals: { readonly [name in MetricName]?: MetricName } = {
  "messages.dropped.not_authorized": "messages.dropped",
  "messages.dropped.no_subscribers": "messages.dropped",
  "messages.dropped.outbox_full": "messages.dropped",
  "messages.dropped.parked_full": "messages.dropped",
  "messages.dropped.overloaded": "messages.dropped",
  "messages.dropped.unreachable": "messages.dropped",
  "messages.dropped.failed": "messages.dropped",
  "messages.dropped.quota": "messages.dropped",
  "delivery.dropped.queue_full": "delivery.dropped",
  "delivery.dropped.too_large": "delivery.dropped",
  "delivery.dropped.qos0_msg": "delivery.dropped",
  "delivery.dropped.not_authorized": "delivery.dropped",
  "delivery.dropped.expired": "delivery.dropped",
};

export class Metrics {
  readonly #counts = Object.fromEntries(metricNames.map((name) => [name, 0])) as Record<MetricName, number>;

  add(name: MetricName, count = 1): void {
    this.#counts[name] += count;
    // A message dropped for any reason is a message dropped, as in EMQX.
    const total = totals[name];
    if (total !== undefined) this.#counts[total] += count;
  }

  all(): Record<string, number> {
    return { ...this.#counts };
  }
}
