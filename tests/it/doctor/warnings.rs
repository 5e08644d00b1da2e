//! Each weak setting is found, with what to do about it.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::{Value, json};

use super::{codes, doctor, doctor_with};
use crate::support::{
    field::{Field, INTAKE, Kind, for_each_edge},
    gate::Host,
    rabbitmq::Broker,
    tasks::Task,
    vhost::Vhost,
    wait::{LONG, eventually},
};

for_each_edge! {
    a_worker_that_takes_much_beforehand_and_sends_no_heartbeats_is_warned_of
    a_worker_with_remote_control_turned_off_is_warned_of
    early_acknowledgement_is_warned_of_where_the_worker_is_recycled
    a_tool_that_everybody_may_write_is_serious
    what_waits_for_a_worker_that_is_gone_is_named
}

/// Looks until these and no others are found, and gives them.
#[track_caller]
fn finds(field: &Field, settings: &str, expected: &[&str]) -> Vec<Value> {
    let mut last = Vec::new();
    let found = eventually(LONG, &format!("{expected:?} is found"), || {
        let (findings, output) = doctor_with(field, settings, &[], &[]);
        let is_serious = findings.iter().any(|finding| finding["serious"] == true);
        assert_eq!(output.status.code(), Some(i32::from(is_serious)));
        if findings != last {
            eprintln!("{findings:#?}");
            last.clone_from(&findings);
        }
        (codes(&findings) == expected).then_some(findings)
    });
    assert!(found.iter().all(|finding| !finding["remedy"].as_str().unwrap().is_empty()), "{found:?}");
    found
}

fn a_worker_that_takes_much_beforehand_and_sends_no_heartbeats_is_warned_of(kind: Kind) {
    let field = Field::new(kind);
    let gate = field.admit_both();
    let options = ["-c", "1", "--prefetch-multiplier", "4", "--without-heartbeat"];
    let _worker = field.app().worker(&field.lane(0), &field.name(0), &options);
    let found = finds(&field, &field.settings(), &["events-off", "prefetch"]);
    assert!(found.iter().all(|finding| finding["serious"] == false), "{found:?}");
    assert!(json!(found).to_string().contains("takes 4 messages beforehand for 1 at once"), "{found:?}");
    assert!(gate.stop().success());
}

fn a_worker_with_remote_control_turned_off_is_warned_of(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app().with(json!({ "worker_enable_remote_control": false }));
    let gate = field.admit_both();
    let _worker = field.worker(&app, 0);
    let found = finds(&field, &field.settings(), &["remote-control-off"]);
    assert!(json!(found).to_string().contains("worker_enable_remote_control"), "{found:?}");
    assert!(gate.stop().success());
}

fn early_acknowledgement_is_warned_of_where_the_worker_is_recycled(kind: Kind) {
    let field = Field::new(kind);
    let settings = field.settings().replace("\nedge = ", "\non_quarantine = \"recycle\"\nedge = ");
    let gate = field.host(0).start(&settings);
    field.wait_until_both_are(&gate, "admitted");
    let worker = field.worker(&field.app(), 0);
    let found = finds(&field, &settings, &["acks-early"]);
    assert!(json!(found).to_string().contains("task_acks_late = True"), "{found:?}");
    drop(worker);
    let late = field.app().with(json!({ "task_acks_late": true }));
    let _worker = field.worker(&late, 0);
    finds(&field, &settings, &[]);
    assert!(gate.stop().success());
}

fn a_tool_that_everybody_may_write_is_serious(kind: Kind) {
    let field = Field::new(kind);
    let tool = field.host(0).tool("codex");
    let mode = |mode| fs::set_permissions(&tool, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o757);
    let found = finds(&field, &field.settings(), &["world-writable"]);
    assert_eq!(found[0]["remedy"], format!("run: chmod o-w {}", tool.canonicalize().unwrap().display()));
    mode(0o755);
    // The settings lie in the host's own folder.
    let home = field.host(0).home();
    let folder = home.parent().unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    finds(&field, &field.settings(), &["world-writable"]);
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    finds(&field, &field.settings(), &[]);
}

fn what_waits_for_a_worker_that_is_gone_is_named(kind: Kind) {
    let field = Field::new(kind);
    let gate = field.admit_both();
    let task = || [Task::mark("left")];
    let words: &[&str] = match kind {
        Kind::Route | Kind::FeedRabbitmq => {
            field.vhost().declare_queue("codex-9.held");
            field.vhost().publish_tasks("", "codex-9.held", task());
            &["--lane", "codex-9"]
        }
        Kind::FeedRedis => {
            field.redis().publish_from("codex-9.lane", "", INTAKE, task());
            field.redis().publish_from("other", "", "other", task());
            &[]
        }
    };
    let (found, output) = doctor_with(&field, &field.settings(), words, &[]);
    assert!(output.status.success());
    assert_eq!(codes(&found), ["orphaned"], "{found:?}");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0]["detail"].as_str().unwrap().contains("codex-9"), "{found:?}");
    assert!(found[0]["remedy"].as_str().unwrap().contains("worker-gate rehome WORKER --to WORKER"), "{found:?}");
    assert!(gate.stop().success());
}

#[test]
fn who_consumes_a_lane_beside_its_worker_is_serious() {
    let field = Field::new(Kind::Route);
    let gate = field.admit_both();
    let _workers = field.workers(&field.app());
    let other = field.vhost().consume_nothing(&field.lane(0));
    let found = finds(&field, &field.settings(), &["lane-shared"]);
    assert_eq!(found[0]["serious"], true);
    // A gate consumes a lane, too, while its edge is shut.
    drop(other);
    field.host(0).set_tool("speckit", "echo 'not installed'; exit 1\n");
    gate.wait_until(LONG, &field.name(0), "quarantined");
    finds(&field, &field.settings(), &[]);
    assert!(gate.stop().success());
}

#[test]
fn an_intake_without_its_alternate_exchange_is_serious_and_a_policy_will_do() {
    let field = Field::new(Kind::Route);
    let vhost = field.vhost();
    assert_eq!(codes(&doctor(&field).0), [""; 0], "the first gate makes it");
    vhost.declare_exchange(INTAKE, "direct", None);
    let found = finds(&field, &field.settings(), &["intake-unfit"]);
    assert!(found[0]["remedy"].as_str().unwrap().contains("rabbitmqctl set_policy"), "{found:?}");
    vhost.declare_exchange("codex.unrouted", "fanout", None);
    vhost.declare_exchange("codex.held", "direct", Some("codex.unrouted"));
    finds(&field, &field.settings(), &["intake-unfit"]);
    vhost.set_policy("held", "^codex$", "exchanges", &json!({ "alternate-exchange": "codex.held" }));
    finds(&field, &field.settings(), &[]);
}

#[test]
fn a_missing_plugin_is_serious() {
    let vhost = Vhost::on(Broker::fresh());
    let host = Host::new("plugin");
    let mut settings = host.settings_without_workers(&vhost.url());
    host.add_worker(&mut settings, "codex-0", r#"exchange = "codex", type = "x-consistent-hash", keys = ["1"]"#);
    let look = || {
        let output = host.command(&settings, &["doctor", "--json"]);
        (serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap(), output.status.code())
    };
    assert_eq!(look(), (Vec::new(), Some(0)));
    vhost.broker().ctl(&["eval", "rabbit_registry:unregister(exchange, <<\"x-consistent-hash\">>)."]);
    let (found, code) = look();
    assert_eq!((codes(&found), code), (vec!["intake-unfit"], Some(1)), "{found:?}");
    let remedy = found[0]["remedy"].as_str().unwrap();
    assert_eq!(remedy, "run: rabbitmq-plugins enable rabbitmq_consistent_hash_exchange");
}
