//! `worker-gate doctor`: ways round the gate are found and named, and the rights that it prints are enough and no more.

use std::process::Output;

use serde_json::Value;

use crate::support::{
    field::{Field, INTAKE, Kind, for_each_feed},
    wait::{LONG, eventually},
};

mod grants;
mod warnings;

for_each_feed! {
    a_worker_that_consumes_the_shared_queue_is_named_with_what_to_do
    a_consumer_that_answers_nobody_is_found_all_the_same
}

fn doctor(field: &Field) -> (Vec<Value>, Output) {
    doctor_with(field, &field.settings(), &[], &[])
}

/// The same with other settings, more words, and an environment.
fn doctor_with(field: &Field, settings: &str, words: &[&str], env: &[(&str, &str)]) -> (Vec<Value>, Output) {
    let output = field.host(0).command_in(settings, &[&["doctor", "--json"], words].concat(), env);
    let findings = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (findings, output)
}

/// The codes of all findings, each once, sorted.
fn codes(findings: &[Value]) -> Vec<&str> {
    let mut codes: Vec<_> = findings.iter().map(|finding| finding["code"].as_str().unwrap()).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

fn bypasses(findings: &[Value]) -> Vec<&str> {
    let is_bypass = |finding: &&Value| finding["code"] == "worker-bypass";
    findings.iter().filter(is_bypass).map(|finding| finding["detail"].as_str().unwrap()).collect()
}

fn a_worker_that_consumes_the_shared_queue_is_named_with_what_to_do(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    let _workers = field.workers(&app);
    let (findings, output) = doctor(&field);
    assert!(output.status.success() && findings.is_empty(), "{findings:?}");

    let _mistake = app.worker(INTAKE, "mistake@h", &["-c", "1"]);
    let findings = eventually(LONG, "it is found", || {
        let (findings, output) = doctor(&field);
        (!bypasses(&findings).is_empty()).then(|| {
            assert_eq!(output.status.code(), Some(1));
            findings
        })
    });
    assert_eq!(bypasses(&findings), ["the worker mistake@h consumes the intake codex itself, past every gate"]);
    assert!(findings[0]["remedy"].as_str().unwrap().starts_with("start it with -Q"), "{findings:?}");
    assert!(gate.stop().success());
}

fn a_consumer_that_answers_nobody_is_found_all_the_same(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app().with(serde_json::json!({ "worker_enable_remote_control": false }));
    let gate = field.admit_both();
    let _mistake = app.worker(INTAKE, "mistake@h", &["-c", "1"]);
    let findings = eventually(LONG, "it is found", || {
        let (findings, _) = doctor(&field);
        (!bypasses(&findings).is_empty()).then_some(findings)
    });
    assert_eq!(bypasses(&findings).len(), 1, "{findings:?}");
    assert!(bypasses(&findings)[0].contains("the intake codex"), "{findings:?}");
    assert!(gate.stop().success());
}
