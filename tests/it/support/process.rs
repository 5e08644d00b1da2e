//! Child processes that cannot outlive the test process.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

type Request = (Command, mpsc::SyncSender<io::Result<Child>>);

/// The kernel's parent-death signal is sent when the *thread* that forked ends, and test threads end with their test.
/// So everything is forked by one thread that lives as long as the process.
static SPAWNER: LazyLock<Mutex<mpsc::Sender<Request>>> = LazyLock::new(|| {
    let (send, receive) = mpsc::channel::<Request>();
    thread::Builder::new()
        .name("spawner".to_owned())
        .spawn(move || {
            for (mut command, reply) in receive {
                let _ = reply.send(command.spawn());
            }
        })
        .unwrap();
    Mutex::new(send)
});

/// A command that the kernel kills when the test process ends. `setpriv` sets the signal and becomes the program, so the
/// process id is the program's own.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    command_as(&[], program)
}

/// The same with more options of `setpriv`, which may make it another user's.
pub(crate) fn command_as(options: &[&str], program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig", "KILL"]).args(options).arg("--").arg(program).stdin(Stdio::null());
    command
}

/// A running child with its own process group and its output in a file. Dropping it kills the group.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    /// Once reaped, its number may belong to somebody else: never signal it again.
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts the command; both output streams are appended to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).unwrap();
        command.stdout(out.try_clone().unwrap()).stderr(out).process_group(0);
        let what = format!("{command:?}");
        let (send, receive) = mpsc::sync_channel(1);
        SPAWNER.lock().unwrap().send((command, send)).unwrap();
        let child = receive.recv().unwrap().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        Self { child, log: log.to_owned(), status: None }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Everything it has printed so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until its output contains `text`, and panics with the output if it ends first or the bound passes.
    #[track_caller]
    pub(crate) fn wait_for_output(&mut self, bound: Duration, text: &str) {
        let start = std::time::Instant::now();
        loop {
            // The state before the output: what a process wrote before it ended is there once it has ended.
            let ended = self.ended();
            let output = self.output();
            if output.contains(text) {
                return;
            }
            assert!(ended.is_none(), "it ended with {ended:?} and never said {text:?}:\n{}", tail(&output));
            assert!(start.elapsed() < bound, "it did not say {text:?} within {bound:?}:\n{}", tail(&output));
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
            if self.status.is_some() {
                self.kill_group();
            }
        }
        self.status
    }

    /// Sends a signal to the process itself; panics if it has ended already.
    #[track_caller]
    pub(crate) fn signal(&mut self, signal: Signal) {
        assert!(self.ended().is_none(), "it has ended already:\n{}", tail(&self.output()));
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end; panics with its output after the bound.
    #[track_caller]
    pub(crate) fn wait(&mut self, bound: Duration) -> ExitStatus {
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(start.elapsed() < bound, "it did not end within {bound:?}:\n{}", tail(&self.output()));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and SIGKILL to the group after the bound. `Some` status only if it went by itself.
    pub(crate) fn stop(&mut self, bound: Duration) -> Option<ExitStatus> {
        if self.ended().is_none() {
            self.signal(Signal::SIGTERM);
        }
        let start = std::time::Instant::now();
        while start.elapsed() < bound {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        None
    }

    /// SIGKILL to the whole group, and reaps the child.
    pub(crate) fn kill(&mut self) {
        if self.status.is_none() {
            self.kill_group();
            self.status = self.child.wait().ok();
        }
    }

    fn kill_group(&self) {
        // A group without members is what we want, and no error worth hearing of.
        let _ = killpg(self.pid(), Signal::SIGKILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a log, for a panic message.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Runs a command to its end and gives its standard output; panics with both streams if it fails.
#[track_caller]
pub(crate) fn run(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Runs a command with this on its standard input; panics if it fails.
#[track_caller]
pub(crate) fn run_with(mut command: Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Smaller than a pipe's buffer, or read as it comes: it need not be written by another thread.
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}{complaint}\n{input}", output.status);
    said
}

/// A port of the loopback address that is free, and not one of those that the kernel gives to whoever connects: a test has
/// many connections, and one of them would sooner or later have the port before the program for which it was meant.
pub(crate) fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    /// Up to 31,999; Linux gives out 32768 and more.
    const COUNT: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Two test processes at the same time begin at different places.
        let next = std::process::id().wrapping_mul(101).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + next % COUNT).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
