use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;
use crate::{model::ProfileState, watch::Watcher};

const EVERY: Duration = Duration::from_secs(60);

/// A profile whose signature is chosen by the test.
pub(in crate::probe::schedule) struct Watched {
    file: tempfile::NamedTempFile,
    inspections: Arc<AtomicU32>,
    pub(in crate::probe::schedule) probe: ProfileProbe,
}

pub(in crate::probe::schedule) fn watched() -> Watched {
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
            extra_settings: BTreeMap::new(),
            managed_on: None,
            config_hash: None,
            policy_hash: None,
            problem: None,
            wrong: Vec::new(),
            written: None,
        }
    };
    let probe = ProfileProbe {
        inspect: Arc::new(inspect),
        repair: Arc::new(|| Ok(())),
        values: Arc::new(Vec::new),
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
    tasks.spawn(watch_profile(IdentityId(0), scene.probe.clone(), subject, (requests, watch::channel(0).1), send));
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
    tasks.spawn(watch_profile(IdentityId(0), scene.probe.clone(), subject, (requests, watch::channel(0).1), send));
    sleep(Duration::from_secs(21)).await;
    assert_eq!(looks.load(Ordering::Relaxed), 3);
}

/// In real time, since the file's stamps are real.
#[tokio::test]
async fn a_change_of_the_profile_is_inspected_within_a_look_or_two() {
    let watched = watched();
    let (_again, requests) = watch::channel(0);
    let (send, mut found) = mpsc::channel(100);
    let mut tasks = JoinSet::new();
    tasks.spawn(watch_profile(
        IdentityId(0),
        watched.probe.clone(),
        unwatched(),
        (requests, watch::channel(0).1),
        send,
    ));
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
    tasks.spawn(watch_profile(
        IdentityId(0),
        watched.probe.clone(),
        unwatched(),
        (requests, watch::channel(0).1),
        send,
    ));
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
