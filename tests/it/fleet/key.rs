//! Requests with a signature: `control.key_file`.

use std::{fs, os::unix::fs::PermissionsExt};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use super::{SOON, audited};
use crate::support::{
    gate::Host,
    vhost::{Vhost, vhost},
    wait::until,
};

const WORKER: &str = "codex-0";

/// A key file on this host.
fn key(host: &Host, text: &str) -> String {
    let path = host.state_dir().with_file_name(format!("{text}.key"));
    fs::write(&path, text.repeat(8)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn settings(host: &Host, vhost: &Vhost, key: &str) -> String {
    format!("[control]\nkey_file = {key:?}\n{}", host.settings(&vhost.url(), WORKER))
}

/// As a request is written; its signature with the key `good` eight times.
fn request(id: &str, at: &str) -> String {
    let wish = json!({ "workers": [WORKER], "reason": "x", "until": null });
    json!({ "id": id, "at": at, "by": "eve@x", "ask": { "hold": wish } }).to_string()
}

fn sign(body: &str) -> String {
    let mut command = std::process::Command::new("openssl");
    command.args(["dgst", "-sha256", "-hmac", &"good".repeat(8)]).stdin(std::process::Stdio::piped());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), body.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    String::from_utf8(out.stdout).unwrap().split_whitespace().last().unwrap().to_owned()
}

fn send(vhost: &Vhost, body: &str, signature: Option<&str>) {
    let mut headers = FieldTable::default();
    if let Some(signature) = signature {
        headers.insert("worker-gate-hmac".into(), AMQPValue::LongString(signature.into()));
    }
    let properties = BasicProperties::default().with_headers(headers);
    vhost.publish_all("worker-gate.control", "", vec![(body.as_bytes().to_vec(), properties)]);
}

#[test]
fn what_is_unsigned_forged_old_or_sent_twice_is_refused_and_audited() {
    let (vhost, host) = (vhost(), Host::new("host-0"));
    let good = settings(&host, &vhost, &key(&host, "good"));
    let gate = host.start(&good);
    gate.wait_until(SOON, WORKER, "admitted");
    let run = |settings: &str, args: &[&str]| {
        let done = host.command(settings, args);
        (done.status.code().unwrap(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let refused = |why: &str| {
        until(SOON, why, || {
            audited(&host, "gate-command-refused")
                .iter()
                .any(|event| event["reason"]["detail"].as_str().unwrap().contains(why))
        });
    };
    let (code, err) = run(&host.settings(&vhost.url(), WORKER), &["hold", WORKER]);
    assert_eq!(code, 77, "{err}");
    assert!(err.contains("is not signed"), "{err}");
    refused("not signed");
    let (code, err) = run(&settings(&host, &vhost, &key(&host, "evil")), &["hold", WORKER]);
    assert_eq!(code, 77, "{err}");
    refused("not made with this gate's key");
    let now = jiff::Timestamp::now();
    let old = request("old", &now.checked_sub(jiff::SignedDuration::from_secs(40)).unwrap().to_string());
    send(&vhost, &old, Some(&sign(&old)));
    refused("from this gate's");
    assert_eq!(gate.get("/readyz").unwrap().0, 200, "none of them did anything");
    let once = request("once", &now.to_string());
    send(&vhost, &once, Some(&sign(&once)));
    gate.wait_until(SOON, WORKER, "quarantined");
    let (code, err) = run(&good, &["release", WORKER]);
    assert_eq!(code, 0, "{err}");
    gate.wait_until(SOON, WORKER, "admitted");
    send(&vhost, &once, Some(&sign(&once)));
    refused("sent before");
    assert_eq!(gate.get("/readyz").unwrap().0, 200, "the replay did nothing");
    let commands: Vec<Value> = audited(&host, "worker-command");
    assert_eq!(commands.len(), 2, "{commands:?}");
}

#[test]
fn a_key_file_that_is_no_good_is_named_with_the_remedy() {
    let (vhost, host) = (vhost(), Host::new("host-0"));
    let path = key(&host, "good");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let settings = settings(&host, &vhost, &path);
    for args in [&["status"][..], &["run"]] {
        let done = host.command(&settings, args);
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(78), "{err}");
        assert!(err.contains("control.key_file") && err.contains("chmod o-rwx"), "{err}");
    }
}

#[test]
fn another_key_holds_once_the_settings_are_read_again() {
    let (vhost, host) = (vhost(), Host::new("host-0"));
    let (path, other) = (key(&host, "good"), key(&host, "another"));
    let ours = settings(&host, &vhost, &path);
    let others = settings(&host, &vhost, &other);
    let recheck = |settings: &str| host.command(settings, &["recheck", WORKER]).status.code();
    let mut gate = host.start(&ours);
    gate.wait_until(SOON, WORKER, "admitted");
    assert_eq!(recheck(&others), Some(77));
    fs::copy(&other, &path).unwrap();
    gate.hang_up();
    until(SOON, "the other key is known", || recheck(&others) == Some(0));
    fs::write(&other, "good".repeat(8)).unwrap();
    assert_eq!(recheck(&others), Some(77), "the key from before is nothing any more");
    assert_eq!(gate.get("/readyz").unwrap().0, 200, "no edge was touched");
}
