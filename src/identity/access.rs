//! What the mode bits let a user do. The gate may be root and see more than the user whom it vouches for.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid};

/// Whom the mode bits are read for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who<'a> {
    pub(crate) uid: Uid,
    pub(crate) groups: &'a [Gid],
}

impl Who<'_> {
    /// The execute bit of the file and of every folder on its way, both as written and after its symlinks.
    pub(crate) fn may_run(&self, path: &Path) -> bool {
        let physical = path.canonicalize();
        [Some(path), physical.as_deref().ok()]
            .into_iter()
            .flatten()
            .all(|path| path.ancestors().all(|part| part.metadata().is_ok_and(|part| self.has_execute_bit(&part))))
    }

    /// What keeps the user from reading a file: the outermost folder below `home` that may not be entered, or the file. Both
    /// are paths without symlinks. Folders above the home are others' business, and the start of a check shows them.
    pub(crate) fn barrier(&self, home: &Path, file: &Path) -> Option<PathBuf> {
        let mut folders: Vec<&Path> = file.ancestors().skip(1).take_while(|folder| *folder != home).collect();
        folders.reverse();
        let is_barrier = |path: &Path, bit| path.metadata().is_ok_and(|found| !self.has_bit(&found, bit));
        let folder = folders.into_iter().find(|folder| is_barrier(folder, 0o1));
        folder.or_else(|| Some(file).filter(|file| is_barrier(file, 0o4))).map(Path::to_owned)
    }

    fn has_execute_bit(&self, file: &Metadata) -> bool {
        if self.uid.is_root() { file.is_dir() || file.mode() & 0o111 != 0 } else { self.has_bit(file, 0o1) }
    }

    /// `bit` as for others: 4 reads, 1 enters.
    fn has_bit(&self, file: &Metadata, bit: u32) -> bool {
        let shift = if file.uid() == self.uid.as_raw() {
            6
        } else if self.groups.iter().any(|gid| gid.as_raw() == file.gid()) {
            3
        } else {
            0
        };
        self.uid.is_root() || file.mode() & (bit << shift) != 0
    }
}
