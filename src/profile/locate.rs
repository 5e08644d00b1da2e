//! From the path in the settings to one place below the home, and to open files there.
//!
//! The worker's user owns everything below the home and may change it at any moment, while the gate may be root. So a
//! path is first resolved by hand, symlink by symlink, to a *physical* path: one without symlinks and `..`. It is then
//! opened relative to the home's descriptor in a way that refuses every symlink: if one was put in after the
//! resolving, the open fails and the resolving starts again.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat},
    sys::stat::Mode,
};

use super::text::shown_path;

/// As many symlinks as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// Why there is no such place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// The home itself.
    #[error("open the home {}: {errno}", shown_path(.home))]
    Home {
        /// As in the identity.
        home: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The settings' path is not below the home.
    #[error("find {path}: it must be below the home {}", shown_path(.home))]
    Outside {
        /// As in the settings.
        path: String,
        /// As in the identity.
        home: PathBuf,
    },
    /// A symlink, or `..` in the path, leads out of the home.
    #[error("follow {}: it leads out of the home {}", shown_path(.at), shown_path(.home))]
    Leaves {
        /// The symlink, or the directory above which the path would go.
        at: PathBuf,
        /// After every symlink.
        home: PathBuf,
    },
    /// More symlinks than the kernel would follow; or the path kept changing.
    #[error("follow {}: too many symbolic links, or it keeps changing", shown_path(.at))]
    Loop {
        /// Where it was given up.
        at: PathBuf,
    },
    /// A part of the path is there and cannot be looked at, or is no directory.
    #[error("look at {}: {errno}", shown_path(.at))]
    Blocked {
        /// That part.
        at: PathBuf,
        /// Why.
        errno: Errno,
    },
}

/// A place below the home, free of symlinks when it was resolved.
#[derive(Debug)]
pub(super) struct Place {
    home: OwnedFd,
    root: PathBuf,
    /// Relative to the home; never empty.
    relative: PathBuf,
    /// How many of its parts were there.
    pub(super) existing: usize,
}

impl Place {
    /// Where the file is, or should be.
    pub(super) fn path(&self) -> PathBuf {
        self.root.join(&self.relative)
    }

    /// The file's own name.
    pub(super) fn name(&self) -> &OsStr {
        self.relative.file_name().unwrap_or_default()
    }

    /// The names of all directories between the home and the file.
    pub(super) fn directories(&self) -> Vec<&OsStr> {
        self.relative.parent().into_iter().flat_map(Path::iter).collect()
    }

    /// The home, after every symlink.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The home.
    pub(super) fn home(&self) -> &OwnedFd {
        &self.home
    }

    /// The directory that holds the file.
    pub(super) fn open_directory(&self) -> nix::Result<OwnedFd> {
        let parent = self.relative.parent().unwrap_or(Path::new(""));
        open_below(&self.home, parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// The file, for reading. A FIFO does not hang this: it opens without a writer, and is no regular file.
    pub(super) fn open_file(&self) -> nix::Result<OwnedFd> {
        open_below(&self.home, &self.relative, READ)
    }
}

/// How a file is opened for reading.
pub(super) const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// Resolves the settings' path below the home.
pub(super) fn locate(path: &str, home: &Path) -> Result<Place, LocateError> {
    let no_home = |errno| LocateError::Home { home: home.to_owned(), errno };
    let root = home.canonicalize().map_err(|error| no_home(errno_of(&error)))?;
    let fd = open(&root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(no_home)?;
    let outside = || LocateError::Outside { path: path.to_owned(), home: home.to_owned() };
    let below = match path.strip_prefix("~/") {
        Some(below) => PathBuf::from(below),
        None => below_home(Path::new(path), &root).ok_or_else(outside)?,
    };
    let (relative, existing) = resolve(&fd, &root, &below)?;
    if relative.as_os_str().is_empty() {
        return Err(outside());
    }
    Ok(Place { home: fd, root, relative, existing })
}

/// The physical path relative to the home, and how many of its parts are there.
fn resolve(home: &OwnedFd, root: &Path, below: &Path) -> Result<(PathBuf, usize), LocateError> {
    let mut todo = parts(below);
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            if !done.pop() {
                // Above the home; it may come back to it.
                let above = root.parent().unwrap_or(root).join(todo.iter().collect::<PathBuf>());
                let leaves = || LocateError::Leaves { at: root.join(".."), home: root.to_owned() };
                todo = parts(&below_home(&above, root).ok_or_else(leaves)?);
                links += 1;
                if links > MAX_LINKS {
                    return Err(LocateError::Loop { at: root.to_owned() });
                }
            }
            continue;
        }
        let here = root.join(&done);
        let blocked = |at: PathBuf| move |errno| LocateError::Blocked { at, errno };
        let directory = open_below(home, &done, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(blocked(here.clone()))?;
        match readlinkat(&directory, part.as_os_str()) {
            Ok(target) => {
                links += 1;
                let at = here.join(&part);
                if links > MAX_LINKS {
                    return Err(LocateError::Loop { at });
                }
                let target = Path::new(&target);
                let next = if target.is_absolute() {
                    done = PathBuf::new();
                    below_home(target, root).ok_or(LocateError::Leaves { at, home: root.to_owned() })?
                } else {
                    target.to_owned()
                };
                let mut next = parts(&next);
                next.append(&mut todo);
                todo = next;
            }
            // Not a symlink.
            Err(Errno::EINVAL) => done.push(part),
            Err(Errno::ENOENT) => {
                let existing = done.iter().count();
                if todo.iter().any(|part| part == "..") {
                    return Err(blocked(here.join(part))(Errno::ENOENT));
                }
                done.push(part);
                done.extend(todo);
                return Ok((done, existing));
            }
            Err(errno) => return Err(blocked(here.join(part))(errno)),
        }
    }
    let existing = done.iter().count();
    Ok((done, existing))
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        })
        .collect()
}

/// What is left of an absolute path after the first of its ancestors that *is* the home, by whatever name.
fn below_home(path: &Path, root: &Path) -> Option<PathBuf> {
    let home = root.metadata().ok()?;
    let mut ancestors: Vec<_> = path.ancestors().collect();
    ancestors.reverse();
    let same = ancestors
        .into_iter()
        .filter(|a| a.is_absolute())
        .find(|ancestor| ancestor.metadata().is_ok_and(|meta| meta.dev() == home.dev() && meta.ino() == home.ino()))?;
    path.strip_prefix(same).ok().map(Path::to_owned)
}

/// Opens a physical path below a directory and follows no symlink whatever.
pub(super) fn open_below(directory: &OwnedFd, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let path = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(directory, path, how) {
        // An old kernel; or an old seccomp profile, which says EPERM to calls that it does not know.
        Err(Errno::ENOSYS | Errno::EPERM) => open_by_steps(directory, path, flags),
        result => result,
    }
}

/// The same without openat2: one directory after the other.
fn open_by_steps(directory: &OwnedFd, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut current = openat(directory, ".", step, Mode::empty())?;
    let mut names: Vec<_> = relative.iter().filter(|name| *name != ".").collect();
    if names.iter().any(|name| *name == "..") {
        return Err(Errno::EXDEV);
    }
    let Some(last) = names.pop() else { return openat(directory, ".", flags, Mode::empty()) };
    for name in names {
        current = openat(&current, name, step, Mode::empty())?;
    }
    openat(&current, last, flags, Mode::empty())
}

pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Whether an open failed in a way that a path in motion explains.
pub(super) fn moved(errno: Errno) -> bool {
    matches!(errno, Errno::ELOOP | Errno::EXDEV | Errno::EAGAIN | Errno::ENOTDIR | Errno::ENOENT)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn both_ways_to_open_refuse_every_symlink_and_every_step_upwards() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("home/a/b")).unwrap();
        fs::write(dir.path().join("home/a/b/file"), "x").unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        // Links that a user puts in after the path was resolved, harmless ones included.
        symlink("a", dir.path().join("home/link")).unwrap();
        symlink("../..", dir.path().join("home/a/up")).unwrap();
        symlink("file", dir.path().join("home/a/b/alias")).unwrap();
        let home = OwnedFd::from(fs::File::open(dir.path().join("home")).unwrap());
        for open in [open_below, open_by_steps] {
            let open = |path: &str| open(&home, Path::new(path), READ | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
            assert!(open("a/b/file").is_ok());
            assert!(open("").is_ok());
            for path in
                ["link/b/file", "a/up/secret", "a/b/alias", "../secret", "a/../../secret", "..", "a/b/file/x", "a/none"]
            {
                let errno = open(path).unwrap_err();
                assert!(moved(errno), "{path}: {errno}");
            }
        }
    }

    #[test]
    fn a_path_resolves_to_where_it_is_or_would_be() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap().join("home");
        fs::create_dir_all(home.join("real/deep")).unwrap();
        symlink("real/deep/..", home.join(".codex")).unwrap();
        symlink("../home/real", home.join("out-and-in")).unwrap();
        let cases = [
            ("~/.codex/config.toml", "real/config.toml", 1),
            ("~/.codex/deep/x/y", "real/deep/x/y", 2),
            ("~//real/./deep", "real/deep", 2),
            ("~/out-and-in/new", "real/new", 1),
            ("~/none/at/all", "none/at/all", 0),
        ];
        for (path, expected, existing) in cases {
            let place = locate(path, &home).unwrap();
            assert_eq!((place.path(), place.existing), (home.join(expected), existing), "{path}");
        }
        assert!(matches!(locate("~/none/../x", &home), Err(LocateError::Blocked { errno: Errno::ENOENT, .. })));
        assert!(matches!(locate("~/real/..", &home), Err(LocateError::Outside { .. })));
    }
}
