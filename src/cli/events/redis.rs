//! On Redis events are read from the stream, on which every gate puts them besides publishing them. What was before, what
//! comes, and what came while the link was down are one walk along it, so nothing is missed and nothing shown twice.

use std::{collections::HashMap, fmt, io, ops::ControlFlow, time::Duration};

use ::redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, aio::MultiplexedConnection, cmd};
use jiff::Timestamp;

use super::{EventsError, PURPOSE, Pauses, View, WINDOW};
use crate::{
    redis::{self, COMMAND_TIMEOUT, Link, Pushes},
    report::outbox::{STREAM_FIELD, STREAM_LENGTH, stream},
    settings,
};

/// How long a read waits for news. An answer that Redis gives late must not pass for none.
const WAIT: Duration = Duration::from_secs(1);
const _: () = assert!(2 * WAIT.as_millis() < COMMAND_TIMEOUT.as_millis());

const NEEDS: &str = "XREAD, XRANGE, XREVRANGE, XLEN and TIME, on a stream of that name";

pub(super) async fn follow(broker: &settings::Broker, exchange: &str, view: &mut View<'_>) -> Result<(), EventsError> {
    let mut link = redis::connect(broker, PURPOSE).await?;
    let mut place = None;
    loop {
        let key = stream(&broker.global_keyprefix, exchange);
        let mut stream = Stream { key, connection: link.0.connection() };
        let lost = match walk(&mut stream, exchange, &mut place, view).await {
            Ok(()) => return Ok(()),
            Err(End::Refused(detail)) => {
                return Err(EventsError::Refused { exchange: exchange.to_owned(), detail, needs: NEEDS });
            }
            Err(End::Output(error)) => return Err(error.into()),
            Err(End::Lost(lost)) => lost,
        };
        view.note(&format!("the link was lost ({lost}); the stream keeps what comes until it is back"))?;
        link = reconnect(broker, view).await?;
    }
}

async fn reconnect(broker: &settings::Broker, view: &mut View<'_>) -> Result<(Link, Pushes), EventsError> {
    let mut pauses = Pauses::new();
    loop {
        pauses.next().await;
        match redis::connect(broker, PURPOSE).await {
            Ok(link) => return Ok(link),
            Err(error) => view.failed(error.into())?,
        }
    }
}

/// Shows events from `place` on, or from where it is to begin, until nobody reads them any more.
async fn walk(stream: &mut Stream, exchange: &str, place: &mut Option<Place>, view: &mut View<'_>) -> Result<(), End> {
    let (mut at, note) = match *place {
        None => begin(stream, view.filter.since).await?,
        Some(at) => resume(stream, at).await?,
    };
    view.note(&format!("subscribed to {exchange}"))?;
    if let Some(note) = note {
        view.note(&note)?;
    }
    loop {
        *place = Some(at);
        for (id, fields) in stream.after(at.id).await? {
            let event = fields.chunks_exact(2).find(|field| field[0] == STREAM_FIELD.as_bytes());
            match event {
                Some(field) if view.show(&field[1])? == ControlFlow::Break(()) => return Ok(()),
                Some(_) => {}
                None => view.note(&format!("somebody wrote to the stream what is not an event: {id}"))?,
            }
            at = Place { id, is_entry: true };
        }
    }
}

/// Where to begin, and what is to be said about it.
async fn begin(stream: &mut Stream, since: Option<Duration>) -> Result<(Place, Option<String>), RedisError> {
    let Some(since) = since else {
        let place = match stream.last().await? {
            Some(id) => Place { id, is_entry: true },
            None => Place::BEGIN,
        };
        return Ok((place, None));
    };
    let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let id = Id { ms: stream.now().await?.saturating_sub(since), seq: 0 };
    let note = match stream.first().await? {
        Some(first) if first > id && stream.is_full().await? => Some(format!("the stream begins at {first:#}")),
        _ => None,
    };
    Ok((Place { id, is_entry: false }, note))
}

/// Where to go on, and whether something was missed. Redis may have lost the stream with all else, or have cut it short.
async fn resume(stream: &mut Stream, at: Place) -> Result<(Place, Option<String>), RedisError> {
    if !at.is_entry {
        return Ok((at, None));
    }
    if stream.has(at.id).await? {
        return Ok((at, Some("nothing was missed: the stream has all that came meanwhile".to_owned())));
    }
    let note =
        "the stream does not go back to what was shown last, so something may be missed, which shows as a hole in seq";
    // A new stream, by a clock that goes behind the old one's.
    let is_behind = stream.last().await?.is_none_or(|last| last < at.id);
    Ok((if is_behind { Place::BEGIN } else { at }, Some(note.to_owned())))
}

/// How far the walk has come.
#[derive(Debug, Clone, Copy)]
struct Place {
    id: Id,
    /// Whether the stream has had an entry of this id.
    is_entry: bool,
}

impl Place {
    const BEGIN: Self = Self { id: Id { ms: 0, seq: 0 }, is_entry: false };
}

/// What Redis calls an entry: when it came, by Redis' clock, and which one of that millisecond it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    ms: u64,
    seq: u64,
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
type Fields = Vec<Vec<u8>>;
type Entries = Vec<(Id, Fields)>;

/// The stream, over one connection.
struct Stream {
    key: String,
    connection: MultiplexedConnection,
}

impl Stream {
    /// Waits for entries after this one, but not for long; some, or none.
    async fn after(&mut self, id: Id) -> Result<Entries, RedisError> {
        let (wait, key) = (u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX), self.key.clone());
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(WINDOW).arg("BLOCK").arg(wait).arg("STREAMS").arg(key).arg(id.to_string());
        let streams: Option<HashMap<String, Entries>> = self.ask(&read).await?;
        Ok(streams.into_iter().flatten().flat_map(|(_, entries)| entries).collect())
    }

    async fn first(&mut self) -> Result<Option<Id>, RedisError> {
        self.one("XRANGE", ("-", "+")).await
    }

    async fn last(&mut self) -> Result<Option<Id>, RedisError> {
        self.one("XREVRANGE", ("+", "-")).await
    }

    async fn has(&mut self, id: Id) -> Result<bool, RedisError> {
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
    async fn is_full(&mut self) -> Result<bool, RedisError> {
        let mut length = cmd("XLEN");
        length.arg(&self.key);
        Ok(self.ask::<u64>(&length).await? >= STREAM_LENGTH.into())
    }

    /// The time in ms by which entries are named.
    async fn now(&mut self) -> Result<u64, RedisError> {
        let (seconds, microseconds): (u64, u64) = self.ask(&cmd("TIME")).await?;
        Ok(seconds * 1000 + microseconds / 1000)
    }

    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        command.query_async(&mut self.connection).await
    }
}

/// Why a walk has ended.
enum End {
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
