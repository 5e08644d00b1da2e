"""Tells people when worker-gate takes a worker out of work, and when it lets one back in.

usage: alert_subscriber.py [--queue NAME] [--exchange NAME] [BROKER_URL]

The broker is that of the gates and of Celery, RabbitMQ or Redis: BROKER_URL, or the environment's CELERY_BROKER_URL. Needs kombu,
which Celery brings along.

On RabbitMQ, give the queue a name: it then stays, and what happens while this program is away is told when it is back. Without a
name the queue goes with the program. On Redis a fanout exchange is PUB/SUB, which keeps nothing for those who are away; there,
`worker-gate events --durable NAME --exec ...` reads the stream instead.
"""

import argparse
import logging
import os
import sys

from kombu import Connection, Exchange, Queue, uuid
from kombu.mixins import ConsumerMixin

# What is told, and how it begins. The event's other types are in the README of worker-gate.
TOLD = {
    "worker-quarantined": "QUARANTINED",
    "worker-admitted": "ADMITTED",
    "worker-bypass": "BYPASS",
    "fleet-suspect": "FLEET SUSPECT",
}

# As `worker-gate events --durable` declares its queue, so that either can take the other's place.
KEPT = {"x-max-length": 100_000, "x-overflow": "drop-head", "x-single-active-consumer": True}


def alert(event):
    """One line: what happened, to whom, why, and what to do about it."""
    reason = event.get("reason") or {}
    line = f"{TOLD[event['type']]} {event.get('worker_name')}: {reason.get('detail')}"
    if reason.get("remedy"):
        line += f" -> {reason['remedy']}"
    # In the detail is what a check printed; it must not be more than one line.
    return line.replace("\r", " ").replace("\n", " ")


def tell(line):
    """Replace this by whatever reaches you: a chat, a pager, a mail. For a chat, for example,

        requests.post(os.environ["CHAT_URL"], json={"text": line}, timeout=10).raise_for_status()

    An exception is fine if it is worth trying again: the event is then not acknowledged, and comes again.
    """
    print(line, flush=True)


class Alerts(ConsumerMixin):
    """Consumes a queue of events, and connects again when the broker was away."""

    def __init__(self, connection, queue):
        self.connection = connection
        self.queue = queue

    def get_consumers(self, consumer, channel):
        return [consumer([self.queue], callbacks=[self.on_event], accept=["json"], prefetch_count=16)]

    def on_consume_ready(self, connection, channel, consumers, **kwargs):
        print(f"listening to {self.queue.exchange.name} at {connection.as_uri()}", file=sys.stderr, flush=True)

    def on_event(self, event, message):
        if isinstance(event, dict) and event.get("type") in TOLD:
            tell(alert(event))
        # Only now: what could not be told is not forgotten.
        message.ack()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", default=os.environ.get("CELERY_BROKER_URL"), help="default: CELERY_BROKER_URL")
    parser.add_argument("--queue", help="a queue of this name that stays (RabbitMQ)")
    parser.add_argument("--exchange", default="worker-gate.health", help="the gates' events.exchange (%(default)s)")
    arguments = parser.parse_args()
    if not arguments.url:
        parser.error("no broker: give its URL, or set CELERY_BROKER_URL")
    # kombu says by it when the broker is away.
    logging.basicConfig(level=logging.WARNING)

    exchange = Exchange(arguments.exchange, type="fanout", durable=True)
    if arguments.queue:
        queue = Queue(arguments.queue, exchange, durable=True, queue_arguments=KEPT)
    else:
        queue = Queue(f"alerts.{uuid()}", exchange, durable=False, exclusive=True, auto_delete=True)
    with Connection(arguments.url, heartbeat=10) as connection:
        try:
            Alerts(connection, queue).run()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
