//! Follows a path by hand and puts a watch on everything that decides where it leads.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ffi::OsString,
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        inotify::{AddWatchFlags, Inotify, WatchDescriptor},
        statfs::statfs,
    },
};

use super::Unwatched;

/// As many symlinks as the kernel follows in one path.
const MAX_LINKS: u32 = 40;

/// What is told of a directory: names that come, go or change hands, and its own end. Not what is written to its files,
/// which in a busy directory would be much; the file that counts has a watch of its own.
const DIRECTORY: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR)
    .union(AddWatchFlags::IN_DONT_FOLLOW);

/// What is told of the file itself. It sees what its directory does not: a write by way of a hard link, or of another
/// mount of the same file.
const FILE: AddWatchFlags = AddWatchFlags::IN_MODIFY
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_DONT_FOLLOW);

/// File systems that others can change without an event here: statfs(2) and the kernel's magic.h.
const REMOTE: [u32; 12] = [
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x517b,      // SMB
    0x6573_5546, // FUSE, and with it virtiofs
    0x0102_1997, // 9P
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
    0x7375_7245, // Coda
    0x786f_4256, // VirtualBox
    0x0bd0_0bd0, // Lustre
    0x0116_1970, // GFS2
];

/// What an event bears: which watch, and which name in the directory; no name if it is about the watched thing itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) watch: WatchDescriptor,
    pub(super) name: Option<OsString>,
}

/// What a subject waits for from now on.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub(super) keys: HashSet<Key>,
    /// The first place where events cannot be relied on.
    pub(super) hole: Option<Unwatched>,
}

/// Follows all paths of one subject.
///
/// Every directory is watched before a name is looked up in it. So whatever changes after the look raises an event, and
/// that leads to the next walk: no walk has to be right for longer than it takes.
pub(super) fn walk(inotify: &Inotify, paths: &[PathBuf]) -> Walk {
    let mut walker = Walker { inotify, walk: Walk::default(), entered: HashMap::new(), devices: BTreeMap::new() };
    for path in paths {
        walker.follow(path);
    }
    walker.walk
}

struct Walker<'a> {
    inotify: &'a Inotify,
    walk: Walk,
    /// Directories that this walk has a watch on already; `None` if it was refused.
    entered: HashMap<PathBuf, Option<WatchDescriptor>>,
    /// Whether a device is one that others can change.
    devices: BTreeMap<u64, bool>,
}

impl Walker<'_> {
    fn follow(&mut self, path: &Path) {
        let mut todo = parts(path);
        // Always a physical path: one without symlinks and "..".
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            if let Some(watch) = self.enter(&at) {
                self.walk.keys.insert(Key { watch, name: Some(name.clone()) });
            }
            let next = at.join(&name);
            let found = match next.symlink_metadata() {
                Ok(found) => found,
                // When it is there, its directory will tell.
                Err(error) if is_absence(&error) => return,
                Err(error) => return self.hole(&next, errno_of(&error)),
            };
            if found.is_symlink() {
                links += 1;
                let Ok(target) = next.read_link() else { return };
                if links > MAX_LINKS {
                    return;
                }
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                let rest = std::mem::replace(&mut todo, parts(&target));
                todo.extend(rest);
            } else if found.is_dir() {
                at = next;
            } else {
                // More may be to come, which no file can contain: only its replacement can change that, and that is
                // seen as well.
                self.file(&next, &found);
                return;
            }
        }
        // The path is a directory.
        self.enter(&at);
    }

    fn enter(&mut self, directory: &Path) -> Option<WatchDescriptor> {
        if let Some(watch) = self.entered.get(directory) {
            return *watch;
        }
        let watch = self.add(directory, DIRECTORY);
        self.entered.insert(directory.to_owned(), watch);
        if let Ok(found) = directory.symlink_metadata() {
            self.locality(directory, &found);
        }
        watch
    }

    fn file(&mut self, file: &Path, found: &Metadata) {
        self.add(file, FILE);
        self.locality(file, found);
    }

    fn add(&mut self, path: &Path, flags: AddWatchFlags) -> Option<WatchDescriptor> {
        match self.inotify.add_watch(path, flags) {
            Ok(watch) => {
                self.walk.keys.insert(Key { watch, name: None });
                Some(watch)
            }
            // It went away a moment ago, which its directory tells.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => None,
            Err(errno) => {
                self.hole(path, errno);
                None
            }
        }
    }

    fn locality(&mut self, path: &Path, found: &Metadata) {
        // The field's type differs between architectures; the numbers have 32 bits.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "compared as 32 bits")]
        let remote = |path| statfs(path).is_ok_and(|fs| REMOTE.contains(&(fs.filesystem_type().0 as u32)));
        if *self.devices.entry(found.dev()).or_insert_with(|| remote(path)) {
            self.walk.hole.get_or_insert_with(|| Unwatched::Remote { path: path.to_owned() });
        }
    }

    fn hole(&mut self, path: &Path, errno: Errno) {
        self.walk.hole.get_or_insert_with(|| Unwatched::Refused { path: path.to_owned(), errno });
    }
}

/// The names along a path; "/" and "." say nothing that the walk does not know.
fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn is_absence(error: &io::Error) -> bool {
    matches!(errno_of(error), Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG)
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
