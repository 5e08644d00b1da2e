//! Messages that wait for nobody: lists that are like a lane or its holding queue, and that neither these settings nor any
//! worker names. Other programs' lists may lie beside them, so a list has to show that a gate filled it.

use std::{collections::BTreeSet, time::Duration};

use ::redis::{aio::MultiplexedConnection, cmd};
use tokio::time::Instant;

use super::failed;
use crate::{
    doctor::{Finding, told::Workers},
    edge::{
        fault::Fault,
        redis::keys::{SEPARATOR, source},
    },
    redis::{envelope, is_refusal},
    settings::{EdgeKind, FeedIntake, Settings},
};

/// What ends the name of a holding queue.
const HELD: &str = ".held";
/// Redis looks at so many keys at a time, in less than a millisecond.
const STEP: u32 = 1_000;
/// For looking through all keys: a million take a second or two.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn look(
    connection: &mut MultiplexedConnection,
    settings: &Settings,
    workers: &Workers,
) -> Result<Vec<Finding>, Fault> {
    let known = Known::new(settings);
    let prefix = &settings.broker.global_keyprefix;
    let mut found = Vec::new();
    for queue in queues(connection, prefix).await? {
        if known.has(&queue) || workers.values().any(|told| told.consumes(&queue)) {
            continue;
        }
        if queue.ends_with(HELD) || known.fed(oldest(connection, &format!("{prefix}{queue}")).await.as_ref()) {
            found.push(Finding::warning(
                "orphaned",
                format!("messages wait in {queue}, which no worker here has as its lane, and no worker says that it consumes"),
                "if its worker is gone for good, give them to another one: worker-gate rehome WORKER --to WORKER"
                    .to_owned(),
            ));
        }
    }
    Ok(found)
}

/// The name of every queue that holds something, without the priorities. None for a user who may not look.
async fn queues(connection: &mut MultiplexedConnection, prefix: &str) -> Result<BTreeSet<String>, Fault> {
    let (mut queues, mut cursor, until) = (BTreeSet::new(), 0_u64, Instant::now() + LIMIT);
    let special = ['*', '?', '[', ']', '\\'];
    let pattern: String =
        prefix.chars().flat_map(|c| special.contains(&c).then_some('\\').into_iter().chain([c])).collect();
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{pattern}*")).arg("COUNT").arg(STEP).arg("TYPE").arg("list");
        let (next, keys): (u64, Vec<Vec<u8>>) = match scan.query_async(connection).await {
            Err(error) if is_refusal(&error) => return Ok(queues),
            scanned => scanned.map_err(failed("look for lists that nobody takes from"))?,
        };
        for key in keys {
            let key = String::from_utf8_lossy(&key);
            let queue = key.strip_prefix(prefix).unwrap_or_default().split(SEPARATOR).next().unwrap_or_default();
            queues.insert(queue.to_owned());
        }
        cursor = next;
        if cursor == 0 || Instant::now() > until {
            return Ok(queues);
        }
    }
}

/// Where the oldest message of a list was published to, if this user may see it.
async fn oldest(connection: &mut MultiplexedConnection, list: &str) -> Option<(String, String)> {
    let message: Option<Vec<u8>> = cmd("LINDEX").arg(list).arg(-1).query_async(connection).await.ok()?;
    let message = envelope::unwrap(&message?)?;
    Some((message.exchange, message.routing_key))
}

/// What these settings know of.
struct Known<'a> {
    /// Queues that have somebody who takes from them.
    queues: BTreeSet<String>,
    /// Queues that lanes are fed from, and exchanges.
    shared: BTreeSet<&'a str>,
    exchanges: BTreeSet<&'a str>,
}

impl<'a> Known<'a> {
    fn new(settings: &'a Settings) -> Self {
        let (mut queues, mut shared, mut exchanges) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for worker in &settings.workers {
            queues.insert(worker.lane.clone());
            let EdgeKind::Feed(feed) = &worker.edge else { continue };
            queues.insert(source(worker, feed));
            match &feed.intake {
                FeedIntake::Queue(queue) => shared.insert(queue.as_str()),
                FeedIntake::Exchange { exchange, .. } => exchanges.insert(exchange.as_str()),
            };
        }
        Self { queues, shared, exchanges }
    }

    fn has(&self, queue: &str) -> bool {
        self.queues.contains(queue)
    }

    /// Whether a message that was published there is one that gates feed from what these settings name.
    fn fed(&self, way: Option<&(String, String)>) -> bool {
        way.is_some_and(|(exchange, key)| {
            self.exchanges.contains(exchange.as_str()) || exchange.is_empty() && self.shared.contains(key.as_str())
        })
    }
}
