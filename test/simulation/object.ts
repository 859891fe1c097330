/**
 * One Durable Object: a name and a disk that outlive its lives. A life begins with the first event that comes (the
 * constructor runs), and ends by eviction, which leaves its sockets, or by a crash, which drops them without a word.
 */
import { Disk } from "./disk.ts";
import type { Call, Stub } from "./network.ts";
import type { ServerSocket } from "./socket.ts";
import type { Scheduled } from "./timeline.ts";
import type { World } from "./world.ts";

/** The public methods of a Durable Object's class, by their names. */
export interface Shell {
  fetch?(request: Request): Response | Promise<Response>;
  webSocketMessage?(socket: WebSocket, data: string | ArrayBuffer): unknown;
  webSocketClose?(socket: WebSocket, code: number, reason: string, wasClean: boolean): unknown;
  webSocketError?(socket: WebSocket, error: unknown): unknown;
  alarm?(): unknown;
}

export type CreateShell = (ctx: DurableObjectState, env: Env) => Shell;

/** An alarm whose handler failed comes again. */
const alarmRetryMs = 2000;

export class SimulatedObject {
  readonly name: string;
  readonly world: World;
  readonly disk = new Disk();
  /** Those that the object has accepted and that are not over. */
  readonly sockets = new Set<ServerSocket>();
  life: Life | undefined;
  lives = 0;
  crashes = 0;
  evictions = 0;
  readonly #create: CreateShell;
  #alarm: Scheduled | undefined;

  constructor(world: World, name: string, create: CreateShell) {
    this.world = world;
    this.name = name;
    this.#create = create;
    world.objects.set(name, this);
  }

  /** An event comes; the first of a life wakes the object. @returns false: it crashed before the event was there. */
  async deliver(what: string, handle: (shell: Shell, life: Life) => void): Promise<boolean> {
    const life = this.life ?? (await this.#wake());
    life.isWaking = false;
    if (!life.isAlive) return false;
    await this.world.turn(life, what, () => handle(life.shell!, life));
    return true;
  }

  async #wake(): Promise<Life> {
    const life = new Life(this);
    this.life = life;
    this.lives++;
    await this.world.turn(life, "wakes", () => {
      life.shell = this.#create(contextOf(life), this.world.network.envOf(life));
    });
    return life;
  }

  /** Memory goes, sockets stay. */
  evict(): void {
    this.world.log(`${this.name} sleeps`);
    this.evictions++;
    this.#endLife();
  }

  crash(when: string): void {
    const { life } = this;
    if (!life) return;
    this.world.log(`${this.name} CRASHES ${when}`);
    this.crashes++;
    this.#endLife();
    this.disk.rang("crashed");
    this.disk.rollback();
    this.world.network.handleCrash(life);
    for (const socket of this.sockets) socket.wire.dropByServer();
    this.sockets.clear();
    this.setAlarm();
  }

  #endLife(): void {
    this.life?.end();
    this.life = undefined;
  }

  /** As the disk has it now. */
  setAlarm(): void {
    const { alarmAt } = this.disk;
    if (this.#alarm && !this.#alarm.cancelled && this.#alarm.at === alarmAt) return;
    if (this.#alarm) this.#alarm.cancelled = true;
    this.#alarm = alarmAt === null ? undefined : this.world.timeline.schedule(alarmAt, () => this.#ring());
  }

  async #ring(): Promise<void> {
    this.#alarm!.cancelled = true;
    this.disk.ring();
    await this.deliver("alarm", (shell, life) => {
      life.isRinging = true;
      const end = () =>
        life.output(() => {
          life.isRinging = false;
          this.disk.rang("handled");
          this.setAlarm();
        });
      Promise.resolve(shell.alarm?.()).then(end, (error: unknown) => {
        this.world.violate(`the alarm of ${this.name} failed: ${String(error)}`);
        life.isRinging = false;
        this.disk.rang("crashed");
        this.world.after(alarmRetryMs, () => this.#ring());
      });
    });
  }
}

/** One life: what is in memory, and what is under way. */
export class Life {
  readonly object: SimulatedObject;
  shell: Shell | undefined;
  isAlive = true;
  isAborted = false;
  /** The event that woke it is still to come. */
  isWaking = true;
  isRinging = false;
  /** A socket that `WebSocketPair` has made for the upgrade being handled. */
  upgrading: ServerSocket | undefined;
  readonly timers = new Set<Scheduled>();
  readonly callsIn = new Set<Call>();
  readonly callsOut = new Set<Call>();
  /** Lines that others have opened to it. */
  readonly linesIn = new Set<Stub>();
  #outputs: (() => void)[] = [];
  #lastImmediateAt = 0;

  constructor(object: SimulatedObject) {
    this.object = object;
  }

  get name(): string {
    return this.object.name;
  }

  /** What leaves at the turn's end, when what was written is durable. */
  output(release: () => void): void {
    this.#outputs.push(release);
  }

  commit(): void {
    const { disk, world } = this.object;
    if (disk.hasUncommitted) {
      world.log(`${this.name} commits`);
      disk.commit();
      this.object.setAlarm();
    }
    const outputs = this.#outputs;
    this.#outputs = [];
    for (const release of outputs) release();
  }

  /** The runtime would let it go: nothing is under way. */
  get maySleep(): boolean {
    const calls = this.callsIn.size + this.callsOut.size + this.linesIn.size;
    return this.isAlive && this.timers.size === 0 && calls === 0 && !this.isRinging && !this.isWaking;
  }

  end(): void {
    this.isAlive = false;
    for (const timer of this.timers) timer.cancelled = true;
    this.timers.clear();
    this.#outputs = [];
  }

  // ---- timers -----------------------------------------------------------------------------------------------------

  setTimer(ms: number, run: () => void): Scheduled {
    return this.#addTimer(this.object.world.now + Math.max(1, ms), "timer", run);
  }

  /** In their order, with other events between them or not. */
  setImmediate(run: () => void): Scheduled {
    const { world } = this.object;
    this.#lastImmediateAt = Math.max(this.#lastImmediateAt, world.now + (world.faultChance(0.2) ? world.latency() : 0));
    return this.#addTimer(this.#lastImmediateAt, "immediate", run);
  }

  #addTimer(at: number, what: string, run: () => void): Scheduled {
    const { world } = this.object;
    const timer = world.timeline.schedule(at, () => {
      this.timers.delete(timer);
      return world.turn(this, what, run);
    });
    this.timers.add(timer);
    return timer;
  }

  clearTimer(timer: Scheduled): void {
    timer.cancelled = true;
    this.timers.delete(timer);
  }
}

/** What the runtime hands to the constructor. */
function contextOf(life: Life): DurableObjectState {
  const { object } = life;
  const context = {
    id: { name: object.name, toString: () => object.name },
    storage: object.disk.storage,
    getWebSockets: () => [...object.sockets],
    acceptWebSocket: (socket: ServerSocket) => object.sockets.add(socket),
    abort: () => (life.isAborted = true),
  };
  return context as unknown as DurableObjectState;
}
