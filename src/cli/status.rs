//! `worker-gate status`: every worker of every gate on this broker.

use std::{
    io::{self, IsTerminal, Write as _},
    time::Duration,
};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    Context, Exit,
    ask::{self, connect},
    fleet::{self, Fleet, name},
    out,
};
use crate::{glob, settings::Reach};

mod table;

/// Between two looks.
const WATCH: Duration = Duration::from_secs(2);
/// Moves a terminal's cursor to its beginning and empties it.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// What is shown, and how.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// One JSON array of worker records
    #[arg(long)]
    json: bool,
    /// Look again every two seconds until interrupted
    #[arg(long)]
    watch: bool,
    /// Only this worker; `*` and `?` stand for any letters. Can be given often
    #[arg(long = "worker", value_name = "W")]
    workers: Vec<String>,
    /// Only workers that are quarantined
    #[arg(long)]
    quarantined: bool,
}

pub(super) async fn status(context: &Context, args: &StatusArgs) -> anyhow::Result<Exit> {
    let reach = context.reach()?;
    let is_terminal = io::stdout().is_terminal();
    let no_color = context.source.env.get("NO_COLOR").is_some_and(|text| !text.is_empty());
    let view = View { reach: &reach, args, is_terminal, colour: is_terminal && !no_color && !args.json };
    if args.watch {
        return view.watch(context).await;
    }
    let mut asker = connect(context, &reach).await?;
    let fleet = fleet::ask(&mut asker, true, fleet::LIMIT).await.map_err(|fault| ask::failed(&fault))?;
    asker.close().await;
    if fleet.is_empty() {
        return Err(ask::nobody());
    }
    view.show(&fleet)
}

struct View<'a> {
    reach: &'a Reach,
    args: &'a StatusArgs,
    is_terminal: bool,
    colour: bool,
}

impl View<'_> {
    /// Shows what is asked for; the exit code says whether all of it is fit.
    fn show(&self, fleet: &Fleet) -> anyhow::Result<Exit> {
        let now = Timestamp::now();
        let mut records = fleet.workers.clone();
        records.extend(fleet.without_gate(now));
        records.retain(|record| self.is_wanted(record));
        records.sort_by(|a, b| name(a).cmp(name(b)));
        let is_fit = records.iter().all(|record| admission(record) == Some("admitted"));
        if self.args.json {
            out::text(&format!("{}\n", records.into_iter().collect::<Value>()))?;
        } else {
            let mut text = table::table(&records, now, self.colour);
            text.push_str(&table::notes(fleet, now));
            out::text(&text)?;
        }
        for (gate, why) in &fleet.refused {
            out::error(&format!("worker-gate: gate {gate} does not answer: {why}"));
        }
        Ok(if !fleet.refused.is_empty() {
            Exit::NotPermitted
        } else if is_fit && fleet.silent.is_empty() {
            Exit::Done
        } else {
            Exit::Unfit
        })
    }

    fn is_wanted(&self, record: &Map<String, Value>) -> bool {
        let named = self.args.workers.is_empty()
            || self.args.workers.iter().any(|pattern| glob::matches(pattern, name(record)));
        named && (!self.args.quarantined || admission(record) == Some("quarantined"))
    }

    /// Shows again and again, until it is interrupted. A broker that is away is said to be, and asked again.
    async fn watch(&self, context: &Context) -> anyhow::Result<Exit> {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let watching = async {
            let mut asker = None;
            let mut first = true;
            loop {
                let looked = self.look(context, &mut asker).await;
                if first && let Err(error) = looked {
                    break Err::<Exit, _>(error);
                }
                first = false;
                if let Err(error) = looked {
                    if error.downcast_ref::<out::Gone>().is_some() {
                        break Err(error);
                    }
                    asker = None;
                    out::error(&super::exit::text(&error));
                }
                sleep(WATCH).await;
            }
        };
        tokio::select! {
            ended = watching => ended,
            _ = interrupt.recv() => Ok(Exit::Done),
            _ = terminate.recv() => Ok(Exit::Done),
        }
    }

    async fn look(&self, context: &Context, asker: &mut Option<crate::control::asker::Asker>) -> anyhow::Result<()> {
        let there = match asker.take() {
            Some(asker) => asker,
            None => connect(context, self.reach).await?,
        };
        let there = asker.insert(there);
        let fleet = fleet::ask(there, true, fleet::LIMIT).await.map_err(|fault| ask::failed(&fault))?;
        if self.is_terminal {
            io::stdout().write_all(CLEAR.as_bytes())?;
        }
        if !self.args.json {
            out::text(&format!("{:.0}\n", Timestamp::now()))?;
        }
        self.show(&fleet)?;
        if !self.is_terminal && !self.args.json {
            out::text("\n")?;
        }
        Ok(())
    }
}

fn admission(record: &Map<String, Value>) -> Option<&str> {
    record.get("admission").and_then(Value::as_str)
}
