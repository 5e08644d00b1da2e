//! Writing the audit log.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::fcntl::OFlag;
use serde_json::{Map, Value, json};

use super::{FILE_NAME, START, TORN_FIELD, TORN_NAME, seal, take_apart};

/// How many facts wait in memory while the disk refuses them; about 8 MiB at 2 KiB a fact. A gate with ten workers that
/// all flap once a minute fills it in some six hours, by when somebody has read `/healthz`.
const UNWRITTEN: usize = 4096;

/// So many lines are written and synced in one go. A disk takes as long for them as for one.
const TOGETHER: usize = 64;

/// Whoever may read the log's group may read the log: a log shipper, for one.
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// Why the audit log cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Another gate has it.
    #[error(
        "take {dir}: another gate is using it ({holder}); stop that one, or give this gate a directory of its own in \
         gate.state_dir"
    )]
    InUse {
        /// `gate.state_dir`
        dir: PathBuf,
        /// The other gate's process id, as it wrote it.
        holder: String,
    },
    /// Something other than a plain file is in the log's place.
    #[error("write the audit log {path}: it is not a plain file; move it away")]
    NotAFile {
        /// The log.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{what} {path} (gate.state_dir: is the disk full or read-only?)")]
    Io {
        /// What was tried, as in "write the audit log".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// `seq` of the last line; 0 in a new log.
    pub last_seq: u64,
    /// What stood after the last whole line and was set aside.
    pub torn: Option<Torn>,
}

/// The end of a log that was being written when the machine or the gate stopped, or that somebody else wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Where it was put.
    pub path: PathBuf,
    /// How long it is, in bytes.
    pub bytes: u64,
}

/// The log of one gate. While the value lives, no other gate can open a log in the same directory.
#[derive(Debug)]
pub struct AuditLog {
    dir: PathBuf,
    lock: Option<File>,
    /// `None` until it is open, and again after an error that leaves its end unknown.
    tail: Option<Tail>,
    unwritten: VecDeque<String>,
    dropped: u64,
    /// What was set aside and no line tells of yet.
    untold: Vec<Torn>,
}

/// The open file, and where it ends.
#[derive(Debug)]
struct Tail {
    file: File,
    len: u64,
    head: String,
}

impl AuditLog {
    /// A log in this directory, not opened yet.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.to_owned(),
            lock: None,
            tail: None,
            unwritten: VecDeque::new(),
            dropped: 0,
            untold: Vec::new(),
        }
    }

    /// Where the log is.
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// Whether lines can be written, as far as is known.
    pub fn is_open(&self) -> bool {
        self.tail.is_some()
    }

    /// The hash of the last line that is on the disk; `None` while the log is not open.
    pub fn head(&self) -> Option<&str> {
        self.tail.as_ref().map(|tail| tail.head.as_str())
    }

    /// How many facts wait for the disk, and how many had to be given up because too many waited.
    pub fn backlog(&self) -> (usize, u64) {
        (self.unwritten.len(), self.dropped)
    }

    /// `seq` of the last line, as far as it can be read without taking the directory or changing anything.
    pub fn last_seq(&self) -> Option<u64> {
        let mut open = OpenOptions::new();
        open.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
        let mut file = open.open(self.path()).ok().filter(|file| file.metadata().is_ok_and(|it| it.is_file()))?;
        find_end(&mut file).ok().map(|end| end.last_seq)
    }

    /// Takes the directory (made if it is missing) and continues the chain from the log's last whole line. What stands after that
    /// is set aside; the program's log says so, and so does the next line, since the chain itself will be whole again.
    pub fn open(&mut self) -> Result<Opened, AuditError> {
        if self.lock.is_none() {
            self.lock = Some(take(&self.dir)?);
        }
        let path = self.path();
        let io = |what, source| AuditError::Io { what, path: path.clone(), source };
        let opened = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(FILE_MODE)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path);
        let mut file = opened.map_err(|source| io("open the audit log", source))?;
        if !file.metadata().map_err(|source| io("look at the audit log", source))?.is_file() {
            return Err(AuditError::NotAFile { path });
        }
        sync_dir(&self.dir)?;
        let end = find_end(&mut file).map_err(|source| io("read the audit log", source))?;
        let torn = match end.torn.len() {
            0 => None,
            _ => Some(self.set_aside(&file, &end)?),
        };
        if let Some(torn) = &torn {
            tracing::warn!(
                bytes = torn.bytes,
                copy = %torn.path.display(),
                "the audit log did not end with a whole line of its own; that end was set aside: unless the gate or the machine was \
                 killed while it wrote, somebody else wrote to the log"
            );
            self.untold.push(torn.clone());
        }
        self.tail = Some(Tail { file, len: end.len, head: end.head });
        Ok(Opened { last_seq: end.last_seq, torn })
    }

    /// Writes events, each a JSON object on one line, and waits until the disk has them.
    ///
    /// After an error they wait in memory, and go to the disk in their turn with a later call.
    pub fn append(&mut self, events: impl IntoIterator<Item = String>) -> Result<(), AuditError> {
        for event in events {
            if self.unwritten.len() >= UNWRITTEN {
                self.unwritten.pop_front();
                self.dropped = self.dropped.saturating_add(1);
            }
            self.unwritten.push_back(event);
        }
        self.write_waiting()
    }

    /// Writes what an earlier error left waiting; opens the log if that is needed.
    pub fn write_waiting(&mut self) -> Result<(), AuditError> {
        if let Some(tail) = &self.tail
            && !tail.is_at(&self.path())
        {
            tracing::error!(log = %self.path().display(), "the audit log was moved, cut or written to by somebody else");
            self.tail = None;
        }
        if self.tail.is_none() {
            self.open()?;
        }
        while let Some(tail) = &mut self.tail
            && !self.unwritten.is_empty()
        {
            let (mut lines, mut head) = (String::new(), tail.head.clone());
            let together = self.unwritten.len().min(TOGETHER);
            for (index, event) in self.unwritten.range(..together).enumerate() {
                let untold = if index == 0 { self.untold.as_slice() } else { &[] };
                let (line, hash) = seal(&with_torn(event, untold), &head);
                lines.push_str(&line);
                head = hash;
            }
            if let Err(source) = tail.write(&lines) {
                // A part of the lines may be in the file. Without it the chain is whole and the next line can follow;
                // if it cannot be cut off either, opening again sets it aside.
                if tail.file.set_len(tail.len).is_err() {
                    self.tail = None;
                }
                return Err(AuditError::Io { what: "write the audit log", path: self.path(), source });
            }
            tail.len += lines.len() as u64;
            tail.head = head;
            self.untold.clear();
            self.unwritten.drain(..together);
        }
        Ok(())
    }

    /// Copies a torn end to a file of its own, and only then cuts it off.
    fn set_aside(&self, log: &File, end: &End) -> Result<Torn, AuditError> {
        let path = self.dir.join(format!("{TORN_NAME}{}", Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ")));
        let io = |what, source| AuditError::Io { what, path: path.clone(), source };
        let copy = || -> io::Result<()> {
            let mut copy = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path)?;
            copy.write_all(&end.torn).and_then(|()| copy.sync_all()).inspect_err(|_| {
                // Half a copy would be one more thing to explain; the original is still in the log.
                _ = fs::remove_file(&path);
            })
        };
        copy().map_err(|source| io("set the torn end of the audit log aside in", source))?;
        sync_dir(&self.dir)?;
        log.set_len(end.len)
            .and_then(|()| log.sync_data())
            .map_err(|source| io("cut off what was copied to", source))?;
        Ok(Torn { path, bytes: end.torn.len() as u64 })
    }
}

impl Tail {
    fn write(&mut self, lines: &str) -> io::Result<()> {
        self.file.write_all(lines.as_bytes())?;
        self.file.sync_data()
    }

    /// Whether the open file is the one at `path` and ends where we left it. A log that was moved away would otherwise
    /// be written to for ever, and nobody would find the lines.
    fn is_at(&self, path: &Path) -> bool {
        match (self.file.metadata(), fs::symlink_metadata(path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino(), ours.len()) == (there.dev(), there.ino(), self.len),
            _ => false,
        }
    }
}

/// The event, and what was set aside before it.
fn with_torn<'a>(event: &'a str, torn: &[Torn]) -> Cow<'a, str> {
    if torn.is_empty() {
        return event.into();
    }
    let name = |torn: &Torn| torn.path.file_name().map(|name| name.to_string_lossy().into_owned());
    let told: Value = torn.iter().map(|torn| json!({"file": name(torn), "bytes": torn.bytes})).collect();
    format!("{},\"{TORN_FIELD}\":{told}}}", event.strip_suffix('}').unwrap_or(event)).into()
}

/// Makes the directory and locks it. The lock is on a file of its own, so that it holds whatever happens to the log.
fn take(dir: &Path) -> Result<File, AuditError> {
    let made = DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir);
    made.map_err(|source| AuditError::Io { what: "make the directory", path: dir.to_owned(), source })?;
    let path = dir.join("gate.lock");
    let io = |source| AuditError::Io { what: "lock", path: path.clone(), source };
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path);
    let mut file = opened.map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            _ = file.take(64).read_to_string(&mut holder);
            return Err(AuditError::InUse { dir: dir.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    // The lock is what counts; the number in the file only helps the reader of the other gate's error.
    _ = file.set_len(0).and_then(|()| writeln!(file, "pid {}", std::process::id()));
    Ok(file)
}

fn sync_dir(dir: &Path) -> Result<(), AuditError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| AuditError::Io { what: "sync the directory", path: dir.to_owned(), source })
}

/// Where a log ends.
#[derive(Debug)]
struct End {
    /// Up to and with the last whole line's line feed.
    len: u64,
    head: String,
    last_seq: u64,
    /// What stands after that.
    torn: Vec<u8>,
}

/// Looks for the last whole line from the file's end, in a window that grows until one is in it.
///
/// A line that has the form of an entry is whole even if its hash does not fit its bytes: an edited line is evidence for
/// `audit --verify`, not a torn write to be tidied away.
fn find_end(file: &mut File) -> io::Result<End> {
    let size = file.metadata()?.len();
    let mut window = 64 * 1024;
    loop {
        let from = size.saturating_sub(window);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(size - from).read_to_end(&mut bytes)?;
        // The window may begin in the middle of a line; only what comes after the first line end is known to be lines.
        let mut start = match from {
            0 => 0,
            _ => bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1),
        };
        let mut last = None;
        while let Some(length) = bytes[start..].iter().position(|byte| *byte == b'\n') {
            let end = start + length + 1;
            last = entry(&bytes[start..end - 1]).map(|entry| (end, entry)).or(last);
            start = end;
        }
        match last {
            Some((end, (head, last_seq))) => {
                let torn = bytes.split_off(end);
                return Ok(End { len: from + end as u64, head, last_seq, torn });
            }
            None if from == 0 => return Ok(End { len: 0, head: START.to_owned(), last_seq: 0, torn: bytes }),
            None => window = window.saturating_mul(4),
        }
    }
}

/// Hash and `seq` of a line that has the form of an entry.
fn entry(line: &[u8]) -> Option<(String, u64)> {
    let hash = take_apart(line)?.hash;
    let fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
    Some((hash.to_owned(), fields.get("seq")?.as_u64()?))
}
