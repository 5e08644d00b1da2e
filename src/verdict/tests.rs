use std::collections::BTreeMap;

use jiff::Timestamp;

use super::*;
use crate::model::{
    Account, Admission, CheckResult, Code, Edge, Exposed, ExposedTask, Failure, Finding, Outcome, ProfileReport,
    ProfileState, Reason, Since,
};

mod drift;
mod fleet;
mod hold;
mod property;

const MAX_AGE: Duration = Duration::from_secs(300);

fn at(ms: u64) -> Now {
    let wall = Timestamp::from_millisecond(1_700_000_000_000 + i64::try_from(ms).unwrap()).unwrap();
    Now { mono: Mono(Duration::from_millis(ms)), wall }
}

fn policy(fail_after: u32, pass_after: u32) -> Policy {
    let rule = CheckPolicy { required: true, fail_after, pass_after };
    let optional = CheckPolicy { required: false, ..rule };
    let checks = [("codex_cli", rule), ("spec_kit", rule), ("extra", optional)];
    Policy {
        max_age: MAX_AGE,
        checks: checks.map(|(name, rule)| (name.to_owned(), rule)).into(),
        profile: true,
        repair: false,
        image_required: false,
        flap: FlapPolicy { wait: Duration::ZERO, max: Duration::ZERO },
        max_quarantined: None,
    }
}

fn name() -> WorkerName {
    WorkerName::new("codex-0@h")
}

fn member(name: WorkerName, identity: usize) -> Member {
    Member { name, identity: IdentityId(identity), intake: "exchange codex".to_owned() }
}

fn gate(policy: Policy) -> Gate {
    Gate::new(policy, [member(name(), 0)])
}

fn check(ms: u64, name: &str, passed: bool) -> Input {
    let result = CheckResult {
        status: if passed { CheckStatus::Passed } else { CheckStatus::Failed },
        outcome: Some(Outcome::ExitCode(i32::from(!passed))),
        duration: Duration::from_millis(5),
        version: None,
        fingerprint: None,
        message: (!passed)
            .then(|| Failure { detail: "codex login status: exit code 1".into(), remedy: "codex login".into() }),
    };
    observed(ms, Finding::Check { name: name.into(), result })
}

fn profile(ms: u64, state: ProfileState) -> Input {
    let problem = (state != ProfileState::Managed)
        .then(|| Failure { detail: "approval_policy is \"on-request\"".into(), remedy: "profile apply".into() });
    observed(
        ms,
        Finding::Profile(ProfileReport {
            path: "/home/celery/.codex/config.toml".into(),
            owner_uid: Some(1000),
            owner_gid: Some(1000),
            state,
            enforced: BTreeMap::new(),
            extra_settings: BTreeMap::new(),
            managed_on: None,
            config_hash: Some("c0".into()),
            policy_hash: Some("90".into()),
            problem,
            wrong: if state == ProfileState::Managed { vec![] } else { vec!["approval_policy".into()] },
            written: None,
        }),
    )
}

fn tool(ms: u64, name: &str) -> Input {
    observed(ms, Finding::Tool { name: name.into(), path: "/usr/bin/codex".into() })
}

fn observed(ms: u64, finding: Finding) -> Input {
    let (started, now) = (at(ms.saturating_sub(5)), at(ms));
    let (finished, at) = (now.mono, now.wall);
    Input::Observed(Observation {
        identity: IdentityId(0),
        started: started.mono,
        finished,
        seen: finished,
        at,
        finding,
    })
}

fn edge(report: EdgeReport) -> Input {
    Input::Edge(name(), report)
}

fn owned(ms: u64) -> Input {
    edge(EdgeReport::Owned(at(ms).mono))
}

/// Everything passes at `ms`; the last step is handed back.
fn pass_all(gate: &mut Gate, ms: u64) -> Step {
    gate.step(at(ms), check(ms, "codex_cli", true));
    gate.step(at(ms), check(ms, "spec_kit", true));
    gate.step(at(ms), profile(ms, ProfileState::Managed))
}

fn admitted(policy: Policy) -> Gate {
    let mut gate = gate(policy);
    gate.step(at(100), owned(100));
    let step = pass_all(&mut gate, 200);
    assert_eq!(step.wanted[0].1.edge, Edge::Open);
    gate
}

fn state(gate: &Gate) -> (Admission, Code) {
    let record = gate.records().remove(0);
    (record.admission.unwrap(), record.reason.unwrap().code)
}

fn kinds(step: &Step) -> Vec<FactKind> {
    step.facts.iter().map(|fact| fact.kind).collect()
}

#[test]
fn a_worker_is_held_until_every_required_check_and_the_profile_passed() {
    let mut gate = gate(policy(1, 1));
    gate.step(at(100), owned(100));
    assert_eq!(state(&gate), (Admission::Held, Code::Starting));
    assert!(gate.step(at(200), check(200, "codex_cli", true)).wanted.is_empty());
    assert!(gate.step(at(200), profile(200, ProfileState::Managed)).wanted.is_empty());
    let step = gate.step(at(210), check(210, "spec_kit", true));
    assert_eq!(
        step.wanted,
        [(name(), Wanted { edge: Edge::Open, quarantine: false, change: 1, owned: Some(at(100).mono) })]
    );
    assert_eq!(state(&gate), (Admission::Admitted, Code::Fit));
}

#[test]
fn a_check_that_is_not_required_keeps_nobody_out() {
    let mut gate = admitted(policy(1, 1));
    assert!(gate.step(at(300), check(300, "extra", false)).wanted.is_empty());
    assert_eq!(state(&gate).0, Admission::Admitted);
}

#[test]
fn evidence_from_before_the_gate_owned_the_worker_does_not_count() {
    let mut gate = gate(policy(1, 1));
    pass_all(&mut gate, 50);
    let step = gate.step(at(100), owned(100));
    assert!(step.recheck.contains(&IdentityId(0)), "owner first, then checks");
    // Began before the gate owned the worker, and ended after.
    pass_all(&mut gate, 103);
    assert_eq!(state(&gate).0, Admission::Held);
    pass_all(&mut gate, 200);
    assert_eq!(state(&gate).0, Admission::Admitted);
}

#[test]
fn a_failed_check_shuts_first_and_says_why_once_the_broker_has_confirmed() {
    let mut gate = admitted(policy(1, 1));
    let open = Wanted { edge: Edge::Open, quarantine: false, change: 1, owned: Some(at(100).mono) };
    gate.step(at(210), edge(EdgeReport::Is(open, at(210).mono)));
    let step = gate.step(at(300), check(300, "codex_cli", false));
    let shut = Wanted { edge: Edge::Shut, quarantine: true, change: 2, owned: Some(at(100).mono) };
    assert_eq!(step.wanted, [(name(), shut)]);
    assert!(!kinds(&step).contains(&FactKind::WorkerQuarantined), "the account is not known yet");
    gate.step(at(302), edge(EdgeReport::Is(shut, at(302).mono)));
    let account = Account { before: 3, moved: 2, left: 0, taken: 1 };
    let started = |id: &str, ms: Option<u64>| ExposedTask {
        id: id.to_owned(),
        name: "app.build".to_owned(),
        active: ms.is_some(),
        started_at: ms.map(|ms| at(ms).wall),
        ended_at: None,
        since: Since::Drift,
    };
    let exposed = [("a", Some(100)), ("b", Some(250)), ("c", Some(305)), ("d", None)];
    let mut tasks: Vec<_> = exposed.into_iter().map(|(id, ms)| started(id, ms)).collect();
    for (id, start, end) in [("e", 100, Some(194)), ("f", 100, Some(196)), ("g", 100, None), ("h", 250, None)] {
        let ended_at = end.map(|ms| at(ms).wall);
        tasks.push(ExposedTask { active: false, ended_at, ..started(id, Some(start)) });
    }
    let exposed = Some(Exposed { tasks: Some(tasks), ..Exposed::default() });
    let step = gate.step(at(310), edge(EdgeReport::Settled { change: 2, account, exposed, blocked: true }));
    assert_eq!(kinds(&step), [FactKind::WorkerQuarantined]);
    let record = step.facts[0].record.clone().unwrap();
    assert_eq!((record.edge, record.account), (Some(Edge::Shut), Some(account)));
    assert_eq!(record.latency_ms, Some(2.0));
    assert!(record.broker_blocked);
    assert_eq!((record.seen_at, record.proven_at), (Some(at(300).wall), Some(at(195).wall)));
    let tasks = record.exposed.unwrap().tasks.unwrap();
    let told: Vec<_> = tasks.iter().map(|task| (task.id.as_str(), task.since)).collect();
    let running = [("a", Since::Before), ("b", Since::Evidence), ("c", Since::Drift), ("d", Since::Drift)];
    // Two were over while all was proven; of one of them the end was not heard.
    let over = [("f", Since::Before), ("h", Since::Evidence)];
    assert_eq!(told, [&running[..], &over[..]].concat());
    let reason = record.reason.unwrap();
    assert_eq!((reason.code, reason.remedy.as_str()), (Code::CheckFailed, "codex login"));
    assert!(record.failure_message.unwrap().contains("codex login status: exit code 1"));
}

#[test]
fn a_broker_that_never_answers_delays_a_fact_and_does_not_swallow_it() {
    let mut gate = admitted(policy(1, 1));
    let step = gate.step(at(300), check(300, "codex_cli", false));
    let wake = step.wake_at.unwrap();
    assert!(wake <= at(4_000).mono);
    let step = gate.step(Now { mono: wake, wall: at(0).wall }, Input::Tick);
    assert_eq!(kinds(&step), [FactKind::WorkerQuarantined]);
    assert_eq!(step.facts[0].record.as_ref().unwrap().latency_ms, None);
}

#[test]
fn fail_after_and_pass_after_count_consecutive_results() {
    let mut gate = gate(policy(3, 2));
    gate.step(at(100), owned(100));
    pass_all(&mut gate, 200);
    assert_eq!(state(&gate).0, Admission::Held, "one pass of two");
    pass_all(&mut gate, 300);
    assert_eq!(state(&gate).0, Admission::Admitted);
    for (ms, passed) in [(400, false), (500, false), (600, true), (700, false), (800, false)] {
        gate.step(at(ms), check(ms, "codex_cli", passed));
        assert_eq!(state(&gate).0, Admission::Admitted, "at {ms}");
    }
    gate.step(at(900), check(900, "codex_cli", false));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::CheckFailed));
    gate.step(at(1000), check(1000, "codex_cli", true));
    assert_eq!(state(&gate).0, Admission::Quarantined, "one pass of two");
    gate.step(at(1100), check(1100, "codex_cli", true));
    assert_eq!(state(&gate).0, Admission::Admitted);
}

#[test]
fn a_drifted_profile_quarantines_at_once_whatever_fail_after_says() {
    let mut gate = admitted(policy(5, 1));
    let step = gate.step(at(300), profile(300, ProfileState::Drifted));
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);
    assert_eq!(kinds(&step), [FactKind::WorkerAdmitted, FactKind::WorkerConfigDrifted], "no account for the first");
    assert_eq!(state(&gate), (Admission::Quarantined, Code::ProfileDrifted));
    gate.step(at(400), profile(400, ProfileState::Missing));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::ProfileMissing));
    let step = gate.step(at(500), profile(500, ProfileState::Managed));
    assert_eq!(step.wanted[0].1.edge, Edge::Open);
}

#[test]
fn evidence_that_is_too_old_quarantines_at_the_moment_that_was_asked_for() {
    let mut gate = admitted(policy(1, 1));
    gate.step(
        at(210),
        edge(EdgeReport::Settled { change: 1, account: Account::default(), exposed: None, blocked: false }),
    );
    // An answer of the broker's may leave an earlier moment standing, at which nothing is due any more.
    let step = gate.step(at(211), Input::Tick).wake_at;
    let stale_at = step.unwrap();
    assert_eq!(stale_at, at(195).mono + MAX_AGE);
    assert_eq!(gate.fresh_until(&name()), Some(stale_at));
    let before = Mono(stale_at.0.checked_sub(Duration::from_millis(1)).unwrap());
    assert!(gate.step(Now { mono: before, wall: at(0).wall }, Input::Tick).wanted.is_empty());
    let step = gate.step(Now { mono: stale_at, wall: at(0).wall }, Input::Tick);
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);
    assert_eq!(state(&gate), (Admission::Quarantined, Code::EvidenceStale));
}

#[test]
fn a_lost_link_holds_the_worker_and_its_return_asks_for_checks_before_anything_opens() {
    let mut gate = admitted(policy(1, 1));
    let lost = Reason::new(Code::BrokerUnreachable, "lost", "");
    let step = gate.step(at(300), edge(EdgeReport::Down(lost.clone())));
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);
    assert!(kinds(&step).contains(&FactKind::WorkerHeld));
    assert_eq!(state(&gate), (Admission::Held, Code::BrokerUnreachable));
    pass_all(&mut gate, 400);
    assert_eq!(state(&gate).0, Admission::Held, "nobody owns the worker");
    let step = gate.step(at(500), owned(500));
    assert!(step.wanted.is_empty() && step.recheck.contains(&IdentityId(0)));
    assert_eq!(pass_all(&mut gate, 600).wanted[0].1.edge, Edge::Open);
}

#[test]
fn a_quarantined_worker_stays_so_over_a_lost_link_until_it_is_proven_again() {
    let mut gate = admitted(policy(1, 1));
    gate.step(at(300), check(300, "codex_cli", false));
    gate.step(at(400), edge(EdgeReport::Down(Reason::new(Code::BrokerUnreachable, "lost", ""))));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::CheckFailed));
    gate.step(at(500), owned(500));
    assert_eq!(state(&gate).0, Admission::Quarantined);
    pass_all(&mut gate, 600);
    assert_eq!(state(&gate).0, Admission::Admitted);
}

#[test]
fn the_second_gate_says_once_that_another_owns_the_worker() {
    let mut gate = gate(policy(1, 1));
    let owner = Reason::new(Code::OwnedElsewhere, "it is owned by the gate host-2", "");
    let step = gate.step(at(100), edge(EdgeReport::Down(owner.clone())));
    assert_eq!(kinds(&step), [FactKind::WorkerHeld]);
    assert_eq!(step.facts[0].record.as_ref().unwrap().reason, Some(owner.clone()));
    assert!(gate.step(at(600), edge(EdgeReport::Down(owner))).facts.is_empty());
}

#[test]
fn after_a_stop_nothing_opens_again() {
    let mut gate = admitted(policy(1, 1));
    let step = gate.step(at(300), Input::Stop);
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);
    assert_eq!(state(&gate), (Admission::Held, Code::Stopping));
    assert!(pass_all(&mut gate, 400).wanted.is_empty());
    assert!(gate.step(at(500), owned(500)).wanted.is_empty());
    assert!(pass_all(&mut gate, 600).wanted.is_empty());
}

#[test]
fn a_health_check_that_says_nothing_new_is_published_and_not_audited_again() {
    let mut gate = admitted(policy(1, 1));
    let first = gate.step(at(300), check(300, "extra", true));
    assert_eq!((first.facts[0].kind, first.facts[0].audited), (FactKind::WorkerHealthCheck, true));
    let same = gate.step(at(400), check(400, "extra", true));
    assert_eq!((same.facts[0].kind, same.facts[0].audited), (FactKind::WorkerHealthCheck, false));
    let other = gate.step(at(500), check(500, "extra", false));
    assert!(other.facts[0].audited);
}

#[test]
fn requests_for_checks_are_folded_by_the_number_of_workers_that_hear_of_the_findings() {
    let workers = (0..500).map(|n| member(WorkerName::new(&format!("codex-{n}")), 0));
    let mut gate = Gate::new(policy(1, 1), workers.chain([member(name(), 1)]));
    let owned = |name: WorkerName, ms| Input::Edge(name, EdgeReport::Owned(at(ms).mono));
    let crowd = |n, ms| owned(WorkerName::new(&format!("codex-{n}")), ms);
    assert_eq!(gate.step(at(10), crowd(0, 10)).recheck, [IdentityId(0)].into(), "the first is answered at once");
    for n in 1..500 {
        let step = gate.step(at(20), crowd(n, 20));
        assert!(step.recheck.is_empty());
        assert_eq!(step.wake_at, Some(at(1010).mono));
    }
    assert_eq!(gate.step(at(30), owned(name(), 30)).recheck, [IdentityId(1)].into(), "others do not wait for them");
    assert!(gate.step(at(1009), Input::Tick).recheck.is_empty());
    assert_eq!(gate.step(at(1010), Input::Tick).recheck, [IdentityId(0)].into(), "one run answers all of them");
    let step = gate.step(at(3000), Input::Tick);
    assert!(step.recheck.is_empty() && step.wake_at.is_none());
}
