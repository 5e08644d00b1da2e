//! What only a feed does: workers that come and go, the free ones first, and many messages while gates are killed.

use std::{array, collections::BTreeSet, env, time::Duration};

use serde_json::json;

use crate::support::{
    celery::{App, Mark, Worker},
    field::{Field, Kind, accounts_balance, each_once, for_each_feed},
    tasks::Task,
    wait::{LONG, throughout, until},
};

mod rabbitmq;
mod redis;

const SOON: Duration = Duration::from_secs(30);
/// For what must not happen: longer than everything takes that the gate does by itself, looks of once a second included.
const A_WHILE: Duration = Duration::from_millis(1_500);
const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";

for_each_feed! {
    nothing_is_fed_to_a_worker_that_does_not_consume
    the_lane_of_a_worker_that_was_killed_is_put_back_and_the_other_one_runs_it
    what_a_worker_gives_back_at_its_warm_shutdown_runs_elsewhere
    a_worker_that_is_recycled_gives_back_what_it_has_and_the_other_one_runs_it
    work_goes_to_the_worker_that_is_free
    a_gate_that_is_killed_leaves_the_work_to_the_other_gate
    none_is_lost_when_gates_are_killed_and_frozen_while_many_pass
}

fn marks(prefix: &str, count: usize) -> impl Iterator<Item = Task> {
    (0..count).map(move |n| Task::mark(format!("{prefix}{n}")))
}

fn slow(count: usize, seconds: f64) -> impl Iterator<Item = Task> {
    (0..count).map(move |n| Task::slow(format!("s-{n}"), seconds))
}

fn nothing_is_fed_to_a_worker_that_does_not_consume(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    field.publish(marks("m-", 20));
    throughout(A_WHILE * 2, "everything stays in the intake", || {
        (field.waiting(), field.in_lane(0), field.in_lane(1)) == (20, 0, 0)
    });
    let _worker = field.worker(&app, 1);
    each_once(&app.wait_for_runs(SOON, 20), 20);
    assert_eq!(field.in_lane(0), 0);
    // The one that is away is as fit as the other.
    gate.wait_until(SOON, &field.name(0), "admitted");
    let _late = field.worker(&app, 0);
    field.publish(slow(20, 0.3));
    each_once(&app.wait_for_runs(SOON, 40), 40);
    assert!(app.marks().iter().any(|mark| mark.worker == field.name(0)), "the one that came late has run nothing");
}

fn the_lane_of_a_worker_that_was_killed_is_put_back_and_the_other_one_runs_it(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.host(0).start(&field.settings().replace("depth = 1", "depth = 4"));
    field.wait_until_both_are(&gate, "admitted");
    let [mut killed, _other] = field.workers(&app);
    field.publish(slow(30, 0.3));
    until(SOON, "both work, and more waits for them", || {
        (0..2).all(|n| field.in_lane(n) >= 3 && app.marks().iter().any(|mark| mark.worker == field.name(n)))
    });
    if kind == Kind::FeedRedis {
        // Between taking a message and noting that it has it, kombu has it nowhere: that would be its loss, and not the gate's.
        until(SOON, "both have noted what they have taken", || unacked(&field).len() >= 2);
    }
    killed.kill();
    until(SOON, "its lane is put back", || field.in_lane(0) == 0);
    field.wait_until_quiet(&app);
    assert_eq!(field.waiting(), 0);
    // On Redis kombu keeps what a worker has taken where nobody but a worker can give it back, an hour later; on RabbitMQ
    // it goes back to the lane at once.
    let kept = if kind == Kind::FeedRedis { unacked(&field) } else { BTreeSet::new() };
    assert!(kept.len() <= 2, "{kept:?}");
    let runs = app.runs();
    let lost: Vec<_> =
        (0..30).map(|n| format!("s-{n}")).filter(|id| !runs.contains_key(id) && !kept.contains(id)).collect();
    assert!(lost.is_empty(), "{lost:?} are lost; kept for the dead worker: {kept:?}");
    assert!(runs.values().all(|times| *times == 1), "{runs:?}");
    assert_eq!(gate.wait_until(SOON, &field.name(0), "admitted")["edge"], "open");
}

/// The ids of the tasks that workers have taken and not acknowledged, as kombu keeps them on Redis.
fn unacked(field: &Field) -> BTreeSet<String> {
    let values: Vec<String> = field.redis().ask(&["HVALS", "unacked"]);
    let id = |text: &String| {
        let entry: serde_json::Value = serde_json::from_str(text).unwrap();
        entry[0]["headers"]["id"].as_str().unwrap().to_owned()
    };
    values.iter().map(id).collect()
}

fn what_a_worker_gives_back_at_its_warm_shutdown_runs_elsewhere(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.host(0).start(&field.settings().replace("depth = 1", "depth = 3"));
    field.wait_until_both_are(&gate, "admitted");
    let facts = field.facts();
    // Celery's own default: four tasks in hand for each process.
    let [mut leaving, _other]: [Worker; 2] = array::from_fn(|n| {
        let mut worker = app.start_worker(&field.lane(n), &field.name(n), &["-c", "1"]);
        worker.wait_until_ready();
        worker
    });
    field.publish(slow(30, 0.4));
    until(SOON, "both have all that they can hold", || {
        (0..2).all(|n| field.in_lane(n) >= 2 && app.marks().iter().any(|mark| mark.worker == field.name(n)))
    });
    let by_leaving = |phase: &str| -> BTreeSet<String> {
        let of = |mark: &Mark| mark.worker == field.name(0) && mark.phase == phase;
        app.marks().into_iter().filter(of).map(|mark| mark.id).collect()
    };
    assert!(leaving.stop().is_some_and(|status| status.success()), "{}", leaving.log());
    assert_eq!(by_leaving("started"), by_leaving("ended"), "what it had begun it has finished");
    field.wait_until_quiet(&app);
    each_once(&app.runs(), 30);
    assert_eq!((field.waiting(), field.in_lane(0), field.in_lane(1)), (0, 0, 0));
    if kind == Kind::FeedRedis {
        assert_eq!(unacked(&field), BTreeSet::new());
    }

    // It comes back to the same lane, and gets its share.
    let _back = field.worker(&app, 0);
    let before = by_leaving("started").len();
    field.publish((0..20).map(|n| Task::slow(format!("again-{n}"), 0.3)));
    each_once(&app.wait_for_runs(SOON, 50), 50);
    assert!(by_leaving("started").len() > before, "the worker that came back has run nothing");
    accounts_balance(&facts);
}

fn a_worker_that_is_recycled_gives_back_what_it_has_and_the_other_one_runs_it(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let settings = field.settings().replace("depth = 1", "depth = 3\non_quarantine = \"recycle\"");
    let gate = field.host(0).start(&settings);
    field.wait_until_both_are(&gate, "admitted");
    let mut recycled = app.worker(&field.lane(0), &field.name(0), &["-c", "1"]);
    let _other = field.worker(&app, 1);
    field.publish(slow(20, 1.0));
    until(SOON, "it has all that it can hold", || {
        field.in_lane(0) == 3 && app.marks().iter().any(|mark| mark.worker == field.name(0))
    });
    field.host(0).set_profile(DRIFTED);
    assert!(recycled.wait().success(), "{}", recycled.log());
    field.wait_until_quiet(&app);
    each_once(&app.runs(), 20);
    let by_recycled = app.marks().iter().filter(|mark| mark.worker == field.name(0)).count();
    assert!(by_recycled <= 2 * 2, "it went on: {:?}", app.marks());
    assert_eq!((field.waiting(), field.in_lane(0), field.in_lane(1)), (0, 0, 0));
}

fn work_goes_to_the_worker_that_is_free(kind: Kind) {
    const TASKS: usize = 100;
    let field = Field::new(kind);
    let app = field.app();
    let _gate = field.admit_both();
    let _workers = field.workers(&app);
    let paces = json!({ field.name(0): 1.0, field.name(1): 0.01 });
    field.send(&app, "app.paced", "p-", u32::try_from(TASKS).unwrap(), &[paces]);
    until(LONG, "all have ended", || app.marks().iter().filter(|mark| mark.phase == "ended").count() == TASKS);
    each_once(&app.runs(), TASKS);
    let by = |n: usize| -> Vec<Mark> { app.marks().into_iter().filter(|mark| mark.worker == field.name(n)).collect() };
    let (of_slow, of_fast) = (by(0), by(1));
    let span = |marks: &[Mark]| marks.last().unwrap().at - marks.first().unwrap().at;
    // The slow one has as many as it can do while the fast one does the rest, with one in hand and one in the lane.
    let most = span(&of_fast) + 3.0;
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    let slow_ran = (of_slow.len() / 2) as f64;
    println!("the slow one ran {slow_ran}, the fast one all else in {:.2} s", span(&of_fast));
    assert!(slow_ran >= 1.0 && slow_ran <= most, "the slow one ran {slow_ran} in {:.2} s", span(&of_fast));
    // While there was work for it, the fast one has got it at once; a machine with more to do may hold up some of it.
    let pauses = of_fast.windows(2).filter(|pair| pair[0].phase == "ended").map(|pair| pair[1].at - pair[0].at);
    let mut pauses: Vec<f64> = pauses.collect();
    pauses.sort_by(f64::total_cmp);
    let (median, longest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    assert!(
        median < 0.2 && longest < 10.0,
        "the fast one was idle for {median:.2} s, and for {longest:.2} s at the most"
    );
}

fn a_gate_that_is_killed_leaves_the_work_to_the_other_gate(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let [killed, other] = array::from_fn(|n| {
        let host = field.host(n);
        let gate = host.start(&field.settings_of(host, n));
        gate.wait_until(SOON, &field.name(n), "admitted");
        gate
    });
    let _workers = field.workers(&app);
    field.publish(slow(40, 0.1));
    until(SOON, "both work", || (0..2).all(|n| app.marks().iter().any(|mark| mark.worker == field.name(n))));
    killed.kill();
    app.wait_for_runs(SOON, 40);
    field.wait_until_quiet(&app);
    let runs = app.runs();
    let twice = runs.values().map(|times| times - 1).sum::<u32>();
    assert!(runs.len() == 40 && twice <= kind.twice_per_kill(), "{runs:?}");
    field.publish(marks("m-", 10));
    app.wait_for_runs(SOON, 50);
    let after: Vec<_> = app.marks().into_iter().filter(|mark| mark.id.starts_with("m-")).collect();
    assert!(after.iter().all(|mark| mark.worker == field.name(1)), "{after:?}");
    assert!(other.stop().success());
}

/// As many as pass while gates are killed and frozen: `WORKER_GATE_TEST_MANY`.
fn many() -> usize {
    env::var("WORKER_GATE_TEST_MANY").map_or(5_000, |text| text.parse().unwrap())
}

fn none_is_lost_when_gates_are_killed_and_frozen_while_many_pass(kind: Kind) {
    const DEPTH: u32 = 10;
    const ROUNDS: usize = 6;
    let (field, many) = (Field::new(kind), many());
    let app = field.app();
    let settings = field.settings().replace("depth = 1", &format!("depth = {DEPTH}"));
    let mut workers: [Worker; 2] = array::from_fn(|n| app.start_worker(&field.lane(n), &field.name(n), &["-c", "1"]));
    workers.iter_mut().for_each(Worker::wait_until_ready);
    field.publish(marks("m-", many));
    let patience = LONG * u32::try_from(1 + many / 5_000).unwrap();
    let pass = |app: &App, more: usize| {
        let enough = (app.written() + more).min(many);
        until(patience, "messages pass", || app.written() >= enough);
    };
    let (mut killed, mut frozen) = (0, 0);
    for round in 0..ROUNDS {
        let mut gate = field.host(0).start(&settings);
        pass(&app, many / (ROUNDS + 2));
        if round % 3 == 2 {
            gate.freeze();
            frozen += u32::from(field.waiting() > 0);
            field.wait_until_nobody_owns();
            gate.thaw();
            pass(&app, many / (ROUNDS + 2) / 2);
        }
        gate.kill();
        killed += u32::from(field.waiting() > 0);
    }
    assert!(killed >= 4 && frozen >= 1, "only {killed} kills and {frozen} freezes while messages passed");
    let gate = field.host(0).start(&settings);
    until(patience, "all have run", || app.written() >= many && field.waiting() == 0);
    field.wait_until_quiet(&app);
    let runs = app.runs();
    let lost: Vec<_> = (0..many).map(|n| format!("m-{n}")).filter(|id| !runs.contains_key(id)).collect();
    assert!(lost.is_empty(), "{} are lost: {:?}", lost.len(), &lost[..lost.len().min(20)]);
    let twice = runs.values().map(|times| times - 1).sum::<u32>();
    println!("{many} passed {killed} kills and {frozen} freezes, {twice} of them twice");
    let most = if kind == Kind::FeedRedis { 0 } else { 2 * DEPTH * (killed + frozen) };
    assert!(twice <= most, "{twice} have run twice");
    assert!(gate.stop().success());
}
