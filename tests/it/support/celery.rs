//! Real Celery workers and producers, from the Python environment that scripts/setup makes.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    process::{self, Process, tail},
    scratch::Scratch,
    wait::{LONG, eventually},
};

/// For a warm shutdown, beside what the tasks take. Celery's event loop can be over before it has seen the last task's end, and
/// then the pool's process waits 30 s for that (billiard/pool.py, `_ensure_messages_consumed`): seen in two
/// of 358 shutdowns of a busy worker on Redis, without any gate.
const WARM_SHUTDOWN: Duration = Duration::from_secs(60);
/// Python, Celery and kombu need 1 to 2 s to be imported on an idle machine.
const READY_WITHIN: Duration = LONG;

/// An application: a broker, the routes of its producers, and the file in which its tasks leave their marks.
pub(crate) struct App {
    url: String,
    routes: Value,
    conf: Value,
    env: Vec<(String, String)>,
    dir: Scratch,
}

/// What a task wrote when it started, or ended.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Mark {
    /// The task's first argument.
    pub(crate) id: String,
    /// Seconds since the epoch.
    pub(crate) at: f64,
    /// `started` or `ended`; only `app.slow` writes the second.
    pub(crate) phase: String,
    /// The node name of the worker that ran it.
    pub(crate) worker: String,
    /// 0 for the first run.
    pub(crate) retries: u32,
    /// What the delivered message carried, which is where a retry would be published.
    pub(crate) exchange: Option<String>,
    pub(crate) routing_key: Option<String>,
}

impl App {
    /// An application whose producers publish every task to this exchange with this key.
    pub(crate) fn new(url: &str, exchange: &str, key: &str) -> Self {
        Self::routed(url, json!({"app.*": {"exchange": exchange, "routing_key": key}}))
    }

    /// An application with these `task_routes`.
    pub(crate) fn routed(url: &str, routes: Value) -> Self {
        Self { url: url.to_owned(), routes, conf: json!({}), env: Vec::new(), dir: Scratch::new("app") }
    }

    /// The same application with more of Celery's settings.
    pub(crate) fn with(mut self, conf: Value) -> Self {
        self.conf = conf;
        self
    }

    /// The same application with one more variable in its environment.
    pub(crate) fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts a worker on its lane and waits until it consumes. `name` is a node name, `options` go to `celery worker`.
    #[track_caller]
    pub(crate) fn worker(&self, lane: &str, name: &str, options: &[&str]) -> Worker {
        let mut worker = self.start_worker(lane, name, options);
        worker.wait_until_ready();
        worker
    }

    /// Starts a worker and returns at once: two of them start as fast as one.
    #[track_caller]
    pub(crate) fn start_worker(&self, lane: &str, name: &str, options: &[&str]) -> Worker {
        self.start_worker_as(&[], lane, name, options)
    }

    /// The same with options of `setpriv`, which may make it another user's.
    #[track_caller]
    pub(crate) fn start_worker_as(&self, user: &[&str], lane: &str, name: &str, options: &[&str]) -> Worker {
        // A log of its own for each start: one that is started again is not ready because its predecessor was.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let log = self.dir.join(&format!("{name}-{}.log", NEXT.fetch_add(1, Ordering::Relaxed)));
        let mut command = self.python(process::command_as(user, venv().join("bin/celery")));
        command.args(["-A", "app", "worker", "-Q", lane, "-n", name, "-l", "INFO"]);
        // Both ask all other workers something at the start and wait 1 s for the answers.
        command.args(["--without-gossip", "--without-mingle"]).args(options);
        Worker { process: Process::start(command, &log) }
    }

    /// Publishes so many tasks and waits for the broker's confirmations. Ids are `prefix` and a number from 0.
    #[track_caller]
    pub(crate) fn send(&self, task: &str, prefix: &str, count: u32, extra: &[Value]) {
        self.send_with(&json!([{}]), task, prefix, count, extra);
    }

    /// The same with options of `apply_async`: a list that the tasks take in turn.
    #[track_caller]
    pub(crate) fn send_with(&self, options: &Value, task: &str, prefix: &str, count: u32, extra: &[Value]) {
        let log = self.dir.join(&format!("send-{prefix}.log"));
        let mut command = self.producer(task, prefix, &count.to_string(), 0.0, extra);
        command.env("PRODUCER_OPTIONS", options.to_string());
        let mut process = Process::start(command, &log);
        process.wait(READY_WITHIN);
        assert_eq!(Sent::read(&process.output()).confirmed, count, "{}", tail(&process.output()));
    }

    /// Starts a producer that publishes `app.mark` until it is told to stop; `rate` is per second, 0 for no limit.
    #[track_caller]
    pub(crate) fn keep_sending(&self, prefix: &str, rate: f64) -> Producer {
        let log = self.dir.join(&format!("send-{prefix}.log"));
        let mut process = Process::start(self.producer("app.mark", prefix, "forever", rate, &[]), &log);
        process.wait_for_output(READY_WITHIN, "publishing");
        Producer { process }
    }

    /// Publishes a chain, a group and a chord; returns when they are with the broker.
    #[track_caller]
    pub(crate) fn canvas(&self, patience: Duration) -> Canvas {
        let mut command = self.python(process::command(venv().join("bin/python")));
        command.args(["canvas.py", &patience.as_secs().to_string()]);
        let mut process = Process::start(command, &self.dir.join("canvas.log"));
        process.wait_for_output(READY_WITHIN, "published");
        Canvas { process, patience }
    }

    /// Tells all workers not to run this task, and waits until they have answered.
    #[track_caller]
    pub(crate) fn revoke(&self, id: &str) {
        let mut command = self.python(Command::new(venv().join("bin/celery")));
        command.args(["-A", "app", "control", "--timeout", "2", "revoke", id]);
        process::run(command);
    }

    /// Every mark so far, in the order in which they were written.
    pub(crate) fn marks(&self) -> Vec<Mark> {
        let text = fs::read_to_string(self.marks_file()).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How many marks there are: cheap enough to be asked all the time when there are thousands.
    pub(crate) fn written(&self) -> usize {
        fs::read(self.marks_file()).unwrap_or_default().split(|byte| *byte == b'\n').skip(1).count()
    }

    /// How often each task has started; retries count.
    pub(crate) fn runs(&self) -> BTreeMap<String, u32> {
        let mut runs = BTreeMap::new();
        for mark in self.marks().into_iter().filter(|mark| mark.phase == "started") {
            *runs.entry(mark.id).or_default() += 1;
        }
        runs
    }

    /// Waits until so many different tasks have started.
    #[track_caller]
    pub(crate) fn wait_for_runs(&self, bound: Duration, tasks: usize) -> BTreeMap<String, u32> {
        eventually(bound, &format!("{tasks} tasks have run"), || Some(self.runs()).filter(|runs| runs.len() >= tasks))
    }

    fn marks_file(&self) -> PathBuf {
        self.dir.join("marks")
    }

    fn producer(&self, task: &str, prefix: &str, count: &str, rate: f64, extra: &[Value]) -> Command {
        let mut command = self.python(process::command(venv().join("bin/python")));
        command.args(["producer.py", task, prefix, count, &rate.to_string()]).args(extra.iter().map(Value::to_string));
        command
    }

    /// The command, in the surroundings of this application.
    pub(crate) fn python(&self, mut command: Command) -> Command {
        command
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it"))
            .env("APP_BROKER_URL", &self.url)
            .env("APP_ROUTES", self.routes.to_string())
            .env("APP_CONF", self.conf.to_string())
            .env("APP_MARKS", self.marks_file())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env_remove("CELERY_BROKER_URL");
        command
    }
}

/// A running worker; killed with its pool when dropped.
pub(crate) struct Worker {
    process: Process,
}

impl Worker {
    /// Waits until it consumes its lane.
    #[track_caller]
    pub(crate) fn wait_until_ready(&mut self) {
        self.process.wait_for_output(READY_WITHIN, " ready.");
    }

    /// Celery's warm shutdown: what runs is finished, what was prefetched goes back. `None` if it had to be killed.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        self.process.stop(WARM_SHUTDOWN)
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// Waits for the same, which somebody else has asked for.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.wait(WARM_SHUTDOWN)
    }

    /// SIGKILL, to the pool as well.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Freezes it: its connection stays, and it takes nothing more from its socket.
    pub(crate) fn freeze(&mut self) {
        self.process.signal(Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&mut self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }
}

/// A chain, a group and a chord that have been published.
pub(crate) struct Canvas {
    process: Process,
    patience: Duration,
}

impl Canvas {
    /// Their results by kind; panics if one does not come.
    #[track_caller]
    pub(crate) fn results(mut self) -> Value {
        self.process.wait(self.patience * 3 + READY_WITHIN);
        let output = self.process.output();
        let last = output.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("no results: {e}\n{}", tail(&output)))
    }
}

/// A producer that publishes all the time.
pub(crate) struct Producer {
    process: Process,
}

/// What a producer knows about what it has published.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sent {
    /// The broker has said that it has these.
    pub(crate) confirmed: u32,
    /// The ids of those for which publishing failed: the broker may or may not have them.
    pub(crate) unknown: Vec<String>,
}

impl Sent {
    #[track_caller]
    fn read(output: &str) -> Self {
        let last = output.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("the producer's last line: {e}\n{}", tail(output)))
    }
}

impl Producer {
    /// Lets it end in good order, and says what it sent.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Sent {
        assert!(self.process.stop(Duration::from_secs(30)).is_some(), "{}", tail(&self.process.output()));
        Sent::read(&self.process.output())
    }
}

/// The Python environment with Celery in it.
#[track_caller]
pub(crate) fn venv() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv");
    let venv = env::var_os("WORKER_GATE_TEST_VENV").map_or(own, PathBuf::from);
    assert!(venv.join("bin/celery").exists(), "no Celery in {}: run scripts/setup", venv.display());
    venv
}
