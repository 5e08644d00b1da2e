//! What exchanges, queues and keys are called, over all workers: nothing may be called like something else.

use std::collections::HashMap;

use super::{Look, Transport};
use crate::settings::{EdgeKind, FeedIntake, IntakeType, Worker, path::Path, problem::quote};

/// AMQP's short string: names and keys have at most so many bytes.
const LONGEST: usize = 255;

/// What a holding queue's name ends in.
const HELD: &str = ".held";

/// Exchanges that Celery declares for itself.
const CELERYS: [&str; 3] = ["celeryev", "celery.pidbox", "reply.celery.pidbox"];

/// Checks one name of an exchange or a queue. `longest` is the longest name that is made of it, or empty.
pub(super) fn name(name: &str, longest: &str, transport: Option<Transport>, path: &Path, look: &mut Look<'_>) {
    if name.is_empty() || name.contains(char::is_control) {
        look.wrong(
            [path],
            format!("{} cannot be a name on the broker", quote(name)),
            "write a name that can be printed",
        );
    }
    if transport != Some(Transport::Amqp) {
        return;
    }
    if name.starts_with("amq.") {
        let remedy = "choose a name that begins otherwise: RabbitMQ keeps these for itself";
        look.wrong([path], format!("{} begins with \"amq.\"", quote(name)), remedy);
    }
    let (what, bytes) = match longest {
        "" => ("it".to_owned(), name.len()),
        longest => (format!("the name {} made of it", quote(longest)), longest.len()),
    };
    if bytes > LONGEST {
        let remedy = format!("shorten it by at least {}", bytes - LONGEST);
        look.wrong([path], format!("{what} has {bytes} bytes, more than the {LONGEST} that AMQP allows"), remedy);
    }
}

/// Checks the names of all workers with each other.
pub(super) fn all(workers: &[(Path, Worker)], transport: Option<Transport>, events: &str, look: &mut Look<'_>) {
    let mut taken = Taken { transport, owners: HashMap::new() };
    for exchange in CELERYS {
        taken.exchange(exchange, "an exchange of Celery's own", &Path::default(), look);
    }
    taken.exchange(events, "the exchange for events", &Path::of(["events", "exchange"]), look);
    unique(workers, look);
    for (path, worker) in workers {
        let (lane, path_of_lane) = (worker.lane.as_str(), path.key("lane"));
        name(lane, &format!("{lane}.lane"), transport, &path_of_lane, look);
        if lane.strip_suffix(HELD).is_some() {
            let what = format!("{} ends like a holding queue", quote(lane));
            look.wrong([&path_of_lane], what, "choose a name that does not end in \".held\"");
        }
        taken.lane(lane, &path_of_lane, look);
        taken.worker(worker.name.as_str(), &path.key("name"), look);
        let path = path.key("intake");
        match &worker.edge {
            EdgeKind::Route(intake) => {
                let (exchange, path) = (intake.exchange.as_str(), path.key("exchange"));
                name(exchange, &format!("{exchange}.unrouted"), transport, &path, look);
                taken.intake(exchange, &path, look);
            }
            EdgeKind::Feed(feed) => match &feed.intake {
                FeedIntake::Queue(queue) => {
                    let path = path.key("queue");
                    name(queue, &format!("{queue}.feed.unrouted"), transport, &path, look);
                    taken.shared_queue(queue, &path, look);
                }
                FeedIntake::Exchange { exchange, .. } => {
                    let path = path.key("exchange");
                    name(exchange, "", transport, &path, look);
                    taken.exchange(exchange, &format!("the intake {}", quote(exchange)), &path, look);
                }
            },
        }
    }
    Keys::default().check(workers, transport, look);
}

fn unique(workers: &[(Path, Worker)], look: &mut Look<'_>) {
    let (mut names, mut lanes) = (HashMap::new(), HashMap::new());
    for (path, worker) in workers {
        if let Some(first) = names.insert(worker.name.as_str(), path) {
            let what = format!("{} is also the name of {first}", quote(worker.name.as_str()));
            look.wrong([&path.key("name"), &first.key("name")], what, "give each worker its own node name");
        }
        if let Some(first) = lanes.insert(worker.lane.as_str(), path) {
            let what = format!("{} is also the lane of {first}", quote(&worker.lane));
            look.wrong([&path.key("lane"), &first.key("lane")], what, "give each worker a lane of its own");
        }
    }
}

/// Who has which name, by kind of thing.
struct Taken {
    transport: Option<Transport>,
    owners: HashMap<(&'static str, String), (String, Path)>,
}

impl Taken {
    fn exchange(&mut self, name: &str, owner: &str, path: &Path, look: &mut Look<'_>) {
        self.take("exchange", name, owner, path, look);
    }

    fn queue(&mut self, name: &str, owner: &str, path: &Path, look: &mut Look<'_>) {
        self.take("queue", name, owner, path, look);
    }

    /// Notes a name, or that somebody else has it already.
    fn take(&mut self, kind: &'static str, name: &str, owner: &str, path: &Path, look: &mut Look<'_>) {
        if name.is_empty() {
            return;
        }
        match self.owners.get(&(kind, name.to_owned())) {
            None => {
                self.owners.insert((kind, name.to_owned()), (owner.to_owned(), path.clone()));
            }
            Some((first, _)) if first == owner => {}
            Some((first, where_first)) => {
                let what = format!("the {kind} {} would be both {first} and {owner}", quote(name));
                look.wrong([path, where_first], what, "choose another name for one of them");
            }
        }
    }

    /// A lane with what belongs to it. A worker that is started with `-Q LANE` declares an exchange of the lane's
    /// name, and binds the lane to it: an intake of that name would have a way past the gate.
    fn lane(&mut self, lane: &str, path: &Path, look: &mut Look<'_>) {
        let of = quote(lane);
        self.queue(lane, &format!("the lane {of}"), path, look);
        self.queue(&format!("{lane}.held"), &format!("the holding queue of lane {of}"), path, look);
        self.exchange(lane, &celerys(lane), path, look);
        if self.transport == Some(Transport::Amqp) {
            self.exchange(&format!("{lane}.lane"), &format!("the lane exchange of {of}"), path, look);
        }
    }

    fn worker(&mut self, worker: &str, path: &Path, look: &mut Look<'_>) {
        let (edge, owner) = (format!("worker-gate.edge.{worker}"), format!("worker-gate.owner.{worker}"));
        if !worker.is_empty() {
            name(worker, &owner, self.transport, path, look);
        }
        if self.transport == Some(Transport::Amqp) {
            self.exchange(&edge, &format!("the edge of {}", quote(worker)), path, look);
            self.queue(&owner, &format!("the owner queue of {}", quote(worker)), path, look);
        }
    }

    /// An intake of a route, which many workers may share.
    fn intake(&mut self, exchange: &str, path: &Path, look: &mut Look<'_>) {
        let of = quote(exchange);
        self.exchange(exchange, &format!("the intake {of}"), path, look);
        self.exchange(&format!("{exchange}.held"), &format!("the holding exchange of intake {of}"), path, look);
        let unrouted = format!("{exchange}.unrouted");
        self.exchange(&unrouted, &format!("the exchange of intake {of} for keys without a worker"), path, look);
        self.queue(&unrouted, &format!("the queue of intake {of} for keys without a worker"), path, look);
    }

    /// A shared queue, with the exchange that Celery declares for it, and on RabbitMQ the intake that the feed uses.
    fn shared_queue(&mut self, queue: &str, path: &Path, look: &mut Look<'_>) {
        let of = quote(queue);
        self.queue(queue, &format!("the intake queue {of}"), path, look);
        let lane = self.owners.get(&("exchange", queue.to_owned())).is_some_and(|(owner, _)| *owner == celerys(queue));
        if !lane {
            self.exchange(queue, &format!("the exchange that Celery declares for intake queue {of}"), path, look);
        }
        if self.transport == Some(Transport::Amqp) {
            self.intake(&format!("{queue}.feed"), path, look);
        }
    }
}

/// How the exchange that Celery declares for a lane is spoken of. That a lane is an intake queue as well is said once,
/// of the queue.
fn celerys(lane: &str) -> String {
    format!("the exchange that Celery declares for lane {}", quote(lane))
}

/// The keys of each intake, with who has them.
#[derive(Default)]
struct Keys<'a> {
    kinds: HashMap<&'a str, (IntakeType, Path)>,
    exact: HashMap<(&'a str, &'a str), (usize, Path)>,
}

impl<'a> Keys<'a> {
    fn check(mut self, workers: &'a [(Path, Worker)], transport: Option<Transport>, look: &mut Look<'_>) {
        let mut topics = Vec::new();
        for (at, (path, worker)) in workers.iter().enumerate() {
            let path = path.key("intake");
            let (exchange, kind, keys) = match &worker.edge {
                EdgeKind::Route(intake) => (&intake.exchange, intake.kind, &intake.keys),
                EdgeKind::Feed(feed) => match &feed.intake {
                    FeedIntake::Exchange { exchange, kind, keys } => (exchange, *kind, keys),
                    FeedIntake::Queue(_) => continue,
                },
            };
            self.one_type(exchange, kind, &path.key("type"), look);
            if kind == IntakeType::ConsistentHash {
                continue;
            }
            for (index, key) in keys.iter().enumerate() {
                let path = path.key("keys").at(index);
                if transport == Some(Transport::Amqp) && key.len() > LONGEST {
                    let what = format!("{} bytes are more than the {LONGEST} that AMQP allows", key.len());
                    look.wrong([&path], what, "write a shorter key");
                }
                let topic = kind == IntakeType::Topic;
                if topic {
                    topics.push(Topic::new(exchange, key, at, path.clone()));
                }
                if topic && topics.last().is_some_and(|topic| topic.pattern) {
                    continue;
                }
                if let Some((other, first)) = self.exact.get(&(exchange, key)) {
                    if *other != at {
                        let what = format!("{} is also a key of workers[{other}] on {}", quote(key), quote(exchange));
                        look.wrong(
                            [&path, first],
                            what,
                            "give each worker its own key: both would get a copy of each task",
                        );
                    }
                } else {
                    self.exact.insert((exchange, key), (at, path));
                }
            }
        }
        overlaps(&topics, look);
    }

    fn one_type(&mut self, exchange: &'a str, kind: IntakeType, path: &Path, look: &mut Look<'_>) {
        match self.kinds.get(exchange) {
            Some((first, where_first)) if *first != kind => {
                let (this, other) = (kind.as_str(), first.as_str());
                let what =
                    format!("the intake {} is \"{this}\" here and \"{other}\" at {where_first}", quote(exchange));
                look.wrong([path, where_first], what, "write one type for it");
            }
            Some(_) => {}
            None => {
                self.kinds.insert(exchange, (kind, path.clone()));
            }
        }
    }
}

/// A key of a topic intake.
struct Topic<'a> {
    exchange: &'a str,
    key: &'a str,
    words: Vec<&'a str>,
    /// There is a `*` or a `#` in it.
    pattern: bool,
    worker: usize,
    path: Path,
}

impl<'a> Topic<'a> {
    fn new(exchange: &'a str, key: &'a str, worker: usize, path: Path) -> Self {
        let words: Vec<_> = key.split('.').collect();
        let pattern = words.iter().any(|word| is_wild(word));
        Self { exchange, key, words, pattern, worker, path }
    }
}

/// Two topic patterns that can match one key are as bad as one key twice. Of each pattern the first clash is told; of
/// two patterns, the later one is to blame.
fn overlaps(topics: &[Topic<'_>], look: &mut Look<'_>) {
    for (at, this) in topics.iter().enumerate().filter(|(_, topic)| topic.pattern) {
        let clashes = |(other_at, other): &(usize, &Topic<'_>)| {
            (*other_at < at || !other.pattern)
                && other.worker != this.worker
                && other.exchange == this.exchange
                && overlap(&this.words, &other.words)
        };
        if let Some((_, other)) = topics.iter().enumerate().find(clashes) {
            let (pattern, key, worker) = (quote(this.key), quote(other.key), other.worker);
            let what = format!("{pattern} and {key}, a key of workers[{worker}], match the same keys");
            let remedy = "make them match different keys: both workers would get a copy of a task";
            look.wrong([&this.path, &other.path], what, remedy);
        }
    }
}

fn is_wild(word: &str) -> bool {
    word == "*" || word == "#"
}

/// Whether there is a key that both topic patterns match: `*` is one word, `#` any number of words.
fn overlap(one: &[&str], other: &[&str]) -> bool {
    // Most patterns differ in their first or last word, and there may be many.
    let apart = |a: Option<&&str>, b: Option<&&str>| matches!((a, b), (Some(a), Some(b)) if a != b && !is_wild(a) && !is_wild(b));
    if apart(one.first(), other.first()) || apart(one.last(), other.last()) {
        return false;
    }
    // `row` says for each length of `other`'s beginning whether it overlaps with the beginning of `one` so far.
    let mut row: Vec<bool> = vec![true];
    for word in other {
        let last = row.last().copied().unwrap_or_default();
        row.push(last && *word == "#");
    }
    for a in one {
        let mut next = vec![row.first().copied().unwrap_or_default() && *a == "#"];
        for ((b, corner), above) in other.iter().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or_default();
            let many = *a == "#" || *b == "#";
            let same = a == b || *a == "*" || *b == "*";
            next.push((*corner && (same || many)) || (many && (left || *above)));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_patterns_overlap_if_one_key_matches_both() {
        for (one, other, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "b.*", false),
            ("a.*", "a.b.c", false),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("#", "x.y", true),
            ("*.b", "a.*", true),
            ("#.b", "a.#", true),
            ("#.b.c", "a.*", false),
            ("a.#.z", "a.b.*", true),
            ("a.*.c", "a.#.d", false),
            ("*", "*.*", false),
            ("#.x.#", "y.#.z", true),
        ] {
            let (a, b): (Vec<_>, Vec<_>) = (one.split('.').collect(), other.split('.').collect());
            assert_eq!(overlap(&a, &b), expected, "{one} {other}");
            assert_eq!(overlap(&b, &a), expected, "{other} {one}");
        }
    }
}
