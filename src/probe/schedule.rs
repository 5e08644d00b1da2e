//! Repeats the checks of one identity and the look at its profile, and sends what they find.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep_until},
};

use super::{check, command::Runner, toolchain::Hashes};
use crate::{
    clock,
    identity::Identity,
    model::{Finding, IdentityId, Mono, Observation},
    settings::Check,
    watch::Watcher,
};

mod profile;
mod tool;

pub use profile::ProfileProbe;
use profile::{inspect, watch_profile};
use tool::Tool;

/// Schedules are stretched and shrunk by up to this share, so that the gates of many hosts, started together, do not
/// come to check together.
const JITTER: f64 = 0.1;

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
    /// Hashes of the tools' files; one for the whole gate.
    pub hashes: Arc<Hashes>,
    /// Bounded by the caller; a full channel delays the next run and loses nothing.
    pub observations: mpsc::Sender<Observation>,
    /// "Check now": every change of the number is a request. What had started before the request does not answer it.
    pub again: watch::Receiver<u64>,
    /// "Mend the profile now": every change of the number is a request.
    pub repair: watch::Receiver<u64>,
}

/// Runs every check and looks at the profile, first at once and then on schedule, until nobody receives the
/// observations any more. Dropping the future kills the commands that run.
///
/// # Panics
///
/// Passes on a panic of a probe: going on without it would let its evidence age for no reason that anybody is told.
pub async fn run(schedule: Schedule) {
    let Schedule { identity, checks, profile, runner, watcher, hashes, observations, again, repair } = schedule;
    let mut loops = JoinSet::new();
    for (name, check) in checks.iter() {
        let every = check.every;
        let (identity, checks, name, runner) = (identity.clone(), checks.clone(), name.clone(), runner.clone());
        let tool = Tool::new(identity.clone(), check.clone(), name.clone(), &watcher, hashes.clone());
        let profile = profile.clone();
        let probe = async move |started: Started<'_>| {
            probe_check(&identity, &checks, &name, (&runner, profile.as_ref()), started).await
        };
        loops.spawn(repeat(every, jitter, again.clone(), observations.clone(), tool, probe));
    }
    if let Some(profile) = profile {
        let subject = watcher.subject(profile.paths.clone());
        loops.spawn(watch_profile(identity.id, profile, subject, (again, repair), observations));
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
    let all = checks.keys().map(|name| probe_check(identity, checks, name, (runner, profile), Box::new(|| {})));
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
    (runner, profile): (&Runner, Option<&ProfileProbe>),
    started: Started<'_>,
) -> Option<Observation> {
    let check = checks.get(name)?;
    let _slot = runner.slot().await;
    started();
    let began = clock::now().mono;
    let result = check::run(check, identity, runner, profile.map(|profile| &profile.values)).await;
    Some(observed(identity.id, began, Finding::Check { name: name.to_owned(), result }))
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

/// Runs the probe, at once and then `every` so often from start to start, or when requested, or when the tool has changed.
/// Never twice at once: what comes due meanwhile is run afterwards, once.
///
/// A change of the tool is told before anything else is done about it. A run that it falls into ends there: what it would say
/// is about neither the old tool nor the new one.
async fn repeat<P>(
    every: Duration,
    jitter: fn(Duration) -> Duration,
    mut again: watch::Receiver<u64>,
    observations: mpsc::Sender<Observation>,
    mut tool: Tool,
    probe: P,
) where
    P: AsyncFn(Started<'_>) -> Option<Observation>,
{
    loop {
        let mut began = Instant::now();
        let mut change = tool.look().await;
        if change.is_none() {
            let fingerprint = tool.fingerprint();
            // A request is answered by what starts after it; waiting for a free slot is not yet a start.
            let started = Box::new(|| {
                began = Instant::now();
                again.mark_unchanged();
            });
            let found = tokio::select! {
                biased;
                changed = tool.changed() => Err(changed),
                found = probe(started) => Ok(found),
            };
            change = match found {
                Err(change) => Some(change),
                Ok(None) => return,
                Ok(Some(observation)) => {
                    let observation = made_of(observation, fingerprint.await);
                    let change = tool.look().await;
                    if change.is_none() && observations.send(observation).await.is_err() {
                        return;
                    }
                    change
                }
            };
        }
        if change.is_none() {
            tokio::select! {
                () = sleep_until(began + jitter(every)) => {}
                () = requested(&mut again) => {}
                changed = tool.changed() => change = Some(changed),
                () = observations.closed() => return,
            }
        }
        if let Some(change) = change {
            if observations.send(change).await.is_err() {
                return;
            }
            tool.settle().await;
        }
    }
}

/// The observation of a check, with what its tool was made of.
fn made_of(mut observation: Observation, fingerprint: Option<String>) -> Observation {
    if let Finding::Check { result, .. } = &mut observation.finding {
        result.fingerprint = fingerprint;
    }
    observation
}

#[cfg(test)]
mod tests;
