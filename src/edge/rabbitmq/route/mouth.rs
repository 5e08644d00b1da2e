//! How messages are published that were taken out of a queue: by a channel of their own, some in one go, and none of them is acked
//! before the broker has said that it has it.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use lapin::{Channel, Confirmation, PublisherConfirm, options::ConfirmSelectOptions};
use tokio::{runtime::Handle, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::edge::{
    fault::{Fault, within},
    rabbitmq::links::Links,
};

/// So many are published in one go: up to this, `try_join_all` asks them in their order.
pub(super) const TOGETHER: usize = 30;
/// For what is under way when whoever publishes is told to stop.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What the broker says of a published message, and where that came from.
pub(super) type Confirmed<T> = (T, lapin::Result<Confirmation>);

/// Published, and not yet confirmed.
pub(super) type InFlight<T> = BoxFuture<'static, Confirmed<T>>;

/// Waits for what the broker says of it.
pub(super) fn in_flight<T: Send + 'static>(from: T, confirm: PublisherConfirm) -> InFlight<T> {
    async move { (from, confirm.await) }.boxed()
}

/// Where those came from that the broker has, in their order: `first`, and everything behind it that has been confirmed by now.
///
/// lapin hands a returned message to the first publish that is confirmed after it came, whichever that was; its own
/// publish then looks like one that was taken. So one that was returned puts all of them in doubt, and all of them stay:
/// twice is better than never.
///
/// # Errors
/// If one was returned, or the broker says so; then nothing more may be acked.
pub(super) fn taken<T>(
    doing: &str,
    first: Confirmed<T>,
    in_flight: &mut FuturesOrdered<InFlight<T>>,
) -> Result<Vec<T>, Fault> {
    let (mut taken, mut next) = (Vec::new(), Some(first));
    while let Some((from, confirm)) = next {
        match confirm.map_err(|error| Fault::command(doing, error))? {
            Confirmation::Ack(None) => taken.push(from),
            Confirmation::Ack(Some(returned)) => {
                return Err(Fault::Nowhere { exchange: returned.delivery.exchange.to_string() });
            }
            Confirmation::Nack(_) | Confirmation::NotRequested => {
                return Err(Fault::Silent { doing: format!("{doing}: the broker could not take it") });
            }
        }
        next = in_flight.next().now_or_never().flatten();
    }
    Ok(taken)
}

/// Ends [`STOP_LIMIT`] after `stop`: in an alarm publishing takes as long as that lasts.
pub(super) async fn given_up(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(STOP_LIMIT).await;
}

/// Where messages are published: a channel of its own, since lapin hands a message that nobody took to whichever publish of the same
/// channel is confirmed next. It is opened beside all else, because under an alarm that takes as long as the alarm, and what
/// waits is to be consumed all the same.
#[derive(Debug)]
pub(super) struct Mouth {
    links: Arc<Links>,
    /// Until it is done.
    opening: Option<JoinHandle<Result<Channel, Fault>>>,
    channel: Option<Channel>,
}

impl Mouth {
    pub(super) fn open(links: Arc<Links>) -> Self {
        let opening = Some(Self::begin(&links));
        Self { links, opening, channel: None }
    }

    fn begin(links: &Arc<Links>) -> JoinHandle<Result<Channel, Fault>> {
        let links = Arc::clone(links);
        // Without a limit in time: lapin keeps the number of a channel whose opening is given up until the broker answers, and a
        // connection has 2,047 of them. A link that is dead ends it.
        tokio::spawn(async move {
            let channel = links.publish.connection().create_channel().await;
            let channel = channel.map_err(|error| Fault::command("open a channel", error))?;
            let confirms = channel.confirm_select(ConfirmSelectOptions::default()).await;
            confirms.map_err(|error| Fault::command("ask for confirms", error))?;
            Ok(channel)
        })
    }

    /// Cancel-safe.
    pub(super) async fn channel(&mut self) -> Result<Channel, Fault> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let opened = self.opening.get_or_insert_with(|| Self::begin(&self.links)).await;
        self.opening = None;
        let channel =
            opened.unwrap_or_else(|panic| Err(Fault::Silent { doing: format!("open a channel ({panic})") }))?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }
}

impl Drop for Mouth {
    /// The channel closes in its own time: nothing waits for it.
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        let (channel, opening) = (self.channel.take(), self.opening.take());
        runtime.spawn(async move {
            let opened = match (channel, opening) {
                (Some(channel), _) => Some(channel),
                (None, Some(opening)) => opening.await.ok().and_then(Result::ok),
                (None, None) => None,
            };
            if let Some(channel) = opened {
                let _ = within("stop publishing", channel.close(200, "done".into())).await;
            }
        });
    }
}
