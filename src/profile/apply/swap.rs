//! Puts new bytes in the place of the old ones, unless somebody wrote in the meantime.
//!
//! A rename replaces whatever is there, so a check before it always leaves a gap. Here the two files *change places*
//! in one step, and what came out is looked at: it still has the bytes that the plan was made from, or it goes back.
//! While it goes back another program may have replaced the file once more; then the newest one goes back.
//!
//! A program that writes in place, and not by a rename, may have opened the file before it was taken out, and would
//! write its bytes into a file without a name. The kernel's leases tell whether anybody has a file open for writing.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, RenameFlags, renameat, renameat2},
    libc,
    sys::stat::fstat,
    unistd::{Gid, Uid},
};

use super::{
    ApplyError,
    temp::{self, Temp},
};
use crate::profile::{
    locate::{self, Place, READ, open_below},
    read::{self, FileId, Snapshot},
};

/// How often a file goes back that somebody replaces each time. Each round needs a rename by the other program within
/// microseconds.
const MAX_ROUNDS: usize = 1_000;

/// Where leases are not to be had, an open writer is given this long to show.
const SETTLE: Duration = Duration::from_millis(25);

/// How two files change places.
pub(super) const EXCHANGE: RenameFlags = RenameFlags::RENAME_EXCHANGE;

/// `false`: the file is not the one that was read, and nothing was changed.
pub(super) fn swap(place: &Place, old: &Snapshot, new: &[u8], exchange: RenameFlags) -> Result<bool, ApplyError> {
    let path = place.path();
    let at = path.parent().unwrap_or(Path::new("/"));
    let step = |step| {
        let path = path.clone();
        move |errno| {
            if errno == Errno::EBUSY { ApplyError::MountPoint { path } } else { ApplyError::Step { step, path, errno } }
        }
    };
    let directory = match place.open_directory() {
        Ok(directory) => directory,
        Err(errno) if locate::moved(errno) => return Ok(false),
        Err(errno) => return Err(step("open the directory of")(errno)),
    };
    let owner = (Uid::from_raw(old.uid), Gid::from_raw(old.gid));
    let mut temp = Temp::create(&directory, at, new, owner, old.mode)?;
    let name = Path::new(place.name());
    let ours = Placed {
        id: id(&temp.held).map_err(step("look at"))?,
        content: Some(Snapshot { bytes: new.to_vec(), ..old.clone() }),
        _open: temp.held.try_clone().map_err(|error| step("look at")(locate::errno_of(&error)))?,
    };
    if !is_still(&directory, name, old) {
        return Ok(false);
    }
    match renameat2(&directory, temp.os_name(), &directory, name, exchange) {
        Ok(()) => {}
        Err(Errno::ENOENT) => return Ok(false),
        // The file system cannot exchange. A write between the last look and this rename is lost.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            renameat(&directory, temp.os_name(), &directory, name).map_err(step("replace"))?;
            temp.remove = false;
            temp::flush(&directory, at)?;
            return Ok(true);
        }
        Err(errno) => return Err(step("replace")(errno)),
    }

    // From here until it is known that nobody's write has the temporary name, nothing may remove it.
    temp.remove = false;
    let kept = is_still(&directory, Path::new(&temp.name), old)
        // Another program may have renamed its own file over ours already.
        && held(&directory, name).is_ok_and(|(_, id)| id == ours.id);
    if kept {
        temp.remove = true;
        temp::flush(&directory, at)?;
        return Ok(true);
    }
    match put_back(&directory, name, Path::new(&temp.name), ours) {
        Ok(()) => temp.remove = true,
        Err(errno) => return Err(ApplyError::LeftBehind { path: path.clone(), kept: temp.path(at), errno }),
    }
    Ok(false)
}

/// Whether the file is being written: it is not as it was read, or somebody has it open for writing.
pub(super) fn in_motion(place: &Place, seen: &Snapshot) -> bool {
    place.open_directory().is_ok_and(|directory| !is_still(&directory, Path::new(place.name()), seen))
}

/// Whether a file has the bytes, owner and mode that were read, and nobody is about to write it.
fn is_still(directory: &OwnedFd, name: &Path, seen: &Snapshot) -> bool {
    let look = || {
        let fd = open_below(directory, name, READ).ok()?;
        // Asked before the bytes are read: who writes after that has opened the file after that.
        let writer = is_open_for_writing(&fd);
        let found = read::read(fd, name).ok()?;
        // Which file it is does not matter: the same bytes in another file lose nothing.
        let same = (&found.bytes, found.uid, found.gid, found.mode) == (&seen.bytes, seen.uid, seen.gid, seen.mode);
        same.then_some(writer)
    };
    match look() {
        None | Some(Some(true)) => false,
        Some(Some(false)) => true,
        Some(None) => {
            thread::sleep(SETTLE);
            look().is_some()
        }
    }
}

/// Puts the file that has the temporary name back. `ours` should come out for it, as it was written. If something else
/// comes out, somebody has replaced or written the file meanwhile, and that newer one is what must have the name in the
/// end: it goes back in its turn, for the one that has just been put there.
fn put_back(directory: &OwnedFd, name: &Path, temp: &Path, ours: Placed) -> Result<(), Errno> {
    let mut expected = ours;
    for _ in 0..MAX_ROUNDS {
        let (fd, id) = held(directory, temp)?;
        let content = open_below(directory, temp, READ).ok().and_then(|fd| read::read(fd, temp).ok());
        let in_hand = Placed { id, content, _open: fd };
        match renameat2(directory, temp, directory, name, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => {}
            // It was removed meanwhile, which is newer than what is in hand.
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        let (_, came_out) = held(directory, temp)?;
        let untouched = expected.content.as_ref().is_none_or(|content| is_still(directory, temp, content));
        if came_out == expected.id && untouched {
            return Ok(());
        }
        expected = in_hand;
    }
    Err(Errno::EBUSY)
}

/// A file that was put under the profile's name.
struct Placed {
    id: FileId,
    /// What it said then; `None` for what is no readable file.
    content: Option<Snapshot>,
    /// Keeps the inode number from being used again.
    _open: OwnedFd,
}

fn held(directory: &OwnedFd, name: &Path) -> nix::Result<(OwnedFd, FileId)> {
    use nix::{fcntl::openat, sys::stat::Mode};
    // Not by `open_below`: what is here may be a symlink, and is to be held as such.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(directory, name, flags, Mode::empty())?;
    let id = id(&fd)?;
    Ok((fd, id))
}

fn id<F: AsFd>(file: F) -> nix::Result<FileId> {
    let stat = fstat(file)?;
    Ok(FileId { dev: stat.st_dev, ino: stat.st_ino })
}

/// Whether any process has the file open for writing; `None` where the kernel does not say (network file systems, or
/// root without CAP_LEASE on another user's file). A read lease is refused exactly then (fcntl(2)).
#[expect(unsafe_code, reason = "nix has no call for leases")]
fn is_open_for_writing(file: &OwnedFd) -> Option<bool> {
    let fd = file.as_raw_fd();
    // SAFETY: the descriptor is open, and these commands take an integer and no pointer. The signal that tells of a
    // conflicting open would by default end the process; SIGURG is ignored by default.
    let result = unsafe {
        if libc::fcntl(fd, F_SETSIG, libc::SIGURG) == -1 {
            return None;
        }
        Errno::result(libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK))
    };
    match result {
        Ok(_) => {
            // SAFETY: as above. Given back at once: only the answer was wanted.
            unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
            Some(false)
        }
        Err(Errno::EAGAIN) => Some(true),
        Err(_) => None,
    }
}

/// fcntl(2); the libc crate does not have it for this target.
const F_SETSIG: libc::c_int = 10;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory in which `ours` was put under the name, and `taken` came out for it and has the temporary name.
    fn put_back_in(change: impl FnOnce(&Path)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (name, temp) = (dir.path().join("name"), dir.path().join("temp"));
        fs::write(&name, "ours").unwrap();
        fs::write(&temp, "taken").unwrap();
        let directory = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        let (open, id) = held(&directory, Path::new("name")).unwrap();
        let fd = open_below(&directory, Path::new("name"), READ).unwrap();
        let ours = Placed { id, content: Some(read::read(fd, &name).unwrap()), _open: open };
        change(&name);
        put_back(&directory, Path::new("name"), Path::new("temp"), ours).unwrap();
        fs::read_to_string(&name).unwrap_or_else(|_| "nothing".to_owned())
    }

    #[test]
    fn what_was_taken_out_goes_back() {
        assert_eq!(put_back_in(|_| ()), "taken");
    }

    #[test]
    fn what_was_renamed_over_ours_meanwhile_wins_over_what_was_taken_out() {
        let newer = |name: &Path| {
            let other = name.with_file_name("other");
            fs::write(&other, "newer").unwrap();
            fs::rename(other, name).unwrap();
        };
        assert_eq!(put_back_in(newer), "newer");
    }

    #[test]
    fn what_was_written_into_ours_meanwhile_wins_over_what_was_taken_out() {
        assert_eq!(put_back_in(|name| fs::write(name, "newer").unwrap()), "newer");
    }

    #[test]
    fn a_removal_meanwhile_wins_over_what_was_taken_out() {
        assert_eq!(put_back_in(|name| fs::remove_file(name).unwrap()), "nothing");
    }

    #[test]
    fn a_program_that_has_the_file_open_for_writing_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let writer = fs::File::create(&path).unwrap();
        let reader = OwnedFd::from(fs::File::open(&path).unwrap());
        assert_eq!(is_open_for_writing(&reader), Some(true));
        drop(writer);
        assert_eq!(is_open_for_writing(&reader), Some(false));
    }
}
