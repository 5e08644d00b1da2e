//! On Redis events are read from the stream, on which every gate puts them besides publishing them. What was before, what
//! comes, and what came while the link was down are one walk along it, so nothing is missed and nothing shown twice. How far a
//! subscriber with a name has come, Redis itself remembers.

use std::{ops::ControlFlow, time::Duration};

use ::redis::RedisError;

use super::{EventsError, PURPOSE, Pauses, View};
use crate::{
    redis::{self, Link, Pushes},
    report::outbox::{STREAM_FIELD, stream},
    settings,
};

mod group;
mod stream;

use self::stream::{End, Fields, Id, Place, Stream};

const NEEDS: &str = "XREAD, XRANGE, XREVRANGE, XLEN and TIME, on a stream of that name";
const DURABLE_NEEDS: &str = "XGROUP, XREADGROUP, XACK, XRANGE, XREVRANGE, XLEN and TIME, on a stream of that name";

pub(super) async fn follow(broker: &settings::Broker, exchange: &str, view: &mut View<'_>) -> Result<(), EventsError> {
    let mut link = redis::connect(broker, PURPOSE).await?;
    let mut place = None;
    loop {
        let mut stream = Stream::new(stream(&broker.global_keyprefix, exchange), link.0.connection());
        let ended = match view.durable().map(str::to_owned) {
            None => walk(&mut stream, exchange, &mut place, view).await,
            Some(name) => group::walk(&mut stream, exchange, &name, &mut place, view).await,
        };
        let lost = match ended {
            Ok(()) => return Ok(()),
            Err(End::Refused(detail)) => {
                let needs = if view.durable().is_some() { DURABLE_NEEDS } else { NEEDS };
                return Err(EventsError::Refused { exchange: exchange.to_owned(), detail, needs });
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

/// Handles events from `place` on, or from where it is to begin, until nobody reads them any more.
async fn walk(stream: &mut Stream, exchange: &str, place: &mut Option<Place>, view: &mut View<'_>) -> Result<(), End> {
    let (mut at, note) = match *place {
        None => begin(stream, view.since()).await?,
        Some(at) => resume(stream, at).await?,
    };
    view.note(&format!("subscribed to {exchange}"))?;
    if let Some(note) = note {
        view.note(&note)?;
    }
    loop {
        *place = Some(at);
        for (id, fields) in stream.after(at.id).await? {
            if handle(view, id, &fields).await?.is_break() {
                return Ok(());
            }
            at = Place { id, is_entry: true };
        }
    }
}

async fn handle(view: &mut View<'_>, id: Id, fields: &Fields) -> std::io::Result<ControlFlow<()>> {
    let Some(field) = fields.chunks_exact(2).find(|field| field[0] == STREAM_FIELD.as_bytes()) else {
        view.note(&format!("somebody wrote to the stream what is not an event: {id}"))?;
        return Ok(ControlFlow::Continue(()));
    };
    view.handle(&field[1]).await
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
