//! A subscriber with a name is a consumer group of that name, with one consumer: Redis remembers which entries it was given and
//! which of them it has acknowledged.
//!
//! One subscriber at a time may use a name: two would be given every other event, and take each other's for their own.

use super::{Place, Stream, View, begin, handle, resume, stream::End};

/// The group's one consumer.
const CONSUMER: &str = "worker-gate";

/// Handles events from where the group is, until nobody reads them any more. `place` is how far this process has come; where the
/// group is not there, it begins so far.
pub(super) async fn walk(
    stream: &mut Stream,
    exchange: &str,
    name: &str,
    place: &mut Option<Place>,
    view: &mut View<'_>,
) -> Result<(), End> {
    let (at, note) = match *place {
        None => begin(stream, view.since()).await?,
        Some(at) => resume(stream, at).await?,
    };
    *place = Some(at);
    let is_new = stream.make_group(name, at.id).await?;
    view.note(&format!("subscribed to {exchange}"))?;
    // What the stream has is of no matter to a group that goes on.
    if let Some(note) = note.filter(|_| is_new) {
        view.note(&note)?;
    }
    // First what was given to this name before and not acknowledged.
    let mut given = Some(Place::BEGIN.id);
    loop {
        let entries = match given {
            Some(after) => stream.given(name, CONSUMER, after).await?,
            None => stream.new_ones(name, CONSUMER).await?,
        };
        if entries.is_empty() {
            given = None;
        }
        for (id, fields) in entries {
            // Without fields it was given, and has since had to go; it shows as a hole in seq.
            if let Some(fields) = fields
                && handle(view, id, &fields).await?.is_break()
            {
                return Ok(());
            }
            stream.acknowledge(name, id).await?;
            *place = Some(Place { id, is_entry: true });
            given = given.map(|_| id);
        }
    }
}
