//! A file beside the profile that is removed unless it takes the profile's place.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, fchmod, fstat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat},
};

use super::ApplyError;
use crate::profile::locate::errno_of;

/// How every name begins, so that a person who finds one after a crash knows whose it is.
const PREFIX: &str = ".worker-gate-";

/// A complete, flushed file under a name that nobody else uses.
pub(super) struct Temp<'d> {
    directory: &'d OwnedFd,
    /// Its name in the directory.
    pub(super) name: String,
    /// Keeps the inode number from being used again. Not open for writing, because others ask who writes the file.
    pub(super) held: OwnedFd,
    /// Whether dropping removes what has the name.
    pub(super) remove: bool,
}

impl<'d> Temp<'d> {
    /// Writes it all out. `at` is the directory's path, for messages.
    pub(super) fn create(
        directory: &'d OwnedFd,
        at: &Path,
        bytes: &[u8],
        (uid, gid): (Uid, Gid),
        mode: u32,
    ) -> Result<Self, ApplyError> {
        let name = new_name();
        let path = at.join(&name);
        let failed = |step| {
            let path = path.clone();
            move |errno| ApplyError::Step { step, path, errno }
        };
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(directory, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("create"))?;
        let mut file = File::from(fd);
        let path_only = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let held = openat(directory, name.as_str(), path_only, Mode::empty()).map_err(failed("open"))?;
        let temp = Self { directory, name, held, remove: true };
        file.write_all(bytes).map_err(|error| failed("write")(errno_of(&error)))?;
        own(&file, uid, gid).map_err(failed("give the worker's user"))?;
        // After the owner, because a change of owner clears some bits.
        fchmod(&file, Mode::from_bits_truncate(mode)).map_err(failed("set the mode of"))?;
        file.sync_all().map_err(|error| failed("flush")(errno_of(&error)))?;
        Ok(temp)
    }

    /// Its path, for messages.
    pub(super) fn path(&self, at: &Path) -> PathBuf {
        at.join(&self.name)
    }

    /// Its name as the calls want it.
    pub(super) fn os_name(&self) -> &OsStr {
        OsStr::new(&self.name)
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if self.remove {
            // Nobody could do anything about a failure here, and the file is already complete or useless.
            let _ = unlinkat(self.directory, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// One that could not be foreseen.
pub(super) fn new_name() -> String {
    format!("{PREFIX}{:016x}.tmp", rand::random::<u64>())
}

/// Gives a file away, unless it is theirs already: only root may, and the user itself need not.
pub(super) fn own<F: std::os::fd::AsFd>(file: F, uid: Uid, gid: Gid) -> nix::Result<()> {
    let stat = fstat(&file)?;
    if (stat.st_uid, stat.st_gid) == (uid.as_raw(), gid.as_raw()) {
        return Ok(());
    }
    fchown(&file, Some(uid), Some(gid))
}

/// Flushes a directory, so that a name survives a power cut. Some file systems cannot, and then there is nothing to do.
pub(super) fn flush(directory: &OwnedFd, at: &Path) -> Result<(), ApplyError> {
    match nix::unistd::fsync(directory) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOTSUP | Errno::EBADF) => Ok(()),
        Err(errno) => Err(ApplyError::Step { step: "flush", path: at.to_owned(), errno }),
    }
}
