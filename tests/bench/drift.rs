//! From an edit of the managed config to a shut edge, three times in one run: by the gate, by the least that could do it,
//! and by what people do without a gate. Everything is timed by the wall clock from just before the rename.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use lapin::{Channel, Connection, options::BasicGetOptions};

use crate::{
    lane::Lane,
    support::{
        facts::{Fact, Facts},
        gate::{GATE, Host, MANAGED},
        process::command,
        runtime::on,
        vhost::{Vhost, channel, connect, vhost},
        wait::until,
    },
    table::{Sample, Table},
};

mod floor;
mod producer;
pub(crate) mod thousand;
mod today;

use floor::Floor;
use producer::{Pace, Producer, Sent};

const EDITS: usize = 200;
const SOON: Duration = Duration::from_secs(60);
const LANE: &str = "codex-0";
pub(crate) const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";

/// The gate's log has in it when lapin heard the broker's answer, to the microsecond: the line that begins with the time and
/// ends with [`UNBOUND`]. Writing it takes a few microseconds, and the gate has them to pay.
const FILTER: &str = "info,lapin=off,lapin::promise=trace";
const UNBOUND: &str = "Resolving promise. promise=[exchange.unbind]";

pub(crate) fn measure() -> Vec<Table> {
    let (vhost, host) = (vhost(), Host::new("today"));
    let today = today::measure(&vhost, &host);
    vec![edits(Pace::Steady, &today), edits(Pace::Full, &today)]
}

fn edits(pace: Pace, today: &Sample) -> Table {
    let (vhost, host) = (vhost(), Host::new("drift"));
    let mut settings = settings(&host, &vhost.url());
    host.add_worker(&mut settings, LANE, &intake(LANE));
    let mut facts = Facts::of(&vhost);
    let gate = host.start_logging(command(GATE), &settings, FILTER);
    facts.next(SOON, "worker-admitted", LANE);
    let floor = Floor::new(&vhost, &host);
    let held = Held::new(&vhost);
    let lane = Lane::consume(&vhost, LANE);
    let mut times = Times::default();
    for _ in 0..EDITS {
        let producer = Producer::start(&vhost, "codex", LANE, pace);
        let flowing = lane.wait(SOON, 1);
        // The edits must not keep step with anybody's looks at the file.
        pause();
        times.floor.push_time(floor.round());
        pause();
        let edited = edit(&host, &host.profile(), DRIFTED);
        let decided = told_at(&facts.next(SOON, "worker-config-drifted", LANE));
        facts.next(SOON, "worker-quarantined", LANE);
        let shut = answered_at(&gate.log());
        assert!(shut > edited, "the gate's log has no line of this shut");
        times.decided.push_time(since(edited, decided));
        times.shut.push_time(since(edited, shut));
        let sent = producer.stop();
        times.count(&held, flowing.len(), &lane, &sent, (edited, shut));
        edit(&host, &host.profile(), MANAGED);
        facts.next(SOON, "worker-admitted", LANE);
        floor.mend();
        lane.take();
    }
    assert!(gate.stop().success());
    times.table(pace, today)
}

#[derive(Default)]
struct Times {
    decided: Sample,
    shut: Sample,
    floor: Sample,
    held: Sample,
    rate: Sample,
    /// Published after the broker's confirmation, and yet the worker got them.
    late: f64,
    /// The same, of those behind the first one that was held.
    behind: f64,
    messages: usize,
}

impl Times {
    /// Where the messages of one edit went. So many have been seen in the lane while it was open.
    fn count(
        &mut self,
        held: &Held,
        seen: usize,
        lane: &Lane,
        sent: &[Sent],
        (edited, shut): (SystemTime, SystemTime),
    ) {
        let mut came = Vec::new();
        // Also says that none of them is lost.
        until(SOON, "every message is in the lane or held", || {
            came.extend(lane.take().iter().map(|arrival| producer::number(&arrival.body)));
            seen + came.len() + held.waiting() >= sent.len()
        });
        let first = held.first();
        held.purge();
        self.held.push_time(since(edited, sent[first].confirmed));
        self.rate.push(producer::rate(sent, edited));
        let count =
            |is: &dyn Fn(usize) -> bool| f64::from(u32::try_from(came.iter().filter(|n| is(**n)).count()).unwrap());
        self.late += count(&|n| sent[n].at > shut);
        self.behind += count(&|n| n > first);
        self.messages += sent.len();
    }

    fn table(&self, pace: Pace, today: &Sample) -> Table {
        let (median, floor) = (self.shut.median(), self.floor.median());
        let mut table = Table::new(format!(
            "drift: {EDITS} edits of the profile by a rename, at {:.0} messages a second",
            self.rate.median()
        ));
        table.row("(a) rename -> decided", "ms", &self.decided);
        table.row("(b) rename -> shut, confirmed by the broker", "ms", &self.shut).against("the floor", &self.floor);
        table.at_most(5.0);
        table.row("  its median, in the floor's median", "x", &Sample::one(median / floor)).at_most(2.0);
        table
            .row("  its 99th percentile, in the floor's median", "x", &Sample::one(self.shut.p99() / floor))
            .at_most(5.0);
        let p99s = Sample::one(self.shut.p99() / self.floor.p99());
        table.row("  the same, in the floor's 99th percentile", "x", &p99s);
        table.row("  its median, in today's", "x", &Sample::one(median / today.median())).at_most(0.02);
        table.row("floor: inotify and one exchange.unbind", "ms", &self.floor);
        table.row("today: inotifywait, celery control cancel_consumer", "ms", today);
        table.row("(c) rename -> confirm of the first message that is held", "ms", &self.held);
        table.row("published after (b), and the worker got it", "messages", &Sample::one(self.late)).at_most(0.0);
        table.row("published after the first held one, and the worker got it", "messages", &Sample::one(self.behind));
        table.at_most(0.0);
        let pace = match pace {
            Pace::Steady => "a message a millisecond",
            Pace::Full => "as fast as the broker takes them, 200 unconfirmed at a time",
        };
        table.note(format!("{} messages in all, {pace}; none is lost", self.messages));
        table.note("the floor is edited in turn with the gate, beside the same producer");
        table.note(format!(
            "today's script: {} edits only, as each takes a second, and nothing is published",
            today::EDITS
        ));
        table
    }
}

/// The holding queue.
struct Held<'a> {
    vhost: &'a Vhost,
    channel: Channel,
    _connection: Arc<Connection>,
}

impl<'a> Held<'a> {
    const QUEUE: &'static str = "codex-0.held";

    fn new(vhost: &'a Vhost) -> Self {
        let connection = connect(vhost.url());
        Self { vhost, channel: channel(&connection), _connection: connection }
    }

    fn waiting(&self) -> usize {
        self.vhost.waiting(Self::QUEUE) as usize
    }

    /// The number of the first message that came from the intake itself. What the intercept took out of the lane has a header
    /// that says so.
    fn first(&self) -> usize {
        let channel = self.channel.clone();
        on(async move {
            let options = BasicGetOptions { no_ack: true };
            while let Some(message) = channel.basic_get(Self::QUEUE.into(), options).await.unwrap() {
                let headers = message.delivery.properties.headers().as_ref();
                if !headers.is_some_and(|headers| headers.inner().contains_key("x-worker-gate-moved")) {
                    return producer::number(&message.delivery.data);
                }
            }
            panic!("nothing was held");
        })
    }

    fn purge(&self) {
        self.vhost.purge(Self::QUEUE);
    }
}

/// The settings of all gates here, but for their workers. Nothing but an edit is to happen: checks run at the start only.
pub(crate) fn settings(host: &Host, url: &str) -> String {
    let mut settings = host.settings_without_workers(url);
    for (test, bench) in [
        ("heartbeat = \"1s\"\n", ""),
        ("max_age = \"20s\"\n", "max_age = \"3h\"\n"),
        ("every = \"1s\"\n", "every = \"1h\"\n"),
    ] {
        assert!(settings.contains(test), "{settings}");
        settings = settings.replace(test, bench);
    }
    settings
}

/// The direct intake that all workers share, and a key.
fn intake(key: &str) -> String {
    format!(r#"exchange = "codex", type = "direct", keys = ["{key}"]"#)
}

/// Replaces a file by a rename, and says when that began. The new text is prepared where nobody watches.
fn edit(host: &Host, file: &Path, text: &str) -> SystemTime {
    let new: PathBuf = host.state_dir().with_file_name("edit");
    fs::write(&new, text).unwrap();
    let at = SystemTime::now();
    fs::rename(new, file).unwrap();
    at
}

fn pause() {
    thread::sleep(Duration::from_millis(rand::random_range(50..250)));
}

fn since(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}

/// The gate's clock in the step that decided: `timestamp` of a fact that is told in it. Seconds as a float are good for a
/// microsecond.
fn told_at(fact: &Fact) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs_f64(fact.body["timestamp"].as_f64().unwrap())
}

/// When the last shut's answer came, by the gate's log.
fn answered_at(log: &str) -> SystemTime {
    let line = log.lines().rfind(|line| line.contains(UNBOUND)).unwrap_or_else(|| panic!("no {UNBOUND:?} in the log"));
    let time: Timestamp = line.split_whitespace().next().unwrap().parse().unwrap();
    time.into()
}
