//! From the end of the last check to the first held message in the lane.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    bare::Bare,
    lane::Lane,
    support::{
        facts::Facts,
        gate::Host,
        runtime::on,
        vhost::{Vhost, vhost},
    },
    table::{Sample, Table},
};

/// Each is a gate of its own. A round takes two runs of the check, and a second between them is the least that settings
/// allow, so several wait side by side.
const GATES: usize = 4;
const ROUNDS: usize = 30;
const HELD: usize = 10;
const SOON: Duration = Duration::from_secs(30);

/// Fails until the file `pass` is there. Its last act is to write the time, without another process.
const CHECK: &str = "#!/bin/bash\n[[ -e pass ]] || exit 1\nprintf '%s\\n' \"$EPOCHREALTIME\" >>passed\n";

const CHECKS: &str = "[checks.codex_cli]\nrun = [[\"codex\"]]\nevery = \"1s\"\ntimeout = \"5s\"\n\n";

#[derive(Default)]
struct Times {
    gate: Sample,
    confirmed: Sample,
    floor: Sample,
    floor_exit: Sample,
}

pub(crate) fn measure() -> Vec<Table> {
    let vhost = vhost();
    let mut all = Times::default();
    thread::scope(|scope| {
        let rounds: Vec<_> = (0..GATES)
            .map(|n| {
                scope.spawn({
                    let vhost = &vhost;
                    move || rounds(vhost, n)
                })
            })
            .collect();
        for times in rounds.into_iter().map(|rounds| rounds.join().unwrap()) {
            all.gate.append(times.gate);
            all.confirmed.append(times.confirmed);
            all.floor.append(times.floor);
            all.floor_exit.append(times.floor_exit);
        }
    });
    let mut table = Table::new("open: from the last act of the last check to the first held message in the lane");
    table.row("worker-gate", "ms", &all.gate).against("the floor", &all.floor).at_most(10.0);
    table.row("  of that, check's result known -> edge open, confirmed", "ms", &all.confirmed);
    table.row("floor: waitpid, bind, consume, publish", "ms", &all.floor);
    table.row("  of that, last act -> its exit seen by waitpid", "ms", &all.floor_exit);
    vec![table.note_of_the_clock()]
}

impl Table {
    fn note_of_the_clock(mut self) -> Self {
        self.note("the check writes the clock's time just before it exits, so its own exit is counted");
        self
    }
}

fn rounds(vhost: &Vhost, n: usize) -> Times {
    let (name, host) = (format!("codex-{n}"), Host::new(&format!("open-{n}")));
    fs::write(host.tool("codex"), CHECK).unwrap();
    let settings = with_checks(&host.settings(&vhost.url(), &name), CHECKS);
    let mut facts = Facts::of(vhost);
    let (pass, passed) = (host.home().join("pass"), host.home().join("passed"));
    fs::write(&pass, "").unwrap();
    let gate = host.start(&settings);
    facts.next(SOON, "worker-admitted", &name);
    let lane = Lane::consume(vhost, &name);
    let floor = Floor::new(vhost, n);
    let mut times = Times::default();
    for _ in 0..ROUNDS {
        fs::remove_file(&pass).unwrap();
        facts.next(SOON, "worker-quarantined", &name);
        fs::remove_file(&passed).unwrap();
        vhost.publish("codex", &name, vec!["held"; HELD]);
        fs::write(&pass, "").unwrap();
        let first = lane.wait(SOON, HELD)[0].at;
        times.gate.push_time(first.duration_since(first_line(&passed)).unwrap());
        let fact = facts.next(SOON, "worker-admitted", &name);
        times.confirmed.push(fact.body["latency_ms"].as_f64().unwrap());
        let (whole, exit) = floor.round(vhost);
        times.floor.push_time(whole);
        times.floor_exit.push_time(exit);
    }
    assert!(gate.stop().success());
    times
}

/// The same check and the same way, without a gate.
struct Floor {
    bare: Bare,
    lane: Lane,
    host: Host,
}

impl Floor {
    fn new(vhost: &Vhost, n: usize) -> Self {
        let bare = Bare::new(vhost, &format!("floor-{n}"));
        let lane = Lane::consume(vhost, bare.named("lane").as_str());
        let host = Host::new(&format!("floor-{n}"));
        fs::write(host.tool("codex"), CHECK).unwrap();
        fs::set_permissions(host.tool("codex"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(host.home().join("pass"), "").unwrap();
        Self { bare, lane, host }
    }

    fn round(&self, vhost: &Vhost) -> (Duration, Duration) {
        vhost.publish(self.bare.named("in").as_str(), "key", vec!["held"; HELD]);
        let mut check = Command::new(self.host.tool("codex")).current_dir(self.host.home()).spawn().unwrap();
        assert!(check.wait().unwrap().success());
        let exited = SystemTime::now();
        let bare = self.bare.clone();
        on(async move {
            bare.open().await.unwrap();
            bare.move_all("held", 256, HELD).await.unwrap();
            bare.shut().await.unwrap();
        });
        let first = self.lane.wait(SOON, HELD)[0].at;
        let passed = self.host.home().join("passed");
        let begin = first_line(&passed);
        fs::remove_file(passed).unwrap();
        (first.duration_since(begin).unwrap(), exited.duration_since(begin).unwrap())
    }
}

/// The settings with other checks.
pub(crate) fn with_checks(settings: &str, checks: &str) -> String {
    let (before, rest) = settings.split_at(settings.find("[checks.").unwrap());
    format!("{before}{checks}{}", &rest[rest.find("[profile]").unwrap()..])
}

/// When the check first passed; bash writes seconds with six decimals.
fn first_line(passed: &std::path::Path) -> SystemTime {
    let text = fs::read_to_string(passed).unwrap();
    let micros: u64 = text.lines().next().unwrap().replace(['.', ','], "").parse().unwrap();
    UNIX_EPOCH + Duration::from_micros(micros)
}
