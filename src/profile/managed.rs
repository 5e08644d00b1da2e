//! When the merge last enforced the policy on each file (DATA_MODEL.md, `managed_on`): `managed.json` in the state
//! directory, an object from the profile's path after every symlink to the time.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{Applied, ApplyError, Target, apply};

/// In the state directory.
const FILE: &str = "managed.json";

/// A holder of the lock writes a small file; one that takes longer than this hangs.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Why the times cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManagedError {
    /// A step failed.
    #[error("{step} {path}: {error}", path = .path.display())]
    Io {
        /// What was tried, such as `write`.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is there and is not what this program writes. It is left as it is.
    #[error("read {path}: it is damaged at line {line}, column {column}; move it away", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
}

/// All times, as they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managed(BTreeMap<String, Timestamp>);

impl Managed {
    /// Reads the file; a missing one says nothing yet.
    pub fn read(state_dir: &Path) -> Result<Self, ManagedError> {
        let path = state_dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(ManagedError::Io { step: "read", path, error }),
        };
        serde_json::from_slice(&bytes).map(Self).map_err(|error| ManagedError::Damaged {
            path,
            line: error.line(),
            column: error.column(),
        })
    }

    /// When the policy was last enforced on the file with this path, as a report gives it.
    pub fn on(&self, profile: &str) -> Option<Timestamp> {
        self.0.get(profile).copied()
    }
}

/// Notes that the policy was enforced on a file. Makes the state directory if it is missing. Programs that do so at
/// the same time wait for each other, for up to 2 s.
pub fn record(state_dir: &Path, profile: &str, at: Timestamp) -> Result<(), ManagedError> {
    let failed = |step, path: &Path| {
        let path = path.to_owned();
        move |error| ManagedError::Io { step, path, error }
    };
    DirBuilder::new().recursive(true).mode(0o755).create(state_dir).map_err(failed("create", state_dir))?;
    let directory = File::open(state_dir).map_err(failed("open", state_dir))?;
    lock(&directory).map_err(failed("lock", state_dir))?;
    let mut managed = Managed::read(state_dir)?;
    managed.0.insert(profile.to_owned(), at);
    let mut text = serde_json::to_vec_pretty(&managed.0)
        .map_err(|error| failed("write", &state_dir.join(FILE))(io::Error::other(error)))?;
    text.push(b'\n');
    // One name is enough under the lock, and what a crash leaves is overwritten.
    let temp = state_dir.join(".managed.json.tmp");
    let replace = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temp)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temp, state_dir.join(FILE))?;
        directory.sync_all()
    };
    replace().map_err(|error| {
        // The error that counts is the first one.
        let _ = fs::remove_file(&temp);
        failed("write", &state_dir.join(FILE))(error)
    })
}

fn lock(directory: &File) -> io::Result<()> {
    let since = Instant::now();
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// [`apply()`], and notes the time of it, also when nothing had to be changed. That the time could not be noted does
/// not undo the merge, so it is a warning beside the result.
pub fn apply_and_record(
    target: Target<'_>,
    state_dir: &Path,
    at: Timestamp,
) -> Result<(Applied, Option<ManagedError>), ApplyError> {
    let applied = apply(target)?;
    let warning = record(state_dir, &super::text::shown_path(&applied.path), at).err();
    Ok((applied, warning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_per_file_and_survive_many_writers() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        assert_eq!(Managed::read(&state).unwrap(), Managed::default());
        thread::scope(|scope| {
            for i in 0..8 {
                let state = &state;
                scope.spawn(move || record(state, &format!("/home/{i}"), Timestamp::from_second(i).unwrap()).unwrap());
            }
        });
        let managed = Managed::read(&state).unwrap();
        for i in 0..8 {
            assert_eq!(managed.on(&format!("/home/{i}")), Some(Timestamp::from_second(i).unwrap()));
        }
        assert_eq!(managed.on("/home/9"), None);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_named_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, "{\n\"/a\": 7}").unwrap();
        let error = record(dir.path(), "/b", Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(matches!(error, ManagedError::Damaged { line: 2, .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\n\"/a\": 7}");
    }
}
