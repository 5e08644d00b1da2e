//! Private RabbitMQ nodes: one that all tests share, and fresh ones for tests that are rough with it.

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    process::{self, Process, free_port, tail},
    scratch::Scratch,
    wait::{LONG, eventually, until},
};

const BIN: &str = "/usr/lib/rabbitmq/bin";

/// 6 to 12 s on an idle machine with two cores; the rest is for a busy one.
const READY_WITHIN: Duration = LONG;

/// Erlang's name server, on a port of our own. Without it the first node would start one as a daemon, which stays.
static EPMD: LazyLock<(u16, Scratch, Mutex<Process>)> = LazyLock::new(|| {
    let port = free_port();
    let dir = Scratch::new("epmd");
    let mut command = process::command("epmd");
    command.args(["-address", "127.0.0.1", "-port", &port.to_string()]).current_dir(dir.path());
    let process = Process::start(command, &dir.join("log"));
    until(Duration::from_secs(10), "epmd answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    (port, dir, Mutex::new(process))
});

/// A RabbitMQ node of our own. Dropping it kills it and removes its folder.
pub(crate) struct Broker {
    node: String,
    port: u16,
    management: u16,
    process: Mutex<Process>,
    // Declared last, so that the node is gone before its folder is removed.
    dir: Scratch,
}

/// The node that all tests of this process share, started by the first that asks. Each test takes a vhost of its own.
pub(crate) fn shared() -> Arc<Broker> {
    static SHARED: LazyLock<Arc<Broker>> = LazyLock::new(Broker::fresh);
    Arc::clone(&SHARED)
}

impl Broker {
    /// A node of its own, for a test that stops it, fills it or raises its alarms. Takes some 10 s.
    #[track_caller]
    pub(crate) fn fresh() -> Arc<Self> {
        Self::with_plugin(None)
    }

    /// The same with one more plugin.
    #[track_caller]
    pub(crate) fn with_plugin(plugin: Option<&str>) -> Arc<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            Path::new(BIN).join("rabbitmq-server").exists(),
            "no {BIN}/rabbitmq-server: run scripts/setup, which installs what the tests need"
        );
        let dir = Scratch::new("rabbitmq");
        let node = format!("worker-gate-{}-{}@localhost", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (port, management, distribution) = (free_port(), free_port(), free_port());
        fs::write(
            dir.join("rabbitmq.conf"),
            format!(
                "listeners.tcp.1 = 127.0.0.1:{port}\n\
                 distribution.listener.interface = 127.0.0.1\n\
                 management.tcp.ip = 127.0.0.1\n\
                 management.tcp.port = {management}\n\
                 disk_free_limit.absolute = 1MB\n"
            ),
        )
        .unwrap();
        let cookie = dir.join(".erlang.cookie");
        fs::write(&cookie, "worker-gate-tests").unwrap();
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400)).unwrap();
        fs::write(dir.join("distribution"), distribution.to_string()).unwrap();
        let plugins = ["rabbitmq_consistent_hash_exchange", "rabbitmq_management"].into_iter().chain(plugin);
        fs::write(dir.join("plugins"), plugins.collect::<Vec<_>>().join(",")).unwrap();
        let process = Mutex::new(Process::start(server(&dir, &node), &dir.join("output")));
        let broker = Self { node, port, management, process, dir };
        broker.wait_until_ready();
        Arc::new(broker)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Kills the node as a power cut would. Its files stay, and [`Broker::start`] brings it back.
    pub(crate) fn kill(&self) {
        self.process.lock().unwrap().kill();
    }

    /// Starts a killed node again, with its old ports and files.
    #[track_caller]
    pub(crate) fn start(&self) {
        *self.process.lock().unwrap() = Process::start(server(&self.dir, &self.node), &self.dir.join("output"));
        self.wait_until_ready();
    }

    /// Runs `rabbitmqctl`; 1 to 2 s each time. The management API is the fast way for everything that it can do.
    #[track_caller]
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        self.tool("rabbitmqctl", args)
    }

    /// Runs one of the command line tools that come with it.
    #[track_caller]
    pub(crate) fn tool(&self, name: &str, args: &[&str]) -> String {
        let mut command = Command::new(format!("{BIN}/{name}"));
        surroundings(&mut command, &self.dir, &self.node);
        command.args(["--quiet", "--node", &self.node]).args(args);
        process::run(command)
    }

    /// Raises or ends a memory alarm: the node stops reading from connections that publish.
    #[track_caller]
    pub(crate) fn memory_alarm(&self, on: bool) {
        let limit = if on { ["absolute", "1"] } else { ["absolute", "8GB"] };
        self.ctl(&["set_vm_memory_high_watermark", limit[0], limit[1]]);
        let what = format!("the node's memory alarm is {on}");
        until(Duration::from_secs(20), &what, || self.api("GET", "/nodes", None)[0]["mem_alarm"] == on);
    }

    /// One request to the management API, as guest; `path` begins after `/api`. Panics on any status but success.
    #[track_caller]
    pub(crate) fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        match self.request(method, path, body) {
            Ok((status, text)) if (200..300).contains(&status) => serde_json::from_str(&text).unwrap_or(Value::Null),
            Ok((status, text)) => panic!("{method} {path}: {status} {text}"),
            Err(e) => panic!("{method} {path}: {e}"),
        }
    }

    /// The same, with the status and the text of the answer, for those who can live with a failure.
    pub(crate) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String), ureq::Error> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://127.0.0.1:{}/api{path}", self.management))
            // guest:guest
            .header("authorization", "Basic Z3Vlc3Q6Z3Vlc3Q=")
            .header("content-type", "application/json")
            .body(body.map(Value::to_string).unwrap_or_default())?;
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        let mut response = agent.run(request)?;
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
    }

    #[track_caller]
    fn wait_until_ready(&self) {
        let start = Instant::now();
        let report = || {
            let output = self.process.lock().unwrap().output();
            let log = fs::read_to_string(self.dir.join("rabbit.log")).unwrap_or_default();
            format!("{}\n{}", tail(&output), tail(&log))
        };
        eventually(READY_WITHIN * 2, "RabbitMQ is ready", || {
            let ended = self.process.lock().unwrap().ended();
            assert!(ended.is_none(), "RabbitMQ ended with {ended:?}:\n{}", report());
            assert!(start.elapsed() < READY_WITHIN, "RabbitMQ is not ready within {READY_WITHIN:?}:\n{}", report());
            let listens = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            (listens && self.request("GET", "/vhosts", None).is_ok_and(|(status, _)| status == 200)).then_some(())
        });
    }
}

/// The command of a node. It runs `erl` in its own place, not below a shell: with input "allowed" Debian's script does
/// so, and `-noinput` takes the input away again.
fn server(dir: &Scratch, node: &str) -> Command {
    let mut command = process::command(format!("{BIN}/rabbitmq-server"));
    surroundings(&mut command, dir, node);
    command.arg("-noinput");
    command
}

/// Everything that would otherwise come from /etc/rabbitmq, /var/lib/rabbitmq and /var/log/rabbitmq.
fn surroundings(command: &mut Command, dir: &Scratch, node: &str) {
    let inside = |name: &str| dir.join(name);
    command
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .env("ERL_EPMD_PORT", EPMD.0.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_ALLOW_INPUT", "1")
        .env("RABBITMQ_NODENAME", node)
        .env("RABBITMQ_CONF_ENV_FILE", inside("none.conf"))
        .env("RABBITMQ_CONFIG_FILE", inside("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", inside("none.config"))
        .env("RABBITMQ_MNESIA_BASE", inside("mnesia"))
        .env("RABBITMQ_LOG_BASE", dir.path())
        .env("RABBITMQ_LOGS", inside("rabbit.log"))
        .env("RABBITMQ_PID_FILE", inside("pid"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", inside("enabled_plugins"))
        .env("RABBITMQ_ENABLED_PLUGINS", fs::read_to_string(inside("plugins")).unwrap())
        // Not in the settings file: the node looks before it reads that whether its port is free, and without this the
        // port that it looks at is that of every RabbitMQ.
        .env("RABBITMQ_DIST_PORT", fs::read_to_string(inside("distribution")).unwrap())
        // rabbitmqctl's would be higher by 10,000, and perhaps none.
        .env("RABBITMQ_CTL_DIST_PORT_MIN", "35672")
        .env("RABBITMQ_CTL_DIST_PORT_MAX", "35772")
        .env_remove("RABBITMQ_NODE_PORT")
        .env_remove("NOTIFY_SOCKET");
}
