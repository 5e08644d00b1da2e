"""What the demo plays on, whichever the broker: processes, and threads that publish, listen and look.

The gate's words are only printed. Whether an edge was open is asked of the broker, again and again.
"""
import json
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = (ROOT / ".cache").resolve()
# Not below the system's folder for temporary files: the Codex CLI refuses a home there.
BASE = CACHE / os.environ.get("WORKER_GATE_STAGE", "demo")
RUN = BASE / "run"

INTAKE = "codex"
FACTS = "worker-gate.health"

BEGIN = time.time()
TELLING = threading.Lock()


class Broken(Exception):
    """The story did not go as it must."""


@dataclass(frozen=True)
class Worker:
    """One of the workers."""

    name: str
    lane: str
    home: Path

    @property
    def profile(self):
        return self.home / ".codex" / "config.toml"


@dataclass
class Span:
    """An edge is certain to have been like this from the one time to the other."""

    first: float
    last: float
    is_open: bool
    # The numbers of the tasks that waited at the broker when it was first seen so, as far as the broker shows that.
    waiting: frozenset = frozenset()


def tell(text="", indent=0):
    """One line of the story, with the time since its begin."""
    with TELLING:
        print(f"{time.time() - BEGIN:7.1f} s  {'    ' * indent}{text}" if text else "", flush=True)


def wait_for(bound, what, look):
    """The first true value that `look` gives; Broken after `bound` seconds."""
    end = time.monotonic() + bound
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken(f"not within {bound} s: {what}")
        time.sleep(0.01)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class Processes:
    """What the demo has started. Each dies with the demo, however that ends, and all are ended at its end."""

    def __init__(self):
        self.all = []

    def start(self, name, argv, env=None, cwd=RUN):
        # The parent-death signal belongs to the thread that starts the process: always the main thread, which lives longest.
        assert threading.current_thread() is threading.main_thread()
        with open(RUN / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)], cwd=cwd, env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.all.append(process)
        return process

    def kill(self, process):
        """SIGKILL to its group, unless it has been reaped: its number may be somebody else's by then."""
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()

    def end(self):
        """Ends everything; gives what is still there afterwards, which should be nothing."""
        for process in reversed(self.all):
            self.kill(process)
        end = time.monotonic() + 10
        while (left := self.left()) and time.monotonic() < end:
            time.sleep(0.05)
        return left

    @staticmethod
    def left():
        """Processes that know of this run's folder, by arguments, environment or working directory, and live."""
        mark, found = str(RUN).encode(), []
        for proc in Path("/proc").glob("[0-9]*"):
            try:
                words = (proc / "cmdline").read_bytes()
                knows = mark in words or mark in (proc / "environ").read_bytes()
                knows = knows or os.readlink(proc / "cwd").startswith(str(RUN))
                ended = (proc / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if knows and not ended and int(proc.name) != os.getpid():
                found.append(f"{proc.name} {words.replace(bytes(1), b' ').decode(errors='replace')[:100]}")
        return found


class Thread(threading.Thread):
    """Runs `work` until stopped; what it raised is raised in the main thread by `check`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.error = None

    def run(self):
        try:
            self.work()
        except Exception as error:  # whatever it is, the main thread has to say it
            self.error = error

    def stop(self):
        self.stopped.set()
        self.join(30)
        self.check()

    def check(self):
        if self.error is not None:
            raise Broken(f"{type(self).__name__}: {self.error!r}")


class Witness(Thread):
    """Asks the broker all the time which edges are open."""

    def __init__(self, workers):
        super().__init__()
        self.spans = {worker: [] for worker in workers}

    def saw(self, worker, before, after, is_open, waiting=frozenset()):
        """Takes in the answer that came at `after` to the question of `before`.

        A look says how it was at some moment between the two; so what is certain begins with the first answer and ends
        with the last question.
        """
        spans = self.spans[worker]
        if not spans or spans[-1].is_open != is_open:
            spans.append(Span(after, before, is_open, waiting))
        else:
            spans[-1].last = before

    def shut_since(self, worker, moment):
        """When the edge was first seen shut after this moment, if it was."""
        return next((span.first for span in list(self.spans[worker]) if not span.is_open and span.last >= moment), None)

    def shut_spans(self, worker):
        """All of the time in which nothing may have come to this worker."""
        return [span for span in list(self.spans[worker]) if not span.is_open]


class Listener(Thread):
    """Prints and keeps what the gate publishes."""

    QUIET = ("worker-health-check", "gate-heartbeat")

    def __init__(self, url, names_workers):
        super().__init__()
        self.url = url
        self.names_workers = names_workers
        self.facts = []
        self.ready = threading.Event()

    def work(self):
        from kombu import Connection, Consumer, Exchange, Queue

        exchange = Exchange(FACTS, "fanout", durable=True)
        with Connection(self.url) as connection:
            queue = Queue("", exchange, exclusive=True, auto_delete=True)
            with Consumer(connection, queue, callbacks=[self.hear], no_ack=True):
                self.ready.set()
                while not self.stopped.is_set():
                    try:
                        connection.drain_events(timeout=0.2)
                    except socket.timeout:
                        pass

    def hear(self, body, message):
        fact = json.loads(body) if isinstance(body, (str, bytes)) else body
        self.facts.append((time.time(), fact))
        if fact.get("type") in self.QUIET:
            return
        reason = fact.get("reason") or {}
        words = [f"fact {fact.get('type')}"]
        if self.names_workers and fact.get("type", "").startswith("worker-"):
            words.append(fact.get("worker_name"))
        if reason:
            words.append(f"[{reason.get('code')}] {reason.get('detail')}")
        tell("  ".join(words), 1)
        if reason.get("remedy"):
            tell(f"remedy: {reason['remedy']}", 2)
        if fact.get("exposed"):
            tell(f"exposed: {json.dumps(fact['exposed'])}", 2)

    def wait(self, kind, worker, since, bound):
        """The first fact of this type about the worker that was heard after `since`."""
        def look():
            self.check()
            for heard, fact in list(self.facts):
                if heard >= since and fact.get("type") == kind and fact.get("worker_name") == worker.name:
                    return heard, fact
            return None

        return wait_for(bound, f"the fact {kind} of {worker.name}", look)


class Producer(Thread):
    """Publishes with Celery, so many tasks at a time, and knows which ones the broker has confirmed."""

    def __init__(self, at_once, pause, seconds):
        super().__init__()
        self.at_once, self.pause, self.seconds = at_once, pause, seconds
        self.confirmed = {}  # number -> time at which publishing it began

    def work(self):
        import demo_app

        with demo_app.app.producer_or_acquire() as producer:
            number = 0
            while not self.stopped.is_set():
                for _ in range(self.at_once):
                    begin = time.time()
                    demo_app.work.apply_async((number, self.seconds), producer=producer, retry=False)
                    self.confirmed[number] = begin
                    number += 1
                self.stopped.wait(self.pause)
