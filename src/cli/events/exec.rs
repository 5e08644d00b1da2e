//! A program that is run once for each event.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::{AccessFlags, Pid, access},
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
    time::{Instant, sleep, timeout},
};

use super::{Event, field, reason};
use crate::brief::beginning;

/// From TERM to KILL, for programs that want to put something in order.
const GRACE: Duration = Duration::from_secs(5);

/// For what KILL does to take effect; only a process that the kernel itself holds up takes longer.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// Between two looks at a program that was asked to end.
const LOOK: Duration = Duration::from_millis(10);

/// No field is longer in the environment: Linux starts no program with a string of more than 128 KiB in it, and an event that
/// no program can be started for would be tried again for ever.
const LONGEST: usize = 32 * 1024;

/// There is nothing that could be run.
#[derive(Debug, thiserror::Error)]
#[error("run {program:?} (--exec): {why}")]
pub struct NoProgram {
    program: String,
    why: &'static str,
}

/// A program, and how it is run.
#[derive(Debug)]
pub struct Exec {
    program: PathBuf,
    arguments: Vec<OsString>,
    limit: Duration,
    running: Option<Running>,
}

impl Exec {
    /// A program by its path, or by its name on this `PATH`, with its arguments and the time that it may take.
    ///
    /// # Errors
    /// If it is not there or may not be run now: better said at the start than with each event.
    pub fn new(program: &OsStr, arguments: Vec<OsString>, limit: Duration, path: &str) -> Result<Self, NoProgram> {
        let no = |why| NoProgram { program: program.to_string_lossy().into_owned(), why };
        let candidates: Vec<PathBuf> = match program.to_string_lossy() {
            name if name.is_empty() => return Err(no("an empty name")),
            name if name.contains('/') => vec![program.into()],
            _ => std::env::split_paths(path).map(|folder| folder.join(program)).collect(),
        };
        if let Some(program) = candidates.iter().find(|file| may_run(file)) {
            return Ok(Self { program: program.clone(), arguments, limit, running: None });
        }
        let is_there = candidates.iter().any(|file| file.exists());
        Err(no(if is_there { "it may not be run" } else { "there is no such program" }))
    }

    /// Runs it for one event, to its end.
    pub(super) async fn run(&mut self, event: &Event, line: &str) -> Result<(), String> {
        let name = self.program.display();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(variables(event)).stdin(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| format!("{name} could not be started: {error}"))?;
        let stdin = child.stdin.take();
        // It stays here if nobody waits any more, for `stop`.
        let running = self.running.insert(Running { group: group_of(&child), child });
        let outcome = match timeout(self.limit, running.ends(stdin, line)).await {
            Ok(Ok(status)) => told(status).map_err(|how| format!("{name} {how}")),
            Ok(Err(error)) => Err(format!("{name} cannot be waited for: {error}")),
            Err(_) => {
                running.end().await;
                Err(format!("{name} ran longer than {:?} and was ended", self.limit))
            }
        };
        self.running = None;
        outcome
    }

    /// Ends a run that was given up.
    pub(super) async fn stop(&mut self) {
        if let Some(running) = &mut self.running {
            running.end().await;
        }
        self.running = None;
    }
}

fn may_run(file: &Path) -> bool {
    file.is_file() && access(file, AccessFlags::X_OK).is_ok()
}

/// A program that has not been reaped yet, so its number is its own and its group's.
#[derive(Debug)]
struct Running {
    child: Child,
    group: Option<Pid>,
}

fn group_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw)
}

impl Running {
    /// Hands it the event and waits for its end; whether it reads is its own affair.
    async fn ends(&mut self, stdin: Option<ChildStdin>, line: &str) -> std::io::Result<ExitStatus> {
        let feeding = async {
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(format!("{line}\n").as_bytes()).await;
            }
            // What it started may hold the other end for long, and read nothing.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            status = self.child.wait() => status,
            () = feeding => Err(std::io::Error::other("the event was handed over for ever")),
        }
    }

    /// TERM to the group, grace, KILL to the group: what it has started and not waited for goes with it.
    async fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while !self.has_exited() && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        self.signal(Signal::SIGKILL);
        let _ = timeout(KILL_GRACE, self.child.wait()).await;
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // ESRCH means that nobody is there who could be told.
            let _ = killpg(group, signal);
        }
    }

    /// Whether the program itself has exited, without reaping it.
    fn has_exited(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        self.group
            .is_none_or(|pid| !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR)))
    }
}

/// How it ended, unless it ended well.
fn told(status: ExitStatus) -> Result<(), String> {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("ended with exit code {code}")),
        (None, Some(number)) => {
            let name =
                Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.to_string());
            Err(format!("was ended by {name}"))
        }
        (None, None) => Err(format!("ended with {status}")),
    }
}

/// The event's main fields as variables. All are always set, so that none can come from our own environment.
fn variables(event: &Event) -> [(&'static str, String); 11] {
    let plain = |name: &str| match event.get(name) {
        Some(serde_json::Value::Number(number)) => number.to_string(),
        Some(_) | None => field(event, name).to_owned(),
    };
    [
        ("WORKER_GATE_TYPE", plain("type")),
        ("WORKER_GATE_WORKER", plain("worker_name")),
        ("WORKER_GATE_GATE", plain("gate")),
        ("WORKER_GATE_ADMISSION", plain("admission")),
        ("WORKER_GATE_EDGE", plain("edge")),
        ("WORKER_GATE_REASON", reason(event, "code").to_owned()),
        ("WORKER_GATE_DETAIL", reason(event, "detail").to_owned()),
        ("WORKER_GATE_REMEDY", reason(event, "remedy").to_owned()),
        ("WORKER_GATE_SEQ", plain("seq")),
        ("WORKER_GATE_ID", plain("id")),
        ("WORKER_GATE_TIMESTAMP", plain("timestamp")),
    ]
    .map(|(name, value)| (name, fit(value)))
}

/// A value that a program can be started with.
fn fit(value: String) -> String {
    let mut value = if value.contains('\0') { value.replace('\0', "\u{fffd}") } else { value };
    value.truncate(beginning(&value, LONGEST).len());
    value
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn shell(script: &str, limit: Duration) -> Exec {
        Exec::new("/bin/sh".as_ref(), vec!["-c".into(), script.into()], limit, "").unwrap()
    }

    fn event(event: &Value) -> Event {
        event.as_object().unwrap().clone()
    }

    fn quarantined() -> Event {
        event(&json!({
            "type": "worker-quarantined", "hostname": "codex-0@h", "worker_name": "codex-0@h", "gate": "g", "seq": 7,
            "id": "01", "timestamp": 1.5, "admission": "quarantined", "edge": "shut",
            "reason": {"code": "check_failed", "detail": "not\nlogged in", "remedy": "codex login"},
        }))
    }

    #[tokio::test]
    async fn the_event_is_on_its_input_and_its_main_fields_are_in_its_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out");
        let script = format!(
            "{{ cat; echo \"$WORKER_GATE_TYPE|$WORKER_GATE_WORKER|$WORKER_GATE_GATE|$WORKER_GATE_ADMISSION|$WORKER_GATE_EDGE|\
             $WORKER_GATE_REASON|$WORKER_GATE_DETAIL|$WORKER_GATE_REMEDY|$WORKER_GATE_SEQ|$WORKER_GATE_ID|\
             $WORKER_GATE_TIMESTAMP\"; }} > {}",
            file.display()
        );
        shell(&script, LIMIT).run(&quarantined(), "{}").await.unwrap();
        let expected =
            "{}\nworker-quarantined|codex-0@h|g|quarantined|shut|check_failed|not\nlogged in|codex login|7|01|1.5\n";
        assert_eq!(std::fs::read_to_string(file).unwrap(), expected);
    }

    #[test]
    fn every_variable_is_set_and_can_be_handed_over() {
        let long = "ü".repeat(LONGEST);
        let event = event(&json!({"type": "a\0b", "reason": {"detail": long}}));
        let variables = variables(&event);
        assert_eq!(variables[0].1, "a\u{fffd}b");
        assert!(variables[6].1.len() <= LONGEST && variables[6].1.ends_with('ü'));
        assert_eq!(variables.iter().filter(|(_, value)| value.is_empty()).count(), 9);
    }

    #[tokio::test]
    async fn what_does_not_end_with_0_has_failed_and_says_how() {
        for (script, how) in [("exit 3", "ended with exit code 3"), ("kill -KILL $$", "was ended by SIGKILL")] {
            let failed = shell(script, LIMIT).run(&quarantined(), "{}").await.unwrap_err();
            assert!(failed.ends_with(how), "{failed}");
        }
    }

    #[tokio::test]
    async fn a_program_that_does_not_read_is_not_waited_for() {
        let line = "x".repeat(1 << 20);
        shell("exec <&-; exit 0", LIMIT).run(&quarantined(), &line).await.unwrap();
        // The child keeps the input open, and reads nothing of it either.
        shell("sleep 2 & exit 0", LIMIT).run(&quarantined(), &line).await.unwrap();
    }

    #[tokio::test]
    async fn one_that_runs_too_long_is_ended() {
        let started = std::time::Instant::now();
        let failed = shell("sleep 600", Duration::from_millis(200)).run(&quarantined(), "{}").await.unwrap_err();
        assert!(failed.ends_with("ran longer than 200ms and was ended"), "{failed}");
        assert!(started.elapsed() < GRACE, "TERM was enough");
    }

    #[tokio::test]
    async fn a_run_that_is_given_up_is_ended_by_stop() {
        let mut exec = shell("exec sleep 600", LIMIT);
        let given_up = timeout(Duration::from_millis(100), exec.run(&quarantined(), "{}")).await;
        assert!(given_up.is_err());
        let pid = exec.running.as_ref().unwrap().group.unwrap();
        exec.stop().await;
        assert_eq!(killpg(pid, None::<Signal>), Err(Errno::ESRCH));
    }

    #[test]
    fn a_program_that_is_not_there_is_said_at_once() {
        let why = |program: &str, path: &str| Exec::new(program.as_ref(), vec![], LIMIT, path).unwrap_err().to_string();
        assert_eq!(why("./nope", ""), "run \"./nope\" (--exec): there is no such program");
        assert_eq!(why("nope", "/usr/bin:/bin"), "run \"nope\" (--exec): there is no such program");
        assert_eq!(why("/etc/passwd", ""), "run \"/etc/passwd\" (--exec): it may not be run");
        assert_eq!(why("", "/bin"), "run \"\" (--exec): an empty name");
        assert_eq!(Exec::new("sh".as_ref(), vec![], LIMIT, "/nowhere:/bin").unwrap().program, Path::new("/bin/sh"));
    }
}
