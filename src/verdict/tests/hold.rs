//! What operators ask for, and what a restart leaves of it.

use super::*;
use crate::model::{
    Ask, By, Command, Hold, Order,
    order::{Outcome, Verb},
};

fn by(claims: &str) -> By {
    By { user: Some("ops".into()), claims: claims.into() }
}

fn ask(gate: &mut Gate, ms: u64, ask: Ask) -> (Step, Outcome) {
    gate.order(at(ms), Order { worker: name(), ask, by: by("ann@desk"), reason: "new disk".into() })
}

fn hold(gate: &mut Gate, ms: u64) -> Step {
    let (step, outcome) = ask(gate, ms, Ask::Hold { until: None });
    assert_eq!(outcome, Outcome::Held);
    step
}

fn hold_until(gate: &mut Gate, ms: u64, until: u64) -> Step {
    let (step, outcome) = ask(gate, ms, Ask::Hold { until: Some(at(until).wall) });
    assert_eq!(outcome, Outcome::Held);
    step
}

fn release(gate: &mut Gate, ms: u64) -> Step {
    let (step, outcome) = ask(gate, ms, Ask::Release);
    assert_eq!(outcome, Outcome::Released);
    step
}

fn down(code: Code) -> Input {
    edge(EdgeReport::Down(Reason::new(code, "lost", "")))
}

/// The only command that a step tells of.
fn command(step: &Step) -> (Command, Record) {
    let mut told = step.facts.iter().filter(|fact| fact.kind == FactKind::WorkerCommand);
    let fact = told.next().unwrap();
    assert!(told.next().is_none() && fact.audited);
    let record = fact.record.clone().unwrap();
    (record.command.clone().unwrap(), record)
}

#[test]
fn a_held_worker_is_quarantined_and_its_record_says_by_whom_why_and_until_when() {
    let mut gate = admitted(policy(1, 1));
    let step = hold_until(&mut gate, 1_000, 61_000);
    let shut = Wanted { edge: Edge::Shut, quarantine: true, change: 2, owned: Some(at(100).mono) };
    assert_eq!(step.wanted, [(name(), shut)]);
    assert_eq!(kinds(&step), [FactKind::WorkerAdmitted, FactKind::WorkerCommand], "the first waited for its account");
    let (told, record) = command(&step);
    let until = Some(at(61_000).wall);
    let expected =
        Command { ask: Verb::Hold, by: by("ann@desk"), reason: "new disk".into(), until, outcome: Outcome::Held };
    assert_eq!(told, expected);
    let stands = Hold { by: by("ann@desk"), reason: "new disk".into(), since: at(1_000).wall, until };
    assert_eq!(record.hold.as_ref(), Some(&stands));
    assert_eq!(gate.holds(), [(name(), stands)].into());
    assert_eq!((record.admission, record.changed_at), (Some(Admission::Quarantined), Some(at(1_000).wall)));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
    let reason = record.reason.unwrap();
    for part in ["ann@desk", "ops", "new disk", &at(61_000).wall.to_string()] {
        assert!(reason.detail.contains(part), "{part}: {reason:?}");
    }
    assert_eq!(reason.remedy, "worker-gate release codex-0@h");
    let account = Account { before: 1, moved: 1, ..Account::default() };
    let answer = EdgeReport::Settled { change: 2, account, exposed: None, blocked: false };
    let step = gate.step(at(1_010), edge(answer));
    assert_eq!(kinds(&step), [FactKind::WorkerQuarantined]);
    assert!(step.facts[0].record.as_ref().is_some_and(|record| record.command.is_none() && record.hold.is_some()));
    let json = serde_json::to_value(&told).unwrap();
    assert_eq!(json["ask"], "hold");
    assert_eq!(json["outcome"], "held");
}

#[test]
fn a_release_admits_at_once_whoever_is_fit_however_often_that_happens() {
    let (wait, max) = (Duration::from_secs(60), Duration::from_secs(60));
    let mut gate = admitted(Policy { flap: FlapPolicy { wait, max }, ..policy(1, 1) });
    for ms in (1_000..6_000).step_by(1_000) {
        hold(&mut gate, ms);
        let step = release(&mut gate, ms + 10);
        assert_eq!(step.wanted[0].1.edge, Edge::Open);
        assert_eq!(state(&gate), (Admission::Admitted, Code::Fit));
        let (told, record) = command(&step);
        assert_eq!((told.ask, told.outcome, record.hold), (Verb::Release, Outcome::Released, None));
        assert_eq!(record.readmission, None);
    }
    gate.step(at(7_000), profile(7_000, ProfileState::Drifted));
    let step = gate.step(at(7_010), profile(7_010, ProfileState::Managed));
    assert_eq!(step.wanted[0].1.edge, Edge::Open, "its first quarantine");
}

#[test]
fn a_release_does_not_end_a_quarantine_whose_cause_stands() {
    let mut gate = admitted(policy(1, 1));
    hold(&mut gate, 1_000);
    let step = gate.step(at(2_000), check(2_000, "codex_cli", false));
    assert!(step.wanted.is_empty());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::CheckFailed), "the cause is told first");
    assert!(gate.records()[0].hold.is_some(), "and the hold stands beside it");
    assert!(release(&mut gate, 3_000).wanted.is_empty());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::CheckFailed));
    let step = gate.step(at(4_000), check(4_000, "codex_cli", true));
    assert_eq!(step.wanted[0].1.edge, Edge::Open);
}

#[test]
fn a_hold_on_a_quarantined_worker_keeps_it_out_when_the_cause_is_gone() {
    let mut gate = admitted(policy(1, 1));
    gate.step(at(1_000), check(1_000, "codex_cli", false));
    assert!(hold(&mut gate, 2_000).wanted.is_empty());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::CheckFailed));
    assert!(gate.step(at(3_000), check(3_000, "codex_cli", true)).wanted.is_empty());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
    assert_eq!(gate.records()[0].changed_at, Some(at(1_000).wall), "it has been quarantined all the time");
    assert_eq!(release(&mut gate, 4_000).wanted[0].1.edge, Edge::Open);
}

#[test]
fn what_goes_stale_or_changes_under_a_hold_is_not_admitted_by_its_end() {
    let mut gate = admitted(policy(1, 1));
    let stale_at = 195 + u64::try_from(MAX_AGE.as_millis()).unwrap();
    hold(&mut gate, 1_000);
    let step = gate.step(at(10_000), Input::Tick);
    assert_eq!(step.wake_at, Some(at(stale_at).mono), "the evidence ages under a hold, too");
    gate.step(at(stale_at), Input::Tick);
    assert_eq!(state(&gate), (Admission::Quarantined, Code::EvidenceStale));
    assert!(release(&mut gate, stale_at + 1_000).wanted.is_empty());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::EvidenceStale));
    let mut gate = admitted(policy(1, 1));
    hold(&mut gate, 1_000);
    gate.step(at(2_000), tool(2_000, "codex_cli"));
    assert!(release(&mut gate, 3_000).wanted.is_empty());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::ToolChanged));
}

#[test]
fn a_hold_before_the_first_admission_keeps_the_worker_from_being_admitted() {
    let mut gate = gate(policy(1, 1));
    let step = hold(&mut gate, 10);
    assert_eq!(kinds(&step), [FactKind::WorkerQuarantined, FactKind::WorkerCommand], "nobody answers for the edge");
    gate.step(at(50), down(Code::BrokerUnreachable));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
    gate.step(at(100), owned(100));
    assert!(pass_all(&mut gate, 200).wanted.is_empty());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
    assert_eq!(release(&mut gate, 300).wanted[0].1.edge, Edge::Open);
}

#[test]
fn a_release_before_everything_is_proven_leaves_the_worker_held() {
    let mut gate = gate(policy(1, 1));
    gate.step(at(100), owned(100));
    hold(&mut gate, 200);
    assert_eq!(release(&mut gate, 300).wanted[0].1.edge, Edge::Shut);
    assert_eq!(state(&gate), (Admission::Held, Code::Starting));
    assert_eq!(pass_all(&mut gate, 400).wanted[0].1.edge, Edge::Open);
}

#[test]
fn a_hold_ends_at_its_moment_whatever_the_clock_on_the_wall_says_then() {
    let mut gate = admitted(policy(1, 1));
    hold_until(&mut gate, 1_000, 61_000);
    let tick = |gate: &mut Gate, ms, wall| gate.step(Now { mono: at(ms).mono, wall: at(wall).wall }, Input::Tick);
    let step = tick(&mut gate, 10_000, 10_000_000);
    assert!(step.wanted.is_empty() && step.wake_at == Some(at(61_000).mono));
    assert!(tick(&mut gate, 60_999, 0).wanted.is_empty());
    let step = tick(&mut gate, 61_000, 0);
    assert_eq!(step.wanted[0].1.edge, Edge::Open);
    assert!(!kinds(&step).contains(&FactKind::WorkerCommand), "the admission tells it");
    assert!(gate.holds().is_empty() && gate.records()[0].hold.is_none());
}

#[test]
fn the_end_of_a_hold_is_told_by_itself_where_nobody_is_admitted_by_it() {
    let mut gate = admitted(policy(1, 1));
    hold_until(&mut gate, 1_000, 61_000);
    gate.step(at(2_000), profile(2_000, ProfileState::Drifted));
    let step = gate.step(at(61_000), Input::Tick);
    assert!(step.wanted.is_empty());
    let (told, record) = command(&step);
    assert_eq!((told.ask, told.outcome), (Verb::Release, Outcome::Released));
    assert_eq!(
        (told.by, told.reason.as_str()),
        (By { user: None, claims: "worker-gate".into() }, "the hold has ended")
    );
    assert_eq!((record.hold, record.reason.unwrap().code), (None, Code::ProfileDrifted));
    assert!(gate.step(at(62_000), Input::Tick).facts.is_empty());
}

#[test]
fn a_hold_that_came_too_late_to_begin_ends_with_the_next_tick() {
    let mut gate = admitted(policy(1, 1));
    let step = hold_until(&mut gate, 10_000, 9_000);
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);
    assert!(step.wake_at.is_some_and(|at| at <= super::at(10_000).mono));
    assert_eq!(gate.step(at(10_001), Input::Tick).wanted[0].1.edge, Edge::Open);
}

#[test]
fn of_two_operators_the_last_one_counts_and_both_are_told() {
    let mut gate = admitted(policy(1, 1));
    assert_eq!(command(&hold_until(&mut gate, 1_000, 61_000)).0.by, by("ann@desk"));
    let order = Order { worker: name(), ask: Ask::Hold { until: None }, by: by("bob@home"), reason: String::new() };
    let (step, outcome) = gate.order(at(2_000), order);
    assert_eq!((outcome, command(&step).0.by), (Outcome::Held, by("bob@home")));
    assert!(step.wanted.is_empty());
    assert!(gate.step(at(70_000), Input::Tick).wanted.is_empty(), "the first hold would have ended");
    let reason = gate.records()[0].reason.clone().unwrap();
    assert!(reason.detail.contains("bob@home") && reason.detail.contains("no reason given"), "{reason:?}");
}

#[test]
fn a_gate_does_nothing_for_a_worker_that_is_not_its_own() {
    let mut gate = admitted(policy(1, 1));
    let order = Order {
        worker: WorkerName::new("codex-9@h"),
        ask: Ask::Hold { until: None },
        by: by("ann@desk"),
        reason: String::new(),
    };
    let (step, outcome) = gate.order(at(300), order);
    assert!(outcome == Outcome::NotOwner && step.facts.is_empty() && step.wanted.is_empty());
    hold(&mut gate, 350);
    gate.step(at(400), down(Code::OwnedElsewhere));
    assert_eq!(state(&gate), (Admission::Held, Code::OwnedElsewhere), "the other gate knows nothing of the hold");
    for order in [Ask::Hold { until: None }, Ask::Release, Ask::Recheck] {
        let (step, outcome) = ask(&mut gate, 500, order);
        assert!(outcome == Outcome::NotOwner && step.facts.is_empty() && step.recheck.is_empty());
    }
    gate.step(at(600), owned(600));
    assert!(pass_all(&mut gate, 700).wanted.is_empty());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
}

#[test]
fn a_release_of_nobodys_hold_changes_nothing_and_says_so() {
    let mut gate = admitted(policy(1, 1));
    let (step, outcome) = ask(&mut gate, 1_000, Ask::Release);
    assert_eq!(outcome, Outcome::NotHeld);
    assert!(step.wanted.is_empty());
    assert_eq!(command(&step).0.outcome, Outcome::NotHeld);
    assert_eq!(serde_json::to_value(outcome).unwrap(), "not_held");
}

#[test]
fn a_recheck_runs_the_checks_now_and_changes_nothing_by_itself() {
    let mut gate = admitted(policy(1, 1));
    for ms in [1_000, 2_000] {
        let (step, outcome) = ask(&mut gate, ms, Ask::Recheck);
        assert_eq!(outcome, Outcome::Rechecking);
        assert!(step.recheck.contains(&IdentityId(0)) && step.wanted.is_empty());
        assert_eq!((command(&step).0.ask, command(&step).0.until), (Verb::Recheck, None));
        hold(&mut gate, ms + 500);
    }
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
}

#[test]
fn a_hold_outlives_a_lost_link_and_other_settings() {
    let mut gate = admitted(policy(1, 1));
    hold(&mut gate, 300);
    gate.step(at(400), down(Code::BrokerUnreachable));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
    gate.step(at(500), owned(500));
    assert!(pass_all(&mut gate, 600).wanted.is_empty());
    gate.reconfigure(at(700), policy(2, 1), [member(name(), 0)], &Changes::default());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
    // The worker has another lane, so it is another worker to the broker.
    let changes = Changes { workers: [name()].into(), ..Changes::default() };
    gate.reconfigure(at(800), policy(2, 1), [member(name(), 0)], &changes);
    gate.step(at(800), Input::Tick);
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
    gate.step(at(900), owned(900));
    assert!(pass_all(&mut gate, 1_000).wanted.is_empty());
    assert_eq!(release(&mut gate, 1_100).wanted[0].1.edge, Edge::Open);
}

#[test]
fn a_hold_goes_with_its_worker() {
    let mut gate = admitted(policy(1, 1));
    hold(&mut gate, 300);
    let other = member(WorkerName::new("codex-1@h"), 0);
    gate.reconfigure(at(400), policy(1, 1), [other], &Changes::default());
    assert!(gate.holds().is_empty());
    gate.reconfigure(at(500), policy(1, 1), [member(name(), 0)], &Changes::default());
    gate.step(at(600), owned(600));
    assert_eq!(pass_all(&mut gate, 700).wanted[0].1.edge, Edge::Open);
}

#[test]
fn a_hold_outlives_a_restart_unless_it_has_ended_meanwhile() {
    let mut before = admitted(policy(1, 1));
    hold_until(&mut before, 1_000, 61_000);
    let holds = before.holds();
    let unknown = WorkerName::new("codex-9@h");
    let with_unknown = holds.iter().flat_map(|(name, hold)| [name, &unknown].map(|of| (of.clone(), hold.clone())));

    // The machine has started anew: one clock goes on, the other begins again.
    let now = |ms: u64| Now { mono: at(ms).mono, wall: at(30_000 + ms).wall };
    let mut gate = gate(policy(1, 1));
    gate.restore(now(0), with_unknown.collect());
    assert_eq!(gate.holds(), holds);
    let step = gate.step(now(1), Input::Tick);
    assert_eq!(kinds(&step), [FactKind::WorkerQuarantined]);
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
    gate.step(now(100), owned(100));
    let step = pass_all(&mut gate, 200);
    assert!(step.wanted.is_empty());
    assert_eq!(step.wake_at, Some(at(31_000).mono));
    assert_eq!(gate.step(now(31_000), Input::Tick).wanted[0].1.edge, Edge::Open);

    let mut late = super::gate(policy(1, 1));
    late.restore(at(61_000), holds);
    assert!(late.holds().is_empty());
}

#[test]
fn a_gate_that_stops_leaves_a_held_worker_quarantined() {
    let mut gate = admitted(policy(1, 1));
    let step = hold(&mut gate, 300);
    let shut = step.wanted[0].1;
    gate.step(at(310), edge(EdgeReport::Is(shut, at(310).mono)));
    assert!(gate.step(at(400), Input::Stop).wanted.is_empty());
    assert_eq!(state(&gate), (Admission::Quarantined, Code::OperatorHold));
    gate.step(at(4_000), Input::Tick);
    assert!(gate.is_at_rest());
    assert!(!gate.holds().is_empty());
}
