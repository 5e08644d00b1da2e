"""What the demo plays on: processes, a broker, and threads that publish, listen and look.

The gate's words are only printed. Whether an edge was open is asked of the broker, again and again.
"""
import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
# Not below the system's folder for temporary files: the Codex CLI refuses a home there.
BASE = CACHE / "demo"
RUN = BASE / "run"
RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"

WORKER, LANE, INTAKE = "codex-0@demo", "codex-0", "codex"
HELD, UNROUTED = f"{LANE}.held", f"{INTAKE}.unrouted"
EDGE = f"worker-gate.edge.{WORKER}"
FACTS = "worker-gate.health"

BEGIN = time.time()
TELLING = threading.Lock()


class Broken(Exception):
    """The story did not go as it must."""


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


def start_rabbitmq(processes):
    """A node that shares nothing with the system's: ports, name, cookie, files. Gives its URL, and the port of its management."""
    port, management, distribution, epmd = [free_port() for _ in range(4)]
    folder = RUN / "rabbitmq"
    folder.mkdir()
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\n"
        "management.tcp.ip = 127.0.0.1\n"
        f"management.tcp.port = {management}\n"
        "distribution.listener.interface = 127.0.0.1\n"
        "disk_free_limit.absolute = 1MB\n")
    # It shows the bindings, which AMQP does not.
    (folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
    cookie = folder / ".erlang.cookie"
    cookie.write_text("worker-gate-demo")
    cookie.chmod(0o400)
    env = {"HOME": folder, "ERL_EPMD_PORT": epmd, "ERL_EPMD_ADDRESS": "127.0.0.1"}
    # In the foreground, or the node would start one that stays.
    processes.start("epmd", ["epmd", "-address", "127.0.0.1", "-port", epmd], texts(env))
    wait_for(10, "Erlang's name server listens", lambda: listens(epmd))
    env |= {
        "RABBITMQ_ALLOW_INPUT": 1,  # the node in this process's place, not below a shell
        "RABBITMQ_NODENAME": f"worker-gate-demo-{os.getpid()}@localhost",
        # Not in the settings file: the node looks for its port before it reads that.
        "RABBITMQ_DIST_PORT": distribution,
        "RABBITMQ_CONF_ENV_FILE": folder / "none.conf",
        "RABBITMQ_CONFIG_FILE": folder / "rabbitmq.conf",
        "RABBITMQ_ADVANCED_CONFIG_FILE": folder / "none.config",
        "RABBITMQ_MNESIA_BASE": folder / "mnesia",
        "RABBITMQ_LOG_BASE": folder,
        "RABBITMQ_LOGS": folder / "rabbit.log",
        "RABBITMQ_PID_FILE": folder / "pid",
        "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "enabled_plugins",
    }
    node = processes.start("rabbitmq", [RABBITMQ, "-noinput"], texts(env), folder)

    def ready():
        if node.poll() is not None:
            raise Broken(f"RabbitMQ ended with {node.returncode}")
        return listens(port)

    wait_for(60, "RabbitMQ listens", ready)
    wait_for(60, "its management listens", lambda: listens(management))
    return f"amqp://guest:guest@127.0.0.1:{port}//", management


def texts(env):
    return {key: str(value) for key, value in env.items()}


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class Broker:
    """One thread's questions to the broker."""

    def __init__(self, url):
        from kombu import Connection

        self.connection = Connection(url)
        self.channel = None

    def ask(self, method, **arguments):
        """The answer to a passive declare, or True where it has no content; None if there is no such thing."""
        from amqp.exceptions import NotFound

        self.channel = self.channel or self.connection.channel()
        try:
            return getattr(self.channel, method)(passive=True, **arguments) or True
        except NotFound:
            self.channel = None  # an error ends the channel
            return None

    def has_exchange(self, name):
        return self.ask("exchange_declare", exchange=name, type="direct") is not None

    def waiting(self, queue):
        answer = self.ask("queue_declare", queue=queue)
        return None if answer is None else answer.message_count

    def contents(self, queue):
        """The numbers of the tasks that wait in a queue; they stay there, since nothing is acknowledged."""
        numbers = []
        if self.waiting(queue) is not None:
            while message := self.channel.basic_get(queue):
                numbers.append(json.loads(message.body)[0][0])
        return numbers


class Thread(threading.Thread):
    """Runs `turn` until stopped; what it raised is raised in the main thread by `check`."""

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
    """Asks the broker all the time whether the intake leads to the edge."""

    def __init__(self, port):
        super().__init__()
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        # [from, to, open]: certain between these two times. A look says how it was at some moment between asking and
        # being answered; so what is certain begins with the first answer and ends with the last question.
        self.seen = []

    def work(self):
        path = f"/api/bindings/%2F/e/{INTAKE}/e/{urllib.parse.quote(EDGE, safe='')}"
        login = {"Authorization": "Basic " + base64.b64encode(b"guest:guest").decode()}
        while not self.stopped.is_set():
            before = time.time()
            self.http.request("GET", path, headers=login)
            answer = self.http.getresponse()
            bindings = answer.read()
            # While the edge exchange does not exist, the answer is 404.
            is_open = answer.status == 200 and json.loads(bindings) != []
            after = time.time()
            if not self.seen or self.seen[-1][2] != is_open:
                self.seen.append([after, before, is_open])
            else:
                self.seen[-1][1] = before
            self.stopped.wait(0.005)

    def shut_since(self, moment):
        """When the edge was first seen shut after this moment, if it was."""
        return next((first for first, last, is_open in list(self.seen) if not is_open and last >= moment), None)

    def shut_spans(self):
        return [(first, last) for first, last, is_open in list(self.seen) if not is_open]


class Listener(Thread):
    """Prints and keeps what the gate publishes."""

    QUIET = ("worker-health-check", "gate-heartbeat")

    def __init__(self, url):
        super().__init__()
        self.url = url
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
        if reason:
            words.append(f"[{reason.get('code')}] {reason.get('detail')}")
        tell("  ".join(words), 1)
        if reason.get("remedy"):
            tell(f"remedy: {reason['remedy']}", 2)
        if fact.get("exposed"):
            tell(f"exposed: {json.dumps(fact['exposed'])}", 2)

    def wait(self, kind, since, bound):
        """The first fact of this type about our worker that was heard after `since`."""
        def look():
            self.check()
            for heard, fact in list(self.facts):
                if heard >= since and fact.get("type") == kind and fact.get("worker_name") == WORKER:
                    return heard, fact
            return None

        return wait_for(bound, f"the fact {kind}", look)


class Producer(Thread):
    """Publishes ten tasks a second, with Celery, and knows which ones the broker has confirmed."""

    def __init__(self):
        super().__init__()
        self.confirmed = {}  # number -> time at which publishing it began

    def work(self):
        import demo_app

        with demo_app.app.producer_or_acquire() as producer:
            number = 0
            while not self.stopped.is_set():
                begin = time.time()
                demo_app.work.apply_async((number,), producer=producer, retry=False)
                self.confirmed[number] = begin
                number += 1
                self.stopped.wait(0.1)
