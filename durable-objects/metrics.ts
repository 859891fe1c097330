/** Counters since the object started, by EMQX's names: what `$SYS/brokers/{node}/metrics/...` shows. */
export const metricNames = [
  "bytes.received",
  "bytes.sent",
  "packets.received",
  "packets.sent",
  "messages.received",
  "messages.sent",
  "messages.publish",
  "messages.delayed",
  "messages.dropped",
  "messages.dropped.not_authorized",
  "messages.dropped.outbox_full",
  "delivery.dropped",
  "delivery.dropped.queue_full",
  "delivery.dropped.too_large",
  "delivery.dropped.offline_qos0",
  "client.connect",
  "client.connected",
  "client.disconnected",
  "client.auth.failure",
  "session.created",
  "session.resumed",
  "session.takenover",
  "session.terminated",
] as const;

export type MetricName = (typeof metricNames)[number];

export class Metrics {
  readonly #counts = new Map<MetricName, number>();

  add(name: MetricName, count = 1): void {
    this.#counts.set(name, (this.#counts.get(name) ?? 0) + count);
  }

  /** Every counter, with those at 0. */
  all(): Record<string, number> {
    return Object.fromEntries(metricNames.map((name) => [name, this.#counts.get(name) ?? 0]));
  }
}
