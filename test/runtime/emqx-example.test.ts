// The example by which EMQX's documentation explains its distributed design: three clients on three nodes, and where a
// message to t/a goes. (EMQX documentation, "Design": the topic trie, the route table and the subscription tables.)

import { afterEach, expect, test, vi } from "vitest";
import { RouteTable } from "../../cluster/routes.ts";
import { TopicTrie } from "../../cluster/trie.ts";
import { BrokerNode } from "../../durable-objects/node/broker-node.ts";
import { converse, newNode, publish, rows, subscribe } from "./conversation.ts";

afterEach(() => {
  vi.restoreAllMocks();
});

test("[G3] a publish to t/a from client1 is forwarded to node2 and node3 only", async () => {
  const [node1, node2, node3] = [newNode(), newNode(), newNode()];
  const client1 = await converse(node1, { clientId: "client1" });
  const client2 = await converse(node2, { clientId: "client2" });
  const client3 = await converse(node3, { clientId: "client3" });
  await subscribe(client1, ["t/+/x", "t/+/y"]);
  await subscribe(client2, "t/#");
  await subscribe(client3, ["t/+/x", "t/a"]);

  const tables = vi.spyOn(RouteTable.prototype, "match");
  const tries = vi.spyOn(TopicTrie.prototype, "match");
  const forwards = forwardsOf();
  client1.send(publish("t/a", "hello", 1, { messageId: 1 }));
  await client1.expect("puback", { messageId: 1, reasonCode: 0 });

  await client2.expectMessage("hello", { topic: "t/a" });
  await client3.expectMessage("hello", { topic: "t/a" });
  await client1.expectNothing();
  expect(forwards()).toEqual([node2, node3].sort());

  const [table] = tables.mock.contexts as RouteTable[];
  expect([...table!.entries()].map(({ filter, node }) => `${filter} -> ${node}`).sort()).toEqual([
    `t/# -> ${node2}`,
    `t/+/x -> ${node1}`,
    `t/+/x -> ${node3}`,
    `t/+/y -> ${node1}`,
    `t/a -> ${node3}`,
  ]);
  const [trie] = tries.mock.contexts as TopicTrie[];
  expect([...trie!.entries()].map(([filter]) => filter).sort()).toEqual(["t/#", "t/+/x", "t/+/y", "t/a"]);
  expect(await subscribed(node1)).toEqual(["client1 t/+/x", "client1 t/+/y"]);
  expect(await subscribed(node2)).toEqual(["client2 t/#"]);
  expect(await subscribed(node3)).toEqual(["client3 t/+/x", "client3 t/a"]);
});

/** The nodes that messages are forwarded to from now on. */
function forwardsOf(): () => string[] {
  const targets: string[] = [];
  // oxlint-disable-next-line typescript/unbound-method -- it is called with the object that it was called on
  const { forward } = BrokerNode.prototype;
  vi.spyOn(BrokerNode.prototype, "forward").mockImplementation(function (this: BrokerNode, batch) {
    targets.push((this as unknown as { readonly ctx: DurableObjectState }).ctx.id.name ?? "");
    return forward.call(this, batch);
  });
  return () => targets.sort();
}

async function subscribed(node: string): Promise<string[]> {
  const query = `SELECT client_id || ' ' || filter AS entry
                   FROM subscription JOIN session ON session.id = subscription.session ORDER BY entry`;
  return (await rows<{ entry: string }>(node, query)).map(({ entry }) => entry);
}
