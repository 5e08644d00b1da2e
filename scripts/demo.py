"""Tells the story of one worker on the terminal, on real parts. Started by scripts/demo; needs the gate's path.

The account at the end rests on what the broker and the worker show, not on the gate's words.
"""
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from demo_stage import (
    BASE, CACHE, HELD, INTAKE, LANE, ROOT, RUN, UNROUTED, WORKER,
    Broken, Broker, Listener, Processes, Producer, Witness, free_port, start_rabbitmq, tell, wait_for,
)

HOME = RUN / "home"
PROFILE = HOME / ".codex" / "config.toml"
SETTINGS = RUN / "worker-gate.toml"

GOOD = """# Codex writes to this file itself. The gate minds one key of it.
model = "gpt-5"
approval_policy = "never"   # nobody is there to be asked
"""


def milliseconds(seconds):
    """A duration for the reader."""
    return f"{1e3 * seconds:.0f} ms"


def runs():
    """(number, time) of every start that the worker has written down."""
    try:
        text = (RUN / "runs").read_text()
    except FileNotFoundError:
        return []
    whole = text[:text.rfind("\n") + 1]
    return [(line["number"], line["started"]) for line in map(json.loads, whole.splitlines())]


def path_for_checks():
    """Where the checks find codex, speckit and the node that codex runs on."""
    node = Path(shutil.which("node")).resolve().parent
    return f"{CACHE / 'bin'}:{node}:/usr/bin:/bin"


def write_settings(url):
    quoted = json.dumps  # TOML's basic strings are JSON's for what is in here
    SETTINGS.write_text(f"""
[gate]
name = "demo"
state_dir = {quoted(str(RUN / "state"))}
listen = "127.0.0.1:{free_port()}"

[broker]
url = {quoted(url)}

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

[[workers]]
name = "{WORKER}"
home = {quoted(str(HOME))}
path_env = {quoted(path_for_checks())}
edge = "route"
lane = "{LANE}"
intake = {{ exchange = "{INTAKE}", type = "direct", keys = ["{LANE}"] }}
""".lstrip())


def prepare_home():
    """A home with a logged-in Codex and a good config."""
    PROFILE.parent.mkdir(parents=True)
    PROFILE.write_text(GOOD)
    env = {"HOME": str(HOME), "PATH": path_for_checks()}
    # Codex stores any key and asks nobody about it; this one opens nothing.
    login = subprocess.run(["codex", "login", "--with-api-key"], env=env, input="sk-made-up-for-the-demo\n", text=True,
                           capture_output=True, timeout=60, check=False)
    if login.returncode != 0:
        raise Broken(f"codex login: {login.stdout}{login.stderr}")
    PROFILE.write_text(GOOD)


def replace(file, text):
    """As an editor does."""
    new = file.with_name("new")
    new.write_text(text)
    new.rename(file)


class Story:
    """The demo itself, act by act."""

    def __init__(self, gate_program, processes):
        self.gate_program = gate_program
        self.processes = processes
        self.gate = None
        self.worker = None
        self.edited = None
        self.drift_shut = None

    def tell_it(self):
        tell("RabbitMQ starts, on a free port and with files of its own")
        self.url, management = start_rabbitmq(self.processes)
        tell("it is ready", 1)
        prepare_home()
        os.environ["CELERY_BROKER_URL"] = self.url
        os.environ["DEMO_RUNS"] = str(RUN / "runs")
        self.broker = Broker(self.url)
        self.listener, self.witness = Listener(self.url), Witness(management)
        self.listener.start()
        self.witness.start()
        wait_for(20, "the listener listens", lambda: self.listener.check() or self.listener.ready.is_set())
        self.start_worker()
        self.held()
        self.admitted(self.producing)
        self.drift()
        self.mended()
        self.killed()
        return self.account()

    def start_worker(self):
        tell(f"a Celery worker starts: celery worker -Q {LANE} -n {WORKER}")
        self.worker = self.processes.start("worker", [
            CACHE / "venv/bin/celery", "-A", "demo_app", "worker", "-Q", LANE, "-n", WORKER, "-c", "2", "-l", "INFO",
            "--without-gossip", "--without-mingle"], {"PYTHONDONTWRITEBYTECODE": "1"}, ROOT / "scripts")

        def ready():
            if self.worker.poll() is not None:
                raise Broken(f"the worker ended with {self.worker.returncode}")
            return " ready." in (RUN / "worker.log").read_text(errors="replace")

        wait_for(60, "the worker is ready", ready)
        tell("it waits for work", 1)

    def held(self):
        write_settings(self.url)
        tell("the gate starts; it has not looked at the tools yet, so the worker is held")
        self.gate = self.processes.start("gate", [self.gate_program, "run", "--config", SETTINGS])

        def declared():
            self.gate_lives()
            return self.broker.has_exchange(INTAKE) and self.broker.waiting(HELD) is not None

        wait_for(60, "the gate has declared intake and holding queue", declared)
        self.producing = time.time()
        tell(f"a producer publishes ten tasks a second to the exchange {INTAKE}, key {LANE}")
        self.producer = Producer()
        self.producer.start()
        self.see_waiting(5)

    def admitted(self, since):
        heard, _ = self.listener.wait("worker-admitted", since, 90)
        waiting = [n for n, begin in list(self.producer.confirmed.items()) if begin < heard]
        wait_for(30, "what had waited has run", lambda: self.gate_lives() or set(waiting) <= {n for n, _ in runs()})
        tell(f"admitted; what had waited has run: {len(set(n for n, _ in runs()))} of {len(self.producer.confirmed)}")
        self.pause(1.5)

    def drift(self):
        tell(f'somebody edits {PROFILE.relative_to(RUN)}: approval_policy = "on-request"')
        self.edited = time.time()
        replace(PROFILE, GOOD.replace('"never"', '"on-request"'))
        heard, fact = self.listener.wait("worker-quarantined", self.edited, 60)
        self.drift_shut = wait_for(10, "the broker shows the edge shut", lambda: self.witness.shut_since(self.edited))
        tell(f"quarantined {milliseconds(heard - self.edited)} after the edit; the broker no longer had the edge "
             f"{milliseconds(self.drift_shut - self.edited)} after it; the gate counts "
             f"{fact.get('latency_ms')} ms from seeing it to the shut edge")
        self.see_waiting(5)

    def mended(self):
        argv = [self.gate_program, "profile", "apply", "--config", str(SETTINGS), "--worker", WORKER]
        tell(f"$ worker-gate {' '.join(argv[1:3])} --worker {WORKER}")
        mended = time.time()
        result = subprocess.run(argv, cwd=RUN, capture_output=True, text=True, timeout=60, check=False)
        for line in (result.stdout + result.stderr).splitlines():
            tell(line, 1)
        if result.returncode != 0:
            raise Broken(f"profile apply ended with {result.returncode}")
        if PROFILE.read_text() != GOOD:
            raise Broken(f"profile apply changed more than its key:\n{PROFILE.read_text()}")
        self.admitted(mended)

    def killed(self):
        tell("the gate is killed with SIGKILL")
        killing = time.time()
        self.processes.kill(self.gate)
        shut = wait_for(30, "the broker shuts the edge of a dead gate", lambda: self.witness.shut_since(killing))
        tell(f"nobody is left to shut the edge, and {milliseconds(max(0.0, shut - killing))} later it is shut", 1)
        self.see_waiting(5)

    def see_waiting(self, least):
        """Waits until so many tasks are held, and says so."""
        def look():
            self.producer.check()
            self.witness.check()
            self.listener.check()
            return (self.broker.waiting(HELD) or 0) >= least

        wait_for(30, f"{least} tasks wait in {HELD}", look)
        tell(f"{self.broker.waiting(HELD)} tasks wait in {HELD}; run so far: {len(runs())}")

    def pause(self, seconds):
        """Time for the reader, and for tasks to flow."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.producer.check()
            self.witness.check()
            time.sleep(0.05)

    def gate_lives(self):
        if self.gate.poll() is not None:
            raise Broken(f"the gate ended with {self.gate.returncode}")

    def account(self):
        """Published = run + waiting, each once; and nothing that came while the edge was shut has run meanwhile."""
        self.producer.stop()
        tell("the producer stops, and the worker: warm, so what it has prefetched goes back")
        self.worker.terminate()
        self.worker.wait(30)
        self.witness.stop()
        self.listener.stop()
        published = set(self.producer.confirmed)
        started = runs()
        ran = {number for number, _ in started}
        waiting = [n for queue in (HELD, LANE, UNROUTED) for n in Broker(self.url).contents(queue)]
        lost = published - ran - set(waiting)
        twice = len(started) - len(ran) + len(waiting) - len(set(waiting)) + len(ran & set(waiting))
        unfit, in_hand = [], []
        for number, moment in started:
            span = next((span for span in self.witness.shut_spans() if span[0] <= moment <= span[1]), None)
            if span is not None:
                came_before = self.producer.confirmed.get(number, 0) < span[0] and span[0] > self.producing
                (in_hand if came_before else unfit).append(number)
        between = [n for n, moment in started if self.edited <= moment < self.drift_shut]
        tell()
        rows = [
            ("published", len(published), ""),
            ("run", len(ran), ""),
            ("waiting", len(set(waiting)), f"in {HELD}, for a fit worker"),
            ("lost", len(lost), ""),
            ("twice", twice, ""),
            ("run on an unfit worker", len(unfit), "published while the edge was shut, and run before it was open"),
        ]
        for name, number, note in rows:
            print(f"    {name:<24}{number:>6}   {note}".rstrip(), flush=True)
        print(f"    Not counted as such: {len(between)} that started in the {milliseconds(self.drift_shut - self.edited)}"
              f" between the edit and the shut edge,\n    and {len(in_hand)} that the worker had in its hands when an edge"
              " was shut.", flush=True)
        problems = [f"{name}: {number}" for name, number, _ in rows[3:] if number]
        if not published or not ran or not waiting:
            problems.append("nothing was published, run or left waiting: the story proves nothing")
        return problems


def main():
    gate_program = str((ROOT / sys.argv[1]).resolve())
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
        problems = Story(gate_program, processes).tell_it()
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
