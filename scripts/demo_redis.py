"""The story on Redis: one queue as intake, and two workers that share it, each with a lane and a home of its own."""
import base64
import json
import math
import signal
import time

from demo_stage import INTAKE, RUN, Broken, Span, Witness, Worker, free_port, tell, wait_for
from demo_story import Story, milliseconds, runs

WORKERS = tuple(Worker(f"codex-{n}@demo", f"codex-{n}.lane", RUN / f"home-{n}") for n in range(2))
DEPTH = 1
HEARTBEAT = 1
# A queue is one list for each of these priorities (kombu/transport/redis.py, `_q_for_pri`).
STEPS = (0, 3, 6, 9)


def key(purpose, worker):
    return f"worker-gate.{purpose}.{worker.name}"


def lists(queue):
    return [f"{queue}\x06\x16{step}" if step else queue for step in STEPS]


def numbers(messages):
    """The numbers of the tasks that these messages ask for."""
    return [json.loads(base64.b64decode(json.loads(message)["body"]))[0][0] for message in messages]


class OnRedis(Story):
    """Held, admitted, one drifts, the other drifts, mended, the gate is killed, and another one comes."""

    BROKER = "Redis"
    WORKERS = WORKERS
    # One task at a time and one more in its hands, so that there is something for both of them to do.
    OPTIONS = ("-c", "1", "--prefetch-multiplier", "1")
    PUBLISHES = f"the queue {INTAKE}, as it always did: five of 50 ms twice a second"
    PRODUCER = {"at_once": 5, "pause": 0.5, "seconds": 0.05}
    WAITING_ROOM = INTAKE
    BROKER_SETTINGS = f'heartbeat = "{HEARTBEAT}s"                  # after 2.5 of them a dead gate has lost its workers\n'

    def start_broker(self):
        url = start_redis(self.processes)
        self.redis = connect(url)
        return url, KeyWitness(url)

    def edge(self, worker):
        return f"""edge = "feed"
lane = "{worker.lane}"
intake = {{ queue = "{INTAKE}" }}
depth = {DEPTH}
offline_after = "10s\""""

    def is_held(self):
        return self.redis.exists(*(key("owner", worker) for worker in WORKERS)) == len(WORKERS)

    def waiting(self):
        return len(self.contents(INTAKE))

    def contents(self, queue):
        return numbers(message for name in lists(queue) for message in self.redis.lrange(name, 0, -1))

    def left_over(self):
        # What a worker has taken and not acknowledged is in one hash for all of them; a warm shutdown gives it back.
        in_hand = [json.loads(taken)[0] for taken in self.redis.hvals("unacked")]
        queues = [INTAKE, *(worker.lane for worker in WORKERS)]
        return [n for queue in queues for n in self.contents(queue)] + numbers(map(json.dumps, in_hand))

    def acts(self):
        first, second = WORKERS
        self.held()
        self.admitted(self.producing)
        self.drift(first)
        self.runs_everything(second)
        self.drift(second)
        self.see_waiting(5)
        self.mended()
        self.killed()
        self.another_gate()

    def runs_everything(self, worker):
        since = time.time()
        self.pause(2)
        ran = [(number, name) for number, moment, name in runs() if moment >= since]
        # The other one may still finish what it had in its hands, which was published before.
        wrong = [(number, name) for number, name in ran
                 if name != worker.name and self.producer.confirmed.get(number, since) >= since]
        if wrong or all(name != worker.name for _, name in ran):
            raise Broken(f"not everything was run by {worker.name}: {wrong or ran}")
        tell(f"{worker.name} runs everything: {len(ran)} since then; {self.waiting()} wait in {INTAKE}")

    def killed(self):
        tell("the gate is killed with SIGKILL")
        self.processes.kill(self.gate)
        # What it had sent before it died, Redis does.
        time.sleep(0.05)
        # Nobody moves anything from here on, and the edges' keys only outlive their gate.
        self.dead = Span(time.time(), math.inf, False, frozenset(self.contents(INTAKE)))
        self.witness.dead = [self.dead]
        fed = [len(self.contents(worker.lane)) for worker in WORKERS]
        if max(fed) > DEPTH:
            raise Broken(f"more than {DEPTH} wait in a lane: {fed}")
        tell(f"nobody is left to move anything: {fed[0]} and {fed[1]} wait in the lanes, which have room for {DEPTH} each", 1)
        self.see_waiting(10)

    def another_gate(self):
        started = time.time()
        tell("another gate starts; it has to wait until Redis gives the workers up")
        self.start_gate()
        for worker in WORKERS:
            shut = wait_for(30, f"the edge of {worker.name} expires", lambda: self.witness.shut_since(worker, self.dead.first))
        # From here on the witness sees by itself whether an edge is open.
        self.dead.last = shut
        tell(f"{milliseconds(shut - self.dead.first)} after the gate's death its keys have expired", 1)
        wait_for(30, "the new gate has both workers", lambda: self.gate_lives() or self.is_held())
        self.admitted(started)

    def close(self):
        tell("the producer stops; what still waits is run")
        self.producer.stop()
        everything = set(self.producer.confirmed)
        wait_for(30, "everything has run", lambda: self.gate_lives() or everything <= {n for n, _, _ in runs()})
        tell("the gate is stopped with SIGTERM, and the workers: warm, so what they have prefetched goes back")
        self.gate.send_signal(signal.SIGTERM)
        if self.gate.wait(30) != 0:
            raise Broken(f"the gate ended with {self.gate.returncode}")
        if self.is_held():
            raise Broken("the gate has ended and has not given up its workers")
        self.stop_workers()

    @staticmethod
    def proves_nothing(published, ran, waiting):
        return [] if published and ran else ["nothing was published or run: the story proves nothing"]


def start_redis(processes):
    """A server that keeps nothing and shares nothing with the system's. Gives its URL."""
    port = free_port()
    folder = RUN / "redis"
    folder.mkdir()
    server = processes.start("redis", [
        "redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", folder, "--save", "", "--appendonly", "no"])
    url = f"redis://127.0.0.1:{port}/0"

    def ready():
        from redis import ConnectionError as Refused

        if server.poll() is not None:
            raise Broken(f"Redis ended with {server.returncode}")
        try:
            return connect(url).ping()
        except Refused:
            return False

    wait_for(20, "Redis answers", ready)
    return url


def connect(url):
    """A connection for one thread."""
    from redis import Redis

    return Redis.from_url(url, decode_responses=True)


# The edges' keys: '1' for each that is there. If that is news, also what waits in the intake and in the lanes at that moment.
LOOK = """
local now = ''
for edge = 1, tonumber(ARGV[1]) do now = now .. redis.call('EXISTS', KEYS[edge]) end
local waiting = {}
if now ~= ARGV[2] then
    for list = tonumber(ARGV[1]) + 1, #KEYS do
        for _, message in ipairs(redis.call('LRANGE', KEYS[list], 0, -1)) do waiting[#waiting + 1] = message end
    end
end
return {now, waiting}
"""


class KeyWitness(Witness):
    """Asks which of the edges' keys are there."""

    def __init__(self, url):
        super().__init__(WORKERS)
        self.redis = connect(url)
        self.dead = []  # while there was no gate

    def work(self):
        edges = [key("edge", worker) for worker in WORKERS]
        queues = [name for queue in (INTAKE, *(worker.lane for worker in WORKERS)) for name in lists(queue)]
        look, known = self.redis.register_script(LOOK), ""
        while not self.stopped.is_set():
            before = time.time()
            now, messages = look(keys=edges + queues, args=[len(edges), known])
            after, waiting, known = time.time(), frozenset(numbers(messages)), now
            for worker, there in zip(WORKERS, now):
                self.saw(worker, before, after, there == "1", waiting)
            self.stopped.wait(0.005)

    def shut_spans(self, worker):
        return self.dead + super().shut_spans(worker)
