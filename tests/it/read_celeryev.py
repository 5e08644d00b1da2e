"""Listens to Celery's own events as Flower does, whoever sends them: each goes to Celery's state as it is.

usage: read_celeryev.py URL

Prints "ready" when it is bound, on Redis a moment before, and then one JSON object per event: its type, its hostname, what the state
knows of that worker's admission, and whether the state takes the worker to be alive.
"""

import json
import sys

from celery import Celery

app = Celery(broker=sys.argv[1])
app.conf.update(worker_enable_remote_control=False)
state = app.events.State()


def told(event):
    state.event(event)
    worker = state.workers.get(event["hostname"])
    said = {name: event.get(name) for name in ("type", "hostname", "pid")}
    print(json.dumps(said | {"admission": getattr(worker, "admission", None)}), flush=True)


with app.connection_for_read() as connection:
    receiver = app.events.Receiver(connection, handlers={"*": told})
    receiver.queue(connection.default_channel).declare()
    print("ready", flush=True)
    receiver.capture(wakeup=False)
