//! One hash over all files of a tool, in which every change of one of them shows.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    io,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};

use crate::{
    hash::{self, hex},
    probe::signature::Stamp,
};

/// What is larger is judged by its stamp alone; no tool is.
pub(crate) const LARGEST: u64 = 2 * 1024 * 1024 * 1024;
/// Hashes that are kept. A tool has some twenty files; what is replaced leaves its old hash behind until then.
const MAX_KEPT: usize = 4096;

/// Content hashes, kept by what `stat` says: a binary of 200 MB is read once and not at each look.
#[derive(Debug, Default)]
pub struct Hashes(Mutex<HashMap<Stamp, [u8; 32]>>);

impl Hashes {
    /// sha256 in hex over each path with where it leads, its inode, size, mode, owner and time of change, and what it
    /// says. Missing files count as missing. Reads the files, and may block.
    pub fn fingerprint(&self, chain: &[PathBuf]) -> String {
        let mut whole = Sha256::new();
        for path in chain {
            let mut field = |bytes: &[u8]| {
                // With its length in front, no field can pass for the end of another.
                whole.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
                whole.update(bytes);
            };
            field(path.as_os_str().as_bytes());
            field(path.read_link().unwrap_or_default().as_os_str().as_bytes());
            field(path.canonicalize().unwrap_or_default().as_os_str().as_bytes());
            match self.content(path) {
                Ok((stamp, hash)) => {
                    field(stamp.in_words().as_bytes());
                    field(&hash.unwrap_or_default());
                }
                // Which error it is tells a missing file from one that may not be read.
                Err(error) => field(format!("{:?}", error.kind()).as_bytes()),
            }
        }
        hex(&whole.finalize())
    }

    /// The file's stamp, and its hash unless it is no regular file.
    fn content(&self, path: &Path) -> io::Result<(Stamp, Option<[u8; 32]>)> {
        let found = path.metadata()?;
        if !found.is_file() {
            return Ok((found.into(), None));
        }
        // If a pipe took its place meanwhile, nobody has to write to it for this to return.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
        let found = file.metadata()?;
        let (is_hashed, stamp) = (found.is_file() && found.len() <= LARGEST, Stamp::from(found));
        if !is_hashed {
            return Ok((stamp, None));
        }
        if let Some(hash) = self.kept().get(&stamp) {
            return Ok((stamp, Some(*hash)));
        }
        let hash = hash::digest(&file, LARGEST)?;
        // While the file may change again within the same tick, the stamp does not stand for what it says.
        let after = Stamp::from(file.metadata()?);
        if after == stamp && stamp.is_settled(SystemTime::now()) {
            let mut kept = self.kept();
            if kept.len() >= MAX_KEPT {
                kept.clear();
            }
            kept.insert(stamp.clone(), hash);
        }
        Ok((stamp, Some(hash)))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kept().len()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<Stamp, [u8; 32]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
