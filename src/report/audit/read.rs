//! Reading the audit log, and checking its chain.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{START, TORN_FIELD, TORN_NAME, Torn, take_apart};
use crate::{hash::sha256, regular};

/// One line of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Counted from 1.
    pub line: u64,
    /// The event's fields, and `prev` and `hash` at the end.
    pub fields: Map<String, Value>,
}

/// Why a line, or the log, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no log.
    #[error(
        "read the audit log: there is none yet at {path}; gate.state_dir names its directory, and worker-gate run begins it"
    )]
    Missing {
        /// Where it would be.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("read the audit log {path} (gate.state_dir)")]
    Io {
        /// The log.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The line is not a JSON object.
    #[error("read line {line} of the audit log {path}: it is not an entry")]
    NotAnEntry {
        /// The log.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
    },
    /// The last line does not end, and is no JSON object. That says nothing against those above it.
    #[error(
        "read the last line, {line}, of the audit log {path}: it is cut off; it is being written, or was when the gate or the \
         machine stopped"
    )]
    CutOff {
        /// The log.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
    },
}

/// The log's entries, oldest first. A line that cannot be read is an error, and the next one follows it.
#[derive(Debug)]
pub struct Entries {
    lines: Lines,
}

/// Opens the log for reading. It takes no lock: a gate may be writing to it.
pub fn read(path: &Path) -> Result<Entries, ReadError> {
    Ok(Entries { lines: Lines::open(path)? })
}

impl Iterator for Entries {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (line, bytes) = match self.lines.next()? {
            Ok(found) => found,
            Err(err) => return Some(Err(err)),
        };
        Some(match serde_json::from_slice(&bytes) {
            Ok(fields) => Ok(Entry { line, fields }),
            Err(_) if !bytes.ends_with(b"\n") => Err(ReadError::CutOff { path: self.lines.path.clone(), line }),
            Err(_) => Err(ReadError::NotAnEntry { path: self.lines.path.clone(), line }),
        })
    }
}

/// What a whole log says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// How many lines.
    pub lines: u64,
    /// `seq` of the first line. Above 1 if unaudited events came first, or if an earlier log was moved away.
    pub first_seq: Option<u64>,
    /// `seq` of the last line.
    pub last_seq: Option<u64>,
    /// The last line's hash, to be compared with `audit_hash` of the newest published event.
    pub head: String,
    /// The lines that tell of an end of the log that was set aside before them.
    pub after_torn: Vec<u64>,
}

/// Where and how the chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} {why}")]
pub struct Broken {
    /// The first line that does not hold, counted from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: Why,
}

/// What can be wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It does not end with a line feed: it was being written when the machine stopped, or it is being written now.
    CutOff,
    /// It does not have the form of an entry.
    NotAnEntry,
    /// Its bytes are not those that its hash was made from.
    Edited,
    /// Its `prev` is not the hash of the line above.
    DoesNotFollow,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CutOff => "is cut off: it has no line end",
            Self::NotAnEntry => "is not an entry of the log",
            Self::Edited => "was edited: its bytes do not give its hash",
            Self::DoesNotFollow => {
                "does not follow the line above: something was deleted, inserted or moved between the two"
            }
        })
    }
}

/// Why a log is not, or could not be, verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read at all.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    /// It was read, and its chain does not hold.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Follows the chain from the first line to the last, and stops at the first line that does not hold.
pub fn verify(path: &Path) -> Result<Summary, VerifyError> {
    let mut summary =
        Summary { lines: 0, first_seq: None, last_seq: None, head: START.to_owned(), after_torn: Vec::new() };
    for found in Lines::open(path)? {
        let (line, bytes) = found?;
        let broken = |why| Broken { line, why };
        let bytes = bytes.strip_suffix(b"\n").ok_or(broken(Why::CutOff))?;
        let parts = take_apart(bytes).ok_or(broken(Why::NotAnEntry))?;
        if sha256(parts.hashed) != parts.hash {
            return Err(broken(Why::Edited).into());
        }
        if parts.prev != summary.head {
            return Err(broken(Why::DoesNotFollow).into());
        }
        let fields: Map<String, Value> = serde_json::from_slice(bytes).map_err(|_| broken(Why::NotAnEntry))?;
        summary.lines = line;
        summary.last_seq = fields.get("seq").and_then(Value::as_u64);
        summary.first_seq = summary.first_seq.or(summary.last_seq);
        if fields.contains_key(TORN_FIELD) {
            summary.after_torn.push(line);
        }
        parts.hash.clone_into(&mut summary.head);
    }
    Ok(summary)
}

/// What was set aside beside this log and is still there, oldest first.
///
/// # Errors
/// When the log's directory cannot be listed.
pub fn torn(log: &Path) -> io::Result<Vec<Torn>> {
    let mut found = Vec::new();
    for entry in log.parent().unwrap_or(Path::new(".")).read_dir()? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(TORN_NAME.as_bytes()) {
            found.push(Torn { path: entry.path(), bytes: entry.metadata()?.len() });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Lines as bytes, each with its line feed, numbered from 1.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    line: u64,
    failed: bool,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, ReadError> {
        let path = path.to_owned();
        match regular::open(&path) {
            Ok(file) => Ok(Self { path, file: BufReader::new(file), line: 0, failed: false }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ReadError::Missing { path }),
            Err(source) => Err(ReadError::Io { path, source }),
        }
    }
}

impl Iterator for Lines {
    type Item = Result<(u64, Vec<u8>), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        // A disk that fails to read would fail for ever.
        if self.failed {
            return None;
        }
        let mut bytes = Vec::new();
        match self.file.read_until(b'\n', &mut bytes) {
            Ok(0) => None,
            Ok(_) => {
                self.line += 1;
                Some(Ok((self.line, bytes)))
            }
            Err(source) => {
                self.failed = true;
                Some(Err(ReadError::Io { path: self.path.clone(), source }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_or_a_device_in_the_logs_place_is_no_log_and_nobody_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&pipe, Path::new("/dev/zero")] {
            assert!(matches!(verify(path).unwrap_err(), VerifyError::Unreadable(ReadError::Io { .. })));
            assert!(read(path).is_err());
        }
    }
}
