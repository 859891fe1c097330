/** How long a test waits for what must come: far longer than that takes, so that none fails on a busy machine. ms. */
export const patience = { timeout: 20_000, interval: 20 };
