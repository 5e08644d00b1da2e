//! A cheap look at whether a file has changed.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How young a change must be for the next one to possibly bear the same time. File systems stamp with the kernel's
/// tick, which is at most 10 ms; some network ones with whole seconds.
const SAME_TIME: Duration = Duration::from_millis(1_100);

/// What tells one state of a file from another, without reading it: two calls to stat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signature {
    /// The file behind every symlink; `None` if it is missing or cannot be looked at.
    file: Option<Stamp>,
    /// The last part of the path itself, which may be a symlink.
    link: Option<Stamp>,
}

/// What stat says of one file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
    uid: u32,
    gid: u32,
}

impl From<Metadata> for Stamp {
    fn from(meta: Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
        }
    }
}

impl Signature {
    /// Looks at the file. Any error counts as its absence; why it cannot be had is for the full inspection to say.
    pub fn of(path: &Path) -> Self {
        Self { file: path.metadata().ok().map(Stamp::from), link: path.symlink_metadata().ok().map(Stamp::from) }
    }

    /// Whether a later change is sure to give another signature. A file that was changed a moment ago can be changed
    /// again within one tick of the file system's clock, and look the same.
    pub fn is_settled(&self, wall: SystemTime) -> bool {
        self.file.as_ref().is_none_or(|file| file.is_settled(wall))
    }
}

impl Stamp {
    /// As [`Signature::is_settled`].
    pub(super) fn is_settled(&self, wall: SystemTime) -> bool {
        let Ok(now) = wall.duration_since(UNIX_EPOCH) else { return true };
        let (seconds, nanos) = self.changed;
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else { return true };
        // A change in the future, from a clock that was set back, would never settle: it counts as old.
        now.checked_sub(Duration::new(seconds, nanos)).is_none_or(|age| age > SAME_TIME)
    }

    /// All but the device, whose number is another after each start of the machine, and the time of the last change of
    /// anything, which also moves when a backup program sets another time back.
    pub(super) fn in_words(&self) -> String {
        let Self { device: _, inode, size, modified: (seconds, nanos), changed: _, mode, uid, gid } = self;
        format!("inode {inode} size {size} modified {seconds}.{nanos:09} mode {mode:o} owner {uid}:{gid}")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn every_change_gives_another_signature() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("config.toml"), folder.path().join("target"));
        let mut seen = vec![Signature::of(&path)];
        let mut look = |what: &str| {
            let now = Signature::of(&path);
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        };
        fs::write(&path, "a").unwrap();
        look("created");
        fs::write(&path, "ab").unwrap();
        look("another size");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        look("another mode");
        fs::write(&target, "ab").unwrap();
        fs::rename(&target, &path).unwrap();
        look("replaced");
        fs::rename(&path, &target).unwrap();
        symlink(&target, &path).unwrap();
        look("now a symlink");
        fs::write(&target, "abc").unwrap();
        look("its target changed");
    }

    #[test]
    fn a_file_settles_a_moment_after_its_last_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "a").unwrap();
        let changed = path.metadata().unwrap().modified().unwrap();
        let signature = Signature::of(&path);
        assert!(!signature.is_settled(changed + Duration::from_millis(500)));
        assert!(signature.is_settled(changed + Duration::from_secs(2)));
        assert!(signature.is_settled(changed - Duration::from_secs(60)), "a clock that was set back");
        assert!(Signature::of(&folder.path().join("none")).is_settled(changed));
    }
}
