//! Which point is reached on which edge, at which of its passings the gate dies there, and what has to happen for it.

use std::{
    collections::{BTreeSet, VecDeque},
    env,
    sync::Mutex,
    thread,
};

use worker_gate::failpoint::ALL;

use crate::{
    kill::kill,
    place::Edge::{self, FeedRabbitmq, FeedRedis, Route},
    table::{Row, print},
};

/// A few at once: each waits for most of its time.
const AT_ONCE: usize = 4;

/// What is done until the gate is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drive {
    /// The worker is fit and drifts in turn; then the gate is told to go.
    Cycle,
    /// It is fit, and stays so until nothing is held any more.
    Drain,
    /// As in a cycle, but the lane has no consumer.
    Absent,
    /// The consumer goes while messages flow, and stays away.
    Away,
    /// Messages come to the shut lane by a binding that is not the gate's.
    Bypass,
    /// Somebody deletes the open edge.
    Mend,
    /// The settings have a key less than when the messages came.
    Stray,
    /// More waits in the lane than the intercept can have in hand.
    Hoard,
    /// The worker is a real one, and a quarantine shuts it down.
    Recycle,
    /// The intake is an exchange.
    Exchange,
    /// The same, and somebody binds the lane to it past the gate.
    Rebind,
    /// The lane is filled past the gate while the gate waits for a message.
    Fill,
    /// The worker is taken out of the settings while its edge is open.
    Reload,
    /// Somebody deletes the holding queue, which ends the ownership.
    Fault,
}

/// One death.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) edge: Edge,
    pub(crate) point: &'static str,
    /// At which passing.
    pub(crate) nth: u32,
    pub(crate) drive: Drive,
    /// Whether a Celery worker consumes the lane, and not somebody who only counts.
    pub(crate) celery: bool,
}

impl Case {
    pub(crate) fn name(&self) -> String {
        let celery = if self.celery { " celery" } else { "" };
        format!("{} {}:{}{celery}", self.edge.name(), self.point, self.nth)
    }
}

const ANY: &[Edge] = &[Route, FeedRabbitmq, FeedRedis];
const RABBITMQ: &[Edge] = &[Route, FeedRabbitmq];
const ROUTE: &[Edge] = &[Route];
const FEED: &[Edge] = &[FeedRabbitmq];
const REDIS: &[Edge] = &[FeedRedis];

/// A start passes the intercept's own points once before there is an edge to shut.
const START_AND_SHUT: &[u32] = &[1, 2];
/// The first of many, and one in their midst.
const OF_MANY: &[u32] = &[1, 12];
/// The same of those that are passed once for all that has come together.
const OF_BATCHES: &[u32] = &[1, 4];

#[rustfmt::skip]
const POINTS: &[(&str, &[Edge], &[u32], Drive)] = &[
    ("own.owned", RABBITMQ, &[1], Drive::Cycle),
    ("own.cleared", RABBITMQ, &[1], Drive::Cycle),
    ("own.declared", RABBITMQ, &[1], Drive::Cycle),
    ("own.edge_declared", RABBITMQ, &[1], Drive::Cycle),
    ("own.taking_back", RABBITMQ, &[1], Drive::Cycle),
    ("own.probed", ROUTE, &[1], Drive::Cycle),
    ("own.proven", RABBITMQ, &[1], Drive::Cycle),
    ("open.begun", RABBITMQ, &[1], Drive::Cycle),
    ("open.key_bound", RABBITMQ, &[1], Drive::Cycle),
    ("open.bound", RABBITMQ, &[1], Drive::Cycle),
    ("open.told", RABBITMQ, &[1], Drive::Cycle),
    ("open.counted", ROUTE, &[1], Drive::Cycle),
    ("open.moving", RABBITMQ, &[1], Drive::Cycle),
    ("shut.begun", RABBITMQ, &[1], Drive::Cycle),
    ("shut.key_unbound", RABBITMQ, &[1], Drive::Cycle),
    ("shut.unbound", RABBITMQ, &[1, 2], Drive::Cycle),
    ("shut.told", RABBITMQ, &[1], Drive::Cycle),
    ("shut.counted", RABBITMQ, START_AND_SHUT, Drive::Cycle),
    ("shut.taking_back", RABBITMQ, &[1], Drive::Cycle),
    ("settle.counted", RABBITMQ, &[1, 2], Drive::Cycle),
    ("settle.told", RABBITMQ, &[1, 2], Drive::Cycle),
    ("let_go.shut", RABBITMQ, &[1], Drive::Reload),
    ("let_go.stopped", RABBITMQ, &[1], Drive::Cycle),
    ("let_go.disowned", RABBITMQ, &[1], Drive::Cycle),
    ("take_back.consuming", RABBITMQ, START_AND_SHUT, Drive::Cycle),
    ("take_back.spared", RABBITMQ, &[1], Drive::Bypass),
    ("take_back.received", RABBITMQ, OF_BATCHES, Drive::Cycle),
    ("take_back.published", RABBITMQ, OF_MANY, Drive::Cycle),
    ("take_back.confirmed", RABBITMQ, &[1, 3], Drive::Cycle),
    ("take_back.acked", RABBITMQ, &[1, 3], Drive::Cycle),
    ("take_back.stopped", RABBITMQ, &[1], Drive::Cycle),
    ("take_back.finished", RABBITMQ, &[1], Drive::Cycle),
    ("take_back.ended", RABBITMQ, &[1], Drive::Cycle),
    ("give_back.consuming", ROUTE, &[1], Drive::Cycle),
    ("give_back.received", ROUTE, OF_BATCHES, Drive::Cycle),
    ("give_back.probe_dropped", ROUTE, &[1], Drive::Drain),
    ("give_back.stray_unbound", ROUTE, &[1], Drive::Stray),
    ("give_back.published", ROUTE, OF_MANY, Drive::Cycle),
    ("give_back.confirmed", ROUTE, OF_BATCHES, Drive::Cycle),
    ("give_back.acked", ROUTE, OF_BATCHES, Drive::Cycle),
    ("give_back.stopped", ROUTE, &[1], Drive::Cycle),
    ("give_back.finished", ROUTE, &[1], Drive::Cycle),
    ("give_back.ended", ROUTE, &[1], Drive::Cycle),
    ("fault.shut", ROUTE, &[1], Drive::Fault),
    ("bypass.unbound", RABBITMQ, &[1], Drive::Bypass),
    ("bypass.told", RABBITMQ, &[1], Drive::Bypass),
    ("mend.declared", ROUTE, &[1], Drive::Mend),
    ("mend.opened", ROUTE, &[1], Drive::Mend),
    ("recycle.begun", ANY, &[1], Drive::Recycle),
    ("recycle.sent", ANY, &[1], Drive::Recycle),
    ("wake.sent", RABBITMQ, &[1], Drive::Absent),
    ("cancel.sent", RABBITMQ, &[1], Drive::Hoard),
    ("feed.started", FEED, &[1], Drive::Cycle),
    ("feed.consuming", FEED, &[1, 3], Drive::Cycle),
    ("feed.received", FEED, OF_MANY, Drive::Cycle),
    ("feed.published", FEED, OF_MANY, Drive::Cycle),
    ("feed.confirmed", FEED, OF_BATCHES, Drive::Cycle),
    ("feed.looked", FEED, OF_BATCHES, Drive::Cycle),
    ("feed.acked", FEED, OF_BATCHES, Drive::Cycle),
    ("feed.cancelled", FEED, &[1, 3], Drive::Cycle),
    ("feed.handed_back", FEED, &[1], Drive::Fill),
    ("feed.paused", FEED, &[1, 3], Drive::Cycle),
    ("feed.stopped", FEED, &[1], Drive::Cycle),
    ("feed.ended", FEED, &[1], Drive::Cycle),
    ("feed.away", FEED, &[1], Drive::Away),
    ("feed.emptied", FEED, &[1], Drive::Away),
    ("redis.proven", REDIS, &[1], Drive::Cycle),
    ("redis.owned", REDIS, &[1], Drive::Cycle),
    ("redis.emptied", REDIS, &[1], Drive::Cycle),
    ("redis.bound", REDIS, &[1], Drive::Exchange),
    ("redis.rebound", REDIS, &[1], Drive::Rebind),
    ("redis.open_begun", REDIS, &[1], Drive::Cycle),
    ("redis.opened", REDIS, &[1], Drive::Cycle),
    ("redis.open_told", REDIS, &[1, 2], Drive::Cycle),
    ("redis.round", REDIS, OF_MANY, Drive::Cycle),
    ("redis.moved", REDIS, OF_MANY, Drive::Cycle),
    ("redis.put_back_begun", REDIS, &[1], Drive::Away),
    ("redis.put_back", REDIS, &[1], Drive::Away),
    ("redis.shut_begun", REDIS, &[1], Drive::Cycle),
    ("redis.shut", REDIS, &[1, 2], Drive::Cycle),
    ("redis.shut_told", REDIS, &[2], Drive::Cycle),
    ("redis.let_go_begun", REDIS, &[1], Drive::Cycle),
    ("redis.let_go", REDIS, &[1], Drive::Cycle),
];

/// These once more with a Celery worker.
const WITH_CELERY: &[(&str, &[Edge])] = &[
    ("own.declared", RABBITMQ),
    ("open.bound", RABBITMQ),
    ("shut.unbound", RABBITMQ),
    ("take_back.confirmed", RABBITMQ),
    ("give_back.confirmed", ROUTE),
    ("feed.confirmed", FEED),
    ("redis.opened", REDIS),
    ("redis.moved", REDIS),
    ("redis.shut", REDIS),
];

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for edge in [Route, FeedRabbitmq, FeedRedis] {
        for (point, _, nths, drive) in POINTS.iter().filter(|(_, edges, _, _)| edges.contains(&edge)) {
            let celery = *drive == Drive::Recycle;
            cases.extend(nths.iter().map(|nth| Case { edge, point, nth: *nth, drive: *drive, celery }));
        }
        for (point, _) in WITH_CELERY.iter().filter(|(_, edges)| edges.contains(&edge)) {
            cases.push(Case { edge, point, nth: 1, drive: Drive::Cycle, celery: true });
        }
    }
    cases
}

#[test]
fn every_point_has_a_row_and_every_row_a_point() {
    let points: BTreeSet<&str> = ALL.iter().copied().collect();
    let rows: BTreeSet<&str> = POINTS.iter().map(|(point, ..)| *point).collect();
    assert_eq!(points, rows);
    assert_eq!((points.len(), rows.len()), (ALL.len(), POINTS.len()), "one of them is there twice");
}

#[test]
fn a_gate_that_is_killed_at_any_point_loses_nothing_and_lets_nothing_through() {
    let words = env::var("WORKER_GATE_FAULTS").unwrap_or_default();
    let is_wanted = |case: &Case| {
        let name = case.name();
        words.trim().is_empty() || words.split_whitespace().any(|word| name.contains(word))
    };
    let cases: VecDeque<Case> = cases().into_iter().filter(is_wanted).collect();
    assert!(!cases.is_empty(), "no row has one of these words in its name: {words}");
    let (rows, cases) = (Mutex::new(Vec::new()), Mutex::new(cases.into_iter().enumerate().collect::<VecDeque<_>>()));
    let next = || cases.lock().unwrap().pop_front();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, case)) = next() {
                    let row = run(case);
                    eprintln!("{row}");
                    rows.lock().unwrap().push((number, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by_key(|(number, _)| *number);
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    print(&rows);
    let wrong = rows.iter().filter(|row| !row.is_ok()).count();
    assert_eq!(wrong, 0, "rows that do not hold");
}

/// In a thread of its own, whose name the broker's virtual host gets, and whose panic is the row's and not everybody's.
fn run(case: Case) -> Row {
    let name = case.name().replace([' ', ':'], "-");
    let running = thread::Builder::new().name(name).spawn(move || kill(case)).unwrap();
    running.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Row::failed(case, text.unwrap_or_default())
    })
}
