"""Reads a gate's events three times: with kombu by the key "", with kombu by the key "#", and with Celery's own event receiver.

usage: read_events.py URL EXCHANGE COUNT

Says "ready" when all queues are bound; on Redis a subscription may take a moment longer. Prints one JSON object per event,
{"by": "kombu", "kombu #" or "celery", "event": ...}, those by kombu with the message's properties, and at the end what Celery's
state makes of them.
"""

import json
import sys
import threading

from celery import Celery
from kombu import Connection, Consumer, Exchange, Queue, uuid

url, exchange, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
fanout = Exchange(exchange, type="fanout", durable=True)
telling = threading.Lock()
bound = threading.Barrier(4)


def tell(**what):
    with telling:
        print(json.dumps(what), flush=True)


def kombu(by, key):
    seen = []

    def told(body, message):
        tell(
            by=by,
            event=body,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            routing_key=message.delivery_info["routing_key"],
            delivery_mode=message.properties["delivery_mode"],
        )
        message.ack()
        seen.append(body)

    with Connection(url) as connection:
        queue = Queue("read-events." + uuid(), exchange=fanout, routing_key=key, exclusive=True)
        with Consumer(connection.default_channel, [queue], callbacks=[told], accept=["json"]):
            bound.wait()
            while len(seen) < count:
                connection.drain_events(timeout=30)


def celery(app, state, received):
    def told(event):
        # Celery's state sets every field on its Worker object, whose own `id` cannot be set.
        state.event({name: value for name, value in event.items() if name != "id"})
        received.append(event)
        tell(by="celery", event=event)
        # Its own limit counts looks at the connection, and one may come back without an event.
        receiver.should_stop = len(received) == count

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": told})
        # Everything of the receiver is Celery's own, but the exchange that its queue is bound to. It consumes on a clone of
        # its connection, so the queue cannot be exclusive to this one.
        receiver.queue = Queue(
            receiver.queue.name, exchange=fanout, routing_key=receiver.routing_key, durable=False, auto_delete=True
        )
        receiver.queue(connection.default_channel).declare()
        bound.wait()
        receiver.capture(timeout=30, wakeup=False)


app = Celery(broker=url)
app.conf.update(worker_enable_remote_control=False)
state, received = app.events.State(), []
readers = [
    threading.Thread(target=kombu, args=("kombu", ""), daemon=True),
    threading.Thread(target=kombu, args=("kombu #", "#"), daemon=True),
    threading.Thread(target=celery, args=(app, state, received), daemon=True),
]
for reader in readers:
    reader.start()
bound.wait(timeout=30)
print("ready", flush=True)
for reader in readers:
    reader.join()
tell(
    by="state",
    workers={name: getattr(worker, "admission", None) for name, worker in state.workers.items()},
    clock=app.clock.value,
    adjusted=[event["timestamp"] for event in received],
)
