/** Counts the calls made on an object's stub: each is billed as a request to that object. */
export function countedCalls<T extends object>(stub: T, addCall: () => void): T {
  return new Proxy(stub, {
    get(target, method) {
      // A stub is no thenable: it may be returned from an async function.
      if (method === "then") return undefined;
      return (...args: readonly unknown[]): unknown => {
        addCall();
        // Called on the stub itself: its methods are remote, and are found when they are called.
        return (target as Record<PropertyKey, (...args: readonly unknown[]) => unknown>)[method]!(...args);
      };
    },
  });
}
