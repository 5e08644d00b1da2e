"""The story on RabbitMQ: an exchange as intake, and one worker with a key of its own."""
import base64
import http.client
import json
import os
import time
import urllib.parse

from demo_stage import INTAKE, RUN, Broken, Witness, Worker, free_port, listens, tell, wait_for
from demo_story import Story, milliseconds

RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"

WORKER = Worker("codex-0@demo", "codex-0", RUN / "home")
HELD, UNROUTED = f"{WORKER.lane}.held", f"{INTAKE}.unrouted"
EDGE = f"worker-gate.edge.{WORKER.name}"


class OnRabbitmq(Story):
    """Held, admitted, drifted, mended, and the gate is killed."""

    BROKER = "RabbitMQ"
    WORKERS = (WORKER,)
    OPTIONS = ("-c", "2")
    PUBLISHES = f"the exchange {INTAKE}, key {WORKER.lane}"
    WAITING_ROOM = HELD

    def start_broker(self):
        url, management = start_rabbitmq(self.processes)
        self.broker = Broker(url)
        return url, BindingWitness(management)

    def edge(self, worker):
        return f"""edge = "route"
lane = "{worker.lane}"
intake = {{ exchange = "{INTAKE}", type = "direct", keys = ["{worker.lane}"] }}"""

    def is_held(self):
        return self.broker.has_exchange(INTAKE) and self.waiting() is not None

    def waiting(self):
        return self.broker.waiting(HELD)

    def left_over(self):
        return [n for queue in (HELD, WORKER.lane, UNROUTED) for n in Broker(self.url).contents(queue)]

    def acts(self):
        self.held()
        self.admitted(self.producing)
        self.drift(WORKER)
        self.see_waiting(5)
        self.mended()
        self.killed()

    def killed(self):
        tell("the gate is killed with SIGKILL")
        killing = time.time()
        self.processes.kill(self.gate)
        shut = wait_for(30, "the broker shuts the edge of a dead gate", lambda: self.witness.shut_since(WORKER, killing))
        tell(f"nobody is left to shut the edge, and {milliseconds(max(0.0, shut - killing))} later it is shut", 1)
        self.see_waiting(5)


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


class BindingWitness(Witness):
    """Asks whether the intake leads to the edge."""

    def __init__(self, port):
        super().__init__([WORKER])
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

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
            self.saw(WORKER, before, time.time(), is_open)
            self.stopped.wait(0.005)
