//! The channel that events are published on, renewed with the link and whenever the broker has closed it.

use std::time::Duration;

use lapin::{
    Channel,
    options::{ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    amqp::{Link, Retry},
    control,
    edge::{
        fault::{Fault, within},
        links::LinkState,
        rabbitmq::links::Links,
    },
    report::outbox::{self, Outlet},
};

/// A channel dies of an error of its own only if somebody deletes the exchange; there is no hurry.
const LOOK: Duration = Duration::from_secs(10);

/// Keeps `channels` supplied until `stop`.
///
/// # Errors
/// A refusal that needs a person, if events have never gone out: a gate that nobody can hear is set up wrongly.
pub(super) async fn keep(
    mut links: watch::Receiver<LinkState<Links>>,
    (exchange, gate): (&str, &str),
    (vhost, user): (&str, &str),
    channels: &watch::Sender<Option<Outlet>>,
    stop: &CancellationToken,
) -> Result<(), Fault> {
    let mut worked = false;
    loop {
        let state = links.borrow_and_update().clone();
        match state {
            LinkState::Down(_) => {
                channels.send_replace(None);
            }
            LinkState::Up(links) => {
                let dead = !channels.borrow().as_ref().is_some_and(Outlet::works);
                if dead {
                    match open(&links.control, &links.publish, exchange, vhost, user).await {
                        Ok(channel) => {
                            worked = true;
                            // Before the first word, which the broker is to remember.
                            control::rabbitmq::enter(&links.control, gate).await;
                            channels.send_replace(Some(Outlet::RabbitMq { channel, rush: links.rush.clone() }));
                        }
                        Err(fault) if fault.retry() == Retry::NeedsPerson && !worked => return Err(fault),
                        Err(fault) => tracing::warn!("failed to {fault}"),
                    }
                }
            }
        }
        let look = Instant::now() + LOOK;
        tokio::select! {
            changed = links.changed() => if changed.is_err() { return Ok(()) },
            () = sleep(look - Instant::now()) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

async fn open(control: &Link, publish: &Link, exchange: &str, vhost: &str, user: &str) -> Result<Channel, Fault> {
    let doing = format!("declare the exchange {exchange} (events.exchange)");
    let declaring = within("open a channel", control.connection().create_channel()).await?;
    let declared = within(&doing, outbox::declare(&declaring, exchange)).await;
    declared.map_err(|fault| refine(fault, exchange, vhost, user))?;
    let may = may_publish(&declaring, exchange).await;
    may.map_err(|fault| fault.permission(vhost, user, &format!("{exchange} and amq.gen-*")))?;
    let _ = declaring.close(200, "done".into()).await;
    let channel = within("open a channel", publish.connection().create_channel()).await?;
    within("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Asks whether the exchange may be published to, without an event that nobody could make sense of: RabbitMQ lets only
/// those name a dead letter exchange who may write to it.
async fn may_publish(channel: &Channel, exchange: &str) -> Result<(), Fault> {
    let doing = format!("get leave to publish to the exchange {exchange} (events.exchange)");
    let mut arguments = FieldTable::default();
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(exchange.into()));
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = within(&doing, channel.queue_declare(ShortString::default(), options, arguments)).await?;
    within(&doing, channel.queue_delete(queue.name().clone(), QueueDeleteOptions::default())).await?;
    Ok(())
}

fn refine(fault: Fault, exchange: &str, vhost: &str, user: &str) -> Fault {
    let fault = fault.permission(vhost, user, exchange);
    let Fault::Command { doing, error } = fault else { return fault };
    let lapin::ErrorKind::ProtocolError(refusal) = error.kind() else { return Fault::Command { doing, error } };
    let detail = refusal.get_message().to_string();
    match refusal.get_id() {
        406 => Fault::Topology {
            doing,
            detail,
            remedy: format!(
                "{exchange} exists and is not a durable fanout: delete it or choose another events.exchange"
            ),
        },
        _ => Fault::Command { doing, error },
    }
}
