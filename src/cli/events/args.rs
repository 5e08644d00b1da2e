//! `events …`: what may stand on the command line, and what it means.

use std::{collections::BTreeMap, convert::Infallible, ffi::OsString, time::Duration};

use clap::Args;

use super::{EventsError, Filter, Subscription, Target, body::Body, exec::Exec, webhook::Webhook};
use crate::{secret::Secret, settings::duration};

/// Where `--webhook` without a value finds its URL: other users of the machine can read a command line.
const WEBHOOK_URL: &str = "WORKER_GATE_WEBHOOK_URL";

/// A name has to be one of a RabbitMQ queue too.
const LONGEST_NAME: usize = 255;

const TIME_LIMIT: Duration = Duration::from_secs(30);

/// What `--help` says beside the flags.
pub(in crate::cli) const HELP: &str = "\
With --exec or --webhook an event counts as delivered when the program has ended with 0, or the URL has answered with 2xx. \
Without --durable a program that fails is noted and passed over, and a webhook is tried again for a minute; with it both are \
tried again for ever, in order, and what comes meanwhile or while nobody runs waits at the broker: up to 100000 events in a \
queue on RabbitMQ, and what the stream keeps on Redis. Delivered is at least once; `id` tells one event from another.";

/// Which events, and where they go.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// One event a line, as it was published
    #[arg(long, conflicts_with_all = ["exec", "webhook"])]
    json: bool,
    /// Only events of this type, such as worker-quarantined; `*` and `?` stand for any letters. Can be given often
    #[arg(long = "type", value_name = "T")]
    kinds: Vec<String>,
    /// Only events of this worker; `*` and `?` stand for any letters. Can be given often
    #[arg(long = "worker", value_name = "W")]
    workers: Vec<String>,
    /// Begin with those of so long ago, such as 10m, that the broker still has: on Redis those on the stream. With --durable,
    /// pass over what is older
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
    /// Let the broker keep what comes while this subscriber is away, under this name; one at a time may use a name
    #[arg(long, value_name = "NAME", value_parser = name)]
    durable: Option<String>,
    /// Run this program for each event, one at a time: the event as one line of JSON on its standard input, its main fields
    /// in WORKER_GATE_TYPE, _WORKER, _GATE, _ADMISSION, _EDGE, _REASON, _DETAIL, _REMEDY, _SEQ, _ID and _TIMESTAMP. No shell is
    /// asked; what it prints goes where ours would
    #[arg(long, value_name = "PROGRAM", conflicts_with = "webhook")]
    exec: Option<OsString>,
    /// A program that runs longer is ended, with its process group [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = time, requires = "exec")]
    time_limit: Option<Duration>,
    /// POST each event to this URL [default: $WORKER_GATE_WEBHOOK_URL, which other users of the machine do not see]
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "", value_parser = secret)]
    webhook: Option<Secret>,
    /// What is posted [default: event]
    #[arg(long, value_name = "SHAPE", requires = "webhook")]
    body: Option<Body>,
    /// The program's arguments
    #[arg(last = true, value_name = "ARGUMENT", requires = "exec")]
    arguments: Vec<OsString>,
}

impl EventsArgs {
    /// What is wanted, in this environment.
    ///
    /// # Errors
    /// If there is no such program, or the URL is none.
    pub fn subscription(self, env: &BTreeMap<String, String>) -> Result<Subscription, EventsError> {
        let Self { json, kinds, workers, since, durable, exec, time_limit, webhook, body, arguments } = self;
        let target = match (exec, webhook) {
            (Some(program), _) => {
                let path = env.get("PATH").map_or("", String::as_str);
                Target::Program(Exec::new(&program, arguments, time_limit.unwrap_or(TIME_LIMIT), path)?)
            }
            (None, Some(url)) => {
                let from_env = || Secret::new(env.get(WEBHOOK_URL).map_or("", String::as_str));
                let url = if url.reveal().is_empty() { from_env() } else { url };
                Target::Webhook(Webhook::new(url, body.unwrap_or_default())?)
            }
            (None, None) if json => Target::Json,
            (None, None) => Target::Lines,
        };
        Ok(Subscription { filter: Filter { kinds, workers }, since, durable, target })
    }
}

fn name(text: &str) -> Result<String, &'static str> {
    match text.len() {
        0 => Err("an empty name"),
        1..=LONGEST_NAME => Ok(text.to_owned()),
        _ => Err("longer than 255 bytes"),
    }
}

fn time(text: &str) -> Result<Duration, &'static str> {
    match duration::parse(text)? {
        Duration::ZERO => Err("no time at all"),
        time => Ok(time),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "clap wants a parser that may fail")]
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}
