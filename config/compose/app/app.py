"""The demo's Celery application, of its workers and of its producer."""
import os
import subprocess

from celery import Celery

app = Celery("app", broker=os.environ["CELERY_BROKER_URL"])
if app.conf.broker_url.startswith("redis"):
    # The shared queue, as ever: whoever is free gets the next one.
    ROUTES = [{"queue": "codex"}, {"queue": "codex"}]
else:
    # The exchange, and the key of a worker: task_routes could say the same, by the task's name.
    ROUTES = [{"exchange": "codex", "routing_key": key} for key in ("codex-0", "codex-1")]
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    # A producer that wants to know what RabbitMQ has must ask for it.
    broker_transport_options={} if app.conf.broker_url.startswith("redis") else {"confirm_publish": True},
    beat_schedule={
        f"work-{n}": {"task": "app.work", "schedule": 1.0, "options": route} for n, route in enumerate(ROUTES)
    },
)


@app.task(name="app.work")
def work():
    """What Codex says of itself. A task of yours would give it something to do."""
    command = ["codex", "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
