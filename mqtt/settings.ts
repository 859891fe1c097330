import type { QoS } from "./publish.ts";

/** The settings under `mqtt` that the protocol machines look at, by EMQX's names. */
export interface MqttSettings {
  /** Bytes. */
  readonly max_packet_size: number;
  readonly max_topic_levels: number;
  readonly max_qos_allowed: QoS;
  readonly max_topic_alias: number;
  readonly retain_available: boolean;
  readonly wildcard_subscription: boolean;
  readonly shared_subscription: boolean;
  readonly max_inflight: number;
  readonly max_awaiting_rel: number;
  readonly max_mqueue_len: number;
  /** Milliseconds. */
  readonly session_expiry_interval: number;
  /** Seconds; undefined: disabled. */
  readonly server_keepalive: number | undefined;
  /** Milliseconds. */
  readonly idle_timeout: number;
}
