//! One look at the file: its bytes, owner and identity.

use std::{
    fs::File,
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::errno::Errno;

use super::{
    locate::{self, LocateError, Place},
    text::shown_path,
};

/// Larger files are not read: Codex's own config has a few kilobytes, and the gate's memory is not the user's to fill.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// How often a path that changes under the gate's hands is resolved again.
const ATTEMPTS: usize = 8;

/// A file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) bytes: Vec<u8>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permission bits.
    pub(super) mode: u32,
    /// When the content was last changed.
    pub(super) modified: Timestamp,
    pub(super) id: FileId,
}

/// Which file, whatever its name. No other file has the same id as long as a descriptor of this one is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    pub(super) dev: u64,
    pub(super) ino: u64,
}

/// Why a file could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is no way to it below the home.
    #[error(transparent)]
    Locate(LocateError),
    /// It is there and cannot be opened or read.
    #[error("read {}: {errno}", shown_path(.path))]
    Io {
        /// After every symlink.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// It is there and is something else.
    #[error("read {}: it is {found} and must be a regular file", shown_path(.path))]
    NotAFile {
        /// After every symlink.
        path: PathBuf,
        /// What it is, with its article.
        found: &'static str,
    },
    /// It is larger than a config can be.
    #[error("read {}: it is larger than 1 MiB", shown_path(.path))]
    TooLarge {
        /// After every symlink.
        path: PathBuf,
    },
}

/// Where the file is or should be, and what is in it; `None` if it is missing.
pub(super) fn look(path: &str, home: &Path) -> Result<(Place, Option<Snapshot>), ReadError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let place = locate::locate(path, home).map_err(ReadError::Locate)?;
        match place.open_file() {
            Ok(fd) => {
                let snapshot = read(fd, &place.path())?;
                return Ok((place, Some(snapshot)));
            }
            Err(Errno::ENOENT) => return Ok((place, None)),
            Err(errno) if locate::moved(errno) => last = Some(place.path()),
            // A socket cannot be opened at all.
            Err(Errno::ENXIO) => return Err(ReadError::NotAFile { path: place.path(), found: "a socket" }),
            Err(errno) => return Err(ReadError::Io { path: place.path(), errno }),
        }
    }
    Err(ReadError::Locate(LocateError::Loop { at: last.unwrap_or_default() }))
}

/// Reads an open file from where it stands.
pub(super) fn read(fd: OwnedFd, path: &Path) -> Result<Snapshot, ReadError> {
    let failed = |error: std::io::Error| ReadError::Io { path: path.to_owned(), errno: locate::errno_of(&error) };
    let mut file = File::from(fd);
    let meta = file.metadata().map_err(failed)?;
    let kind = meta.file_type();
    if !kind.is_file() {
        let found = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a named pipe",
            () if kind.is_symlink() => "a symbolic link",
            () => "a device",
        };
        return Err(ReadError::NotAFile { path: path.to_owned(), found });
    }
    let mut bytes = Vec::new();
    // The size in the metadata may be outdated, so the limit counts what is read.
    (&mut file).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ReadError::TooLarge { path: path.to_owned() });
    }
    let id = FileId { dev: meta.dev(), ino: meta.ino() };
    // A time that no calendar has is as good as none.
    let modified = Timestamp::new(meta.mtime(), i32::try_from(meta.mtime_nsec()).unwrap_or(0)).unwrap_or_default();
    Ok(Snapshot { bytes, uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & 0o7777, modified, id })
}
