/** Of a link, which no simulated core has. */
export class RpcTarget {
  readonly isSimulated = true;
}

/** Stands for the module "cloudflare:workers" where the Durable Object classes run in Node: see vitest.config.ts. */
export class DurableObject {
  readonly ctx: unknown;
  readonly env: unknown;

  constructor(ctx: unknown, env: unknown) {
    this.ctx = ctx;
    this.env = env;
  }
}
