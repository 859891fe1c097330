/** The bindings of wrangler.toml; the settings beside them are read by cluster/config.ts. */
interface Env {
  readonly NODE: DurableObjectNamespace<import("./node/broker-node.ts").BrokerNode>;
  readonly COORDINATOR: DurableObjectNamespace<import("./coordinator/coordinator.ts").Coordinator>;
  /** "true" when the broker listens on loopback only. */
  readonly LOOPBACK?: string;
  /** The operators' bearer token. */
  readonly TRELLIS_API_TOKEN?: string;
  readonly [setting: string]: unknown;
}
