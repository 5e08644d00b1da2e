//! `[[workers]]`

use std::path::{Path as FilePath, PathBuf};

use super::{Look, Transport, names};
use crate::{
    model::WorkerName,
    secret::Secret,
    settings::{
        EdgeKind, Feed, FeedIntake, IntakeType, OnQuarantine, RouteIntake, RunAs, Worker,
        path::Path,
        problem::quote,
        raw::{self, ExchangeType, OnQuarantine as RawOnQuarantine},
    },
};

/// What a check's environment takes from elsewhere, and the keys that say what it is.
const OWN_VARIABLES: &[(&str, &str)] =
    &[("PATH", "path_env"), ("HOME", "home"), ("USER", "run_as"), ("LOGNAME", "run_as")];

/// Checks each worker, and all of them with each other; `None` if one cannot be built.
pub(super) fn workers(
    raw: Vec<raw::Worker>,
    transport: Option<Transport>,
    events: &str,
    look: &mut Look<'_>,
) -> Option<Vec<Worker>> {
    let root = Path::of(["workers"]);
    if raw.is_empty() {
        look.wrong([&root], "there is no worker", "add one, beginning with [[workers]]");
    }
    let count = raw.len();
    let workers: Vec<(Path, Worker)> = (raw.into_iter().enumerate())
        .filter_map(|(at, raw)| {
            let path = root.at(at);
            worker(&path, raw, transport, look).map(|worker| (path, worker))
        })
        .collect();
    names::all(&workers, transport, events, look);
    (workers.len() == count).then(|| workers.into_iter().map(|(_, worker)| worker).collect())
}

fn worker(path: &Path, raw: raw::Worker, transport: Option<Transport>, look: &mut Look<'_>) -> Option<Worker> {
    let name = given(raw.name, &path.key("name"), "Celery's node name, such as \"codex-0@host-1\"", look);
    if let Some(name) = &name
        && (name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()))
    {
        let what = format!("{} is no node name", quote(name));
        look.wrong([&path.key("name")], what, "write Celery's node name, such as \"codex-0@host-1\", without spaces");
    }
    let lane = given(raw.lane, &path.key("lane"), "the queue that this worker consumes, and nobody else", look);
    let run_as = run_as(path, raw.run_as, raw.home, raw.path_env, raw.env, look);
    let example = match raw.edge {
        raw::Edge::Route => "{ exchange = \"codex\", type = \"direct\", keys = [\"codex-0\"] }",
        raw::Edge::Feed => "{ queue = \"codex\" }",
    };
    let intake = given(raw.intake, &path.key("intake"), example, look);
    if raw.edge == raw::Edge::Route && transport == Some(Transport::Redis) {
        let remedy = "write edge = \"feed\": on Redis the gate moves the messages itself";
        let paths = [&path.key("edge"), &Path::of(["broker", "url"])];
        look.wrong(paths, "a route needs RabbitMQ, and broker.url is a Redis", remedy);
    }
    let edge = intake.and_then(|intake| match raw.edge {
        raw::Edge::Route => route(&path.key("intake"), intake, look).map(EdgeKind::Route),
        raw::Edge::Feed => {
            let intake = feed(&path.key("intake"), intake, transport, look)?;
            Some(EdgeKind::Feed(Feed { intake, depth: raw.depth, offline_after: raw.offline_after }))
        }
    });
    Some(Worker {
        name: WorkerName::new(&name?),
        run_as,
        lane: lane?,
        edge: edge?,
        queue_arguments: raw.queue_arguments,
        on_quarantine: match raw.on_quarantine {
            RawOnQuarantine::Drain => OnQuarantine::Drain,
            RawOnQuarantine::Recycle => OnQuarantine::Recycle,
        },
        task_events: raw.task_events,
    })
}

fn given<T>(value: Option<T>, path: &Path, expected: &str, look: &mut Look<'_>) -> Option<T> {
    if value.is_none() {
        look.wrong([path], "it is missing", format!("write {expected}"));
    }
    value
}

fn run_as(
    path: &Path,
    user: String,
    home: String,
    path_env: String,
    env: std::collections::BTreeMap<String, String>,
    look: &mut Look<'_>,
) -> RunAs {
    if !home.is_empty() && !FilePath::new(&home).is_absolute() {
        look.wrong([&path.key("home")], format!("{} is not absolute", quote(&home)), "begin it with a \"/\"");
    }
    for name in env.keys().filter(|name| name.contains('=')) {
        let what = format!("{} cannot be the name of a variable", quote(name));
        look.wrong([&path.key("env").key(name)], what, "leave the \"=\" out of it");
    }
    for (name, key) in OWN_VARIABLES.iter().filter(|(name, _)| env.contains_key(*name)) {
        let what = format!("a check's {name} is what {key} says, and this would be ignored");
        look.wrong(
            [&path.key("env").key(name)],
            what,
            format!("leave it out, and write {key} in the same [[workers]]"),
        );
    }
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    RunAs {
        user: some(user),
        home: some(home).map(PathBuf::from),
        path_env: some(path_env),
        env: env.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
    }
}

fn route(path: &Path, raw: raw::Intake, look: &mut Look<'_>) -> Option<RouteIntake> {
    if raw.queue.is_some() {
        let remedy = "name exchange, type and keys, or write edge = \"feed\"";
        look.wrong([&path.key("queue")], "a route takes its messages from an exchange", remedy);
        return None;
    }
    let exchange = given(raw.exchange, &path.key("exchange"), "the exchange that producers publish to", look);
    let kind = intake_type(path, raw.kind, look);
    if kind == Some(IntakeType::ConsistentHash) {
        weight(&path.key("keys"), &raw.keys, look);
    } else {
        keys(&path.key("keys"), &raw.keys, look);
    }
    Some(RouteIntake { exchange: exchange?, kind: kind?, keys: raw.keys })
}

fn feed(path: &Path, raw: raw::Intake, transport: Option<Transport>, look: &mut Look<'_>) -> Option<FeedIntake> {
    match (raw.queue, raw.exchange) {
        (Some(queue), None) => {
            if raw.kind.is_some() || !raw.keys.is_empty() {
                let remedy = "leave type and keys out, or name an exchange instead";
                look.wrong([&path.key("queue")], "a queue has neither type nor keys", remedy);
            }
            Some(FeedIntake::Queue(queue))
        }
        (None, Some(exchange)) => {
            if transport == Some(Transport::Amqp) {
                let remedy = "write { queue = \"...\" }, or edge = \"route\"";
                let paths = [&path.key("exchange"), &Path::of(["broker", "url"])];
                look.wrong(paths, "on RabbitMQ a feed takes its messages from a queue", remedy);
            }
            let kind = intake_type(path, raw.kind, look)?;
            if kind == IntakeType::ConsistentHash {
                let what = "Redis has no such exchange";
                look.wrong([&path.key("type"), &Path::of(["broker", "url"])], what, "write \"direct\" or \"topic\"");
            }
            keys(&path.key("keys"), &raw.keys, look);
            Some(FeedIntake::Exchange { exchange, kind, keys: raw.keys })
        }
        (queue, _) => {
            let what = if queue.is_some() {
                "it names both a queue and an exchange"
            } else {
                "it names neither a queue nor an exchange"
            };
            let paths = [path, &path.key("queue"), &path.key("exchange")];
            look.wrong(paths, what, "write { queue = \"codex\" }");
            None
        }
    }
}

fn intake_type(path: &Path, kind: Option<ExchangeType>, look: &mut Look<'_>) -> Option<IntakeType> {
    let path = path.key("type");
    match kind {
        Some(ExchangeType::Direct) => Some(IntakeType::Direct),
        Some(ExchangeType::Topic) => Some(IntakeType::Topic),
        Some(ExchangeType::ConsistentHash) => Some(IntakeType::ConsistentHash),
        Some(ExchangeType::Fanout) => {
            let what = "a fanout would give every worker its own copy of each task";
            look.wrong([&path], what, "write \"direct\", \"topic\" or \"x-consistent-hash\"");
            None
        }
        None => {
            look.wrong([&path], "it is missing", "write \"direct\", \"topic\" or \"x-consistent-hash\"");
            None
        }
    }
}

fn keys(path: &Path, keys: &[String], look: &mut Look<'_>) {
    if keys.is_empty() {
        look.wrong([path], "there is no key", "write the routing keys that producers use, such as [\"codex-0\"]");
    }
    for (at, key) in keys.iter().enumerate() {
        if keys.iter().take(at).any(|earlier| earlier == key) {
            look.wrong([&path.at(at)], format!("{} stands there twice", quote(key)), "write it once");
        }
    }
}

fn weight(path: &Path, keys: &[String], look: &mut Look<'_>) {
    let positive =
        |key: &String| key.bytes().all(|byte| byte.is_ascii_digit()) && key.parse().is_ok_and(|n: u32| n > 0);
    match keys {
        [weight] if positive(weight) => {}
        [other] => {
            let what = format!("{} is no weight", quote(other));
            look.wrong([path], what, "write a positive whole number in quotes, such as [\"1\"]");
        }
        _ => {
            let what = format!("x-consistent-hash takes one key, which is the weight, and there are {}", keys.len());
            look.wrong([path], what, "write for example [\"1\"]");
        }
    }
}
