//! Checks that fail on many workers of one intake.

use super::*;
use crate::model::{Ask, By, Order};

const INTAKE: &str = "exchange codex";
/// No evidence ages meanwhile.
const HOUR: Duration = Duration::from_secs(3600);

fn rules(share: u8) -> Policy {
    Policy { max_age: HOUR, max_quarantined: Some(share), ..policy(1, 1) }
}

fn own(n: usize) -> WorkerName {
    WorkerName::new(&format!("codex-{n}@h"))
}

/// The same finding for another identity.
fn by(identity: usize, input: Input) -> Input {
    let Input::Observed(observation) = input else { unreachable!() };
    Input::Observed(Observation { identity: IdentityId(identity), ..observation })
}

/// So many workers, each with an identity of its own, all admitted and told of.
fn crowd(workers: usize, rules: Policy) -> Gate {
    let mut gate = Gate::new(rules, (0..workers).map(|n| member(own(n), n)));
    for n in 0..workers {
        gate.step(at(100), Input::Edge(own(n), EdgeReport::Owned(at(100).mono)));
        for input in [check(200, "codex_cli", true), check(200, "spec_kit", true), profile(200, ProfileState::Managed)]
        {
            gate.step(at(200), by(n, input));
        }
    }
    gate.step(at(3_500), Input::Tick);
    assert!(gate.records().iter().all(|record| record.admission == Some(Admission::Admitted)));
    gate
}

fn know(gate: &mut Gate, ms: u64, peers: Vec<Peer>) {
    assert!(gate.step(at(ms), Input::Fleet(FleetNews::All(peers))).facts.is_empty());
}

fn fail(gate: &mut Gate, ms: u64, n: usize) -> Step {
    gate.step(at(ms), by(n, check(ms, "codex_cli", false)))
}

fn pass(gate: &mut Gate, ms: u64, n: usize) -> Step {
    gate.step(at(ms), by(n, check(ms, "codex_cli", true)))
}

fn of(gate: &Gate, n: usize) -> (Admission, Code) {
    let record = gate.records().into_iter().find(|record| record.worker_name == own(n)).unwrap();
    assert_eq!(record.admission == Some(Admission::Admitted), gate.fresh_until(&own(n)).is_some());
    (record.admission.unwrap(), record.reason.unwrap().code)
}

const FAILED: (Admission, Code) = (Admission::Quarantined, Code::CheckFailed);
const EXCUSED: (Admission, Code) = (Admission::Admitted, Code::FleetSuspect);

fn peer(n: usize, admission: Admission, code: &str) -> Peer {
    let worker = WorkerName::new(&format!("peer-{n}@h2"));
    Peer { gate: "h2".into(), worker, intake: INTAKE.into(), admission, code: Some(code.into()) }
}

fn fit_peer(n: usize) -> Peer {
    peer(n, Admission::Admitted, "fit")
}

fn failed_peer(n: usize) -> Peer {
    peer(n, Admission::Quarantined, "check_failed")
}

/// How many workers are admitted although a check fails on them.
fn suspects(gate: &Gate) -> usize {
    gate.digest().workers.iter().filter(|worker| worker.code == Code::FleetSuspect).count()
}

#[test]
fn failing_checks_quarantine_up_to_the_share_and_whoever_comes_after_that_is_reported_and_stays() {
    let mut gate = crowd(10, rules(50));
    know(&mut gate, 4_000, vec![]);
    for n in 0..5 {
        assert_eq!(fail(&mut gate, 5_000, n).wanted[0].1.edge, Edge::Shut);
        assert_eq!(of(&gate, n), FAILED);
    }
    for n in 5..10 {
        let step = fail(&mut gate, 6_000, n);
        assert!(step.wanted.is_empty());
        assert_eq!(kinds(&step), [FactKind::FleetSuspect]);
        assert!(step.facts[0].audited);
        let record = step.facts[0].record.clone().unwrap();
        assert_eq!(
            (record.admission, record.edge),
            (Some(Admission::Admitted), Some(Edge::Shut)),
            "nobody confirmed it"
        );
        let reason = record.reason.unwrap();
        assert_eq!(reason.code, Code::FleetSuspect);
        for part in ["codex_cli", "5 of 10 workers of exchange codex", "five minutes", "50%", "exit code 1"] {
            assert!(reason.detail.contains(part), "{part}: {reason:?}");
        }
        assert_eq!(of(&gate, n), EXCUSED);
    }
    assert_eq!(suspects(&gate), 5);
    for n in 5..10 {
        let step = fail(&mut gate, 7_000, n);
        assert!(step.wanted.is_empty() && !kinds(&step).contains(&FactKind::FleetSuspect), "once for each episode");
    }
    // Whoever recovers comes back, and another one may go.
    assert_eq!(pass(&mut gate, 8_000, 0).wanted[0].1.edge, Edge::Open);
    assert!(pass(&mut gate, 8_000, 5).wanted.is_empty());
    assert_eq!(of(&gate, 5), (Admission::Admitted, Code::Fit));
    assert_eq!(suspects(&gate), 4);
    fail(&mut gate, 9_000, 5);
    assert_eq!(of(&gate, 5), FAILED);
    assert_eq!(of(&gate, 6), EXCUSED, "what is excused is not taken back by that");
}

#[test]
fn one_failure_that_many_workers_share_counts_once_for_each_of_them() {
    let mut gate = Gate::new(rules(50), (0..4).map(|n| member(own(n), 0)));
    for n in 0..4 {
        gate.step(at(100), Input::Edge(own(n), EdgeReport::Owned(at(100).mono)));
    }
    pass_all(&mut gate, 200);
    know(&mut gate, 300, vec![]);
    let step = fail(&mut gate, 400, 0);
    assert_eq!(step.wanted.len(), 2);
    assert_eq!(kinds(&step).iter().filter(|kind| **kind == FactKind::FleetSuspect).count(), 2);
    assert_eq!((0..4).map(|n| of(&gate, n)).collect::<Vec<_>>(), [FAILED, FAILED, EXCUSED, EXCUSED]);
}

#[test]
fn only_failing_checks_count_and_only_they_are_excused() {
    let mut gate = crowd(4, rules(50));
    know(&mut gate, 4_000, vec![]);
    gate.step(at(5_000), by(0, profile(5_000, ProfileState::Drifted)));
    gate.step(at(5_000), by(1, tool(5_000, "codex_cli")));
    let ask = Ask::Hold { until: None };
    let order = Order { worker: own(2), ask, by: By { user: None, claims: "ann".into() }, reason: String::new() };
    gate.order(at(5_000), order);
    // A check that fails on who is out already took nobody out.
    fail(&mut gate, 5_500, 0);
    fail(&mut gate, 5_500, 1);
    assert_eq!((of(&gate, 0), of(&gate, 1)), (FAILED, FAILED));
    fail(&mut gate, 6_000, 3);
    assert_eq!(of(&gate, 3), FAILED);

    let mut gate = crowd(4, rules(50));
    know(&mut gate, 4_000, vec![]);
    fail(&mut gate, 5_000, 0);
    fail(&mut gate, 5_000, 1);
    gate.step(at(6_000), by(2, profile(6_000, ProfileState::Drifted)));
    assert_eq!(of(&gate, 2), (Admission::Quarantined, Code::ProfileDrifted));
    gate.step(at(6_000), by(3, tool(6_000, "codex_cli")));
    assert_eq!(of(&gate, 3), (Admission::Quarantined, Code::ToolChanged));
}

#[test]
fn a_check_that_is_not_required_is_nobodys_suspect() {
    let mut gate = crowd(2, rules(50));
    know(&mut gate, 4_000, vec![failed_peer(0)]);
    let step = gate.step(at(5_000), by(0, check(5_000, "extra", false)));
    assert_eq!(kinds(&step), [FactKind::WorkerHealthCheck]);
    assert_eq!(of(&gate, 0), (Admission::Admitted, Code::Fit));
}

#[test]
fn workers_of_other_gates_count_and_so_do_their_quarantines() {
    let mut gate = crowd(1, rules(50));
    know(&mut gate, 4_000, (0..3).map(fit_peer).collect());
    for n in 0..2 {
        gate.step(at(4_500), Input::Fleet(FleetNews::Peer(failed_peer(n))));
    }
    let step = fail(&mut gate, 5_000, 0);
    assert_eq!(of(&gate, 0), EXCUSED);
    let record = step.facts[0].record.as_ref().unwrap();
    assert!(record.reason.as_ref().unwrap().detail.contains("2 of 4 workers"), "{:?}", record.reason);

    // Out for another cause, of another intake, or held: none of these was taken out by a failing check.
    let others = [
        peer(0, Admission::Quarantined, "profile_drifted"),
        Peer { intake: "queue other".into(), ..failed_peer(1) },
        peer(2, Admission::Held, "check_failed"),
    ];
    let mut gate = crowd(1, rules(50));
    know(&mut gate, 4_000, others.into());
    gate.step(at(4_500), Input::Fleet(FleetNews::Peer(failed_peer(0))));
    fail(&mut gate, 5_000, 0);
    assert_eq!(of(&gate, 0), FAILED);
}

#[test]
fn quarantines_that_were_heard_of_more_than_five_minutes_ago_do_not_count() {
    let peers = || (0..3).map(failed_peer).collect::<Vec<_>>();
    let mut gate = crowd(1, rules(50));
    know(&mut gate, 10_000, peers());
    gate.step(at(20_000), Input::Fleet(FleetNews::Unknown));
    // What is told again is not new.
    know(&mut gate, 200_000, peers());
    gate.step(at(250_000), Input::Fleet(FleetNews::Peer(failed_peer(0))));
    fail(&mut gate, 310_000, 0);
    assert_eq!(of(&gate, 0), FAILED);
    let mut gate = crowd(1, rules(50));
    know(&mut gate, 10_000, peers());
    fail(&mut gate, 309_999, 0);
    assert_eq!(of(&gate, 0), EXCUSED);
}

#[test]
fn a_gate_that_is_gone_takes_its_workers_along() {
    let mut gate = crowd(2, rules(50));
    let elsewhere = Peer { gate: "h3".into(), ..fit_peer(7) };
    know(&mut gate, 4_000, (0..6).map(failed_peer).chain([elsewhere]).collect());
    gate.step(at(4_500), Input::Fleet(FleetNews::Gone { gate: "h2".into() }));
    fail(&mut gate, 5_000, 0);
    assert_eq!(of(&gate, 0), FAILED);
    fail(&mut gate, 5_000, 1);
    assert_eq!(of(&gate, 1), EXCUSED, "1 of 3, and 2 would be over the half");
}

#[test]
fn what_others_say_of_this_gates_workers_is_not_heard_and_neither_is_who_stands_by() {
    let mut gate = crowd(2, rules(50));
    let about_own = Peer { worker: own(1), ..failed_peer(0) };
    let stands_by = Peer { gate: "h3".into(), ..peer(0, Admission::Held, "owned_elsewhere") };
    know(&mut gate, 4_000, vec![about_own]);
    fail(&mut gate, 5_000, 0);
    assert_eq!(of(&gate, 0), FAILED, "one of two, as the other one is fit");

    let mut gate = crowd(1, rules(50));
    know(&mut gate, 4_000, vec![failed_peer(0)]);
    gate.step(at(4_100), Input::Fleet(FleetNews::Peer(stands_by)));
    fail(&mut gate, 5_000, 0);
    assert_eq!(of(&gate, 0), EXCUSED, "it is still known that the other one is out");

    // A worker that another gate owns is what that gate says it is.
    let mut gate = crowd(2, rules(50));
    know(&mut gate, 4_000, vec![Peer { worker: own(1), ..failed_peer(0) }]);
    let down = EdgeReport::Down(Reason::new(Code::OwnedElsewhere, "by h2", ""));
    gate.step(at(4_500), Input::Edge(own(1), down));
    fail(&mut gate, 5_000, 0);
    assert_eq!(of(&gate, 0), EXCUSED);
}

#[test]
fn one_worker_may_always_be_taken_out_and_one_that_is_alone_always_is() {
    let mut gate = crowd(1, rules(1));
    know(&mut gate, 4_000, vec![]);
    fail(&mut gate, 5_000, 0);
    assert_eq!(of(&gate, 0), FAILED);
    let mut gate = crowd(3, rules(1));
    know(&mut gate, 4_000, vec![]);
    fail(&mut gate, 5_000, 0);
    fail(&mut gate, 5_000, 1);
    assert_eq!((of(&gate, 0), of(&gate, 1)), (FAILED, EXCUSED));
}

#[test]
fn without_the_rule_or_without_news_of_the_fleet_a_failing_check_quarantines() {
    let mut gate = crowd(2, Policy { max_quarantined: None, ..rules(50) });
    know(&mut gate, 4_000, vec![]);
    let mut unknown = crowd(2, rules(50));
    for gate in [&mut gate, &mut unknown] {
        for n in 0..2 {
            fail(gate, 5_000, n);
            assert_eq!(of(gate, n), FAILED);
        }
    }
}

/// Two workers, of which the second is excused since 5 s.
fn excused(rules: Policy) -> Gate {
    let mut gate = crowd(2, rules);
    know(&mut gate, 4_000, vec![]);
    fail(&mut gate, 5_000, 0);
    fail(&mut gate, 5_000, 1);
    assert_eq!(of(&gate, 1), EXCUSED);
    gate
}

#[test]
fn an_excuse_ends_when_nothing_is_known_of_the_fleet_any_more_and_does_not_come_back() {
    let mut gate = excused(rules(50));
    let step = gate.step(at(6_000), Input::Fleet(FleetNews::Unknown));
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);
    assert_eq!(of(&gate, 1), FAILED);
    assert_eq!(suspects(&gate), 0);
    know(&mut gate, 7_000, vec![]);
    fail(&mut gate, 8_000, 1);
    assert_eq!(of(&gate, 1), FAILED);
    assert_eq!(pass(&mut gate, 9_000, 1).wanted[0].1.edge, Edge::Open);
}

#[test]
fn an_excuse_ends_with_the_rule() {
    let mut gate = excused(rules(50));
    let members = || (0..2).map(|n| member(own(n), n));
    gate.reconfigure(at(6_000), rules(40), members(), &Changes::default());
    assert_eq!(of(&gate, 1), EXCUSED);
    let off = Policy { max_quarantined: None, ..rules(50) };
    gate.reconfigure(at(7_000), off, members(), &Changes::default());
    assert_eq!(of(&gate, 1), FAILED);
}

#[test]
fn an_excuse_ends_when_the_tool_is_another_one() {
    let mut gate = excused(rules(50));
    gate.step(at(6_000), by(1, tool(6_000, "spec_kit")));
    assert_eq!(of(&gate, 1), (Admission::Quarantined, Code::ToolChanged), "an excuse is for one check");
    let mut gate = excused(rules(50));
    gate.step(at(6_000), by(1, tool(6_000, "codex_cli")));
    assert_eq!(of(&gate, 1), (Admission::Quarantined, Code::ToolChanged));
    fail(&mut gate, 7_000, 1);
    assert_eq!(of(&gate, 1), FAILED);
}

#[test]
fn an_excuse_lasts_until_the_check_has_passed_as_often_as_it_must() {
    let mut rules = rules(50);
    for rule in rules.checks.values_mut() {
        rule.pass_after = 2;
    }
    let mut gate = Gate::new(rules, (0..2).map(|n| member(own(n), 0)));
    for n in 0..2 {
        gate.step(at(100), Input::Edge(own(n), EdgeReport::Owned(at(100).mono)));
    }
    pass_all(&mut gate, 200);
    pass_all(&mut gate, 300);
    know(&mut gate, 400, vec![]);
    fail(&mut gate, 500, 0);
    assert_eq!((of(&gate, 0), of(&gate, 1)), (FAILED, EXCUSED));
    pass(&mut gate, 600, 0);
    assert_eq!((of(&gate, 0), of(&gate, 1)), (FAILED, EXCUSED));
    pass(&mut gate, 700, 0);
    assert_eq!((of(&gate, 0), of(&gate, 1)), ((Admission::Admitted, Code::Fit), (Admission::Admitted, Code::Fit)));
}

#[test]
fn an_excused_check_may_fail_for_ever_and_not_stop_running() {
    let mut gate = excused(Policy { max_age: Duration::from_secs(60), ..rules(50) });
    for second in (10..600).step_by(10) {
        let ms = second * 1000;
        gate.step(at(ms), by(1, check(ms, "spec_kit", true)));
        gate.step(at(ms), by(1, profile(ms, ProfileState::Managed)));
        if second <= 300 {
            fail(&mut gate, ms, 1);
        }
        let expected = if second < 360 { EXCUSED } else { FAILED };
        let (admission, code) = of(&gate, 1);
        assert_eq!(admission, expected.0, "{second}: {code:?}");
    }
}

#[test]
fn whoever_is_out_for_another_cause_is_not_admitted_by_an_excuse() {
    let lost = || EdgeReport::Down(Reason::new(Code::BrokerUnreachable, "lost", ""));
    let mut gate = excused(rules(50));
    gate.step(at(6_000), Input::Edge(own(1), lost()));
    assert_eq!(of(&gate, 1), FAILED);
    gate.step(at(7_000), Input::Edge(own(1), EdgeReport::Owned(at(7_000).mono)));
    for input in [check(8_000, "spec_kit", true), profile(8_000, ProfileState::Managed)] {
        gate.step(at(8_000), by(1, input));
    }
    fail(&mut gate, 8_000, 1);
    assert_eq!(of(&gate, 1), FAILED);

    let mut gate = excused(rules(50));
    gate.step(at(6_000), by(1, profile(6_000, ProfileState::Drifted)));
    gate.step(at(7_000), by(1, profile(7_000, ProfileState::Managed)));
    assert_eq!(of(&gate, 1), FAILED);

    let mut gate = excused(rules(50));
    let order = |ask| Order { worker: own(1), ask, by: By { user: None, claims: "ann".into() }, reason: String::new() };
    gate.order(at(6_000), order(Ask::Hold { until: None }));
    assert_eq!(of(&gate, 1), FAILED, "the cause is told before the hold");
    gate.order(at(7_000), order(Ask::Release));
    assert_eq!(of(&gate, 1), FAILED);

    // Neither is whoever was out when the check failed.
    let mut gate = Gate::new(rules(50), [member(own(0), 0), member(own(1), 1)]);
    know(&mut gate, 50, vec![failed_peer(0), failed_peer(1)]);
    gate.step(at(100), Input::Edge(own(0), EdgeReport::Owned(at(100).mono)));
    fail(&mut gate, 200, 0);
    assert_eq!(of(&gate, 0), FAILED);
}

#[test]
fn what_ran_on_an_excuse_is_in_doubt_since_the_last_real_proof() {
    let mut gate = excused(rules(50));
    let step = gate.step(at(9_000), by(1, profile(9_000, ProfileState::Drifted)));
    let change = step.wanted[0].1.change;
    let answer = EdgeReport::Settled { change, account: Account::default(), exposed: None, blocked: false };
    let step = gate.step(at(9_010), Input::Edge(own(1), answer));
    let record = step.facts[0].record.as_ref().unwrap();
    assert_eq!(record.proven_at, Some(at(195).wall));
}

#[test]
fn codes_are_known_as_other_gates_write_them() {
    for (code, text) in [(Code::CheckFailed, "check_failed"), (Code::OwnedElsewhere, "owned_elsewhere")] {
        assert_eq!(serde_json::to_value(code).unwrap(), text);
    }
    assert_eq!(serde_json::to_value(FactKind::FleetSuspect).unwrap(), "fleet-suspect");
    assert_eq!(serde_json::to_value(Code::FleetSuspect).unwrap(), "fleet_suspect");
}
