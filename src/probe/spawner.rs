//! The one thread that starts commands.
//!
//! A command asks the kernel to be killed when its parent dies, and the kernel's "parent" is the thread that forked. A
//! thread of a pool that is retired for idleness would take running commands with it; this one lives as long as anybody
//! can ask it for something.

use std::{
    ffi::{CString, OsString},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::{prctl, resource, signal::Signal},
    unistd::{Gid, Pid, Uid, chdir, getpid, getppid, setgroups, setresgid, setresuid, setsid},
};
use tokio::sync::oneshot;

use super::family::{Family, leaders};

/// What to start, with everything looked up.
#[derive(Debug)]
pub(crate) struct Order {
    /// The file.
    pub(crate) program: PathBuf,
    /// All words, the first as it was typed.
    pub(crate) argv: Vec<String>,
    /// All of the environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Where it starts.
    pub(crate) home: PathBuf,
    /// As whom.
    pub(crate) uid: Uid,
    /// Whom to become; `None` if the gate is that user already.
    pub(crate) become_user: Option<(Gid, Vec<Gid>)>,
}

/// A handle to the thread; it ends with the last one.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    orders: mpsc::Sender<(Order, oneshot::Sender<io::Result<Running>>)>,
}

impl Spawner {
    /// Starts the thread, and makes this process the one that orphans of its commands come to.
    pub(crate) fn start() -> io::Result<Self> {
        prctl::set_child_subreaper(true)?;
        let (orders, incoming) = mpsc::channel::<(Order, oneshot::Sender<io::Result<Running>>)>();
        thread::Builder::new().name("spawner".into()).spawn(move || {
            for (order, reply) in incoming {
                // Nobody waits any more: dropping what was started ends it.
                drop(reply.send(spawn(&order)));
            }
        })?;
        Ok(Self { orders })
    }

    /// Starts one command.
    pub(crate) async fn spawn(&self, order: Order) -> io::Result<Running> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts commands has ended");
        self.orders.send((order, reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A command that runs, or has exited and is not reaped. Dropping it kills it with all its descendants.
#[derive(Debug)]
pub(crate) struct Running {
    /// `None` once it has been reaped or handed over.
    child: Option<Child>,
    /// What belongs to it.
    pub(crate) family: Family,
}

impl Running {
    /// The reading ends of its stdout and stderr; `None` the second time.
    pub(crate) fn take_pipes(&mut self) -> Option<(OwnedFd, OwnedFd)> {
        let child = self.child.as_mut()?;
        Some((child.stdout.take()?.into(), child.stderr.take()?.into()))
    }

    /// Takes the exit status of a leader that has exited, as wait(2) lays it out; `None` if it has not.
    pub(crate) fn reap(mut self) -> Option<i32> {
        reap(self.child.as_mut()?).inspect(|_| self.child = None)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let family = self.family;
        family.kill_all();
        // The rest may take a moment, and whoever drops this is in a hurry. If no thread can be had the zombies stay
        // until the gate ends, which is most likely what is happening.
        drop(thread::Builder::new().name("reaper".into()).spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(2);
            while !family.sweep() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
            let _ = reap(&mut child);
        }));
    }
}

fn reap(child: &mut Child) -> Option<i32> {
    // Under the lock: once it is reaped its number is free, and the next leader may get it.
    let mut leaders = leaders();
    let status = child.try_wait().ok()??;
    leaders.remove(&child.id().cast_signed());
    Some(status.into_raw())
}

/// A file that was just written may still be open for writing in a process that another thread is forking.
const BUSY_RETRIES: u32 = 5;

fn spawn(order: &Order) -> io::Result<Running> {
    let mut leaders = leaders();
    let mut busy = 0;
    let child = loop {
        match command(order)?.spawn() {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && busy < BUSY_RETRIES => busy += 1,
            result => break result?,
        }
        thread::sleep(Duration::from_millis(20));
    };
    leaders.insert(child.id().cast_signed());
    drop(leaders);
    let family = Family::of(Pid::from_raw(child.id().cast_signed()), order.uid);
    Ok(Running { child: Some(child), family })
}

fn command(order: &Order) -> io::Result<Command> {
    let mut command = Command::new(&order.program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());

    // Everything that the child needs is made here: after the fork it may not allocate.
    let image = Image::new(order)?;
    let home = CString::new(order.home.as_os_str().as_bytes())?;
    let become_user = order.become_user.clone().map(|(gid, groups)| (order.uid, gid, groups));
    let gate = getpid();
    let prepare = move || {
        let become_user = become_user.as_ref().map(|(uid, gid, groups)| (*uid, *gid, groups.as_slice()));
        settle_in(become_user, &home, gate)?;
        Err(image.exec())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed, as another thread may have held any lock
    // at the moment of the fork. `settle_in` and `exec` make system calls only: nothing in them allocates, locks or
    // reads a user database, their arguments were made before, and an errno becomes an `io::Error` without a box.
    #[expect(unsafe_code, reason = "changing user, session and signals of the child alone is possible only here")]
    unsafe {
        command.pre_exec(prepare);
    }
    Ok(command)
}

/// What the child becomes. std would do the exec with execvp, which hands a file that is no program to /bin/sh; a check
/// goes through no shell, so it is done here, and such a file is refused.
struct Image {
    program: CString,
    argv: Words,
    env: Words,
}

impl Image {
    fn new(order: &Order) -> io::Result<Self> {
        let env = order.env.iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
        Ok(Self {
            program: CString::new(order.program.as_os_str().as_bytes())?,
            argv: Words::new(order.argv.iter().map(|word| word.clone().into_bytes()))?,
            env: Words::new(env)?,
        })
    }

    /// Returns only if it failed.
    fn exec(&self) -> io::Error {
        // SAFETY: the path ends with a zero byte, and so does each word; both lists end with a null and point into
        // words that `self` owns.
        #[expect(unsafe_code, reason = "nix's execve allocates, which a forked child may not")]
        unsafe {
            libc::execve(self.program.as_ptr(), self.argv.list.as_ptr().cast(), self.env.list.as_ptr().cast());
        }
        io::Error::last_os_error()
    }
}

/// Words as execve takes them.
struct Words {
    /// Addresses of the words, then a zero. Numbers and not pointers, so that it can be handed to another thread.
    list: Vec<usize>,
    /// Keeps the words where they are: a `CString`'s bytes do not move with it.
    _words: Vec<CString>,
}

impl Words {
    fn new(words: impl Iterator<Item = Vec<u8>>) -> io::Result<Self> {
        let words = words.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let list = words.iter().map(|word| word.as_ptr().expose_provenance()).chain([0]).collect();
        Ok(Self { list, _words: words })
    }
}

/// Runs in the child, after std has put the pipes in place, emptied the signal mask and given SIGPIPE back its default.
fn settle_in(become_user: Option<(Uid, Gid, &[Gid])>, home: &CString, gate: Pid) -> nix::Result<()> {
    // A session, and with it a group: signals reach all of it, and without a terminal nothing can stop to ask.
    setsid()?;
    resource::setrlimit(resource::Resource::RLIMIT_CORE, 0, 0)?;
    if let Some((uid, gid, groups)) = become_user {
        // In this order, because each step takes away the right to the one before it.
        setgroups(groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    prctl::set_no_new_privs()?;
    // While it lives its orphans come to it and not to the gate, where they could be mistaken for another command's.
    prctl::set_child_subreaper(true)?;
    // After the change of user, which clears it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != gate {
        // The gate died before the line above.
        return Err(Errno::ESRCH);
    }
    // As the user: root may enter folders that the user may not.
    chdir(home.as_c_str())?;
    close_the_rest();
    Ok(())
}

/// What the gate itself inherited without close-on-exec, from a shell or a supervisor, is nothing for a check. The gate's
/// own files have the flag already.
fn close_the_rest() {
    // SAFETY: the call takes three integers and touches no memory. It only sets flags: the pipe by which std learns of
    // a failed exec stays open until the exec.
    #[expect(unsafe_code, reason = "nix has no close_range")]
    unsafe {
        // Kernels before 5.11 do not know the flag and change nothing.
        libc::syscall(libc::SYS_close_range, 3_u32, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}
