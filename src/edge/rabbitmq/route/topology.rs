//! What a route edge needs on the broker, declared so that each refusal says what to change (DESIGN.md 4.1).

use futures_util::{future::try_join_all, try_join};
use lapin::{
    Channel, ExchangeKind,
    options::{
        ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, ExchangeUnbindOptions, QueueBindOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};

use super::names::Names;
pub(super) use crate::edge::rabbitmq::wire::{count, open, publishing};
use crate::{
    amqp::Link,
    edge::{
        fault::{Fault, is_refusal, within},
        rabbitmq::wire,
    },
    failpoint::{self, Point},
    settings::{IntakeType, RouteIntake, Worker},
};

/// What all declarations of one worker share.
#[derive(Debug)]
pub(super) struct Topology<'a> {
    pub(super) names: &'a Names,
    pub(super) worker: &'a Worker,
    pub(super) intake: &'a RouteIntake,
    /// For the commands in remedies.
    pub(super) vhost: &'a str,
    pub(super) user: &'a str,
}

impl Topology<'_> {
    /// Declares everything that outlives the gate. Each declaration that can be refused gets a channel of its own, because a
    /// refusal ends the channel.
    ///
    /// Says whether the intake has its alternate exchange as an argument; if not, only a probe message can tell.
    pub(super) async fn declare(&self, control: &Link) -> Result<bool, Fault> {
        let names = self.names;
        if let Some(shared) = &names.shared {
            self.shared(control, shared).await?;
        }
        let channel = open(control).await?;
        self.declare_holding(&channel).await?;
        // Its alternate exchange keeps what comes while somebody has deleted the lane.
        self.exchange(&channel, &names.lane_exchange, ExchangeKind::Fanout, Some(&names.intake_held)).await?;
        let is_plain = self.intake(control).await?;
        self.lane(control).await?;
        // A binding from the intake straight to the lane would pass the edge by.
        for key in &self.intake.keys {
            self.unbind_foreign(&channel, key).await?;
        }
        let _ = channel.close(200, "done".into()).await;
        Ok(is_plain)
    }

    /// What is behind the intake: where messages wait. All in one go, because the broker does what a channel asks for in the
    /// order in which it is asked, and answers so: if something is refused, it is the first that has no answer.
    pub(super) async fn declare_holding(&self, channel: &Channel) -> Result<(), Fault> {
        let names = self.names;
        if let Some(shared) = &names.shared {
            return try_join!(
                self.exchange(channel, &names.intake_held, ExchangeKind::Fanout, None),
                self.bind(channel, shared, &names.intake_held, ""),
            )
            .map(drop);
        }
        match self.intake.kind {
            IntakeType::Direct | IntakeType::Topic => {
                let bind = async |key: &String| self.bind(channel, &names.lane_held, &names.intake_held, key).await;
                try_join!(
                    self.exchange(channel, &names.unrouted, ExchangeKind::Fanout, None),
                    self.queue(channel, &names.unrouted),
                    self.bind(channel, &names.unrouted, &names.unrouted, ""),
                    self.exchange(channel, &names.intake_held, kind(self.intake.kind), Some(&names.unrouted)),
                    self.queue(channel, &names.lane_held),
                    try_join_all(self.intake.keys.iter().map(bind)),
                )
                .map(drop)
            }
            IntakeType::ConsistentHash => try_join!(
                self.exchange(channel, &names.intake_held, ExchangeKind::Fanout, None),
                self.queue(channel, &names.intake_held),
                self.bind(channel, &names.intake_held, &names.intake_held, ""),
                self.queue(channel, &names.lane_held),
            )
            .map(drop),
        }
    }

    /// The queue that producers and other gates share. It is theirs, with whatever arguments; only where it is missing it is
    /// made, as Celery makes a queue.
    async fn shared(&self, control: &Link, shared: &ShortString) -> Result<(), Fault> {
        match wire::count_if_there(control, shared).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                let channel = open(control).await?;
                self.queue(&channel, shared).await?;
                let _ = channel.close(200, "done".into()).await;
                Ok(())
            }
            Err(fault) => self.permit(Err(fault), shared.as_str()),
        }
    }

    /// Removes a binding from the intake straight to the lane; none there is no error.
    pub(super) async fn unbind_foreign(&self, channel: &Channel, key: &str) -> Result<(), Fault> {
        let names = self.names;
        let unbind = channel.queue_unbind(names.lane.clone(), names.intake.clone(), key.into(), FieldTable::default());
        self.refine(within("unbind the lane from the intake", unbind).await, &names.lane)
    }

    /// Makes the edge exchange, which vanishes with the owner queue. No message comes to it until it is opened.
    pub(super) async fn declare_edge(&self, channel: &Channel) -> Result<(), Fault> {
        let names = self.names;
        let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
        let alternate = with_alternate(Some(&names.lane_exchange));
        let declare = channel.exchange_declare(names.edge.clone(), ExchangeKind::Direct, options, alternate);
        let declare = async { self.refine(within("declare the edge", declare).await, &names.edge) };
        try_join!(declare, self.bind(channel, &names.owner, &names.edge, &names.never)).map(drop)
    }

    /// Takes away what a gate before this one may have left of the edge; nothing there is no error.
    pub(super) async fn clear_edge(&self, channel: &Channel) -> Result<(), Fault> {
        let delete = channel.exchange_delete(self.names.edge.clone(), ExchangeDeleteOptions::default());
        self.refine(within("shut the edge", delete).await, &self.names.edge)
    }

    /// Gives the worker up: the owner queue goes, and the edge exchange with it.
    pub(super) async fn disown(&self, channel: &Channel) -> Result<(), Fault> {
        let delete = channel.queue_delete(self.names.owner.clone(), QueueDeleteOptions::default());
        self.refine(within("give the worker up", delete).await.map(drop), &self.names.owner)
    }

    /// Leads the intake to the edge exchange.
    pub(super) async fn open_edge(&self, channel: &Channel) -> Result<(), Fault> {
        let bind = async |key: &String| {
            let (edge, intake) = (self.names.edge.clone(), self.names.intake.clone());
            let (options, arguments) = (ExchangeBindOptions::default(), FieldTable::default());
            let bind = channel.exchange_bind(edge, intake, key.as_str().into(), options, arguments);
            let bound = self.refine(within("open the edge", bind).await, &self.names.edge);
            bound.inspect(|()| failpoint::hit(Point::OpenKeyBound))
        };
        try_join_all(self.intake.keys.iter().map(bind)).await.map(drop)
    }

    /// Takes the way away. The broker answers when no message can go it any more; a way that is not there is no error, but it
    /// ends the channel.
    ///
    /// The edge exchange stays. RabbitMQ looks up where a message goes and then the exchange of that name, so a message that
    /// is under way while the exchange is deleted finds nothing: it is confirmed, and nobody has it. That happened to 4 of
    /// 374,000 messages in 932 deletions (RabbitMQ 3.10.8), and to none when only the binding went.
    pub(super) async fn shut_edge(&self, channel: &Channel) -> Result<(), Fault> {
        let unbind = async |key: &String| {
            let (edge, intake) = (self.names.edge.clone(), self.names.intake.clone());
            let (options, arguments) = (ExchangeUnbindOptions::default(), FieldTable::default());
            let unbind = channel.exchange_unbind(edge, intake, key.as_str().into(), options, arguments);
            let unbound = self.refine(within("shut the edge", unbind).await, &self.names.edge);
            unbound.inspect(|()| failpoint::hit(Point::ShutKeyUnbound))
        };
        match try_join_all(self.intake.keys.iter().map(unbind)).await {
            Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => Ok(()),
            unbound => unbound.map(drop),
        }
    }

    /// Declares the intake as it should be.
    pub(super) async fn declare_intake(&self, channel: &Channel) -> Result<(), Fault> {
        let names = self.names;
        self.exchange(channel, &names.intake, kind(self.intake.kind), Some(&names.intake_held)).await
    }

    /// The intake. False if it exists without its alternate exchange as an argument, which a policy may give it instead.
    pub(super) async fn intake(&self, control: &Link) -> Result<bool, Fault> {
        let names = self.names;
        let channel = open(control).await?;
        let detail = match self.declare_intake(&channel).await {
            Ok(()) => {
                let _ = channel.close(200, "done".into()).await;
                return Ok(true);
            }
            Err(Fault::Topology { detail, .. }) => detail,
            Err(fault) => return Err(fault),
        };
        let problem = |detail: String, remedy: String| {
            Err(Fault::Topology { doing: format!("use the exchange {} as the intake", names.intake), detail, remedy })
        };
        if detail.contains("'type'") {
            return problem(
                format!("it exists with another type than settings say ({detail})"),
                format!(
                    "set workers.intake.type to its real type, or delete the exchange: rabbitmqadmin delete exchange name={}",
                    names.intake
                ),
            );
        }
        if detail.contains("unknown exchange type") {
            return problem(detail, "run: rabbitmq-plugins enable rabbitmq_consistent_hash_exchange".to_owned());
        }
        if !detail.contains("'alternate-exchange'") {
            return problem(
                format!("it exists with other properties than an intake needs ({detail})"),
                "an intake is durable, not auto-delete and not internal: delete it, and the gate declares it"
                    .to_owned(),
            );
        }
        if self.intake.kind == IntakeType::ConsistentHash || names.shared.is_some() {
            // A probe message would go to whichever worker is fit, so a policy cannot be proven here.
            return problem(
                format!("it exists without {} as its alternate-exchange argument", names.intake_held),
                "delete the exchange while no producer runs; the gate declares it with the argument".to_owned(),
            );
        }
        Ok(false)
    }

    /// The lane, and its binding to the lane exchange.
    pub(super) async fn lane(&self, control: &Link) -> Result<(), Fault> {
        self.declare_lane(control).await?;
        let channel = open(control).await?;
        self.bind(&channel, &self.names.lane, &self.names.lane_exchange, "").await?;
        let _ = channel.close(200, "done".into()).await;
        Ok(())
    }

    async fn declare_lane(&self, control: &Link) -> Result<(), Fault> {
        let lane = &self.names.lane;
        let channel = open(control).await?;
        let arguments = arguments(&self.worker.queue_arguments);
        let declare = channel.queue_declare(lane.clone(), QueueDeclareOptions::durable(), arguments);
        match self.refine(within("declare the lane", declare).await.map(drop), lane) {
            Ok(()) => {
                let _ = channel.close(200, "done".into()).await;
                Ok(())
            }
            // The worker declared it first, with other arguments: then it is the worker's, and only has to be there.
            Err(Fault::Topology { detail, .. }) => {
                tracing::warn!(worker = %self.worker.name, detail, "the lane exists with other arguments than settings say");
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    async fn exchange(
        &self,
        channel: &Channel,
        name: &ShortString,
        kind: ExchangeKind,
        alternate: Option<&ShortString>,
    ) -> Result<(), Fault> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declare = channel.exchange_declare(name.clone(), kind, options, with_alternate(alternate));
        self.refine(within(&format!("declare the exchange {name}"), declare).await, name)
    }

    async fn queue(&self, channel: &Channel, name: &ShortString) -> Result<(), Fault> {
        let declare = channel.queue_declare(name.clone(), QueueDeclareOptions::durable(), FieldTable::default());
        self.refine(within(&format!("declare the queue {name}"), declare).await.map(drop), name)
    }

    async fn bind(&self, channel: &Channel, queue: &ShortString, to: &ShortString, key: &str) -> Result<(), Fault> {
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let bind = channel.queue_bind(queue.clone(), to.clone(), key.into(), options, arguments);
        self.refine(within(&format!("bind the queue {queue} to {to}"), bind).await, queue)
    }

    /// Tells a missing permission apart from everything else, with the command that gives it. `names` is what narrower
    /// patterns have to cover.
    pub(super) fn permit<T>(&self, outcome: Result<T, Fault>, names: &str) -> Result<T, Fault> {
        outcome.map_err(|fault| fault.permission(self.vhost, self.user, names))
    }

    /// Tells a missing permission and a clash of declarations apart from everything else, each with its remedy.
    pub(super) fn refine<T>(&self, outcome: Result<T, Fault>, name: &ShortString) -> Result<T, Fault> {
        let outcome = self.permit(outcome, name.as_str());
        let Err(Fault::Command { doing, error }) = outcome else { return outcome };
        let lapin::ErrorKind::ProtocolError(refusal) = error.kind() else {
            return Err(Fault::Command { doing, error });
        };
        let detail = refusal.get_message().to_string();
        Err(match refusal.get_id() {
            406 | 503 => Fault::Topology {
                doing,
                detail,
                remedy: format!("delete {name} or rename it in the settings: it exists with other properties"),
            },
            _ => Fault::Command { doing, error },
        })
    }
}

/// How many messages wait in a queue, not counting those that a consumer holds.
pub(super) async fn waiting(channel: &Channel, queue: &ShortString) -> Result<u64, Fault> {
    Ok(u64::from(count(channel, queue).await?.message_count()))
}

fn kind(kind: IntakeType) -> ExchangeKind {
    match kind {
        IntakeType::Direct => ExchangeKind::Direct,
        IntakeType::Topic => ExchangeKind::Topic,
        IntakeType::ConsistentHash => ExchangeKind::Custom(kind.as_str().to_owned()),
    }
}

fn with_alternate(alternate: Option<&ShortString>) -> FieldTable {
    let mut arguments = FieldTable::default();
    if let Some(alternate) = alternate {
        arguments.insert("alternate-exchange".into(), AMQPValue::LongString(alternate.as_str().into()));
    }
    arguments
}

/// A queue's arguments as Celery would send them: numbers as signed integers, text as long strings.
fn arguments(table: &toml::Table) -> FieldTable {
    let mut arguments = FieldTable::default();
    for (key, value) in table {
        let value = match value {
            toml::Value::String(text) => AMQPValue::LongString(text.as_str().into()),
            toml::Value::Integer(number) => AMQPValue::LongLongInt(*number),
            toml::Value::Float(number) => AMQPValue::Double(*number),
            toml::Value::Boolean(truth) => AMQPValue::Boolean(*truth),
            toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                AMQPValue::LongString(value.to_string().into())
            }
        };
        arguments.insert(key.as_str().into(), value);
    }
    arguments
}
