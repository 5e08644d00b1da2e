//! A worker's process on this machine, as far as one may be sure that it is that.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, User, geteuid},
};

/// One that may get a SIGTERM.
#[derive(Debug)]
pub(super) struct Process(Pid);

impl Process {
    /// The process of this number, if it is a Celery worker of that user (the gate's own, if none is named). The number comes from an event, and may be of another
    /// machine or container, or be forged; the reason against it is a sentence's end.
    pub(super) fn find(pid: u32, user: Option<&str>) -> Result<Self, String> {
        let user = match user {
            None => geteuid(),
            Some(name) => match User::from_name(name) {
                Ok(Some(user)) => user.uid,
                Ok(None) | Err(_) => return Err(format!("there is no user {name}")),
            },
        };
        let found = Found::at(pid)?;
        if found.uid != user {
            return Err(format!("it belongs to uid {}, and the worker to uid {user}", found.uid));
        }
        found.command()?;
        if is_remapped(&found.words("environ")?) {
            return Err("it has REMAP_SIGTERM in its environment, which makes SIGTERM drop running tasks".to_owned());
        }
        Ok(Self(found.pid))
    }

    pub(super) fn terminate(&self) -> Result<(), String> {
        kill(self.0, Signal::SIGTERM).map_err(|error| error.desc().to_owned())
    }
}

/// A process that is there, whatever it is.
pub(crate) struct Found {
    pid: Pid,
    /// Whose it is.
    pub(crate) uid: Uid,
}

impl Found {
    /// The process of this number, if there is one that is not this program itself; the reason against it is a sentence's end.
    pub(crate) fn at(pid: u32) -> Result<Self, String> {
        let number = i32::try_from(pid).ok().filter(|pid| *pid > 1).ok_or("that is no process number")?;
        if pid == std::process::id() {
            return Err("that is the gate itself".to_owned());
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        let status = status.map_err(|_| "there is no such process on this machine")?;
        // Real, effective, saved and of the file system. The folder's owner is root where a process has changed its user itself,
        // as `celery worker --uid` does.
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let uid =
            uids.and_then(|uids| uids.split_whitespace().nth(1)?.parse().ok()).ok_or("its user cannot be told")?;
        Ok(Self { pid: Pid::from_raw(number), uid: Uid::from_raw(uid) })
    }

    /// Its command line, if that is one of Celery's.
    pub(crate) fn command(&self) -> Result<String, String> {
        let command = self.words("cmdline")?;
        let command = String::from_utf8_lossy(&command);
        // `celery -A app worker`, `python -m celery`, or the title that setproctitle gives it: [celeryd: codex-0@host:MainProcess].
        if !command.contains("celery") {
            return Err("its command line does not say celery".to_owned());
        }
        Ok(command.replace('\0', " "))
    }

    /// A variable of the environment that it was started with; `None` also if that may not be read.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let environ = self.words("environ").ok()?;
        let value = environ
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")));
        value.and_then(|value| String::from_utf8(value.to_vec()).ok())
    }

    fn words(&self, file: &str) -> Result<Vec<u8>, String> {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read(&path).map_err(|error| format!("{path}: {error}"))
    }
}

/// Whether SIGTERM is a cold shutdown for this worker (celery/apps/worker.py, `REMAP_SIGTERM`).
fn is_remapped(environ: &[u8]) -> bool {
    environ.split(|byte| *byte == 0).any(|entry| entry.starts_with(b"REMAP_SIGTERM=") && entry != b"REMAP_SIGTERM=")
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    struct Stand(Child);

    impl Stand {
        fn new(name: &str, env: &[(&str, &str)]) -> Self {
            // Its command line holds the name as a shell's $0.
            let mut command = Command::new("sh");
            command.args(["-c", "echo; read never", name]).envs(env.iter().copied());
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut ready = [0];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
            Self(child)
        }
    }

    impl Drop for Stand {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_that_may_not_be_the_worker_gets_no_signal() {
        let refused = |pid, user| Process::find(pid, user).unwrap_err();
        assert!(refused(std::process::id(), None).contains("the gate itself"));
        assert!(refused(0, None).contains("no process number") && refused(1, None).contains("no process number"));
        assert!(refused(i32::MAX as u32, None).contains("no such process"));
        assert!(refused(u32::MAX, None).contains("no process number"));
        let other = Stand::new("other", &[]);
        assert!(refused(other.0.id(), None).contains("does not say celery"));
        assert!(refused(other.0.id(), Some("nobody")).contains("belongs to uid"));
        assert!(refused(other.0.id(), Some("no such user")).contains("no user"));
        let cold = Stand::new("celery", &[("REMAP_SIGTERM", "SIGQUIT")]);
        assert!(refused(cold.0.id(), None).contains("REMAP_SIGTERM"));
    }

    #[test]
    fn a_process_says_whose_it_is_and_what_it_was_started_with() {
        let worker = Stand::new("celery", &[("CODEX", "a=b"), ("CODEX_", "c")]);
        let found = Found::at(worker.0.id()).unwrap();
        assert_eq!(found.uid, geteuid());
        assert!(found.command().unwrap().ends_with(" celery "), "{:?}", found.command());
        assert_eq!(found.variable("CODEX").as_deref(), Some("a=b"));
        assert_eq!(found.variable("NO_SUCH"), None);
    }

    #[test]
    fn a_celery_process_of_the_user_gets_sigterm() {
        let mut worker = Stand::new("celery", &[("REMAP_SIGTERM", "")]);
        Process::find(worker.0.id(), None).unwrap().terminate().unwrap();
        let ended = worker.0.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(Signal::SIGTERM as i32));
    }
}
