//! `worker-gate hold`, `release` and `recheck`: what operators want of workers, wherever their gates are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::{self, BufRead as _, IsTerminal},
    time::Duration,
};

use anyhow::anyhow;
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{
    Coded, Context, Exit,
    ask::{self, connect},
    fleet::{self, Fleet, name},
    line::word,
    out,
};
use crate::{
    control::{Ask, Done, MOST_WORKERS, Wish, asker::Asker},
    glob,
    model::{Admission, order::Outcome},
    settings,
};

/// A request that no owner has answered by then has failed.
const LIMIT: Duration = Duration::from_secs(2);
/// So many names are written out.
const MOST_NAMES: usize = 10;

/// What `--help` says beside the flags.
pub(super) const HELP: &str = "\
Answered by the gate that owns the worker, and written to its audit log with your name. Exit codes: 0 done; 1 released, and \
still not admitted for another cause; 64 the names or their number are wrong, nothing was done; 69 no gate answered for a \
worker within 2 s; 77 refused.";

/// Of whom it is wanted, and why.
#[derive(Debug, Args)]
pub struct OrderArgs {
    /// Workers by their Celery node names; `*` and `?` stand for any letters
    #[arg(value_name = "WORKER", required_unless_present = "all")]
    workers: Vec<String>,
    /// Every worker of every gate on this broker
    #[arg(long, conflicts_with = "workers")]
    all: bool,
    /// How many workers you mean. Wanted where names are not written out, unless you are asked at a terminal
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Why; it stands in the audit log, and of a hold in status
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// One JSON array with what became of it
    #[arg(long)]
    json: bool,
}

/// `hold …`
#[derive(Debug, Args)]
pub struct HoldArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// The hold ends by itself after this time, such as 30m
    #[arg(long = "for", value_name = "DURATION", value_parser = settings::duration::parse)]
    lasts: Option<Duration>,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Hold { until: Option<Timestamp> },
    Release,
    Recheck,
}

impl What {
    fn verb(self) -> &'static str {
        match self {
            Self::Hold { .. } => "hold",
            Self::Release => "release",
            Self::Recheck => "recheck",
        }
    }

    fn ask(self, workers: Vec<String>, reason: &str) -> Ask {
        let wish = |until| Wish { workers, reason: reason.to_owned(), until };
        match self {
            Self::Hold { until } => Ask::Hold(wish(until)),
            Self::Release => Ask::Release(wish(None)),
            Self::Recheck => Ask::Recheck(wish(None)),
        }
    }
}

pub(super) async fn hold(context: &Context, args: &HoldArgs) -> anyhow::Result<Exit> {
    let until = args.lasts.map(|lasts| {
        let lasts = SignedDuration::try_from(lasts).unwrap_or(SignedDuration::MAX);
        Timestamp::now().checked_add(lasts).unwrap_or(Timestamp::MAX)
    });
    order(context, What::Hold { until }, &args.order).await
}

pub(super) async fn order(context: &Context, what: What, args: &OrderArgs) -> anyhow::Result<Exit> {
    let mut asker = connect(context, &context.reach()?).await?;
    let workers = meant(&mut asker, what, args).await?;
    let mut fleet = Fleet::default();
    // One after the other: each is within the limit.
    let names: Vec<_> = workers.iter().cloned().collect();
    for some in names.chunks(MOST_WORKERS) {
        let ask = what.ask(some.to_vec(), &args.reason);
        let told = fleet::order(&mut asker, ask, &some.iter().cloned().collect(), LIMIT).await;
        let mut told = told.map_err(|fault| ask::failed(&fault))?;
        told.done.append(&mut fleet.done);
        fleet = told;
    }
    asker.close().await;
    answer(what, &workers, &fleet, args.json)
}

/// Whose names these are. Patterns are looked up, and whoever gives them says, or is asked, how many are meant.
async fn meant(asker: &mut Asker, what: What, args: &OrderArgs) -> anyhow::Result<BTreeSet<String>> {
    let is_pattern = |name: &String| name.contains(['*', '?']);
    if !args.all && !args.workers.iter().any(is_pattern) {
        return Ok(args.workers.iter().cloned().collect());
    }
    let fleet = fleet::ask(asker, false, fleet::LIMIT).await.map_err(|fault| ask::failed(&fault))?;
    if let Some((gate, why)) = fleet.refused.iter().next() {
        return Err(Coded::new(Exit::NotPermitted, anyhow!("gate {gate} refuses: {why}")).into());
    }
    let is_meant = |worker: &&str| args.all || args.workers.iter().any(|pattern| glob::matches(pattern, worker));
    let mut meant: BTreeSet<String> = fleet.workers.iter().map(name).filter(is_meant).map(str::to_owned).collect();
    meant.extend(args.workers.iter().filter(|name| !is_pattern(name)).cloned());
    let usage = |text: String| anyhow::Error::from(Coded::new(Exit::Usage, anyhow!(text)));
    if meant.is_empty() {
        return Err(usage(format!("no worker's name fits; {}", known(&fleet))));
    }
    let verb = what.verb();
    let listed = listed(meant.iter().map(String::as_str));
    match args.count {
        Some(count) if count == meant.len() => Ok(meant),
        Some(count) => Err(usage(format!("{} workers fit, and not {count}: {listed}; nothing was done", meant.len()))),
        None if meant.len() == 1 => Ok(meant),
        None if io::stdin().is_terminal() => {
            out::error(&format!("This will {verb} {} workers: {listed}.\nType their number to go on:", meant.len()));
            let mut typed = String::new();
            io::stdin().lock().read_line(&mut typed)?;
            if typed.trim() == meant.len().to_string() { Ok(meant) } else { Err(usage("nothing was done".to_owned())) }
        }
        None => Err(usage(format!(
            "{} workers fit: {listed}; to {verb} them give --count {}; nothing was done",
            meant.len(),
            meant.len()
        ))),
    }
}

/// Shows what became of it. 0 if it is as it was wanted; 1 if a worker that was released is still not admitted; 69 if nobody
/// answered for one; 77 if it was refused.
fn answer(what: What, workers: &BTreeSet<String>, fleet: &Fleet, json: bool) -> anyhow::Result<Exit> {
    let done: BTreeMap<&str, &(String, Done)> = fleet.done.iter().map(|done| (done.1.worker.as_str(), done)).collect();
    if json {
        let each = done.values().map(|(gate, done)| {
            json!({
                "worker_name": done.worker, "gate": gate, "outcome": done.outcome, "admission": done.admission,
                "reason": done.reason, "forgetful": done.forgetful,
            })
        });
        out::text(&format!("{}\n", each.collect::<serde_json::Value>()))?;
    } else {
        let text: String = done.values().map(|(gate, done)| line(gate, done)).collect();
        out::text(&text)?;
    }
    for (gate, why) in &fleet.refused {
        out::error(&format!("worker-gate: gate {} refuses: {}", shown(gate), shown(why)));
    }
    let missing: Vec<_> = workers.iter().map(String::as_str).filter(|worker| !done.contains_key(worker)).collect();
    if !missing.is_empty() && fleet.refused.is_empty() {
        let text = format!(
            "no gate answered for {} within {} s; {}",
            listed(missing.iter().copied()),
            LIMIT.as_secs(),
            known(fleet)
        );
        return Err(Coded::new(Exit::Unreachable, anyhow!(text)).into());
    }
    if !missing.is_empty() {
        return Ok(Exit::NotPermitted);
    }
    let is_unfit = |(_, done): &(String, Done)| done.admission != Admission::Admitted;
    let unfit = what == What::Release && done.values().any(|done| is_unfit(done));
    Ok(if unfit { Exit::Unfit } else { Exit::Done })
}

fn line(gate: &str, done: &Done) -> String {
    let worker = shown(done.worker.as_str());
    let what = match done.outcome {
        Outcome::Held => "held",
        Outcome::Released => "released",
        Outcome::NotHeld => "was not held by an operator",
        Outcome::Rechecking => "its checks run now",
        Outcome::NotOwner => "is another gate's",
    };
    let admission = word(&serde_json::to_value(done.admission).unwrap_or_default());
    let code = word(&serde_json::to_value(done.reason.code).unwrap_or_default());
    // To a string nothing fails, here and below.
    let mut text =
        format!("{worker}  {what} (gate {})  {admission}  {code}: {}\n", shown(gate), shown(&done.reason.detail));
    if let Some(why) = &done.forgetful {
        let _ = writeln!(text, "    the hold ends if the gate is restarted: {}", shown(why));
    }
    text
}

/// Who there is, for somebody whose name was not among them.
fn known(fleet: &Fleet) -> String {
    let mut known = if fleet.workers.is_empty() {
        "no gate has answered".to_owned()
    } else {
        format!("known are {}", listed(fleet.workers.iter().map(name)))
    };
    if !fleet.silent.is_empty() {
        let _ = write!(known, "; silent gates: {}", listed(fleet.silent.keys().map(String::as_str)));
    }
    known
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    let mut text = names.iter().take(MOST_NAMES).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    if names.len() > MOST_NAMES {
        let _ = write!(text, " and {} more", names.len() - MOST_NAMES);
    }
    text
}

/// Fit for a terminal: it came over the broker.
fn shown(text: &str) -> String {
    word(&text.into())
}
