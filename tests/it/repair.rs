//! A gate that mends what has drifted, and what it does about those who keep undoing it.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use worker_gate::{image::Manifest, model::ImageState};

use crate::support::{
    facts::Facts,
    gate::{Host, MANAGED},
    vhost::vhost,
    wait::{throughout, until},
};

const SOON: Duration = Duration::from_secs(30);
const LANE: &str = "codex-0";
const DRIFTED: &str = "# mine\nmodel = \"o5\"\napproval_policy = \"on-request\"\n";

fn repairing(settings: &str) -> String {
    settings.replace("[profile]\n", "[profile]\non_drift = \"repair\"\n")
}

#[test]
fn a_drifted_profile_is_mended_and_its_worker_goes_on() {
    let (vhost, host) = (vhost(), Host::new("repair"));
    let gate = host.start(&repairing(&host.settings(&vhost.url(), LANE)));
    gate.wait_for_edge(SOON, LANE, "open");
    let mut facts = Facts::of(&vhost);
    for drifted in [DRIFTED, "model = \"o5\"\n", ""] {
        host.set_profile(drifted);
        let shut = facts.next(SOON, "worker-quarantined", LANE);
        assert_eq!(shut.body["reason"]["code"], "profile_drifted");
        facts.next(SOON, "worker-admitted", LANE);
        gate.wait_for_edge(SOON, LANE, "open");
        let text = fs::read_to_string(host.profile()).unwrap();
        assert!(text.contains("approval_policy = \"never\""), "{text}");
        assert_eq!(
            text.replace("approval_policy = \"never\"\n", ""),
            drifted.replace("approval_policy = \"on-request\"\n", "")
        );
    }
    fs::remove_file(host.profile()).unwrap();
    facts.next(SOON, "worker-admitted", LANE);
    // Each merge is noted, for the audit.
    assert!(gate.wait_for_edge(SOON, LANE, "open")["profile"]["managed_on"].is_string());
    assert!(gate.stop().success());
}

#[test]
fn what_cannot_be_mended_says_so_and_stays_shut() {
    let (vhost, host) = (vhost(), Host::new("beyond-repair"));
    let gate = host.start(&repairing(&host.settings(&vhost.url(), LANE)));
    gate.wait_for_edge(SOON, LANE, "open");
    host.set_profile("approval_policy = \"never\nmodel");
    until(SOON, "the gate says what it tried", || {
        let record = gate.wait_until(SOON, LANE, "quarantined");
        record["reason"]["detail"].as_str().unwrap().contains("failed to mend it")
    });
    assert_eq!(fs::read_to_string(host.profile()).unwrap(), "approval_policy = \"never\nmodel");
    host.set_profile(MANAGED);
    gate.wait_for_edge(SOON, LANE, "open");
    assert!(gate.stop().success());
}

#[test]
fn a_fight_over_the_profile_ends_with_a_shut_edge_and_the_name_of_the_key() {
    let (vhost, host) = (vhost(), Host::new("fight"));
    let gate = host.start(&repairing(&host.settings(&vhost.url(), LANE)));
    gate.wait_for_edge(SOON, LANE, "open");
    // Somebody else is sure that it must be otherwise.
    let mut undone = 0;
    let fought = || gate.get("/workers").unwrap().1.contains("the gate stops mending it");
    let end = Instant::now() + SOON;
    while !fought() {
        assert!(Instant::now() < end, "undone {undone} times, and the gate fights on");
        if fs::read_to_string(host.profile()).unwrap().contains("never") {
            host.set_profile(DRIFTED);
            undone += 1;
        }
    }
    assert_eq!(undone, 5, "drifted once, and undone four times");
    let record = gate.wait_until(SOON, LANE, "quarantined");
    let detail = record["reason"]["detail"].as_str().unwrap();
    assert!(detail.contains("undone (approval_policy)") && detail.contains("mode 06"), "{detail}");
    assert!(detail.contains("was last written at 20"), "{detail}");
    let is_left_alone = || fs::read_to_string(host.profile()).unwrap() == DRIFTED;
    throughout(Duration::from_secs(3), "it is left alone, and the edge shut", || {
        is_left_alone() && !vhost.is_open(LANE)
    });
    host.set_profile(MANAGED);
    gate.wait_for_edge(SOON, LANE, "open");
    assert!(gate.stop().success());
}

#[test]
fn who_drifts_again_and_again_waits_longer_each_time_and_the_record_shows_it() {
    let (vhost, host) = (vhost(), Host::new("flap"));
    let settings = host.settings(&vhost.url(), LANE).replace("flap_wait = \"0s\"", "flap_wait = \"1s\"");
    let gate = host.start(&settings);
    gate.wait_for_edge(SOON, LANE, "open");
    let mut facts = Facts::of(&vhost);
    for (quarantines, wait_ms) in [(1, 0), (2, 1_000), (3, 2_000)] {
        let drifted = Instant::now();
        host.set_profile(DRIFTED);
        let shut = facts.next(SOON, "worker-quarantined", LANE);
        host.set_profile(MANAGED);
        if wait_ms > 0 {
            let readmission = &shut.body["readmission"];
            assert_eq!(readmission["quarantines"], quarantines, "{readmission}");
            assert_eq!(readmission["wait_ms"].as_f64(), Some(f64::from(wait_ms)), "{readmission}");
            until(SOON, "the wait is the reason", || {
                gate.wait_until(SOON, LANE, "quarantined")["reason"]["code"] == "flapping"
            });
        }
        facts.next(SOON, "worker-admitted", LANE);
        assert!(drifted.elapsed() >= Duration::from_millis(u64::try_from(wait_ms).unwrap()));
        assert!(gate.wait_until(SOON, LANE, "admitted")["readmission"].is_null());
    }
    assert!(gate.stop().success());
}

#[test]
fn a_required_image_is_verified_or_nobody_works() {
    let (vhost, host) = (vhost(), Host::new("image"));
    let manifest = host.state_dir().join("image.json");
    let settings = host.settings(&vhost.url(), LANE);
    let settings =
        settings.replace("[evidence]", &format!("[image]\nmanifest = {manifest:?}\nrequired = true\n\n[evidence]"));
    let write = |state, codex: &str| {
        let manifest_of = Manifest {
            schema: 1,
            state,
            base_image: "debian:12".into(),
            node_version: "20.1.0".into(),
            codex_cli_version: codex.into(),
            spec_kit_version: "1.2.3".into(),
            codex_config_template_path: "/etc/codex/config.toml".into(),
            codex_config_template_hash: String::new(),
            install_logs: Vec::new(),
            tools: BTreeMap::new(),
            gate_version: String::new(),
            recorded_at: "2026-11-22T10:00:00Z".parse().unwrap(),
            verified: None,
        };
        manifest_of.write(&manifest).unwrap();
    };
    let gate = host.start(&settings);
    let reason = |code: &str| {
        until(SOON, code, || gate.wait_until(SOON, LANE, "quarantined")["reason"]["code"] == code);
    };
    reason("image_unverified");
    write(ImageState::Built, "0.169.0");
    let is_seen = || gate.wait_until(SOON, LANE, "quarantined")["image"]["state"] == "built";
    until(SOON, "the manifest is in the record", is_seen);
    write(ImageState::Verified, "0.168.0");
    reason("image_mismatch");
    write(ImageState::Verified, "0.169.0");
    gate.wait_for_edge(SOON, LANE, "open");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("debian:12", "debian:13")).unwrap();
    gate.wait_for_edge(SOON, LANE, "shut");
    let record = gate.wait_until(SOON, LANE, "quarantined");
    assert!(record["reason"]["detail"].as_str().unwrap().contains("it was edited"), "{record}");
    write(ImageState::Verified, "0.169.0");
    gate.wait_for_edge(SOON, LANE, "open");
    fs::remove_file(&manifest).unwrap();
    gate.wait_for_edge(SOON, LANE, "shut");
    reason("image_unverified");
    assert!(gate.stop().success());
}
