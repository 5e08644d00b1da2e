//! What a check's commands are made of, and whether that has changed.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{observed, on_a_blocking_thread};
use crate::{
    clock,
    identity::Identity,
    model::{Finding, IdentityId, Observation},
    probe::{
        signature::Signature,
        toolchain::{Hashes, chain},
    },
    settings::Check,
    watch::{Subject, Watcher},
};

/// An installation that has written nothing for so long is taken to be complete; if it is not, the next write is one more
/// change. The edge is shut meanwhile.
const QUIET: Duration = Duration::from_millis(200);
/// A tool that is written all the time is run all the same, so that somebody hears of it.
const LONGEST: Duration = Duration::from_secs(5);

/// The files behind one check of one identity.
pub(super) struct Tool {
    /// `None`: nothing is watched, and nothing ever changes.
    watched: Option<Watched>,
}

struct Watched {
    identity: Arc<Identity>,
    check: Check,
    name: String,
    subject: Subject,
    hashes: Arc<Hashes>,
    /// `None` before the first look.
    look: Option<Arc<Look>>,
    fingerprint: Arc<Mutex<Option<Fingerprint>>>,
}

/// The newest fingerprint, and the very look that it is of.
type Fingerprint = (Arc<Look>, String);

impl Tool {
    pub(super) fn new(
        identity: Arc<Identity>,
        check: Check,
        name: String,
        watcher: &Watcher,
        hashes: Arc<Hashes>,
    ) -> Self {
        let (subject, fingerprint) = (watcher.subject(Vec::new()), Arc::default());
        Self { watched: Some(Watched { identity, check, name, subject, hashes, look: None, fingerprint }) }
    }

    #[cfg(test)]
    pub(super) fn unwatched() -> Self {
        Self { watched: None }
    }

    /// Looks at the files: what has changed since the last look, if anything. The first look finds nothing changed.
    pub(super) async fn look(&mut self) -> Option<Observation> {
        let tool = self.watched.as_mut()?;
        let before = tool.look.clone();
        let (identity, check) = (tool.identity.clone(), tool.check.clone());
        let began = clock::now().mono;
        let (changed, now) = on_a_blocking_thread(move || match before {
            None => (None, Some(Look::at(&identity, &check))),
            // Whatever leads to other files is a change of these.
            Some(before) => match before.first_change() {
                None => (None, None),
                changed => (changed, Some(Look::at(&identity, &check))),
            },
        })
        .await?;
        if let Some(now) = now {
            tool.subject.set(now.paths().cloned().collect());
            tool.look = Some(Arc::new(now));
        }
        let finding = Finding::Tool { name: tool.name.clone(), path: changed?.display().to_string() };
        Some(observed(tool.id(), began, finding))
    }

    /// The next change. Cancel-safe, because what is missed shows at the next look.
    pub(super) async fn changed(&mut self) -> Observation {
        loop {
            let Some(tool) = &self.watched else { return std::future::pending().await };
            let touched = tool.subject.touched().await;
            if let Some(observation) = self.look().await {
                return Observation { seen: touched.at, ..observation };
            }
        }
    }

    /// sha256 over the files of the last look. Begins at once, because a large tool takes a while; `None` if there is none, or
    /// the files could not be read.
    pub(super) fn fingerprint(&self) -> impl Future<Output = Option<String>> + use<> {
        let begun = self.watched.as_ref().and_then(|tool| {
            let (look, hashes, kept) = (tool.look.clone()?, tool.hashes.clone(), tool.fingerprint.clone());
            Some(tokio::task::spawn_blocking(move || {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((of, fingerprint)) = &*kept
                    && Arc::ptr_eq(of, &look)
                {
                    return fingerprint.clone();
                }
                let paths: Vec<PathBuf> = look.paths().cloned().collect();
                let fingerprint = hashes.fingerprint(&paths);
                *kept = Some((look, fingerprint.clone()));
                fingerprint
            }))
        });
        async move { begun?.await.ok() }
    }

    /// Waits until whoever changes the files seems to have done with it.
    pub(super) async fn settle(&self) {
        let Some(tool) = &self.watched else { return };
        let end = Instant::now() + LONGEST;
        while Instant::now() < end {
            tokio::select! {
                _ = tool.subject.touched() => {}
                () = sleep(QUIET) => return,
            }
        }
    }
}

impl Watched {
    fn id(&self) -> IdentityId {
        self.identity.id
    }
}

/// The files that decide what a check runs, and the places where such files may appear, as stat shows them.
struct Look(Vec<(PathBuf, Signature)>);

impl Look {
    fn at(identity: &Identity, check: &Check) -> Self {
        let mut known = BTreeSet::new();
        let all = check.run.iter().filter_map(|argv| argv.first()).flat_map(|program| chain(identity, program));
        let paths = all.filter(|path| known.insert(path.clone()));
        Self(paths.map(|path| (path.clone(), Signature::of(&path))).collect())
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter().map(|(path, _)| path)
    }

    fn first_change(&self) -> Option<PathBuf> {
        self.0.iter().find(|(path, before)| Signature::of(path) != *before).map(|(path, _)| path.clone())
    }
}
