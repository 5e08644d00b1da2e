//! A virtual host of one test's own, with what a test does to queues and exchanges.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use async_rs::Runtime;
use futures_util::{StreamExt, future::try_join_all};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    message::{BasicGetMessage, Delivery},
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
        QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::{
    rabbitmq::{self, Broker},
    runtime::{on, spawn},
    tasks::Task,
    wait::eventually,
};

/// How our own connections call themselves to the broker.
const OUR_NAME: &str = "test";

/// Channels of one connection; RabbitMQ allows 2,047, and a test that polls for a queue uses one each time.
const MOST_USES: u32 = 1_500;

/// A virtual host; removed when dropped, with everything in it.
pub(crate) struct Vhost {
    broker: Arc<Broker>,
    name: String,
    connection: Mutex<Arc<Connection>>,
    /// How often a channel has been opened.
    uses: AtomicU32,
}

/// What a passive declare says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    /// Messages that wait; those that a consumer has and has not acknowledged are not among them.
    pub(crate) messages: u32,
    pub(crate) consumers: u32,
}

/// A message that was taken from a queue, and how it came there.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) body: Vec<u8>,
    pub(crate) properties: BasicProperties,
}

impl Message {
    /// The body as text; panics if it is none.
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Celery's `id` header, if it is a task.
    pub(crate) fn task_id(&self) -> Option<String> {
        let id = self.properties.headers().as_ref()?.inner().get("id")?;
        id.as_long_string().map(ToString::to_string)
    }
}

impl From<BasicGetMessage> for Message {
    fn from(message: BasicGetMessage) -> Self {
        message.delivery.into()
    }
}

impl From<Delivery> for Message {
    fn from(delivery: Delivery) -> Self {
        Self {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            body: delivery.data,
            properties: delivery.properties,
        }
    }
}

/// A new virtual host on the shared node, named after the running test.
#[track_caller]
pub(crate) fn vhost() -> Vhost {
    Vhost::on(rabbitmq::shared())
}

impl Vhost {
    /// A new virtual host on this node.
    #[track_caller]
    pub(crate) fn on(broker: Arc<Broker>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let test = thread::current().name().unwrap_or("none").replace("::", ".");
        let name = format!("{test}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        broker.api("PUT", &format!("/vhosts/{}", encode(&name)), Some(&json!({})));
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        broker.api("PUT", &format!("/permissions/{}/guest", encode(&name)), Some(&all));
        let connection = connect(format!("amqp://guest:guest@127.0.0.1:{}/{}", broker.port(), encode(&name)));
        Self { broker, name, connection: Mutex::new(connection), uses: AtomicU32::new(0) }
    }

    pub(crate) fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The address for `broker.url` and for Celery, as guest.
    pub(crate) fn url(&self) -> String {
        self.url_as("guest", "guest", self.broker.port())
    }

    /// The address as another user, or by another port, where a proxy listens.
    pub(crate) fn url_as(&self, user: &str, password: &str, port: u16) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{port}/{}", encode(&self.name))
    }

    /// Adds a user who may do in this virtual host what the three patterns allow. The password is `secret`.
    #[track_caller]
    pub(crate) fn add_user(&self, user: &str, configure: &str, write: &str, read: &str) {
        // Users are the whole broker's, and of two who add the same one at the same time it refuses one.
        static ADDING: Mutex<()> = Mutex::new(());
        let _adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
        let body = json!({"password": "secret", "tags": ""});
        self.broker.api("PUT", &format!("/users/{}", encode(user)), Some(&body));
        let body = json!({"configure": configure, "write": write, "read": read});
        self.broker.api("PUT", &format!("/permissions/{}/{}", encode(&self.name), encode(user)), Some(&body));
    }

    /// Sets a policy; `apply_to` is `queues`, `exchanges` or `all`.
    #[track_caller]
    pub(crate) fn set_policy(&self, name: &str, pattern: &str, apply_to: &str, definition: &Value) {
        let body = json!({"pattern": pattern, "apply-to": apply_to, "definition": definition});
        self.broker.api("PUT", &format!("/policies/{}/{}", encode(&self.name), encode(name)), Some(&body));
    }

    /// Asks the management API about this virtual host: `queues`, `bindings`, `exchanges`, `connections`, `consumers`.
    /// Counts lag there; ask [`Vhost::count`] for them.
    #[track_caller]
    pub(crate) fn list(&self, what: &str) -> Vec<Value> {
        let path = match what {
            "connections" => format!("/vhosts/{}/connections", encode(&self.name)),
            _ => format!("/{what}/{}", encode(&self.name)),
        };
        let answer = self.broker.api("GET", &path, None);
        answer.as_array().unwrap_or_else(|| panic!("{path} gave {answer}")).clone()
    }

    /// The bindings that lead out of an exchange, as (kind of destination, destination, key).
    #[track_caller]
    pub(crate) fn bindings_from(&self, exchange: &str) -> Vec<(String, String, String)> {
        let text = |binding: &Value, key: &str| binding[key].as_str().unwrap().to_owned();
        let all = self.list("bindings");
        let from = all.iter().filter(|binding| binding["source"] == exchange);
        from.map(|b| (text(b, "destination_type"), text(b, "destination"), text(b, "routing_key"))).collect()
    }

    /// Whether the intake `codex` leads to the edge of `worker`. The edge exchange alone says nothing: it is there as long as
    /// the gate owns the worker.
    #[track_caller]
    pub(crate) fn is_open(&self, worker: &str) -> bool {
        let edge = format!("worker-gate.edge.{worker}");
        self.bindings_from("codex").iter().any(|(_, destination, _)| *destination == edge)
    }

    /// Makes the broker close every connection of this virtual host but our own, and says how many that were.
    #[track_caller]
    pub(crate) fn close_connections(&self) -> usize {
        let all = self.list("connections");
        let others: Vec<_> = all.iter().filter(|c| c["user_provided_name"] != OUR_NAME).collect();
        for other in &others {
            let name = other["name"].as_str().unwrap();
            // Its owner may have ended it meanwhile, because another one of its connections was closed.
            let (status, text) =
                self.broker.request("DELETE", &format!("/connections/{}", encode(name)), None).unwrap();
            assert!(matches!(status, 204 | 404 | 500), "{status} {text}");
        }
        others.len()
    }

    /// Declares a durable exchange; `alternate` takes what it cannot route.
    #[track_caller]
    pub(crate) fn declare_exchange(&self, name: &str, kind: &str, alternate: Option<&str>) {
        let (name, kind) = (ShortString::from(name), ExchangeKind::Custom(kind.to_owned()));
        let mut arguments = FieldTable::default();
        if let Some(alternate) = alternate {
            arguments.insert("alternate-exchange".into(), AMQPValue::LongString(alternate.into()));
        }
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        self.with(async move |channel| channel.exchange_declare(name, kind, options, arguments).await).unwrap();
    }

    /// Whether an exchange of this name is there.
    #[track_caller]
    pub(crate) fn has_exchange(&self, name: &str) -> bool {
        let name = ShortString::from(name);
        let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
        let ask = async move |channel: Channel| {
            channel.exchange_declare(name, ExchangeKind::Direct, options, FieldTable::default()).await
        };
        self.found(ask).is_some()
    }

    /// Deletes an exchange with all its bindings; none there is no error.
    #[track_caller]
    pub(crate) fn delete_exchange(&self, name: &str) {
        let name = ShortString::from(name);
        self.with(async move |channel| channel.exchange_delete(name, ExchangeDeleteOptions::default()).await).unwrap();
    }

    /// Declares a durable queue, as Celery does.
    #[track_caller]
    pub(crate) fn declare_queue(&self, name: &str) {
        self.declare_queue_with(name, FieldTable::default());
    }

    /// The same with arguments.
    #[track_caller]
    pub(crate) fn declare_queue_with(&self, name: &str, arguments: FieldTable) {
        let name = ShortString::from(name);
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.with(async move |channel| channel.queue_declare(name, options, arguments).await).unwrap();
    }

    #[track_caller]
    pub(crate) fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let (queue, exchange, key) = (ShortString::from(queue), ShortString::from(exchange), ShortString::from(key));
        let options = QueueBindOptions::default();
        self.with(async move |channel| channel.queue_bind(queue, exchange, key, options, FieldTable::default()).await)
            .unwrap();
    }

    #[track_caller]
    pub(crate) fn unbind(&self, queue: &str, exchange: &str, key: &str) {
        let (queue, exchange, key) = (ShortString::from(queue), ShortString::from(exchange), ShortString::from(key));
        self.with(async move |channel| channel.queue_unbind(queue, exchange, key, FieldTable::default()).await)
            .unwrap();
    }

    /// Publishes persistent messages with confirms; panics if the broker refuses one or cannot route one.
    #[track_caller]
    pub(crate) fn publish<B: Into<Vec<u8>>>(&self, exchange: &str, key: &str, bodies: impl IntoIterator<Item = B>) {
        let persistent = BasicProperties::default().with_delivery_mode(2);
        self.publish_all(exchange, key, bodies.into_iter().map(|body| (body.into(), persistent.clone())).collect());
    }

    /// Publishes tasks as Celery does: to a queue, by the anonymous exchange "", or to an exchange.
    #[track_caller]
    pub(crate) fn publish_tasks(&self, exchange: &str, key: &str, tasks: impl IntoIterator<Item = Task>) {
        self.publish_all(exchange, key, tasks.into_iter().map(|task| task.to_amqp()).collect());
    }

    #[track_caller]
    pub(crate) fn publish_all(&self, exchange: &str, key: &str, messages: Vec<(Vec<u8>, BasicProperties)>) {
        let (exchange, key) = (ShortString::from(exchange), ShortString::from(key));
        let unrouted = self.with(async move |channel| {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let mut confirms = Vec::with_capacity(messages.len());
            for (body, properties) in messages {
                confirms.push(channel.basic_publish(exchange.clone(), key.clone(), options, &body, properties).await?);
            }
            let mut unrouted = 0;
            for confirm in confirms {
                unrouted += usize::from(!matches!(confirm.await?, Confirmation::Ack(None)));
            }
            Ok(unrouted)
        });
        assert_eq!(unrouted.unwrap(), 0, "messages that were not routed to any queue");
    }

    /// What waits in a queue and how many consume it; `None` if there is no such queue.
    #[track_caller]
    pub(crate) fn count(&self, queue: &str) -> Option<Count> {
        let queue = ShortString::from(queue);
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared =
            self.found(async move |channel| channel.queue_declare(queue, options, FieldTable::default()).await)?;
        Some(Count { messages: declared.message_count(), consumers: declared.consumer_count() })
    }

    /// Whether the gate, or anybody, consumes this lane. A gate does by one channel, and by a few spare ones once it is empty.
    #[track_caller]
    pub(crate) fn is_intercepted(&self, lane: &str) -> bool {
        self.count(lane).is_some_and(|lane| (1..=5).contains(&lane.consumers))
    }

    /// How many messages wait in a queue; panics if there is no such queue.
    #[track_caller]
    pub(crate) fn waiting(&self, queue: &str) -> u32 {
        self.count(queue).unwrap_or_else(|| panic!("there is no queue {queue}")).messages
    }

    /// Waits until exactly so many messages wait in a queue, which need not exist yet.
    #[track_caller]
    pub(crate) fn wait_for_messages(&self, bound: Duration, queue: &str, messages: u32) {
        let mut seen = None;
        let what = format!("{messages} messages in {queue}");
        eventually(bound, &what, || {
            let now = self.count(queue);
            if now != seen {
                seen = now;
                eprintln!("{queue}: {seen:?}");
            }
            now.is_some_and(|now| now.messages == messages).then_some(())
        });
    }

    /// Takes every message that waits in a queue, oldest first.
    #[track_caller]
    pub(crate) fn drain(&self, queue: &str) -> Vec<Message> {
        let queue = ShortString::from(queue);
        let (mut all, mut drained) = (Vec::new(), false);
        while !drained {
            let queue = queue.clone();
            let some = self.with(async move |channel| {
                // Some at once, which come in their order: one by one, 60,000 take more than a minute on a slow machine.
                const ROUNDS: usize = 100;
                const AT_ONCE: usize = 20;
                let mut some = Vec::new();
                for _ in 0..ROUNDS {
                    let get = |_| channel.basic_get(queue.clone(), BasicGetOptions { no_ack: true });
                    let got = try_join_all((0..AT_ONCE).map(get)).await?;
                    let drained = got.iter().any(Option::is_none);
                    some.extend(got.into_iter().flatten().map(Message::from));
                    if drained {
                        return Ok((some, true));
                    }
                }
                Ok((some, false))
            });
            let (some, is_empty) = some.unwrap();
            all.extend(some);
            drained = is_empty;
        }
        all
    }

    /// Consumes a queue without any limit and acknowledges nothing, for as long as the value lives.
    #[track_caller]
    pub(crate) fn consume(&self, queue: &str) -> Consumer {
        self.consume_up_to(queue, 0)
    }

    /// Consumes a queue with one message in hand for ever, as a worker does that is busy.
    #[track_caller]
    pub(crate) fn consume_nothing(&self, queue: &str) -> Consumer {
        self.consume_up_to(queue, 1)
    }

    #[track_caller]
    fn consume_up_to(&self, queue: &str, prefetch: u16) -> Consumer {
        let (connection, queue) = (connect(self.url()), ShortString::from(queue));
        let channel = channel(&connection);
        let mut deliveries = on(async move {
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            channel.basic_consume(queue, "test".into(), BasicConsumeOptions::default(), FieldTable::default()).await
        })
        .unwrap();
        let messages = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&messages);
        spawn(async move {
            while let Some(Ok(delivery)) = deliveries.next().await {
                taken.lock().unwrap().push(Message::from(delivery));
            }
        });
        Consumer { messages, connection }
    }

    /// Throws away what waits in a queue and says how many that were.
    #[track_caller]
    pub(crate) fn purge(&self, queue: &str) -> u32 {
        let queue = ShortString::from(queue);
        self.with(async move |channel| channel.queue_purge(queue, QueuePurgeOptions::default()).await).unwrap()
    }

    #[track_caller]
    pub(crate) fn delete_queue(&self, queue: &str) {
        let queue = ShortString::from(queue);
        self.with(async move |channel| channel.queue_delete(queue, QueueDeleteOptions::default()).await).unwrap();
    }

    /// `None` if the broker answers 404; panics on any other error.
    #[track_caller]
    fn found<T, F>(&self, ask: impl FnOnce(Channel) -> F + Send + 'static) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = lapin::Result<T>> + Send + 'static,
    {
        match self.with(ask) {
            Ok(found) => Some(found),
            Err(e) if matches!(e.kind(), lapin::ErrorKind::ProtocolError(e) if e.get_id() == 404) => None,
            Err(e) => panic!("{e}"),
        }
    }

    /// Runs `work` on a channel of its own: an error ends the channel, and must not end the next operation's.
    #[track_caller]
    fn with<T, F>(&self, work: impl FnOnce(Channel) -> F + Send + 'static) -> lapin::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = lapin::Result<T>> + Send + 'static,
    {
        let connection = {
            let mut connection = self.connection.lock().unwrap();
            // Its node was started again; or lapin, which keeps the numbers of channels that ended with an error, has run
            // out of them.
            let uses = self.uses.fetch_add(1, Ordering::Relaxed);
            if !connection.status().connected() || uses % MOST_USES == MOST_USES - 1 {
                *connection = connect(self.url());
            }
            Arc::clone(&connection)
        };
        on(async move {
            let channel = connection.create_channel().await?;
            let result = work(channel.clone()).await;
            if channel.status().connected() {
                let _ = channel.close(200, "done".into()).await;
            }
            result
        })
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let path = format!("/vhosts/{}", encode(&self.name));
        // A test may have killed its node, and nobody is there to be told.
        let _ = self.broker.request("DELETE", &path, None);
    }
}

/// A consumer that keeps what it gets. Dropping it gives everything back to the broker.
pub(crate) struct Consumer {
    messages: Arc<Mutex<Vec<Message>>>,
    connection: Arc<Connection>,
}

impl Consumer {
    /// How many it has been given.
    pub(crate) fn count(&self) -> usize {
        self.messages.lock().unwrap().len()
    }

    /// What it has been given, in order.
    pub(crate) fn take(self) -> Vec<Message> {
        std::mem::take(&mut *self.messages.lock().unwrap())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let connection = Arc::clone(&self.connection);
        // The broker may have ended it already.
        let _ = on(async move { connection.close(200, "done".into()).await });
    }
}

/// Opens a connection; panics if the broker does not let us in.
#[track_caller]
pub(crate) fn connect(url: String) -> Arc<Connection> {
    let connected = on(async move {
        let properties = ConnectionProperties::default().with_connection_name(OUR_NAME.into());
        Connection::connect_with_runtime(&url, properties, Runtime::tokio_current()).await
    });
    Arc::new(connected.unwrap())
}

/// Opens a channel on a connection that must be able to.
#[track_caller]
pub(crate) fn channel(connection: &Arc<Connection>) -> Channel {
    let connection = Arc::clone(connection);
    on(async move { connection.create_channel().await }).unwrap()
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
