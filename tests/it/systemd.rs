//! What systemd hears of a gate, and what it makes of the unit.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixDatagram,
    },
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    gate::{GATE, Gate, Host, MANAGED, NOBODY, can_be_nobody},
    process,
    proxy::{Mode, Proxy},
    scratch::Scratch,
    vhost::vhost,
    wait::{eventually, throughout, until},
};

const SOON: Duration = Duration::from_secs(30);
const A_WHILE: Duration = Duration::from_millis(1_500);
const LANE: &str = "codex-0";
/// WatchdogSec of these tests.
const WATCHDOG: Duration = Duration::from_secs(8);

/// The socket of a service manager.
struct Systemd {
    dir: Scratch,
    socket: UnixDatagram,
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Systemd {
    fn new() -> Self {
        let dir = Scratch::new("n");
        let socket = UnixDatagram::bind(dir.join("s")).unwrap();
        Self { dir, socket, heard: Arc::default() }
    }

    /// From now on everything is read, line by line.
    fn listen(&self) {
        let (socket, heard) = (self.socket.try_clone().unwrap(), Arc::clone(&self.heard));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                heard.lock().unwrap().extend(text.lines().map(|line| (Instant::now(), line.to_owned())));
            }
        });
    }

    /// Starts a gate as systemd does. The shell becomes the gate, so that its own number is the gate's.
    fn start(&self, host: &Host, settings: &str) -> Gate {
        let mut command = process::command("/bin/sh");
        let surroundings = format!(
            "export NOTIFY_SOCKET={:?} WATCHDOG_USEC={} WATCHDOG_PID=$$; exec \"$0\" \"$@\"",
            self.dir.join("s"),
            WATCHDOG.as_micros()
        );
        command.arg("-c").arg(surroundings).arg(GATE);
        host.start_by(command, settings)
    }

    fn lines(&self) -> Vec<(Instant, String)> {
        self.heard.lock().unwrap().clone()
    }

    fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|(_, heard)| heard == line).count()
    }

    #[track_caller]
    fn wait_for(&self, line: &str, times: usize) {
        until(SOON, &format!("{line} is heard {times} times; so far {:?}", self.lines()), || self.count(line) >= times);
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Ends the thread that reads.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

#[test]
fn it_hears_that_the_gate_is_up_when_it_is_that_it_reloads_and_that_it_stops() {
    let (vhost, host, systemd) = (vhost(), Host::new("up"), Systemd::new());
    let proxy = Proxy::to(vhost.broker().port());
    proxy.set(Mode::Refuse);
    systemd.listen();
    let settings = host.settings(&vhost.url_as("guest", "guest", proxy.port()), LANE);
    let mut gate = systemd.start(&host, &settings);
    systemd.wait_for("STATUS=0 of 1 workers admitted; the broker does not answer", 1);
    throughout(A_WHILE, "it is not up", || systemd.count("READY=1") == 0 && systemd.count("WATCHDOG=1") == 0);
    assert_eq!(gate.get("/healthz").unwrap().0, 503);
    proxy.set(Mode::Forward);
    systemd.wait_for("READY=1", 1);
    assert_eq!(gate.get("/healthz").unwrap().0, 200);
    systemd.wait_for("STATUS=1 of 1 workers admitted", 1);
    systemd.wait_for("WATCHDOG=1", 6);
    let fed: Vec<_> = systemd.lines().into_iter().filter(|(_, line)| line == "WATCHDOG=1").map(|(at, _)| at).collect();
    let apart: Vec<_> = fed.windows(2).map(|two| two[1] - two[0]).collect();
    // A little more than half of it, for a busy machine.
    assert!(apart.iter().all(|apart| *apart < WATCHDOG * 3 / 4), "{apart:?}");

    gate.hang_up();
    systemd.wait_for("READY=1", 2);
    let lines: Vec<_> = systemd.lines().into_iter().map(|(_, line)| line).collect();
    let reloading = lines.iter().position(|line| line == "RELOADING=1").unwrap();
    assert!(lines[reloading + 1].starts_with("MONOTONIC_USEC="), "{lines:?}");
    let ready = lines.iter().rposition(|line| line == "READY=1").unwrap();
    assert!(reloading < ready, "{lines:?}");
    // Other settings that make the gate anew: it is up again only when it is.
    let other = settings.replace("name = \"up\"", "name = \"up-again\"");
    fs::write(gate.settings(), &other).unwrap();
    systemd.wait_for("RELOADING=1", 2);
    systemd.wait_for("READY=1", 3);
    assert_eq!(systemd.count("STOPPING=1"), 0);
    gate.wait_until(SOON, LANE, "admitted");

    gate.terminate();
    systemd.wait_for("STOPPING=1", 1);
    assert!(gate.wait(SOON).success());
    assert_eq!(systemd.count("STOPPING=1"), 1);
}

#[test]
fn the_watchdog_starves_while_the_gate_is_frozen_or_its_broker_does_not_answer() {
    let (vhost, host, systemd) = (vhost(), Host::new("hung"), Systemd::new());
    let proxy = Proxy::to(vhost.broker().port());
    systemd.listen();
    let mut gate = systemd.start(&host, &host.settings(&vhost.url_as("guest", "guest", proxy.port()), LANE));
    systemd.wait_for("WATCHDOG=1", 2);
    gate.freeze();
    // What was on its way has come by then.
    thread::sleep(Duration::from_millis(200));
    let fed = systemd.count("WATCHDOG=1");
    throughout(WATCHDOG, "nobody feeds it", || systemd.count("WATCHDOG=1") == fed);
    gate.thaw();
    systemd.wait_for("WATCHDOG=1", fed + 2);

    proxy.set(Mode::Stall);
    eventually(Duration::from_secs(60), "it has not been fed for as long as it waits", || {
        let lines = systemd.lines();
        let (last, _) = lines.iter().rfind(|(_, line)| line == "WATCHDOG=1")?;
        (last.elapsed() > WATCHDOG).then_some(())
    });
    assert_eq!(gate.get("/healthz").unwrap().0, 503);
    systemd.wait_for("STATUS=0 of 1 workers admitted; the broker does not answer", 1);
    let fed = systemd.count("WATCHDOG=1");
    proxy.set(Mode::Forward);
    systemd.wait_for("WATCHDOG=1", fed + 1);
    assert_eq!(systemd.count("READY=1"), 1);
}

#[test]
fn a_systemd_that_reads_nothing_stops_no_gate() {
    let (vhost, host, systemd) = (vhost(), Host::new("deaf"), Systemd::new());
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    other.connect(systemd.dir.join("s")).unwrap();
    // The next one has to wait.
    while other.send(b"full").is_ok() {}
    let gate = systemd.start(&host, &host.settings(&vhost.url(), LANE));
    for _ in 0..3 {
        gate.wait_until(SOON, LANE, "admitted");
        host.set_profile("approval_policy = \"on-request\"\n");
        gate.wait_until(SOON, LANE, "quarantined");
        thread::sleep(Duration::from_secs(4));
        host.set_profile(MANAGED);
    }
    assert_eq!(gate.get("/healthz").unwrap().0, 200);
    assert!(gate.stop().success());
}

#[test]
fn the_commands_of_checks_do_not_learn_of_it() {
    let (vhost, host, systemd) = (vhost(), Host::new("unheard"), Systemd::new());
    systemd.listen();
    host.set_tool("speckit", "env >\"$HOME/env\"\n");
    let gate = systemd.start(&host, &host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    let env = fs::read_to_string(host.home().join("env")).unwrap();
    assert!(env.contains("HOME=") && !env.contains("NOTIFY_SOCKET") && !env.contains("WATCHDOG"), "{env}");
}

#[test]
fn the_rights_that_the_unit_leaves_are_enough_to_check_and_to_mend_as_another_user() {
    if !can_be_nobody() {
        return;
    }
    let rights = unit().lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=").map(str::to_lowercase));
    let left: String = rights.unwrap().split(' ').map(|right| right.replace("cap_", ",+")).collect();
    let (vhost, host) = (vhost(), Host::new("rights"));
    host.give_to(NOBODY);
    fs::set_permissions(host.home(), fs::Permissions::from_mode(0o700)).unwrap();
    let settings = host.settings(&vhost.url(), LANE);
    let settings = settings.replace("[[workers]]\n", "[[workers]]\nrun_as = \"nobody\"\n");
    let settings = settings.replace("[profile]\n", "[profile]\non_drift = \"repair\"\n");
    host.set_tool("speckit", "test \"$(id -u)\" = 65534 && test -O \"$HOME\"\n");
    let gate = host
        .start_by(process::command_as(&["--bounding-set", &format!("-all{left}"), "--no-new-privs"], GATE), &settings);
    gate.wait_until(SOON, LANE, "admitted");
    // In place: by a rename the file would be root's.
    fs::write(host.profile(), "approval_policy = \"on-request\"\n").unwrap();
    until(SOON, "it is mended", || fs::read_to_string(host.profile()).unwrap().contains("never"));
    gate.wait_until(SOON, LANE, "admitted");
    assert_eq!(fs::metadata(host.profile()).unwrap().uid(), NOBODY);
    assert!(gate.stop().success());
}

fn unit() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/systemd/worker-gate.service")).unwrap()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let unit = unit();
    for line in ["Type=notify", "Restart=always", "ExecReload=/bin/kill -HUP $MAINPID"] {
        assert!(unit.lines().any(|one| one == line), "no {line}");
    }
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        eprintln!("there is no systemd-analyze here");
        return;
    }
    let dir = Scratch::new("unit");
    // It looks for the program as well.
    fs::write(dir.join("worker-gate.service"), unit.replace("/usr/local/bin/worker-gate", GATE)).unwrap();
    let mut command = Command::new("/usr/bin/systemd-analyze");
    command.arg("verify").arg(dir.join("worker-gate.service"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("worker-gate.service:"), "{said}");
}
