//! Makes a directory above a file that is missing.

use std::{ffi::OsStr, os::fd::OwnedFd, path::Path};

use nix::{
    dir::{Dir, Entry},
    errno::Errno,
    fcntl::{OFlag, RenameFlags, renameat, renameat2},
    sys::stat::{Mode, fchmod, fstat, mkdirat},
    unistd::{Uid, UnlinkatFlags, geteuid, unlinkat},
};

use super::{ApplyError, Target, temp};
use crate::profile::locate::{moved, open_below};

/// What became of a new directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// It has its name.
    There,
    /// Something else has its name, which is as good.
    NotNeeded,
    /// Somebody has put something else in its place.
    Exchanged,
}

/// Makes an empty directory of the worker's user. `at` is the path of the one that it is in, for messages.
///
/// The worker may rename what is in its folders at any moment, whoever it belongs to, and whatever is opened by its name may
/// be something else than was made under it. So only what nobody else can have a use for is given away, and it gets its own
/// name last.
pub(super) fn make(parent: &OwnedFd, at: &Path, name: &OsStr, target: &Target<'_>) -> Result<Made, ApplyError> {
    let temp = temp::new_name();
    let step = |(step, errno)| ApplyError::Step { step, path: at.join(name), errno };
    mkdirat(parent, temp.as_str(), Mode::S_IRWXU).map_err(|errno| step(("create the directory", errno)))?;
    let made = finish(parent, &temp, name, target);
    if made != Ok(Made::There) {
        // Nobody could do anything about a failure here; and only what is empty goes.
        let _ = unlinkat(parent, temp.as_str(), UnlinkatFlags::RemoveDir);
    }
    let made = made.map_err(step)?;
    temp::flush(parent, at)?;
    Ok(made)
}

fn finish(parent: &OwnedFd, temp: &str, name: &OsStr, target: &Target<'_>) -> Result<Made, (&'static str, Errno)> {
    let step = |step| move |errno| (step, errno);
    let made = match open_below(parent, Path::new(temp), OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
        Ok(made) => made,
        Err(errno) if moved(errno) => return Ok(Made::Exchanged),
        Err(errno) => return Err(("open", errno)),
    };
    if !is_new(&made, target.uid).map_err(step("look at"))? {
        return Ok(Made::Exchanged);
    }
    temp::own(&made, target.uid, target.gid).map_err(step("give the worker's user"))?;
    fchmod(&made, Mode::S_IRWXU).map_err(step("set the mode of"))?;
    let renamed = match renameat2(parent, temp, parent, name, RenameFlags::RENAME_NOREPLACE) {
        // Without the flag nothing but an empty directory can be replaced.
        Err(Errno::EINVAL | Errno::ENOSYS) => renameat(parent, temp, parent, name),
        result => result,
    };
    match renamed {
        Ok(()) => Ok(Made::There),
        Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => Ok(Made::NotNeeded),
        Err(Errno::ENOENT) => Ok(Made::Exchanged),
        Err(errno) => Err(("rename", errno)),
    }
}

/// Empty, and the gate's own; or the worker's, on file systems where everything is, and where there is nothing to give away.
fn is_new(made: &OwnedFd, worker: Uid) -> nix::Result<bool> {
    let owner = Uid::from_raw(fstat(made)?.st_uid);
    let mut entries = Dir::openat(made, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let names = entries.iter().take(3).collect::<nix::Result<Vec<Entry>>>()?;
    let is_empty = names.iter().all(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."));
    Ok(is_empty && (owner == geteuid() || owner == worker))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use super::*;
    use crate::profile::apply::tests::Home;

    fn finished(home: &Home, temp: &str) -> Made {
        let parent = OwnedFd::from(fs::File::open(&home.path).unwrap());
        finish(&parent, temp, OsStr::new("wanted"), &home.target()).unwrap()
    }

    #[test]
    fn a_directory_that_took_the_place_of_the_new_one_is_not_given_away() {
        let home = Home::new();
        let temp = home.path.join("temp");
        let foreign = |case: &str| {
            fs::set_permissions(&temp, fs::Permissions::from_mode(0o755)).unwrap();
            let before = fs::metadata(&temp).unwrap();
            assert_eq!(finished(&home, "temp"), Made::Exchanged, "{case}");
            let after = fs::metadata(&temp).unwrap();
            assert_eq!((before.mode(), before.uid()), (after.mode(), after.uid()), "{case}");
            assert!(!home.path.join("wanted").exists(), "{case}");
        };
        fs::create_dir(&temp).unwrap();
        fs::write(temp.join("something"), "").unwrap();
        foreign("it holds something");
        fs::remove_dir_all(&temp).unwrap();
        symlink(".codex", &temp).unwrap();
        foreign("it is a symlink");
        fs::remove_file(&temp).unwrap();
        assert_eq!(finished(&home, "temp"), Made::Exchanged, "it is gone");
        if geteuid().is_root() {
            fs::create_dir(&temp).unwrap();
            std::os::unix::fs::chown(&temp, Some(4321), None).unwrap();
            foreign("it is a stranger's");
        }
    }

    #[test]
    fn a_directory_that_somebody_else_made_meanwhile_stays() {
        let home = Home::new();
        fs::create_dir_all(home.path.join("wanted/theirs")).unwrap();
        let parent = OwnedFd::from(fs::File::open(&home.path).unwrap());
        assert_eq!(make(&parent, &home.path, OsStr::new("wanted"), &home.target()).unwrap(), Made::NotNeeded);
        assert!(home.path.join("wanted/theirs").exists());
        assert_eq!(make(&parent, &home.path, OsStr::new("new"), &home.target()).unwrap(), Made::There);
        assert_eq!(fs::metadata(home.path.join("new")).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(&home.path).unwrap().count(), 3, "nothing else is left");
    }
}
