use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use super::*;

fn event(seq: u64) -> String {
    format!(r#"{{"type":"worker-admitted","hostname":"codex-0@host-1","seq":{seq},"detail":"\"hash\":\" – {seq}"}}"#)
}

/// A log with these many entries, `seq` from 1.
fn log_of(entries: u64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = AuditLog::new(dir.path());
    for seq in 1..=entries {
        log.append([event(seq)]).unwrap();
    }
    let path = log.path();
    (dir, path)
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().split_inclusive('\n').map(str::to_owned).collect()
}

fn broken(path: &Path, lines: &[String]) -> (u64, Why) {
    fs::write(path, lines.concat()).unwrap();
    match verify(path).unwrap_err() {
        VerifyError::Broken(Broken { line, why }) => (line, why),
        VerifyError::Unreadable(err) => panic!("{err}"),
    }
}

fn python(path: &Path) -> (bool, String) {
    let output = Command::new("python3").args(["-c", include_str!("verify.py")]).arg(path).output().unwrap();
    let said = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(said).unwrap().trim().to_owned())
}

#[test]
fn a_log_verifies_and_gives_back_what_was_written() {
    let (_dir, path) = log_of(3);
    let summary = verify(&path).unwrap();
    assert_eq!((summary.lines, summary.first_seq, summary.last_seq), (3, Some(1), Some(3)));
    let entries: Vec<_> = read(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!(entries.iter().map(|entry| entry.line).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(entries[2].fields["detail"], "\"hash\":\" – 3");
    assert_eq!(entries[2].fields["hash"], summary.head);
    assert_eq!(entries[0].fields["prev"], START);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o137, 0, "at most 0640");
}

#[test]
fn every_changed_byte_breaks_the_chain_at_its_line() {
    let (_dir, path) = log_of(3);
    let whole = fs::read(&path).unwrap();
    let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let third = second + whole[second..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for at in second..third - 1 {
        let mut edited = whole.clone();
        edited[at] ^= 1;
        fs::write(&path, &edited).unwrap();
        match verify(&path).unwrap_err() {
            VerifyError::Broken(broken) => assert_eq!(broken.line, 2, "byte {at}"),
            VerifyError::Unreadable(err) => panic!("{err}"),
        }
    }
}

#[test]
fn deletion_insertion_and_reordering_break_the_chain_where_they_happened() {
    let (_dir, path) = log_of(4);
    let whole = lines(&path);
    let pick = |order: &[usize]| order.iter().map(|at| whole[*at].clone()).collect::<Vec<_>>();
    assert_eq!(broken(&path, &pick(&[0, 2, 3])), (2, Why::DoesNotFollow), "deleted in the middle");
    assert_eq!(broken(&path, &pick(&[1, 2, 3])), (1, Why::DoesNotFollow), "deleted at the beginning");
    assert_eq!(broken(&path, &pick(&[0, 2, 1, 3])), (2, Why::DoesNotFollow), "reordered");
    assert_eq!(broken(&path, &pick(&[0, 1, 1, 2, 3])), (3, Why::DoesNotFollow), "repeated");

    let mut inserted = whole.clone();
    inserted.insert(2, seal(&event(9), &"a".repeat(64)).0);
    assert_eq!(broken(&path, &inserted), (3, Why::DoesNotFollow), "inserted with any prev");
    let prev = take_apart(whole[1].trim_end().as_bytes()).unwrap().hash;
    inserted[2] = seal(&event(9), prev).0;
    assert_eq!(broken(&path, &inserted), (4, Why::DoesNotFollow), "inserted with the right prev");

    inserted[2] = "{\"type\":\"worker-admitted\",\"seq\":9}\n".into();
    assert_eq!(broken(&path, &inserted), (3, Why::NotAnEntry), "not an entry");
    let mut cut = whole.clone();
    cut[3].pop();
    assert_eq!(broken(&path, &cut), (4, Why::CutOff), "its line end is missing");
}

#[test]
fn the_python_verifier_agrees() {
    let (_dir, path) = log_of(3);
    assert_eq!(python(&path), (true, verify(&path).unwrap().head));
    let whole = lines(&path);
    fs::write(&path, [&*whole[0], &*whole[2]].concat()).unwrap();
    assert_eq!(python(&path), (false, "line 2: does not follow the line above".into()));
    fs::write(&path, whole.concat().replace("– 2", "– 7")).unwrap();
    assert_eq!(python(&path), (false, "line 2: was changed".into()));
}

#[test]
fn opening_again_continues_the_chain() {
    let (dir, path) = log_of(2);
    let mut log = AuditLog::new(dir.path());
    assert_eq!(log.open().unwrap(), Opened { last_seq: 2, torn: None });
    log.append([event(3)]).unwrap();
    assert_eq!(verify(&path).unwrap().last_seq, Some(3));
}

#[test]
fn a_torn_end_is_set_aside_whole_and_the_chain_goes_on_without_it() {
    for torn in [&b"{\"type\":\"worker-quar"[..], b"\0\0\0\0\n\0\0\0", b"{\"half\":1}\n", b"\n"] {
        let (dir, path) = log_of(2);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole, torn].concat()).unwrap();
        let mut log = AuditLog::new(dir.path());
        let opened = log.open().unwrap();
        assert_eq!(opened.last_seq, 2);
        let aside = opened.torn.unwrap();
        assert_eq!(fs::read(&aside.path).unwrap(), torn);
        assert!(aside.path.file_name().unwrap().to_str().unwrap().starts_with("audit.torn-2"), "{aside:?}");
        assert_eq!(fs::read(&path).unwrap(), whole);
        log.append([event(3), event(4)]).unwrap();
        log.append([event(5)]).unwrap();
        // The chain is whole again, and still tells that something else stood there.
        let summary = verify(&path).unwrap();
        assert_eq!((summary.lines, summary.after_torn), (5, vec![3]));
        let entries: Vec<_> = read(&path).unwrap().map(Result::unwrap).collect();
        let told = serde_json::json!([{"file": aside.path.file_name().unwrap().to_str(), "bytes": torn.len()}]);
        assert_eq!(entries[2].fields["audit_torn"], told);
        assert!(python(&path).0);
        assert_eq!(super::torn(&path).unwrap(), [aside]);
    }
}

#[test]
fn a_torn_line_longer_than_the_first_look_at_the_end_is_found_too() {
    let (dir, path) = log_of(2);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [whole, vec![b'x'; 300_000]].concat()).unwrap();
    let opened = AuditLog::new(dir.path()).open().unwrap();
    assert_eq!((opened.last_seq, opened.torn.unwrap().bytes), (2, 300_000));
}

#[test]
fn an_edited_last_line_is_evidence_and_stays_where_it_is() {
    let (dir, path) = log_of(2);
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("– 2", "– 7")).unwrap();
    let mut log = AuditLog::new(dir.path());
    assert_eq!(log.open().unwrap().torn, None);
    log.append([event(3)]).unwrap();
    assert_eq!(lines(&path).len(), 3);
    match verify(&path).unwrap_err() {
        VerifyError::Broken(found) => assert_eq!(found, Broken { line: 2, why: Why::Edited }),
        VerifyError::Unreadable(err) => panic!("{err}"),
    }
}

#[test]
fn a_log_that_is_moved_away_or_written_to_by_others_is_noticed_before_the_next_line() {
    let (dir, path) = log_of(0);
    let mut log = AuditLog::new(dir.path());
    log.append([event(1)]).unwrap();
    fs::rename(&path, dir.path().join("audit.old")).unwrap();
    log.append([event(2)]).unwrap();
    let summary = verify(&path).unwrap();
    assert_eq!((summary.lines, summary.first_seq), (1, Some(2)), "a new log begins, and shows that one came before");

    let mut foreign = fs::OpenOptions::new().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut foreign, b"who was here").unwrap();
    log.append([event(3)]).unwrap();
    assert_eq!(verify(&path).unwrap().lines, 2);
    let aside = |entry: &fs::DirEntry| entry.file_name().to_str().unwrap().starts_with("audit.torn-");
    assert_eq!(fs::read_dir(dir.path()).unwrap().map(Result::unwrap).filter(aside).count(), 1);
}

#[test]
fn a_symlink_or_a_device_in_the_logs_place_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    fs::write(&target, "").unwrap();
    std::os::unix::fs::symlink(&target, dir.path().join(FILE_NAME)).unwrap();
    let mut log = AuditLog::new(dir.path());
    assert!(matches!(log.append([event(1)]).unwrap_err(), AuditError::Io { what: "open the audit log", .. }));
    assert_eq!(fs::read(&target).unwrap(), b"");

    fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    nix::unistd::mkfifo(&dir.path().join(FILE_NAME), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(log.append([event(2)]).unwrap_err(), AuditError::NotAFile { .. }));
    fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    log.append([event(3)]).unwrap();
    assert_eq!(verify(&log.path()).unwrap().lines, 3, "what was refused waited for its turn");
}

/// Says that the process is the one that the next test starts.
const OWN_PROCESS: &str = "WORKER_GATE_TEST_OWN_PROCESS";

/// A limit on the size of files makes the kernel take a part of a write and refuse the rest, as a full disk does. It
/// counts for a whole process, so the test proper runs in one of its own, with the signal that goes with it ignored.
#[test]
fn a_line_that_the_disk_took_half_of_is_taken_back_and_written_when_there_is_room() {
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "report::audit::tests::with_files_limited_in_size"])
        .env(OWN_PROCESS, "1")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn with_files_limited_in_size() {
    assert!(std::env::var_os(OWN_PROCESS).is_some(), "the limit would hit the other tests of this process");
    let dir = tempfile::tempdir().unwrap();
    let mut log = AuditLog::new(dir.path());
    log.append([event(1)]).unwrap();
    let before = fs::read(log.path()).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();

    setrlimit(Resource::RLIMIT_FSIZE, before.len() as u64 + 100, hard).unwrap();
    for seq in 2..=3 {
        let refused = log.append([event(seq)]).unwrap_err();
        assert!(matches!(refused, AuditError::Io { what: "write the audit log", .. }), "{refused}");
        assert_eq!(fs::read(log.path()).unwrap(), before);
        assert!(log.is_open(), "the chain is known to be whole");
    }
    assert_eq!(log.backlog(), (2, 0));

    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    log.append([event(4)]).unwrap();
    let summary = verify(&log.path()).unwrap();
    assert_eq!((summary.lines, summary.last_seq), (4, Some(4)));
}
