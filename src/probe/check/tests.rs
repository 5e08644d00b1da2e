use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

use nix::unistd::{Gid, Uid};

use super::*;
use crate::{
    model::IdentityId,
    secret::{Redactor, Secret},
    settings,
};

fn identity() -> Identity {
    Identity {
        id: IdentityId(0),
        user: "root".into(),
        uid: Uid::effective(),
        gid: Gid::effective(),
        groups: vec![Gid::effective()],
        home: "/".into(),
        path: "/usr/bin:/bin".into(),
        env: BTreeMap::new(),
        workers: Vec::new(),
    }
}

fn check(run: &[&[&str]], version: Option<(usize, &str)>) -> Check {
    Check {
        run: run.iter().map(|argv| argv.iter().map(ToString::to_string).collect()).collect(),
        version: version.map(|(command, rule)| settings::Version { command, require: rule.parse().unwrap() }),
        required: true,
        every: Duration::from_secs(60),
        timeout: Duration::from_secs(20),
        fail_after: 1,
        pass_after: 1,
    }
}

async fn result(check: &Check) -> CheckResult {
    let runner = Runner::start([], Redactor::new(&[Secret::new("hunter22")])).unwrap();
    let quoted: Quoted = Arc::new(|| vec![Secret::new("quoted-value")]);
    run(check, &identity(), &runner, Some(&quoted)).await
}

fn detail(result: &CheckResult) -> &str {
    &result.message.as_ref().unwrap().detail
}

#[tokio::test]
async fn a_check_passes_when_all_its_commands_do() {
    let result = result(&check(&[&["echo", "tool v1.4"], &["true"]], Some((0, ">=1.2, <2")))).await;
    assert_eq!((result.status, result.outcome), (CheckStatus::Passed, Some(Outcome::ExitCode(0))));
    assert_eq!((result.version.as_deref(), result.message), (Some("1.4.0"), None));
    assert!(result.duration > Duration::ZERO);
}

#[tokio::test]
async fn the_first_command_that_fails_decides_and_the_next_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let check = check(
        &[&["echo", "1.0"], &["sh", "-c", "echo Not logged in; exit 1"], &["touch", mark.to_str().unwrap()]],
        Some((0, "*")),
    );
    let result = result(&check).await;
    assert_eq!((result.status, result.outcome.clone()), (CheckStatus::Failed, Some(Outcome::ExitCode(1))));
    assert_eq!(result.version.as_deref(), Some("1.0.0"), "what was read before stays");
    assert_eq!(detail(&result), "`sh -c 'echo Not logged in; exit 1'` exited with code 1: Not logged in");
    assert!(!mark.exists());
}

#[tokio::test]
async fn a_version_is_read_from_stderr_too_and_held_against_the_rule() {
    let tool = ["sh", "-c", "echo tool 0.9.1 >&2"];
    let result = result(&check(&[&tool], Some((0, ">=1.0")))).await;
    assert_eq!((result.status, result.version.as_deref()), (CheckStatus::Failed, Some("0.9.1")));
    assert_eq!(result.outcome, Some(Outcome::ExitCode(0)));
    assert!(detail(&result).ends_with("is version 0.9.1, and >=1.0 is required"), "{}", detail(&result));
}

#[tokio::test]
async fn a_version_shows_no_secret_and_that_of_something_else_does_not_stand_for_it() {
    let passed = result(&check(&[&["echo", "tool 1.2.3-hunter22"]], Some((0, ">=1.2.3-a")))).await;
    assert_eq!((passed.status, passed.version.as_deref()), (CheckStatus::Passed, Some("1.2.3-<hidden>")));
    let tool = ["sh", "-c", "echo tool 1.2.3-01; echo lib 4.5.6 >&2"];
    let result = result(&check(&[&tool], Some((0, ">=1.0")))).await;
    assert!(detail(&result).contains("printed no version"), "{}", detail(&result));
}

#[tokio::test]
async fn no_version_where_one_is_required_is_a_failure() {
    let result = result(&check(&[&["echo", "hello"]], Some((0, ">=1.0")))).await;
    assert_eq!(detail(&result), "`echo hello` printed no version, and >=1.0 is required: hello");
}

#[tokio::test]
async fn messages_are_one_short_line_without_secrets_or_escapes() {
    let script = "printf 'x\\033[31mhunter22\\033[0m\\n'; seq 1 2000; echo 'key sk-abc***xyz'; exit 2";
    let result = result(&check(&[&["sh", "-c", script, "hunter22"]], None)).await;
    let detail = detail(&result);
    assert!(detail.ends_with("| 1999 | 2000 | key <hidden>"), "{detail}");
    assert!(!detail.contains("hunter22") && !detail.contains("sk-abc"), "{detail}");
    assert!(!detail.contains(char::is_control), "{detail:?}");
    assert!(detail.len() < SHOWN + 200, "{}", detail.len());
}

#[tokio::test]
async fn what_a_failing_command_quotes_of_its_users_files_is_hidden() {
    let result = result(&check(&[&["sh", "-c", "echo found the string quoted-''value; exit 1"]], None)).await;
    assert!(detail(&result).contains("found the string <hidden>"), "{}", detail(&result));
    assert!(!format!("{result:?}").contains("quoted-value"));
}

#[tokio::test]
async fn the_words_of_a_command_are_told_though_they_stand_in_its_users_files() {
    let failed = result(&check(&[&["sh", "-c", "exit 1", "quoted-value", "--token", "abcd"]], None)).await;
    let typed = "sh -c 'exit 1' quoted-value --token <hidden>`";
    let message = failed.message.unwrap();
    assert_eq!(message.detail, format!("`{typed} exited with code 1"));
    assert!(message.remedy.ends_with(&format!("{typed} and mend what it says")), "{}", message.remedy);
    let long = "x".repeat(100_000);
    let failed = result(&check(&[&["sh", "-c", "exit 1", &long]], None)).await;
    assert!(detail(&failed).len() < 500 && detail(&failed).contains("xx\u{2026}` exited"), "{}", detail(&failed));
}

#[tokio::test]
async fn the_remedy_is_the_command_as_that_user_would_run_it() {
    let runner = Runner::start([], Redactor::default()).unwrap();
    let argv = ["codex".to_owned(), "login status".to_owned()];
    let mut ended = runner.run(&identity(), &["false".to_owned()], Duration::from_secs(20)).await;
    ended.program = Some("/usr/bin/codex".into());
    let login = User::from_name("nobody").unwrap().unwrap();
    let mut other = Identity { user: "nobody".into(), uid: login.uid, home: login.dir, ..identity() };
    if runner.is_own_user(&other) {
        return;
    }
    let by_hand = |ended: &Ended, other: &Identity| {
        Says { argv: &argv, ended, redactor: runner.redactor(), own: runner.redactor() }.by_hand(other, &runner)
    };
    assert_eq!(by_hand(&ended, &other), "run `sudo -u nobody -H codex 'login status'` and mend what it says");
    ended.program = Some("/opt/codex/bin/codex".into());
    other.home = "/srv/h".into();
    other.path = "/opt/codex/bin:/bin".into();
    other.env.insert("API_KEY".into(), Secret::new("value"));
    assert_eq!(
        by_hand(&ended, &other),
        "run `sudo -u nobody -H env HOME=/srv/h PATH=/opt/codex/bin:/bin codex 'login status'`, with API_KEY as in \
         workers.env, and mend what it says"
    );
}

#[tokio::test]
async fn a_tool_that_is_missing_says_what_to_install_and_where_it_was_sought() {
    let result = result(&check(&[&["no-such-tool"]], None)).await;
    assert_eq!(result.outcome, Some(Outcome::NotFound));
    let message = result.message.unwrap();
    assert_eq!(message.detail, "`no-such-tool` was not found on the PATH of user root: /usr/bin:/bin");
    assert!(message.remedy.contains("workers.path_env"), "{}", message.remedy);
}

#[tokio::test]
async fn a_script_that_was_written_a_moment_ago_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tool");
    for n in 0..5 {
        fs::write(&path, format!("#!/bin/sh\necho 1.{n}.0\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let result = result(&check(&[&[path.to_str().unwrap()]], Some((0, "*")))).await;
        assert_eq!(result.version, Some(format!("1.{n}.0")), "{result:?}");
    }
}
