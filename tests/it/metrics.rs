//! What `/metrics` says is read by Prometheus' own tools, is so, and is all that the alerts and the dashboard ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use regex::Regex;
use serde_json::Value;

use crate::support::{
    celery::venv,
    field::{Field, Kind, for_each_edge},
    gate::{Gate, Host, MANAGED},
    process::{run, run_with},
    proxy::{Mode, Proxy},
    rabbitmq::Broker,
    redis::Redis,
    tasks::Task,
    vhost::{Vhost, vhost},
    wait::{eventually, throughout, until},
};

const SOON: Duration = Duration::from_secs(30);
const A_WHILE: Duration = Duration::from_millis(1_500);
const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";
/// As Prometheus asks.
const OPEN: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

for_each_edge! {
    prometheus_own_tools_read_what_a_live_gate_says_and_it_is_so
    what_waits_is_counted_for_whoever_scrapes
}

fn prometheus_own_tools_read_what_a_live_gate_says_and_it_is_so(kind: Kind) {
    let field = Field::new(kind);
    let gate = field.admit_both();
    let (name, host) = (field.name(0), field.host(0));
    let admitted = Samples::of(&gate);
    assert_eq!(admitted.get("worker_admission", &[("worker", &name), ("admission", "admitted")]), Some(1.0));
    assert_eq!(admitted.get("worker_edge_open", &[("worker", &name)]), Some(1.0));
    assert_eq!(admitted.get("worker_reason", &[("worker", &name), ("code", "fit")]), Some(1.0));
    assert!(admitted.get("evidence_age_seconds", &[("worker", &name)]).unwrap() < 20.0);
    assert!(admitted.get("check_duration_seconds_count", &[("check", "codex_cli")]).unwrap() >= 1.0);
    let version = [("gate", host.name()), ("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(admitted.get("build_info", &version), Some(1.0));
    for (healthy, value) in [("healthy", 1.0), ("broker_up", 1.0), ("broker_blocked", 0.0), ("facts_lost_total", 0.0)] {
        assert_eq!(admitted.get(healthy, &[]), Some(value), "{healthy}");
    }

    host.set_profile(DRIFTED);
    gate.wait_until(SOON, &name, "quarantined");
    let told = eventually(SOON, "the quarantine is counted", || {
        Some(Samples::of(&gate)).filter(|now| now.get("facts_total", &[("type", "worker-quarantined")]) == Some(1.0))
    });
    assert_eq!(told.get("worker_admission", &[("worker", &name), ("admission", "admitted")]), Some(0.0));
    assert_eq!(told.get("worker_reason", &[("worker", &name), ("code", "profile_drifted")]), Some(1.0));
    assert_eq!(told.get("evidence_age_seconds", &[("worker", &name)]), None);
    assert_eq!(told.get("shut_latency_seconds_count", &[]), Some(1.0));
    assert!(told.get("shut_latency_seconds_sum", &[]).unwrap() < 5.0);
    assert!(gate.stop().success());
}

fn what_waits_is_counted_for_whoever_scrapes(kind: Kind) {
    let field = Field::new(kind);
    let gate = field.admit_both();
    field.hosts().iter().for_each(|host| host.set_profile(DRIFTED));
    field.wait_until_both_are(&gate, "quarantined");
    let waiting = |n: usize| Samples::classic(&gate).get("messages_waiting", &[("worker", &field.name(n))]);
    assert_eq!(waiting(0), None, "nobody has asked before");
    field.publish((0..10).map(|n| Task::mark(format!("m-{n}"))));
    // Those of a shared queue wait for either worker.
    let each = if kind.is_shared() { 10.0 } else { 5.0 };
    until(SOON, "all of them are counted", || (waiting(0), waiting(1)) == (Some(each), Some(each)));
    if kind.is_shared() {
        return;
    }
    field.hosts().iter().for_each(|host| host.set_profile(MANAGED));
    field.wait_until_both_are(&gate, "admitted");
    until(SOON, "what was given back is not counted any more", || (waiting(0), waiting(1)) == (Some(0.0), Some(0.0)));
    let name = field.name(0);
    let labels = [("worker", name.as_str()), ("direction", "given_back")];
    until(SOON, "the moves are counted", || Samples::classic(&gate).get("messages_moved_total", &labels) == Some(5.0));
}

#[test]
fn what_waits_behind_a_hash_intake_waits_for_each_of_its_workers() {
    let (vhost, host) = (vhost(), Host::new("hash"));
    let mut settings = host.settings_without_workers(&vhost.url());
    for lane in ["codex-0", "codex-1"] {
        host.add_worker(&mut settings, lane, r#"exchange = "codex", type = "x-consistent-hash", keys = ["1"]"#);
    }
    let gate = host.start(&settings);
    for (profile, admission) in [(MANAGED, "admitted"), (DRIFTED, "quarantined")] {
        host.set_profile(profile);
        for lane in ["codex-0", "codex-1"] {
            gate.wait_until(SOON, lane, admission);
        }
    }
    vhost.publish("codex", "any", ["a", "b", "c"]);
    until(SOON, "all of them are counted", || {
        let now = Samples::classic(&gate);
        ["codex-0", "codex-1"].map(|lane| now.get("messages_waiting", &[("worker", lane)])) == [Some(3.0), Some(3.0)]
    });
}

#[test]
fn on_redis_all_priorities_of_a_queue_are_counted_and_an_exchange_has_one_of_its_own() {
    let (redis, host) = (Redis::start(), Host::new("priorities"));
    let mut settings = host.settings_without_workers(&redis.url());
    let intake = r#"exchange = "codex", type = "direct", keys = ["codex-0"]"#;
    host.add_fed_worker(&mut settings, "codex-0", "codex-0.lane", intake);
    let gate = host.start(&settings);
    gate.wait_until(SOON, "codex-0", "admitted");
    host.set_profile(DRIFTED);
    gate.wait_until(SOON, "codex-0", "quarantined");
    redis.publish("codex-0.lane.held", [0, 3, 9].map(|n| Task::mark(format!("p-{n}")).with_priority(n)));
    let waiting = || Samples::classic(&gate).get("messages_waiting", &[("worker", "codex-0")]);
    until(SOON, "all of them are counted", || waiting() == Some(3.0));
}

#[test]
fn a_queue_that_is_not_there_hides_no_other() {
    let (vhost, host) = (vhost(), Host::new("missing"));
    let mut settings = host.settings(&vhost.url(), "codex-0");
    for lane in ["codex-1", "codex-2"] {
        host.add_worker(&mut settings, lane, &format!(r#"exchange = "codex", type = "direct", keys = ["{lane}"]"#));
    }
    let gate = host.start(&settings);
    for lane in ["codex-0", "codex-1", "codex-2"] {
        gate.wait_until(SOON, lane, "admitted");
    }
    vhost.delete_queue("codex-1.held");
    until(SOON, "the two others are counted", || {
        let now = Samples::classic(&gate);
        let waiting = |lane: &str| now.get("messages_waiting", &[("worker", lane)]);
        [waiting("codex-0"), waiting("codex-1"), waiting("codex-2")] == [Some(0.0), None, Some(0.0)]
    });
}

#[test]
fn a_broker_that_does_not_answer_delays_no_scrape_and_its_return_is_counted() {
    let (vhost, host) = (vhost(), Host::new("stalled"));
    let proxy = Proxy::to(vhost.broker().port());
    let gate = host.start(&host.settings(&vhost.url_as("guest", "guest", proxy.port()), "codex-0"));
    gate.wait_until(SOON, "codex-0", "admitted");
    assert_eq!(Samples::classic(&gate).get("broker_reconnects_total", &[]), Some(0.0));
    proxy.set(Mode::Stall);
    let begin = std::time::Instant::now();
    throughout(A_WHILE, "scrapes are answered", || Samples::classic(&gate).get("healthy", &[]) == Some(1.0));
    assert!(begin.elapsed() < A_WHILE * 2, "{:?}", begin.elapsed());
    until(SOON, "the loss is noticed", || Samples::classic(&gate).get("broker_up", &[]) == Some(0.0));
    proxy.set(Mode::Forward);
    until(SOON, "the link is back", || {
        let now = Samples::classic(&gate);
        now.get("broker_up", &[]) == Some(1.0) && now.get("broker_reconnects_total", &[]) == Some(1.0)
    });
}

#[test]
fn in_an_alarm_the_broker_is_shown_to_take_nothing_and_what_waits_for_it_is_counted() {
    let (vhost, host) = (Vhost::on(Broker::fresh()), Host::new("alarm"));
    let gate = host.start(&host.settings(&vhost.url(), "codex-0"));
    gate.wait_until(SOON, "codex-0", "admitted");
    vhost.broker().memory_alarm(true);
    host.set_profile(DRIFTED);
    until(SOON, "it is blocked, and facts wait", || {
        let now = Samples::classic(&gate);
        now.get("broker_blocked", &[]) == Some(1.0) && now.get("facts_waiting", &[]) > Some(0.0)
    });
    vhost.broker().memory_alarm(false);
    until(SOON, "it takes messages again, and has them all", || {
        let now = Samples::classic(&gate);
        now.get("broker_blocked", &[]) == Some(0.0) && now.get("facts_waiting", &[]) == Some(0.0)
    });
}

#[test]
fn a_worker_may_be_called_whatever_celery_lets_it() {
    let (vhost, host) = (vhost(), Host::new("odd-name"));
    let (mut settings, name) = (host.settings_without_workers(&vhost.url()), r#"co"dex\0@host"#);
    let intake = r#"exchange = "codex", type = "direct", keys = ["codex-0"]"#;
    host.add_routed_worker(&mut settings, r#"co\"dex\\0@host"#, "codex-0", intake);
    let gate = host.start(&settings);
    gate.wait_until(SOON, name, "admitted");
    assert_eq!(Samples::of(&gate).get("worker_edge_open", &[("worker", name)]), Some(1.0));
}

#[test]
fn every_metric_that_an_alert_or_the_dashboard_asks_for_is_there() {
    let (vhost, host) = (vhost(), Host::new("names"));
    let gate = host.start(&host.settings(&vhost.url(), "codex-0"));
    gate.wait_until(SOON, "codex-0", "admitted");
    let exported = eventually(SOON, "all of them have been counted", || {
        let now = Samples::classic(&gate);
        now.get("messages_waiting", &[("worker", "codex-0")]).map(|_| now.names())
    });
    let word = Regex::new("worker_gate_[a-z_]+").unwrap();
    for file in ["prometheus/worker-gate.rules.yml", "prometheus/worker-gate.test.yml", "grafana/worker-gate.json"] {
        let text = fs::read_to_string(config(file)).unwrap();
        let asked: BTreeSet<_> = word.find_iter(&text).map(|name| name.as_str().to_owned()).collect();
        assert!(asked.len() > 5, "{file}: {asked:?}");
        let unknown: Vec<_> = asked.difference(&exported).collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}, and there is {exported:?}");
    }
}

#[test]
fn the_alerts_are_raised_when_they_should_be_and_each_says_what_to_do() {
    run(promtool(&["check", "rules", config("prometheus/worker-gate.rules.yml").to_str().unwrap()]));
    run(promtool(&["test", "rules", config("prometheus/worker-gate.test.yml").to_str().unwrap()]));
    let (rules, tests) = (
        fs::read_to_string(config("prometheus/worker-gate.rules.yml")).unwrap(),
        fs::read_to_string(config("prometheus/worker-gate.test.yml")).unwrap(),
    );
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 8, "{}", alerts.len());
    for alert in alerts {
        for key in ["summary: ", "description: ", "runbook: ", "severity: "] {
            assert!(alert.contains(key), "no {key} in {alert}");
        }
        let name = alert.lines().next().unwrap();
        assert!(tests.contains(name), "{name} has no test");
    }
}

#[test]
fn the_dashboard_can_be_imported_with_any_data_source() {
    let text = fs::read_to_string(config("grafana/worker-gate.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
    }
}

/// A file below config.
fn config(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file)
}

#[track_caller]
fn promtool(words: &[&str]) -> Command {
    let there =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join("promtool").exists());
    assert!(there, "no promtool: run scripts/setup");
    let mut command = Command::new("promtool");
    command.args(words);
    command
}

/// What a gate says, by name and labels.
struct Samples(BTreeMap<(String, BTreeMap<String, String>), f64>);

impl Samples {
    /// As Prometheus' own tools read it, which have nothing to find fault with; in both forms.
    #[track_caller]
    fn of(gate: &Gate) -> Self {
        let classic = gate.get("/metrics").unwrap().1;
        run_with(promtool(&["check", "metrics"]), &classic);
        let (classic, open) =
            (Self::parsed("classic", &classic), Self::parsed("open", &gate.get_as("/metrics", OPEN).unwrap().1));
        // What is known only since the first of the two may have come with the second.
        assert!(classic.names().is_subset(&open.names()), "{:?} and {:?}", classic.names(), open.names());
        open
    }

    /// The same by the simplest of parsers, for those who ask again and again.
    #[track_caller]
    fn classic(gate: &Gate) -> Self {
        let text = gate.get("/metrics").unwrap().1;
        let label = Regex::new(r#"([a-z_]+)="([^"]*)""#).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let labels = label.captures_iter(labels).map(|pair| (pair[1].to_owned(), pair[2].to_owned())).collect();
            ((name.to_owned(), labels), value.parse().unwrap())
        });
        Self(samples.collect())
    }

    #[track_caller]
    fn parsed(form: &str, text: &str) -> Self {
        let mut command = Command::new(venv().join("bin/python"));
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/read_metrics.py")).arg(form);
        let samples = run_with(command, text);
        let all: Vec<_> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(all.len() > 20, "{samples}");
        Self(all.into_iter().map(|(name, labels, value): (String, _, f64)| ((name, labels), value)).collect())
    }

    fn names(&self) -> BTreeSet<String> {
        self.0.keys().map(|(name, _)| name.clone()).collect()
    }

    /// The sample of this name, without `worker_gate_`, that has exactly these labels.
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.0.get(&(format!("worker_gate_{name}"), labels)).copied()
    }
}
