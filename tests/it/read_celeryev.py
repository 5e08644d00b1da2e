"""Listens to Celery's own events as Flower does, whoever sends them: each goes to Celery's state as it is.

usage: read_celeryev.py URL

Prints "ready" when it consumes, on Redis a moment before, and then one JSON object per event: its type, hostname and pid, and what the state
knows of that worker's admission.
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
    receiver.on_consume_ready = lambda *args, **kwargs: print("ready", flush=True)
    receiver.capture(wakeup=False)
