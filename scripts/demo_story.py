"""The story itself, act by act. What differs between the brokers is in demo_rabbitmq.py and demo_redis.py.

The account at the end rests on what the broker and the workers show, not on the gate's words.
"""
import json
import math
import os
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from demo_stage import CACHE, ROOT, RUN, Broken, Listener, Producer, Worker, free_port, tell, wait_for

SETTINGS = RUN / "worker-gate.toml"

GOOD = """# Codex writes to this file itself. The gate minds one key of it.
model = "gpt-5"
approval_policy = "never"   # nobody is there to be asked
"""


@dataclass(frozen=True)
class Drift:
    """An edit of a worker's config, and when its edge was seen shut."""

    worker: Worker
    edited: float
    shut: float


def milliseconds(seconds):
    """A duration for the reader."""
    return f"{1e3 * seconds:.0f} ms"


def runs():
    """(number, time, worker's name) of every start that the workers have written down."""
    try:
        text = (RUN / "runs").read_text()
    except FileNotFoundError:
        return []
    whole = text[:text.rfind("\n") + 1]
    return [(line["number"], line["started"], line["worker"]) for line in map(json.loads, whole.splitlines())]


def path_for_checks():
    """Where the checks find codex, speckit and the node that codex runs on."""
    node = Path(shutil.which("node")).resolve().parent
    return f"{CACHE / 'bin'}:{node}:/usr/bin:/bin"


def prepare_home(worker):
    """A home with a logged-in Codex and a good config."""
    worker.profile.parent.mkdir(parents=True)
    worker.profile.write_text(GOOD)
    env = {"HOME": str(worker.home), "PATH": path_for_checks()}
    # Codex stores any key and asks nobody about it; this one opens nothing.
    login = subprocess.run(["codex", "login", "--with-api-key"], env=env, input="sk-made-up-for-the-demo\n", text=True,
                           capture_output=True, timeout=60, check=False)
    if login.returncode != 0:
        raise Broken(f"codex login: {login.stdout}{login.stderr}")
    worker.profile.write_text(GOOD)


def replace(file, text):
    """As an editor does."""
    new = file.with_name("new")
    new.write_text(text)
    new.rename(file)


class Story:
    """What is told alike on both brokers; a subclass has a broker, its words, and the order of the acts."""

    # The broker's name, the workers, Celery's options for them, where the producer publishes to, how, and where tasks wait.
    BROKER = NotImplemented
    WORKERS = ()
    OPTIONS = ()
    PUBLISHES = NotImplemented
    PRODUCER = {"at_once": 1, "pause": 0.1, "seconds": 0.01}
    WAITING_ROOM = NotImplemented
    # Settings for [broker] besides the URL.
    BROKER_SETTINGS = ""

    def __init__(self, gate_program, processes):
        self.gate_program = gate_program
        self.processes = processes
        self.gate = None
        self.running = []  # workers
        self.drifts = []

    # What a broker's own story must say.

    def start_broker(self):
        """Starts the broker. Gives its URL and the witness."""
        raise NotImplementedError

    def edge(self, worker):
        """The worker's settings for its edge, as text."""
        raise NotImplementedError

    def is_held(self):
        """Whether the gate has made everything and holds what is published."""
        raise NotImplementedError

    def waiting(self):
        """How many tasks wait in the waiting room."""
        raise NotImplementedError

    def left_over(self):
        """The numbers of all tasks that are at the broker, wherever."""
        raise NotImplementedError

    def acts(self):
        """What happens, in order."""
        raise NotImplementedError

    # The frame.

    def tell_it(self):
        tell(f"{self.BROKER} starts, on a free port and with files of its own")
        self.url, self.witness = self.start_broker()
        tell("it is ready", 1)
        for worker in self.WORKERS:
            prepare_home(worker)
        os.environ["CELERY_BROKER_URL"] = self.url
        os.environ["DEMO_RUNS"] = str(RUN / "runs")
        self.listener = Listener(self.url, names_workers=len(self.WORKERS) > 1)
        self.listener.start()
        self.witness.start()
        wait_for(20, "the listener listens", lambda: self.listener.check() or self.listener.ready.is_set())
        self.start_workers()
        self.acts()
        return self.account()

    def start_workers(self):
        for worker in self.WORKERS:
            tell(f"a Celery worker starts: celery worker -Q {worker.lane} -n {worker.name}")
            log = worker.name.partition("@")[0] if len(self.WORKERS) > 1 else "worker"
            process = self.processes.start(log, [
                CACHE / "venv/bin/celery", "-A", "demo_app", "worker", "-Q", worker.lane, "-n", worker.name, "-l", "INFO",
                "--without-gossip", "--without-mingle", *self.OPTIONS],
                {"PYTHONDONTWRITEBYTECODE": "1"}, ROOT / "scripts")
            self.running.append((worker, process, RUN / f"{log}.log"))
        for worker, process, log in self.running:
            wait_for(60, f"{worker.name} is ready", lambda: self.is_ready(process, log))
        tell("it waits for work" if len(self.WORKERS) == 1 else "they wait for work", 1)

    @staticmethod
    def is_ready(process, log):
        if process.poll() is not None:
            raise Broken(f"the worker ended with {process.returncode}")
        return " ready." in log.read_text(errors="replace")

    # The acts.

    def held(self):
        self.write_settings()
        if len(self.WORKERS) == 1:
            tell("the gate starts; it has not looked at the tools yet, so the worker is held")
        else:
            tell("one gate starts for all of them; it has not looked at the tools yet, so the workers are held")
        self.start_gate()
        wait_for(60, "the gate holds what is published", lambda: self.gate_lives() or self.is_held())
        self.producing = time.time()
        tell(f"a producer publishes ten tasks a second to {self.PUBLISHES}")
        self.producer = Producer(**self.PRODUCER)
        self.producer.start()
        self.see_waiting(5)

    def admitted(self, since):
        heard = max(self.listener.wait("worker-admitted", worker, since, 90)[0] for worker in self.WORKERS)
        waiting = [n for n, begin in list(self.producer.confirmed.items()) if begin < heard]
        wait_for(30, "what had waited has run", lambda: self.gate_lives() or set(waiting) <= {n for n, _, _ in runs()})
        ran = runs()
        tell(f"admitted; what had waited has run: {len({n for n, _, _ in ran})} of {len(self.producer.confirmed)}"
             + self.by_worker(ran))
        self.pause(1.5)

    def by_worker(self, ran):
        """Who has run how many, if there is more than one."""
        counts = Counter(worker for _, _, worker in ran)
        if len(self.WORKERS) == 1:
            return ""
        return "; " + ", ".join(f"{counts[worker.name]} by {worker.name}" for worker in self.WORKERS)

    def drift(self, worker):
        tell(f'somebody edits {worker.profile.relative_to(RUN)}: approval_policy = "on-request"')
        edited = time.time()
        replace(worker.profile, GOOD.replace('"never"', '"on-request"'))
        heard, fact = self.listener.wait("worker-quarantined", worker, edited, 60)
        shut = wait_for(10, "the broker shows the edge shut", lambda: self.witness.shut_since(worker, edited))
        tell(f"quarantined {milliseconds(heard - edited)} after the edit; the broker no longer had the edge "
             f"{milliseconds(shut - edited)} after it; the gate counts "
             f"{fact.get('latency_ms')} ms from seeing it to the shut edge")
        self.drifts.append(Drift(worker, edited, shut))

    def mended(self):
        argv = [self.gate_program, "profile", "apply", "--config", str(SETTINGS)]
        said = "$ worker-gate profile apply"
        if len(self.WORKERS) == 1:
            argv += ["--worker", self.WORKERS[0].name]
            said += f" --worker {self.WORKERS[0].name}"
        tell(said)
        mended = time.time()
        result = subprocess.run(argv, cwd=RUN, capture_output=True, text=True, timeout=60, check=False)
        for line in (result.stdout + result.stderr).splitlines():
            tell(line, 1)
        if result.returncode != 0:
            raise Broken(f"profile apply ended with {result.returncode}")
        for profile in (worker.profile for worker in self.WORKERS):
            if profile.read_text() != GOOD:
                raise Broken(f"profile apply changed more than its key:\n{profile.read_text()}")
        self.admitted(mended)

    def see_waiting(self, least):
        """Waits until so many tasks are held, and says so."""
        def look():
            self.check()
            return (self.waiting() or 0) >= least

        wait_for(30, f"{least} tasks wait in {self.WAITING_ROOM}", look)
        tell(f"{self.waiting()} tasks wait in {self.WAITING_ROOM}; run so far: {len(runs())}")

    # What the acts need.

    def start_gate(self):
        self.gate = self.processes.start("gate", [self.gate_program, "run", "--config", SETTINGS])

    def gate_lives(self):
        if self.gate.poll() is not None:
            raise Broken(f"the gate ended with {self.gate.returncode}")

    def check(self):
        self.producer.check()
        self.witness.check()
        self.listener.check()

    def pause(self, seconds):
        """Time for the reader, and for tasks to flow."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(0.05)

    def write_settings(self):
        quoted = json.dumps  # TOML's basic strings are JSON's for what is in here
        workers = "".join(f"""
[[workers]]
name = "{worker.name}"
home = {quoted(str(worker.home))}
path_env = {quoted(path_for_checks())}
{self.edge(worker)}
""" for worker in self.WORKERS)
        SETTINGS.write_text(f"""
[gate]
name = "demo"
state_dir = {quoted(str(RUN / "state"))}
listen = "127.0.0.1:{free_port()}"

[broker]
url = {quoted(self.url)}
{self.BROKER_SETTINGS}
[checks.codex_cli]
run = [["codex", "--version"], ["codex", "login", "status"]]
version = {{ command = 0, require = ">=0.1" }}
every = "2s"
pass_after = 2                    # so that there is a while to look at the worker being held

[checks.spec_kit]
run = [["speckit", "--help"]]
every = "2s"

[profile]
path = "~/.codex/config.toml"
template = ""
enforce = {{ approval_policy = "never" }}
{workers}""".lstrip())

    # The end.

    def close(self):
        tell("the producer stops, and the worker: warm, so what it has prefetched goes back")
        self.producer.stop()
        self.stop_workers()

    def stop_workers(self):
        for _, process, _ in self.running:
            process.terminate()
        for _, process, _ in self.running:
            process.wait(30)

    def account(self):
        """Published = run + waiting, each once; and nothing that came while the edge was shut has run meanwhile."""
        self.close()
        self.witness.stop()
        self.listener.stop()
        published, started, waiting = set(self.producer.confirmed), runs(), self.left_over()
        ran = {number for number, _, _ in started}
        lost = published - ran - set(waiting)
        twice = len(started) - len(ran) + len(waiting) - len(set(waiting)) + len(ran & set(waiting))
        unfit, in_hand = self.while_shut(started)
        between = sum(
            name == drift.worker.name and drift.edited <= moment < drift.shut
            for _, moment, name in started for drift in self.drifts)
        tell()
        rows = [
            ("published", len(published), ""),
            ("run", len(ran), self.by_worker(started).removeprefix("; ")),
            ("waiting", len(set(waiting)), f"in {self.WAITING_ROOM}, for a fit worker" if waiting else ""),
            ("lost", len(lost), ""),
            ("twice", twice, ""),
            ("run on an unfit worker", len(unfit), "published while the edge was shut, and run before it was open"),
        ]
        for name, number, note in rows:
            print(f"    {name:<24}{number:>6}   {note}".rstrip(), flush=True)
        how_long = " and ".join(milliseconds(drift.shut - drift.edited) for drift in self.drifts)
        print(f"    Not counted as such: {between} that started in the {how_long} between the edit and the shut edge,\n"
              f"    and {len(in_hand)} that the worker had in its hands when an edge was shut.", flush=True)
        problems = [f"{name}: {number}" for name, number, _ in rows[3:] if number]
        return problems + self.proves_nothing(published, ran, waiting)

    def while_shut(self, started):
        """The numbers of those that were run past a shut edge, and of those that were in a worker's hands already."""
        unfit, in_hand = [], []
        for number, moment, name in started:
            worker = next(worker for worker in self.WORKERS if worker.name == name)
            spans = self.witness.shut_spans(worker)
            span = next((span for span in spans if span.first <= moment <= span.last), None)
            if span is not None:
                came_before = self.producer.confirmed.get(number, math.inf) < span.first and number not in span.waiting
                (in_hand if came_before else unfit).append(number)
        return unfit, in_hand

    @staticmethod
    def proves_nothing(published, ran, waiting):
        if published and ran and waiting:
            return []
        return ["nothing was published, run or left waiting: the story proves nothing"]
