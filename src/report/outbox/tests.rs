use std::collections::BTreeSet;

use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::{
    model::FactKind,
    report::{
        audit::{self, FILE_NAME},
        event::tests::fact,
    },
};

const LONG: Duration = Duration::from_secs(60);

struct Bench {
    outbox: Outbox,
    dir: TempDir,
    channels: watch::Sender<Option<Outlet>>,
}

/// An outbox whose broker is away.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let scribe = Scribe::open(dir.path(), "g").unwrap();
    let (channels, receiver) = watch::channel(None);
    Bench { outbox: Outbox::spawn(scribe, "x".into(), 1, receiver).unwrap(), dir, channels }
}

fn audited() -> Fact {
    fact(FactKind::WorkerQuarantined, Some("codex-0"), true)
}

#[tokio::test]
async fn facts_are_written_while_the_broker_is_away_and_the_stop_does_not_wait_for_it() {
    let bench = bench();
    for _ in 0..5 {
        bench.outbox.offer(audited());
    }
    assert_eq!(bench.outbox.health(), Ok(()));
    let started = Instant::now();
    let leftover = bench.outbox.flush(started + LONG).await;
    assert!(started.elapsed() < LONG / 2, "it waited for a broker that is not there");
    assert_eq!(leftover, Leftover { unwritten: 0, unpublished: 5 });
    assert_eq!(audit::verify(&bench.dir.path().join(FILE_NAME)).unwrap().lines, 5);
    assert!(Scribe::open(bench.dir.path(), "g").is_ok(), "the directory is free again");
    drop(bench.channels);
}

/// Time stands still here and every offer happens in one go, without a single await: an offer that waited for anything
/// would never come back.
#[tokio::test(start_paused = true)]
async fn an_offer_never_waits_and_what_was_lost_is_a_hole_in_the_sequence() {
    let bench = bench();
    let offers: u64 = 20_000;
    for _ in 0..offers {
        bench.outbox.offer(audited());
    }
    let lost = offers - bench.outbox.shared.offered.load(Ordering::Relaxed);
    assert!(lost > 0, "the disk wrote 20,000 facts faster than they were made");
    let path = bench.dir.path().join(FILE_NAME);
    let counts = bench.outbox.counts();
    assert_eq!((counts.lost, counts.unpublished), (lost, 0));
    assert!(counts.waiting <= offers - lost, "{counts:?}");
    tokio::time::resume();
    let leftover = bench.outbox.flush(Instant::now() + LONG).await;

    let seqs: BTreeSet<_> =
        audit::read(&path).unwrap().map(|entry| entry.unwrap().fields["seq"].as_u64().unwrap()).collect();
    let newest = *seqs.last().unwrap();
    let holes = newest - seqs.len() as u64;
    assert_eq!(seqs.len() as u64 + lost, offers, "every fact was written or counted");
    // What was lost after the last fact that was taken shows in the next event, or at the stop.
    assert_eq!(holes + leftover.unwritten, lost);
    assert_eq!(leftover.unpublished, seqs.len() as u64 + leftover.unwritten);
    drop(bench.channels);
}

#[tokio::test]
async fn the_backlog_keeps_the_newest_and_counts_what_it_pushed_out() {
    let shared = Shared { room: BACKLOG, ..Shared::default() };
    let mut stamper = crate::report::event::Stamper::new("g");
    for _ in 0..BACKLOG + 10 {
        shared.push(stamper.stamp(&audited()), true);
    }
    let first = shared.next(None).await.unwrap();
    assert_eq!(first.seq(), 11);
    assert_eq!(shared.leftover().unpublished, BACKLOG as u64 + 10);

    shared.push(stamper.stamp(&audited()), true);
    shared.published(&first);
    assert_eq!(shared.next(None).await.unwrap().seq(), 12, "a confirm for what was pushed out removes nothing else");
}

#[tokio::test]
async fn what_is_told_again_soon_is_pushed_out_before_what_is_told_once() {
    let shared = Shared { room: 4, ..Shared::default() };
    let mut stamper = crate::report::event::Stamper::new("g");
    let routine = || fact(FactKind::WorkerHealthCheck, Some("codex-0"), false);
    for fact in [audited(), routine(), audited(), routine(), audited(), audited(), audited()] {
        shared.push(stamper.stamp(&fact), fact.audited);
    }
    let (mut last, mut seqs) = (None, Vec::new());
    while seqs.len() < 4 {
        let event = shared.next(last).await.unwrap();
        last = Some(event.seq());
        seqs.push(event.seq());
    }
    assert_eq!(seqs, [3, 5, 6, 7], "both routine ones went, and then the oldest of the others");
}

#[tokio::test]
async fn a_disk_that_does_not_answer_or_refuses_is_unhealthy() {
    let bench = bench();
    bench.outbox.shared.state().writing_since = Instant::now().into_std().checked_sub(DISK_PATIENCE * 2);
    let health = bench.outbox.health().unwrap_err();
    assert!(health.starts_with("the disk under the audit log has not answered for 2"), "{health}");
    bench.outbox.shared.state().writing_since = None;

    std::fs::remove_dir_all(bench.dir.path()).unwrap();
    std::fs::write(bench.dir.path(), "").unwrap();
    bench.outbox.offer(audited());
    let refused = async {
        while bench.outbox.health().is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, refused).await.unwrap();
    let leftover = bench.outbox.flush(Instant::now() + LONG).await;
    assert_eq!(leftover, Leftover { unwritten: 1, unpublished: 1 });
    std::fs::remove_file(bench.dir.path()).unwrap();
}

#[tokio::test]
async fn a_thread_that_ended_early_is_unhealthy_and_holds_up_no_stop() {
    let mut bench = bench();
    let (queue, facts) = mpsc::channel(1);
    drop(facts);
    bench.outbox.queue = queue;
    assert!(bench.outbox.health().unwrap_err().contains("thread has ended"));
    bench.outbox.offer(audited());
    assert_eq!(bench.outbox.flush(Instant::now() + LONG).await, Leftover { unwritten: 1, unpublished: 1 });
}
