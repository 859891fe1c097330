/** The bindings of wrangler.toml; the settings beside them are read by cluster/config.ts. */
interface Env {
  readonly NODE: DurableObjectNamespace<import("./node/broker-node.ts").BrokerNode>;
  readonly COORDINATOR: DurableObjectNamespace<import("./coordinator/coordinator.ts").Coordinator>;
  /** "true" when the broker listens on loopback only. */
  readonly LOOPBACK?: string;
  /** "true" under `npm start`, which reads the files of `ssl_options`. */
  readonly SSL_FILES?: string;
  /** Dials links with this deployment's client certificate: an mTLS binding, or a service of `npm start`. */
  readonly LINKS?: Fetcher;
  /** The operators' bearer token. */
  readonly TRELLIS_API_TOKEN?: string;
  readonly [setting: string]: unknown;
}
