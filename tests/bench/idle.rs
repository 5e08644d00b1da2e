//! What a gate with ten workers takes while nothing happens but its checks.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::{Pid, SysconfVar, sysconf},
};

use crate::{
    support::{
        facts::Facts,
        gate::{Host, MANAGED},
        process::{self, Process},
        vhost::{connect, vhost},
    },
    table::{Sample, Table},
};

pub(crate) const WORKERS: usize = 10;
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// From the last admission to the beginning of the window: what the start brings with it is over, and the next round of
/// checks (54 to 66 s after the first) falls into the window.
pub(crate) const CALM: Duration = Duration::from_secs(8);
const SOON: Duration = Duration::from_secs(60);

/// The word that makes the bench be its own floor, in a process that can be measured like the gate.
pub(crate) const FLOOR: &str = "idle-floor";

/// Has as many connections to the broker as a gate, answers their heartbeats, which are as frequent, or hears those of Celery's
/// workers, and does nothing else.
pub(crate) fn be_the_floor(url: &str) -> ! {
    if url.starts_with("redis:") {
        crate::feed::idle::be_the_floor(url);
    }
    let _connections = [5, 15, 15].map(|heartbeat| connect(format!("{url}?heartbeat={heartbeat}")));
    loop {
        thread::park();
    }
}

pub(crate) fn measure() -> Vec<Table> {
    vec![idle("ten workers of one user", 1), idle("ten workers with ten homes", WORKERS)]
}

fn idle(who: &str, homes: usize) -> Table {
    let (vhost, host) = (vhost(), Host::new("idle"));
    let tools = Tools::find();
    let mut settings = settings(&host, &vhost.url());
    let all: Vec<PathBuf> = (0..homes).map(|n| host.home().with_file_name(format!("home-{n}"))).collect();
    for home in &all {
        tools.prepare(home, &all[0]);
    }
    for n in 0..WORKERS {
        let (home, path) = (&all[n % homes], tools.path(&host));
        write!(
            settings,
            r#"
[[workers]]
name = "codex-{n}"
home = {home:?}
path_env = "{path}"
edge = "route"
lane = "codex-{n}"
intake = {{ exchange = "codex", type = "direct", keys = ["codex-{n}"] }}
"#
        )
        .unwrap();
    }
    let facts = Facts::of(&vhost);
    let gate = host.start(&settings);
    for n in 0..WORKERS {
        gate.wait_until(SOON, &format!("codex-{n}"), "admitted");
    }
    let floor = start_floor(&host, &vhost.url());
    thread::sleep(CALM);
    let told = facts.all().len();
    let (before, floor_before) = (Usage::of(gate.pid()), Usage::of(floor.pid()));
    thread::sleep(WINDOW);
    let (after, floor_after) = (Usage::of(gate.pid()), Usage::of(floor.pid()));
    let told = facts.all().split_off(told);
    let checks = told.iter().filter(|fact| fact.kind() == "worker-health-check").count() / (WORKERS / homes);
    assert!(told.iter().all(|fact| matches!(fact.kind(), "worker-health-check" | "gate-heartbeat")), "{told:?}");
    assert!(checks > 0, "no check ran within {WINDOW:?}");
    assert!(gate.stop().success());

    let share = |seconds: f64| Sample::one(seconds / WINDOW.as_secs_f64() * 100.0);
    let mut table = Table::new(format!("idle: {who}, every = \"60s\", {}, one minute", tools.name()));
    table.row("resident memory (VmRSS)", "MB", &Sample::one(after.rss)).at_most(20.0);
    table.row("  at its highest, from the start on (VmHWM)", "MB", &Sample::one(after.peak));
    table.row("  its share of it (PSS)", "MB", &Sample::one(after.pss));
    let floor_cpu = share(floor_after.cpu - floor_before.cpu);
    table.row("CPU of the gate itself, of one core", "%", &share(after.cpu - before.cpu));
    table.against("the floor", &floor_cpu);
    if homes == 1 {
        // With ten homes a check runs every three seconds, and that is not idle.
        table.at_most(0.1);
    }
    table.row("floor: three connections that answer heartbeats", "%", &floor_cpu);
    table.row("CPU of the checks that it ran", "%", &share(after.children - before.children));
    let switches = after.switches.saturating_sub(before.switches) / WINDOW.as_secs();
    table.note(format!("{checks} checks ran; {} threads, woken {switches} times a second", after.threads));
    table
}

/// Everything but the tests' paths as the program's own defaults have it.
pub(crate) fn settings(host: &Host, url: &str) -> String {
    let mut settings = host.settings_without_workers(url);
    for line in ["heartbeat = \"1s\"\n", "max_age = \"20s\"\n", "every = \"1s\"\n", "timeout = \"5s\"\n"] {
        settings = settings.replace(line, "");
    }
    settings
}

/// Starts the process with which a gate at this broker is compared.
pub(crate) fn start_floor(host: &Host, url: &str) -> Process {
    let mut floor = process::command(std::env::current_exe().unwrap());
    floor.args([FLOOR, url]);
    Process::start(floor, &host.state_dir().with_file_name("floor"))
}

/// The real tools if scripts/setup has installed them, else shell scripts in their place.
pub(crate) enum Tools {
    Real(PathBuf),
    Fake,
}

impl Tools {
    pub(crate) fn find() -> Self {
        let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/bin");
        if ["codex", "speckit"].iter().all(|tool| bin.join(tool).exists()) { Self::Real(bin) } else { Self::Fake }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Real(_) => "the real Codex and Spec Kit CLIs",
            Self::Fake => "shell scripts for tools",
        }
    }

    pub(crate) fn path(&self, host: &Host) -> String {
        match self {
            Self::Real(bin) => format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display()),
            Self::Fake => format!("{}:/usr/bin:/bin", host.tool("").display()),
        }
    }

    /// A home with a managed config, in which Codex is logged in. `first` is logged in with any key, which Codex stores
    /// and does not check; the others share what it stored.
    pub(crate) fn prepare(&self, home: &Path, first: &Path) {
        fs::create_dir_all(home.join(".codex")).unwrap();
        fs::write(home.join(".codex/config.toml"), MANAGED).unwrap();
        let Self::Real(bin) = self else { return };
        if home != first {
            symlink(first.join(".codex/auth.json"), home.join(".codex/auth.json")).unwrap();
            return;
        }
        let mut login = Command::new(bin.join("codex"));
        login.args(["login", "--with-api-key"]).env("HOME", home).current_dir(home);
        let mut login = login.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::io::Write::write_all(&mut login.stdin.take().unwrap(), b"sk-bench\n").unwrap();
        assert!(login.wait().unwrap().success(), "codex login failed");
    }
}

/// What the kernel has counted for a process so far.
pub(crate) struct Usage {
    /// Seconds of all its threads, also of those that have ended. From a clock, as stat(5) counts in ticks of 10 ms.
    pub(crate) cpu: f64,
    /// Seconds of the commands that it has waited for.
    pub(crate) children: f64,
    /// In megabytes of 1,000,000 bytes, as the others.
    pub(crate) rss: f64,
    pub(crate) peak: f64,
    pub(crate) pss: f64,
    pub(crate) threads: usize,
    pub(crate) switches: u64,
}

impl Usage {
    pub(crate) fn of(pid: Pid) -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let status = read("status");
        let megabytes = |text: &str, name: &str| f64::from(u32::try_from(field(text, name)).unwrap()) * 1024.0 / 1e6;
        let stat = read("stat");
        let after_name: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = |index: usize| after_name[index].parse::<f64>().unwrap();
        let per_second = f64::from(i32::try_from(sysconf(SysconfVar::CLK_TCK).unwrap().unwrap()).unwrap());
        let tasks: Vec<_> = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().collect();
        let switched = |path: PathBuf| {
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            field(&status, "voluntary_ctxt_switches:")
        };
        Self {
            cpu: Duration::from(clock_gettime(clock_getcpuclockid(pid).unwrap()).unwrap()).as_secs_f64(),
            // Fields 16 and 17, counted from 3, the first one after the name.
            children: (ticks(13) + ticks(14)) / per_second,
            rss: megabytes(&status, "VmRSS:"),
            peak: megabytes(&status, "VmHWM:"),
            pss: megabytes(&read("smaps_rollup"), "Pss:"),
            threads: tasks.len(),
            switches: tasks.iter().map(|task| switched(task.path())).sum(),
        }
    }
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or_default()
}
