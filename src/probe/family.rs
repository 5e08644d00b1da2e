//! Finds what a command leaves behind, names it and ends it.
//!
//! Each command is the leader of a session of its own, and while it lives the kernel gives it every orphan among its
//! descendants; when it dies they become children of the gate (PR_SET_CHILD_SUBREAPER on both). So everything that a
//! dead command left hangs below children of the gate, also what went into a session of its own. The leader itself is
//! reaped last: until then its number cannot belong to anybody else, and signals to its group reach only its group.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill, killpg},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{Pid, Uid, getpid, getsid},
};

/// Every command of this process that has been started and not yet been reaped.
static LEADERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// The leaders, locked. Whoever starts or reaps one holds this meanwhile, so that nobody takes a leader that was born a
/// moment ago for an orphan.
pub(crate) fn leaders() -> MutexGuard<'static, BTreeSet<i32>> {
    // The set is consistent after a panic as well: each change is one call.
    LEADERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One command's processes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    /// The command itself; also the number of its group and of its session.
    leader: Pid,
    /// As whom it runs. Without new privileges it cannot become anybody else.
    uid: Uid,
    /// When it started, in clock ticks since boot.
    born: u64,
}

/// One line of /proc/PID/stat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pid: i32,
    name: String,
    parent: i32,
    group: i32,
    session: i32,
    born: u64,
    is_dead: bool,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// What was found of a command that has exited.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Alive in its session or group, or holding its output: the command left these.
    pub(crate) behind: Vec<Process>,
    /// Holding its output, but no descendants: they were handed the pipe, and are not ours to end.
    pub(crate) strangers: Vec<Process>,
}

impl Family {
    /// The family of a leader that has not been reaped.
    pub(crate) fn of(leader: Pid, uid: Uid) -> Self {
        let born = read(leader.as_raw()).map_or(0, |process| process.born);
        Self { leader, uid, born }
    }

    /// Signals the whole group. The group exists as long as the leader is not reaped.
    pub(crate) fn signal(&self, signal: Signal) {
        // ESRCH and EPERM mean that nobody is there who could be told.
        let _ = killpg(self.leader, signal);
    }

    /// Whether the leader has exited; it stays a zombie.
    pub(crate) fn leader_has_exited(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.leader), flags) {
            Ok(nix::sys::wait::WaitStatus::StillAlive) | Err(Errno::EINTR) => false,
            // EINVAL: exited by a signal that nix has no name for. ECHILD: somebody else has reaped it.
            Ok(_) | Err(_) => true,
        }
    }

    /// Whether a descendant that counts is alive, with the dead ones reaped on the way. Cheap when there is none.
    pub(crate) fn has_survivors(&self) -> bool {
        self.orphans().iter().any(|orphan| !orphan.is_dead && self.owns(orphan))
    }

    /// Who is still there, after the leader's exit. Looks at every process of the machine, so only for when
    /// [`Self::has_survivors`] or an open pipe says that there is someone.
    pub(crate) fn left(&self, open_pipes: &[u64]) -> Left {
        let all = all();
        let ours = descendants(&self.orphans(), &all);
        let mut left = Left::default();
        for process in all {
            let pid = process.pid;
            if process.is_dead || pid == self.leader.as_raw() || pid == getpid().as_raw() {
                continue;
            }
            let is_below = ours.contains(&pid);
            if self.owns(&process) || (is_below && writes_to(pid, open_pipes)) {
                left.behind.push(process);
            } else if !is_below && writes_to(pid, open_pipes) {
                left.strangers.push(process);
            }
        }
        left
    }

    /// One round of ending everything: kills what is alive, reaps what is dead. `true` when nothing is left.
    ///
    /// Only the gate's own children are killed by number, as theirs cannot be reused before the gate reaps them; what
    /// hangs below them comes up with the next round.
    pub(crate) fn sweep(&self) -> bool {
        self.signal(Signal::SIGKILL);
        let orphans = self.orphans();
        for orphan in orphans.iter().filter(|orphan| !orphan.is_dead) {
            let _ = kill(Pid::from_raw(orphan.pid), Signal::SIGKILL);
        }
        orphans.is_empty() && self.leader_has_exited()
    }

    /// For a command that is given up while it runs: kills it and all its descendants, also those that have left the
    /// group. Those that are born at this moment are left to [`Self::sweep`].
    pub(crate) fn kill_all(&self) {
        let all = all();
        let leader = all.iter().filter(|process| process.pid == self.leader.as_raw()).cloned().collect::<Vec<_>>();
        let below = descendants(&leader, &all);
        self.signal(Signal::SIGKILL);
        for process in all.iter().filter(|process| below.contains(&process.pid)) {
            // The number may have been given to somebody else since it was read.
            if read(process.pid).is_some_and(|now| now.born == process.born) {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
    }

    fn owns(&self, process: &Process) -> bool {
        let number = self.leader.as_raw();
        process.session == number || process.group == number
    }

    /// Children of the gate that came down to it from this command. The dead ones are reaped.
    fn orphans(&self) -> Vec<Process> {
        let children = own_children();
        // Only now: a leader that is among the children is in the set by the time the lock is had.
        let leaders = leaders().clone();
        let own_session = getsid(None).map_or(0, Pid::as_raw);
        let mut orphans = Vec::new();
        for process in children.into_iter().filter_map(read) {
            let is_stray = process.session != own_session
                && !leaders.contains(&process.session)
                && process.born >= self.born
                && was_started_by_a_check(process.pid, self.uid);
            if leaders.contains(&process.pid) || !(self.owns(&process) || is_stray) {
                continue;
            }
            if process.is_dead {
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
                let _ = waitid(Id::Pid(Pid::from_raw(process.pid)), flags);
            } else {
                orphans.push(process);
            }
        }
        orphans
    }
}

/// Everything below these, and these themselves.
fn descendants(roots: &[Process], all: &[Process]) -> BTreeSet<i32> {
    let mut found: BTreeSet<i32> = roots.iter().map(|process| process.pid).collect();
    loop {
        let before = found.len();
        found.extend(
            all.iter().filter(|process| found.contains(&process.parent)).map(|process| process.pid).collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found;
        }
    }
}

/// Processes that others in this program start (`events --exec`) do not have the mark that every check's have, and
/// which cannot be taken off: no new privileges.
fn was_started_by_a_check(pid: i32, uid: Uid) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().split_whitespace();
    field("NoNewPrivs:").next() == Some("1") && field("Uid:").next() == Some(uid.to_string().as_str())
}

/// Whether the process can write to one of these pipes. Reading ends do not count: a process that was forked a moment
/// ago and is not yet another program has the gate's.
fn writes_to(pid: i32, pipes: &[u64]) -> bool {
    if pipes.is_empty() {
        return false;
    }
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    fds.flatten().any(|fd| {
        let is_ours = fs::read_link(fd.path()).is_ok_and(|target| {
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("pipe:[").and_then(|rest| rest.strip_suffix(']'));
            inode.and_then(|inode| inode.parse().ok()).is_some_and(|inode| pipes.contains(&inode))
        });
        is_ours && fs::symlink_metadata(fd.path()).is_ok_and(|link| link.mode() & 0o200 != 0)
    })
}

/// The gate's children, by the kernel's own list, or where it is built without one, by looking at every process.
fn own_children() -> Vec<i32> {
    let listed = || {
        let mut children = Vec::new();
        for thread in fs::read_dir("/proc/self/task").ok()?.flatten() {
            // A thread that has just ended has handed its children to another one, which may have been read before;
            // those show in the next round.
            match fs::read_to_string(thread.path().join("children")) {
                Ok(list) => children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
                Err(_) if thread.path().exists() => return None,
                Err(_) => {}
            }
        }
        Some(children)
    };
    let own = getpid().as_raw();
    listed().unwrap_or_else(|| all().into_iter().filter(|p| p.parent == own).map(|p| p.pid).collect())
}

fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(read).collect()
}

fn read(pid: i32) -> Option<Process> {
    parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// proc_pid_stat(5). The name may hold anything, blanks and brackets too; only the last bracket ends it.
fn parse(pid: i32, stat: &[u8]) -> Option<Process> {
    let stat = String::from_utf8_lossy(stat);
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    Some(Process {
        pid,
        name,
        is_dead: matches!(fields.first(), Some(&("Z" | "X"))),
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        born: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_and_blanks_is_read_as_a_name() {
        let line = b"12 (a) S 9 (x) Z 5 12 12 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        let process = parse(12, line).unwrap();
        assert_eq!((process.name.as_str(), process.parent, process.born, process.is_dead), ("a) S 9 (x", 5, 777, true));
        assert_eq!(parse(12, b"12 (a) S"), None);
    }

    #[test]
    fn this_process_is_found_in_proc() {
        let own = read(getpid().as_raw()).unwrap();
        assert!(all().iter().any(|process| process.pid == own.pid && process.born == own.born));
    }
}
