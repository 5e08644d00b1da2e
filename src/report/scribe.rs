//! Stamps facts and writes them down: everything that waits for a disk, on a thread of its own.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::{
    audit::{AuditError, AuditLog},
    event::{Event, Stamper},
};
use crate::{chain::chain, model::Fact};

/// Holds the newest `seq` of an event that is not in the audit log: 20 digits and a line feed, overwritten in place.
const SEQ_FILE: &str = "seq";

/// The gate's own memory of what it said.
#[derive(Debug)]
pub struct Scribe {
    stamper: Stamper,
    log: AuditLog,
    seq: SeqFile,
    /// What the disk said last, if it was not "done".
    cause: Option<String>,
    /// The same with the number of facts that wait for it.
    problem: Option<String>,
}

impl Scribe {
    /// Takes `state_dir` for the gate of this name and goes on with its sequence and its audit log.
    ///
    /// Only a directory that another gate is using is an error. A disk that is full or read-only must not keep a gate
    /// from guarding: it is logged, stands in [`Scribe::problem`], and is tried again with each fact.
    pub fn open(state_dir: &Path, gate: &str) -> Result<Self, AuditError> {
        let log = AuditLog::new(state_dir);
        let seq = SeqFile { path: state_dir.join(SEQ_FILE), file: None };
        let mut scribe = Self { stamper: Stamper::new(gate), log, seq, cause: None, problem: None };
        match scribe.resume() {
            Err(err @ AuditError::InUse { .. }) => Err(err),
            result => {
                scribe.tell(result.err().as_ref());
                Ok(scribe)
            }
        }
    }

    /// What keeps the audit log from being written, as a sentence; `None` when all is written.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// How many facts wait for the disk.
    pub fn unwritten(&self) -> usize {
        self.log.backlog().0
    }

    /// Leaves a hole in the sequence for facts that never got here.
    pub fn skip(&mut self, facts: u64) {
        self.stamper.skip(facts);
    }

    /// Stamps facts and writes them down together: each is on the disk before any of them is told. The events are there even
    /// if the disk refuses them; they then say so themselves, in `audit_problem`, where they would otherwise have the chain's
    /// newest hash in `audit_hash`.
    pub fn write(&mut self, facts: &[Fact]) -> Vec<Event> {
        let opened = if self.log.is_open() { Ok(()) } else { self.resume() };
        let mut events: Vec<_> = facts.iter().map(|fact| self.stamper.stamp(fact)).collect();
        let audited = events.iter().zip(facts).filter(|(_, fact)| fact.audited).map(|(event, _)| event.to_json());
        let mut written = self.log.append(audited);
        // The log itself holds the number of an event that is in it.
        if let Some((event, _)) = events.iter().zip(facts).rfind(|(_, fact)| !fact.audited) {
            written = written.and(opened).and_then(|()| self.seq.write(event.seq()));
        }
        self.tell(written.as_ref().err());
        for event in &mut events {
            match (&self.problem, self.log.head()) {
                (Some(problem), _) => event.set("audit_problem", problem.as_str()),
                (None, Some(head)) => event.set("audit_hash", head),
                (None, None) => {}
            }
        }
        events
    }

    fn resume(&mut self) -> Result<(), AuditError> {
        // First what can be read: on a disk that is read-only the sequence goes on all the same.
        self.stamper.resume_after(self.seq.read());
        self.stamper.resume_after(self.log.last_seq().unwrap_or_default());
        let opened = self.log.open()?;
        self.stamper.resume_after(opened.last_seq);
        Ok(())
    }

    fn tell(&mut self, err: Option<&AuditError>) {
        let cause = err.map(|err| format!("failed to {}", chain(err)));
        match &cause {
            // A full disk is one loud line, and not one per heartbeat.
            Some(cause) if self.cause.as_ref() != Some(cause) => {
                tracing::error!("{cause}; the gate goes on guarding and tries again with each fact");
            }
            None if self.cause.is_some() => tracing::info!("the audit log is written again"),
            Some(_) | None => {}
        }
        self.problem = cause.as_ref().map(|cause| match self.log.backlog() {
            (0, 0) => cause.clone(),
            (waiting, 0) => format!("{cause}; facts that wait for the disk: {waiting}"),
            (waiting, dropped) => format!("{cause}; facts that wait for the disk: {waiting}, given up: {dropped}"),
        });
        self.cause = cause;
    }
}

/// Without it the `seq` of a heartbeat would be given out again after a restart, and a subscriber could not tell a
/// restart from a lost event.
#[derive(Debug)]
struct SeqFile {
    path: PathBuf,
    file: Option<File>,
}

impl SeqFile {
    /// The number in the file; 0 if there is none or it cannot be read.
    fn read(&self) -> u64 {
        std::fs::read_to_string(&self.path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }

    fn write(&mut self, seq: u64) -> Result<(), AuditError> {
        let written = self.try_write(seq);
        if written.is_err() {
            self.file = None;
        }
        written.map_err(|source| AuditError::Io { what: "write", path: self.path.clone(), source })
    }

    fn try_write(&mut self, seq: u64) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o640)
                .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
                .open(&self.path)?,
        };
        // One write of a fixed length into one block: it is the old number or the new one. Nobody waits for the disk, every 5 s and for
        // each check, so that a power cut may have the numbers of the last half minute given out again, with other ids.
        self.file.insert(file).write_all_at(format!("{seq:020}\n").as_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::*;
    use crate::{
        model::FactKind,
        report::{
            audit::{FILE_NAME, verify},
            event::tests::fact,
        },
    };

    fn audited() -> Fact {
        fact(FactKind::WorkerAdmitted, Some("codex-0"), true)
    }

    fn heartbeat() -> Fact {
        fact(FactKind::GateHeartbeat, None, false)
    }

    fn write(scribe: &mut Scribe, fact: Fact) -> Event {
        scribe.write(&[fact]).remove(0)
    }

    #[test]
    fn facts_that_are_written_together_keep_their_order_in_the_sequence_and_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut scribe = Scribe::open(dir.path(), "g").unwrap();
        let facts: Vec<_> = (0..200).map(|n| if n % 3 == 0 { audited() } else { heartbeat() }).collect();
        let seqs: Vec<_> = scribe.write(&facts).iter().map(Event::seq).collect();
        assert_eq!(seqs, (1..=200).collect::<Vec<_>>());
        let summary = verify(&dir.path().join(FILE_NAME)).unwrap();
        assert_eq!((summary.lines, summary.last_seq), (67, Some(199)));
        drop(scribe);
        assert_eq!(write(&mut Scribe::open(dir.path(), "g").unwrap(), audited()).seq(), 201);
    }

    #[test]
    fn the_sequence_goes_on_over_a_restart_through_audited_and_unaudited_events() {
        let dir = tempfile::tempdir().unwrap();
        let mut scribe = Scribe::open(dir.path(), "g").unwrap();
        let seqs = [audited(), heartbeat(), heartbeat()].map(|fact| write(&mut scribe, fact).seq());
        drop(scribe);
        assert_eq!(seqs, [1, 2, 3]);

        let mut scribe = Scribe::open(dir.path(), "g").unwrap();
        assert_eq!([audited(), audited()].map(|fact| write(&mut scribe, fact).seq()), [4, 5]);
        drop(scribe);

        assert_eq!(write(&mut Scribe::open(dir.path(), "g").unwrap(), heartbeat()).seq(), 6);
    }

    #[test]
    fn the_sequence_goes_on_where_the_directory_can_be_read_and_not_be_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut scribe = Scribe::open(dir.path(), "g").unwrap();
        let seqs = [heartbeat(), audited(), audited()].map(|fact| write(&mut scribe, fact).seq());
        drop(scribe);
        assert_eq!(seqs, [1, 2, 3]);
        let lock = dir.path().join("gate.lock");
        fs::remove_file(&lock).unwrap();
        fs::create_dir(&lock).unwrap();

        let mut scribe = Scribe::open(dir.path(), "g").unwrap();
        assert!(scribe.problem().is_some());
        assert_eq!(write(&mut scribe, audited()).seq(), 4);
        fs::remove_dir(&lock).unwrap();
        assert_eq!(write(&mut scribe, audited()).seq(), 5);
        assert_eq!(verify(&dir.path().join(FILE_NAME)).unwrap().last_seq, Some(5));
    }

    #[test]
    fn every_event_bears_witness_of_the_chains_newest_hash_and_unaudited_ones_are_not_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut scribe = Scribe::open(dir.path(), "g").unwrap();
        let first = write(&mut scribe, audited());
        let beat = write(&mut scribe, heartbeat());
        let summary = verify(&dir.path().join(FILE_NAME)).unwrap();
        assert_eq!(summary.lines, 1);
        assert_eq!(first.fields()["audit_hash"], summary.head);
        assert_eq!(beat.fields()["audit_hash"], summary.head);
    }

    #[test]
    fn an_end_of_the_log_that_is_no_line_of_it_is_told_at_the_start_and_in_the_first_line_after_it() {
        let dir = tempfile::tempdir().unwrap();
        write(&mut Scribe::open(dir.path(), "g").unwrap(), audited());
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, fs::read_to_string(&path).unwrap() + "who\nwas\nhere\n").unwrap();

        let told = dir.path().join("told");
        let writer = Arc::new(File::create(&told).unwrap());
        let logging = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).finish();
        let mut scribe = tracing::subscriber::with_default(logging, || Scribe::open(dir.path(), "g").unwrap());
        let told = fs::read_to_string(told).unwrap();
        assert!(told.contains("WARN") && told.contains("audit.torn-") && told.contains("bytes=13"), "{told}");
        write(&mut scribe, audited());
        assert_eq!(verify(&path).unwrap().after_torn, [2]);
    }

    #[test]
    fn a_directory_that_another_gate_uses_is_refused_by_name_and_process() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Scribe::open(dir.path(), "g").unwrap();
        let err = Scribe::open(dir.path(), "h").unwrap_err().to_string();
        let expected = format!("take {}: another gate is using it (pid {});", dir.path().display(), std::process::id());
        assert!(err.starts_with(&expected), "{err}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_a_problem_that_every_event_tells_until_it_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::write(&state, "a file in the directory's place").unwrap();
        let mut scribe = Scribe::open(&state, "g").unwrap();
        assert!(scribe.problem().unwrap().starts_with("failed to make the directory"), "{:?}", scribe.problem());

        let event = write(&mut scribe, audited());
        let problem = event.fields()["audit_problem"].as_str().unwrap();
        assert!(
            problem.contains("gate.state_dir") && problem.ends_with("; facts that wait for the disk: 1"),
            "{problem}"
        );
        assert!(!event.fields().contains_key("audit_hash"));
        assert!(write(&mut scribe, heartbeat()).fields().contains_key("audit_problem"));

        fs::remove_file(&state).unwrap();
        let event = write(&mut scribe, heartbeat());
        assert_eq!(scribe.problem(), None);
        let summary = verify(&state.join(FILE_NAME)).unwrap();
        assert_eq!((summary.lines, summary.last_seq), (1, Some(1)), "the fact that waited was written");
        assert_eq!(event.fields()["audit_hash"], summary.head);
    }
}
