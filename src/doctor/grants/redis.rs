//! Redis' ACL rules: commands, keys and channels of each user. They need Redis 7, which tells reading a key (`%R~`) from
//! writing it (`%W~`): a worker that may push to the shared queue, as it does for a retry, must not take from it.
//!
//! Two things Redis cannot tell apart. Who may hear a channel may also publish to it, so a worker may send commands over
//! remote control; and the keys of unacknowledged messages are one for all workers of a database, unless they are given keys of
//! their own (`unacked_key` and its like in Celery's `broker_transport_options`).

use std::fmt::Write as _;

use super::{Grant, OPERATOR, PASSWORD, PRODUCER, gate_user, worker_user};
use crate::{
    control::{EXCHANGE, redis::ANSWERS},
    edge::{
        celery::{self, EVENTS, PIDBOX, REPLIES},
        redis::keys,
    },
    redis::envelope::fanout_channel,
    report::outbox::{gates, stream},
    settings::{Broker, EdgeKind, Feed, FeedIntake, Settings, Worker, broker_url::RedisUrl},
};

/// What kombu's client does on every connection.
const CONNECT: &str = "+ping +select";
/// Pushing to a queue, and declaring it (kombu/transport/redis.py, `_put`, `_size`, `_queue_bind`, `get_table`).
const PUBLISH: &str = "+lpush +llen +sadd +smembers +multi +exec +discard";
/// What a worker does beside that, in this order: it takes, keeps what is not acknowledged, restores it under a lock, keeps its
/// mailbox's binding alive and sweeps dead ones, hears commands and sends events.
const CONSUME: &str = "+brpop +rpop +rpush +hset +hget +hdel +zadd +zrem +zrange +zrevrangebyscore +watch +unwatch \
                       +set +get +del +evalsha +script|load +script|exists \
                       +time +zrangebyscore +exists +pexpire +srem \
                       +publish +subscribe +psubscribe +unsubscribe +punsubscribe";
/// The gate's scripts and what is in them, its facts, and what `events` and `doctor` read.
const GATE: &str = "+ping +select +info +role +client|setname +client|tracking +client|list +evalsha +script|load \
                    +get +set +del +incr +pexpire +pttl +llen +lindex +lmove +lpush +lrange +rename +rpop +sadd +srem +smembers +scard \
                    +multi +exec +publish +subscribe +psubscribe +unsubscribe +punsubscribe \
                    +xadd +xlen +xrange +xrevrange +xread +time +scan +hset +hgetall +hdel";
/// What `status`, `hold`, `release`, `recheck` and `events` do.
const OPERATE: &str = "+ping +select +info +role +client|setname +publish +subscribe +psubscribe +unsubscribe +punsubscribe \
                       +rpop +del +mget +hgetall +hdel +xlen +xrange +xrevrange +xread +xreadgroup +xgroup +xack +time";

pub(super) fn grants(settings: &Settings, url: Option<&RedisUrl>) -> (Vec<String>, Vec<Grant>) {
    let names = Names { broker: &settings.broker, db: url.map_or(0, |url| url.db) };
    let head = vec![
        format!("Redis 7 or newer; lines for redis-cli. Write the users' passwords in place of {PASSWORD}."),
        "User names are proposals. Keep them with ACL SAVE, or as user lines in redis.conf.".to_owned(),
    ];
    let mut grants: Vec<_> = fed(settings).map(|(worker, feed)| of_worker(&names, worker, feed)).collect();
    grants.push(of_producer(&names, settings));
    grants.push(of_gate(&names, settings, url));
    grants.push(of_operator(&names, settings));
    (head, grants)
}

fn fed(settings: &Settings) -> impl Iterator<Item = (&Worker, &Feed)> {
    settings.workers.iter().filter_map(|worker| match &worker.edge {
        EdgeKind::Feed(feed) => Some((worker, feed)),
        EdgeKind::Route(_) => None,
    })
}

/// How keys and channels are called in this database.
struct Names<'a> {
    broker: &'a Broker,
    db: u32,
}

impl Names<'_> {
    /// A rule for one key that is not a queue.
    fn key(&self, access: &str, key: &str) -> String {
        format!("{access}{}{}", glob(&self.broker.global_keyprefix), glob(key))
    }

    /// Rules for all lists of a queue.
    fn queue(&self, access: &str, queue: &str) -> Vec<String> {
        keys::lists(self.broker, queue).iter().map(|list| format!("{access}{}", glob(list))).collect()
    }

    /// A rule for a fanout exchange's channel.
    fn channel(&self, exchange: &str, key: &str) -> String {
        // Not as a glob: for PSUBSCRIBE Redis compares the two patterns letter by letter.
        format!("&{}", fanout_channel(&self.broker.global_keyprefix, self.db, exchange, key).replace(' ', "?"))
    }

    /// Rules to declare and bind a queue of this exchange.
    fn bindings(&self, access: &str, exchange: &str) -> Vec<String> {
        ["_kombu.binding.", "_kombu.binding_permanent."]
            .map(|table| self.key(access, &format!("{table}{exchange}")))
            .to_vec()
    }

    /// Rules to publish what a feed is fed from.
    fn publish(&self, worker: &Worker, feed: &Feed) -> Vec<String> {
        let mut rules = self.queue("%W~", &keys::source(worker, feed));
        match &feed.intake {
            // As for every queue that it names, Celery declares an exchange of the same name, which nobody publishes to.
            FeedIntake::Queue(queue) => rules.extend(self.bindings("%W~", queue)),
            // Whoever may write this table could lead the exchange to a lane.
            FeedIntake::Exchange { exchange, .. } => {
                rules.push(self.key("%R~", &format!("_kombu.binding.{exchange}")));
            }
        }
        rules
    }
}

fn of_worker(names: &Names<'_>, worker: &Worker, feed: &Feed) -> Grant {
    let node = celery::node(&worker.name);
    let mut rules = words(&[CONNECT, PUBLISH, CONSUME]);
    rules.extend(names.queue("~", &worker.lane));
    rules.extend(names.bindings("~", &worker.lane));
    rules.extend(names.publish(worker, feed));
    rules.extend(["unacked", "unacked_index", "unacked_mutex"].map(|key| names.key("~", key)));
    rules.extend(names.queue("~", &format!("{node}.{PIDBOX}")));
    rules.extend(names.bindings("~", PIDBOX));
    // Every worker sweeps the bindings of queues that expire: mailboxes, and those of Celery's inspectors and event receivers.
    rules.push(names.key("~", "_kombu.binding_deadlines"));
    rules.extend([REPLIES, EVENTS].iter().flat_map(|exchange| names.bindings("~", exchange)));
    // Answers: to Celery's own inspectors, and to gates.
    let prefix = glob(&names.broker.global_keyprefix);
    rules.push(format!("%W~{prefix}*.{REPLIES}"));
    rules.push(format!("%W~{prefix}worker-gate.answers.*"));
    rules.extend([names.channel(PIDBOX, ""), names.channel(EVENTS, "*")]);
    let source = keys::source(worker, feed);
    let notes = vec![
        format!("The worker {}: its lane, its mailbox for remote control, its events.", worker.name),
        format!("It may push to {source}, where retries of its tasks go; it may take nothing from it."),
        "Start it with --without-gossip --without-mingle: with these, workers would need leave to hear each other."
            .to_owned(),
    ];
    Grant { notes, line: set_user(&worker_user(&worker.lane), rules) }
}

fn of_producer(names: &Names<'_>, settings: &Settings) -> Grant {
    let mut rules = words(&[CONNECT, PUBLISH]);
    for (worker, feed) in fed(settings) {
        rules.extend(names.publish(worker, feed));
    }
    let notes = vec!["Producers: they push to the intake and read nothing from it.".to_owned()];
    Grant { notes, line: set_user(PRODUCER, rules) }
}

fn of_gate(names: &Names<'_>, settings: &Settings, url: Option<&RedisUrl>) -> Grant {
    let mut rules = words(&[GATE]);
    for (worker, feed) in fed(settings) {
        let source = keys::source(worker, feed);
        for purpose in ["owner", "fence", "edge"] {
            rules.push(names.key("~", &format!("worker-gate.{purpose}.{}", worker.name)));
        }
        rules.extend(names.queue("~", &source));
        rules.extend(names.queue("~", &worker.lane));
        // A gate asks at the start whether it may rename, by a name that nobody has.
        rules.push(names.key("~", &format!("{source}.worker-gate.probe")));
        if let FeedIntake::Exchange { exchange, .. } = &feed.intake {
            rules.extend(names.bindings("~", exchange));
        }
    }
    rules.push(names.key("~", &format!("worker-gate.answers.{}", settings.gate.name)));
    rules.push(format!("~{}worker-gate.answers.doctor.*", glob(&names.broker.global_keyprefix)));
    rules.push(format!("~{}", glob(&stream(&names.broker.global_keyprefix, &settings.events.exchange))));
    let events = &settings.events.exchange;
    rules.extend([names.channel(PIDBOX, ""), names.channel(EVENTS, "worker.*")]);
    if settings.workers.iter().any(|worker| worker.task_events) {
        rules.push(names.channel(EVENTS, "task.*"));
    }
    if settings.events.mirror_celeryev {
        rules.push(names.channel(EVENTS, "*"));
    }
    rules.extend([names.channel(events, ""), names.channel(events, "*")]);
    rules.push(format!("~{}", glob(&gates(&names.broker.global_keyprefix))));
    rules.extend([names.channel(EXCHANGE, ""), names.channel(ANSWERS, "*")]);
    let notes = vec!["The gate: everything of its edges, its facts, and questions to Celery's workers.".to_owned()];
    Grant { notes, line: set_user(&gate_user(url.and_then(|url| url.user.as_deref())), rules) }
}

/// Whoever runs `status`, `hold`, `release`, `recheck` and `events` from another host than a gate's.
fn of_operator(names: &Names<'_>, settings: &Settings) -> Grant {
    let (prefix, events) = (&names.broker.global_keyprefix, &settings.events.exchange);
    let mut rules = words(&[OPERATE]);
    rules.push(format!("~{}worker-gate.answers.doctor.*", glob(prefix)));
    rules.push(format!("~{}", glob(&gates(prefix))));
    rules.push(format!("~{}", glob(&stream(prefix, events))));
    rules.push(format!("%R~{}*", glob(&keys::owner_key(prefix, ""))));
    rules.extend([names.channel(EXCHANGE, ""), names.channel(ANSWERS, "*")]);
    rules.extend([names.channel(PIDBOX, ""), names.channel(EVENTS, "worker.*")]);
    let notes = vec![
        "Operators: worker-gate status, hold, release, recheck and events. Redis does not say who has sent a request; with \
         control.key_file only those are heard who have the key."
            .to_owned(),
    ];
    Grant { notes, line: set_user(OPERATOR, rules) }
}

fn words(lists: &[&str]) -> Vec<String> {
    lists.iter().flat_map(|list| list.split_whitespace()).map(str::to_owned).collect()
}

/// `reset` first: the rules are all that the user has, whatever it had before.
fn set_user(user: &str, rules: Vec<String>) -> String {
    let mut words = vec!["ACL".to_owned(), "SETUSER".to_owned(), user.to_owned(), "reset".to_owned(), "on".to_owned()];
    words.push(format!(">{PASSWORD}"));
    for rule in rules {
        if !words.contains(&rule) {
            words.push(rule);
        }
    }
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A name as a pattern that matches it alone. A rule can hold no space, for which any one letter stands.
fn glob(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            ' ' => text.push('?'),
            '*' | '?' | '[' | ']' | '\\' => text.extend(['\\', letter]),
            letter => text.push(letter),
        }
    }
    text
}

/// One word for redis-cli, which reads `\xHH` within double quotes.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
    if word.bytes().all(is_plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for byte in word.bytes() {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            byte if byte.is_ascii_graphic() || byte == b' ' => text.push(char::from(byte)),
            byte => {
                // To a string nothing fails.
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_pattern_that_matches_it_alone() {
        assert_eq!(glob("a*b[c]?\\d e"), r"a\*b\[c\]\?\\d?e");
    }

    #[test]
    fn a_word_that_redis_cli_would_take_apart_is_quoted() {
        assert_eq!(quoted("%W~codex"), "%W~codex");
        assert_eq!(quoted("~codex\u{6}\u{16}3"), r#""~codex\x06\x163""#);
        assert_eq!(quoted(r"~a\*"), r#""~a\\*""#);
        assert_eq!(quoted("ü"), r#""\xc3\xbc""#);
    }
}
