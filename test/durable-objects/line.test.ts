import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { overLine } from "../../durable-objects/line.ts";
import { limits } from "../../mqtt/limits.ts";

beforeEach(() => {
  vi.useFakeTimers();
});

afterEach(() => {
  vi.useRealTimers();
});

/** An object whose calls are written down; it answers when it is told to. */
class Callee {
  readonly heard: string[] = [];
  #waiting: { readonly what: string; readonly answer: PromiseWithResolvers<Uint8Array> }[] = [];

  readonly stub = {
    forward: (batch: Uint8Array) => this.#hear(`forward ${batch[0]}`),
    stats: (): Promise<string> => Promise.resolve("stats"),
    open: () => {
      this.heard.push("open");
      return {
        send: (batch: Uint8Array) => this.#hear(`send ${batch[0]}`),
        // oxlint-disable-next-line unicorn/no-thenable -- as the runtime's
        then() {},
        [Symbol.dispose]: () => void this.heard.push("close"),
      };
    },
  };

  #hear(what: string): Promise<Uint8Array> {
    this.heard.push(what);
    const answer = Promise.withResolvers<Uint8Array>();
    this.#waiting.push({ what, answer });
    return answer.promise;
  }

  answerAll(): void {
    for (const { answer } of this.#waiting.splice(0)) answer.resolve(new Uint8Array());
  }

  fail(what: string): void {
    for (const call of this.#waiting) if (call.what === what) call.answer.reject(new Error("it is gone"));
    this.#waiting = this.#waiting.filter((call) => call.what !== what);
  }

  failAll(): void {
    for (const { what } of [...this.#waiting]) this.fail(what);
  }
}

function call(callee: Callee, numbers: number[], stub = overLine(callee.stub, "forward")) {
  const answers = numbers.map((number) => stub.forward(Uint8Array.of(number)));
  return { stub, answers };
}

describe("calls over a line", () => {
  test("[G2] a few are made on the stub, those behind them over a line that is opened on it", async () => {
    const callee = new Callee();
    const { answers } = call(callee, [1, 2, 3, 4, 5, 6]);
    expect(callee.heard).toEqual(["forward 1", "forward 2", "forward 3", "forward 4", "open", "send 5", "send 6"]);
    callee.answerAll();
    await Promise.all(answers);
  });

  test("it is closed when it has been quiet, and not while something is under way", async () => {
    const callee = new Callee();
    const { stub, answers } = call(callee, [1, 2, 3, 4, 5]);
    await vi.advanceTimersByTimeAsync(10 * limits.lineQuietMs);
    expect(callee.heard).not.toContain("close");
    callee.answerAll();
    await Promise.all(answers);
    await vi.advanceTimersByTimeAsync(2 * limits.lineQuietMs);
    expect(callee.heard.at(-1)).toBe("close");
    call(callee, [6], stub);
    expect(callee.heard.at(-1)).toBe("forward 6");
    expect(vi.getTimerCount()).toBe(0);
  });

  test("a slow caller opens none", async () => {
    const callee = new Callee();
    const { stub } = call(callee, [0]);
    for (let number = 1; number < 20; number++) {
      await vi.advanceTimersByTimeAsync(limits.lineQuietMs);
      call(callee, [number], stub);
    }
    expect(callee.heard).not.toContain("open");
    expect(vi.getTimerCount()).toBe(0);
  });

  test("[G2] one that fails is used on until all that was sent over it is answered", async () => {
    const callee = new Callee();
    const { stub, answers } = call(callee, [1, 2, 3, 4, 5, 6]);
    callee.fail("send 5");
    await expect(answers[4]).rejects.toThrow("it is gone");
    const { answers: more } = call(callee, [7], stub);
    expect(callee.heard.at(-1)).toBe("send 7");
    callee.failAll();
    expect((await Promise.allSettled([...answers, ...more])).map(({ status }) => status)).toEqual(
      Array(7).fill("rejected"),
    );
    await vi.advanceTimersByTimeAsync(2 * limits.lineQuietMs);
    expect(callee.heard.filter((what) => what === "close")).toEqual(["close"]);
  });

  test("other methods are called as ever", async () => {
    const callee = new Callee();
    const { stub } = call(callee, [1, 2, 3, 4, 5]);
    expect(await stub.stats()).toBe("stats");
    callee.answerAll();
  });
});
