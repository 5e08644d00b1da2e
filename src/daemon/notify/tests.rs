use super::*;
use crate::report::{
    event::tests::record,
    http::{Progress, WorkerView},
};

const NOW: Mono = Mono(Duration::from_secs(1_000));
const ADMITTED: &str = "1 of 1 workers admitted";

fn notifier(watchdog: Option<Duration>) -> (Notifier, Receiver<Vec<Word>>) {
    let (told, words) = sync_channel(QUEUE);
    (Notifier { told: Some(told), watchdog, ..Notifier::default() }, words)
}

fn well() -> Snapshot {
    let progress = Progress { at: Some(NOW), limit: Duration::from_secs(15) };
    let worker = WorkerView { record: record("codex-0"), fresh_until: None };
    Snapshot { workers: vec![worker], link: progress, checks: progress, audit: Ok(()) }
}

fn without_link() -> Snapshot {
    Snapshot { link: Progress { at: None, limit: Duration::from_secs(15) }, ..well() }
}

fn status(text: &str) -> Word {
    Word::Status(text.into())
}

#[test]
fn the_gate_is_up_once_link_and_checks_make_progress_whatever_becomes_of_the_audit_log() {
    let (mut notifier, words) = notifier(None);
    notifier.pulse(&without_link(), NOW);
    let waiting = format!("{ADMITTED}; the broker does not answer");
    assert_eq!(words.try_recv().unwrap(), [status(&waiting)]);
    notifier.pulse(&without_link(), NOW);
    assert!(words.try_recv().is_err(), "there is nothing new");
    notifier.pulse(&Snapshot { audit: Err("full".into()), ..well() }, NOW);
    let said = format!("{ADMITTED}; the audit log cannot be written");
    assert_eq!(words.try_recv().unwrap(), [Word::Ready, status(&said)]);
    notifier.pulse(&well(), NOW);
    assert_eq!(words.try_recv().unwrap(), [status(ADMITTED)], "it is up only once");
}

#[test]
fn the_watchdog_is_fed_only_while_link_and_checks_make_progress() {
    let (mut notifier, words) = notifier(Some(PULSE * 2));
    notifier.pulse(&well(), NOW);
    assert_eq!(words.try_recv().unwrap(), [Word::Ready, Word::Watchdog, status(ADMITTED)]);
    notifier.pulse(&well(), NOW);
    assert_eq!(words.try_recv().unwrap(), [Word::Watchdog]);
    notifier.pulse(&well(), NOW + Duration::from_secs(16));
    let stuck = format!("{ADMITTED}; the broker does not answer; no check has run lately");
    assert_eq!(words.try_recv().unwrap(), [status(&stuck)]);
}

#[test]
fn a_patient_watchdog_is_not_fed_with_each_pulse() {
    let (mut notifier, words) = notifier(Some(Duration::from_secs(60)));
    notifier.pulse(&well(), NOW);
    assert!(words.try_recv().unwrap().contains(&Word::Watchdog));
    notifier.pulse(&well(), NOW);
    assert!(words.try_recv().is_err());
    notifier.fed = Instant::now().checked_sub(Duration::from_secs(29));
    notifier.pulse(&well(), NOW);
    assert_eq!(words.try_recv().unwrap(), [Word::Watchdog]);
}

#[test]
fn a_gate_that_is_not_up_yet_is_not_reloaded_and_one_that_stops_says_so_once() {
    let (mut notifier, words) = notifier(None);
    notifier.reloading();
    notifier.reloaded();
    assert!(words.try_recv().is_err());
    notifier.pulse(&well(), NOW);
    words.try_recv().unwrap();
    notifier.reloading();
    notifier.reloaded();
    assert_eq!((words.try_recv().unwrap(), words.try_recv().unwrap()), (vec![Word::Reloading], vec![Word::Ready]));
    notifier.stopping();
    notifier.stopping();
    notifier.pulse(&without_link(), NOW);
    assert_eq!(words.try_recv().unwrap(), [Word::Stopping]);
    assert!(words.try_recv().is_err());
}

#[test]
fn nobody_waits_for_a_systemd_that_does_not_listen() {
    let (mut notifier, words) = notifier(Some(PULSE * 2));
    for _ in 0..QUEUE * 3 {
        notifier.pulse(&well(), NOW);
    }
    assert_eq!(words.try_iter().count(), QUEUE);
    let (mut notifier, _) = self::notifier(None);
    notifier.pulse(&well(), NOW);
    assert!(!notifier.is_ready, "what nobody took was not told");
    Notifier::default().pulse(&well(), NOW);
}
