import { remainingExpirySeconds, type Message } from "./message.ts";
import { encodePublish, withPacketId, type PublishForm } from "./publish.ts";

/** One message as it goes to many subscribers: encoded once per distinct form, then only the packet id differs. */
export class PublishForms {
  readonly message: Message;
  /** How often it has been encoded. */
  encodings = 0;
  readonly #messageExpiryInterval: number | undefined;
  /** Nearly always there is one form only. */
  #first: { readonly key: number | string; readonly encoded: Uint8Array } | undefined;
  #others: Map<number | string, Uint8Array> | undefined;

  /** @param now ms since the epoch, for the interval that remains. */
  constructor(message: Message, now: number) {
    this.message = message;
    this.#messageExpiryInterval = remainingExpirySeconds(message, now);
  }

  /** @param packetId 0 at QoS 0. The bytes may be shared: not to be written to. */
  encode(form: Omit<PublishForm, "messageExpiryInterval">, packetId: number): Uint8Array {
    const flags = form.version | (form.qos << 3) | (form.dup ? 32 : 0) | (form.retain ? 64 : 0);
    const alias = form.topicOmitted ? -form.topicAlias : form.topicAlias;
    const number = alias * 128 + flags;
    // Nearly always a number does, and costs a fifth of a string.
    const key = form.subscriptionIds.length === 0 ? number : `${number} ${form.subscriptionIds.join()}`;
    const known = this.#first?.key === key ? this.#first.encoded : this.#others?.get(key);
    if (known) return form.qos === 0 ? known : withPacketId(known, packetId);
    const encoded = encodePublish(
      this.message,
      { ...form, messageExpiryInterval: this.#messageExpiryInterval },
      packetId,
    );
    this.encodings++;
    if (this.#first === undefined) this.#first = { key, encoded };
    else (this.#others ??= new Map()).set(key, encoded);
    return encoded;
  }
}
