//! With paused time: a wait takes none, and everything happens at its exact instant.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use tokio::time::{sleep, timeout};

use super::{profile::tests::watched, *};
use crate::{
    model::{CheckResult, CheckStatus, ProfileState},
    probe::Runner,
    secret::Redactor,
};

const EVERY: Duration = Duration::from_secs(60);

fn exactly(every: Duration) -> Duration {
    every
}

fn some_observation() -> Observation {
    let result = CheckResult {
        status: CheckStatus::Passed,
        outcome: None,
        duration: Duration::ZERO,
        version: None,
        fingerprint: None,
        message: None,
    };
    observed(IdentityId(0), Mono::default(), Finding::Check { name: "c".into(), result })
}

/// A probe that takes a while and notes when it started.
struct Scene {
    starts: Arc<Mutex<Vec<u64>>>,
    most_at_once: Arc<AtomicU32>,
    again: watch::Sender<u64>,
    observations: mpsc::Receiver<Observation>,
    tasks: JoinSet<()>,
}

fn scene(waits: Duration, runs: Duration) -> Scene {
    let starts = Arc::new(Mutex::new(Vec::new()));
    let most_at_once = Arc::new(AtomicU32::new(0));
    let (again, requests) = watch::channel(0);
    let (send, observations) = mpsc::channel(100);
    let mut tasks = JoinSet::new();
    let origin = Instant::now();
    let (noted, most) = (starts.clone(), most_at_once.clone());
    let now = Arc::new(AtomicU32::new(0));
    let probe = async move |started: Started<'_>| {
        sleep(waits).await;
        started();
        noted.lock().unwrap().push(origin.elapsed().as_secs());
        most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        sleep(runs).await;
        now.fetch_sub(1, Ordering::Relaxed);
        Some(some_observation())
    };
    tasks.spawn(repeat(EVERY, exactly, requests, send, Tool::unwatched(), probe));
    Scene { starts, most_at_once, again, observations, tasks }
}

impl Scene {
    fn starts(&self) -> Vec<u64> {
        self.starts.lock().unwrap().clone()
    }

    fn ask(&self) {
        self.again.send_modify(|requests| *requests += 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_runs_at_once_and_then_from_start_to_start() {
    let scene = scene(Duration::ZERO, Duration::from_secs(5));
    sleep(Duration::from_secs(181)).await;
    assert_eq!(scene.starts(), [0, 60, 120, 180]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_outlasts_its_interval_is_followed_by_the_next_and_never_joined_by_it() {
    let scene = scene(Duration::ZERO, Duration::from_secs(90));
    scene.ask();
    sleep(Duration::from_secs(200)).await;
    assert_eq!(scene.starts(), [0, 90, 180]);
    assert_eq!(scene.most_at_once.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_at_once_and_restarts_the_interval() {
    let scene = scene(Duration::ZERO, Duration::from_secs(5));
    sleep(Duration::from_secs(20)).await;
    scene.ask();
    sleep(Duration::from_secs(65)).await;
    assert_eq!(scene.starts(), [0, 20, 80]);
}

#[tokio::test(start_paused = true)]
async fn requests_during_a_run_are_answered_by_one_run_after_it() {
    let mut scene = scene(Duration::ZERO, Duration::from_secs(5));
    sleep(Duration::from_secs(2)).await;
    scene.ask();
    scene.ask();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(scene.starts(), [0, 5]);
    assert!(scene.observations.try_recv().is_ok() && scene.observations.try_recv().is_ok());
    assert!(scene.observations.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_request_while_a_run_waits_for_its_turn_is_answered_by_that_run() {
    let scene = scene(Duration::from_secs(3), Duration::from_secs(5));
    sleep(Duration::from_secs(1)).await;
    scene.ask();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(scene.starts(), [3]);
}

#[tokio::test(start_paused = true)]
async fn without_anybody_to_ask_the_schedule_goes_on() {
    let Scene { starts, again, observations, tasks, .. } = scene(Duration::ZERO, Duration::from_secs(5));
    drop(again);
    sleep(Duration::from_secs(121)).await;
    assert_eq!(*starts.lock().unwrap(), [0, 60, 120]);
    drop((observations, tasks));
}

#[tokio::test(start_paused = true)]
async fn without_a_receiver_it_ends() {
    let Scene { again, observations, mut tasks, .. } = scene(Duration::ZERO, Duration::from_secs(5));
    sleep(Duration::from_secs(20)).await;
    drop(observations);
    timeout(Duration::from_secs(1), tasks.join_next()).await.unwrap().unwrap().unwrap();
    drop(again);
}

#[test]
fn jitter_keeps_to_a_tenth_and_is_not_always_the_same() {
    let all: Vec<Duration> = (0..1000).map(|_| jitter(EVERY)).collect();
    assert!(all.iter().all(|every| (Duration::from_secs(54)..=Duration::from_secs(66)).contains(every)));
    assert!(all.iter().any(|every| *every != all[0]));
}

#[tokio::test]
async fn once_runs_everything_side_by_side_and_in_order() {
    use nix::unistd::{Gid, Uid};
    let slow = |name: &str| {
        let check = Check {
            run: vec![vec!["sleep".into(), "0.5".into()]],
            version: None,
            required: true,
            every: EVERY,
            timeout: EVERY,
            fail_after: 1,
            pass_after: 1,
        };
        (name.to_owned(), check)
    };
    let identity = Identity {
        id: IdentityId(7),
        user: "me".into(),
        uid: Uid::effective(),
        gid: Gid::effective(),
        groups: Vec::new(),
        home: "/".into(),
        path: "/usr/bin:/bin".into(),
        env: BTreeMap::new(),
        workers: Vec::new(),
    };
    let runner = Runner::start([], Redactor::default()).unwrap();
    let checks = BTreeMap::from(["a", "b", "c", "d", "e"].map(slow));
    let started = Instant::now();
    let found = once(&identity, &checks, Some(&watched().probe), &runner).await;
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(1), "four at once, so the fifth comes after: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let names: Vec<&str> = found
        .iter()
        .map(|observation| match &observation.finding {
            Finding::Check { name, .. } => name.as_str(),
            Finding::Profile(_) => "profile",
            Finding::Tool { .. } | Finding::Repair(_) => "nothing that was asked for",
        })
        .collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "profile"]);
    assert!(
        found
            .iter()
            .all(|observation| observation.identity == IdentityId(7) && observation.started <= observation.finished)
    );
}

#[tokio::test]
async fn a_schedule_sends_what_its_checks_and_its_profile_say() {
    let identity = Arc::new(Identity {
        id: IdentityId(0),
        user: "me".into(),
        uid: nix::unistd::Uid::effective(),
        gid: nix::unistd::Gid::effective(),
        groups: Vec::new(),
        home: "/".into(),
        path: "/usr/bin:/bin".into(),
        env: BTreeMap::new(),
        workers: Vec::new(),
    });
    let check = |word: &str| Check {
        run: vec![vec![word.to_owned()]],
        version: None,
        required: true,
        every: EVERY,
        timeout: EVERY,
        fail_after: 1,
        pass_after: 1,
    };
    let checks = Arc::new(BTreeMap::from([("good".to_owned(), check("true")), ("bad".to_owned(), check("false"))]));
    let (_again, requests) = watch::channel(0);
    let (observations, mut found) = mpsc::channel(8);
    let runner = Runner::start([], Redactor::default()).unwrap();
    let profile = Some(watched().probe);
    let running = tokio::spawn(run(Schedule {
        identity,
        checks,
        profile,
        runner,
        watcher: Watcher::start().0,
        hashes: Arc::default(),
        observations,
        again: requests,
        repair: watch::channel(0).1,
    }));
    let mut seen = BTreeMap::new();
    while seen.len() < 3 {
        let observation = timeout(Duration::from_secs(10), found.recv()).await.unwrap().unwrap();
        match observation.finding {
            Finding::Check { name, result } => seen.insert(name, result.status == CheckStatus::Passed),
            Finding::Profile(report) => seen.insert("profile".into(), report.state == ProfileState::Managed),
            Finding::Tool { .. } | Finding::Repair(_) => panic!("nothing has changed"),
        };
    }
    assert_eq!(seen, BTreeMap::from([("bad".into(), false), ("good".into(), true), ("profile".into(), true)]));
    drop(found);
    timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
}

/// A schedule of one check, `tool`, which is a script in a folder of its own.
struct Installed {
    folder: tempfile::TempDir,
    found: mpsc::Receiver<Observation>,
    tasks: JoinSet<()>,
}

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().canonicalize().unwrap();
        let identity = Arc::new(Identity {
            id: IdentityId(0),
            user: "me".into(),
            uid: nix::unistd::Uid::effective(),
            gid: nix::unistd::Gid::effective(),
            groups: Vec::new(),
            path: format!("{}:{}:/usr/bin:/bin", home.join("first").display(), home.join("bin").display()),
            home,
            env: BTreeMap::new(),
            workers: Vec::new(),
        });
        for name in ["first", "bin"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        install(&folder.path().join("bin/tool"), "echo 1.0.0");
        let check = Check {
            run: vec![vec!["tool".to_owned()]],
            version: None,
            required: true,
            every: EVERY,
            timeout: EVERY,
            fail_after: 1,
            pass_after: 1,
        };
        let (observations, found) = mpsc::channel(100);
        let (watcher, told) = Watcher::start();
        let mut tasks = JoinSet::new();
        tasks.spawn(told.run());
        tasks.spawn(run(Schedule {
            identity,
            checks: Arc::new(BTreeMap::from([("tool".to_owned(), check)])),
            profile: None,
            runner: Runner::start([], Redactor::default()).unwrap(),
            watcher,
            hashes: Arc::default(),
            observations,
            // Nobody asks.
            again: watch::channel(0).1,
            repair: watch::channel(0).1,
        }));
        Self { folder, found, tasks }
    }

    async fn next(&mut self) -> Observation {
        timeout(Duration::from_secs(20), self.found.recv()).await.unwrap().unwrap()
    }

    /// The fingerprint of the next result.
    async fn passes(&mut self) -> String {
        let Finding::Check { result, .. } = self.next().await.finding else { panic!("not a result") };
        assert_eq!(result.status, CheckStatus::Passed, "{result:?}");
        result.fingerprint.unwrap()
    }

    async fn changes(&mut self) -> String {
        let Finding::Tool { path, .. } = self.next().await.finding else { panic!("not a change") };
        path
    }
}

fn install(path: &std::path::Path, line: &str) {
    use std::os::unix::fs::PermissionsExt;
    let temp = path.with_extension("new");
    std::fs::write(&temp, format!("#!/bin/sh\n{line}\n")).unwrap();
    std::fs::set_permissions(&temp, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(temp, path).unwrap();
}

#[tokio::test]
async fn a_tool_that_is_replaced_is_told_before_it_is_run_again_and_has_another_fingerprint() {
    let mut scene = Installed::new();
    let before = scene.passes().await;
    install(&scene.folder.path().join("bin/tool"), "echo 2.0.0");
    assert!(scene.changes().await.ends_with("bin/tool"));
    let after = scene.passes().await;
    assert_ne!(before, after);
    // What wins on PATH from now on lies in a folder where nothing was.
    install(&scene.folder.path().join("first/tool"), "echo 3.0.0");
    assert!(scene.changes().await.ends_with("first/tool"));
    assert_ne!(scene.passes().await, after);
    drop(scene.tasks);
}

#[tokio::test]
async fn a_run_that_the_tool_changes_under_says_nothing() {
    let mut scene = Installed::new();
    scene.passes().await;
    install(&scene.folder.path().join("bin/tool"), "touch started; exec sleep 30");
    scene.changes().await;
    let started = scene.folder.path().join("started");
    while !started.exists() {
        sleep(Duration::from_millis(5)).await;
    }
    let changed = Instant::now();
    install(&scene.folder.path().join("bin/tool"), "echo 2.0.0");
    scene.changes().await;
    scene.passes().await;
    assert!(changed.elapsed() < Duration::from_secs(20), "it waited for the old one");
}
