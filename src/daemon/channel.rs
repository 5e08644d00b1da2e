//! The channel that events are published on, renewed with the link and whenever the broker has closed it.

use std::time::Duration;

use lapin::{
    Channel, ExchangeKind,
    options::{ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    amqp::Retry,
    control,
    edge::{
        celery::EVENTS,
        fault::{Fault, within},
        links::LinkState,
        rabbitmq::links::Links,
    },
    report::outbox::{self, Outlet},
    settings::Events,
};

/// A channel dies of an error of its own only if somebody deletes the exchange; there is no hurry.
const LOOK: Duration = Duration::from_secs(10);

/// Keeps `channels` supplied until `stop`.
///
/// # Errors
/// A refusal that needs a person, if events have never gone out: a gate that nobody can hear is set up wrongly.
pub(super) async fn keep(
    mut links: watch::Receiver<LinkState<Links>>,
    events: &Events,
    gate: &str,
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
                    match open(&links, events, vhost, user).await {
                        Ok(channel) => {
                            worked = true;
                            // Before the first word, which the broker is to remember.
                            control::rabbitmq::enter(&links.control, gate).await;
                            let (rush, mirror) = (links.rush.clone(), events.mirror_celeryev);
                            channels.send_replace(Some(Outlet::RabbitMq { channel, rush, mirror }));
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

async fn open(links: &Links, events: &Events, vhost: &str, user: &str) -> Result<Channel, Fault> {
    let declaring = within("open a channel", links.control.connection().create_channel()).await?;
    let own = Exchange { name: &events.exchange, setting: "events.exchange", kind: ExchangeKind::Fanout };
    let celerys = Exchange { name: EVENTS, setting: "events.mirror_celeryev", kind: ExchangeKind::Topic };
    for exchange in [Some(own), events.mirror_celeryev.then_some(celerys)].into_iter().flatten() {
        exchange.prepare(&declaring, vhost, user).await?;
    }
    let _ = declaring.close(200, "done".into()).await;
    let channel = within("open a channel", links.publish.connection().create_channel()).await?;
    within("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// One that events go to.
#[derive(Debug, Clone)]
struct Exchange<'a> {
    name: &'a str,
    /// The setting that asks for it.
    setting: &'static str,
    kind: ExchangeKind,
}

impl Exchange<'_> {
    /// Declares it, and asks whether it may be published to.
    async fn prepare(self, channel: &Channel, vhost: &str, user: &str) -> Result<(), Fault> {
        let Self { name, setting, kind } = &self;
        let doing = format!("declare the exchange {name} ({setting})");
        let declared = within(&doing, outbox::declare(channel, name, kind.clone())).await;
        declared.map_err(|fault| self.refine(fault.permission(vhost, user, name)))?;
        let may = self.may_publish(channel).await;
        may.map_err(|fault| fault.permission(vhost, user, &format!("{name} and amq.gen-*")))
    }

    /// Without an event that nobody could make sense of: RabbitMQ lets only those name a dead letter exchange who may write to it.
    async fn may_publish(&self, channel: &Channel) -> Result<(), Fault> {
        let doing = format!("get leave to publish to the exchange {} ({})", self.name, self.setting);
        let mut arguments = FieldTable::default();
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(self.name.into()));
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = within(&doing, channel.queue_declare(ShortString::default(), options, arguments)).await?;
        within(&doing, channel.queue_delete(queue.name().clone(), QueueDeleteOptions::default())).await?;
        Ok(())
    }

    fn refine(&self, fault: Fault) -> Fault {
        let Fault::Command { doing, error } = fault else { return fault };
        let lapin::ErrorKind::ProtocolError(refusal) = error.kind() else { return Fault::Command { doing, error } };
        if refusal.get_id() != 406 {
            return Fault::Command { doing, error };
        }
        let (name, setting) = (self.name, self.setting);
        let kind = if self.kind == ExchangeKind::Topic { "topic" } else { "fanout" };
        let detail = refusal.get_message().to_string();
        let remedy = format!("{name} exists and is not a durable {kind}: delete it or change {setting}");
        Fault::Topology { doing, detail, remedy }
    }
}
