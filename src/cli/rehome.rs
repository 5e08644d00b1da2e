//! `worker-gate rehome`: what is held for a worker that is gone for good goes to another one.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Coded, Context, Exit, out, run::broker_exit};
use crate::{
    edge::{
        fault::Fault,
        rehome::{self, Entry, Outcome, Plan, RehomeError},
    },
    model::Account,
};

/// Between two lines that say how far it is.
const TELL: Duration = Duration::from_secs(3);

/// Who is gone, and who gets what was held for it.
#[derive(Debug, Args)]
pub struct RehomeArgs {
    /// The worker that is gone for good. Settings need not name it any more
    worker: String,
    /// The worker that gets its messages; one of the settings' workers
    #[arg(long, value_name = "WORKER")]
    to: String,
    /// The lane of the worker that is gone, if settings do not name it [default: like the other's, with its own name]
    #[arg(long, value_name = "LANE")]
    lane: Option<String>,
    /// One JSON object with the account
    #[arg(long)]
    json: bool,
}

pub(super) async fn rehome(context: &Context, args: RehomeArgs) -> anyhow::Result<Exit> {
    let settings = context.settings()?.settings;
    let plan = Plan::new(&settings, &args.worker, &args.to, args.lane.as_deref())
        .map_err(|error| Coded::new(Exit::Usage, anyhow!("failed to {error}")))?;
    let stop = CancellationToken::new();
    let progress = Progress::default();
    let moved = tokio::select! {
        moved = rehome::run(&plan, &settings, &stop, |moved, of| progress.tell(moved, of)) => moved,
        ended = hurried(&stop) => {
            ended.context("failed to wait for signals")?;
            let text = format!("stopped at once, {}; what was not confirmed is where it was", progress.said());
            return Err(Coded::new(Exit::Unfit, anyhow!(text)).into());
        }
    };
    let outcome = moved.map_err(|error| failed(&error, &progress))?;
    out::text(&if args.json { json(&plan, outcome)? } else { report(&plan, outcome) })?;
    Ok(if outcome.waiting == 0 { Exit::Done } else { Exit::Unfit })
}

/// Sets `stop` at the first signal to end, and ends at the second.
async fn hurried(stop: &CancellationToken) -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    for _ in 0..2 {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
    }
    Ok(())
}

/// How far it is; told on standard error now and then.
#[derive(Debug)]
struct Progress(Mutex<(u64, u64, Instant)>);

impl Default for Progress {
    fn default() -> Self {
        Self(Mutex::new((0, 0, Instant::now())))
    }
}

impl Progress {
    fn tell(&self, moved: u64, of: u64) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.2.elapsed() >= TELL;
        *last = (moved, of, if is_due { Instant::now() } else { last.2 });
        if is_due {
            out::error(&format!("{moved} of {of} moved"));
        }
    }

    fn said(&self) -> String {
        let (moved, of, _) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{moved} of {of} moved")
    }
}

fn failed(error: &RehomeError, progress: &Progress) -> Coded {
    let exit = match error {
        // The question was whether it is gone.
        RehomeError::Consumed { .. } | RehomeError::Fault(Fault::Owned { .. }) => Exit::Unfit,
        RehomeError::NoQueues { .. } => Exit::Usage,
        RehomeError::Fault(fault) => broker_exit(fault.retry(), fault.is_permission()),
    };
    let mut text = format!("failed to {}", crate::chain::chain(error));
    match error {
        RehomeError::Fault(Fault::Owned { .. }) => {
            text.push_str(
                "; a worker that a gate owns is not gone: stop that gate, or take the worker out of its settings",
            );
        }
        RehomeError::Fault(fault) => {
            if let Some(remedy) = fault.remedy() {
                text = format!("{text}; {remedy}");
            }
            text = format!("{text}; {}", progress.said());
        }
        RehomeError::Consumed { .. } | RehomeError::NoQueues { .. } => {}
    }
    Coded::new(exit, anyhow!(text))
}

/// The account, and what is left to do for people.
fn report(plan: &Plan, outcome: Outcome) -> String {
    let (account, came) = (outcome.account(), outcome.came());
    let Account { before, moved, left, taken } = account;
    let way = match plan.entry() {
        Entry::Queue(queue) => format!("the queue {queue}"),
        Entry::Exchange(exchange, Some(key)) => format!("the exchange {exchange} with the key {key}"),
        Entry::Exchange(exchange, None) => format!("the exchange {exchange}"),
    };
    let (gone, to) = (&plan.gone.name, &plan.to.name);
    let mut text = format!("{gone} -> {to}, by {way}: {before} waiting: {moved} moved, {left} left, {taken} taken\n");
    if came > 0 {
        let _ = writeln!(text, "{came} more have come meanwhile");
    }
    let _ = writeln!(text, "-> {}", plan.advice());
    text
}

fn json(plan: &Plan, outcome: Outcome) -> anyhow::Result<String> {
    let entry = match plan.entry() {
        Entry::Queue(queue) => json!({ "queue": queue }),
        Entry::Exchange(exchange, key) => json!({ "exchange": exchange, "key": key }),
    };
    let told = json!({
        "worker": plan.gone.name,
        "to": plan.to.name,
        "lane": plan.gone.lane,
        "entry": entry,
        "account": outcome.account(),
        "came": outcome.came(),
        "advice": plan.advice(),
    });
    Ok(format!("{}\n", serde_json::to_string(&told).context("failed to write JSON")?))
}
