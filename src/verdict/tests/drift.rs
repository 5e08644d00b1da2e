//! Tools that change, profiles that are mended, workers that come and go, and images.

use super::*;
use crate::model::{Image, ImageReport, ImageState};

/// A passed result of `codex_cli` with this version and fingerprint.
fn version(ms: u64, version: &str, fingerprint: &str) -> Input {
    let result = CheckResult {
        status: CheckStatus::Passed,
        outcome: Some(Outcome::ExitCode(0)),
        duration: Duration::from_millis(5),
        version: Some(version.into()),
        fingerprint: Some(fingerprint.into()),
        message: None,
    };
    observed(ms, Finding::Check { name: "codex_cli".into(), result })
}

#[test]
fn a_tool_that_changes_shuts_first_and_only_a_look_that_began_afterwards_opens() {
    let mut gate = admitted(policy(3, 1));
    gate.step(at(300), version(300, "1.0.0", "f1"));
    let step = gate.step(at(400), tool(400, "codex_cli"));
    assert_eq!(step.wanted[0].1.edge, Edge::Shut, "whatever fail_after says");
    assert_eq!(state(&gate), (Admission::Quarantined, Code::ToolChanged));
    // Began before the change was seen, and ended after it.
    let Input::Observed(late) = version(398, "1.0.0", "f1") else { unreachable!() };
    gate.step(at(410), Input::Observed(Observation { finished: at(410).mono, ..late }));
    assert_eq!(state(&gate).0, Admission::Quarantined);
    let step = gate.step(at(500), version(500, "2.0.0", "f2"));
    assert_eq!(step.wanted[0].1.edge, Edge::Open);
    let change = step.facts.iter().find(|fact| fact.kind == FactKind::WorkerVersionChanged).unwrap();
    let change = change.record.as_ref().unwrap().version_change.clone().unwrap();
    let words = |tool: &crate::model::Tool| (tool.version.clone().unwrap(), tool.fingerprint.clone().unwrap());
    assert_eq!(words(&change.old), ("1.0.0".into(), "f1".into()));
    assert_eq!(words(&change.new), ("2.0.0".into(), "f2".into()));
    let again = gate.step(at(600), version(600, "2.0.0", "f2"));
    assert!(!kinds(&again).contains(&FactKind::WorkerVersionChanged));
}

#[test]
fn a_changed_tool_that_is_not_allowed_stays_out_and_one_that_nobody_requires_is_only_told() {
    let mut gate = admitted(policy(1, 1));
    gate.step(at(400), tool(400, "codex_cli"));
    gate.step(at(500), check(500, "codex_cli", false));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::CheckFailed));
    let mut gate = admitted(policy(1, 1));
    assert!(gate.step(at(400), tool(400, "extra")).wanted.is_empty());
    assert_eq!(state(&gate).0, Admission::Admitted);
}

#[test]
fn a_worker_that_has_proven_nothing_yet_is_still_held_when_its_tool_changes() {
    let mut gate = gate(policy(1, 1));
    gate.step(at(100), owned(100));
    gate.step(at(200), tool(200, "codex_cli"));
    assert_eq!(state(&gate), (Admission::Held, Code::Starting));
}

#[test]
fn other_keys_that_change_are_named_and_shut_nothing() {
    let mut gate = admitted(policy(1, 1));
    let with = |ms, hash: &str, keys: &[(&str, &str)]| {
        let Input::Observed(mut observation) = profile(ms, ProfileState::Managed) else { unreachable!() };
        let Finding::Profile(report) = &mut observation.finding else { unreachable!() };
        report.config_hash = Some(hash.into());
        report.extra_settings = keys.iter().map(|(key, hash)| ((*key).to_owned(), (*hash).to_owned())).collect();
        Input::Observed(observation)
    };
    gate.step(at(300), with(300, "c1", &[("model", "a"), ("theme", "b"), ("old", "c")]));
    let step = gate.step(at(400), with(400, "c2", &[("model", "x"), ("new", "y"), ("theme", "b")]));
    assert!(step.wanted.is_empty());
    assert_eq!(kinds(&step), [FactKind::WorkerConfigManaged]);
    let record = step.facts[0].record.as_ref().unwrap();
    assert_eq!(record.changed_settings.as_deref().unwrap(), ["model", "new", "old"]);
    assert_eq!(record.config_hash.as_deref(), Some("c2"));
    // The evidence is as new as this look.
    assert_eq!(gate.fresh_until(&name()), Some(at(195).mono + MAX_AGE), "the checks are older");
}

fn repairing() -> Gate {
    admitted(Policy { repair: true, ..policy(1, 1) })
}

fn mended(ms: u64) -> Input {
    observed(ms, Finding::Repair(Ok(())))
}

#[test]
fn a_drifted_profile_is_mended_once_for_each_drift() {
    let mut gate = repairing();
    let step = gate.step(at(300), profile(300, ProfileState::Drifted));
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);
    assert!(step.repair.contains(&IdentityId(0)));
    assert!(gate.step(at(310), profile(310, ProfileState::Drifted)).repair.is_empty(), "it is under way");
    gate.step(at(320), mended(320));
    let step = gate.step(at(321), profile(321, ProfileState::Managed));
    assert_eq!(step.wanted[0].1.edge, Edge::Open);
    let mut gate = admitted(policy(1, 1));
    assert!(gate.step(at(300), profile(300, ProfileState::Drifted)).repair.is_empty(), "on_drift = report");
}

#[test]
fn a_profile_is_not_mended_by_a_gate_that_does_not_own_the_worker() {
    let mut gate = gate(Policy { repair: true, ..policy(1, 1) });
    assert!(gate.step(at(300), profile(300, ProfileState::Drifted)).repair.is_empty());
    gate.step(at(400), owned(400));
    assert!(!gate.step(at(500), profile(500, ProfileState::Drifted)).repair.is_empty());
}

#[test]
fn what_is_undone_more_than_three_times_in_ten_minutes_is_left_alone_and_says_who_may_be_writing() {
    let mut gate = repairing();
    let mut ms = 1_000;
    let drift = |gate: &mut Gate, ms| !gate.step(at(ms), profile(ms, ProfileState::Drifted)).repair.is_empty();
    let mend = |gate: &mut Gate, ms| {
        gate.step(at(ms), mended(ms));
        gate.step(at(ms + 1), profile(ms + 1, ProfileState::Managed));
    };
    for undone in 0..4 {
        assert!(drift(&mut gate, ms), "undone {undone} times");
        mend(&mut gate, ms + 10);
        ms += 60_000;
    }
    assert!(!drift(&mut gate, ms), "undone four times");
    assert!(!drift(&mut gate, ms + 60_000), "and it stays so");
    let reason = gate.records()[0].reason.clone().unwrap();
    assert_eq!(reason.code, Code::ProfileDrifted);
    assert!(reason.detail.contains("undone (approval_policy)"), "{reason:?}");
    // Somebody has mended it; the next drift within the ten minutes is left alone at once, a later one is not.
    gate.step(at(ms + 70_000), profile(ms + 70_000, ProfileState::Managed));
    assert!(!drift(&mut gate, ms + 80_000));
    gate.step(at(ms + 90_000), profile(ms + 90_000, ProfileState::Managed));
    assert!(drift(&mut gate, ms + 700_000));
}

#[test]
fn a_repair_that_fails_says_why_and_counts_for_nothing() {
    let mut gate = repairing();
    let failed = |ms| {
        let failure = Failure { detail: "it is a mount point".into(), remedy: "unmount it".into() };
        observed(ms, Finding::Repair(Err(failure)))
    };
    assert!(!gate.step(at(1_000), profile(1_000, ProfileState::Drifted)).repair.is_empty());
    gate.step(at(1_010), failed(1_010));
    for ms in (2_000..60_000).step_by(1_000) {
        // Looked at every second, it is tried again every five, by the look or by the tick.
        let looked = gate.step(at(ms), profile(ms, ProfileState::Drifted)).repair;
        let ticked = gate.step(at(ms + 20), Input::Tick).repair;
        let (early, late) = (looked.is_empty(), ticked.is_empty());
        assert_eq!((early, late), (true, ms % 5_000 != 1_000), "{ms}");
        if !late {
            gate.step(at(ms + 20), failed(ms + 20));
        }
    }
    let reason = gate.records()[0].reason.clone().unwrap();
    assert!(reason.detail.contains("failed to mend it: it is a mount point") && reason.remedy == "unmount it");
}

#[test]
fn what_fails_to_be_mended_is_tried_again_at_once_when_it_changes() {
    let mut gate = repairing();
    let failure = || Failure { detail: "it is no TOML".into(), remedy: "mend it".into() };
    gate.step(at(1_000), profile(1_000, ProfileState::Drifted));
    gate.step(at(1_010), observed(1_010, Finding::Repair(Err(failure()))));
    let Input::Observed(mut seen) = profile(1_020, ProfileState::Drifted) else { unreachable!() };
    assert!(gate.step(at(1_020), Input::Observed(seen.clone())).repair.is_empty());
    let Finding::Profile(report) = &mut seen.finding else { unreachable!() };
    report.config_hash = Some("another".into());
    assert!(!gate.step(at(1_020), Input::Observed(seen)).repair.is_empty());
}

#[test]
fn a_profile_that_a_repair_changes_nothing_about_is_not_mended_without_a_pause() {
    let mut gate = repairing();
    let unreadable = |ms| {
        let Input::Observed(mut seen) = profile(ms, ProfileState::Drifted) else { unreachable!() };
        let Finding::Profile(report) = &mut seen.finding else { unreachable!() };
        // Every key is right, and the worker's user may not read it.
        report.wrong.clear();
        Input::Observed(seen)
    };
    assert!(!gate.step(at(1_000), unreadable(1_000)).repair.is_empty());
    gate.step(at(1_010), mended(1_010));
    assert!(gate.step(at(1_020), unreadable(1_020)).repair.is_empty());
    assert!(!gate.step(at(6_010), unreadable(6_010)).repair.is_empty());
}

#[test]
fn a_repair_that_new_settings_have_cut_short_is_asked_for_again() {
    let mut gate = repairing();
    assert!(!gate.step(at(1_000), profile(1_000, ProfileState::Drifted)).repair.is_empty());
    assert!(gate.step(at(1_010), profile(1_010, ProfileState::Drifted)).repair.is_empty(), "it is under way");
    gate.reconfigure(at(1_020), Policy { repair: true, ..policy(1, 1) }, [member(name(), 0)], &Changes::default());
    assert!(!gate.step(at(1_030), profile(1_030, ProfileState::Drifted)).repair.is_empty());
}

#[test]
fn who_is_quarantined_again_and_again_waits_twice_as_long_each_time() {
    let (wait, max) = (Duration::from_secs(1), Duration::from_secs(5));
    let mut gate = admitted(Policy { flap: FlapPolicy { wait, max }, ..policy(1, 1) });
    let mut ms = 10_000;
    let mut waits = Vec::new();
    for _ in 0..5 {
        gate.step(at(ms), profile(ms, ProfileState::Drifted));
        let record = gate.records().remove(0);
        waits.push(record.readmission.map_or(0.0, |readmission| readmission.wait_ms));
        let step = gate.step(at(ms + 10), profile(ms + 10, ProfileState::Managed));
        if let Some(readmission) = record.readmission {
            assert_eq!(state(&gate), (Admission::Quarantined, Code::Flapping));
            assert!(step.wake_at.unwrap() <= at(ms + 5_000).mono, "nobody would look again");
            let end = ms + u64::try_from(readmission.at.as_millisecond() - at(ms).wall.as_millisecond()).unwrap();
            assert!(gate.step(at(end - 1), Input::Tick).wanted.is_empty());
            assert_eq!(gate.step(at(end), Input::Tick).wanted[0].1.edge, Edge::Open);
            assert_eq!(gate.records()[0].readmission, None);
            ms = end;
        }
        assert_eq!(state(&gate).0, Admission::Admitted);
        ms += 1_000;
    }
    assert_eq!(waits, [0.0, 1_000.0, 2_000.0, 4_000.0, 5_000.0]);
    // Ten minutes later the row has ended.
    for at_ms in (ms..ms + 700_000).step_by(100_000) {
        pass_all(&mut gate, at_ms);
    }
    gate.step(at(ms + 700_000), profile(ms + 700_000, ProfileState::Drifted));
    assert_eq!(gate.records()[0].readmission, None);
}

#[test]
fn a_wait_that_has_ended_wakes_nobody_as_long_as_something_is_wrong() {
    let (wait, max) = (Duration::from_secs(1), Duration::from_secs(5));
    let mut gate = admitted(Policy { flap: FlapPolicy { wait, max }, ..policy(1, 1) });
    gate.step(at(10_000), profile(10_000, ProfileState::Drifted));
    gate.step(at(11_000), profile(11_000, ProfileState::Managed));
    gate.step(at(20_000), profile(20_000, ProfileState::Drifted));
    assert_eq!(gate.step(at(20_500), Input::Tick).wake_at, Some(at(21_000).mono));
    assert_eq!(gate.step(at(24_000), Input::Tick).wake_at, None);
}

fn image(ms: u64, image: Option<(ImageState, &str)>) -> Input {
    let image = image.map(|(state, version)| Image {
        manifest_hash: format!("{state:?}{version}"),
        state,
        base_image: None,
        node_version: None,
        codex_cli_version: Some(version.into()),
        spec_kit_version: None,
    });
    Input::Image(ImageReport { image, problem: None, started: at(ms).mono, seen: at(ms).mono })
}

#[test]
fn a_required_image_must_be_verified_and_list_what_the_tools_say() {
    let mut gate = gate(Policy { image_required: true, ..policy(1, 1) });
    gate.step(at(100), owned(100));
    gate.step(at(200), version(200, "1.0.0", "f1"));
    gate.step(at(200), check(200, "spec_kit", true));
    gate.step(at(200), profile(200, ProfileState::Managed));
    assert_eq!(state(&gate).0, Admission::Held, "nobody has looked at the image");
    gate.step(at(300), image(300, None));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::ImageUnverified));
    gate.step(at(400), image(400, Some((ImageState::Built, "1.0.0"))));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::ImageUnverified));
    let step = gate.step(at(500), image(500, Some((ImageState::Verified, "1.0.0"))));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::ImageChanged), "what was proven under another manifest");
    assert!(step.recheck.contains(&IdentityId(0)));
    gate.step(at(600), version(600, "1.0.0", "f1"));
    gate.step(at(600), check(600, "spec_kit", true));
    assert_eq!(state(&gate).0, Admission::Admitted);
    gate.step(at(700), tool(700, "codex_cli"));
    gate.step(at(800), version(800, "1.0.1", "f2"));
    assert_eq!(state(&gate), (Admission::Quarantined, Code::ImageMismatch));
}

#[test]
fn other_rules_touch_only_what_they_are_about() {
    let (one, other) = (WorkerName::new("a"), WorkerName::new("b"));
    let workers = || [member(one.clone(), 0), member(other.clone(), 0)];
    let rules = policy(1, 1);
    let mut gate = Gate::new(rules.clone(), workers());
    for name in [&one, &other] {
        gate.step(at(100), Input::Edge(name.clone(), EdgeReport::Owned(at(100).mono)));
    }
    pass_all(&mut gate, 200);
    let admissions = |gate: &Gate| -> Vec<_> {
        gate.records().into_iter().map(|record| (record.worker_name.to_string(), record.admission.unwrap())).collect()
    };
    let both = |admission| vec![("a".to_owned(), admission), ("b".to_owned(), admission)];
    assert_eq!(admissions(&gate), both(Admission::Admitted));

    // Nothing that is proven is asked for otherwise.
    let step = gate.reconfigure(at(300), rules.clone(), workers(), &Changes::default());
    assert!(step.wanted.is_empty() && admissions(&gate) == both(Admission::Admitted));

    // One worker has another lane, the other stays as it is.
    let changes = Changes { workers: [one.clone()].into(), ..Changes::default() };
    let step = gate.reconfigure(at(400), rules.clone(), workers(), &changes);
    let held = step.facts.iter().filter(|fact| fact.kind == FactKind::WorkerHeld);
    let names: Vec<_> = held.map(|fact| fact.record.as_ref().unwrap().worker_name.clone()).collect();
    assert_eq!(names, std::slice::from_ref(&one));
    assert_eq!(admissions(&gate), [("a".to_owned(), Admission::Held), ("b".to_owned(), Admission::Admitted)]);

    // It is gone, and the other has a check that runs something else.
    let changes = Changes { checks: ["codex_cli".to_owned()].into(), ..Changes::default() };
    let step = gate.reconfigure(at(500), rules.clone(), [member(other.clone(), 0)], &changes);
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);
    let record = gate.records().remove(0);
    assert_eq!(record.worker_name, other);
    assert_eq!(record.reason.unwrap().code, Code::SettingsChanged);
    // Nothing that began before counts.
    gate.step(at(503), check(503, "codex_cli", true));
    assert_eq!(gate.records()[0].admission, Some(Admission::Quarantined));
    gate.step(at(600), check(600, "codex_cli", true));
    assert_eq!(gate.records()[0].admission, Some(Admission::Admitted));

    // Another identity, and nothing that was proven is about it.
    let step = gate.reconfigure(at(700), rules.clone(), [member(other.clone(), 1)], &Changes::default());
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);

    // A check more, which has never run.
    let mut gate = admitted(rules.clone());
    let mut more = rules;
    more.checks.insert("new".into(), CheckPolicy { required: true, fail_after: 1, pass_after: 1 });
    let step = gate.reconfigure(at(300), more, [member(name(), 0)], &Changes::default());
    assert_eq!(step.wanted[0].1.edge, Edge::Shut);
    assert_eq!(gate.step(at(400), check(400, "new", true)).wanted[0].1.edge, Edge::Open);
}
