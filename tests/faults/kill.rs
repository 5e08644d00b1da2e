//! One death: a gate under load until it dies at its point, the time after it, the next gate, and the count.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    cases::{Case, Drive},
    crew::{Crew, Pace},
    load::Load,
    place::{Edge, HOARD, Place, WORKER},
    support::{
        facts::Facts,
        gate::{Gate, MANAGED},
        process::tail,
        tasks::Task,
        wait::{LONG, until},
    },
    table::{Count, Row},
};

const SOON: Duration = Duration::from_secs(60);
/// For messages to flow, or to gather.
const A_MOMENT: Duration = Duration::from_millis(150);
/// For what must not happen.
const A_WHILE: Duration = Duration::from_millis(400);
const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";
/// Messages a second: more than the consumer takes while it is slow.
const RATE: usize = 1_500;
/// So many opens and shuts pass every point of a cycle often enough.
const ROUNDS: usize = 4;
/// Messages that come past the edge.
const PAST: usize = 20;

pub(crate) fn kill(case: Case) -> Row {
    let place = Place::new(&case);
    let mut crew = Crew::new(&place, case.celery);
    if place.edge == Edge::Route {
        // The first gate declares the intake; without it there is nothing to publish to.
        let gate = place.host.start(&place.first_settings());
        gate.wait_until(SOON, WORKER, "admitted");
        assert!(gate.stop().success());
    }
    crew.set_pace(Pace::Slow);
    if case.drive != Drive::Absent {
        crew.arrive(&place);
    }
    let facts = place.facts();
    // A Celery worker does a few hundred a second.
    let load = Load::start(&place, if case.celery { 500 } else { RATE });
    until(SOON, "some wait", || load.published() >= 300);

    let mut doomed = Doomed { place: &place, gate: place.start_armed(&case), past: Vec::new() };
    doomed.drive(case.drive, &mut crew, &load);
    let past = doomed.end();
    place.host.set_profile(DRIFTED);
    if case.point == "recycle.sent" {
        crew.wait_until_gone();
    }
    crew.set_pace(Pace::Fast);
    until(SOON, "the broker gives the dead gate up", || place.is_gone());
    let before = crew.settle(&place);
    sleep(A_WHILE);

    let gate = place.host.start(&place.settings());
    gate.wait_until(SOON, WORKER, "quarantined");
    gate.wait_for_edge(SOON, WORKER, "shut");
    if !crew.is_there() {
        until(SOON, "what was in the lane is taken back", || place.in_lane() == 0);
        crew.arrive(&place);
    }
    sleep(A_WHILE);
    let unfit = crew.total() - before;
    place.host.set_profile(MANAGED);
    gate.wait_until(SOON, WORKER, "admitted");
    sleep(A_MOMENT);
    let (sent, handed_back) = load.stop();
    let sent: BTreeSet<String> = (0..sent).map(|n| format!("m-{n}")).chain(past).collect();
    wait_until_done(&place, &crew, sent.len());
    let stopped = gate.stop();
    crew.settle(&place);

    let (runs, left) = (crew.runs(), place.left());
    let found: BTreeSet<&String> = runs.keys().chain(&left).collect();
    let lost: Vec<_> = sent.iter().filter(|id| !found.contains(id)).collect();
    if !lost.is_empty() {
        eprintln!("{}: lost are {:?}", case.name(), &lost[..lost.len().min(20)]);
    }
    let count = Count {
        sent: sent.len(),
        handed_back,
        run: runs.len(),
        left: left.len(),
        lost: lost.len(),
        twice: runs.values().map(|times| *times as usize).sum::<usize>() + left.len() - found.len(),
        twice_allowed: place.twice_allowed(),
        unfit,
        accounts: 0,
    };
    let mut row = Row::new(case, count);
    match accounts(&facts) {
        Ok(accounts) => row.count.accounts = accounts,
        Err(problem) => row.problem = Some(problem),
    }
    if !stopped.success() {
        row.problem = Some(format!("the next gate ended with {stopped}"));
    }
    row
}

/// A gate that will kill itself.
struct Doomed<'a> {
    place: &'a Place,
    gate: Gate,
    /// The ids of what was published past the edge.
    past: Vec<String>,
}

impl Doomed<'_> {
    /// Does what leads to the point.
    fn drive(&mut self, drive: Drive, crew: &mut Crew, load: &Load) {
        match drive {
            Drive::Cycle | Drive::Absent | Drive::Stray | Drive::Exchange => self.cycle(),
            Drive::Drain => {
                if self.opens() {
                    until(SOON, "nothing is held", || !self.gate.is_alive() || self.place.held() == 0);
                }
            }
            Drive::Rebind => {
                if self.opens() && self.lives(A_WHILE) {
                    self.place.rebind();
                    self.lives(SOON);
                }
            }
            Drive::Reload => {
                if self.opens() && self.lives(A_WHILE) {
                    let new = self.gate.settings().with_extension("new");
                    fs::write(&new, self.place.settings_without_it()).unwrap();
                    fs::rename(new, self.gate.settings()).unwrap();
                    self.lives(SOON);
                }
            }
            Drive::Fault => {
                if self.opens() {
                    // What is in it would be gone with it.
                    until(SOON, "nothing is held", || !self.gate.is_alive() || self.place.held() == 0);
                    self.lives(Duration::from_millis(1_500));
                    self.place.delete_held();
                    self.lives(SOON);
                }
            }
            Drive::Fill => {
                for n in 0..ROUNDS {
                    load.set_rate(RATE);
                    if !(self.opens() && self.lives(A_MOMENT)) {
                        return;
                    }
                    load.set_rate(0);
                    crew.set_pace(Pace::Fast);
                    crew.settle(self.place);
                    crew.set_pace(Pace::Not);
                    // What was seen of the lane counts for a second, and is seen anew after two without a message.
                    if !self.lives(Duration::from_millis(1_100)) {
                        return;
                    }
                    self.past.extend(self.place.fill(&format!("past-{n}-")));
                    self.lives(A_WHILE);
                }
            }
            Drive::Recycle => {
                if self.opens() && self.lives(A_WHILE) && self.shuts() {
                    self.lives(SOON);
                }
            }
            Drive::Away => {
                if self.opens() && self.lives(A_WHILE) {
                    crew.leave();
                    self.lives(SOON);
                }
            }
            Drive::Bypass => {
                // What comes before the account is told, a second later at the most, may have waited when the edge was shut.
                if self.opens() && self.shuts() && self.lives(Duration::from_millis(1_500)) {
                    self.past = (0..PAST).map(|n| format!("past-{n}")).collect();
                    self.place.publish_past(self.past.iter().map(Task::mark));
                    self.lives(SOON);
                }
            }
            Drive::Mend => {
                // Likewise for what comes to the holding queue.
                for _ in 0..ROUNDS {
                    if !(self.opens() && self.lives(Duration::from_millis(1_500))) {
                        return;
                    }
                    self.place.delete_edge();
                }
            }
            Drive::Hoard => {
                crew.set_pace(Pace::Not);
                if self.opens() {
                    load.set_rate(100_000);
                    until(LONG, "much waits in the lane", || self.place.in_lane() > HOARD);
                    load.set_rate(RATE);
                    if self.shuts() {
                        self.lives(SOON);
                    }
                }
            }
        }
    }

    fn cycle(&self) {
        for _ in 0..ROUNDS {
            if !(self.opens() && self.lives(A_MOMENT) && self.shuts() && self.lives(A_MOMENT)) {
                return;
            }
        }
        // What it passes when it is told to go with an open edge.
        self.opens();
    }

    /// The worker is fit, and the edge opens; false if the gate dies on the way.
    fn opens(&self) -> bool {
        self.place.host.set_profile(MANAGED);
        self.comes_to("open")
    }

    fn shuts(&self) -> bool {
        self.place.host.set_profile(DRIFTED);
        self.comes_to("shut")
    }

    fn comes_to(&self, edge: &str) -> bool {
        let mut lives = true;
        until(SOON, edge, || {
            lives = self.gate.is_alive();
            let text = self.gate.get("/workers").map(|(_, text)| text);
            let records: Vec<Value> = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            !lives || records.iter().any(|record| record["edge"] == edge)
        });
        lives
    }

    /// Whether it is still there after so long; no longer than it lives.
    fn lives(&self, period: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < period && self.gate.is_alive() {
            sleep(Duration::from_millis(5));
        }
        self.gate.is_alive()
    }

    /// Makes sure that it has died at its point; one that still lives is told to go.
    #[track_caller]
    fn end(mut self) -> Vec<String> {
        if self.gate.is_alive() {
            self.gate.terminate();
            until(SOON, "it ends", || !self.gate.is_alive());
        }
        let log = self.gate.log();
        let status = self.gate.wait(SOON);
        let by_itself = status.signal() == Some(Signal::SIGKILL as i32);
        assert!(by_itself, "the gate did not come to this point: {status}\n{}", tail(&log));
        self.past
    }
}

/// Waits until everything has run that will; what has not come by then is looked for, and lost if it is nowhere.
fn wait_until_done(place: &Place, crew: &Crew, sent: usize) {
    let start = Instant::now();
    while crew.runs().len() + (place.unrouted() as usize) < sent && start.elapsed() < SOON {
        sleep(Duration::from_millis(50));
    }
}

/// How many accounts were told, if all of them balance.
fn accounts(facts: &Facts) -> Result<usize, String> {
    let all = facts.all();
    let accounts: Vec<&Value> =
        all.iter().map(|fact| &fact.body["account"]).filter(|account| account.is_object()).collect();
    let count = |account: &Value, key: &str| account[key].as_u64().unwrap();
    let balances = |account: &Value| {
        count(account, "before") == count(account, "moved") + count(account, "left") + count(account, "taken")
    };
    match accounts.iter().find(|account| !balances(account)) {
        None => Ok(accounts.len()),
        Some(account) => Err(format!("an account does not balance: {account}")),
    }
}
