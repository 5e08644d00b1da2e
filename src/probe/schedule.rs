//! Repeats the checks of one identity and the look at its profile, and sends what they find.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep_until},
};

use super::{check, command::Runner, signature::Signature};
use crate::{
    clock,
    identity::Identity,
    model::{Finding, IdentityId, Mono, Observation, ProfileReport},
    settings::Check,
    watch::{Subject, Watcher},
};

/// Between two cheap looks at a profile that cannot be watched. Two calls to stat cost some microseconds, so four looks a
/// second cost an idle gate nothing that shows.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between two cheap looks at a profile that is watched. They are for what raises no event, such as an edit in the lower
/// layer of an overlay.
const LOOK_WATCHED_EVERY: Duration = Duration::from_secs(2);

/// Between two full inspections at the most, however still the file lies: an edit through a memory map or on a network
/// file system may change no stamp.
const INSPECT_EVERY: Duration = Duration::from_secs(60);

/// An inspection is also evidence, and evidence is renewed this many times before it is too old: one that comes late
/// must quarantine nobody.
const RENEWALS: u32 = 3;

/// Schedules are stretched and shrunk by up to this share, so that the gates of many hosts, started together, do not
/// come to check together.
const JITTER: f64 = 0.1;

/// How the profile is looked at. Both are called on a thread where they may block.
#[derive(Clone)]
pub struct ProfileProbe {
    /// Reads and judges the file.
    pub inspect: Arc<dyn Fn() -> ProfileReport + Send + Sync>,
    /// What decides the report: when one of these changes, it is inspected at once. Absolute.
    pub paths: Vec<PathBuf>,
    /// Tells cheaply whether it may have changed.
    pub signature: Arc<dyn Fn() -> Signature + Send + Sync>,
    /// Between two inspections of a file that lies still; see [`ProfileProbe::renewal`].
    pub every: Duration,
}

impl ProfileProbe {
    /// How often a still profile is inspected if evidence counts for `max_age`.
    pub fn renewal(max_age: Duration) -> Duration {
        INSPECT_EVERY.min(max_age / RENEWALS)
    }
}

impl std::fmt::Debug for ProfileProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProfileProbe")
    }
}

/// What is repeated, for whom, and where the findings go.
#[derive(Debug)]
pub struct Schedule {
    /// Whose checks these are.
    pub identity: Arc<Identity>,
    /// By name.
    pub checks: Arc<BTreeMap<String, Check>>,
    /// `None` if no profile is configured.
    pub profile: Option<ProfileProbe>,
    /// Runs the commands; one for the whole gate.
    pub runner: Runner,
    /// Tells of changed files; one for the whole gate.
    pub watcher: Watcher,
    /// Bounded by the caller; a full channel delays the next run and loses nothing.
    pub observations: mpsc::Sender<Observation>,
    /// "Check now": every change of the number is a request. What had started before the request does not answer it.
    pub again: watch::Receiver<u64>,
}

/// Runs every check and looks at the profile, first at once and then on schedule, until nobody receives the
/// observations any more. Dropping the future kills the commands that run.
///
/// # Panics
///
/// Passes on a panic of a probe: going on without it would let its evidence age for no reason that anybody is told.
pub async fn run(schedule: Schedule) {
    let Schedule { identity, checks, profile, runner, watcher, observations, again } = schedule;
    let mut loops = JoinSet::new();
    for (name, check) in checks.iter() {
        let every = check.every;
        let (identity, checks, name, runner) = (identity.clone(), checks.clone(), name.clone(), runner.clone());
        let probe = async move |started: Started<'_>| probe_check(&identity, &checks, &name, &runner, started).await;
        loops.spawn(repeat(every, jitter, again.clone(), observations.clone(), probe));
    }
    if let Some(profile) = profile {
        let subject = watcher.subject(profile.paths.clone());
        loops.spawn(watch_profile(identity.id, profile, subject, again, observations));
    }
    while let Some(ended) = loops.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Runs every check and inspects the profile once, side by side. In the order of the checks' names, the profile last.
pub async fn once(
    identity: &Identity,
    checks: &BTreeMap<String, Check>,
    profile: Option<&ProfileProbe>,
    runner: &Runner,
) -> Vec<Observation> {
    let all = checks.keys().map(|name| probe_check(identity, checks, name, runner, Box::new(|| {})));
    let (found, profile) = tokio::join!(futures_util::future::join_all(all), async {
        match profile {
            Some(profile) => inspect(identity.id, profile).await,
            None => None,
        }
    });
    found.into_iter().flatten().chain(profile).collect()
}

/// Called by a probe at the moment from which on it sees the machine.
type Started<'a> = Box<dyn FnOnce() + Send + 'a>;

/// `None` only for a name that is not among the checks.
async fn probe_check(
    identity: &Identity,
    checks: &BTreeMap<String, Check>,
    name: &str,
    runner: &Runner,
    started: Started<'_>,
) -> Option<Observation> {
    let check = checks.get(name)?;
    let _slot = runner.slot().await;
    started();
    let began = clock::now().mono;
    let result = check::run(check, identity, runner).await;
    Some(observed(identity.id, began, Finding::Check { name: name.to_owned(), result }))
}

async fn inspect(identity: IdentityId, profile: &ProfileProbe) -> Option<Observation> {
    let (_, observation) = look_and_inspect(identity, profile, None).await?;
    Some(observation)
}

/// Inspects the profile because of what was noticed at `seen`, if anything was. Also hands back what it looked like
/// before, so that a change during the inspection shows at the next look.
async fn look_and_inspect(
    identity: IdentityId,
    profile: &ProfileProbe,
    seen: Option<Mono>,
) -> Option<(Look, Observation)> {
    let profile = profile.clone();
    // Both in one go: between an edit and the shut of an edge, every change of threads shows.
    on_a_blocking_thread(move || {
        let began = clock::now().mono;
        let look = Look::at(&profile);
        let report = (profile.inspect)();
        let observation = observed(identity, began, Finding::Profile(report));
        (look, Observation { seen: seen.unwrap_or(observation.seen), ..observation })
    })
    .await
}

fn observed(identity: IdentityId, started: Mono, finding: Finding) -> Observation {
    let now = clock::now();
    Observation { identity, started, finished: now.mono, seen: now.mono, at: now.wall, finding }
}

/// `None` when the runtime is being shut down.
async fn on_a_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match spawn_blocking(work).await {
        Ok(result) => Some(result),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

/// The interval of one round.
fn jitter(every: Duration) -> Duration {
    every.mul_f64(rand::random_range(1.0 - JITTER..=1.0 + JITTER))
}

/// Waits for a request; for ever, once nobody can make one.
async fn requested(again: &mut watch::Receiver<u64>) {
    if again.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Runs the probe, at once and then `every` so often from start to start, or when requested. Never twice at once: what
/// comes due meanwhile is run afterwards, once.
async fn repeat<P>(
    every: Duration,
    jitter: fn(Duration) -> Duration,
    mut again: watch::Receiver<u64>,
    observations: mpsc::Sender<Observation>,
    probe: P,
) where
    P: AsyncFn(Started<'_>) -> Option<Observation>,
{
    loop {
        let mut began = Instant::now();
        // A request is answered by what starts after it; waiting for a free slot is not yet a start.
        let started = Box::new(|| {
            began = Instant::now();
            again.mark_unchanged();
        });
        let Some(observation) = probe(started).await else { return };
        if observations.send(observation).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep_until(began + jitter(every)) => {}
            () = requested(&mut again) => {}
            () = observations.closed() => return,
        }
    }
}

/// Inspects the profile at once when its files are touched or when requested, soon when its signature has changed, and
/// now and then.
async fn watch_profile(
    identity: IdentityId,
    profile: ProfileProbe,
    subject: Subject,
    mut again: watch::Receiver<u64>,
    observations: mpsc::Sender<Observation>,
) {
    let mut seen = None;
    loop {
        again.mark_unchanged();
        let inspected = Instant::now();
        let Some((before, observation)) = look_and_inspect(identity, &profile, seen.take()).await else { return };
        if observations.send(observation).await.is_err() {
            return;
        }
        let mut next_look = Instant::now();
        loop {
            next_look += if subject.unwatched().is_some() { LOOK_EVERY } else { LOOK_WATCHED_EVERY };
            // A watch says nothing of what raises no event, and its evidence has to be renewed in time.
            next_look = next_look.min(inspected + profile.every.max(LOOK_EVERY));
            tokio::select! {
                touched = subject.touched() => {
                    seen = Some(touched.at);
                    break;
                }
                () = sleep_until(next_look) => {}
                () = requested(&mut again) => break,
                () = observations.closed() => return,
            }
            let Some(now) = look(&profile).await else { return };
            if now.signature != before.signature || !before.is_settled || inspected.elapsed() >= profile.every {
                break;
            }
            // After a suspended machine or a slow disk there is nothing to be caught up with.
            next_look = next_look.max(Instant::now());
        }
    }
}

/// What a cheap look at the profile shows.
struct Look {
    signature: Signature,
    /// Whether a later change is sure to show.
    is_settled: bool,
}

impl Look {
    fn at(profile: &ProfileProbe) -> Self {
        let signature = (profile.signature)();
        let is_settled = signature.is_settled(SystemTime::now());
        Self { signature, is_settled }
    }
}

async fn look(profile: &ProfileProbe) -> Option<Look> {
    let profile = profile.clone();
    on_a_blocking_thread(move || Look::at(&profile)).await
}

#[cfg(test)]
mod tests;
