//! With paused time: a wait takes none, and everything happens at its exact instant.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use tokio::time::{sleep, timeout};

use super::*;
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
    tasks.spawn(repeat(EVERY, exactly, requests, send, probe));
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

/// A profile whose signature is chosen by the test.
struct Watched {
    file: tempfile::NamedTempFile,
    inspections: Arc<AtomicU32>,
    probe: ProfileProbe,
}

fn watched() -> Watched {
    let file = tempfile::NamedTempFile::new().unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    file.as_file().set_modified(long_ago).unwrap();
    let inspections = Arc::new(AtomicU32::new(0));
    let (count, path) = (inspections.clone(), file.path().to_owned());
    let inspect = move || {
        count.fetch_add(1, Ordering::Relaxed);
        ProfileReport {
            path: String::new(),
            owner_uid: None,
            owner_gid: None,
            state: ProfileState::Managed,
            enforced: BTreeMap::new(),
            extra_settings: Vec::new(),
            managed_on: None,
            config_hash: None,
            policy_hash: None,
            problem: None,
        }
    };
    let probe = ProfileProbe {
        inspect: Arc::new(inspect),
        paths: vec![path.clone()],
        signature: Arc::new(move || Signature::of(&path)),
        every: EVERY,
    };
    Watched { file, inspections, probe }
}

/// Nobody runs the watcher, so nothing is told.
fn unwatched() -> Subject {
    Watcher::start().0.subject(Vec::new())
}

#[tokio::test]
async fn a_change_of_a_watched_profile_is_inspected_at_once_and_counts_from_its_event() {
    let scene = watched();
    let (_again, requests) = watch::channel(0);
    let (send, mut found) = mpsc::channel(100);
    let (watcher, told) = Watcher::start();
    let mut tasks = JoinSet::new();
    tasks.spawn(told.run());
    let subject = watcher.subject(scene.probe.paths.clone());
    subject.touched().await;
    tasks.spawn(watch_profile(IdentityId(0), scene.probe.clone(), subject, requests, send));
    found.recv().await.unwrap();
    let (edited, before) = (Instant::now(), clock::now().mono);
    std::fs::write(scene.file.path(), "x").unwrap();
    let observation = timeout(LOOK_EVERY, found.recv()).await.unwrap().unwrap();
    assert!(edited.elapsed() < LOOK_EVERY, "{:?}", edited.elapsed());
    assert!(before < observation.seen && observation.seen < observation.started, "{observation:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watched_profile_is_also_looked_at_now_and_then() {
    let mut scene = watched();
    let looks = Arc::new(AtomicU32::new(0));
    let count = looks.clone();
    scene.probe.signature = Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        Signature::default()
    });
    let (_again, requests) = watch::channel(0);
    let (send, _found) = mpsc::channel(100);
    let (watcher, told) = Watcher::start();
    let mut tasks = JoinSet::new();
    tasks.spawn(told.run());
    let subject = watcher.subject(scene.probe.paths.clone());
    subject.touched().await;
    assert_eq!(subject.unwatched(), None);
    tasks.spawn(watch_profile(IdentityId(0), scene.probe.clone(), subject, requests, send));
    sleep(Duration::from_secs(21)).await;
    assert_eq!(looks.load(Ordering::Relaxed), 11);
}

/// In real time, since the file's stamps are real.
#[tokio::test]
async fn a_change_of_the_profile_is_inspected_within_a_look_or_two() {
    let watched = watched();
    let (_again, requests) = watch::channel(0);
    let (send, mut found) = mpsc::channel(100);
    let mut tasks = JoinSet::new();
    tasks.spawn(watch_profile(IdentityId(0), watched.probe.clone(), unwatched(), requests, send));
    found.recv().await.unwrap();
    // Until it has settled it is inspected at every look; then no more.
    while timeout(LOOK_EVERY * 3, found.recv()).await.is_ok() {}
    let before = watched.inspections.load(Ordering::Relaxed);
    let edited = Instant::now();
    std::fs::write(watched.file.path(), "x").unwrap();
    timeout(LOOK_EVERY * 4, found.recv()).await.unwrap().unwrap();
    assert!(edited.elapsed() < LOOK_EVERY * 3, "{:?}", edited.elapsed());
    assert!(watched.inspections.load(Ordering::Relaxed) > before);
}

#[tokio::test(start_paused = true)]
async fn a_still_profile_is_inspected_once_a_minute_and_on_request() {
    let mut watched = watched();
    watched.probe.signature = Arc::new(Signature::default);
    let (again, requests) = watch::channel(0);
    let (send, _found) = mpsc::channel(100);
    let mut tasks = JoinSet::new();
    tasks.spawn(watch_profile(IdentityId(0), watched.probe.clone(), unwatched(), requests, send));
    let inspections = || watched.inspections.load(Ordering::Relaxed);
    sleep(Duration::from_secs(59)).await;
    assert_eq!(inspections(), 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(inspections(), 2);
    again.send_modify(|requests| *requests += 1);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(inspections(), 3);
}

#[test]
fn evidence_of_a_still_profile_is_renewed_before_it_is_too_old() {
    let renewals = [1, 20, 300, 3600].map(|max_age| ProfileProbe::renewal(Duration::from_secs(max_age)).as_millis());
    assert_eq!(renewals, [333, 6_666, 60_000, 60_000]);
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
        observations,
        again: requests,
    }));
    let mut seen = BTreeMap::new();
    while seen.len() < 3 {
        let observation = timeout(Duration::from_secs(10), found.recv()).await.unwrap().unwrap();
        match observation.finding {
            Finding::Check { name, result } => seen.insert(name, result.status == CheckStatus::Passed),
            Finding::Profile(report) => seen.insert("profile".into(), report.state == ProfileState::Managed),
        };
    }
    assert_eq!(seen, BTreeMap::from([("bad".into(), false), ("good".into(), true), ("profile".into(), true)]));
    drop(found);
    timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
}
