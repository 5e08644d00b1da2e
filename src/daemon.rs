//! The daemon: one loop, three phases.
//!
//! ```text
//!  probes ──Observation──▶ 1 select an input      watch: wanted ──▶ edge tasks (one a worker)
//!  edges ───EdgeReport───▶ 2 verdict::Gate::step ─┤
//!  timer, signals ───────▶ 3 act on the step      queue: facts ───▶ report
//! ```
//!
//! The arms of the `select!` only make inputs; what they mean is decided in `verdict`. All tasks live in one `JoinSet`, and
//! one that ends early stops the gate in good order, because a gate that has lost a part can vouch for nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
    time::{interval, timeout_at},
};

use crate::{
    clock,
    control::{
        desk::{Count, Desk, Errand},
        guard::Guard,
        key::Key,
    },
    edge::fault::Fault,
    identity::Identity,
    model::{
        Command, EdgeReport, Fact, FactKind, ImageReport, Mono, Now, Observation, Record, VersionChange, WorkerName,
    },
    probe,
    report::{
        audit::AuditError,
        event::type_of,
        http::{self, BindError, Snapshot, WorkerView},
        metrics::Metrics,
        outbox::{Outbox, Scribe},
    },
    settings::{Settings, Worker},
    verdict::{FleetNews, Gate, Input, Step},
    watch::Watcher,
};

mod broker;
mod channel;
mod counting;
mod crew;
mod errands;
mod fleet;
mod holds;
mod notify;
mod parts;
mod reload;
mod setup;

use broker::Broker;
use crew::Crew;
use holds::Save;
use notify::Notifier;
use parts::{Parts, Signals};
pub use reload::Load;
use reload::Reread;
use setup::first_snapshot;
pub use setup::{Setup, owners, policy};

/// The loop looks round at least this often: evidence that went stale while the machine slept is seen soon after, and whoever
/// watches over the gate sees that it lives. To be woken is most of what an idle gate costs, so no more often than that.
const PULSE: Duration = Duration::from_millis(2_500);
/// Between two `gate-heartbeat` events: two pulses, which may be a little early or late.
const HEARTBEAT: Duration = Duration::from_secs(5);
const ABOUT: Duration = Duration::from_millis(250);
/// For everything that a stop has to finish. Docker kills ten seconds after it asks.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// Of that, for the edges.
const SHUT_LIMIT: Duration = Duration::from_secs(5);
/// How long a link may show no sign of life before /healthz says so; lapin ends a silent one after two heartbeats.
const LINK_LIMIT: Duration = Duration::from_secs(15);
/// Inputs that wait for the loop, which takes microseconds for each: ten for each of a thousand workers.
const INPUTS: usize = 10_000;
/// Requests that wait for the loop. The desk hands them on one after the other, and waits for the answer to each.
const ERRANDS: usize = 16;
/// News of other gates that wait for the loop; whoever brings them waits, too.
const NEWS: usize = 64;

/// Why the gate stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// `state_dir` belongs to another gate.
    #[error("take gate.state_dir")]
    State(#[source] AuditError),
    /// `listen` cannot be had.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The broker refuses, or cannot be reached at the start.
    #[error(transparent)]
    Broker(#[from] Fault),
    /// The machine has no thread or no signal handler left.
    #[error("start")]
    Start(#[source] std::io::Error),
    /// A part of the gate ended, which is a defect.
    #[error("go on: {0} ended early")]
    Defect(String),
}

/// How a gate ended that nothing has gone wrong with.
#[derive(Debug)]
enum End {
    /// It was told to.
    Stopped,
    /// Settings that concern every edge have changed: it is to be made anew from these.
    Again(Box<Setup>),
}

/// Runs the gate until it is told to stop (SIGTERM or SIGINT; a second one hastens). `load` reads the settings again, on
/// SIGHUP and when their file has changed; the text is what is wrong with them.
///
/// # Errors
/// What makes guarding impossible; every edge is shut by then.
pub async fn run(mut setup: Setup, load: Load) -> Result<(), DaemonError> {
    // For as long as the process lives: who asks it to stop while it is made anew is heard as soon as it is.
    let mut signals = Signals::new().map_err(DaemonError::Start)?;
    loop {
        let (gate, workers) = (&setup.settings.gate.name, setup.settings.workers.len());
        tracing::info!(gate, workers, "worker-gate {}", env!("CARGO_PKG_VERSION"));
        match run_once(setup, load.clone(), &mut signals).await? {
            End::Stopped => return Ok(()),
            End::Again(with) => setup = *with,
        }
    }
}

async fn run_once(setup: Setup, load: Load, signals: &mut Signals) -> Result<End, DaemonError> {
    let Setup { settings, identities, runner, file, key } = setup;
    let listener = match &settings.gate.listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    let scribe = Scribe::open(&settings.gate.state_dir, &settings.gate.name).map_err(DaemonError::State)?;
    let (channels, channel) = watch::channel(None);
    let outbox = Outbox::spawn(scribe, settings.events.exchange.clone(), settings.workers.len(), channel)
        .map_err(DaemonError::Start)?;

    let mut parts = Parts::new();
    let broker = Arc::new(Broker::start(&settings, &mut parts, channels));
    let (watcher, watching) = Watcher::start();
    parts.spawn_probe(watching.run());
    let (images, image) = mpsc::channel(1);
    parts.spawn_probe(probe::image::watch(settings.image.manifest.clone(), watcher.clone(), images));
    let (reloads, reloaded) = mpsc::channel(1);
    parts.spawn_probe(reload::keep(file, watcher.clone(), load, reloads).map_err(DaemonError::Start)?);

    let (observations, observed) = mpsc::channel(INPUTS);
    let (reports, reported) = mpsc::channel(INPUTS);
    let mut crew = Crew::new(&settings.gate.name, Arc::clone(&broker), reports, observations, watcher);
    crew.run_edges(&settings.workers, &mut parts);
    crew.run_checks(&settings, &identities, &runner, &mut parts);
    let mut gate = Gate::new(policy(&settings), owners(&identities, &settings));
    let (names, now) = (settings.workers.iter().map(|worker| worker.name.clone()), clock::now());
    gate.restore(now, holds::read(&settings.gate.state_dir, names, now));
    let (saves, to_save) = mpsc::channel(ERRANDS);
    parts.spawn_probe(holds::keep(settings.gate.state_dir.clone(), to_save));
    let (fleets, news) = mpsc::channel(NEWS);
    let (fleet_safety, is_on) = watch::channel(settings.fleet.max_quarantined.is_some());
    parts.spawn_probe(fleet::watch(settings.clone(), is_on, fleets));
    let (snapshots, snapshot) = watch::channel(first_snapshot(&settings));
    let metrics = Arc::new(Metrics::new(&settings.gate.name, settings.evidence.max_age));
    let counted = counting::start(&broker, &metrics, &settings.workers, &mut parts);
    let (errands, errand) = mpsc::channel(ERRANDS);
    let (keys, key) = watch::channel(key);
    let count: Count = {
        let (broker, workers) = (Arc::clone(&broker), counted.subscribe());
        Arc::new(move || {
            let (broker, workers) = (Arc::clone(&broker), workers.borrow().clone());
            Box::pin(async move { broker.waiting(&workers).await })
        })
    };
    let desk = Desk::new(&settings.gate.name, Guard::new(key, now), snapshot.clone(), errands, count);
    broker.run_desk(&settings, desk, &mut parts);
    if let Some(listener) = listener {
        let (stop, metrics) = (parts.stop_links.clone(), Arc::clone(&metrics));
        let now = || clock::now().mono;
        parts.spawn("the HTTP listener".to_owned(), async move {
            let served = http::serve(listener, snapshot, now, metrics, async move { stop.cancelled().await }).await;
            if let Err(error) = served {
                tracing::error!("failed to answer over HTTP: {error}");
            }
            Ok(())
        });
    }
    let heartbeat = Instant::now();
    let daemon = Daemon {
        gate,
        settings,
        identities,
        outbox,
        crew,
        broker,
        snapshots,
        counted,
        saves,
        keys,
        fleet_safety,
        metrics,
        notifier: Notifier::start().map_err(DaemonError::Start)?,
        checked_at: None,
        heartbeat,
        has_news: true,
    };
    daemon.run(parts, Inbox { observed, reported, image, reloaded, errand, news }, signals).await
}

/// What the loop hears of.
struct Inbox {
    observed: mpsc::Receiver<Observation>,
    reported: mpsc::Receiver<(WorkerName, EdgeReport)>,
    image: mpsc::Receiver<ImageReport>,
    reloaded: mpsc::Receiver<Reread>,
    errand: mpsc::Receiver<Errand>,
    news: mpsc::Receiver<FleetNews>,
}

/// The loop and what it acts on.
struct Daemon {
    gate: Gate,
    settings: Settings,
    identities: Vec<Identity>,
    outbox: Outbox,
    crew: Crew,
    broker: Arc<Broker>,
    snapshots: watch::Sender<Snapshot>,
    /// For whom it is counted what waits.
    counted: watch::Sender<Vec<Worker>>,
    /// Operators' holds, to be written down.
    saves: mpsc::Sender<Save>,
    /// What requests are signed with.
    keys: watch::Sender<Option<Key>>,
    /// Whether other gates are listened to.
    fleet_safety: watch::Sender<bool>,
    metrics: Arc<Metrics>,
    notifier: Notifier,
    checked_at: Option<Mono>,
    heartbeat: Instant,
    /// Whether HTTP shows less than the gate knows.
    has_news: bool,
}

/// Why the loop is about to end.
type Ending = (Result<End, DaemonError>, tokio::time::Instant);

impl Daemon {
    async fn run(mut self, mut parts: Parts, mut inbox: Inbox, signals: &mut Signals) -> Result<End, DaemonError> {
        self.outbox.offer(self.about_itself(FactKind::GateOnline, clock::now()));
        let mut pulse = interval(PULSE);
        let mut wake_at: Option<Mono> = None;
        let mut end: Option<Ending> = None;
        let stop_by = || tokio::time::Instant::now() + STOP_LIMIT;
        loop {
            // The pulse is soon enough for what is due later.
            let nap = wake_at.map(|at| at.since(clock::now().mono)).filter(|nap| *nap < PULSE);
            // Cancel-safe: channels, signals and the interval keep what is not taken; the nap is made anew.
            let input = tokio::select! {
                biased;
                () = signals.stop() => match &mut end {
                    None => { end = Some((Ok(End::Stopped), stop_by())); Input::Stop }
                    // It ends already, and is not to be made anew.
                    Some((outcome @ Ok(End::Again(_)), _)) => { *outcome = Ok(End::Stopped); Input::Tick }
                    Some(_) => break,
                },
                Some((worker, report)) = inbox.reported.recv() => Input::Edge(worker, report),
                Some(observation) = inbox.observed.recv() => {
                    self.checked_at = Some(observation.finished);
                    self.metrics.observed(&observation);
                    Input::Observed(observation)
                }
                Some(report) = inbox.image.recv() => Input::Image(report),
                Some(news) = inbox.news.recv() => Input::Fleet(news),
                Some(errand) = inbox.errand.recv() => {
                    self.run_errand(errand).await;
                    Input::Tick
                }
                Some(reread) = inbox.reloaded.recv(), if end.is_none() => match self.reload(reread, &mut parts).await {
                    None => Input::Tick,
                    Some(setup) => { end = Some((Ok(End::Again(setup)), stop_by())); Input::Stop }
                },
                why = parts.ended(), if end.is_none() => {
                    end = Some((Err(why), stop_by()));
                    Input::Stop
                }
                _ = pulse.tick() => Input::Tick,
                () = tokio::time::sleep(nap.unwrap_or(PULSE)), if nap.is_some() => Input::Tick,
            };
            let ticked = matches!(input, Input::Tick);
            if end.as_ref().is_some_and(|(outcome, _)| !matches!(outcome, Ok(End::Again(_)))) {
                self.notifier.stopping();
            }
            let now = clock::now();
            let step = self.gate.step(now, input);
            wake_at = step.wake_at;
            self.has_news |= !ticked || !step.facts.is_empty() || !step.wanted.is_empty();
            self.act(step).await;
            if ticked {
                self.beat(now);
            }
            self.show(now, ticked);
            if ticked || !self.notifier.is_up() {
                self.notifier.pulse(&self.snapshots.borrow(), now.mono);
            }
            let shut_by = |until: tokio::time::Instant| tokio::time::Instant::now() >= until - STOP_LIMIT + SHUT_LIMIT;
            if end.as_ref().is_some_and(|(_, until)| self.gate.is_at_rest() || shut_by(*until)) {
                break;
            }
        }
        let (outcome, until) = end.unwrap_or_else(|| (Ok(End::Stopped), tokio::time::Instant::now()));
        self.stop(parts, until).await;
        outcome
    }

    /// Edges first, reasons second.
    async fn act(&self, step: Step) {
        if !step.wanted.is_empty() {
            for (worker, wanted) in step.wanted {
                self.crew.want(&worker, wanted);
            }
            // All tasks share one thread: the edges' turn comes before anything is told.
            yield_now().await;
        }
        for identity in step.recheck {
            self.crew.recheck(identity);
        }
        for identity in step.repair {
            self.crew.repair(identity);
        }
        for fact in step.facts {
            log(&fact);
            self.metrics.told(&fact);
            self.outbox.offer(fact);
        }
    }

    fn beat(&mut self, now: Now) {
        if self.heartbeat.elapsed() + ABOUT >= HEARTBEAT {
            self.heartbeat = Instant::now();
            self.outbox.offer(Fact { audited: false, ..self.about_itself(FactKind::GateHeartbeat, now) });
        }
    }

    /// By which the gate says that it lives, and how its workers are.
    fn about_itself(&self, kind: FactKind, now: Now) -> Fact {
        Fact { digest: Some(self.gate.digest()), ..about_gate(kind, now) }
    }

    /// Makes what HTTP shows. While inputs come thick and fast nobody could read every one of them, so then it is made with
    /// the next pulse.
    fn show(&mut self, now: Now, ticked: bool) {
        if !ticked && self.settings.workers.len() > 100 {
            return;
        }
        let up = self.broker.is_up();
        self.metrics.see(up, self.broker.is_blocked(), self.outbox.counts());
        let view = |record: Record| WorkerView { fresh_until: self.gate.fresh_until(&record.worker_name), record };
        let workers = self.has_news.then(|| self.gate.records().into_iter().map(view).collect());
        self.has_news = false;
        self.snapshots.send_modify(|snapshot| {
            if let Some(workers) = workers {
                snapshot.workers = workers;
            }
            snapshot.checks.at = self.checked_at;
            snapshot.audit = self.outbox.health();
            if up {
                snapshot.link.at = Some(now.mono);
            }
        });
    }

    /// Everything is shut, or out of time. What is left: the last facts, and goodbye.
    async fn stop(self, mut parts: Parts, until: tokio::time::Instant) {
        let until = until.max(tokio::time::Instant::now() + Duration::from_secs(1));
        // Dropping a probe kills the process group of its command.
        parts.probes.shutdown().await;
        self.outbox.offer(self.about_itself(FactKind::GateOffline, clock::now()));
        parts.stop_edges.cancel();
        let goodbye_at = until - Duration::from_millis(500);
        let left = self.outbox.flush(goodbye_at).await;
        if left.unwritten + left.unpublished > 0 {
            tracing::warn!(left.unwritten, left.unpublished, "stopped before every fact was out");
        }
        // A link that ends first takes the way from under them: what was moved and not yet acked would be there twice.
        let _ = timeout_at(goodbye_at, self.crew.gone()).await;
        parts.stop_links.cancel();
        while let Ok(Some(_)) = timeout_at(until, parts.tasks.join_next()).await {}
        if !parts.tasks.is_empty() {
            tracing::warn!(parts = parts.tasks.len(), "stopped before every part had ended");
        }
    }
}

fn about_gate(kind: FactKind, now: Now) -> Fact {
    Fact { kind, at: now.wall, record: None, reason: None, digest: None, audited: true }
}

fn log(fact: &Fact) {
    let Some(record) = &fact.record else { return };
    let (worker, kind, reason) = (&record.worker_name, type_of(fact.kind), record.reason.as_ref());
    let (detail, remedy) = reason.map_or(("", ""), |reason| (reason.detail.as_str(), reason.remedy.as_str()));
    match fact.kind {
        FactKind::WorkerQuarantined | FactKind::WorkerBypass | FactKind::WorkerRecycled | FactKind::FleetSuspect => {
            tracing::warn!(%worker, latency_ms = record.latency_ms, remedy, "{kind}: {detail}");
        }
        FactKind::WorkerAdmitted | FactKind::WorkerHeld => tracing::info!(%worker, "{kind}: {detail}"),
        FactKind::WorkerCommand => {
            if let Some(Command { ask, by, reason, outcome, .. }) = &record.command {
                tracing::info!(%worker, %by, ?outcome, reason, "{kind}: {}", ask.as_str());
            }
        }
        FactKind::WorkerVersionChanged => {
            if let Some(VersionChange { check, old, new }) = &record.version_change {
                let (old, new) = (old.version.as_deref().unwrap_or("-"), new.version.as_deref().unwrap_or("-"));
                tracing::info!(%worker, check, old, new, "{kind}");
            }
        }
        FactKind::WorkerConfigManaged => {
            let changed = record.changed_settings.as_deref().unwrap_or_default().join(", ");
            tracing::info!(%worker, changed, "{kind}");
        }
        FactKind::WorkerConfigDrifted => tracing::info!(%worker, "{kind}"),
        FactKind::WorkerHealthCheck
        | FactKind::GateOnline
        | FactKind::GateHeartbeat
        | FactKind::GateOffline
        | FactKind::GateSettingsLoaded
        | FactKind::GateSettingsRefused
        | FactKind::GateCommandRefused => tracing::debug!(%worker, "{kind}"),
    }
}
