"""The demo's Celery application; but for its demo variable it is what anybody's looks like."""
import ctypes
import json
import os
import signal
import time

from celery import Celery
from celery.signals import worker_process_init

app = Celery("demo_app", broker=os.environ["CELERY_BROKER_URL"])
if app.conf.broker_url.startswith("redis"):
    # The shared queue, as ever: no producer knows of a gate.
    ROUTE = {"queue": "codex"}
else:
    # The one line that puts a gate between producers and a worker: publish to the intake with the worker's key, not
    # straight to the worker's queue.
    ROUTE = {"exchange": "codex", "routing_key": "codex-0"}
app.conf.update(
    task_routes={"demo.*": ROUTE},
    # A producer that wants to know what RabbitMQ has must ask for it.
    broker_transport_options={"confirm_publish": True},
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


@app.task(name="demo.work", bind=True)
def work(self, number, seconds):
    """Write down that it runs, where, and since when."""
    line = json.dumps({"number": number, "worker": self.request.hostname, "started": time.time()}) + "\n"
    fd = os.open(os.environ["DEMO_RUNS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, line.encode())
    os.close(fd)
    time.sleep(seconds)


@worker_process_init.connect
def die_with_parent(**_):
    """The demo may be killed; the worker's pool must not stay behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
