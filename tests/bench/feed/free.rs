//! Work goes to the free: two real Celery workers on one shared queue, one a hundred times as fast as the other.

use serde_json::json;

use super::{INTAKE, SOON};
use crate::{
    support::{
        celery::{App, Mark, Worker},
        gate::Host,
        redis::Redis,
        vhost::{Vhost, vhost},
        wait::{LONG, until},
    },
    table::{Sample, Table},
};

const TASKS: u32 = 200;
/// Node names and how many seconds a task takes there.
const SLOW: (&str, f64) = ("codex-0@bench", 1.0);
const FAST: (&str, f64) = ("codex-1@bench", 0.01);
/// What the gate lets wait in a lane.
const DEPTH: u32 = 1;
/// What a worker with one process has in its hands before it has begun it (`--prefetch-multiplier 1`).
const PREFETCHED: u32 = 1;

pub(crate) fn measure() -> Vec<Table> {
    let redis = [Redis::start(), Redis::start()];
    let vhosts: [Vhost; 2] = [vhost(), vhost()];
    for vhost in &vhosts {
        vhost.declare_queue(INTAKE);
    }
    vec![compare("Redis", &redis[0].url(), &redis[1].url()), compare("RabbitMQ", &vhosts[0].url(), &vhosts[1].url())]
}

fn compare(broker: &str, url: &str, floor_url: &str) -> Table {
    let floor = Run::of(floor_url, [INTAKE, INTAKE]);
    let host = Host::new("free");
    let lanes = ["codex-0.lane", "codex-1.lane"];
    let mut settings = crate::drift::settings(&host, url);
    for ((name, _), lane) in [SLOW, FAST].into_iter().zip(lanes) {
        host.add_fed_worker(&mut settings, name, lane, &format!(r#"queue = "{INTAKE}""#));
    }
    assert!(settings.contains(&format!("depth = {DEPTH}\n")), "{settings}");
    let gate = host.start(&settings);
    for (name, _) in [SLOW, FAST] {
        gate.wait_until(SOON, name, "admitted");
    }
    let run = Run::of(url, lanes);
    assert!(gate.stop().success());
    // What the worker needs between two tasks that are both there already, broker and Celery together.
    let hand_over = floor.gaps.median();
    let mut table = Table::new(format!(
        "feed on {broker}: {TASKS} tasks, which take one worker 1 s and the other 10 ms; how idle the fast one is while there is work"
    ));
    let (idle, floor_idle) = (Sample::one(run.idle(hand_over)), Sample::one(floor.idle(hand_over)));
    table.row("worker-gate, depth 1: idle", "%", &idle);
    table.row("floor: a plain queue that both consume: idle", "%", &floor_idle);
    table.row("worker-gate: end of a task -> the next one starts", "ms", &run.gaps).against("the floor", &floor.gaps);
    table.row("floor: the same", "ms", &floor.gaps);
    table.row("worker-gate: not in a task, hand-over included", "%", &Sample::one(run.idle(0.0)));
    table.row("floor: the same", "%", &Sample::one(floor.idle(0.0)));
    table.row("worker-gate: until the fast one has nothing more to do", "s", &Sample::one(run.until_dry));
    table.row("floor: the same", "s", &Sample::one(floor.until_dry));
    table.note(format!(
        "idle: of the time in which more than {DEPTH} wait in the shared queue, what is left of the gaps between two tasks"
    ));
    table.note(format!("without {hand_over:.1} ms each, the floor's median gap, which a hand-over takes by itself"));
    table.note(format!("the slow one ran {} of the tasks, {} without a gate", run.by_slow, floor.by_slow));
    table
}

/// How the fast worker fared.
struct Run {
    /// From the end of a task to the start of the next one, while there was work.
    gaps: Sample,
    all_gaps: Vec<f64>,
    /// From its first start for as long as there was work, in milliseconds.
    span: f64,
    /// From its first start to its last end, in seconds.
    until_dry: f64,
    by_slow: usize,
}

impl Run {
    /// Both workers, each on its queue; all tasks go to the shared one.
    fn of(url: &str, queues: [&str; 2]) -> Self {
        let app = App::routed(url, json!({ "app.*": { "queue": INTAKE } }));
        let options = ["-c", "1", "--prefetch-multiplier", "1"];
        // All are there before the first one is taken: a slow producer would make everybody idle.
        let paces = json!({ SLOW.0: SLOW.1, FAST.0: FAST.1 });
        app.send("app.paced", "p-", TASKS, &[paces]);
        let mut workers: Vec<Worker> = ([SLOW, FAST].iter().zip(queues))
            .map(|((name, _), queue)| app.start_worker(queue, name, &options))
            .collect();
        workers.iter_mut().for_each(Worker::wait_until_ready);
        let ended = || app.marks().iter().filter(|mark| mark.phase == "ended").count();
        until(LONG, "all have ended", || ended() == TASKS as usize);
        let run = Self::from_marks(&app.marks());
        for mut worker in workers {
            assert!(worker.stop().is_some(), "{}", worker.log());
        }
        run
    }

    fn from_marks(marks: &[Mark]) -> Self {
        // Marks come in the order of their time. What is not yet begun waits in the shared queue, but for what both workers
        // have in their hands and in their lanes.
        let away = 2 * (PREFETCHED + DEPTH);
        let begun_at_last = TASKS - away - DEPTH;
        let last = marks.iter().filter(|mark| mark.phase == "started").nth(begun_at_last as usize - 1).unwrap().at;
        let of_fast: Vec<&Mark> = marks.iter().filter(|mark| mark.worker == FAST.0).collect();
        let (mut gaps, mut all_gaps) = (Sample::default(), Vec::new());
        for pair in of_fast.windows(2).filter(|pair| pair[0].phase == "ended" && pair[0].at <= last) {
            let gap = (pair[1].at - pair[0].at) * 1e3;
            gaps.push(gap);
            all_gaps.push(gap);
        }
        let first = of_fast.first().unwrap().at;
        let by_slow = marks.iter().filter(|mark| mark.worker == SLOW.0 && mark.phase == "started").count();
        Self { gaps, all_gaps, span: (last - first) * 1e3, until_dry: of_fast.last().unwrap().at - first, by_slow }
    }

    /// Percent of the time with work in which the worker was in no task, without this for each hand-over.
    fn idle(&self, hand_over: f64) -> f64 {
        self.all_gaps.iter().map(|gap| (gap - hand_over).max(0.0)).sum::<f64>() / self.span * 100.0
    }
}
