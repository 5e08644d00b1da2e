"""Tells the story on the terminal, on real parts. Started by scripts/demo; needs the gate's path and the broker's name."""
import fcntl
import os
import shutil
import signal
import sys

from demo_rabbitmq import OnRabbitmq
from demo_redis import OnRedis
from demo_stage import BASE, CACHE, ROOT, RUN, Broken, Processes

STORIES = {"rabbitmq": OnRabbitmq, "redis": OnRedis}


def main():
    gate_program, story = str((ROOT / sys.argv[1]).resolve()), STORIES[sys.argv[2]]
    BASE.mkdir(parents=True, exist_ok=True)
    lock = open(BASE / "lock", "w", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another demo runs in this checkout; wait for its end")
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir()
    # The checks and this process find the real tools.
    os.environ["PATH"] = f"{CACHE / 'bin'}:{os.environ['PATH']}"
    # A shell that starts it in the background has SIGINT ignored; nohup has SIGHUP ignored, and means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))

    processes, problems, code = Processes(), [], 1
    try:
        problems = story(gate_program, processes).tell_it()
        code = 1 if problems else 0
    except Broken as broken:
        problems = [str(broken)]
    except KeyboardInterrupt:
        code, problems = 130, ["interrupted"]
    finally:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        if left := processes.end():
            code, problems = code or 1, [*problems, *(f"still running: {line}" for line in left)]
    print(flush=True)
    if problems:
        print("It does not hold:", flush=True)
        for problem in problems:
            print(f"    {problem}", flush=True)
        log = RUN / "gate.log"
        if code != 130 and log.exists():
            lines = log.read_text(errors="replace").splitlines()[-30:]
            print(f"The gate's last words (all of them in {log}):", *lines, sep="\n    ", flush=True)
    else:
        print("It holds: nothing lost, nothing run on an unfit worker, and no process left behind.", flush=True)
    # Threads that wait for a broker that is gone must not hold up the end.
    os._exit(code)


if __name__ == "__main__":
    main()
