//! A thousand workers of one gate that share one profile: one edit shuts all of them, and one opens all of them again.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::try_join_all;
use lapin::{
    Channel, Connection, ExchangeKind,
    options::{
        ExchangeBindOptions, ExchangeDeclareOptions, ExchangeUnbindOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::Value;

use super::{DRIFTED, edit, intake, pause, settings, since};
use crate::{
    open::with_checks,
    support::{
        facts::Fact,
        gate::{Host, MANAGED},
        runtime::on,
        vhost::{Vhost, channel, connect, vhost},
    },
    table::{Sample, Table},
};

const WORKERS: usize = 1_000;
const ROUNDS: usize = 6;
/// For the start, in which each worker needs some thirty commands, and for the facts, each of which goes to the disk.
const LATER: Duration = Duration::from_secs(300);

/// For what follows a shut or an open: a thousand questions to workers that are not there, and the last facts.
const CALM: Duration = Duration::from_secs(5);

const CHECKS: &str = "[checks.codex_cli]\nrun = [[\"codex\", \"--version\"]]\nevery = \"1h\"\ntimeout = \"5s\"\n\n";

pub(crate) fn measure() -> Vec<Table> {
    let (vhost, host) = (vhost(), Host::new("thousand"));
    let mut settings = with_checks(&settings(&host, &vhost.url()), CHECKS);
    for n in 0..WORKERS {
        let name = format!("codex-{n}");
        host.add_worker(&mut settings, &name, &intake(&name));
    }
    let bare = Thousand::new(&vhost);
    let begin = Instant::now();
    let gate = host.start(&settings);
    let mut audit = Audit::of(&host);
    audit.all(None, "worker-admitted");
    let start = begin.elapsed();
    let (mut shut, mut opened, mut floor_shut, mut floor_opened) = <(Sample, Sample, Sample, Sample)>::default();
    for _ in 0..ROUNDS {
        thread::sleep(CALM);
        floor_shut.push_time(bare.shut());
        pause();
        let edited = edit(&host, &host.profile(), DRIFTED);
        shut.push_time(audit.all(Some((edited, "worker-config-drifted")), "worker-quarantined"));
        thread::sleep(CALM);
        floor_opened.push_time(bare.open());
        pause();
        let edited = edit(&host, &host.profile(), MANAGED);
        opened.push_time(audit.all(Some((edited, "worker-config-managed")), "worker-admitted"));
    }
    assert!(gate.stop().success());
    let mut table = Table::new(format!("thousand: {WORKERS} workers of one gate share the profile, and it is edited"));
    table.row("rename -> the last one is shut, confirmed", "ms", &shut).against("the floor", &floor_shut);
    table.row("  its median, in the floor's", "x", &Sample::one(shut.median() / floor_shut.median())).at_most(1.5);
    table.row("floor: as many exchange.unbind, back to back", "ms", &floor_shut);
    table.row("rename -> the last one is open, confirmed", "ms", &opened).against("the floor", &floor_opened);
    table.row("  its median, in the floor's", "x", &Sample::one(opened.median() / floor_opened.median())).at_most(1.5);
    table.row("floor: as many exchange.bind, back to back", "ms", &floor_opened);
    table.note(format!(
        "the floor is one channel of one connection; the gate's start took {:.0} s",
        start.as_secs_f64()
    ));
    vec![table]
}

/// The gate's audit log, as it grows. A subscriber to the events would be one more who has work while the edges are shut.
struct Audit(BufReader<File>);

impl Audit {
    fn of(host: &Host) -> Self {
        let path = host.state_dir().join("audit.jsonl");
        crate::support::wait::until(LATER, "the audit log is there", || Path::new(&path).exists());
        Self(BufReader::new(File::open(path).unwrap()))
    }

    /// Waits for this fact about every worker: from the edit to the last confirmation, which is the time to the decision and
    /// the longest latency. The latter begins when the event was read, so what is between that and the decision counts twice.
    fn all(&mut self, since_edit: Option<(SystemTime, &str)>, kind: &str) -> Duration {
        let begin = Instant::now();
        let (mut workers, mut decided, mut latest, mut line) = (0, Duration::ZERO, 0.0_f64, String::new());
        while workers < WORKERS {
            assert!(begin.elapsed() < LATER, "{kind} about {workers} of {WORKERS} workers");
            if self.0.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            let body: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            let fact = Fact { received: SystemTime::now(), body };
            if let Some((edited, told)) = since_edit
                && fact.kind() == told
            {
                decided = decided.max(since(edited, super::told_at(&fact)));
            }
            if fact.kind() == kind {
                workers += 1;
                let latency = fact.body["latency_ms"].as_f64();
                latest = latest.max(latency.unwrap_or_else(|| panic!("no latency in {}", fact.body)));
            }
        }
        decided + Duration::from_secs_f64(latest / 1e3)
    }
}

/// As many ways as the gate has, of the same make, by a client that does nothing else.
struct Thousand {
    channel: Channel,
    _connection: Arc<Connection>,
}

impl Thousand {
    /// All of them open.
    fn new(vhost: &Vhost) -> Self {
        vhost.declare_exchange("bare.held", "fanout", None);
        vhost.declare_exchange("bare", "direct", Some("bare.held"));
        vhost.declare_exchange("bare.lane", "fanout", None);
        let connection = connect(vhost.url());
        let bare = Self { channel: channel(&connection), _connection: connection };
        let channel = bare.channel.clone();
        on(async move {
            let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
            channel.queue_declare("bare.owner".into(), options, FieldTable::default()).await?;
            for n in 0..WORKERS {
                let mut arguments = FieldTable::default();
                arguments.insert("alternate-exchange".into(), AMQPValue::LongString("bare.lane".into()));
                let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
                channel.exchange_declare(edge(n), ExchangeKind::Direct, options, arguments).await?;
                let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
                channel.queue_bind("bare.owner".into(), edge(n), "never".into(), bind, none).await?;
            }
            lapin::Result::Ok(())
        })
        .unwrap();
        bare.open();
        bare
    }

    fn open(&self) -> Duration {
        let channel = self.channel.clone();
        on(async move {
            let bind = |n| {
                let (options, none) = (ExchangeBindOptions::default(), FieldTable::default());
                channel.exchange_bind(edge(n), "bare".into(), edge(n), options, none)
            };
            let begin = Instant::now();
            try_join_all((0..WORKERS).map(bind)).await.map(|_| begin.elapsed())
        })
        .unwrap()
    }

    fn shut(&self) -> Duration {
        let channel = self.channel.clone();
        on(async move {
            let unbind = |n| {
                let (options, none) = (ExchangeUnbindOptions::default(), FieldTable::default());
                channel.exchange_unbind(edge(n), "bare".into(), edge(n), options, none)
            };
            let begin = Instant::now();
            try_join_all((0..WORKERS).map(unbind)).await.map(|_| begin.elapsed())
        })
        .unwrap()
    }
}

/// Exchange and key.
fn edge(n: usize) -> ShortString {
    format!("bare.edge-{n}").into()
}
