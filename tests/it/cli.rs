//! The command line as a shell sees it: exit codes, what is written where, and where settings come from.

use std::{
    fs::{self, OpenOptions},
    io::Read,
    os::unix::fs::PermissionsExt,
    process::Stdio,
};

use assert_cmd::{Command, assert::Assert};
use tempfile::TempDir;

use crate::support::{
    gate::{GATE, can_be_nobody},
    process,
};

const RIGHT: &str = r#"
[broker]
url = "amqp://u:geheim@rabbit/v"

[checks.codex_cli]
run = [["codex", "--version"]]

[[workers]]
name = "codex-0@host-1"
lane = "codex-0"
intake = { exchange = "codex", type = "direct", keys = ["codex-0"] }
env = { TOKEN = "auch geheim" }
"#;

/// A folder with `text` as its worker-gate.toml.
fn folder(text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("worker-gate.toml"), text).unwrap();
    folder
}

/// The program in `folder`, with no environment but what the test adds.
fn gate(folder: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker-gate"));
    command.env_clear().current_dir(folder.path()).args(arguments);
    command
}

fn stdout(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

#[test]
fn wrong_usage_ends_with_64_and_help_with_0() {
    let folder = folder(RIGHT);
    for wrong in [
        &[][..],
        &["no-such-command"],
        &["config"],
        &["config", "show", "--no-such-flag"],
        &["config", "show", "--set"],
        &["--config", "a", "config", "show", "--config", "b"],
        &["completions", "no-such-shell"],
        // A flag that would be ignored.
        &["profile", "diff", "--json"],
        &["profile", "apply", "--json"],
        &["audit", "--verify", "--worker", "codex-0"],
        &["audit", "--verify", "--exposed"],
        &["events", "--since", "5"],
        // RabbitMQ has no past.
        &["events", "--since", "10m"],
    ] {
        let assert = gate(&folder, wrong).assert().code(64);
        assert_eq!(stdout(&assert), "", "{wrong:?}");
        assert!(!stderr(&assert).is_empty(), "{wrong:?}");
    }
    for asked in [&["--help"][..], &["--version"], &["profile", "apply", "--help"], &["help", "run"]] {
        let assert = gate(&folder, asked).assert().code(0);
        assert!(!stdout(&assert).is_empty(), "{asked:?}");
    }
    let help = stdout(&gate(&folder, &["--help"]).assert());
    for command in [
        "run",
        "check",
        "profile",
        "status",
        "events",
        "audit",
        "rehome",
        "init",
        "config",
        "completions",
        "78 settings wrong",
    ] {
        assert!(help.contains(command), "{command} is not in the help");
    }
}

#[test]
fn config_show_names_the_layer_of_every_value_and_hides_secrets() {
    let folder = folder(RIGHT);
    let arguments = ["--set", "evidence.max_age=7m", "config", "show", "--set", "checks.codex_cli.timeout=9s"];
    let assert = gate(&folder, &arguments).env("WORKER_GATE__GATE__NAME", "from-env").assert().code(0);
    let shown = stdout(&assert);
    for (key, value, layer) in [
        ("gate.name", "\"from-env\"", "environment WORKER_GATE__GATE__NAME"),
        ("gate.state_dir", "\"/var/lib/worker-gate\"", "default"),
        ("evidence.max_age", "\"7m\"", "--set"),
        ("checks.codex_cli.timeout", "\"9s\"", "--set"),
        ("checks.codex_cli.every", "\"60s\"", "default"),
        ("broker.url", "\"amqp://u:***@rabbit:5672/v\"", "./worker-gate.toml:3:7"),
        ("workers[0].lane", "\"codex-0\"", "./worker-gate.toml:10:8"),
        ("workers[0].env.TOKEN", "\"<hidden>\"", "./worker-gate.toml:12:17"),
    ] {
        let line = shown.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
        let (said, from) = line.rsplit_once("  # ").unwrap();
        assert_eq!((said.trim_end(), from), (format!("{key} = {value}").as_str(), layer));
    }
    assert!(!shown.contains("geheim"), "{shown}");
    assert_eq!(stderr(&assert), "");
}

#[test]
fn config_check_says_that_settings_are_right_or_everything_that_is_wrong() {
    let right = folder(RIGHT);
    let assert = gate(&right, &["config", "check"]).assert().code(0);
    assert_eq!(stdout(&assert), "settings right: ./worker-gate.toml; checks 1, workers 1\n");

    let wrong = folder(&RIGHT.replace("lane =", "lame =").replace("geheim@", "geheim/@"));
    let assert = gate(&wrong, &["config", "check", "--set", "gate.listen=x"])
        .env("WORKER_GATE__BROKER__HEARTBEAT", "500ms")
        .assert()
        .code(78);
    let said = stderr(&assert);
    assert_eq!((stdout(&assert).as_str(), said.lines().count()), ("", 5), "{said}");
    for part in [
        "./worker-gate.toml:3:7: broker.url: the port",
        "./worker-gate.toml:10:1: workers[0].lame: there is no such setting; did you mean \"lane\"?",
        "./worker-gate.toml:8:1: workers[0].lane: it is missing",
        "environment WORKER_GATE__BROKER__HEARTBEAT: broker.heartbeat: 500ms",
        "--set: gate.listen: \"x\"",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!said.contains("geheim"), "{said}");
}

#[test]
fn settings_that_cannot_be_used_end_any_command_with_78() {
    let folder = folder(RIGHT);
    gate(&folder, &["config", "show", "--config", "missing.toml"]).assert().code(78);
    gate(&folder, &["config", "show"]).env("WORKER_GATE_LOG", "a=b=c").assert().code(78);
    let bytes = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"amqp://\xff");
    let assert = gate(&folder, &["config", "show"]).env("WORKER_GATE__BROKER__URL", bytes).assert().code(78);
    assert!(stderr(&assert).contains("environment WORKER_GATE__BROKER__URL: the value is not UTF-8"));
    // A variable that is none of ours may hold anything.
    gate(&folder, &["config", "check"]).env("OTHER", bytes).assert().code(0);
}

#[test]
fn a_settings_file_that_may_not_be_read_ends_any_command_with_77() {
    if !can_be_nobody() {
        return;
    }
    let folder = folder(RIGHT);
    let file = folder.path().join("worker-gate.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = process::command_as(&["--reuid", "nobody", "--clear-groups"], GATE);
    let output = command.env_clear().args(["config", "check", "--config"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.starts_with(&format!("{}: cannot be opened: Permission denied", file.display())), "{said}");
}

#[test]
fn an_audit_log_that_is_not_there_or_cut_off_is_no_internal_error() {
    let folder = folder(RIGHT);
    for arguments in [&[][..], &["--verify"], &["--exposed"]] {
        let mut command = gate(&folder, &["audit", "--set", "gate.state_dir=state"]);
        let said = stderr(&command.args(arguments).assert().code(78));
        assert!(said.starts_with("worker-gate: failed to read the audit log: there is none yet at "), "{said}");
        assert!(said.contains("state/audit.jsonl; gate.state_dir names"), "{said}");
    }
    fs::write(folder.path().join("audit.jsonl"), "{\"type\":\"worker-admitted\"}\n{\"type\":\"worker-he").unwrap();
    let assert = gate(&folder, &["audit", "--set", "gate.state_dir=."]).assert().code(0);
    assert_eq!(stdout(&assert).lines().count(), 1);
    assert!(stderr(&assert).starts_with("worker-gate: failed to read the last line, 2, of the audit log "));
}

#[test]
fn what_went_wrong_follows_failed_to_without_a_colon() {
    let assert = gate(&folder(RIGHT), &["doctor"]).env("WORKER_GATE_WORKER_URL", "x").assert().code(64);
    assert!(stderr(&assert).starts_with("worker-gate: failed to read WORKER_GATE_WORKER_URL: "), "{}", stderr(&assert));
}

#[test]
fn a_reader_that_goes_away_is_no_error_and_a_full_disk_is_one() {
    let folder = folder(RIGHT);
    let program = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_worker-gate"));
        command.env_clear().current_dir(folder.path()).args(["config", "show"]).stderr(Stdio::piped());
        command
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let gone = program().stdout(writer).output().unwrap();
    assert_eq!((gone.status.code(), gone.stderr.as_slice()), (Some(0), &b""[..]));

    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = program().stdout(full).spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(70));
    assert_eq!(said, "worker-gate: failed to write to standard output: No space left on device (os error 28)\n");
}

#[test]
fn completions_know_the_commands() {
    let folder = folder(RIGHT);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&gate(&folder, &["completions", shell]).assert().code(0));
        assert!(script.contains("completions") && script.contains("profile"), "{shell}");
    }
}
