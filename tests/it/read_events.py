"""Reads a gate's events twice: with kombu, and with Celery's own event receiver.

usage: read_events.py URL EXCHANGE COUNT

Says "ready" when both queues are bound. Prints one JSON object per event, {"by": "kombu" or "celery", "event": ...},
those by kombu with the message's properties, and at the end what Celery's state makes of them.
"""

import json
import sys

from celery import Celery
from kombu import Connection, Consumer, Exchange, Queue, uuid

url, exchange, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
fanout = Exchange(exchange, type="fanout", durable=True)


def tell(**what):
    print(json.dumps(what), flush=True)


def told_by_kombu(body, message):
    tell(
        by="kombu",
        event=body,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=message.headers,
        routing_key=message.delivery_info["routing_key"],
        delivery_mode=message.properties["delivery_mode"],
    )
    message.ack()
    seen.append(body)


app = Celery(broker=url)
app.conf.update(worker_enable_remote_control=False)
seen = []
with Connection(url) as connection, app.connection_for_read() as celery_connection:
    queue = Queue("read-events." + uuid(), exchange=fanout, exclusive=True)
    queue(connection.default_channel).declare()
    state = app.events.State()
    received = []

    def told_by_celery(event):
        # Celery's state sets every field on its Worker object, whose own `id` cannot be set.
        state.event({name: value for name, value in event.items() if name != "id"})
        received.append(event)
        tell(by="celery", event=event)

    receiver = app.events.Receiver(celery_connection, handlers={"*": told_by_celery})
    # Everything of the receiver is Celery's own, but the exchange that its queue is bound to. It consumes on a clone of
    # its connection, so the queue cannot be exclusive to this one.
    receiver.queue = Queue(receiver.queue.name, exchange=fanout, durable=False, auto_delete=True)
    receiver.queue(celery_connection.default_channel).declare()
    print("ready", flush=True)

    with Consumer(connection.default_channel, [queue], callbacks=[told_by_kombu], accept=["json"]):
        while len(seen) < count:
            connection.drain_events(timeout=30)
    receiver.capture(limit=count, timeout=30, wakeup=False)
    tell(
        by="state",
        workers={name: getattr(worker, "admission", None) for name, worker in state.workers.items()},
        clock=app.clock.value,
        adjusted=[event["timestamp"] for event in received],
    )
