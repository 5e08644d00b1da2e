//! A host with a gate on it: a home with a managed config, tools that do what a test tells them, and the real program.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Uid};
use serde_json::Value;

use super::{
    process::{self, Process, free_port, tail},
    scratch::{RUN_MARK, Scratch},
    wait::eventually,
};

/// The program under test.
pub(crate) const GATE: &str = env!("CARGO_BIN_EXE_worker-gate");

/// A tool does what the shell text beside it says: the program file itself stays as it is, since a change of it would
/// be a finding of its own.
const TOOL: &str = "#!/bin/sh\n. \"$0.sh\"\n";
const CODEX: &str = "case \"$1\" in\n--version) echo 'codex-cli 0.169.0' ;;\nlogin) echo 'Logged in using an API key - sk-***' ;;\nesac\n";
const SPECKIT: &str = "echo 'Usage: specify [OPTIONS] COMMAND [ARGS]...'\n";

/// What `approval_policy` must be, and something that is none of the gate's business.
pub(crate) const MANAGED: &str = "# mine\nmodel = \"o5\"\napproval_policy = \"never\"\n";

/// Debian's nobody and nogroup.
pub(crate) const NOBODY: u32 = 65_534;

/// These settings for a broker that may be a second late with a heartbeat, since it is busy with many thousands of messages.
pub(crate) fn patient(settings: &str) -> String {
    settings.replace("heartbeat = \"1s\"", "heartbeat = \"10s\"")
}

/// These settings for a gate that publishes on Celery's own event exchange, too.
pub(crate) fn mirrored(settings: &str) -> String {
    settings.replacen("[evidence]", "[events]\nmirror_celeryev = true\n\n[evidence]", 1)
}

/// Whether this test can act as another user; says so if not.
pub(crate) fn can_be_nobody() -> bool {
    if !Uid::effective().is_root() {
        println!("skipped: only root can act as another user");
        return false;
    }
    let found =
        process::command_as(&["--reuid", "nobody", "--clear-groups"], "/usr/bin/test").args(["-x", GATE]).status();
    if !found.unwrap().success() {
        println!("skipped: nobody gets through to {GATE}; make its folders' mode 755");
        return false;
    }
    true
}

/// A folder that stands for one host.
pub(crate) struct Host {
    name: String,
    dir: Scratch,
    listen: u16,
}

impl Host {
    /// A host on which every check passes.
    pub(crate) fn new(name: &str) -> Self {
        let host = Self { name: name.to_owned(), dir: Scratch::new(name), listen: free_port() };
        for dir in ["home/.codex", "tools", "state"] {
            fs::create_dir_all(host.dir.join(dir)).unwrap();
        }
        for (tool, text) in [("codex", CODEX), ("speckit", SPECKIT)] {
            host.set_tool(tool, text);
            fs::write(host.tool(tool), TOOL).unwrap();
            fs::set_permissions(host.tool(tool), fs::Permissions::from_mode(0o755)).unwrap();
        }
        host.set_profile(MANAGED);
        host
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// The managed config.
    pub(crate) fn profile(&self) -> PathBuf {
        self.dir.join("home/.codex/config.toml")
    }

    /// The gate's own folder, with the audit log.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The program file of a fake tool.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.dir.join("tools").join(name)
    }

    /// From the next start on, the tool (`codex` or `speckit`) runs this shell text.
    pub(crate) fn set_tool(&self, name: &str, text: &str) {
        self.replace(&self.tool(name).with_extension("sh"), text);
    }

    /// `codex` and `speckit` as they are on a new host.
    pub(crate) fn mend_tools(&self) {
        self.set_tool("codex", CODEX);
        self.set_tool("speckit", SPECKIT);
    }

    /// Replaces the managed config, as an editor does: by a rename.
    pub(crate) fn set_profile(&self, text: &str) {
        self.replace(&self.profile(), text);
    }

    fn replace(&self, file: &Path, text: &str) {
        let new = self.dir.join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// Settings for one worker, whose node name and lane are both `lane`, on the direct intake `codex` with the lane's
    /// name as its key. Short times, so that tests need not wait. For anything else, change the text.
    pub(crate) fn settings(&self, url: &str, lane: &str) -> String {
        let mut text = self.settings_without_workers(url);
        self.add_worker(&mut text, lane, &format!(r#"exchange = "codex", type = "direct", keys = ["{lane}"]"#));
        text
    }

    /// Settings to which [`Host::add_worker`] adds.
    pub(crate) fn settings_without_workers(&self, url: &str) -> String {
        let state = self.state_dir();
        format!(
            r#"
[gate]
name = "{name}"
state_dir = {state:?}
listen = "127.0.0.1:{listen}"

[broker]
url = "{url}"
heartbeat = "1s"

[evidence]
max_age = "20s"
flap_wait = "0s"

[checks.codex_cli]
run = [["codex", "--version"], ["codex", "login", "status"]]
version = {{ command = 0, require = ">=0.1" }}
every = "1s"
timeout = "5s"

[checks.spec_kit]
run = [["speckit", "--help"]]
every = "1s"
timeout = "5s"

[profile]
path = "~/.codex/config.toml"
template = ""
enforce = {{ approval_policy = "never" }}
"#,
            name = self.name,
            listen = self.listen,
        )
    }

    /// Adds a worker, whose node name and lane are both `lane`, with these keys of the `intake` table.
    pub(crate) fn add_worker(&self, settings: &mut String, lane: &str, intake: &str) {
        self.add_routed_worker(settings, lane, lane, intake);
    }

    /// The same with a node name of its own.
    pub(crate) fn add_routed_worker(&self, settings: &mut String, name: &str, lane: &str, intake: &str) {
        self.add(settings, name, &format!("edge = \"route\"\nlane = \"{lane}\"\nintake = {{ {intake} }}\n"));
    }

    /// Adds a worker that is fed from `intake`, which is `queue = "..."` or an exchange. One task may wait in its lane.
    pub(crate) fn add_fed_worker(&self, settings: &mut String, name: &str, lane: &str, intake: &str) {
        let edge =
            format!("edge = \"feed\"\nlane = \"{lane}\"\nintake = {{ {intake} }}\ndepth = 1\noffline_after = \"2s\"\n");
        self.add(settings, name, &edge);
    }

    /// Adds a worker of this host, with these lines for its edge.
    fn add(&self, settings: &mut String, name: &str, edge: &str) {
        let (home, path) = (self.home(), self.path_env());
        write!(settings, "\n[[workers]]\nname = \"{name}\"\nhome = {home:?}\npath_env = \"{path}\"\n{edge}").unwrap();
    }

    /// The PATH on which its tools are.
    pub(crate) fn path_env(&self) -> String {
        format!("{}:/usr/bin:/bin", self.dir.join("tools").display())
    }

    /// Starts `worker-gate run` with these settings.
    #[track_caller]
    pub(crate) fn start(&self, settings: &str) -> Gate {
        self.start_by(process::command(GATE), settings)
    }

    /// Starts it as this user, to whom everything on the host belongs from then on. For root.
    #[track_caller]
    pub(crate) fn start_as(&self, uid: u32, settings: &str) -> Gate {
        self.give_to(uid);
        let uid = uid.to_string();
        self.start_by(process::command_as(&["--reuid", &uid, "--regid", &uid, "--clear-groups"], GATE), settings)
    }

    /// Starts it by a command that ends in the program.
    #[track_caller]
    pub(crate) fn start_by(&self, command: Command, settings: &str) -> Gate {
        self.start_logging(command, settings, "")
    }

    /// The same, with a log as this filter has it; "" is the program's own.
    #[track_caller]
    pub(crate) fn start_logging(&self, mut command: Command, settings: &str, filter: &str) -> Gate {
        let file = self.write_settings(settings);
        self.surround(&mut command);
        command.env("WORKER_GATE_LOG", filter).arg("run").arg("--config").arg(&file);
        Gate { process: Process::start(command, &self.dir.join("log")), settings: file, listen: self.listen }
    }

    /// Makes everything on the host this user's and group's. For root.
    #[track_caller]
    pub(crate) fn give_to(&self, uid: u32) {
        let mut command = Command::new("chown");
        command.args(["-hR", &format!("{uid}:{uid}")]).arg(self.dir.path());
        process::run(command);
    }

    /// Runs another subcommand to its end, whatever that is.
    #[track_caller]
    pub(crate) fn command(&self, settings: &str, args: &[&str]) -> Output {
        self.command_in(settings, args, &[])
    }

    /// The same with these variables in its environment.
    #[track_caller]
    pub(crate) fn command_in(&self, settings: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
        let file = self.write_settings(settings);
        let mut command = Command::new(GATE);
        self.surround(&mut command);
        command.envs(env.iter().copied()).args(args).arg("--config").arg(file).output().unwrap()
    }

    /// Starts another subcommand; what it writes is in a log of its own.
    #[track_caller]
    pub(crate) fn start_command(&self, settings: &str, args: &[&str]) -> Process {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = self.write_settings(settings);
        let mut command = process::command(GATE);
        self.surround(&mut command);
        command.args(args).arg("--config").arg(file);
        let log = format!("command-{}.log", NEXT.fetch_add(1, Ordering::Relaxed));
        Process::start(command, &self.dir.join(&log))
    }

    /// In a file of its own, because a running gate reads the one that it has again when that changes.
    fn write_settings(&self, settings: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = self.dir.join(&format!("worker-gate-{}.toml", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::write(&file, settings).unwrap();
        file
    }

    /// No more environment than a service has: a variable of the developer's own must not decide a test.
    fn surround(&self, command: &mut Command) {
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.home())
            .env("PATH", self.path_env())
            .env("RUST_BACKTRACE", "1")
            .envs(std::env::vars_os().filter(|(name, _)| name == RUN_MARK));
    }
}

/// A running gate; killed when dropped.
pub(crate) struct Gate {
    process: Process,
    settings: PathBuf,
    listen: u16,
}

/// A test that fails shows what its gates have said.
impl Drop for Gate {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the gate's log:\n{}", tail(&self.log()));
        }
    }
}

impl Gate {
    /// Where it answers.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.listen)
    }

    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        self.process.pid()
    }

    /// Everything it has written, this start and those before it on the same host.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }

    #[track_caller]
    pub(crate) fn wait_for_log(&mut self, bound: Duration, text: &str) {
        self.process.wait_for_output(bound, text);
    }

    /// The settings file that it has read.
    pub(crate) fn settings(&self) -> &Path {
        &self.settings
    }

    /// SIGHUP.
    pub(crate) fn hang_up(&mut self) {
        self.process.signal(Signal::SIGHUP);
    }

    /// SIGTERM, and the exit status; panics if it does not go by itself.
    #[track_caller]
    pub(crate) fn stop(mut self) -> ExitStatus {
        let status = self.process.stop(Duration::from_secs(30));
        status.unwrap_or_else(|| panic!("it did not stop:\n{}", tail(&self.process.output())))
    }

    /// SIGTERM, and no wait.
    pub(crate) fn terminate(&mut self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }

    /// Waits for an end that it comes to by itself.
    #[track_caller]
    pub(crate) fn wait(mut self, bound: Duration) -> ExitStatus {
        self.process.wait(bound)
    }

    /// Waits for an end that it comes to by itself, and gives its exit code and everything it has written.
    #[track_caller]
    pub(crate) fn end(mut self, bound: Duration) -> (Option<i32>, String) {
        let status = self.process.wait(bound);
        (status.code(), self.process.output())
    }

    /// Freezes it, as a paused container is frozen.
    pub(crate) fn freeze(&mut self) {
        self.process.signal(Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&mut self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(self.process.pid()),
            nix::sys::wait::WaitPidFlag::WEXITED
                | nix::sys::wait::WaitPidFlag::WNOHANG
                | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )
        .is_ok_and(|status| status == nix::sys::wait::WaitStatus::StillAlive)
    }

    /// The status of a GET from its own listener; `None` if nobody answers.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        self.get_as(path, "*/*")
    }

    /// The same for somebody who can read this.
    pub(crate) fn get_as(&self, path: &str, accept: &str) -> Option<(u16, String)> {
        get_as(&format!("http://{}{path}", self.address()), accept)
    }

    /// Waits until `/workers` shows this worker with this admission, and gives its record.
    #[track_caller]
    pub(crate) fn wait_until(&self, bound: Duration, worker: &str, admission: &str) -> Value {
        self.wait_for(bound, worker, &format!("{worker} is {admission}"), |record| record["admission"] == admission)
    }

    /// Waits until the broker has confirmed that this worker's edge is `open` or `shut`, and gives its record.
    #[track_caller]
    pub(crate) fn wait_for_edge(&self, bound: Duration, worker: &str, edge: &str) -> Value {
        self.wait_for(bound, worker, &format!("the edge of {worker} is {edge}"), |record| record["edge"] == edge)
    }

    /// Waits until `/workers` shows this worker with a record that is so, and gives that record.
    #[track_caller]
    pub(crate) fn wait_for(&self, bound: Duration, worker: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        eventually(bound, what, || {
            let Some((_, text)) = self.get("/workers") else {
                assert!(self.is_alive(), "the gate has ended");
                return None;
            };
            let records: Vec<Value> = serde_json::from_str(&text).ok()?;
            records.into_iter().find(|record| record["worker_name"] == worker && is(record))
        })
    }
}

/// The status and the text of a GET; `None` if nobody answers.
pub(crate) fn get_as(url: &str, accept: &str) -> Option<(u16, String)> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(5)))
        .build()
        .into();
    let mut response = agent.get(url).header("Accept", accept).call().ok()?;
    Some((response.status().as_u16(), response.body_mut().read_to_string().ok()?))
}
