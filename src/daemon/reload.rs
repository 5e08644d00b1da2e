//! Settings that are read again while the gate runs: on SIGHUP, and when their file has changed.
//!
//! They are checked as a whole first; what is wrong with them changes nothing and is told. What `[gate]`, `[broker]` and
//! `[events]` say concerns every edge, so another one of these makes the gate anew. Everything else touches only the workers
//! that it is about.

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::spawn_blocking,
    time::sleep,
};

use super::{
    Daemon, Setup, about_gate,
    parts::Parts,
    setup::{first_snapshot, owners, policy},
};
use crate::{
    clock,
    identity::Identity,
    model::{Code, Fact, FactKind, IdentityId, Reason},
    settings::{Check, Settings, Worker},
    verdict::Changes,
    watch::Watcher,
};

/// Reads the settings again, on a thread where it may block. What is wrong with them is a text for people.
pub type Load = Arc<dyn Fn() -> Result<Setup, String> + Send + Sync>;

/// Settings that were read again.
pub(super) struct Reread {
    loaded: Result<Setup, String>,
    /// By SIGHUP, and not because of their file.
    by_signal: bool,
}

/// A file that nobody has written for so long is taken to be complete.
const QUIET: Duration = Duration::from_millis(200);

/// Reads the settings again whenever there is a reason to, until nobody listens.
///
/// # Errors
/// The signal cannot be had.
pub(super) fn keep(
    file: Option<PathBuf>,
    watcher: Watcher,
    load: Load,
    reloads: mpsc::Sender<Reread>,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut hangup = signal(SignalKind::hangup())?;
    // A relative path is one from here; the gate never changes its directory.
    let file = file.map(|file| std::path::absolute(&file).unwrap_or(file));
    Ok(async move {
        let subject = watcher.subject(file.into_iter().collect());
        // The first notice says that the file is watched. What changed before then is loaded, too.
        loop {
            let by_signal = tokio::select! {
                _ = subject.touched() => {
                    // An editor takes several steps, and one that only truncates is not what anybody means.
                    while tokio::time::timeout(QUIET, subject.touched()).await.is_ok() {}
                    false
                }
                _ = hangup.recv() => true,
                () = reloads.closed() => return,
            };
            let load = load.clone();
            let Ok(loaded) = spawn_blocking(move || load()).await else { return };
            if reloads.send(Reread { loaded, by_signal }).await.is_err() {
                return;
            }
            // A file that is written all the time is not read all the time.
            sleep(QUIET).await;
        }
    })
}

impl Daemon {
    /// Goes on with other settings. What is handed back concerns every edge, so the gate has to be made anew from it.
    pub(super) async fn reload(&mut self, reread: Reread, parts: &mut Parts) -> Option<Box<Setup>> {
        if reread.by_signal {
            // Whoever sent it waits to be told, whatever there is to be taken on.
            self.notifier.reloading();
        }
        let again = self.take_on(reread.loaded, parts).await;
        if again.is_none() {
            self.notifier.reloaded();
        }
        again
    }

    async fn take_on(&mut self, loaded: Result<Setup, String>, parts: &mut Parts) -> Option<Box<Setup>> {
        let setup = match loaded {
            Ok(setup) => setup,
            Err(problem) => return self.refuse(&problem),
        };
        let identities = renumbered(setup.identities, &self.identities);
        // The file may be the same and have another key in it.
        self.keys.send_if_modified(|key| {
            let is_other = *key != setup.key;
            key.clone_from(&setup.key);
            is_other
        });
        let is_same = setup.settings == self.settings
            && identities.len() == self.identities.len()
            && identities.iter().zip(&self.identities).all(|(new, old)| new.id == old.id && new.workers == old.workers);
        if is_same {
            tracing::debug!("the settings were read again, and say what they said");
            return None;
        }
        self.notifier.reloading();
        let about = |reason: &str| Reason::new(Code::SettingsChanged, reason, "");
        self.tell(FactKind::GateSettingsLoaded, about("settings were read again and hold from now on"));
        if concerns_every_edge(&self.settings, &setup.settings) {
            tracing::info!("the settings have changed in [gate], [broker] or [events]: starting anew");
            return Some(Box::new(Setup { identities, ..setup }));
        }
        tracing::info!(workers = setup.settings.workers.len(), "the settings have changed and hold from now on");
        let changes = changes(&self.settings, &setup.settings);
        let members = owners(&identities, &setup.settings);
        let step = self.gate.reconfigure(clock::now(), policy(&setup.settings), members, &changes);
        self.act(step).await;
        self.crew.replace_edges(&setup.settings.workers, &changes.workers, parts);
        self.crew.run_checks(&setup.settings, &identities, &setup.runner, parts);
        let checks = first_snapshot(&setup.settings).checks;
        self.snapshots.send_modify(|snapshot| snapshot.checks.limit = checks.limit);
        self.counted.send_replace(setup.settings.workers.clone());
        self.fleet_safety.send_replace(setup.settings.fleet.max_quarantined.is_some());
        self.metrics.set_max_age(setup.settings.evidence.max_age);
        (self.settings, self.identities) = (setup.settings, identities);
        None
    }

    fn refuse(&self, problem: &str) -> Option<Box<Setup>> {
        tracing::error!("the settings were read again and are refused; those from before hold:\n{problem}");
        let remedy = "mend them, and see with: worker-gate config check";
        self.tell(FactKind::GateSettingsRefused, Reason::new(Code::SettingsChanged, problem, remedy));
        None
    }

    pub(super) fn tell(&self, kind: FactKind, reason: Reason) {
        self.outbox.offer(Fact { reason: Some(reason), ..about_gate(kind, clock::now()) });
    }
}

/// Whether a change is of the kind that no edge outlives.
fn concerns_every_edge(old: &Settings, new: &Settings) -> bool {
    (&old.gate, &old.broker, &old.events, &old.image.manifest)
        != (&new.gate, &new.broker, &new.events, &new.image.manifest)
}

/// The new identities, each with the number of the old one that sees the machine as it does, or else a number that nobody has
/// had: what was found for another identity must never count for it.
fn renumbered(new: Vec<Identity>, old: &[Identity]) -> Vec<Identity> {
    let mut free = old.iter().map(|identity| identity.id.0 + 1).max().unwrap_or(0);
    new.into_iter()
        .map(|identity| {
            let id = old.iter().find(|old| old.sees_what(&identity)).map_or_else(
                || {
                    free += 1;
                    IdentityId(free - 1)
                },
                |old| old.id,
            );
            Identity { id, ..identity }
        })
        .collect()
}

/// What has to be proven anew.
fn changes(old: &Settings, new: &Settings) -> Changes {
    let runs = |check: &Check| (check.run.clone(), check.version.clone());
    let is_other =
        |(name, check): &(&String, &Check)| old.checks.get(*name).is_some_and(|old| runs(old) != runs(check));
    // As whom checks run is the identity's business, and what happens at a quarantine is looked up then.
    let edge = |worker: &Worker| {
        let what = (worker.on_quarantine, worker.task_events);
        (worker.edge.clone(), worker.lane.clone(), worker.queue_arguments.clone(), what)
    };
    let others: BTreeSet<_> = new
        .workers
        .iter()
        .filter(|worker| old.workers.iter().any(|old| old.name == worker.name && edge(old) != edge(worker)))
        .map(|worker| worker.name.clone())
        .collect();
    let wanted =
        |settings: &Settings| settings.profile.as_ref().map(|profile| (profile.path.clone(), profile.enforce.clone()));
    Changes {
        workers: others,
        checks: new.checks.iter().filter(is_other).map(|(name, _)| name.clone()).collect(),
        profile: wanted(old) != wanted(new),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        model::WorkerName,
        settings::{Source, load},
    };

    const TEXT: &str = r#"
[checks.codex_cli]
run = [["codex", "--version"]]
[[workers]]
name = "a"
lane = "a"
intake = { exchange = "codex", type = "direct", keys = ["a"] }
[[workers]]
name = "b"
lane = "b"
intake = { exchange = "codex", type = "direct", keys = ["b"] }
"#;

    fn settings(text: &str) -> Settings {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        std::fs::write(&file, text).unwrap();
        load(&Source { file: Some(file), hostname: "h".into(), ..Source::default() }).unwrap().settings
    }

    fn of(text: &str) -> (Changes, bool) {
        let (old, new) = (settings(TEXT), settings(text));
        (changes(&old, &new), concerns_every_edge(&old, &new))
    }

    #[test]
    fn a_change_touches_those_whom_it_is_about() {
        assert_eq!(of(TEXT), (Changes::default(), false));
        assert_eq!(of(&TEXT.replace("run =", "every = \"7s\"\nrun =")), (Changes::default(), false));
        let name = WorkerName::new;
        let (lane, _) = of(&TEXT.replace("lane = \"a\"", "lane = \"c\""));
        assert_eq!(lane, Changes { workers: [name("a")].into(), ..Changes::default() });
        let (check, _) = of(&TEXT.replace("--version", "--help"));
        assert_eq!(check, Changes { checks: ["codex_cli".to_owned()].into(), ..Changes::default() });
        let (profile, _) = of(&format!("profile.enforce.model = \"x\"\n{TEXT}"));
        assert_eq!(profile, Changes { profile: true, ..Changes::default() });
        for all in ["gate.name = \"x\"", "broker.heartbeat = \"7s\"", "events.exchange = \"x\"", "gate.listen = \"\""] {
            assert!(of(&format!("{all}\n{TEXT}")).1, "{all}");
        }
    }

    #[test]
    fn an_identity_keeps_its_number_and_a_new_one_gets_one_that_nobody_had() {
        let identity = |id, home: &str| Identity {
            id: IdentityId(id),
            user: "me".into(),
            uid: nix::unistd::Uid::effective(),
            gid: nix::unistd::Gid::effective(),
            groups: Vec::new(),
            home: home.into(),
            path: String::new(),
            env: BTreeMap::new(),
            workers: Vec::new(),
        };
        let old = [identity(3, "/a"), identity(4, "/b")];
        let new = renumbered(vec![identity(0, "/c"), identity(1, "/b"), identity(2, "/d")], &old);
        assert_eq!(new.iter().map(|identity| identity.id.0).collect::<Vec<_>>(), [5, 4, 6]);
    }
}
