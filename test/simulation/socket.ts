/**
 * WebSockets between clients and objects, the hibernatable kind: the server's end survives eviction with its attachment,
 * and dies with a crash, without a word to the object. Frames arrive in order, each direction in its own time; a wire
 * that is cut loses what is on it, and the server may learn of that late.
 */
import type { Life, SimulatedObject } from "./object.ts";

/** What a client is told. */
export interface ClientEnd {
  handleOpen(): void;
  handleFrame(bytes: Uint8Array): void;
  /** `isClean`: the server closed it in form. */
  handleClose(isClean: boolean): void;
}

/** A socket as the runtime hands it to the object. */
export class ServerSocket {
  readonly object: SimulatedObject;
  wire!: Wire;
  #attachment: unknown = null;
  #isClosed = false;

  constructor(object: SimulatedObject) {
    this.object = object;
  }

  send(data: Uint8Array): void {
    if (this.#isClosed) throw new TypeError("Can't call WebSocket send() after close().");
    const bytes = data.slice();
    this.object.life!.output(() => this.wire.toClient(bytes));
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.object.life!.output(() => this.wire.closeByServer());
  }

  serializeAttachment(value: unknown): void {
    this.#attachment = structuredClone(value);
  }

  deserializeAttachment(): unknown {
    return structuredClone(this.#attachment);
  }
}

const goingAway = 1001;
const abnormal = 1006;
/** The longest until the server learns of a client that went silent. */
const missedAfterMs = 60_000;

/** One connection, from the client's wish to the end at both ends. */
export class Wire {
  readonly clientId: string;
  readonly #object: SimulatedObject;
  readonly #client: ClientEnd;
  #socket: ServerSocket | undefined;
  #clientState: "opening" | "open" | "over" = "opening";
  /** closing: a close has been sent or seen at the server. */
  #serverState: "none" | "open" | "closing" | "over" = "none";
  /** When the server knew that it had ended; of a crash, when that was. */
  overAtServerAt: number | undefined;
  #toServerAt = 0;
  #toClientAt = 0;
  /** What is on the way to the server is lost, or to the client. */
  #isCut = false;
  #isDropped = false;

  constructor(object: SimulatedObject, client: ClientEnd, clientId: string) {
    this.#object = object;
    this.#client = client;
    this.clientId = clientId;
    this.#atServer(() => this.#upgrade());
  }

  /** Whether the server takes it for an open connection. */
  get isOpenAtServer(): boolean {
    return this.#serverState === "open";
  }

  get nodeName(): string {
    return this.#object.name;
  }

  // ---- the client's side ------------------------------------------------------------------------------------------

  send(bytes: Uint8Array): void {
    if (this.#clientState !== "open") return;
    this.#atServer(async () => {
      if (this.#isCut || this.#serverState !== "open") return;
      const socket = this.#socket as unknown as WebSocket;
      await this.#object.deliver("frame", (shell) => shell.webSocketMessage?.(socket, bytes.slice().buffer));
    });
  }

  /** Closes it in form. */
  close(): void {
    if (this.#clientState === "over") return;
    this.#clientState = "over";
    this.#atServer(() => this.#endAtServer(goingAway));
  }

  /** The network is gone, or the client. What is under way is lost or not; the server learns of it some time later. */
  cut(): void {
    if (this.#clientState === "over") return;
    this.#clientState = "over";
    const { world } = this.#object;
    this.#isCut = world.faultChance(0.5);
    const delay = world.faultChance(0.8) ? world.latency() * 5 : world.latency() * missedAfterMs;
    this.#toServerAt = Math.max(this.#toServerAt, world.now + Math.min(delay, missedAfterMs));
    this.#atServer(() => this.#endAtServer(abnormal));
  }

  // ---- the server's side ------------------------------------------------------------------------------------------

  async #upgrade(): Promise<void> {
    if (this.#isCut) return;
    const request = { headers: new Headers({ "Sec-WebSocket-Protocol": "mqtt" }) } as unknown as Request;
    const hasArrived = await this.#object.deliver("upgrade", (shell, life) => {
      void this.#answerUpgrade(life, shell.fetch?.(request));
    });
    if (!hasArrived) this.#atClient(() => this.#lose());
  }

  async #answerUpgrade(life: Life, answer: Response | Promise<Response> | undefined): Promise<void> {
    const response = await answer;
    const { upgrading } = life;
    life.upgrading = undefined;
    if (response?.status !== 101 || !upgrading) return life.output(() => this.#atClient(() => this.#lose()));
    upgrading.wire = this;
    this.#socket = upgrading;
    this.#serverState = "open";
    life.output(() => this.#atClient(() => this.#open()));
  }

  #open(): void {
    if (this.#clientState !== "opening") return;
    this.#clientState = "open";
    this.#client.handleOpen();
  }

  #lose(): void {
    if (this.#clientState === "over") return;
    this.#clientState = "over";
    this.#client.handleClose(false);
  }

  toClient(bytes: Uint8Array): void {
    if (isConnackOfSuccess(bytes)) this.#object.world.handleConnected(this);
    this.#atClient(() => {
      if (this.#clientState === "open" && !this.#isDropped) this.#client.handleFrame(bytes);
    });
  }

  closeByServer(): void {
    if (this.#serverState !== "open") return;
    this.#serverState = "closing";
    this.overAtServerAt = this.#object.world.now;
    this.#atClient(() => {
      if (this.#clientState === "over") return;
      this.#clientState = "over";
      this.#client.handleClose(true);
      this.#atServer(() => this.#endAtServer(goingAway));
    });
  }

  /** The last event of a socket; it comes also after the server's own close. */
  async #endAtServer(code: number): Promise<void> {
    const socket = this.#socket;
    if (!socket || this.#serverState === "over") return;
    this.#serverState = "closing";
    this.overAtServerAt ??= this.#object.world.now;
    await this.#object.deliver(`close ${code}`, (shell) => {
      const event = socket as unknown as WebSocket;
      if (code === abnormal && this.#object.world.faultChance(0.5)) shell.webSocketError?.(event, new Error("lost"));
      else shell.webSocketClose?.(event, code, "", code !== abnormal);
    });
    this.#serverState = "over";
    this.#object.sockets.delete(socket);
  }

  /** The object has crashed: to it the socket has never been. */
  dropByServer(): void {
    if (this.#serverState === "over") return;
    this.#serverState = "over";
    this.overAtServerAt ??= this.#object.world.now;
    this.#isDropped = this.#object.world.faultChance(0.5);
    this.#atClient(() => this.#lose());
  }

  // ---- on the way -------------------------------------------------------------------------------------------------

  #atServer(run: () => void | Promise<void>): void {
    const { world } = this.#object;
    this.#toServerAt = Math.max(this.#toServerAt, world.now + world.latency());
    world.timeline.schedule(this.#toServerAt, run);
  }

  #atClient(run: () => void): void {
    const { world } = this.#object;
    this.#toClientAt = Math.max(this.#toClientAt, world.now + world.latency());
    world.timeline.schedule(this.#toClientAt, run);
  }
}

/** At the start of a frame, where a CONNACK always is. */
function isConnackOfSuccess(bytes: Uint8Array): boolean {
  return bytes[0] === 0x20 && bytes[3] === 0;
}
