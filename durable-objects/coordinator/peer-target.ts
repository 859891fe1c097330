import { RpcTarget } from "cloudflare:workers";
import type { Member } from "../../cluster/membership.ts";
import type { NodeName } from "../../cluster/name.ts";
import { isNodeMethod } from "../remote-node.ts";
import type {
  AdminAnswer,
  ChangesPage,
  Claim,
  ClaimsPage,
  ClusterSize,
  Hello,
  NodeRpc,
  PeerRpc,
  RegistryMove,
} from "../rpc.ts";

/** What a core of another deployment may call over its link: as the peer that it has proved to be, whatever it says. */
export class PeerTarget extends RpcTarget implements PeerRpc {
  readonly #core: PeerRpc;
  readonly #peer: NodeName;

  constructor(core: PeerRpc, peer: NodeName) {
    super();
    this.#core = core;
    this.#peer = peer;
  }

  hello(_: NodeName, hello: Hello): Promise<Hello | undefined> {
    return this.#core.hello(this.#peer, hello);
  }

  relay(_: NodeName, batch: Uint8Array): Promise<Uint8Array> {
    return this.#core.relay(this.#peer, batch);
  }

  changes(writer: NodeName, since: number, after: string): Promise<ChangesPage> {
    return this.#core.changes(writer, since, after);
  }

  mayJoin(_: NodeName, members: readonly Member[]): Promise<AdminAnswer> {
    return this.#core.mayJoin(this.#peer, members);
  }

  acceptJoin(_: NodeName, members: readonly Member[]): Promise<AdminAnswer> {
    return this.#core.acceptJoin(this.#peer, members);
  }

  size(): Promise<ClusterSize | undefined> {
    return this.#core.size();
  }

  invited(): Promise<AdminAnswer> {
    return this.#core.invited(this.#peer);
  }

  dismissed(): Promise<void> {
    return this.#core.dismissed();
  }

  reportPartition(_: NodeName, peer: NodeName): Promise<void> {
    return this.#core.reportPartition(this.#peer, peer);
  }

  view(): Promise<readonly NodeName[]> {
    return this.#core.view();
  }

  heal(minority: readonly NodeName[]): Promise<void> {
    return this.#core.heal(minority);
  }

  restart(): Promise<void> {
    return this.#core.restart();
  }

  claimHere(clientId: string, node: NodeName): Promise<Claim | undefined> {
    return this.#core.claimHere(clientId, node);
  }

  abandonHere(clientId: string, epoch: number, holder: NodeName): Promise<boolean | undefined> {
    return this.#core.abandonHere(clientId, epoch, holder);
  }

  openedHere(clientId: string, epoch: number, node: NodeName): Promise<void> {
    return this.#core.openedHere(clientId, epoch, node);
  }

  releaseHere(clientId: string, epoch: number): Promise<void> {
    return this.#core.releaseHere(clientId, epoch);
  }

  holdersHere(clientId: string): Promise<readonly NodeName[] | undefined> {
    return this.#core.holdersHere(clientId);
  }

  claimsFor(move: RegistryMove, after: string): Promise<ClaimsPage> {
    return this.#core.claimsFor(move, after);
  }

  giveClaims(claims: ClaimsPage["claims"]): Promise<void> {
    return this.#core.giveClaims(claims);
  }

  settledHere(node: NodeName): Promise<boolean> {
    return this.#core.settledHere(node);
  }

  reachesHere(name: NodeName): Promise<boolean> {
    return this.#core.reachesHere(name);
  }

  async callOwnNode(node: NodeName, method: keyof NodeRpc, args: readonly unknown[]): Promise<unknown> {
    if (!isNodeMethod(method)) throw new Error(`nodes have no method ${JSON.stringify(method)}`);
    return this.#core.callOwnNode(node, method, args);
  }
}
