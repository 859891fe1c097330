// What a broker's objects have counted between two readings of /api/v5/metrics.

/** By metric: `frames.received`, `frames.sent`, `rpc.calls`, `rows.written`, `alarms.set` and EMQX's. */
export type Counts = Readonly<Record<string, number>>;

/** By node, the core among them. */
export type CountsByNode = ReadonlyMap<string, Counts>;

/** Where the API is, and the token that it wants. */
export interface Api {
  readonly port: number;
  readonly token: string;
}

/** Starts counting; each reading gives what has been counted since. Nodes must be awake, and stay so. */
export async function countFromNow(api: Api): Promise<() => Promise<CountsByNode>> {
  const before = await read(api);
  let readings = 0;
  return async () => {
    readings++;
    const after = await read(api);
    const counted = new Map<string, Counts>();
    for (const [node, metrics] of after) {
      const delta = { ...metrics };
      for (const [name, value] of Object.entries(before.get(node) ?? {})) delta[name]! -= value;
      counted.set(node, delta);
    }
    // The core has shown its counters before it has asked the nodes for theirs: the readings before this one are counted.
    const core = counted.get([...after.keys()][0]!) as Record<string, number>;
    core["rpc.calls"]! -= readings * (before.size - 1);
    return counted;
  };
}

async function read({ port, token }: Api): Promise<Map<string, Record<string, number>>> {
  const response = await fetch(`http://127.0.0.1:${port}/api/v5/metrics`, {
    headers: { Authorization: `Bearer ${token}` },
  });
  if (!response.ok) throw new Error(`the broker gave no metrics: ${response.status} ${await response.text()}`);
  const all = (await response.json()) as ({ readonly node: string } & Record<string, unknown>)[];
  return new Map(all.map(({ node, ...metrics }) => [node, metrics as Record<string, number>]));
}
