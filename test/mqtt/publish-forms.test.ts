import { describe, expect, test } from "vitest";
import type { Message, QoS } from "../../mqtt/message.ts";
import { PublishForms } from "../../mqtt/publish-forms.ts";
import { encodePublish, type ProtocolVersion, type PublishForm } from "../../mqtt/publish.ts";

const now = 1_700_000_000_000;

type Form = Omit<PublishForm, "messageExpiryInterval">;

const plain: Form = {
  version: 5,
  qos: 0,
  dup: false,
  retain: false,
  subscriptionIds: [],
  topicAlias: 0,
  topicOmitted: false,
};

const message: Message = {
  id: "m1",
  topic: "a/b",
  payload: Uint8Array.of(1, 2, 3),
  qos: 2,
  retain: true,
  properties: Uint8Array.of(0x01, 1),
  expiresAt: now + 10_000,
  from: "c",
};

/** Every form that differs from the others. */
function* allForms(): Generator<Form> {
  for (const version of [3, 4, 5] as ProtocolVersion[])
    for (const qos of [0, 1, 2] as QoS[])
      for (const dup of qos === 0 ? [false] : [false, true])
        for (const retain of [false, true])
          for (const subscriptionIds of [[], [1], [1, 2], [2, 1], [12]])
            for (const [topicAlias, topicOmitted] of [
              [0, false],
              [1, false],
              [1, true],
              [2, false],
            ] as const)
              yield { version, qos, dup, retain, subscriptionIds, topicAlias, topicOmitted };
}

describe("forms", () => {
  test("no form gets the bytes of another, in whatever order they are asked for", () => {
    const forms = new PublishForms(message, now);
    const expected = (form: Form, packetId: number) =>
      encodePublish(message, { ...form, messageExpiryInterval: 10 }, packetId);
    for (const packetId of [1, 0x1234, 65_535])
      for (const form of allForms()) {
        const id = form.qos === 0 ? 0 : packetId;
        expect(forms.encode(form, id)).toEqual(expected(form, id));
      }
  });

  test("one encoding serves all subscribers at QoS 0", () => {
    const forms = new PublishForms(message, now);
    expect(forms.encode(plain, 0)).toBe(forms.encode({ ...plain }, 0));
  });

  test("[MQTT-2.2.1-4] each subscriber's packet id is in a copy of its own", () => {
    const forms = new PublishForms(message, now);
    const form: Form = { ...plain, qos: 1 };
    const first = forms.encode(form, 1);
    const second = forms.encode(form, 2);
    const third = forms.encode(form, 1);
    const fresh = (packetId: number) => encodePublish(message, { ...form, messageExpiryInterval: 10 }, packetId);
    expect(first).toEqual(fresh(1));
    expect(second).toEqual(fresh(2));
    expect(third).toEqual(fresh(1));
  });

  test("[MQTT-3.3.2-6] the interval is what remains at the time given", () => {
    const encoded = (at: number, version: ProtocolVersion) =>
      new PublishForms(message, at).encode({ ...plain, version }, 0);
    expect(encoded(now + 4000, 5)).toEqual(encodePublish(message, { ...plain, messageExpiryInterval: 6 }, 0));
    expect(encoded(now + 4000, 4)).toEqual(encoded(now, 4));
  });
});
