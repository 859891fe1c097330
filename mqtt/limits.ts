/**
 * Every bound that is not a setting (G6). Settings (cluster/config.ts) bound what an operator tunes; these bound what
 * nobody should have to. What is dropped at a bound is counted in metrics and shown under $SYS.
 */
export const limits = {
  /** Topic names that one client may hold behind topic aliases; more is answered with 0x97. */
  topicAliasBytesMax: 65_536,
  /** Aliases that the broker assigns towards one client, whatever more the client would take. */
  topicAliasesOutMax: 16,
  /** Bytes a client may send before its CONNECT is answered, on top of one packet. */
  connectingBytesMax: 65_536,
  /** Bytes of a client's packets that wait behind publishes held back. */
  heldBytesMax: 16_777_216,
  /** An unfinished packet may stay unfinished this long; it also holds the object in memory. */
  unfinishedPacketMs: 10_000,
  /** Publishes of one connection that the cluster has not answered yet: beyond it the next are held back. */
  publishesUnansweredMax: 10_000,
  publishBytesUnansweredMax: 8_388_608,
  /** Messages waiting in one session's queue, beside `mqtt.max_mqueue_len`. */
  mqueueBytesMax: 16_777_216,
  /** What of one session's queue, and of all queues of a node, is held in memory; the rest waits on disk. */
  queueHeldBytesMax: 2_097_152,
  queuesHeldBytesMax: 33_554_432,
  /** Subscriptions of one session; more is answered with 0x97. */
  subscriptionsPerSessionMax: 10_000,
  subscriptionBytesPerSessionMax: 1_048_576,
  /** Filters in one SUBSCRIBE or UNSUBSCRIBE are bounded by the packet size; this bounds the work. */
  filtersPerPacketMax: 1_000,
  /** Delivered bytes gathered for one socket before a frame is sent without waiting for the turn's end. */
  frameBytesMax: 65_536,
  /** Bytes waiting for one destination object: beyond the first QoS 0 is dropped, beyond the second all is refused. */
  outboxBytesMaxQos0: 16_777_216,
  outboxBytesMax: 33_554_432,
  /** One batch between objects. */
  batchBytesMax: 1_048_576,
  /** Batches under way to one destination. */
  batchesInFlightMax: 8,
  /** While one is under way the next gathers so many bytes, or so long, before it is sent behind it. */
  batchBytesSoon: 32_768,
  batchGatherMs: 5,
  /** Topics whose matches a core remembers, and the filters that one of them may have matched. */
  topicMatchesMax: 10_000,
  topicMatchBytesMax: 1_024,
  /** When there is more to do between two looks than these events, frames and calls, what they bring leaves together. */
  turnWorkMax: 8,
  turnGathersMs: 20,
  /** Unwritten state waits this long for the disk at most. */
  checkpointDelayMs: 500,
  /** One page of retained messages, or of an exported session. */
  pageBytesMax: 1_048_576,
  /** Messages in one page, and topics looked at for it: each is a query of its own. */
  pageMessagesMax: 500,
  pageTopicsMax: 2_000,
  /** Pages of retained messages under way to one node. */
  retainedPagesUnderWayMax: 4,
  /** How fast a client gets retained messages at QoS 0, page by page: nobody says how fast it takes them. */
  retainedQos0BytesPerMsMax: 4_096,
  /** Retained messages of one cluster; beyond it a new topic is refused with 0x97. */
  retainedMessagesMax: 1_000_000,
  /** Retained messages that have expired are deleted together, once in this time at most. */
  retainedSweepMs: 60_000,
  /** What a core remembers of the messages that were retained or cleared a topic, to know those that come again. */
  latestIdsBytesMax: 4_194_304,
  /** Password checks waiting on one node, beyond which CONNECT is answered with 0x89; users known without another check. */
  passwordChecksWaitingMax: 32,
  passwordsKnownMax: 10_000,
  /** How long the ids of QoS 2 messages are known, and how many blocks of them to a node that takes a session over. */
  knownMs: 7_200_000,
  knownBlocksMovedMax: 1_024,
  /** Filters, and share groups, whose subscribers a node holds in memory; the others are read when they are asked for. */
  filtersLoadedMax: 50_000,
  /** One row of the node's log: a Durable Object's row holds 2 MB. */
  logRowBytesMax: 1_048_576,
  /** Message numbers reserved on disk at once. */
  seqsReserved: 65_536,
  /** Sessions whose checkpoints share a row, how many such rows are held in memory, and from where one has its own row. */
  checkpointsPerRow: 128,
  checkpointRowsLoadedMax: 32,
  checkpointBytesSharedMax: 8_192,
  /** Blocks of known message ids in memory. */
  knownBlocksLoadedMax: 1_024,
  /** Sessions on one node, connected or not; beyond it a new one is refused with 0x97. */
  sessionsPerNodeMax: 100_000,
  /** Attempts before a call is given up, and before a node counts as unreachable: what waits for it is parked. */
  attemptsMax: 7,
  /** When a node looks whether the messages of its own have been sent. */
  ownMessagesRetryMs: 10_000,
  /** Delay before the second attempt; it doubles up to the last. */
  retryFirstMs: 50,
  retryLastMs: 3_000,
  /** What is parked on a core's disk for one node that cannot be reached; beyond it QoS 1 and 2 are refused with 0x97. */
  parkedBytesMax: 268_435_456,
  /** How often that node is tried: as rarely as it has been away long, between these. */
  drainRetryFirstMs: 1_000,
  drainRetryLastMs: 30_000,
  /** A node that may hold a session is asked for so long, twice if the core reaches it: then its client is let in without it. */
  holderSilentMsMax: 7_000,
  /** Numbers kept free for what a session's old node gives it: more than a queue and a window hold. */
  seqsPerMove: 262_144,
  /** Delayed messages (`$delayed/...`) waiting in one cluster. */
  delayedMessagesMax: 100_000,
  /** How often a share group's message is picked for a member that turns out to have left. */
  groupPicksMax: 16,
  /** Distinct publishers remembered by one share group, for `round_robin` and `sticky`. */
  groupPublishersMax: 1_024,

  /** What the settings of a cluster may list. */
  coreNodesMax: 7,
  seedsMax: 100,
  etcdServersMax: 16,
  tcpAllowedHostsMax: 100,
  /** A cookie is guessed against recorded proofs: it is to be long. At most an atom of Erlang, as in EMQX. */
  cookieCharsMin: 16,
  cookieCharsMax: 255,
  k8sTokenCharsMax: 8_192,
  /** Members of a cluster, present or left. */
  membersMax: 10_000,
  /** Removed routes, and cleared topics, that a core remembers for each writer: who has missed more reads all anew. */
  removalsPerWriterMax: 10_000,
  /** One page of a writer's changes, of a node's routes, of claims that move. */
  pageEntriesMax: 2_000,
  /** A core that does not answer is tried as rarely as it has been away long, between these; one that was cleaned, last. */
  probeFirstMs: 1_000,
  probeLastMs: 30_000,
  probeCleanedMs: 300_000,
  /** A core that has been silent for so long counts as down; half way it is asked whether it is there. */
  peerSilentMsMax: 5_000,
  /** A partition is confirmed, reported and healed after so long each (EMQX's ekka_autoheal). */
  partitionConfirmMs: 3_000,
  partitionHealMs: 5_000,
  /** Calls in a row that the home core fails before a node goes to another one, and when it looks for the first again. */
  homeFailuresMax: 5,
  homeReturnMs: 60_000,
  // ---- discovery ----------------------------------------------------------------------------------------------------

  /** A discovery server answers within this time, and with no more than this; a lock is waited for so long. */
  discoveryAnswerMs: 5_000,
  discoveryAnswerBytesMax: 1_048_576,
  discoveryLockWaitMs: 10_000,
  /** A lock whose holder crashes is free again after this. */
  discoveryLockLeaseMs: 30_000,
  /** Delay before the second round of a search that failed; it doubles up to the last. */
  discoveryRetryFirstMs: 1_000,
  discoveryRetryLastMs: 60_000,
  /** A round that has not ended by then is given up, and the next one starts. */
  discoveryRoundMs: 60_000,
  /** Names that one discovery may yield; more are ignored, and that is logged. */
  discoveredNodesMax: 128,
  /** One page that an operator asks for, in items and in characters of what clients have chosen. */
  adminPageItemsMax: 1_000,
  adminPageCharsMax: 4_194_304,
  /** Items that a node gives at once: what it does for its clients goes on in between. */
  adminChunkItemsMax: 100,
  /** A node that an operator asks counts as silent after this time. */
  adminCallMsMax: 5_000,

  /** Links to other deployments: from the dial, or the upgrade, until both sides have proved their cookie. */
  linkProofMs: 5_000,
  linkProofCharsMax: 2_048,
  /** Sockets that have not proved it yet, on one core; then the oldest makes way. */
  linksUnprovedMax: 64,
  /** With calls under way and nothing heard for so long, a peer is asked; after as long again the link is closed. */
  linkSilentMs: 3_000,
  /** Calls under way on one link in each direction, and on the way to one that is being dialed. */
  linkCallsMax: 4_096,
  /** One message of a link: a batch with a message of the largest size, as base64, is half of it. */
  linkMessageCharsMax: 8_388_608,

  /** Retained messages at QoS 0 that a node gives its clients faster than `retainedQos0BytesPerMsMax`. */
  retainedQos0BytesAheadMax: 8_388_608,
  /** Claims that a node makes in one call, and their client ids. */
  claimsPerCallMax: 256,
  /** How long claims wait at most for the end of a call that is under way. */
  claimsGatherMs: 100,
  claimCharsPerCallMax: 1_048_576,
  /** Rows of the node's log that are held in memory while sessions read on in them. */
  logRowsOpenMax: 8,

  /** Calls that follow one another this soon open a line after so many; one that has been quiet for so long is closed. */
  lineQuietMs: 100,
  lineCallsMin: 4,
} as const;

/** How long to wait after an attempt that failed; the first is 1. */
export function retryDelayMs(attempt: number): number {
  return Math.min(limits.retryLastMs, limits.retryFirstMs * 2 ** (attempt - 1));
}
