/**
 * workerd's inspector (`workerd serve --inspector-addr`), which speaks the Chrome DevTools protocol: what V8 itself counts.
 * https://chromedevtools.github.io/devtools-protocol/v8/
 */
import { WebSocket } from "ws";

export interface HeapUsage {
  readonly usedSize: number;
  /** Of ArrayBuffers. */
  readonly backingStorageSize: number;
}

interface SamplingNode {
  readonly selfSize: number;
  readonly children: readonly SamplingNode[];
}

/** Bytes between two samples of the heap profiler: small, so that few messages give a mean that is stable. */
const samplingIntervalBytes = 512;

export class Inspector {
  readonly #socket: WebSocket;
  readonly #answers = new Map<number, PromiseWithResolvers<unknown>>();
  #calls = 0;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.on("message", (data: Buffer) => {
      const { id, result, error } = JSON.parse(data.toString()) as { id?: number; result?: unknown; error?: unknown };
      if (id === undefined) return;
      if (error === undefined) this.#answers.get(id)!.resolve(result);
      else this.#answers.get(id)!.reject(new Error(JSON.stringify(error)));
      this.#answers.delete(id);
    });
  }

  /** Looks into the one worker there is. */
  static async open(port: number): Promise<Inspector> {
    const response = await fetch(`http://127.0.0.1:${port}/json`);
    const [worker] = (await response.json()) as { readonly webSocketDebuggerUrl: string }[];
    const socket = new WebSocket(worker!.webSocketDebuggerUrl);
    await new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject));
    return new Inspector(socket);
  }

  close(): void {
    this.#socket.terminate();
  }

  #call<T>(method: string, params: object = {}): Promise<T> {
    const id = ++this.#calls;
    const answer = Promise.withResolvers<unknown>();
    this.#answers.set(id, answer);
    this.#socket.send(JSON.stringify({ id, method, params }));
    return answer.promise as Promise<T>;
  }

  heapUsage(): Promise<HeapUsage> {
    return this.#call("Runtime.getHeapUsage");
  }

  /** Starts counting; gives the bytes that have been allocated on the heap since, also those that are free again. */
  async countAllocated(): Promise<() => Promise<number>> {
    await this.#call("HeapProfiler.enable");
    await this.#call("HeapProfiler.startSampling", {
      samplingInterval: samplingIntervalBytes,
      includeObjectsCollectedByMajorGC: true,
      includeObjectsCollectedByMinorGC: true,
    });
    return async () => {
      const { profile } = await this.#call<{ profile: { head: SamplingNode } }>("HeapProfiler.stopSampling");
      await this.#call("HeapProfiler.disable");
      const bytesOf = ({ selfSize, children }: SamplingNode): number =>
        children.reduce((sum, child) => sum + bytesOf(child), selfSize);
      return bytesOf(profile.head);
    };
  }
}
