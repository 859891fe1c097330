/** Published prices in US dollars, as read in November 2026; taxes, support plans and free trials left out. */

/**
 * https://developers.cloudflare.com/durable-objects/platform/pricing and .../workers/platform/pricing: the Workers Paid plan,
 * its $5 a month and what it includes. A call between objects, an alarm that rings and an upgrade are a request each, twenty
 * WebSocket messages that come in are one, those that go out are free. Duration is that of 128 MB while an object runs or
 * cannot hibernate; one that could is not billed, also before it does.
 */
export const cloudflare = {
  planMonth: 5,
  requests: { included: 1e6, million: 0.15 },
  workerRequests: { included: 10e6, million: 0.3 },
  webSocketMessagesPerRequest: 20,
  gigabyteSeconds: { included: 400_000, million: 12.5 },
  objectGigabytes: 0.128,
  rowsWritten: { included: 50e6, million: 1 },
} as const;

/**
 * https://aws.amazon.com/iot-core/pricing/ (Ireland) and .../pricing/additional-details: messages of up to 5 KB, those that
 * come in, those that go out and the PUBACKs of clients; keep alive is free.
 */
export const awsIotCore = {
  connectionMinutesMillion: 0.08,
  messagesMillion: [
    { upTo: 1e9, price: 1 },
    { upTo: 5e9, price: 0.8 },
    { upTo: Infinity, price: 0.7 },
  ],
} as const;

/**
 * https://docs.emqx.com/en/cloud/latest/price/pricing.html; 1,000 connections and 1,000 messages a second at most, in and out
 * (https://docs.emqx.com/en/cloud/latest/create/restriction.html).
 */
export const emqxServerless = {
  sessionMinutes: { included: 1e6, million: 2 },
  gigabytes: { included: 1, each: 0.15 },
  connectionsMax: 1000,
  messagesPerSecondMax: 1000,
} as const;

/**
 * HiveMQ Cloud: Serverless is free to 100 connections. Starter counts each PUBLISH of up to 5 KB in and out and the highest
 * number of sessions of the month (https://community.hivemq.com/t/frequently-asked-questions-hivemq-cloud/514); what that
 * costs is not on a page that could be read.
 */
export const hiveMqServerless = { connectionsMax: 100 } as const;
