//! The look at a profile: at once when its files are touched, soon when they only look different, and now and then.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{observed, on_a_blocking_thread, requested};
use crate::{
    clock,
    model::{Failure, Finding, IdentityId, Mono, Observation, ProfileReport},
    probe::{check::Quoted, signature::Signature},
    watch::Subject,
};

/// Between two cheap looks at a profile that cannot be watched. Two calls to stat cost some microseconds, so four looks a
/// second cost an idle gate nothing that shows.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between two cheap looks at a profile that is watched. They are for what raises no event, such as an edit in the lower
/// layer of an overlay.
const LOOK_WATCHED_EVERY: Duration = Duration::from_secs(10);

/// Between two full inspections at the most, however still the file lies: an edit through a memory map or on a network
/// file system may change no stamp.
const INSPECT_EVERY: Duration = Duration::from_secs(60);

/// An inspection is also evidence, and evidence is renewed this many times before it is too old: one that comes late
/// must quarantine nobody.
const RENEWALS: u32 = 3;

/// How the profile is looked at and mended. All are called on a thread where they may block.
#[derive(Clone)]
pub struct ProfileProbe {
    /// Reads and judges the file.
    pub inspect: Arc<dyn Fn() -> ProfileReport + Send + Sync>,
    /// Merges the enforced keys into the file.
    pub repair: Arc<dyn Fn() -> Result<(), Failure> + Send + Sync>,
    /// What the file says, so that nobody repeats it.
    pub(crate) values: Quoted,
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

pub(super) async fn inspect(identity: IdentityId, profile: &ProfileProbe) -> Option<Observation> {
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

/// Inspects the profile at once when its files are touched or when requested, soon when its signature has changed, and
/// now and then.
pub(super) async fn watch_profile(
    identity: IdentityId,
    profile: ProfileProbe,
    subject: Subject,
    (mut again, mut repair): (watch::Receiver<u64>, watch::Receiver<u64>),
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
                () = requested(&mut repair) => {
                    let mend = profile.repair.clone();
                    let Some(outcome) = on_a_blocking_thread(move || mend()).await else { return };
                    let mended = observed(identity, clock::now().mono, Finding::Repair(outcome));
                    if observations.send(mended).await.is_err() {
                        return;
                    }
                    break;
                }
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
pub(super) mod tests;
