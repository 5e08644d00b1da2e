//! `worker-gate audit`: what happened, and whether the record of it is whole.

use std::{
    io::{self, Write},
    path::Path,
};

use serde_json::Value;

use super::line::line;
use crate::report::audit::{self, ReadError, Summary, VerifyError};

/// Why the audit log cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum AuditCommandError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Nobody takes the output. Of the kind `BrokenPipe` when its reader has gone, which is no failure.
    #[error("write the output")]
    Output(#[from] io::Error),
}

/// Writes one line per fact, oldest first; with `worker`, only those of this worker.
///
/// # Errors
/// At the first line that is no entry: what follows it would be told without what came before.
pub fn list(path: &Path, worker: Option<&str>, out: &mut dyn Write) -> Result<(), AuditCommandError> {
    for entry in audit::read(path)? {
        let fields = entry?.fields;
        if worker.is_none_or(|worker| fields.get("worker_name").and_then(Value::as_str) == Some(worker)) {
            writeln!(out, "{}", line(&fields))?;
        }
    }
    Ok(())
}

/// Follows the hash chain and says what was found. `Ok(true)` if it holds (exit code 0), `Ok(false)` if not (1).
///
/// # Errors
/// When the log cannot be read.
pub fn verify(path: &Path, out: &mut dyn Write) -> Result<bool, AuditCommandError> {
    match audit::verify(path) {
        Ok(Summary { lines: 0, .. }) => writeln!(out, "{}: empty", path.display())?,
        Ok(Summary { lines, first_seq, last_seq, head }) => {
            let seq = |seq: Option<u64>| seq.map_or_else(|| "?".to_owned(), |seq| seq.to_string());
            let (first, last) = (seq(first_seq), seq(last_seq));
            writeln!(out, "{}: whole, {lines} facts, seq {first} to {last}", path.display())?;
            writeln!(out, "head {head}")?;
            writeln!(out, "The end is whole if the newest published event carries this head in audit_hash.")?;
        }
        Err(VerifyError::Broken(broken)) => {
            writeln!(out, "{}: broken, {broken}", path.display())?;
            return Ok(false);
        }
        Err(VerifyError::Unreadable(err)) => return Err(err.into()),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::{
        model::FactKind,
        report::{audit::FILE_NAME, event::tests::fact, outbox::Scribe},
    };

    fn log() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let mut scribe = Scribe::open(dir.path(), "g").unwrap();
        scribe.write(&[fact(FactKind::GateOnline, None, true)]);
        scribe.write(&[fact(FactKind::WorkerAdmitted, Some("codex-0"), true)]);
        scribe.write(&[fact(FactKind::WorkerAdmitted, Some("codex-1"), true)]);
        let path = dir.path().join(FILE_NAME);
        (dir, path)
    }

    fn told(path: &Path, worker: Option<&str>) -> String {
        let mut out = Vec::new();
        list(path, worker, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn facts_are_listed_for_all_or_for_one_worker() {
        let (_dir, path) = log();
        assert_eq!(told(&path, None).lines().count(), 3);
        let one = told(&path, Some("codex-1"));
        let expected = "2026-11-22T10:00:00.250Z  worker-admitted         codex-1  admitted/open  \
            fit: every required check passed\n";
        assert_eq!(one, expected);
        assert_eq!(told(&path, Some("codex")), "", "the name is not a prefix");
    }

    #[test]
    fn verify_says_whole_or_names_the_broken_line() {
        let (_dir, path) = log();
        let mut out = Vec::new();
        assert!(verify(&path, &mut out).unwrap());
        assert!(String::from_utf8(out).unwrap().contains("whole, 3 facts, seq 1 to 3\nhead "));

        fs::write(&path, fs::read_to_string(&path).unwrap().replace("codex-0", "codex-7")).unwrap();
        let mut out = Vec::new();
        assert!(!verify(&path, &mut out).unwrap());
        let expected = format!("{}: broken, line 2 was edited: its bytes do not give its hash\n", path.display());
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_log_that_is_not_there_is_an_error_that_names_the_setting() {
        let err = verify(Path::new("/nonexistent/audit.jsonl"), &mut Vec::new()).unwrap_err();
        assert!(err.to_string().contains("gate.state_dir"), "{err}");
    }
}
