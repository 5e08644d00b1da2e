//! Alerts as Alertmanager and chat rooms get them, of a real gate whose worker drifts and comes back.

use std::fs;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    SOON,
    hook::{Answer, Hook},
    stage::{Stage, event, on_both_brokers},
};
use crate::support::{
    celery::venv,
    gate::MANAGED,
    process::{Process, command, free_port},
    wait::{LONG, until},
};

const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";

on_both_brokers! {
    an_admission_resolves_the_alert_that_the_quarantine_fired
}

fn an_admission_resolves_the_alert_that_the_quarantine_fired(stage: &Stage) {
    let (alerts, room) = (Hook::start(|_| Answer::Status(200)), Hook::start(|_| Answer::Status(200)));
    let _alertmanager =
        stage.subscribe(&["--webhook", &alerts.url("/api/v2/alerts"), "--body", "alertmanager", "--worker", "codex-*"]);
    let _chat = stage.subscribe(&["--webhook", &room.url("/"), "--body", "chat", "--type", "worker-quarantined"]);
    let gate = stage.host.start(&stage.settings(&stage.url()));
    gate.wait_until(LONG, "codex-0", "admitted");
    stage.host.set_profile(DRIFTED);
    gate.wait_until(LONG, "codex-0", "quarantined");
    stage.host.set_profile(MANAGED);
    gate.wait_until(LONG, "codex-0", "admitted");
    let of = |resolved: bool| {
        let all = alerts.taken().into_iter().map(|post| post.json());
        let all = all.filter(move |alerts| (alerts[0]["startsAt"] == alerts[0]["endsAt"]) == resolved);
        all.map(|alerts| alerts[0].clone()).collect::<Vec<_>>()
    };
    until(SOON, "it was admitted, fired and resolved", || of(true).len() >= 2 && !of(false).is_empty());

    assert!(alerts.posts().iter().all(|post| post.json().as_array().is_some_and(|alerts| alerts.len() == 1)));
    let (fired, resolved) = (of(false).remove(0), of(true).pop().unwrap());
    assert_eq!(fired["labels"]["alertname"], "WorkerQuarantined");
    assert_eq!(fired["labels"]["worker"], "codex-0");
    assert_eq!(fired["labels"]["gate"], "host-1");
    assert_eq!(fired["labels"], resolved["labels"]);
    assert_eq!(fired["annotations"]["reason"], "profile_drifted");
    assert!(fired["annotations"]["remedy"].as_str().unwrap().contains("worker-gate profile apply"), "{fired}");
    let time = |alert: &Value, field: &str| alert[field].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(time(&fired, "startsAt") < time(&resolved, "endsAt"));
    assert!(time(&resolved, "endsAt") < time(&fired, "endsAt"), "or it would have ended by itself");

    until(SOON, "the room was told", || !room.taken().is_empty());
    let said = room.taken()[0].json();
    let text = said["text"].as_str().unwrap();
    assert!(
        text.starts_with("Worker codex-0 is quarantined: ") && text.contains("worker-gate profile apply"),
        "{text}"
    );
}

/// Takes one POST over TLS, with the certificate and key in its arguments, says its body, and ends.
const TLS_SERVER: &str = r#"
import http.server, ssl, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        self.send_response(200)
        self.end_headers()

server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
"#;

#[test]
fn over_tls_only_a_server_is_told_whom_this_machine_believes() {
    let stage = Stage::rabbitmq();
    let (certificate, key) = (stage.dir.join("server.pem"), stage.dir.join("server.key"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]);
    openssl.args(["-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    crate::support::process::run({
        openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        openssl
    });
    let (script, port) = (stage.dir.join("server.py"), free_port());
    fs::write(&script, TLS_SERVER).unwrap();
    let mut server = command(venv().join("bin/python"));
    server.arg(&script).arg(port.to_string()).arg(&certificate).arg(&key);
    let mut server = Process::start(server, &stage.dir.join("server.log"));
    server.wait_for_output(SOON, "ready");

    let url = format!("https://127.0.0.1:{port}/geheim");
    let args = ["--webhook", &url];
    let mut wary = stage.start(&stage.url(), &[], &args);
    wary.wait_for_output(SOON, "subscribed to");
    stage.publish([event("worker-held", 1)]);
    wary.wait_for_output(SOON, &format!("https://127.0.0.1:{port} cannot be"));
    wary.kill();
    assert!(!server.output().contains("worker-held") && !wary.output().contains("geheim"));

    let believed = certificate.display().to_string();
    let mut trusting = stage.start(&stage.url(), &[("SSL_CERT_FILE", &believed)], &args);
    trusting.wait_for_output(SOON, "subscribed to");
    stage.publish([event("worker-held", 2)]);
    server.wait_for_output(SOON, "\"seq\":2");
}
