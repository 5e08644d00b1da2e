//! The floor: a client that does what the gate's edge must do on the broker, knows no reason for it, and checks nothing.
//! It has the same connections, the same topology under other names, and moves with the same window.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, Consumer, ExchangeKind,
    message::Delivery,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, ExchangeBindOptions, ExchangeDeclareOptions, ExchangeUnbindOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};

use crate::support::{
    runtime::on,
    vhost::{Vhost, channel, connect},
};

/// What the gate has in flight at the most; see `IN_FLIGHT` in src/edge/route/mover.rs.
const IN_FLIGHT: usize = 128;

/// A route edge without a gate.
#[derive(Clone)]
pub(crate) struct Bare {
    name: String,
    control: Channel,
    moves: Channel,
    publish: Channel,
    _connections: [Arc<Connection>; 3],
}

impl Bare {
    /// Declares everything; the edge is shut.
    #[track_caller]
    pub(crate) fn new(vhost: &Vhost, name: &str) -> Self {
        for (exchange, kind, alternate) in
            [("held", "fanout", None), ("lane", "fanout", None), ("in", "direct", Some("held"))]
        {
            let alternate = alternate.map(|alternate| format!("{name}.{alternate}"));
            vhost.declare_exchange(&format!("{name}.{exchange}"), kind, alternate.as_deref());
        }
        for queue in ["held", "lane"] {
            let both = format!("{name}.{queue}");
            vhost.declare_queue(&both);
            vhost.bind(&both, &both, "");
        }
        let connections = [(); 3].map(|()| connect(vhost.url()));
        let [control, moves, publish] = [0, 1, 2].map(|index: usize| channel(&connections[index]));
        let bare = Self { name: name.to_owned(), control, moves, publish, _connections: connections };
        let own = bare.clone();
        on(async move {
            own.publish.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
            let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
            own.control.queue_declare(own.named("owner"), options, FieldTable::default()).await.unwrap();
            own.prepare().await.unwrap();
        });
        bare
    }

    pub(crate) fn named(&self, part: &str) -> lapin::types::ShortString {
        format!("{}.{part}", self.name).into()
    }

    /// Makes what the intake is led to.
    async fn prepare(&self) -> lapin::Result<()> {
        let mut arguments = FieldTable::default();
        let lane = self.named("lane");
        arguments.insert("alternate-exchange".into(), AMQPValue::LongString(lane.as_str().into()));
        let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
        let (edge, none) = (self.named("edge"), FieldTable::default());
        self.control.exchange_declare(edge.clone(), ExchangeKind::Direct, options, arguments).await?;
        let (owner, bind) = (self.named("owner"), QueueBindOptions::default());
        self.control.queue_bind(owner, edge, "never".into(), bind, none).await
    }

    /// Makes the way from the intake to the lane.
    pub(crate) async fn open(&self) -> lapin::Result<()> {
        let (edge, intake, options) = (self.named("edge"), self.named("in"), ExchangeBindOptions::default());
        self.control.exchange_bind(edge, intake, "key".into(), options, FieldTable::default()).await
    }

    /// Takes the way away; how long that takes is the least that any shut takes.
    pub(crate) async fn shut(&self) -> lapin::Result<Duration> {
        let begin = Instant::now();
        let (edge, intake, options) = (self.named("edge"), self.named("in"), ExchangeUnbindOptions::default());
        self.control.exchange_unbind(edge, intake, "key".into(), options, FieldTable::default()).await?;
        Ok(begin.elapsed())
    }

    /// Moves so many messages from a queue to the intake: publish, wait for the confirm, ack.
    pub(crate) async fn move_all(&self, queue: &str, prefetch: u16, messages: usize) -> lapin::Result<()> {
        self.moves.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let (consume, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut consumer: Consumer = self.moves.basic_consume(self.named(queue), "".into(), consume, none).await?;
        let (mut moved, mut in_flight) = (0, FuturesUnordered::new());
        while moved < messages {
            tokio::select! {
                biased;
                Some(done) = in_flight.next(), if !in_flight.is_empty() => {
                    let () = done?;
                    moved += 1;
                }
                Some(delivery) = consumer.next(), if in_flight.len() < IN_FLIGHT => {
                    in_flight.push(self.publish(delivery?).await?);
                }
            }
        }
        self.moves.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await
    }

    async fn publish(&self, delivery: Delivery) -> lapin::Result<impl Future<Output = lapin::Result<()>> + use<>> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties: BasicProperties = delivery.properties.clone();
        let confirm =
            self.publish.basic_publish(self.named("in"), "key".into(), options, &delivery.data, properties).await?;
        Ok(async move {
            assert!(matches!(confirm.await?, Confirmation::Ack(None)));
            delivery.ack(BasicAckOptions::default()).await.map(drop)
        })
    }
}
