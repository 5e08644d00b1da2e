//! `worker-gate audit`: what happened, and whether the record of it is whole.

use std::{
    io::{self, Write},
    path::Path,
};

use serde_json::Value;

use super::{
    Exit, exit,
    line::{line, text, time, word},
    out,
};
use crate::report::audit::{self, Entry, ReadError, Summary, Torn, VerifyError};

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

pub(super) fn exit_of(error: &ReadError) -> Exit {
    match error {
        ReadError::Missing { .. } => Exit::Settings,
        error if exit::is_denied(error) => Exit::NotPermitted,
        ReadError::Io { .. } | ReadError::NotAnEntry { .. } | ReadError::CutOff { .. } => Exit::Internal,
    }
}

/// The log's entries. A last line that is cut off is told on standard error, and is none of them.
fn entries(path: &Path) -> Result<impl Iterator<Item = Result<Entry, ReadError>>, ReadError> {
    Ok(audit::read(path)?.filter(|entry| {
        let Err(error @ ReadError::CutOff { .. }) = entry else { return true };
        out::error(&format!("worker-gate: failed to {error}"));
        false
    }))
}

/// Writes one line per fact, oldest first; with `worker`, only those of this worker.
///
/// # Errors
/// At the first line that is no entry: what follows it would be told without what came before.
pub fn list(path: &Path, worker: Option<&str>, out: &mut dyn Write) -> Result<(), AuditCommandError> {
    for entry in entries(path)? {
        let fields = entry?.fields;
        if worker.is_none_or(|worker| fields.get("worker_name").and_then(Value::as_str) == Some(worker)) {
            writeln!(out, "{}", line(&fields))?;
        }
    }
    Ok(())
}

/// Writes one line for each task that a worker had started or prefetched when it was quarantined, or that had ended since the last
/// good evidence, oldest quarantine first; with `worker`, only those of this worker. Where it is not known what the worker had, a
/// line says why.
///
/// # Errors
/// At the first line that is no entry.
pub fn exposed(path: &Path, worker: Option<&str>, out: &mut dyn Write) -> Result<(), AuditCommandError> {
    for entry in entries(path)? {
        let fields = entry?.fields;
        let is_meant = worker.is_none_or(|worker| fields.get("worker_name").and_then(Value::as_str) == Some(worker));
        let Some(exposed) = fields.get("exposed").filter(|_| is_meant) else { continue };
        let reason = fields.get("reason").and_then(Value::as_object);
        let code = reason.map_or_else(|| "-".to_owned(), |reason| text(reason, "code"));
        let head = format!("{}  {}  {code}", time(&fields), text(&fields, "worker_name"));
        for task in exposed.get("tasks").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object) {
            let [id, name, started, ended, since] =
                ["id", "name", "started_at", "ended_at", "since"].map(|field| text(task, field));
            let is_active = task.get("active") == Some(&Value::Bool(true));
            let state = match (is_active, started.as_str()) {
                (true, _) => "running",
                (false, "-") => "waiting",
                (false, _) => "over",
            };
            let ended = if state == "over" { format!("  ended {ended}") } else { String::new() };
            writeln!(out, "{head}  {state}  {id}  {name}  started {started}{ended}  {}", doubt(&since))?;
        }
        for (field, what) in [("unknown", "unknown"), ("ended_unknown", "what had ended is unknown")] {
            if let Some(why) = exposed.get(field) {
                writeln!(out, "{head}  {what}: {}", word(why))?;
            }
        }
    }
    Ok(())
}

/// Since when a task is in doubt, for people.
fn doubt(since: &str) -> &'static str {
    match since {
        "before" => "before the last good evidence",
        "evidence" => "since the last good evidence",
        _ => "since the drift was seen",
    }
}

/// Follows the hash chain and says what was found. `Ok(true)` if it holds (exit code 0), `Ok(false)` if not (1). What gates have
/// set aside is named in either case: without it the chain is whole again, also where it was not a power cut that tore the log.
///
/// # Errors
/// When the log cannot be read.
pub fn verify(path: &Path, out: &mut dyn Write) -> Result<bool, AuditCommandError> {
    let is_whole = follow(path, out)?;
    match audit::torn(path) {
        Ok(torn) => {
            for Torn { path, bytes } in torn {
                writeln!(
                    out,
                    "{}: set aside, {bytes} bytes that stood at the log's end and were no line of it",
                    path.display()
                )?;
            }
        }
        Err(error) => writeln!(out, "whether something was set aside beside it cannot be seen: {error}")?,
    }
    Ok(is_whole)
}

fn follow(path: &Path, out: &mut dyn Write) -> Result<bool, AuditCommandError> {
    match audit::verify(path) {
        Ok(Summary { lines: 0, .. }) => writeln!(out, "{}: empty", path.display())?,
        Ok(Summary { lines, first_seq, last_seq, head, after_torn }) => {
            let seq = |seq: Option<u64>| seq.map_or_else(|| "?".to_owned(), |seq| seq.to_string());
            let (first, last) = (seq(first_seq), seq(last_seq));
            writeln!(out, "{}: whole, {lines} facts, seq {first} to {last}", path.display())?;
            writeln!(out, "head {head}")?;
            for line in after_torn {
                writeln!(out, "Before line {line} stood something else, which was set aside (audit_torn).")?;
            }
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
    fn every_exposed_task_is_one_line_with_its_id_its_start_and_why_it_is_in_doubt() {
        let (_dir, path) = log();
        let entry = |worker: &str, exposed: &str| {
            format!(
                r#"{{"worker_name":"{worker}","timestamp":1795341600.25,"reason":{{"code":"profile_drifted"}},"exposed":{exposed}}}"#
            )
        };
        let tasks = r#"{"tasks":[{"id":"7f","name":"app.build","active":true,"started_at":"2026-11-22T09:59:58Z","since":"evidence"},
            {"id":"80","name":"app.build","active":false,"started_at":null,"since":"drift"},
            {"id":"81","name":"app.test","active":false,"started_at":"2026-11-22T09:59:57Z","ended_at":"2026-11-22T09:59:59Z","since":"evidence"}],
            "ended_unknown":"too many"}"#;
        let tasks = tasks.replace('\n', "");
        let lines = [entry("codex-0", &tasks), entry("codex-1", r#"{"unknown":"no answer"}"#)].join("\n");
        fs::write(&path, fs::read_to_string(&path).unwrap() + &lines + "\n").unwrap();
        let told = |worker| {
            let mut out = Vec::new();
            exposed(&path, worker, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let head = "2026-11-22T10:00:00.250Z  codex-0  profile_drifted";
        let expected = format!(
            "{head}  running  7f  app.build  started 2026-11-22T09:59:58Z  since the last good evidence\n\
             {head}  waiting  80  app.build  started -  since the drift was seen\n\
             {head}  over  81  app.test  started 2026-11-22T09:59:57Z  ended 2026-11-22T09:59:59Z  since the last good evidence\n\
             {head}  what had ended is unknown: too many\n"
        );
        assert_eq!(told(Some("codex-0")), expected);
        assert!(told(None).ends_with("codex-1  profile_drifted  unknown: no answer\n"), "{}", told(None));
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
    fn verify_names_what_was_set_aside_with_its_size() {
        let (dir, path) = log();
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}who\nwas here\n")).unwrap();
        Scribe::open(dir.path(), "g").unwrap().write(&[fact(FactKind::GateOnline, None, true)]);
        let mut out = Vec::new();
        assert!(verify(&path, &mut out).unwrap());
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("whole, 4 facts") && out.contains("\nBefore line 4 stood something else"), "{out}");
        let last = out.lines().last().unwrap();
        assert!(last.contains("/audit.torn-2") && last.contains(": set aside, 13 bytes that stood"), "{out}");
    }

    #[test]
    fn a_log_that_is_not_there_is_an_error_that_names_the_setting() {
        let err = verify(Path::new("/nonexistent/audit.jsonl"), &mut Vec::new()).unwrap_err();
        assert!(err.to_string().contains("none yet at /nonexistent/audit.jsonl; gate.state_dir names"), "{err}");
    }

    #[test]
    fn a_last_line_that_is_cut_off_keeps_nobody_from_those_above_it() {
        let (_dir, path) = log();
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 40]).unwrap();
        assert_eq!(told(&path, None).lines().count(), 2);
        fs::write(&path, whole.replacen('"', "", 1)).unwrap();
        assert!(list(&path, None, &mut Vec::new()).is_err(), "any other line is needed");
    }
}
