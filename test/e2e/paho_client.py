"""A conversation of two Paho clients over WebSocket, for paho.test.ts.

    paho_client.py HOST PORT PATH_OF_PUBLISHER PATH_OF_SUBSCRIBER VERSION(4|5)

Prints what the subscriber got as a line of JSON. Ends with an exception when an answer does not come.
"""

import json
import queue
import sys

import paho.mqtt.client as mqtt

PATIENCE_SECONDS = 20


class Client:
    def __init__(self, host, port, path, version):
        self.events = queue.Queue()
        self.messages = queue.Queue()
        self.version = version
        arguments = {"protocol": mqtt.MQTTv5 if version == 5 else mqtt.MQTTv311, "transport": "websockets"}
        # Paho 2 asks which form of callbacks is meant; the old one is in both.
        if hasattr(mqtt, "CallbackAPIVersion"):
            arguments["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION1
        self.mqtt = mqtt.Client(**arguments)
        self.mqtt.ws_set_options(path=path)
        self.mqtt.on_connect = lambda client, data, flags, code, *rest: self.events.put(("connack", int_of(code)))
        self.mqtt.on_subscribe = lambda client, data, mid, codes, *rest: self.events.put(
            ("suback", [int_of(code) for code in codes])
        )
        self.mqtt.on_unsubscribe = lambda *arguments: self.events.put(("unsuback", None))
        self.mqtt.on_message = lambda client, data, message: self.messages.put(message)
        self.mqtt.connect(host, port, keepalive=60)
        self.mqtt.loop_start()
        self.expect("connack", 0)

    def expect(self, name, value):
        got = self.events.get(timeout=PATIENCE_SECONDS)
        assert got == (name, value), f"{got} came, not {(name, value)}"

    def subscribe(self, topic, qos):
        self.mqtt.subscribe(topic, qos)
        self.expect("suback", [qos])

    def publish(self, topic, payload, **options):
        info = self.mqtt.publish(topic, payload, **options)
        info.wait_for_publish(PATIENCE_SECONDS)
        assert info.is_published(), f"{topic} was not acknowledged"

    def end(self):
        self.mqtt.disconnect()
        self.mqtt.loop_stop()


def int_of(code):
    return getattr(code, "value", code)


def main():
    host, port, publisher_path, subscriber_path, version = sys.argv[1:]
    version = int(version)
    subscriber = Client(host, int(port), subscriber_path, version)
    publisher = Client(host, int(port), publisher_path, version)
    for qos in (0, 1, 2):
        subscriber.subscribe(f"paho/{version}/{qos}", qos)
    for qos in (0, 1, 2):
        for payload in ("", "small", "l" * 100_000):
            publisher.publish(f"paho/{version}/{qos}", payload, qos=qos)
    publisher.publish(f"paho/{version}/kept", "kept", qos=1, retain=True)
    subscriber.subscribe(f"paho/{version}/kept", 1)
    got = []
    for _ in range(10):
        message = subscriber.messages.get(timeout=PATIENCE_SECONDS)
        got.append([message.topic, len(message.payload), message.qos, bool(message.retain)])
    subscriber.mqtt.unsubscribe(f"paho/{version}/kept")
    subscriber.expect("unsuback", None)
    publisher.publish(f"paho/{version}/kept", "", qos=1, retain=True)
    print(json.dumps(got))
    publisher.end()
    subscriber.end()


main()
