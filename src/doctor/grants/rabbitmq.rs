//! RabbitMQ's permissions: three regular expressions over the names of exchanges and queues. *Configure* is for declaring and
//! deleting, *write* for publishing to an exchange and for binding a queue, *read* for consuming a queue and for binding to an
//! exchange (RabbitMQ's page "Authentication, Authorisation, Access Control").
//!
//! Topic permissions are not needed: whoever may publish to an intake may do so with any key.

use std::collections::BTreeSet;

use super::{Grant, OPERATOR, PRODUCER, gate_user, worker_user};
use crate::{
    control::{EXCHANGE, asker::SORTED, roll},
    edge::{
        celery::{self, EVENTS, PIDBOX, REPLIES},
        held,
        rabbitmq::{
            kept,
            route::{
                names::{Names, feed_exchange},
                rehome,
            },
        },
    },
    settings::{EdgeKind, FeedIntake, Settings, Worker, broker_url::AmqpUrl},
};

/// The anonymous exchange, as RabbitMQ calls it where permissions are concerned.
const ANONYMOUS: &str = "amq.default";

pub(super) fn grants(settings: &Settings, url: &AmqpUrl) -> (Vec<String>, Vec<Grant>) {
    let head = vec![
        format!(
            "RabbitMQ, virtual host {}. Add each user first: rabbitmqctl add_user NAME, which asks for the password.",
            url.vhost
        ),
        "User names are proposals. Nobody needs a topic permission.".to_owned(),
    ];
    let mut grants: Vec<_> = settings.workers.iter().map(|worker| of_worker(worker, &url.vhost)).collect();
    grants.push(of_producer(settings, &url.vhost));
    grants.push(of_gate(settings, url));
    grants.push(of_operator(settings, url));
    (head, grants)
}

/// Names that a user has a right to.
type Set = BTreeSet<String>;

/// What one user may do.
#[derive(Default)]
struct Rights {
    configure: Set,
    write: Set,
    read: Set,
    /// Whether it has queues of its own with names of the broker's making.
    private: bool,
    /// Whether it may read what gates said last, whichever there are.
    beats: bool,
}

fn of_worker(worker: &Worker, vhost: &str) -> Grant {
    let mailbox = format!("{}.{PIDBOX}", celery::node(&worker.name));
    let own = Set::from([worker.lane.clone(), mailbox]);
    let with = |more: &[&str]| own.iter().cloned().chain(more.iter().map(|name| (*name).to_owned())).collect::<Set>();
    let mut write = with(&[EVENTS, REPLIES]);
    let entries = entries(worker);
    write.extend(entries.iter().cloned());
    let entries: Vec<_> = entries.into_iter().collect();
    let notes = vec![
        format!("The worker {}: its lane, its mailbox for remote control, its events.", worker.name),
        format!(
            "It may publish to {}, where retries of its tasks go; it may neither bind to it nor read it.",
            entries.join(" and ")
        ),
        "Start it with --without-gossip --without-mingle: with these, workers would need leave to command each other."
            .to_owned(),
    ];
    let (configure, read) = (with(&[EVENTS, PIDBOX, REPLIES]), with(&[PIDBOX]));
    let rights = Rights { configure, write, read, ..Rights::default() };
    Grant { notes, line: set_permissions(vhost, &worker_user(&worker.lane), &rights) }
}

fn of_producer(settings: &Settings, vhost: &str) -> Grant {
    let rights = Rights { write: settings.workers.iter().map(entry).collect(), ..Rights::default() };
    let mut notes = vec!["Producers: they publish to the intake and declare nothing.".to_owned()];
    for queue in shared_queues(settings) {
        let entry = held(&feed_exchange(queue));
        notes.push(format!(
            "For the shared queue {queue} they name an exchange that leads there alone: \
             task_routes = {{\"app.*\": {{\"exchange\": \"{entry}\", \"routing_key\": \"{queue}\"}}}}"
        ));
        notes.push(format!(
            "(With queue=\"{queue}\" Celery publishes to the anonymous exchange and declares the queue: that takes leave to \
             publish to every queue, lanes too, and to read {queue}.)"
        ));
    }
    Grant { notes, line: set_permissions(vhost, PRODUCER, &rights) }
}

fn of_gate(settings: &Settings, url: &AmqpUrl) -> Grant {
    let gate = &settings.gate.name;
    let mut own = Set::from([
        settings.events.exchange.clone(),
        EXCHANGE.to_owned(),
        roll::CALL.to_owned(),
        roll::ROLL.to_owned(),
        SORTED.to_owned(),
        roll::name_queue(gate),
        roll::beat_queue(gate),
        REPLIES.to_owned(),
    ]);
    if settings.events.mirror_celeryev {
        own.insert(EVENTS.to_owned());
    }
    for worker in &settings.workers {
        own.extend(names_of(worker));
        if worker.task_events {
            own.extend([kept::TASKS.to_owned(), kept::queue(worker.name.as_str()).to_string()]);
        }
    }
    let (mut write, mut read) = (own.clone(), own.clone());
    write.extend([ANONYMOUS.to_owned(), PIDBOX.to_owned()]);
    read.insert(EVENTS.to_owned());
    let notes = vec![
        "The gate: everything of its edges, its facts, and questions to Celery's workers.".to_owned(),
        format!("({PIDBOX} is for worker-gate doctor, which asks all workers; {EVENTS} has their heartbeats.)"),
    ];
    let rights = Rights { configure: own, write, read, private: true, beats: true };
    Grant { notes, line: set_permissions(&url.vhost, &gate_user(Some(&url.user)), &rights) }
}

/// Whoever runs `status`, `hold`, `release`, `recheck` and `events` from another host than a gate's.
fn of_operator(settings: &Settings, url: &AmqpUrl) -> Grant {
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Set>();
    let write = named(&[EXCHANGE, roll::CALL, PIDBOX]);
    let mut read = named(&[roll::ROLL, REPLIES, EVENTS]);
    read.insert(settings.events.exchange.clone());
    let notes = vec![
        "Operators: worker-gate status, hold, release, recheck and events. Requests carry this user's name, which RabbitMQ \
         vouches for."
            .to_owned(),
    ];
    let rights = Rights { configure: Set::new(), write, read, private: true, beats: true };
    Grant { notes, line: set_permissions(&url.vhost, OPERATOR, &rights) }
}

/// Where producers publish for this worker.
fn entry(worker: &Worker) -> String {
    match &worker.edge {
        EdgeKind::Route(intake) => intake.exchange.clone(),
        // Not the feed's own exchange: with a lane's name as the key that would be a choice of the lane.
        EdgeKind::Feed(feed) => match &feed.intake {
            FeedIntake::Queue(queue) => held(&feed_exchange(queue)),
            FeedIntake::Exchange { exchange, .. } => exchange.clone(),
        },
    }
}

/// Where the worker itself publishes: tasks as producers do, and retries to where their message came from.
fn entries(worker: &Worker) -> Set {
    let mut entries = Set::from([entry(worker)]);
    if let Some(queue) = shared_queue(worker) {
        entries.insert(feed_exchange(queue));
    }
    entries
}

fn shared_queue(worker: &Worker) -> Option<&str> {
    match &worker.edge {
        EdgeKind::Route(_) => None,
        EdgeKind::Feed(feed) => match &feed.intake {
            FeedIntake::Queue(queue) => Some(queue),
            FeedIntake::Exchange { .. } => None,
        },
    }
}

fn shared_queues(settings: &Settings) -> BTreeSet<&str> {
    settings.workers.iter().filter_map(shared_queue).collect()
}

/// Every exchange and queue of one worker's edge.
fn names_of(worker: &Worker) -> Set {
    let (intake, shared) = rehome::way(worker);
    let names = Names::new(worker, &intake, shared);
    let mut all = vec![
        names.intake,
        names.intake_held,
        names.edge,
        names.owner,
        names.lane_exchange,
        names.lane,
        names.lane_held,
        names.holding,
    ];
    if shared.is_none() {
        all.push(names.unrouted);
    }
    all.iter().map(ToString::to_string).collect()
}

fn set_permissions(vhost: &str, user: &str, rights: &Rights) -> String {
    let private = rights.private.then_some(r"amq\.gen-.*");
    let beats = rights.beats.then_some(r"worker-gate\.beat\..*");
    let pattern = |names: &Set, more: &[Option<&str>]| shell(&pattern(names, more.iter().flatten().copied()));
    let patterns = [
        pattern(&rights.configure, &[private]),
        pattern(&rights.write, &[private]),
        pattern(&rights.read, &[private, beats]),
    ]
    .join(" ");
    format!("rabbitmqctl set_permissions -p {} {} {patterns}", shell(vhost), shell(user))
}

/// A pattern that matches these names, and what other patterns match, and nothing else.
fn pattern<'a>(names: &Set, patterns: impl Iterator<Item = &'a str>) -> String {
    let mut all: Vec<String> = names.iter().map(|name| escaped(name)).collect();
    all.extend(patterns.map(str::to_owned));
    if all.is_empty() { "^$".to_owned() } else { format!("^({})$", all.join("|")) }
}

/// Only what Erlang's regular expressions give a meaning, so that names stay readable.
fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for letter in name.chars() {
        if r"\.+*?()|[]{}^$".contains(letter) {
            text.push('\\');
        }
        text.push(letter);
    }
    text
}

/// One word for a shell.
fn shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_matched_as_it_is_and_nothing_that_is_like_it() {
        let pattern = pattern(&Set::from(["a.b+c".to_owned(), "$x".to_owned()]), std::iter::empty());
        assert_eq!(pattern, r"^(\$x|a\.b\+c)$");
        let regex = regex::Regex::new(&pattern).unwrap();
        assert!(regex.is_match("a.b+c") && regex.is_match("$x"));
        assert!(!regex.is_match("axb+c") && !regex.is_match("a.b+cd") && !regex.is_match("ya.b+c"));
    }

    #[test]
    fn no_names_are_no_rights() {
        assert_eq!(pattern(&Set::new(), std::iter::empty()), "^$");
    }

    #[test]
    fn a_word_with_a_quote_stays_one_word() {
        assert_eq!(shell("it's"), r"'it'\''s'");
    }
}
