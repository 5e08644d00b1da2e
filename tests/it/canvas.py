"""Publishes a chain, a group and a chord of app.add, waits for their results and prints them as one JSON object.

Usage: canvas.py SECONDS, the longest to wait for each result. "published" is printed when all three are with the broker.
"""
import json
import sys

from celery import chain, chord, group

from app import add


def main():
    bound = float(sys.argv[1])
    results = {
        "chain": chain(add.s(1, 2), add.s(10), add.s(100)).apply_async(),
        "group": group(add.s(n, n) for n in range(6)).apply_async(),
        "chord": chord([add.s(n, n) for n in range(6)], add.s()).apply_async(),
    }
    print("published", flush=True)
    print(json.dumps({name: result.get(timeout=bound) for name, result in results.items()}), flush=True)


if __name__ == "__main__":
    main()
