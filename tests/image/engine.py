"""What builds and runs images here: a Docker engine if one answers, else buildah on bases that stand in for Docker's own.

Both look alike from outside. What runs in a container is looked at by this machine's /proc, so that a signal goes to the very
process that an engine would send it to, and nothing that is left can hide.
"""
import configparser
import fcntl
import json
import os
import shutil
import signal
import subprocess
import uuid
from pathlib import Path

from demo_stage import CACHE, ROOT, RUN, Broken, wait_for

HOME = CACHE / "image"
# What the Dockerfile asks for when nobody says anything else, and the Debian packages that make a base like it.
PYTHON, RUST = "python:3.11-slim", "rust:1-slim-bookworm"
STAND_INS = {PYTHON: ["python3", "python3-pip", "python3-venv"], RUST: ["gcc", "libc6-dev"]}
SUITE = "bookworm"
# In a container; see the Dockerfile.
AUTHORITIES = "/run/secrets/ca.crt"


def call(*argv, **options):
    """Runs a command and gives what it printed; Broken with all of that if it fails."""
    process = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, text=True, errors="replace",
                               **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options})
    try:
        printed, _ = process.communicate()
    except BaseException:
        # Told, a build takes down what it has started; killed, it would leave that running.
        process.terminate()
        process.wait(30)
        raise
    if process.returncode != 0:
        raise Broken(f"{' '.join(map(str, argv))[:300]}: exit status {process.returncode}\n{printed or ''}")
    return printed


def secrets():
    """The host's clients of the package registries, as files for a build: each by its name in the Dockerfile."""
    folder = RUN / "secrets"
    folder.mkdir(mode=0o700)
    found = {}

    def keep(name, text):
        (folder / name).write_text(text)
        found[name] = folder / name

    bundle = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    keep("ca.crt", bundle.read_text())
    # Not all of it: a list that is given once more has everything twice.
    apt = ("Acquire::http", "Acquire::Check-", "Acquire::Retries", "Acquire::Force")
    acquire = [line for line in call("apt-config", "dump").splitlines() if line.startswith(apt) and '"";' not in line]
    keep("apt.conf", "\n".join(acquire) + "\n")

    pip = configparser.ConfigParser(interpolation=None)
    pip.read([os.environ.get("PIP_CONFIG_FILE", ""), "/etc/pip.conf", *(Path.home() / place for place in (
        ".pip/pip.conf", ".config/pip/pip.conf"))])
    if not pip.has_section("global"):
        pip.add_section("global")
    for key in ("index-url", "extra-index-url", "trusted-host", "proxy"):
        if value := os.environ.get("PIP_" + key.upper().replace("-", "_")):
            pip["global"][key] = value
    pip["global"]["cert"] = AUTHORITIES
    with open(folder / "pip.conf", "w", encoding="utf-8") as file:
        pip.write(file)
    found["pip.conf"] = folder / "pip.conf"

    npmrc = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    lines = npmrc.read_text().splitlines() if npmrc.exists() else []
    if registry := os.environ.get("NPM_CONFIG_REGISTRY"):
        lines.append(f"registry={registry}")
    keep("npmrc", "\n".join([*(line for line in lines if not line.startswith("cafile")), f"cafile={AUTHORITIES}"]) + "\n")

    cargo = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo") / "config.toml"
    http = f'[http]\ncainfo = "{AUTHORITIES}"\n'
    lines = cargo.read_text().splitlines(keepends=True) if cargo.exists() else []
    mine = "".join(line for line in lines if not line.startswith("cainfo"))
    keep("cargo.toml", mine.replace("[http]\n", http) if "[http]\n" in mine else mine + http)
    return found


class Container:
    """A running one, seen from this machine. `process` is the engine's own, which ends when the container does."""

    def __init__(self, process, mark, log):
        self.process, self.mark, self.log = process, mark, log
        self.init = wait_for(30, "a container's first process runs", self.first)
        self.namespace = os.readlink(f"/proc/{self.init}/ns/pid")

    def first(self):
        if self.process.poll() is not None:
            raise Broken(f"the container has ended with {self.process.returncode}\n{self.text()}")
        return next((pid for pid in marked(self.mark) if numbers(pid)[-1:] == ["1"] and len(numbers(pid)) > 1), None)

    def text(self):
        return self.log.read_text(errors="replace")

    def processes(self):
        """The name of each process in it by its number on this machine; a zombie's ends with its state."""
        found = {}
        for pid in everybody():
            try:
                if os.readlink(f"/proc/{pid}/ns/pid") == self.namespace:
                    found[pid] = field(pid, "Name")
            except OSError:
                # A zombie has no namespace to read any more, but keeps its numbers.
                if len(numbers(pid)) > 1 and field(pid, "State")[:1] == "Z" and self.init in ancestors(pid):
                    found[pid] = field(pid, "Name") + " (zombie)"
        return found

    def named(self, name):
        return [pid for pid, found in self.processes().items() if found == name]

    def path(self, path):
        return Path(f"/proc/{self.init}/root{path}")

    def enter(self, *argv, user="celery"):
        """Runs a command in it, with the environment of its first process; gives the exit status and what was printed."""
        words = ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--pid", "--root", "--wd=/", "--",
                 "setpriv", "--reuid", user, "--regid", user, "--init-groups", "--", *argv]
        environment = dict(pair.split("=", 1) for pair in environ(self.init) if "=" in pair)
        environment["HOME"] = {"root": "/root"}.get(user, "/home/celery")
        done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def signal(self, number):
        os.kill(self.init, number)

    def end(self, bound):
        """Waits for its end, and gives its exit status."""
        try:
            return self.process.wait(bound)
        except subprocess.TimeoutExpired:
            raise Broken(f"the container has not ended within {bound} s; in it: {self.processes()}\n{self.text()}") from None

    def kill(self):
        if self.process.poll() is None:
            try:
                os.kill(self.init, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait(30)


def everybody():
    return [int(proc.name) for proc in Path("/proc").glob("[0-9]*")]


def field(pid, name):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split("\t", 1)[1] for line in lines if line.startswith(f"{name}:\t")), "")


def numbers(pid):
    """The process's number in each namespace that it is in, the outermost first."""
    return field(pid, "NSpid").split()


def ancestors(pid):
    found = []
    while pid > 1:
        pid = int(field(pid, "PPid") or 0)
        found.append(pid)
    return found


def environ(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def marked(mark):
    return [pid for pid in everybody() if mark in environ(pid)]


class Engine:
    """What the two have in common. An image is built from a Dockerfile's text and the files that it copies."""

    def __init__(self):
        self.started = []
        self.secrets = secrets()

    def start(self, image, argv=(), environment=None, volumes=None, options=()):
        """Starts a container as an engine does without further words: the image's own entry command, and its user."""
        name = f"worker-gate-test-{uuid.uuid4().hex[:12]}"
        mark = f"WORKER_GATE_TEST_CONTAINER={name}"
        log = RUN / f"{name}.log"
        # By the second one scripts/test finds what is left, also of a run that was killed.
        words = [mark, f"WORKER_GATE_TEST_RUN={os.environ.get('WORKER_GATE_TEST_RUN', '')}"]
        words += [f"{key}={value}" for key, value in (environment or {}).items()]
        command = self.command(name, image, list(argv), words, volumes or {}, list(options))
        with open(log, "wb") as file:
            # The engine's process gets no mark: only what is in the container has it.
            process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=file,
                                       stderr=subprocess.STDOUT, start_new_session=True)
        self.started.append((name, process))
        try:
            return Container(process, mark, log)
        except BaseException:
            self.remove(name, process)
            raise

    def end(self):
        for name, process in self.started:
            self.remove(name, process)
        # They may hold a password.
        shutil.rmtree(RUN / "secrets", ignore_errors=True)


class Docker(Engine):
    """A Docker engine, on this machine."""

    name = "Docker"

    @staticmethod
    def answers():
        return shutil.which("docker") is not None and outcome(["docker", "info"])[0] == 0

    def prepare(self):
        """Its bases come from its registry."""

    def build(self, tag, folder=ROOT, target=None, log=None):
        given = [word for name, path in self.secrets.items() for word in ("--secret", f"id={name},src={path}")]
        aim = ["--target", target] if target else []
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        call("docker", "build", *aim, *given, "-t", tag, folder, env=environment, **output(log))

    def inspect(self, image):
        return json.loads(call("docker", "image", "inspect", image))[0]["Config"]

    def size(self, image):
        return int(call("docker", "image", "inspect", "-f", "{{.Size}}", image))

    def history(self, image):
        return call("docker", "history", "--no-trunc", image)

    def run(self, image, *argv, user=None):
        """Runs a command in a container of its own, which is gone afterwards; gives exit status and what was printed."""
        who = ["--user", user] if user else []
        return outcome(["docker", "run", "--rm", "--network", "host", *who, "--entrypoint", argv[0], image, *argv[1:]])

    def command(self, name, image, argv, environment, volumes, options):
        words = [word for pair in environment for word in ("-e", pair)]
        words += [word for here, there in volumes.items() for word in ("-v", f"{here}:{there}")]
        return ["docker", "run", "--rm", "--name", name, "--network", "host", *words, *options, image, *argv]

    def remove(self, name, process):
        outcome(["docker", "rm", "-f", name])
        process.wait(30)


class Buildah(Engine):
    """buildah, with a storage of its own below .cache, on Debian's packages in the place of Docker's images."""

    name = "buildah"

    def __init__(self):
        super().__init__()
        HOME.mkdir(parents=True, exist_ok=True)
        self.lock = open(HOME / "lock", "w", encoding="ascii")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Broken("another scripts/test --image runs in this checkout; wait for its end") from None
        # Mounts are counted below runroot, and none outlives its run or a restart of the machine.
        self.words = ["buildah", "--root", HOME / "storage", "--runroot", RUN / "buildah", "--storage-driver", self.driver()]
        # runc's, in which a container's first process has the number 1. crun of Debian 12 refuses mixed control groups.
        self.isolation = ["--isolation", "oci", "--runtime", "runc"]

    @staticmethod
    def driver():
        """overlay, in which a layer is only what it changes; vfs, which works everywhere and copies all for each layer."""
        kept = HOME / "driver"
        if not kept.exists():
            probe = ["buildah", "--root", HOME / "probe", "--runroot", RUN / "probe", "--storage-driver", "overlay"]
            code, container = outcome([*probe, "from", "scratch"])
            works = code == 0 and outcome([*probe, "mount", container.strip()])[0] == 0
            outcome([*probe, "rm", "--all"])
            shutil.rmtree(HOME / "probe", ignore_errors=True)
            kept.write_text("overlay" if works else "vfs")
        return kept.read_text()

    def prepare(self):
        """Makes the bases that are not there yet, and clears away what a killed run has left."""
        unmount()
        self.call("rm", "--all")
        mirror = first_mirror()
        for name, packages in STAND_INS.items():
            made_from = f"{SUITE} {mirror} {' '.join(packages)}"
            image = f"docker.io/library/{name}"
            code, text = outcome([*self.words, "inspect", "--type", "image", image])
            if code == 0 and (json.loads(text)["Docker"]["config"].get("Labels") or {}).get("made-from") == made_from:
                continue
            print(f"[image] making a stand-in for {name} with debootstrap ...", flush=True)
            root = RUN / "debootstrap"
            (HOME / "debs").mkdir(exist_ok=True)
            call("debootstrap", "--variant=minbase", f"--cache-dir={HOME / 'debs'}",
                 f"--include={','.join(['ca-certificates', *packages])}", SUITE, root, *filter(None, [mirror]))
            for place in ("var/cache/apt/archives", "var/lib/apt/lists"):
                shutil.rmtree(root / place)
            # As in Docker's own images of Debian.
            (root / "etc/apt/apt.conf.d/docker-clean").write_text(
                'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache ""; APT::Keep-Downloaded-Packages "false";\n')
            container = self.call("from", "scratch").strip()
            self.call("copy", "--quiet", container, root, "/")
            # Rust itself is mounted from this machine when it is needed: it has more than a gigabyte.
            self.call("config", "--label", f"made-from={made_from}", "--env", "CARGO_HOME=/usr/local/cargo", "--env",
                      "PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
            self.call("commit", "--quiet", "--rm", container, image)
            shutil.rmtree(root)

    def end(self):
        super().end()
        outcome([*self.words, "rm", "--all"])
        unmount()

    def call(self, *argv, **options):
        return call(*self.words, *argv, **options)

    def build(self, tag, folder=ROOT, target=None, log=None):
        given = [word for name, path in self.secrets.items() for word in ("--secret", f"id={name},src={path}")]
        rust = call("rustc", "--print", "sysroot", cwd=ROOT).strip()
        aim = ["--target", target] if target else []
        self.call("build", "--pull=never", "--isolation", "chroot", "--layers", "--format", "docker", *aim, *given,
                  "--volume", f"{rust}:/usr/local/rust:ro", "-t", tag, folder, **output(log))

    def inspect(self, image):
        return json.loads(self.call("inspect", "--type", "image", image))["Docker"]["config"]

    def size(self, image):
        """Of all files in it, each counted once."""
        container = self.call("from", "--pull-never", image).strip()
        seen = {}
        try:
            for folder, _, files in os.walk(self.call("mount", container).strip()):
                for file in files:
                    found = os.lstat(os.path.join(folder, file))
                    seen[found.st_ino] = found.st_size
        finally:
            self.call("rm", container)
        return sum(seen.values())

    def history(self, image):
        return json.dumps(json.loads(self.call("inspect", "--type", "image", image))["Docker"]["history"])

    def run(self, image, *argv, user=None):
        container = self.call("from", "--pull-never", image).strip()
        who = ["--user", user] if user else []
        try:
            return outcome([*self.words, "run", *self.isolation, "--network", "host", *who, container, "--", *argv])
        finally:
            self.call("rm", container)

    def command(self, name, image, argv, environment, volumes, options):
        container = self.call("from", "--pull-never", "--name", name, image).strip()
        config = self.inspect(image)
        words = [word for pair in environment for word in ("--env", pair)]
        words += [word for here, there in volumes.items() for word in ("--volume", f"{here}:{there}")]
        # `buildah run` knows nothing of an entry command.
        entry = [*(config.get("Entrypoint") or []), *(argv or config.get("Cmd") or [])]
        return [*self.words, "run", *self.isolation, "--network", "host", *words, *options, container, "--", *entry]

    def remove(self, name, process):
        if process.poll() is None:
            for pid in marked(f"WORKER_GATE_TEST_CONTAINER={name}"):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        process.wait(30)
        outcome([*self.words, "rm", name])


def outcome(argv):
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace")
    return done.returncode, done.stdout


def output(log):
    return {} if log is None else {"stdout": log, "stderr": subprocess.STDOUT}


def mounted():
    """What is mounted below the engine's folder, the innermost last."""
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [place for place in places if place.startswith(f"{HOME}/")]


def unmount():
    # buildah leaves its storage mounted on itself, and one that was killed leaves its layers.
    for place in reversed(mounted()):
        outcome(["umount", place])


def first_mirror():
    """Where this machine gets its Debian packages from; none is debootstrap's own default."""
    targets = call("apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL) $(COMPONENT) $(CREATED_BY)").splitlines()
    places = [line.split()[0] for line in targets if line.split()[1:] == ["Debian", "main", "Packages"]]
    return places[0] if places else ""
