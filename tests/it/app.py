"""The Celery application of the integration tests.

APP_BROKER_URL   the broker
APP_MARKS        the file to which every task appends one JSON line when it starts
APP_ROUTES       JSON: Celery's task_routes; empty for Celery's own default routing
APP_CONF         JSON: more of Celery's settings; they win over those below
"""
import ctypes
import json
import os
import signal
import time

from celery import Celery
from celery.signals import worker_process_init

app = Celery("app", broker=os.environ["APP_BROKER_URL"], set_as_current=True)
app.conf.update(
    task_routes=json.loads(os.environ.get("APP_ROUTES") or "{}"),
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    # Without it a producer does not learn that the broker has a message, and no count could be trusted.
    broker_transport_options={"confirm_publish": True},
    worker_send_task_events=False,
)
app.conf.update(json.loads(os.environ.get("APP_CONF") or "{}"))


@worker_process_init.connect
def die_with_parent(**_):
    """Pool processes of a worker that was killed with SIGKILL would wait for work for ever."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def note(task, ident, phase="started"):
    """Append one line with a single write: pool processes share the file."""
    info = task.request.delivery_info or {}
    line = json.dumps({
        "id": ident,
        "at": time.time(),
        "phase": phase,
        "task": task.request.id,
        "worker": task.request.hostname,
        "retries": task.request.retries,
        "exchange": info.get("exchange"),
        "routing_key": info.get("routing_key"),
        "redelivered": bool(info.get("redelivered")),
    })
    fd = os.open(os.environ["APP_MARKS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(fd, (line + "\n").encode())
    finally:
        os.close(fd)


@app.task(bind=True, name="app.mark")
def mark(self, ident):
    """Leave a mark and be done."""
    note(self, ident)


@app.task(bind=True, name="app.slow")
def slow(self, ident, seconds):
    """Leave a mark, take that long, leave another one."""
    note(self, ident)
    time.sleep(seconds)
    note(self, ident, "ended")


@app.task(bind=True, name="app.retry_once")
def retry_once(self, ident):
    """Leave a mark, and ask for one more run at once."""
    note(self, ident)
    if self.request.retries == 0:
        raise self.retry(countdown=0, max_retries=1)


@app.task(bind=True, name="app.retry_slowly")
def retry_slowly(self, ident, seconds):
    """Leave a mark, take that long, and ask for one more run at once."""
    note(self, ident)
    if self.request.retries == 0:
        time.sleep(seconds)
        raise self.retry(countdown=0, max_retries=1)


@app.task(bind=True, name="app.paced")
def paced(self, ident, paces):
    """Leave a mark, take as long as the worker that has got it is said to, leave another one."""
    note(self, ident)
    time.sleep(paces[self.request.hostname])
    note(self, ident, "ended")


@app.task(bind=True, name="app.add")
def add(self, *numbers):
    """Leave a mark, and give the sum of all numbers; a list among them counts with all that is in it."""
    note(self, self.request.id)
    return sum(sum(number) if isinstance(number, list) else number for number in numbers)
