//! The stream, as far as a subscriber reads it.

use std::{collections::HashMap, fmt, io, time::Duration};

use ::redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, aio::MultiplexedConnection, cmd};
use jiff::Timestamp;

use crate::{
    cli::events::WINDOW,
    redis::{self, COMMAND_TIMEOUT},
    report::outbox::STREAM_LENGTH,
};

/// How long a read waits for news. An answer that Redis gives late must not pass for none.
const WAIT: Duration = Duration::from_secs(1);
const _: () = assert!(2 * WAIT.as_millis() < COMMAND_TIMEOUT.as_millis());

/// How far the walk has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) id: Id,
    /// Whether the stream has had an entry of this id.
    pub(super) is_entry: bool,
}

impl Place {
    pub(super) const BEGIN: Self = Self { id: Id { ms: 0, seq: 0 }, is_entry: false };
}

/// What Redis calls an entry: when it came, by Redis' clock, and which one of that millisecond it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) ms: u64,
    pub(super) seq: u64,
}

/// As Redis writes it; `{:#}` is the time.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        match time {
            Some(time) if f.alternate() => write!(f, "{time:.3}"),
            _ => write!(f, "{}-{}", self.ms, self.seq),
        }
    }
}

impl FromRedisValue for Id {
    fn from_redis_value(value: ::redis::Value) -> Result<Self, ::redis::ParsingError> {
        let text = String::from_redis_value(value)?;
        let parts = text.split_once('-').and_then(|(ms, seq)| Some((ms.parse().ok()?, seq.parse().ok()?)));
        let (ms, seq) = parts.ok_or_else(|| format!("no id of a stream's entry: {text:?}"))?;
        Ok(Self { ms, seq })
    }
}

/// An entry's fields and values, in turn.
pub(super) type Fields = Vec<Vec<u8>>;
type Entries = Vec<(Id, Fields)>;

/// The same of a group: an entry that was given to it and has since been removed from the stream has no fields any more.
type Given = Vec<(Id, Option<Fields>)>;

/// The stream, over one connection.
pub(super) struct Stream {
    key: String,
    connection: MultiplexedConnection,
}

impl Stream {
    pub(super) fn new(key: String, connection: MultiplexedConnection) -> Self {
        Self { key, connection }
    }

    /// Waits for entries after this one, but not for long; some, or none.
    pub(super) async fn after(&mut self, id: Id) -> Result<Entries, RedisError> {
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(WINDOW).arg("BLOCK").arg(wait()).arg("STREAMS").arg(&self.key).arg(id.to_string());
        let streams: Option<HashMap<String, Entries>> = self.ask(&read).await?;
        Ok(streams.into_iter().flatten().flat_map(|(_, entries)| entries).collect())
    }

    /// Makes a group that has come so far, and the stream if there is none; false if the group is there, wherever it is.
    pub(super) async fn make_group(&mut self, group: &str, at: Id) -> Result<bool, RedisError> {
        let mut make = cmd("XGROUP");
        make.arg("CREATE").arg(&self.key).arg(group).arg(at.to_string()).arg("MKSTREAM");
        match self.ask::<()>(&make).await {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some("BUSYGROUP") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What this consumer was given after this entry and has not acknowledged.
    pub(super) async fn given(&mut self, group: &str, consumer: &str, after: Id) -> Result<Given, RedisError> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(group).arg(consumer).arg("COUNT").arg(WINDOW);
        read.arg("STREAMS").arg(&self.key).arg(after.to_string());
        self.read_group(&read).await
    }

    /// Waits for what nobody of the group was given, but not for long; some, or none.
    pub(super) async fn new_ones(&mut self, group: &str, consumer: &str) -> Result<Given, RedisError> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(group).arg(consumer).arg("COUNT").arg(WINDOW).arg("BLOCK").arg(wait());
        read.arg("STREAMS").arg(&self.key).arg(">");
        self.read_group(&read).await
    }

    async fn read_group(&mut self, read: &Cmd) -> Result<Given, RedisError> {
        let streams: Option<HashMap<String, Given>> = self.ask(read).await?;
        Ok(streams.into_iter().flatten().flat_map(|(_, entries)| entries).collect())
    }

    /// The group is done with an entry.
    pub(super) async fn acknowledge(&mut self, group: &str, id: Id) -> Result<(), RedisError> {
        let mut done = cmd("XACK");
        done.arg(&self.key).arg(group).arg(id.to_string());
        self.ask(&done).await
    }

    pub(super) async fn first(&mut self) -> Result<Option<Id>, RedisError> {
        self.one("XRANGE", ("-", "+")).await
    }

    pub(super) async fn last(&mut self) -> Result<Option<Id>, RedisError> {
        self.one("XREVRANGE", ("+", "-")).await
    }

    pub(super) async fn has(&mut self, id: Id) -> Result<bool, RedisError> {
        let id = id.to_string();
        Ok(self.one("XRANGE", (&id, &id)).await?.is_some())
    }

    async fn one(&mut self, command: &str, (from, to): (&str, &str)) -> Result<Option<Id>, RedisError> {
        let mut range = cmd(command);
        range.arg(&self.key).arg(from).arg(to).arg("COUNT").arg(1);
        let entries: Entries = self.ask(&range).await?;
        Ok(entries.first().map(|(id, _)| *id))
    }

    /// Whether older entries have had to go.
    pub(super) async fn is_full(&mut self) -> Result<bool, RedisError> {
        let mut length = cmd("XLEN");
        length.arg(&self.key);
        Ok(self.ask::<u64>(&length).await? >= STREAM_LENGTH.into())
    }

    /// The time in ms by which entries are named.
    pub(super) async fn now(&mut self) -> Result<u64, RedisError> {
        let (seconds, microseconds): (u64, u64) = self.ask(&cmd("TIME")).await?;
        Ok(seconds * 1000 + microseconds / 1000)
    }

    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        command.query_async(&mut self.connection).await
    }
}

fn wait() -> u64 {
    u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX)
}

/// Why a walk has ended.
pub(super) enum End {
    Lost(String),
    Refused(String),
    Output(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<RedisError> for End {
    fn from(error: RedisError) -> Self {
        let is_refusal =
            error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) || error.code() == Some("WRONGTYPE");
        let text = redis::text(&error);
        if is_refusal { Self::Refused(text) } else { Self::Lost(text) }
    }
}
