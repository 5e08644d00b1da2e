use super::*;
use crate::{
    model::{Account, Admission, CheckResult, CheckStatus, Code, Edge, IdentityId, Outcome, Reason},
    report::{
        event::tests::{fact, record},
        http::{Progress, WorkerView},
    },
};

const MAX_AGE: Duration = Duration::from_secs(300);
const NOW: Mono = Mono(Duration::from_secs(1_000));

fn metrics() -> Metrics {
    Metrics::new("host-1", MAX_AGE)
}

fn snapshot(workers: Vec<WorkerView>) -> Snapshot {
    let progress = Progress { at: Some(NOW), limit: Duration::from_secs(15) };
    Snapshot { workers, link: progress, checks: progress, audit: Ok(()) }
}

fn fit(name: &str) -> WorkerView {
    let proven = Mono(Duration::from_secs(993));
    WorkerView { record: record(name), fresh_until: Some(proven + MAX_AGE) }
}

fn classic(metrics: &Metrics, snapshot: &Snapshot) -> String {
    metrics.answer(snapshot, NOW, None).text
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|one| one == line), "no line {line:?} in\n{text}");
}

fn observation(status: CheckStatus, outcome: Option<Outcome>, millis: u64) -> Observation {
    let result = CheckResult {
        status,
        outcome,
        duration: Duration::from_millis(millis),
        version: None,
        fingerprint: None,
        message: None,
    };
    let finding = Finding::Check { name: "codex_cli".into(), result };
    let at = "2026-11-22T10:00:00Z".parse().unwrap();
    Observation { identity: IdentityId(0), started: NOW, finished: NOW, seen: NOW, at, finding }
}

#[test]
fn a_worker_shows_its_admission_its_edge_its_reason_and_the_age_of_its_evidence() {
    let mut unfit = fit("b");
    unfit.record.admission = Some(Admission::Quarantined);
    unfit.record.edge = Some(Edge::Shut);
    unfit.record.reason = Some(Reason::new(Code::ProfileDrifted, "", ""));
    unfit.fresh_until = None;
    let text = classic(&metrics(), &snapshot(vec![fit("a"), unfit]));
    for line in [
        r#"worker_gate_worker_admission{worker="a",admission="admitted"} 1"#,
        r#"worker_gate_worker_admission{worker="a",admission="quarantined"} 0"#,
        r#"worker_gate_worker_admission{worker="b",admission="quarantined"} 1"#,
        r#"worker_gate_worker_admission{worker="b",admission="held"} 0"#,
        r#"worker_gate_worker_edge_open{worker="a"} 1"#,
        r#"worker_gate_worker_edge_open{worker="b"} 0"#,
        r#"worker_gate_worker_reason{worker="a",code="fit"} 1"#,
        r#"worker_gate_worker_reason{worker="b",code="profile_drifted"} 1"#,
        r#"worker_gate_evidence_age_seconds{worker="a"} 7.0"#,
        "worker_gate_evidence_max_age_seconds 300.0",
        "worker_gate_healthy 1",
        concat!(r#"worker_gate_build_info{gate="host-1",version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
    ] {
        has(&text, line);
    }
    assert!(!text.contains(r#"evidence_age_seconds{worker="b"}"#), "it has no proof\n{text}");
    let mut stuck = snapshot(Vec::new());
    stuck.checks.at = None;
    has(&classic(&metrics(), &stuck), "worker_gate_healthy 0");
}

#[test]
fn what_happens_is_counted_once_for_each_time() {
    let metrics = metrics();
    metrics.observed(&observation(CheckStatus::Passed, Some(Outcome::ExitCode(0)), 40));
    metrics.observed(&observation(CheckStatus::Failed, Some(Outcome::Timeout), 5_000));
    metrics.observed(&observation(CheckStatus::Failed, None, 0));
    for (kind, moved) in [(FactKind::WorkerQuarantined, 3), (FactKind::WorkerHeld, 4), (FactKind::WorkerAdmitted, 5)] {
        let mut told = fact(kind, Some("a"), true);
        if let Some(record) = &mut told.record {
            record.account = Some(Account { before: moved, moved, ..Account::default() });
            record.latency_ms = Some(2.0);
        }
        metrics.told(&told);
    }
    metrics.told(&fact(FactKind::WorkerBypass, Some("a"), true));
    metrics.told(&fact(FactKind::GateHeartbeat, None, false));
    metrics.see(true, false, Counts { waiting: 2, lost: 3, unpublished: 4 });
    metrics.reconnected();
    let text = classic(&metrics, &snapshot(vec![fit("a")]));
    for line in [
        r#"worker_gate_check_results_total{check="codex_cli",status="passed"} 1"#,
        r#"worker_gate_check_results_total{check="codex_cli",status="failed"} 2"#,
        r#"worker_gate_check_duration_seconds_count{check="codex_cli"} 2"#,
        r#"worker_gate_check_duration_seconds_bucket{le="0.05",check="codex_cli"} 1"#,
        r#"worker_gate_check_duration_seconds_bucket{le="+Inf",check="codex_cli"} 2"#,
        // An admission has a latency as well, and is no shut.
        "worker_gate_shut_latency_seconds_count 1",
        r#"worker_gate_shut_latency_seconds_bucket{le="0.0025"} 1"#,
        r#"worker_gate_messages_moved_total{worker="a",direction="taken_back"} 7"#,
        r#"worker_gate_messages_moved_total{worker="a",direction="given_back"} 5"#,
        r#"worker_gate_bypasses_total{worker="a"} 1"#,
        r#"worker_gate_facts_total{type="worker-bypass"} 1"#,
        "worker_gate_facts_waiting 2",
        "worker_gate_facts_lost_total 3",
        "worker_gate_facts_unpublished_total 4",
        "worker_gate_broker_up 1",
        "worker_gate_broker_blocked 0",
        "worker_gate_broker_reconnects_total 1",
    ] {
        has(&text, line);
    }
}

#[test]
fn what_has_not_happened_to_a_worker_yet_is_a_zero() {
    let text = classic(&metrics(), &snapshot(vec![fit("a")]));
    has(&text, r#"worker_gate_bypasses_total{worker="a"} 0"#);
    has(&text, r#"worker_gate_messages_moved_total{worker="a",direction="given_back"} 0"#);
}

#[test]
fn how_many_messages_wait_is_told_only_while_it_is_known() {
    let (metrics, snapshot) = (metrics(), snapshot(vec![fit("a"), fit("b")]));
    assert!(!classic(&metrics, &snapshot).contains("worker_gate_messages_waiting{"));
    metrics.counted(NOW, [(WorkerName::new("a"), 12)].into());
    let text = classic(&metrics, &snapshot);
    has(&text, r#"worker_gate_messages_waiting{worker="a"} 12"#);
    assert!(!text.contains(r#"worker_gate_messages_waiting{worker="b"}"#), "{text}");
    let later = metrics.answer(&snapshot, NOW + COUNT_HOLDS + Duration::from_secs(1), None);
    assert!(!later.text.contains("worker_gate_messages_waiting{"), "{}", later.text);
}

#[tokio::test]
async fn an_answer_asks_for_a_new_count_and_nothing_else_does() {
    use futures_util::FutureExt;
    let (metrics, snapshot) = (metrics(), snapshot(Vec::new()));
    assert!(metrics.scraped().now_or_never().is_none());
    classic(&metrics, &snapshot);
    classic(&metrics, &snapshot);
    assert!(metrics.scraped().now_or_never().is_some());
    assert!(metrics.scraped().now_or_never().is_none(), "two answers are one reason to count");
}

#[test]
fn whatever_a_worker_is_called_is_a_label_and_no_more() {
    let name = "a\"} 7\nworker_gate_healthy 0\\";
    let text = classic(&metrics(), &snapshot(vec![fit(name)]));
    has(&text, r#"worker_gate_worker_edge_open{worker="a\"} 7\nworker_gate_healthy 0\\"} 1"#);
    has(&text, "worker_gate_healthy 1");
    assert!(!text.lines().any(|line| line == "worker_gate_healthy 0\\"), "{text}");
}

#[test]
fn in_the_older_form_a_counter_is_called_as_its_samples_are() {
    let (metrics, snapshot) = (metrics(), snapshot(vec![fit("a")]));
    metrics.observed(&observation(CheckStatus::Passed, Some(Outcome::ExitCode(0)), 40));
    let open = metrics.answer(&snapshot, NOW, Some(text::OPEN)).text;
    has(&open, "# TYPE worker_gate_bypasses counter");
    has(&open, "# UNIT worker_gate_check_duration_seconds seconds");
    has(&open, "# EOF");
    let text = classic(&metrics, &snapshot);
    has(&text, "# TYPE worker_gate_bypasses_total counter");
    has(&text, "# TYPE worker_gate_check_duration_seconds histogram");
    assert!(text.contains("# HELP worker_gate_bypasses_total How often"), "{text}");
    assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
}
