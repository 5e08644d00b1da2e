//! Other users' profiles, and profiles on other file systems.

use std::{process::Command, time::Instant};

use super::{LANE, NEVER, ON_REQUEST, SOON, Stage, changed};
use crate::support::{
    gate::{GATE, Host, NOBODY, can_be_nobody},
    process,
    vhost::vhost,
};

#[test]
fn what_the_gate_cannot_read_is_drift() {
    if !can_be_nobody() {
        return;
    }
    let (vhost, host) = (vhost(), Host::new("no-root"));
    let settings = host.settings(&vhost.url(), LANE);
    let mut stage = Stage::with(host, vhost, &settings, |host, settings| host.start_as(NOBODY, settings));
    for (line, back, name) in [
        ("chmod 000 .codex/config.toml", "chmod 600 .codex/config.toml", "config.toml"),
        ("chmod 000 .codex", "chmod 700 .codex", ".codex"),
    ] {
        let start = Instant::now();
        stage.sh(line, NEVER);
        stage.at_once(line, start, "shut");
        let fact = stage.quarantined(line, &["profile_drifted"], name);
        println!("{line}: {}", fact.body["reason"]);
        let reason = &fact.body["reason"];
        assert!(reason["detail"].as_str().unwrap().contains("Permission denied"), "{reason}");
        stage.opens_after(back);
    }
    stage.told_no_secret();
}

#[test]
fn what_the_workers_user_does_not_own_or_cannot_read_is_drift_for_a_gate_that_is_root() {
    if !can_be_nobody() {
        return;
    }
    let (vhost, host) = (vhost(), Host::new("run-as"));
    let settings = changed(&host.settings(&vhost.url(), LANE), "[[workers]]\n", "[[workers]]\nrun_as = \"nobody\"\n");
    let mut stage = Stage::with(host, vhost, &settings, |host, settings| {
        host.give_to(NOBODY);
        host.start(settings)
    });
    for (line, back, detail) in [
        (
            "chown 0:0 .codex/config.toml",
            "chown 65534:65534 .codex/config.toml",
            "belongs to 0:0 and must belong to 65534",
        ),
        ("chown 65534:0 .codex/config.toml", "chown 65534:65534 .codex/config.toml", "belongs to 65534:0"),
        // Root reads these, and the worker does not.
        ("chmod 000 .codex/config.toml", "chmod 600 .codex/config.toml", ".codex/config.toml"),
        ("chmod 000 .codex", "chmod 700 .codex", ".codex"),
        ("chown 0 .codex; chmod 700 .codex", "chown 65534 .codex", ".codex"),
    ] {
        let start = Instant::now();
        stage.sh(line, NEVER);
        stage.at_once(line, start, "shut");
        let fact = stage.quarantined(line, &["profile_drifted"], detail);
        println!("{line}: {}", fact.body["reason"]);
        stage.opens_after(back);
    }
    stage.told_no_secret();
}

/// A stage whose gate has a mount namespace of its own, so that nothing that is mounted there outlives it.
fn with_mounts(name: &str) -> Option<Stage> {
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        println!("skipped: this user may not mount");
        return None;
    }
    let (vhost, host) = (vhost(), Host::new(name));
    let settings = host.settings(&vhost.url(), LANE);
    Some(Stage::with(host, vhost, &settings, |host, settings| {
        let mut command = process::command("/usr/bin/unshare");
        command.args(["--mount", "--", GATE]);
        host.start_by(command, settings)
    }))
}

impl Stage {
    /// Runs a line in the home, where the gate sees what it mounts.
    fn beside(&self, line: &str) {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.gate.pid().to_string(), "--", "sh", "-euc"]);
        command.arg(format!("cd {:?}; {line}", self.host.home()));
        process::run(command);
    }
}

#[test]
fn what_is_mounted_over_the_profile_counts_and_so_does_what_comes_back_after_it() {
    let Some(mut stage) = with_mounts("mounts") else { return };
    for (name, line, back) in [
        ("a file", "mount --bind on-request/config.toml .codex/config.toml", "umount .codex/config.toml"),
        ("a folder", "mount --bind on-request .codex", "umount .codex"),
        (
            "a file system",
            "mkdir new; mount -t tmpfs none new; cp on-request/config.toml new; mount --move new .codex",
            "umount .codex; rmdir new",
        ),
    ] {
        let start = Instant::now();
        stage.beside(line);
        let shut = stage.at_once(name, start, "shut");
        stage.quarantined(name, &["profile_drifted"], "on-request");
        let start = Instant::now();
        stage.beside(back);
        println!("{name}: shut after {shut:?}, open after {:?}", stage.at_once(name, start, "open"));
        stage.facts.next(SOON, "worker-admitted", LANE);
    }
    // The same text on a file system of its own; and then an edit there.
    stage.beside("mkdir new; mount -t tmpfs none new; cp never/config.toml new; mount --move new .codex");
    for (policy, edge) in [(ON_REQUEST, "shut"), (NEVER, "open")] {
        let start = Instant::now();
        stage.beside(&format!("cp {policy}/config.toml new.toml; cp new.toml .codex/config.toml"));
        stage.at_once("an edit on a mounted file system", start, edge);
    }
    stage.told_no_secret();
}

#[test]
fn an_edit_that_raises_no_event_is_found_by_looking() {
    let Some(mut stage) = with_mounts("overlay") else { return };
    stage.sh("cp -R never lower; mkdir upper work", NEVER);
    stage.beside("mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay .codex");
    for (policy, edge) in [(ON_REQUEST, "shut"), (NEVER, "open")] {
        let start = Instant::now();
        // In place: another file in the lower layer would not show above it.
        stage.sh("cat $POLICY/config.toml >lower/config.toml", policy);
        stage.gate.wait_for_edge(SOON, LANE, edge);
        println!("{edge} after {:?}", start.elapsed());
    }
    stage.quarantined("an overlay", &["profile_drifted"], "approval_policy");
    stage.told_no_secret();
}
