//! With real processes. Every command here ends by itself or is ended by what is tested.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    time::Instant as WallInstant,
};

use super::*;
use crate::{
    identity::{GateUser, resolve},
    model::IdentityId,
    secret::Secret,
};

const LONG: Duration = Duration::from_secs(20);

fn runner() -> Runner {
    let environment =
        [("LANG", "C.UTF-8"), ("LC_TIME", "C"), ("TZ", "UTC"), ("AWS_SECRET_ACCESS_KEY", "x"), ("LD_PRELOAD", "")];
    Runner::start(environment.map(|(name, value)| (name.into(), value.into())), Redactor::default()).unwrap()
}

fn own(home: &Path) -> Identity {
    Identity {
        id: IdentityId(0),
        user: "tester".into(),
        uid: Uid::effective(),
        gid: Gid::effective(),
        groups: vec![Gid::effective()],
        home: home.into(),
        path: "/usr/local/bin:/usr/bin:/bin".into(),
        env: BTreeMap::new(),
        workers: Vec::new(),
    }
}

/// `None` where the tests are not run by root.
fn nobody() -> Option<Identity> {
    use crate::settings::{EdgeKind, IntakeType, OnQuarantine, RouteIntake, RunAs, Worker};
    let run_as = RunAs { user: Some("nobody".into()), home: Some("/".into()), ..RunAs::default() };
    let edge = RouteIntake { exchange: "x".into(), kind: IntakeType::Direct, keys: vec!["k".into()] };
    let worker = Worker {
        name: crate::model::WorkerName::new("w"),
        run_as,
        lane: "l".into(),
        edge: EdgeKind::Route(edge),
        queue_arguments: toml::Table::new(),
        task_events: false,
        on_quarantine: OnQuarantine::Drain,
    };
    let gate = GateUser::current(None, Some("/usr/bin:/bin".into()));
    gate.uid.is_root().then(|| resolve(&[worker], &gate).unwrap().remove(0))
}

async fn run(argv: &[&str], timeout: Duration) -> Ended {
    run_as(&own(Path::new("/")), argv, timeout).await
}

async fn run_as(identity: &Identity, argv: &[&str], timeout: Duration) -> Ended {
    let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
    runner().run(identity, &argv, timeout).await
}

async fn sh(script: &str) -> Ended {
    run(&["sh", "-c", script], LONG).await
}

/// Whether a process is there and is no zombie.
fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn exists(pid: &str) -> bool {
    Path::new(&format!("/proc/{}", pid.trim())).exists()
}

async fn within(limit: Duration, what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn exit_codes_and_output_are_told_apart_by_stream() {
    let ended = sh("echo out; echo err >&2; exit 3").await;
    assert_eq!((ended.outcome, ended.detail.as_str()), (Outcome::ExitCode(3), "exited with code 3"));
    assert_eq!((ended.stdout.text().as_str(), ended.stderr.text().as_str()), ("out\n", "err\n"));
    assert_eq!(sh("true").await.outcome, Outcome::ExitCode(0));
}

#[tokio::test]
async fn a_signal_is_named() {
    assert_eq!(sh("kill -SEGV $$").await.outcome, Outcome::Signal("SIGSEGV".into()));
    assert_eq!(sh("kill -40 $$").await.outcome, Outcome::Signal("SIGRTMIN+6".into()));
}

#[tokio::test]
async fn the_words_reach_the_program_without_a_shell() {
    let ended = run(&["printf", "%s|", "a b", "$HOME", "*", ""], LONG).await;
    assert_eq!(ended.stdout.text(), "a b|$HOME|*||");
}

#[tokio::test]
async fn the_environment_is_exactly_what_is_allowed() {
    let mut identity = own(Path::new("/usr"));
    identity.env = [("API_BASE", "http://x"), ("HOME", "/elsewhere")].map(|(k, v)| (k.into(), Secret::new(v))).into();
    let ended = run_as(&identity, &["env"], LONG).await;
    let mut lines: Vec<String> = ended.stdout.text().lines().map(Into::into).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "API_BASE=http://x",
            "HOME=/usr",
            "LANG=C.UTF-8",
            "LC_TIME=C",
            "LOGNAME=tester",
            "PATH=/usr/local/bin:/usr/bin:/bin",
            "TZ=UTC",
            "USER=tester"
        ]
    );
    assert_eq!(run_as(&identity, &["pwd"], LONG).await.stdout.text(), "/usr\n");
}

#[tokio::test]
async fn a_command_that_asks_gets_no_answer_and_no_terminal() {
    let ended = sh("read line && echo got; echo end; (: </dev/tty) 2>/dev/null || echo no tty").await;
    assert_eq!(ended.stdout.text(), "end\nno tty\n");
    assert_eq!(run(&["cat"], LONG).await.outcome, Outcome::ExitCode(0));
}

#[tokio::test]
async fn a_child_starts_with_clean_signals_and_files_and_leads_its_own_session() {
    let (read, write) = nix::unistd::pipe().unwrap();
    // As a supervisor would leave it open: without close-on-exec, as nix's pipe is.
    let ended = sh("grep -E '^(SigBlk|SigIgn|NoNewPrivs)' /proc/self/status; ls /proc/$$/fd; \
                    cut -d' ' -f1,5,6 /proc/$$/stat; ulimit -c")
    .await;
    drop((read, write));
    let text = ended.stdout.text();
    let words: Vec<&str> = text.split_whitespace().collect();
    let pid = words[9];
    assert_eq!(words[..2], ["SigBlk:", "0000000000000000"], "{text}");
    // The rest is as whoever started the tests left it.
    let ignores_sigpipe = u64::from_str_radix(words[3], 16).unwrap() >> (nix::libc::SIGPIPE - 1) & 1;
    assert_eq!(ignores_sigpipe, 0, "{text}");
    assert_eq!(words[4..], ["NoNewPrivs:", "1", "0", "1", "2", pid, pid, pid, "0"], "{text}");
}

#[tokio::test]
async fn another_user_has_its_groups_and_nothing_of_root() {
    let Some(identity) = nobody() else { return };
    let script = "grep -E '^(Uid|Gid|Groups|CapEff|CapPrm|NoNewPrivs):' /proc/self/status; id -un";
    let ended = run_as(&identity, &["sh", "-c", script], LONG).await;
    let words: Vec<String> = ended.stdout.text().split_whitespace().map(Into::into).collect();
    let (four, none) = ("65534 65534 65534 65534", "0000000000000000");
    let expected = format!("Uid: {four} Gid: {four} Groups: 65534 CapPrm: {none} CapEff: {none} NoNewPrivs: 1 nobody");
    assert_eq!(words.join(" "), expected);
}

#[tokio::test]
async fn a_child_is_to_die_with_the_gate() {
    for identity in [Some(own(Path::new("/"))), nobody()].into_iter().flatten() {
        let script = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)";
        let ended = run_as(&identity, &["/usr/bin/python3", "-c", script], LONG).await;
        assert_eq!(ended.stdout.text(), "9\n", "as {}: {}", identity.user, ended.stderr.text());
    }
}

#[tokio::test]
async fn what_ignores_term_is_killed_and_what_obeys_is_not_waited_for() {
    let started = WallInstant::now();
    let ended =
        run(&["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.1; done"], Duration::from_millis(200)).await;
    assert_eq!(ended.outcome, Outcome::Timeout);
    let took = started.elapsed();
    assert!(took >= TERM_GRACE && took < TERM_GRACE + Duration::from_secs(3), "{took:?}");
    assert!(!exists(&ended.stdout.text()));

    let started = WallInstant::now();
    let ended = run(
        &["perl", "-e", "$SIG{TERM} = sub { print qq(bye\\n); exit 0 }; sleep 60 while 1"],
        Duration::from_millis(500),
    )
    .await;
    assert_eq!((ended.outcome, ended.stdout.text().as_str()), (Outcome::Timeout, "bye\n"));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_stopped_command_times_out_like_any_other() {
    let ended = run(&["sh", "-c", "echo $$; kill -STOP $$"], Duration::from_millis(200)).await;
    assert_eq!(ended.outcome, Outcome::Timeout);
    assert!(!exists(&ended.stdout.text()));
}

#[tokio::test]
async fn a_child_that_keeps_the_pipe_open_is_named_and_killed() {
    let started = WallInstant::now();
    let ended = sh("sleep 60 & echo $!").await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let pid = ended.stdout.text();
    assert_eq!(ended.outcome, Outcome::LeftChildren);
    assert_eq!(ended.detail, format!("exited with code 0 but left sleep (pid {}), which had to be killed", pid.trim()));
    assert!(!exists(&pid), "it is not even a zombie");
}

#[tokio::test]
async fn a_child_of_its_own_session_that_keeps_the_pipe_open_is_named_and_killed() {
    let ended = sh("setsid sh -c 'echo $$; exec sleep 60' & sleep 0.3").await;
    let pid = ended.stdout.text();
    assert_eq!(ended.outcome, Outcome::LeftChildren, "{}", ended.detail);
    assert!(ended.detail.contains(&format!("sleep (pid {})", pid.trim())), "{}", ended.detail);
    assert!(!exists(&pid));
}

#[tokio::test]
async fn a_child_without_the_pipe_is_found_by_its_group_or_session() {
    let ended = sh("sleep 60 >/dev/null 2>&1 & echo $!; exit 1").await;
    assert_eq!(ended.outcome, Outcome::LeftChildren);
    assert!(ended.detail.starts_with("exited with code 1 but left sleep"), "{}", ended.detail);
    assert!(!exists(&ended.stdout.text()));

    // A group of its own, as an interactive shell gives its jobs.
    let ended = run(
        &[
            "perl",
            "-e",
            "$| = 1; if (my $p = fork) { setpgrp($p, $p); print $p; exit 0 } close STDOUT; close STDERR; sleep 60",
        ],
        LONG,
    )
    .await;
    assert_eq!(ended.outcome, Outcome::LeftChildren, "{}", ended.detail);
    assert!(!exists(&ended.stdout.text()));
}

#[tokio::test]
async fn a_process_that_detached_itself_completely_is_ended_and_not_held_against_the_check() {
    let script = "$| = 1; if (fork) { select undef, undef, undef, 0.3; exit 0 } use POSIX; POSIX::setsid(); \
                  if (fork) { exit 0 } print $$; close STDIN; close STDOUT; close STDERR; sleep 60";
    let ended = run(&["perl", "-e", script], LONG).await;
    assert_eq!(ended.outcome, Outcome::ExitCode(0), "{}", ended.detail);
    let pid = ended.stdout.text();
    assert!(!pid.is_empty() && !exists(&pid), "{pid}");
}

#[tokio::test]
async fn a_child_that_ends_within_the_grace_is_nothing_to_speak_of() {
    let ended = sh("(sleep 0.05; echo late) & echo early").await;
    assert_eq!(ended.outcome, Outcome::ExitCode(0), "{}", ended.detail);
    assert_eq!(ended.stdout.text(), "early\nlate\n");
}

#[tokio::test]
async fn a_timeout_ends_the_whole_family() {
    let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.1; done' & \
                  (trap '' TERM; while :; do sleep 0.1; done) & echo $!; wait";
    let ended = run(&["sh", "-c", script], Duration::from_millis(300)).await;
    assert_eq!(ended.outcome, Outcome::Timeout);
    let pids: Vec<String> = ended.stdout.text().lines().map(Into::into).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| !exists(pid)), "{pids:?}");
}

#[tokio::test]
async fn a_flood_is_read_and_counted_and_its_head_is_kept() {
    let ended = sh("echo first; head -c 100000000 /dev/zero; echo last >&2").await;
    assert_eq!(ended.outcome, Outcome::ExitCode(0), "{}", ended.detail);
    assert_eq!(ended.stdout.total, 100_000_006);
    assert_eq!((ended.stdout.text().as_str(), ended.stderr.text().as_str()), ("first", "last\n"));
}

#[tokio::test]
async fn an_endless_flood_ends_with_the_timeout() {
    let ended = run(&["yes"], Duration::from_millis(300)).await;
    assert_eq!(ended.outcome, Outcome::Timeout);
    assert!(ended.duration < Duration::from_secs(3), "{:?}", ended.duration);
    assert!(ended.stdout.is_cut());
}

#[tokio::test]
async fn a_command_that_closes_its_output_is_waited_for() {
    let started = WallInstant::now();
    let ended = sh("exec >&- 2>&-; sleep 0.3; exit 4").await;
    assert_eq!(ended.outcome, Outcome::ExitCode(4));
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_dropped_command_dies_with_all_its_descendants() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let script = format!(
        "setsid sh -c 'echo $$; exec sleep 60' >> {0} & sleep 60 & echo $! >> {0}; echo $$ >> {0}; wait",
        file.display()
    );
    let pids = || fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    tokio::select! {
        ended = sh(&script) => panic!("{ended:?}"),
        () = within(LONG, "three processes", || pids().len() == 3) => {}
    }
    let pids = pids();
    within(Duration::from_secs(2), "all dead", || pids.iter().all(|pid| !is_alive(pid))).await;
    within(Duration::from_secs(2), "all reaped", || pids.iter().all(|pid| !exists(pid))).await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_the_path_is_told() {
    let ended = run(&["no-such-tool", "--version"], LONG).await;
    assert_eq!(ended.outcome, Outcome::NotFound);
    assert_eq!(ended.detail, "was not found on the PATH of user tester: /usr/local/bin:/usr/bin:/bin");
    assert_eq!(run(&["/no/such/tool"], LONG).await.outcome, Outcome::NotFound);
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for (path, told) in [
        (file("plain", "#!/bin/sh\n", 0o644), "may not run"),
        (file("orphan", "#!/no/such/interpreter\n", 0o755), "there is no /no/such/interpreter, which"),
        (file("data", "\u{1}\u{2}", 0o755), "neither a program"),
        (folder.path().to_str().unwrap().to_owned(), "may not run"),
    ] {
        let ended = run(&[&path], LONG).await;
        assert_eq!(ended.outcome, Outcome::NotStarted, "{path}");
        assert!(ended.detail.contains(told), "{path}: {}", ended.detail);
        assert!(ended.remedy.is_some());
    }
    let homeless = run_as(&own(Path::new("/no/such/home")), &["true"], LONG).await;
    assert_eq!(homeless.outcome, Outcome::NotStarted);
    assert!(homeless.detail.contains("/no/such/home"), "{}", homeless.detail);
}

#[tokio::test]
async fn the_program_is_sought_with_the_users_own_rights() {
    let Some(mut identity) = nobody() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let tool = |sub: &str, folder_mode: u32, mode: u32, owner: u32| {
        let sub = folder.path().join(sub);
        fs::create_dir(&sub).unwrap();
        let path = sub.join("tool");
        fs::write(&path, format!("#!/bin/sh\necho {}\n", sub.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(owner), None).unwrap();
        fs::set_permissions(&sub, fs::Permissions::from_mode(folder_mode)).unwrap();
        sub.to_str().unwrap().to_owned()
    };
    let roots_only = tool("a", 0o755, 0o700, 0);
    let behind_a_door = tool("b", 0o700, 0o755, 0);
    let own_but_not_executable = tool("c", 0o755, 0o055, 65534);
    let for_all = tool("d", 0o755, 0o755, 0);
    identity.path = format!("{roots_only}::.:{behind_a_door}:{own_but_not_executable}:{for_all}");
    assert_eq!(run_as(&identity, &["tool"], LONG).await.stdout.text(), format!("{for_all}\n"));

    identity.path = format!("{roots_only}:{behind_a_door}");
    let refused = run_as(&identity, &["tool"], LONG).await;
    assert_eq!(refused.outcome, Outcome::NotStarted);
    assert!(refused.detail.contains(&format!("user nobody may not run {roots_only}/tool")), "{}", refused.detail);

    let script = format!("{for_all}/script");
    fs::write(&script, format!("#!{roots_only}/tool\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = run_as(&identity, &[&script], LONG).await;
    let told =
        format!("could not be started: user nobody may not run {roots_only}/tool, which {script} is a script for");
    assert_eq!(refused.detail, told);
}

#[tokio::test]
async fn many_at_once_are_not_taken_for_one_another() {
    let runner = runner();
    let identity = own(Path::new("/"));
    let all = (0..40).map(|n| {
        let script = if n % 4 == 0 { format!("sleep 60 & exit {n}") } else { format!("sleep 0.0{}; exit {n}", n % 10) };
        let (runner, identity) = (runner.clone(), identity.clone());
        async move { runner.run(&identity, &["sh".into(), "-c".into(), script], LONG).await.outcome }
    });
    for (n, outcome) in (0..).zip(futures_util::future::join_all(all).await) {
        let expected = if n % 4 == 0 { Outcome::LeftChildren } else { Outcome::ExitCode(n) };
        assert_eq!(outcome, expected, "{n}");
    }
}
