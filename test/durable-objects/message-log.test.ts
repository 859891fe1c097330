import { describe, expect, test } from "vitest";
import { newest } from "../../durable-objects/node/message-log.ts";
import type { StoredMessage } from "../../mqtt/session.ts";

const message = (seq: number, filter: string | undefined): StoredMessage => ({ seq, filter, bytes: 1, shared: false });

/** So many filters with so many messages each, one filter behind the other, as the disk gives them. */
function* streams(filters: number, messages: number): Generator<StoredMessage> {
  for (let filter = 0; filter < filters; filter++)
    for (let index = 0; index < messages; index++) yield message(1 + index * filters + filter, `f/${filter}`);
}

describe("[G6] what a session that was away has waiting", () => {
  test("is all there, by rising number, each once, while its queue may hold it", () => {
    const own = [message(3, undefined)];
    const logged = [message(1, "a"), message(3, "a"), message(4, "a"), message(2, "b"), message(4, "b")];
    const { messages, dropped } = newest(own, logged, { lengthMax: 10, inflight: new Set() });
    expect(messages.map(({ seq, filter }) => [seq, filter])).toEqual([
      [1, "a"],
      [2, "b"],
      [3, undefined],
      [4, "a"],
    ]);
    expect(dropped).toBe(0);
  });

  test("is never more than twice its queue, the newest, and what is inflight", () => {
    const inflight = new Set([5, 7]);
    const { messages, dropped } = newest([], streams(1000, 1000), { lengthMax: 100, inflight });
    const seqs = messages.map(({ seq }) => seq);
    expect(seqs.slice(0, 2)).toEqual([5, 7]);
    expect(seqs.length).toBeLessThanOrEqual(2 * 100 + 2);
    expect(seqs.slice(-100)).toEqual(Array.from({ length: 100 }, (_, index) => 1_000_000 - 99 + index));
    expect(dropped).toBe(1_000_000 - seqs.length);
  });
});
