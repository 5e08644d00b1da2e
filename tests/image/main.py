"""Builds the Dockerfile for real, and sees in containers what it promises. Started by scripts/test --image.

A real RabbitMQ on this machine, real gates, real Celery workers and the real tools in the images.
"""
import asyncio
import http.client
import json
import os
import shutil
import signal
import ssl
import sys
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# A folder of its own for a run, below .cache; it must be said before the stage is read.
os.environ["WORKER_GATE_STAGE"] = "image"
sys.path.insert(0, str(ROOT / "scripts"))

from broken import LIST, ROWS, VERIFY  # noqa: E402
from demo_rabbitmq import Broker, start_rabbitmq  # noqa: E402
from demo_stage import RUN, Broken, Processes, free_port, wait_for  # noqa: E402
from engine import HOME, Buildah, Docker, call, mounted  # noqa: E402

WORKER, GATE, APP, OWN = [f"worker-gate-test-{name}" for name in ("worker", "gate", "app", "own")]
NAME, LANE, HELD = "codex-0@worker", "codex-0", "codex-0.held"
PROFILE = "/home/celery/.codex/config.toml"
MIB = 1024 * 1024
LIMITS = {"the gate's image": 30 * MIB, "the program": 15 * MIB}
# A worker and its tools on a machine that also does other things.
SOON = 90

TESTS = []


def test(function):
    TESTS.append((function.__name__.replace("_", " "), function))
    return function


def must(holds, what):
    if not holds:
        raise Broken(str(what))


class World:
    """The engine, the images and the broker, for all tests."""

    def __init__(self, engine, processes):
        self.engine = engine
        self.url, _ = start_rabbitmq(processes)
        self.marks_folder = RUN / "out"
        self.marks_folder.mkdir()
        os.chown(self.marks_folder, 1000, 1000)
        self.codex, self.spec_kit = (
            argument("CODEX_CLI_VERSION"), argument("SPEC_KIT_VERSION"))

    def build(self):
        with open(HOME / "build.log", "wb") as log:
            for target, tag in (("gate", GATE), ("worker", WORKER)):
                begin = time.monotonic()
                print(f"[image] building the target {target}; what it says goes to {HOME / 'build.log'} ...", flush=True)
                try:
                    self.engine.build(tag, target=target, log=log)
                except Broken as broken:
                    tail = (HOME / "build.log").read_text(errors="replace").splitlines()[-40:]
                    raise Broken("\n".join([str(broken), *tail])) from None
                print(f"[image] built in {time.monotonic() - begin:.0f} s", flush=True)
            self.derive(APP, f"""FROM {WORKER}
COPY app.py /app/app.py
RUN echo made-up | setpriv --reuid celery --regid celery --init-groups env HOME=/home/celery codex login --with-api-key
""")

    def derive(self, tag, text):
        """An image as a user makes one: the application on top."""
        folder = RUN / tag
        folder.mkdir()
        shutil.copy(ROOT / "tests/it/app.py", folder / "app.py")
        (folder / "worker-gate.toml").write_text(OWN_SETTINGS)
        (folder / "Dockerfile").write_text(text)
        self.engine.build(tag, folder)

    def worker(self, image=APP, argv=(), environment=None, options=()):
        """Starts a container, and looks at its gate from outside."""
        marks = self.marks_folder / f"marks-{free_port()}"
        container = self.engine.start(image, argv, {
            "APP_BROKER_URL": self.url, "CELERY_BROKER_URL": self.url, "APP_MARKS": f"/out/{marks.name}",
            "WORKER_GATE__GATE__LISTEN": f"127.0.0.1:{(port := free_port())}", **(environment or {}),
        }, {self.marks_folder: "/out"}, options)
        return Worker(self, container, port, marks)


class Worker:
    """A worker's container, its gate's HTTP, and what its tasks have left."""

    def __init__(self, world, container, port, marks):
        self.world, self.container, self.port, self.file = world, container, port, marks

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            print("\n".join(self.container.text().splitlines()[-40:]), flush=True)
        self.container.kill()

    def record(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/workers")
            records = json.loads(connection.getresponse().read())
            return records[0] if records else {}
        except (OSError, http.client.HTTPException):
            must(self.container.process.poll() is None, f"the container has ended\n{self.container.text()}")
            return {}

    def wait(self, admission, code=None):
        def look():
            record = self.record()
            reason = record.get("reason") or {}
            return record if record.get("admission") == admission and code in (None, reason.get("code")) else None

        try:
            return wait_for(SOON, f"the worker is {admission}", look)
        except Broken as broken:
            raise Broken(f"{broken}; its record is {json.dumps(self.record())}") from None

    def marks(self):
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def ran(self, ident, phase="started"):
        return wait_for(SOON, f"the task {ident} has {phase}", lambda: next(
            (mark for mark in self.marks() if (mark["id"], mark["phase"]) == (ident, phase)), None))

    def ready(self):
        """The image's own health check, with this gate's port: whether it says healthy."""
        words = self.world.engine.inspect(APP)["Healthcheck"]["Test"]
        must(words[0] == "CMD" and "9464/readyz" in words[-1], words)
        return self.container.enter(*[word.replace("9464", str(self.port)) for word in words[1:]])[0] == 0

    def gate(self):
        # Not what it has forked a moment ago for a check.
        all_of_them = self.container.named("worker-gate")
        found = [pid for pid in all_of_them if int(status_of(pid, "PPid")) not in all_of_them]
        must(len(found) == 1, self.container.processes())
        return found[0]

    def gone(self):
        """The container's end has left nothing."""
        wait_for(10, "nothing of the container is left", lambda: not self.container.processes())


class TlsFront:
    """TLS before a port of this machine, with a certificate of an authority of its own."""

    def __init__(self, folder, behind):
        def openssl(*words):
            call("openssl", *words, cwd=folder)

        new = ["-newkey", "rsa:2048", "-nodes", "-subj"]
        openssl("req", "-x509", *new, "/CN=authority", "-days", "1", "-keyout", "authority.key", "-out", "authority.crt")
        openssl("req", *new, "/CN=localhost", "-keyout", "key", "-out", "request")
        (folder / "extensions").write_text("subjectAltName = DNS:localhost\n")
        openssl("x509", "-req", "-in", "request", "-CA", "authority.crt", "-CAkey", "authority.key", "-CAcreateserial",
                "-days", "1", "-extfile", "extensions", "-out", "certificate")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "certificate", folder / "key")
        self.behind, self.accepted, self.port, self.loop = behind, 0, free_port(), asyncio.new_event_loop()

    def __enter__(self):
        self.loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", self.port, ssl=self.context))
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def serve(self, reader, writer):
        self.accepted += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.behind)
        await asyncio.gather(self.pump(reader, back), self.pump(there, writer))

    @staticmethod
    async def pump(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


def argument(name):
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith(f"ARG {name}="))


def publish(world, task, *args):
    from celery import Celery

    app = Celery("producer", broker=world.url)
    app.conf.broker_transport_options = {"confirm_publish": True}
    app.send_task(task, args, exchange="codex", routing_key=LANE, ignore_result=True)
    app.close()


def status_of(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split("\t", 1)[1] for line in lines if line.startswith(f"{name}:\t"))


# For an image that is not this project's: another user's tools, no Codex CLI, the gate in three lines.
OWN_SETTINGS = """[checks.python]
run = [["python3", "--version"]]

[profile]
path = ""

[[workers]]
name = "codex-0@worker"
run_as = "celery"
edge = "route"
lane = "codex-0"
intake = { exchange = "codex", type = "direct", keys = ["codex-0"] }
"""


@test
def the_worker_image_was_verified_when_it_was_built(world):
    code, text = world.engine.run(WORKER, "cat", "/etc/worker-gate/image.json")
    must(code == 0, text)
    manifest = json.loads(text)
    must(manifest["state"] == "verified" and manifest["base_image"] == argument("PYTHON_IMAGE"), text)
    must((manifest["codex_cli_version"], manifest["spec_kit_version"]) == (world.codex, world.spec_kit), text)
    looked_up = manifest["verified"]["published"]
    must("npm view" in looked_up["npm:@openai/codex"] and "pip index" in looked_up["pypi:specify-cli"], looked_up)
    code, text = world.engine.run(WORKER, "sh", "-c", "codex --version; speckit --help; node --version; celery --version")
    must(code == 0 and world.codex in text and "Usage: speckit" in text and argument("CELERY_VERSION") in text, text)


@test
def the_worker_image_says_how_it_is_run(world):
    config = world.engine.inspect(WORKER)
    must(config["Entrypoint"] == ["worker-gate-entrypoint"] and config["Cmd"][0] == "celery", config)
    must("/var/lib/worker-gate" in config["Volumes"] and config["WorkingDir"] == "/app", config)
    must(config["Labels"]["org.opencontainers.image.base.name"] == argument("PYTHON_IMAGE"), config)
    code, text = world.engine.run(WORKER, "sh", "-c", "getent passwd celery; stat -c %U:%a /var/lib/worker-gate /home/celery")
    must(code == 0 and "celery:x:1000:1000:" in text and "root:700" in text, text)
    pages = ["man/man1/worker-gate.1", "bash-completion/completions/worker-gate"]
    code, text = world.engine.run(WORKER, "ls", *[f"/usr/local/share/{page}" for page in pages])
    must(code == 0, text)


@test
def nothing_of_this_machines_way_to_the_registries_is_in_an_image(world):
    for image, look in ((WORKER, True), (GATE, False)):
        history = world.engine.history(image)
        for name, path in world.engine.secrets.items():
            lines = [line for line in path.read_text().splitlines() if len(line) > 20]
            must(not any(line in history for line in lines), f"{image}: its history has a line of {name}")
        if look:
            # Engines may leave an empty file where a secret was.
            places = "/run/secrets /etc/pip.conf /root/.npmrc /home/celery/.npmrc /etc/apt/apt.conf.d/90secret /opt/npm /root/.npm"
            code, text = world.engine.run(image, "sh", "-c", f"find {places} -type f -size +0 2>/dev/null || true")
            must((code, text.strip()) == (0, ""), text)
            code, text = world.engine.run(image, "sh", "-c", "grep -rlF /run/secrets/ca.crt /etc /root /home /opt || true")
            must(text.strip() == "", text)


@test
def both_images_and_the_program_are_within_their_limits(world):
    code, text = world.engine.run(WORKER, "stat", "-c", "%s", "/usr/local/bin/worker-gate")
    must(code == 0, text)
    sizes = {"the program": int(text), "the gate's image": world.engine.size(GATE)}
    for what, size in {**sizes, "the worker's image": world.engine.size(WORKER)}.items():
        limit = LIMITS.get(what)
        print(f"    {what}: {size / MIB:.1f} MiB" + (f" of {limit / MIB:.0f}" if limit else ""), flush=True)
    for what, size in sizes.items():
        must(size <= LIMITS[what], f"{what} has {size} bytes")


@test
def the_gate_alone_runs_in_its_image(world):
    config = world.engine.inspect(GATE)
    must(config["User"] == "1000:1000" and config["Entrypoint"] == ["worker-gate"], config)
    code, text = world.engine.run(GATE, "/usr/local/bin/worker-gate", "--version")
    must(code == 0 and text.startswith("worker-gate "), text)
    # An operator's: whose settings lead to the broker.
    world.derive(f"{GATE}-operator", f"FROM {GATE}\nCOPY worker-gate.toml /etc/worker-gate/\n")
    # By name: the libraries that look names up are there.
    url = world.url.replace("127.0.0.1", "localhost")
    code, text = world.engine.run(f"{GATE}-operator", "/usr/local/bin/worker-gate", "--set", f"broker.url={url}", "status")
    # No gate runs now, but the broker was asked.
    must(code in (0, 1) or "no gate is known on this broker" in text, f"{code}: {text}")
    nobody = "broker.url=amqp://guest:guest@localhost:1//"
    code, text = world.engine.run(f"{GATE}-operator", "/usr/local/bin/worker-gate", "--set", nobody, "status")
    must(code == 69 and "Connection refused" in text, f"{code}: {text}")


@test
def the_gate_alone_goes_by_the_authorities_in_its_image(world):
    folder = RUN / "tls"
    folder.mkdir()
    with TlsFront(folder, int(world.url.rpartition(":")[2].strip("/"))) as front:
        asks = ["/usr/local/bin/worker-gate", "--set", f"broker.url=amqps://guest:guest@localhost:{front.port}//", "status"]
        (folder / "worker-gate.toml").write_text(OWN_SETTINGS)
        text = f"FROM {GATE}\nCOPY worker-gate.toml /etc/worker-gate/\n"
        (folder / "Dockerfile").write_text(text)
        world.engine.build(f"{GATE}-tls", folder)
        code, said = world.engine.run(f"{GATE}-tls", *asks)
        must(code == 78 and "UnknownIssuer" in said, f"a broker of nobody's is trusted: {code}: {said}")
        (folder / "Dockerfile").write_text(f"{text}COPY authority.crt /etc/ssl/certs/ca-certificates.crt\n")
        world.engine.build(f"{GATE}-tls", folder)
        code, text = world.engine.run(f"{GATE}-tls", *asks)
        must(front.accepted and "UnknownIssuer" not in text, f"{code}: {text}")
        must(code in (0, 1) or "no gate is known on this broker" in text, f"{code}: {text}")
    (folder / "Dockerfile").write_text(f"FROM {WORKER}\nCOPY --from={GATE} /etc/ssl/certs/ca-certificates.crt /authorities\n")
    world.engine.build(f"{WORKER}-tls", folder)
    code, text = world.engine.run(f"{WORKER}-tls", "grep", "-c", "BEGIN CERTIFICATE", "/authorities")
    must(code == 0 and int(text) > 100, f"the image has the authorities that Debian has: {text}")


@test
def a_task_runs_once_the_gate_has_admitted_the_worker(world):
    with world.worker() as worker:
        worker.wait("admitted")
        publish(world, "app.mark", "first")
        must(worker.ran("first")["worker"] == NAME, worker.marks())
        must(worker.ready(), "its health check fails")
        must(status_of(worker.gate(), "Uid").split()[1] == "0", "the gate is root")
        # setuid, setgid, kill, dac_override, chown, fowner, sys_ptrace
        allowed = sum(1 << bit for bit in (7, 6, 5, 1, 0, 3, 19))
        for name in ("CapEff", "CapBnd"):
            rights = int(status_of(worker.gate(), name), 16)
            must(rights and not rights & ~allowed, f"the gate's {name} is {rights:x}")
        for pid in worker.container.named("celery"):
            must(status_of(pid, "Uid").split() == ["1000"] * 4, "the worker runs as its user")
            must(int(status_of(pid, "CapEff"), 16) == 0, "the worker has no rights")
            must(status_of(pid, "NoNewPrivs") == "1", "celery may get rights")
        must(len(worker.container.named("celery")) >= 2, worker.container.processes())


@test
def an_edited_config_stops_the_next_task_and_a_mended_one_lets_it_run(world):
    with world.worker() as worker:
        worker.wait("admitted")
        worker.container.path(PROFILE).write_text('approval_policy = "on-request"\n')
        worker.wait("quarantined", "profile_drifted")
        publish(world, "app.mark", "waits")
        broker = Broker(world.url)
        wait_for(SOON, "the task waits at the broker", lambda: broker.waiting(HELD) == 1)
        must(not worker.ready(), "its health check says healthy")
        code, text = worker.container.enter("worker-gate", "profile", "diff")
        must(code == 1 and "never" in text, text)
        must(broker.waiting(HELD) == 1 and not worker.marks(), worker.marks())
        code, text = worker.container.enter("worker-gate", "profile", "apply", user="root")
        must(code == 0, text)
        worker.wait("admitted")
        worker.ran("waits")


@test
def orphans_find_a_parent_that_buries_them(world):
    with world.worker() as worker:
        worker.wait("admitted")
        must(status_of(worker.container.init, "Name") == "tini", worker.container.processes())
        code, text = worker.container.enter("sh", "-c", "sleep 1.5 >/dev/null 2>&1 &")
        must(code == 0, text)
        orphans = worker.container.named("sleep")
        must(len(orphans) == 1, worker.container.processes())
        must(status_of(orphans[0], "PPid") == str(worker.container.init), "the orphan is not the init's")
        wait_for(10, "the orphan has gone", lambda: not worker.container.named("sleep"))
        wait_for(10, "no zombie is there", lambda: not any("zombie" in name for name in worker.container.processes().values()))


@test
def the_gates_death_ends_the_container(world):
    with world.worker() as worker:
        worker.wait("admitted")
        os.kill(worker.gate(), signal.SIGKILL)
        status = worker.container.end(60)
        must(status == 128 + signal.SIGKILL, f"exit status {status}")
        must("the gate has ended with -9" in worker.container.text(), worker.container.text())
        worker.gone()
        # Nobody vouches for the worker now.
        publish(world, "app.mark", "after the gate")
        wait_for(SOON, "what comes afterwards is held", lambda: Broker(world.url).waiting(HELD) == 1)
    with world.worker() as worker:
        worker.ran("after the gate")


@test
def term_lets_the_worker_finish_and_then_stops_the_gate(world):
    with world.worker() as worker:
        worker.wait("admitted")
        publish(world, "app.slow", "long", 4)
        worker.ran("long")
        worker.container.signal(signal.SIGTERM)
        status = worker.container.end(60)
        must(status == 0, f"exit status {status}\n{worker.container.text()}")
        must("Warm shutdown" in worker.container.text(), worker.container.text())
        must(any(mark["phase"] == "ended" for mark in worker.marks()), worker.marks())
        worker.gone()
        publish(world, "app.mark", "later")
        wait_for(SOON, "what comes afterwards is held", lambda: Broker(world.url).waiting(HELD) == 1)
    with world.worker() as worker:
        worker.ran("later")


@test
def a_worker_that_is_shut_down_ends_the_container(world):
    from celery import Celery

    with world.worker() as worker:
        worker.wait("admitted")
        # A worker that runs tasks also hears commands.
        publish(world, "app.mark", "before the end")
        worker.ran("before the end")
        # As a gate does it with on_quarantine = "recycle".
        app = Celery("operator", broker=world.url)
        app.control.shutdown(destination=[NAME])
        app.close()
        status = worker.container.end(60)
        must(status == 0, f"exit status {status}\n{worker.container.text()}")
        worker.gone()


@test
def a_container_that_is_not_root_runs_both_as_its_user(world):
    with world.worker(environment={"WORKER_GATE__GATE__STATE_DIR": "/out/state", "HOME": "/home/celery"},
                      options=["--user", "1000:1000"]) as worker:
        worker.wait("admitted")
        must(status_of(worker.gate(), "Uid").split()[1] == "1000", "the gate is not the user's")
        publish(world, "app.mark", "rootless")
        worker.ran("rootless")


@test
def three_lines_put_the_gate_into_somebody_elses_image(world):
    readme = (ROOT / "README.md").read_text()
    block = readme.partition("Add it to your Celery image")[2].partition("```dockerfile\n")[2].partition("```")[0]
    lines = [line for line in block.splitlines() if line.strip()]
    must(len(lines) == 3, f"README has {lines}")
    world.derive(OWN, "\n".join([
        f"FROM {argument('PYTHON_IMAGE')}", f"COPY --from={WORKER} /opt/celery /opt/celery", "ENV PATH=/opt/celery/bin:$PATH",
        "RUN useradd --uid 1000 --create-home celery", "WORKDIR /app", "COPY app.py ./",
        *[line.replace("--from=worker-gate ", f"--from={GATE} ") for line in lines]]) + "\n")
    with world.worker(OWN, ["celery", "-A", "app", "worker", "-Q", LANE, "-n", NAME]) as worker:
        worker.wait("admitted")
        publish(world, "app.mark", "in three lines")
        worker.ran("in three lines")
        worker.container.signal(signal.SIGTERM)
        must(worker.container.end(60) == 0, worker.container.text())
        worker.gone()


def add_rows():
    for what, rule, script in ROWS:
        def row(world, rule=rule, script=script):
            listed = LIST.format(codex=world.codex, spec_kit=world.spec_kit)
            code, text = world.engine.run(WORKER, "sh", "-c", "\n".join([
                "set -e", f"cat >/tmp/published <<END\n{listed}END", f"verify='{VERIFY}'", "{ " + script + "\n} >/tmp/said",
                "$verify"]))
            must(code == 1, f"exit status {code}: {text}")
            # Behind it the engine may say how its command has ended.
            rules, _ = json.JSONDecoder().raw_decode(text[text.index("[{"):])
            broken = {found["rule"]: found for found in rules if not found["holds"]}
            must(rule in broken and broken[rule]["remedy"], f"{rule} is not among {sorted(broken)}")

        TESTS.append((f"verify is red where {what}: {rule}", row))

    def good(world):
        listed = LIST.format(codex=world.codex, spec_kit=world.spec_kit)
        code, text = world.engine.run(WORKER, "sh", "-c", f"cat >/tmp/published <<END\n{listed}END\n{VERIFY}")
        must(code == 0 and all(rule["holds"] for rule in json.loads(text)), f"{code}: {text}")

    TESTS.append(("verify is green where nothing is broken", good))


def main():
    words = sys.argv[1:]
    add_rows()
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    passed, failed, processes, engine = 0, 0, Processes(), None
    try:
        engine = Docker() if Docker.answers() else Buildah()
        print(f"[image] with {engine.name}", flush=True)
        engine.prepare()
        world = World(engine, processes)
        world.build()
        for name, function in TESTS:
            if words and not any(word in name for word in words):
                continue
            begin = time.monotonic()
            try:
                function(world)
            except Exception as error:  # whatever it is, it is this test that fails, and the others go on
                failed += 1
                print(f"FAILED {name}\n{error if isinstance(error, Broken) else traceback.format_exc()}", flush=True)
            else:
                passed += 1
                print(f"ok     {name} ({time.monotonic() - begin:.1f} s)", flush=True)
    except Broken as broken:
        failed += 1
        print(f"FAILED {broken}", flush=True)
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        if engine:
            engine.end()
        if left := [*processes.end(), *mounted()]:
            failed += 1
            print("still there:", *left, sep="\n    ", flush=True)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
