//! What is done with an event between the broker and where it goes.

use std::{
    borrow::Cow,
    io::{self, Write},
    ops::ControlFlow,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    Event, EventsError, Subscription, Target,
    counts::{Counts, Place},
    field,
    patience::Patience,
    time_of,
};
use crate::{
    amqp::Retry,
    cli::line::{line, text, word},
};

/// A subscription at work.
pub(super) struct View<'a> {
    subscription: Subscription,
    /// Of a durable subscription, what is older is passed over.
    oldest: Option<Timestamp>,
    counts: Counts,
    out: &'a mut (dyn Write + Send),
    notes: &'a mut (dyn Write + Send),
}

impl<'a> View<'a> {
    pub(super) fn new(
        subscription: Subscription,
        now: Timestamp,
        out: &'a mut (dyn Write + Send),
        notes: &'a mut (dyn Write + Send),
    ) -> Self {
        let before = |since: Duration| now.checked_sub(SignedDuration::try_from(since).ok()?).ok();
        let oldest = subscription.since.filter(|_| subscription.durable.is_some()).and_then(before);
        Self { subscription, oldest, counts: Counts::default(), out, notes }
    }

    /// The name under which the broker keeps what comes while we are away.
    pub(super) fn durable(&self) -> Option<&str> {
        self.subscription.durable.as_deref()
    }

    pub(super) fn since(&self) -> Option<Duration> {
        self.subscription.since
    }

    /// Brings an event where it goes, or breaks if nobody reads any more. When this has come back, the broker may forget the
    /// event: it was delivered, or given up and noted.
    pub(super) async fn handle(&mut self, body: &[u8]) -> io::Result<ControlFlow<()>> {
        let Ok(event) = serde_json::from_slice::<Event>(body) else {
            let start = String::from_utf8_lossy(&body[..body.len().min(80)]);
            self.note(&format!("somebody published what is not an event: {}", word(&start.into())))?;
            return Ok(ControlFlow::Continue(()));
        };
        match self.counts.take(&event) {
            Place::Next => {}
            Place::After(missed) => self.note(&missed.to_string())?,
            Place::Again => return Ok(ControlFlow::Continue(())),
        }
        let flow = if self.takes(&event) { self.bring(&event, body).await? } else { ControlFlow::Continue(()) };
        self.counts.handled(&event);
        Ok(flow)
    }

    fn takes(&self, event: &Event) -> bool {
        let is_old = || self.oldest.is_some_and(|oldest| time_of(event).is_some_and(|time| time < oldest));
        self.subscription.filter.takes(event) && !is_old()
    }

    async fn bring(&mut self, event: &Event, body: &[u8]) -> io::Result<ControlFlow<()>> {
        let published = one_line(event, body);
        let printed = match &self.subscription.target {
            Target::Lines => self.print(&line(event)),
            Target::Json => self.print(&published),
            Target::Program(_) | Target::Webhook(_) => return self.deliver(event, &published).await,
        };
        match printed {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(err) => Err(err),
        }
    }

    fn print(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Delivers an event, as often as it takes or as patience lasts.
    async fn deliver(&mut self, event: &Event, published: &str) -> io::Result<ControlFlow<()>> {
        let (mut patience, mut failures) = (self.patience(), 0);
        while let Err(why) = self.attempt(event, published).await {
            failures += 1;
            let what = described(event);
            let Some(pause) = patience.after_failure(Instant::now()) else {
                self.note(&format!("{what} is passed over: {why}"))?;
                return Ok(ControlFlow::Continue(()));
            };
            self.note(&format!("{what} waits: {why}; trying again"))?;
            // A receiver that comes back is not run over by all its senders at once.
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        }
        if failures > 0 {
            self.note(&format!("{} is delivered, after {failures} failed attempts", described(event)))?;
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn attempt(&mut self, event: &Event, published: &str) -> Result<(), String> {
        match &mut self.subscription.target {
            Target::Program(exec) => exec.run(event, published).await,
            Target::Webhook(webhook) => webhook.post(event, published).await,
            Target::Lines | Target::Json => Ok(()),
        }
    }

    fn patience(&self) -> Patience {
        match (&self.subscription.durable, &self.subscription.target) {
            (Some(_), _) => Patience::endless(),
            (None, Target::Webhook(_)) => Patience::a_minute(),
            // A program that failed says why itself, and a second run may do half of its work twice.
            (None, Target::Program(_) | Target::Lines | Target::Json) => Patience::none(),
        }
    }

    /// Takes in that an attempt to come back has failed; it was the last one if waiting will not mend it.
    pub(super) fn failed(&mut self, error: EventsError) -> Result<(), EventsError> {
        if error.retry() == Retry::NeedsPerson {
            return Err(error);
        }
        Ok(self.note(&format!("failed to {error}; trying again"))?)
    }

    pub(super) fn note(&mut self, note: &str) -> io::Result<()> {
        writeln!(self.notes, "worker-gate events: {note}")
    }

    /// Ends what is still being done for an event.
    pub(super) async fn stop(&mut self) {
        match &mut self.subscription.target {
            Target::Program(exec) => exec.stop().await,
            Target::Lines | Target::Json | Target::Webhook(_) => {}
        }
    }
}

/// As it was published, to the byte, unless that would not be one line.
fn one_line<'a>(event: &Event, body: &'a [u8]) -> Cow<'a, str> {
    match str::from_utf8(body) {
        Ok(text) if !text.contains(['\n', '\r']) => text.into(),
        Ok(_) | Err(_) => Value::from(event.clone()).to_string().into(),
    }
}

/// Which event, for people.
fn described(event: &Event) -> String {
    let mut what = format!("{} of {}", text(event, "type"), text(event, "hostname"));
    if event.contains_key("seq") && !field(event, "gate").is_empty() {
        what = format!("{what} (seq {} of gate {})", text(event, "seq"), text(event, "gate"));
    }
    what
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::events::Filter;

    const ADMITTED: &str = r#"{"type":"worker-admitted","worker_name":"codex-0","timestamp":1.50}"#;
    const BEAT: &str = r#"{"type":"gate-heartbeat","hostname":"worker-gate@g"}"#;

    fn subscription(target: Target) -> Subscription {
        Subscription { filter: Filter::default(), since: None, durable: None, target }
    }

    async fn shown(subscription: Subscription, bodies: &[&str]) -> (String, String) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let now = "2026-11-22T10:00:00Z".parse().unwrap();
        let mut view = View::new(subscription, now, &mut out, &mut notes);
        for body in bodies {
            assert!(view.handle(body.as_bytes()).await.unwrap().is_continue());
        }
        (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
    }

    #[tokio::test]
    async fn json_is_what_was_published_one_object_a_line() {
        let spread = "{\"type\":\n\"x\"}";
        let (out, _) = shown(subscription(Target::Json), &[ADMITTED, BEAT, spread]).await;
        assert_eq!(out, format!("{ADMITTED}\n{BEAT}\n{{\"type\":\"x\"}}\n"));
    }

    #[tokio::test]
    async fn what_is_not_an_event_is_noted_and_not_shown() {
        let (out, notes) = shown(subscription(Target::Json), &["[1]", "\u{1b}[2J"]).await;
        assert_eq!(out, "");
        assert_eq!(notes.lines().count(), 2);
        assert!(!notes.contains('\u{1b}'), "{notes:?}");
    }

    #[tokio::test]
    async fn holes_are_counted_over_all_events_and_repetitions_are_not_shown() {
        let event = |seq: u32, kind: &str| format!(r#"{{"type":"{kind}","id":"{seq:02}","gate":"g","seq":{seq}}}"#);
        let bodies = [event(1, "a"), event(2, "b"), event(3, "a"), event(3, "a"), event(6, "a")];
        let mut only_a = subscription(Target::Json);
        only_a.filter.kinds.push("a".to_owned());
        let (out, notes) = shown(only_a, &bodies.each_ref().map(String::as_str)).await;
        assert_eq!(out, [&bodies[0], &bodies[2], &bodies[4]].map(|body| format!("{body}\n")).concat());
        assert_eq!(notes, "worker-gate events: missed 2 events of gate g (seq 4 to 5)\n");
    }

    #[tokio::test]
    async fn a_durable_subscriber_passes_over_what_is_older_than_it_asked_for() {
        // Ten minutes before, and one.
        let old = r#"{"type":"old","timestamp":1795341000.0}"#;
        let new = r#"{"type":"new","timestamp":1795341540.0}"#;
        let since = Some(Duration::from_secs(120));
        let durable = Subscription { since, durable: Some("n".into()), ..subscription(Target::Json) };
        let (out, _) = shown(durable, &[old, new, BEAT]).await;
        assert_eq!(out, format!("{new}\n{BEAT}\n"));
    }

    #[test]
    fn an_event_is_described_by_what_whose_and_where_it_stands() {
        let described = |json: &str| described(&serde_json::from_str(json).unwrap());
        assert_eq!(
            described(r#"{"type":"worker-held","hostname":"w","gate":"g","seq":3}"#),
            "worker-held of w (seq 3 of gate g)"
        );
        assert_eq!(described(r#"{"type":"\u001b","hostname":"w"}"#), "\\u{1b} of w");
    }
}
