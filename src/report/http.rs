//! What the gate knows, over HTTP, read only: `/workers`, `/readyz`, `/healthz`, `/metrics` (DESIGN.md section 8).
//!
//! Every answer is made from the newest [`Snapshot`] and the time of the request. A daemon that hangs publishes no
//! snapshot any more; the times in the last one then run out, and the answers turn to 503 by themselves.

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, sleep},
};

use super::metrics::Metrics;
use crate::model::{Admission, Edge, Mono, Record};

mod few;

use few::Few;

/// How long open requests may take once the gate is stopping. Every answer is in memory; this is for slow readers.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Everything that is shown, at one instant. Made by the daemon after each step.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Every worker of this gate.
    pub workers: Vec<WorkerView>,
    /// The broker last answered something, a heartbeat included; until when that counts.
    pub link: Progress,
    /// The check loop last started or finished a check; until when that counts.
    pub checks: Progress,
    /// What keeps facts from the audit log ([`super::outbox::Outbox::health`]).
    pub audit: Result<(), String>,
}

impl Snapshot {
    /// Which of the two that a gate cannot guard without has made no progress lately; nothing if all is well.
    pub fn stuck(&self, now: Mono) -> Vec<String> {
        self.link.stuck(now, "the broker link").into_iter().chain(self.checks.stuck(now, "the check loop")).collect()
    }

    /// The same, and what keeps facts from the audit log.
    pub fn problems(&self, now: Mono) -> Vec<String> {
        self.stuck(now).into_iter().chain(self.audit.as_ref().err().cloned()).collect()
    }
}

/// One worker.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// Its record, with the edge as the broker last confirmed it.
    pub record: Record,
    /// When its evidence becomes stale; `None` while there is none.
    pub fresh_until: Option<Mono>,
}

/// That something went on, and for how long that is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// When it last did; `None` if it never has.
    pub at: Option<Mono>,
    /// After so long without any it counts as stuck.
    pub limit: Duration,
}

impl Progress {
    /// Whether too much time has passed without any.
    pub fn is_stuck(self, now: Mono) -> bool {
        self.at.is_none_or(|at| now.since(at) > self.limit)
    }

    /// What is wrong with it now, if anything.
    fn stuck(self, now: Mono, what: &str) -> Option<String> {
        let Some(at) = self.at else { return Some(format!("{what} has made no progress yet")) };
        let (idle, limit) = (now.since(at).as_secs_f64(), self.limit.as_secs_f64());
        self.is_stuck(now).then(|| format!("{what} has made no progress for {idle:.1} s (limit {limit:.1} s)"))
    }
}

/// `gate.listen` cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "listen on {address:?} (gate.listen): expected a free address of this machine such as \"127.0.0.1:9464\", or \"\" \
     for none"
)]
pub struct BindError {
    /// As it stands in the settings.
    pub address: String,
    /// What the operating system said.
    pub source: io::Error,
}

/// An address that is in use for so long is somebody else's.
const IN_USE: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Takes the address in `gate.listen`, a name or an IP address with a port.
///
/// # Errors
/// When it is no address, not this machine's, or in use.
pub async fn bind(listen: &str) -> Result<TcpListener, BindError> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(listen).await {
            // A command that the gate before this one was about to start has its socket for a moment longer.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < IN_USE => {
                sleep(LOOK_AGAIN).await;
            }
            bound => return bound.map_err(|source| BindError { address: listen.to_owned(), source }),
        }
    }
}

/// Answers until `stop` resolves; requests that are under way then have a second.
///
/// `now` is the clock that the snapshot's times were taken from; `metrics` has what is counted beside them.
///
/// # Errors
/// None that a client can cause.
pub async fn serve(
    listener: TcpListener,
    snapshots: watch::Receiver<Snapshot>,
    now: fn() -> Mono,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/workers", get(workers))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_text))
        .fallback(|| async { no(StatusCode::NOT_FOUND, "there are /workers, /readyz, /healthz and /metrics") })
        .method_not_allowed_fallback(|| async { no(StatusCode::METHOD_NOT_ALLOWED, "only GET: this is read only") })
        .with_state(App { snapshots, now, metrics });
    let (stopping, mut stopped) = watch::channel(());
    let serving = axum::serve(Few::of(listener), router).with_graceful_shutdown(async move {
        stop.await;
        drop(stopping);
    });
    let late = async {
        // Nothing is ever sent: the only thing to wait for is the end of the sender.
        while stopped.changed().await.is_ok() {}
        sleep(STOP_GRACE).await;
    };
    tokio::select! {
        served = serving => served,
        () = late => Ok(()),
    }
}

#[derive(Clone)]
struct App {
    snapshots: watch::Receiver<Snapshot>,
    now: fn() -> Mono,
    metrics: Arc<Metrics>,
}

async fn workers(State(app): State<App>) -> Response {
    let snapshot = app.snapshots.borrow();
    Json(snapshot.workers.iter().map(|worker| &worker.record).collect::<Vec<_>>()).into_response()
}

#[derive(Deserialize)]
struct Which {
    worker: Option<String>,
}

async fn readyz(State(app): State<App>, Query(which): Query<Which>) -> Response {
    let (snapshot, now) = (app.snapshots.borrow(), (app.now)());
    let name = |worker: &WorkerView| worker.record.worker_name.to_string();
    let asked: Vec<_> = match &which.worker {
        Some(wanted) => snapshot.workers.iter().filter(|worker| name(worker) == *wanted).collect(),
        None => snapshot.workers.iter().collect(),
    };
    if let (Some(wanted), true) = (&which.worker, asked.is_empty()) {
        let known = snapshot.workers.iter().map(name).collect::<Vec<_>>().join(", ");
        return no(StatusCode::NOT_FOUND, format!("this gate has no worker {wanted:?}; it has {known}"));
    }
    let unready: Vec<_> = asked.iter().filter_map(|worker| unready(worker, &snapshot, now)).collect();
    if unready.is_empty() {
        return Json(json!({"ready": true})).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"ready": false, "workers": unready}))).into_response()
}

/// Why a worker is not ready, every reason at once; `None` if it is.
fn unready(worker: &WorkerView, snapshot: &Snapshot, now: Mono) -> Option<Value> {
    let record = &worker.record;
    let mut why = Vec::new();
    if record.admission != Some(Admission::Admitted) {
        why.push("it is not admitted".to_owned());
    }
    if record.edge != Some(Edge::Open) {
        why.push("the broker has not confirmed an open edge".to_owned());
    }
    match worker.fresh_until {
        None => why.push("there is no evidence yet".to_owned()),
        // At the very end it is still fresh: stale is what is older than `evidence.max_age`.
        Some(until) if now > until => {
            why.push(format!("its evidence has been stale for {:.1} s", now.since(until).as_secs_f64()));
        }
        Some(_) => {}
    }
    // The edge was confirmed over a link that may be gone: what the broker has done since then is not known.
    why.extend(snapshot.link.stuck(now, "the broker link"));
    if why.is_empty() {
        return None;
    }
    Some(json!({
        "worker_name": record.worker_name,
        "admission": record.admission,
        "edge": record.edge,
        "reason": record.reason,
        "why": why,
    }))
}

async fn healthz(State(app): State<App>) -> Response {
    let problems = app.snapshots.borrow().problems((app.now)());
    if problems.is_empty() {
        return Json(json!({"healthy": true})).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"healthy": false, "problems": problems}))).into_response()
}

async fn metrics_text(State(app): State<App>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let answer = app.metrics.answer(&app.snapshots.borrow(), (app.now)(), accept);
    ([(CONTENT_TYPE, answer.content_type)], answer.text).into_response()
}

fn no(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(json!({"error": error.into()}))).into_response()
}

#[cfg(test)]
mod tests;
