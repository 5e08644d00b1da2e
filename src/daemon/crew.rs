//! Who works for the gate: a task for each worker's edge, and one for each identity's checks. They change with the settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    broker::{Broker, Wires},
    parts::Parts,
};
use crate::{
    edge::Memory,
    identity::Identity,
    model::{EdgeReport, IdentityId, Observation, Wanted, WorkerName},
    probe::{Runner, Schedule, probes, schedule, toolchain::Hashes},
    settings::{Settings, Worker},
    watch::Watcher,
};

/// The tasks, and the ends of the channels to them.
pub(super) struct Crew {
    gate: String,
    broker: Arc<Broker>,
    reports: mpsc::Sender<(WorkerName, EdgeReport)>,
    observations: mpsc::Sender<Observation>,
    watcher: Watcher,
    hashes: Arc<Hashes>,
    edges: BTreeMap<WorkerName, Edge>,
    checks: BTreeMap<IdentityId, Checks>,
}

struct Edge {
    want: watch::Sender<Wanted>,
    stop: CancellationToken,
    /// Cancelled when the task has ended.
    gone: CancellationToken,
}

struct Checks {
    again: watch::Sender<u64>,
    repair: watch::Sender<u64>,
    task: AbortHandle,
}

impl Crew {
    pub(super) fn new(
        gate: &str,
        broker: Arc<Broker>,
        reports: mpsc::Sender<(WorkerName, EdgeReport)>,
        observations: mpsc::Sender<Observation>,
        watcher: Watcher,
    ) -> Self {
        let (edges, checks, hashes) = (BTreeMap::new(), BTreeMap::new(), Arc::default());
        Self { gate: gate.to_owned(), broker, reports, observations, watcher, hashes, edges, checks }
    }

    /// Adds an edge for each of these workers, with which the gate begins.
    pub(super) fn run_edges(&mut self, workers: &[Worker], parts: &mut Parts) {
        for worker in workers {
            self.run_edge(worker, None, Memory::default(), parts);
        }
    }

    /// Ends the edges of all other workers than these, and of those in `ending`; then adds an edge for each worker without
    /// one. An edge that ends shuts, and lets go of its worker, before the next one of the same worker begins.
    pub(super) fn replace_edges(&mut self, workers: &[Worker], ending: &BTreeSet<WorkerName>, parts: &mut Parts) {
        let mut gone = BTreeMap::new();
        self.edges.retain(|name, edge| {
            let stays = !ending.contains(name) && workers.iter().any(|worker| worker.name == *name);
            if !stays {
                edge.stop.cancel();
                gone.insert(name.clone(), edge.gone.clone());
            }
            stays
        });
        for worker in workers {
            if !self.edges.contains_key(&worker.name) {
                self.run_edge(worker, gone.remove(&worker.name), Memory::beside_others(), parts);
            }
        }
    }

    fn run_edge(&mut self, worker: &Worker, after: Option<CancellationToken>, memory: Memory, parts: &mut Parts) {
        let (want, wanted) = watch::channel(Wanted::shut());
        let (stop, gone) = (parts.stop_edges.child_token(), CancellationToken::new());
        let wires = Wires { wanted, reports: self.reports.clone(), memory, stop: stop.clone() };
        let (ended, edge) = (gone.clone().drop_guard(), self.broker.run_edge(&self.gate, worker, wires));
        parts.spawn_until(stop.clone(), format!("the edge of {}", worker.name), async move {
            let _ended = ended;
            if let Some(after) = after {
                after.cancelled().await;
            }
            edge.await
        });
        self.edges.insert(worker.name.clone(), Edge { want, stop, gone });
    }

    /// Ends when every edge that was told to stop has let go of its worker. Cancel-safe.
    pub(super) async fn gone(&self) {
        for edge in self.edges.values() {
            edge.gone.cancelled().await;
        }
    }

    /// Runs the checks of these identities, and no others any more. What runs is ended.
    pub(super) fn run_checks(
        &mut self,
        settings: &Settings,
        identities: &[Identity],
        runner: &Runner,
        parts: &mut Parts,
    ) {
        for (_, checks) in std::mem::take(&mut self.checks) {
            checks.task.abort();
        }
        let (profile, checks) = (probes(settings), Arc::new(settings.checks.clone()));
        for identity in identities.iter().cloned() {
            let id = identity.id;
            let ((again, asked), (repair, mended)) = (watch::channel(0), watch::channel(0));
            let schedule = Schedule {
                profile: profile(&identity),
                identity: Arc::new(identity),
                checks: checks.clone(),
                runner: runner.clone(),
                watcher: self.watcher.clone(),
                hashes: self.hashes.clone(),
                observations: self.observations.clone(),
                again: asked,
                repair: mended,
            };
            let task = parts.spawn_probe(schedule::run(schedule));
            self.checks.insert(id, Checks { again, repair, task });
        }
    }

    pub(super) fn want(&self, worker: &WorkerName, wanted: Wanted) {
        if let Some(edge) = self.edges.get(worker) {
            edge.want.send_replace(wanted);
        }
    }

    pub(super) fn recheck(&self, identity: IdentityId) {
        if let Some(checks) = self.checks.get(&identity) {
            checks.again.send_modify(|times| *times += 1);
        }
    }

    pub(super) fn repair(&self, identity: IdentityId) {
        if let Some(checks) = self.checks.get(&identity) {
            checks.repair.send_modify(|times| *times += 1);
        }
    }
}
