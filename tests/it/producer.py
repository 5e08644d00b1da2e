"""Publishes tasks as an application does, through Celery, and says how many the broker has confirmed.

Usage: producer.py TASK PREFIX (COUNT | forever) [RATE] [EXTRA ...]

Task ids and first arguments are PREFIX0, PREFIX1, …; EXTRA are further arguments, as JSON. With a RATE (a second; 0 for
no limit) it paces itself. The last line of output is one JSON object; SIGTERM ends it in good order.

PRODUCER_OPTIONS  JSON: a list of options of apply_async, such as {"priority": 3}; the tasks take them in turn. An exchange
                  is declared first if its exchange_type is there too.
"""
import json
import os
import signal
import sys
import time

from kombu import Exchange

from app import app


def options_in_turn():
    """What PRODUCER_OPTIONS says, as apply_async takes it."""
    turns = json.loads(os.environ.get("PRODUCER_OPTIONS") or "[{}]")
    for turn in turns:
        kind = turn.pop("exchange_type", None)
        if kind:
            turn["declare"] = [Exchange(turn["exchange"], type=kind)]
    return turns


def main():
    task, prefix, count = sys.argv[1:4]
    rate = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    extra = [json.loads(word) for word in sys.argv[5:]]
    options = options_in_turn()
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    confirmed, unknown = 0, []
    begin = time.monotonic()
    print("publishing", flush=True)
    with app.producer_or_acquire() as producer:
        while not stop and (count == "forever" or confirmed + len(unknown) < int(count)):
            number = confirmed + len(unknown)
            ident = f"{prefix}{number}"
            try:
                turn = options[number % len(options)]
                app.send_task(task, [ident, *extra], task_id=ident, producer=producer, retry=False, **turn)
                confirmed += 1
            except Exception as error:  # The broker may or may not have it: it is counted apart.
                unknown.append(ident)
                print(f"{ident}: {error!r}", file=sys.stderr, flush=True)
            if rate:
                pause = begin + (number + 1) / rate - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
    print(json.dumps({"confirmed": confirmed, "unknown": unknown}), flush=True)


if __name__ == "__main__":
    main()
