//! Runs one command as an identity, to its end, in bounded time, whatever it does.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::Signal,
    unistd::{Gid, Uid},
};
use tokio::{
    signal::unix::{Signal as SignalStream, SignalKind, signal},
    sync::Semaphore,
    time::{Instant, sleep, sleep_until},
};

use super::{
    family::{Family, Left},
    output::{Captured, Pipes},
    program::{self, Located},
    spawner::{Order, Spawner},
    status,
};
use crate::{identity::Identity, model::Outcome, secret::Redactor};

/// How many checks run at once on the machine, whoever they are for: a gate with a hundred identities must not start a
/// hundred Node processes in the same second. More than the two cores of a small host, since a check mostly waits.
const AT_ONCE: usize = 4;

/// From TERM to KILL.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// How long after a command's exit its children may take to be gone and its pipes to be closed. A shell's last pipe
/// stage may outlive the shell by a scheduler's round; what outlives it longer was meant to stay.
const EXIT_GRACE: Duration = Duration::from_millis(200);

/// For what KILL does to take effect. Only a process that the kernel itself holds up (a dead NFS server) takes longer.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// Between two looks at what a command left behind.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// Between two looks at a command whose SIGCHLD was missed.
const MISSED_SIGNAL: Duration = Duration::from_secs(1);

/// What is handed on from the gate's own environment, besides every LC_* variable: how text and times are written.
const HANDED_ON: &[&str] = &["LANG", "LANGUAGE", "TZ"];

/// Runs commands; cheap to clone. All checks of a gate share one.
#[derive(Debug, Clone)]
pub struct Runner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spawner: Spawner,
    slots: Semaphore,
    handed_on: Vec<(OsString, OsString)>,
    redactor: Redactor,
    gate: Uid,
}

/// How a command ended and what it printed.
#[derive(Debug)]
pub(crate) struct Ended {
    /// For programs.
    pub(crate) outcome: Outcome,
    /// For people: the end of a sentence that starts with the command. Not yet redacted.
    pub(crate) detail: String,
    /// What mends it, where that is known better than "look for yourself". Not yet redacted.
    pub(crate) remedy: Option<String>,
    /// The file that was run.
    pub(crate) program: Option<PathBuf>,
    /// What it printed, as far as it was kept.
    pub(crate) stdout: Captured,
    /// Likewise.
    pub(crate) stderr: Captured,
    /// From before its start to after the end of the last of its processes.
    pub(crate) duration: Duration,
}

impl Runner {
    /// Starts the thread that starts commands.
    ///
    /// `environment` is the gate's own, of which LANG, LANGUAGE, LC_* and TZ are handed on; `redactor` knows the
    /// secrets that must not show in messages.
    ///
    /// # Errors
    ///
    /// When the system has no thread left, or is no Linux with subreapers (3.4).
    pub fn start(environment: impl IntoIterator<Item = (OsString, OsString)>, redactor: Redactor) -> io::Result<Self> {
        let is_handed_on =
            |name: &OsString| name.to_str().is_some_and(|name| HANDED_ON.contains(&name) || name.starts_with("LC_"));
        let shared = Shared {
            spawner: Spawner::start()?,
            slots: Semaphore::new(AT_ONCE),
            handed_on: environment.into_iter().filter(|(name, _)| is_handed_on(name)).collect(),
            redactor,
            gate: Uid::effective(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Takes secrets out of what becomes a message.
    pub(crate) fn redactor(&self) -> &Redactor {
        &self.shared.redactor
    }

    /// Whether this is the gate's own user.
    pub(crate) fn is_own_user(&self, identity: &Identity) -> bool {
        identity.uid == self.shared.gate
    }

    /// Waits for the right to run one check. Its time starts only then.
    pub(crate) async fn slot(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        // Fails only for a semaphore that was closed, and nobody closes this one.
        self.shared.slots.acquire().await.ok()
    }

    /// Runs one command and waits until nothing of it is left. Takes at most `timeout` plus some seconds for ending it;
    /// dropping the future kills the command and its descendants.
    pub(crate) async fn run(&self, identity: &Identity, argv: &[String], timeout: Duration) -> Ended {
        let started = Instant::now();
        let name = argv.first().map_or("", String::as_str);
        let program = match program::locate(name, identity) {
            Located::At(program) => program,
            Located::Nowhere => return not_found(name, identity, started),
        };
        if !program::may_enter_home(identity) {
            return no_home(identity, program, started);
        }
        match self.run_program(identity, argv, &program, started + timeout).await {
            Ok((end, pipes)) => {
                let (stdout, stderr) = pipes.into_captured();
                let (outcome, detail, remedy) = end.told(timeout);
                Ended { outcome, detail, remedy, program: Some(program), stdout, stderr, duration: started.elapsed() }
            }
            Err(error) => not_started(&error, identity, program, started),
        }
    }

    async fn run_program(
        &self,
        identity: &Identity,
        argv: &[String],
        program: &Path,
        deadline: Instant,
    ) -> io::Result<(End, Pipes)> {
        // Before the start, so that no exit is missed.
        let mut exits = signal(SignalKind::child())?;
        let mut running = self.shared.spawner.spawn(self.order(identity, argv, program)).await?;
        let (out, err) = running.take_pipes().ok_or_else(|| io::Error::other("the command has no pipes"))?;
        let mut pipes = Pipes::new(out, err)?;
        let family = running.family;

        let mut watch = Watch { family, pipes: &mut pipes, exits: &mut exits };
        let was_in_time = watch.leader_exits_by(deadline).await;
        if !was_in_time {
            watch.stop().await;
        }
        let left = watch.leave_nothing(was_in_time).await;
        // `None`: it does not die even of KILL. Dropped, it is given some more time on a thread of its own.
        let raw = running.reap();
        Ok((End { was_in_time, raw, left }, pipes))
    }

    fn order(&self, identity: &Identity, argv: &[String], program: &Path) -> Order {
        let own = [
            ("HOME", identity.home.clone().into_os_string()),
            ("USER", identity.user.clone().into()),
            ("LOGNAME", identity.user.clone().into()),
            ("PATH", identity.path.clone().into()),
        ];
        let settings = identity.env.iter().map(|(name, value)| (name.into(), value.reveal().into()));
        // What the identity is made of wins: home and path_env have keys of their own in the settings, and the program
        // was found by them.
        let own = own.map(|(name, value)| (name.into(), value));
        let env: BTreeMap<OsString, OsString> =
            self.shared.handed_on.iter().cloned().chain(settings).chain(own).collect();
        let become_user: Option<(Gid, Vec<Gid>)> =
            (!self.is_own_user(identity)).then(|| (identity.gid, identity.groups.clone()));
        Order {
            program: program.to_owned(),
            argv: argv.to_vec(),
            env: env.into_iter().collect(),
            home: identity.home.clone(),
            uid: identity.uid,
            become_user,
        }
    }
}

/// A command while it runs and ends.
struct Watch<'a> {
    family: Family,
    pipes: &'a mut Pipes,
    exits: &'a mut SignalStream,
}

impl Watch<'_> {
    /// Reads output until the leader has exited (`true`) or the deadline has come (`false`). A full pipe would stop the
    /// command, so nothing here waits without reading.
    async fn leader_exits_by(&mut self, deadline: Instant) -> bool {
        let late = sleep_until(deadline);
        tokio::pin!(late);
        while !self.family.leader_has_exited() {
            tokio::select! {
                () = &mut late => return self.family.leader_has_exited(),
                // One signal may stand for several exits, of other commands too: the loop looks for itself.
                _ = self.exits.recv() => {}
                () = sleep(MISSED_SIGNAL) => {}
                () = self.pipes.progress() => {}
            }
        }
        true
    }

    /// TERM to the group, grace, KILL to the group, reading all the while.
    async fn stop(&mut self) {
        self.family.signal(Signal::SIGTERM);
        if !self.leader_exits_by(Instant::now() + TERM_GRACE).await {
            self.family.signal(Signal::SIGKILL);
            self.leader_exits_by(Instant::now() + KILL_GRACE).await;
        }
    }

    /// Lets some time pass, reading; none, if there was only the end of the output to be read.
    async fn pause(&mut self) {
        let over = sleep(SWEEP_PAUSE);
        tokio::pin!(over);
        let was_open = !self.pipes.have_ended();
        loop {
            tokio::select! {
                () = &mut over => return,
                () = self.pipes.progress() => if was_open && self.pipes.have_ended() { return },
            }
        }
    }

    /// Waits for the command's children to go, if they have the time, and ends those that do not. Says who they were.
    async fn leave_nothing(&mut self, has_grace: bool) -> Left {
        // Without grace still one round, for what is in the pipes.
        let deadline = Instant::now() + if has_grace { EXIT_GRACE } else { SWEEP_PAUSE };
        let is_clean = loop {
            if self.pipes.have_ended() && !self.family.has_survivors() {
                break true;
            }
            if Instant::now() >= deadline {
                break false;
            }
            self.pause().await;
        };
        let left = if is_clean { Left::default() } else { self.family.left(&self.pipes.open_inodes()) };
        // Also when nothing counts as left: what detached itself completely is ended and reaped here.
        let deadline = Instant::now() + KILL_GRACE;
        while !self.family.sweep() && Instant::now() < deadline {
            self.pause().await;
        }
        left
    }
}

/// What is known of a command's end.
#[derive(Debug)]
struct End {
    was_in_time: bool,
    /// As wait(2) lays it out; `None` if the command could not be ended.
    raw: Option<i32>,
    left: Left,
}

impl End {
    /// Outcome, detail and remedy.
    fn told(&self, timeout: Duration) -> (Outcome, String, Option<String>) {
        let exit = self.raw.map(status::outcome_of);
        let behind = &self.left.behind;
        if !self.was_in_time {
            let ending = if exit.is_some() { "was ended" } else { "cannot be ended, the kernel holds it up" };
            let detail = format!("ran longer than {timeout:?} and {ending}{}", also(&self.left));
            return (Outcome::Timeout, detail, None);
        }
        let exit = exit.unwrap_or(Outcome::NotStarted);
        if behind.is_empty() && self.left.strangers.is_empty() {
            let detail = status::in_words(&exit);
            return (exit, detail, None);
        }
        let detail = format!("{}{}", status::in_words(&exit), also(&self.left));
        let remedy =
            "a check must end with everything it starts: let the command wait for its children, or not start them";
        (Outcome::LeftChildren, detail, Some(remedy.to_owned()))
    }
}

/// Who was left, as the rest of a sentence.
fn also(left: &Left) -> String {
    const NAMED: usize = 5;
    let names = |processes: &[super::family::Process]| {
        let mut names: Vec<String> = processes.iter().take(NAMED).map(ToString::to_string).collect();
        if processes.len() > NAMED {
            names.push(format!("{} more", processes.len() - NAMED));
        }
        names.join(", ")
    };
    let mut parts = Vec::new();
    if !left.behind.is_empty() {
        parts.push(format!(" but left {}, which had to be killed", names(&left.behind)));
    }
    if !left.strangers.is_empty() {
        parts.push(format!(" but its output is held open by {}, which it did not start", names(&left.strangers)));
    }
    parts.concat()
}

fn failed(outcome: Outcome, program: Option<PathBuf>, started: Instant, detail: String, remedy: String) -> Ended {
    Ended {
        outcome,
        detail,
        remedy: Some(remedy),
        program,
        stdout: Captured::default(),
        stderr: Captured::default(),
        duration: started.elapsed(),
    }
}

fn not_found(name: &str, identity: &Identity, started: Instant) -> Ended {
    let Identity { user, path, home, .. } = identity;
    let (detail, remedy) = if name.contains('/') {
        let full = home.join(name);
        (
            format!("was not found: there is no {}", full.display()),
            format!("install {}, or correct the check's run", full.display()),
        )
    } else {
        let detail = format!("was not found on the PATH of user {user}: {path}");
        (detail, format!("install {name} where that PATH leads, or set workers.path_env to where it is"))
    };
    failed(Outcome::NotFound, None, started, detail, remedy)
}

fn no_home(identity: &Identity, program: PathBuf, started: Instant) -> Ended {
    let home = identity.home.display();
    let user = &identity.user;
    let detail = format!("could not be started: user {user} has no home {home} that it may enter");
    let remedy = format!("create {home} and give it to {user}, or set workers.home");
    failed(Outcome::NotStarted, Some(program), started, detail, remedy)
}

fn not_started(error: &io::Error, identity: &Identity, program: PathBuf, started: Instant) -> Ended {
    let file = program.display();
    let user = &identity.user;
    let errno = error.raw_os_error().map(Errno::from_raw);
    let interpreter = program::interpreter(&program);
    let (cause, remedy) = match (errno, &interpreter) {
        (Some(Errno::EACCES), Some(interpreter)) if program::may_run(identity, &program) => (
            format!("user {user} may not run {}, which {file} is a script for", interpreter.display()),
            format!(
                "see `namei -l {}`: {user} needs the execute bit on every folder on the way, also behind symlinks",
                interpreter.display()
            ),
        ),
        (Some(Errno::ENOENT), Some(interpreter)) => (
            format!("there is no {}, which {file} is a script for", interpreter.display()),
            format!("install {}, or correct the first line of {file}", interpreter.display()),
        ),
        (Some(Errno::EACCES), _) => (
            format!("user {user} may not run {file}"),
            format!(
                "see `namei -l {file}`: {user} needs the execute bit on the file and on every folder above it, and no mount may be noexec"
            ),
        ),
        (Some(Errno::ENOENT), None) => (
            format!("{file} needs a program loader that is missing"),
            format!("see `file {file}`, and install the loader, or a program for this system"),
        ),
        (Some(Errno::ENOEXEC), _) => (
            format!("{file} is neither a program for this machine nor a script with a #! line"),
            format!("see `file {file}`, and install the right one"),
        ),
        (Some(Errno::EPERM), _) => (
            format!("the gate may not become user {user}"),
            "give the gate the capabilities SETUID and SETGID, or start it as that user".to_owned(),
        ),
        _ => (
            error.to_string(),
            format!("see whether the machine has processes, memory and files left, and {file} is in order"),
        ),
    };
    failed(Outcome::NotStarted, Some(program), started, format!("could not be started: {cause}"), remedy)
}

#[cfg(test)]
mod tests;
