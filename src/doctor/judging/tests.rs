use super::*;
use crate::{
    doctor::{intakes, told::Queue},
    settings::{Source, load},
};

fn settings(more: &str) -> Settings {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.toml");
    let text = format!(
        r#"
[broker]
url = "redis://localhost/0"
[checks.codex_cli]
run = [["true"]]
[[workers]]
name = "codex-0@h"
edge = "feed"
lane = "codex-0.lane"
intake = {{ queue = "codex" }}
{more}
"#
    );
    std::fs::write(&file, text).unwrap();
    load(&Source { file: Some(file), hostname: "h".into(), ..Source::default() }).unwrap().settings
}

fn queues(names: &[&str]) -> Vec<Queue> {
    names.iter().map(|name| Queue { name: (*name).to_owned(), ..Queue::default() }).collect()
}

/// A worker that is as it should be.
fn worker(queue: &str) -> Told {
    Told {
        queues: Some(queues(&[queue])),
        prefetch: Some((2, 2)),
        early: Some(BTreeSet::new()),
        beats: true,
        ..Told::default()
    }
}

fn judged(more: &str, seen: &Seen) -> Vec<(&'static str, bool)> {
    let settings = settings(more);
    let found = findings(&settings, &intakes(&settings), seen);
    assert!(found.iter().all(|found| !found.detail.is_empty() && !found.remedy.is_empty()), "{found:?}");
    found.into_iter().map(|found| (found.code, found.serious)).collect()
}

fn seen(workers: &[(&str, Told)]) -> Seen {
    let workers = workers.iter().map(|(node, told)| ((*node).to_owned(), told.clone())).collect();
    Seen { workers, listened: true, ..Seen::default() }
}

fn own(told: Told) -> Seen {
    seen(&[("codex-0@h", told)])
}

#[test]
fn workers_on_their_own_lanes_are_nothing_to_find() {
    assert_eq!(judged("", &seen(&[("codex-0@h", worker("codex-0.lane")), ("other@h", worker("other"))])), []);
}

#[test]
fn who_consumes_the_intake_or_the_lane_of_another_is_found() {
    let both = Told { queues: Some(queues(&["codex", "codex-0.lane"])), ..worker("") };
    assert_eq!(judged("", &own(both)), [("worker-bypass", true)]);
    assert_eq!(judged("", &seen(&[("x@h", worker("codex-0.lane"))])), [("worker-bypass", true)]);
    assert_eq!(judged("", &own(worker("celery"))), [("lane-not-consumed", false)]);
    let unknown = [("codex".to_owned(), "one more consumes".to_owned())].into();
    assert_eq!(judged("", &Seen { unknown, ..Seen::default() }), [("worker-bypass", true)]);
}

#[test]
fn a_consumer_of_the_lane_that_nobody_is_known_to_be_is_serious() {
    let lanes = |count| [("codex-0.lane".to_owned(), count)].into();
    let with = |count| Seen { lanes: lanes(count), ..own(worker("codex-0.lane")) };
    assert_eq!(judged("", &with(1)), []);
    assert_eq!(judged("", &with(2)), [("lane-shared", true)]);
    // One may be the worker itself, which then does not answer.
    let silent = |count| Seen { lanes: lanes(count), ..Seen::default() };
    assert_eq!(judged("", &silent(0)), []);
    assert_eq!(judged("", &silent(1)), [("remote-control-off", false)]);
    assert_eq!(judged("", &silent(2)), [("lane-shared", true), ("remote-control-off", false)]);
}

#[test]
fn a_worker_that_beats_and_does_not_answer_has_remote_control_off() {
    assert_eq!(judged("", &own(Told { beats: true, ..Told::default() })), [("remote-control-off", false)]);
    assert_eq!(judged("", &seen(&[])), [], "one that is away");
}

#[test]
fn a_worker_that_takes_more_than_it_can_work_on_is_warned_of_if_it_may_finish_it() {
    let with = |prefetch| own(Told { prefetch: Some(prefetch), ..worker("codex-0.lane") });
    assert_eq!(judged("", &with((8, 2))), [("prefetch", false)]);
    assert_eq!(judged("", &with((0, 2))), [("prefetch", false)]);
    assert_eq!(judged("", &with((1, 2))), []);
    assert_eq!(judged("on_quarantine = \"recycle\"", &with((8, 2))), []);
}

#[test]
fn early_acknowledgement_is_warned_of_if_the_worker_is_recycled() {
    let early = Some(BTreeSet::from(["app.a".to_owned()]));
    let with = own(Told { early, ..worker("codex-0.lane") });
    assert_eq!(judged("on_quarantine = \"recycle\"", &with), [("acks-early", false)]);
    assert_eq!(judged("", &with), []);
}

#[test]
fn a_worker_without_heartbeats_is_warned_of_if_they_could_have_been_heard() {
    let quiet = own(Told { beats: false, ..worker("codex-0.lane") });
    assert_eq!(judged("", &quiet), [("events-off", false)]);
    assert_eq!(judged("", &Seen { listened: false, ..quiet }), []);
}
