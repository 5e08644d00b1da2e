//! Private Redis servers: one a test, with the kinds of protection and the kinds of company that people run them with.

use std::{fs, net::TcpStream, path::PathBuf, process::Command, sync::Mutex, time::Duration};

use redis::{Connection, ConnectionLike as _, FromRedisValue, RedisResult};
use serde_json::Value;

use super::{
    process::{self, Process, free_port, tail},
    scratch::Scratch,
    tasks::Task,
    wait::{eventually, until},
};

/// Some 50 ms on an idle machine.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// For one command on a busy machine; a server that hangs must fail its test.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// What kombu puts between a queue's name and a priority step, and between the parts of a binding.
pub(crate) const SEPARATOR: &str = "\u{6}\u{16}";
/// kombu's priority steps; what has none of these is sorted down to the next.
pub(crate) const STEPS: [u8; 4] = [0, 3, 6, 9];
/// Not 0, which a client that forgets to select has as well.
const DATABASE: u32 = 5;
/// The password of every user, wherever there is one.
pub(crate) const PASSWORD: &str = "secret";

/// A Redis server of our own, without anything that it would keep on disk. Dropping it kills it.
pub(crate) struct Redis {
    port: u16,
    tls_port: Option<u16>,
    database: u32,
    /// Whether our own connections have to say [`PASSWORD`].
    guarded: bool,
    arguments: Vec<String>,
    process: Mutex<Process>,
    connection: Mutex<Option<Connection>>,
    // Declared last, so that the server is gone before its folder is removed.
    dir: Scratch,
}

/// What a client of a server with certificates needs, as PEM files.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Redis {
    /// A server that lets everybody in.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::started(Scratch::new("redis"), &[], DATABASE)
    }

    /// A server that asks the default user for [`PASSWORD`].
    #[track_caller]
    pub(crate) fn guarded() -> Self {
        Self::started(Scratch::new("redis"), &["--requirepass", PASSWORD], DATABASE)
    }

    /// A server that writes every change to disk before it answers, so that it can be killed and started again.
    #[track_caller]
    pub(crate) fn durable() -> Self {
        Self::started(Scratch::new("redis"), &["--appendonly", "yes", "--appendfsync", "always"], DATABASE)
    }

    /// A server with a second port, where it speaks TLS with those alone who have a certificate of its own authority.
    #[track_caller]
    pub(crate) fn with_certificates() -> Self {
        let dir = Scratch::new("redis");
        make_certificates(&dir);
        let port = free_port();
        let file = |name: &str| dir.join(name).display().to_string();
        let arguments = [
            "--tls-port",
            &port.to_string(),
            "--tls-ca-cert-file",
            &file("ca.pem"),
            "--tls-cert-file",
            &file("server.pem"),
            "--tls-key-file",
            &file("server.key"),
            "--tls-auth-clients",
            "yes",
        ]
        .map(str::to_owned);
        let mut server = Self::started(dir, &arguments.each_ref().map(String::as_str), DATABASE);
        server.tls_port = Some(port);
        server
    }

    /// A node that is a whole cluster, with all slots.
    #[track_caller]
    pub(crate) fn cluster() -> Self {
        // A cluster has the one database only.
        // Its second port is ten thousand above the first, if nothing is said, and there the kernel has ports to give away.
        let bus = free_port().to_string();
        let server = Self::started(Scratch::new("redis"), &["--cluster-enabled", "yes", "--cluster-port", &bus], 0);
        let () = server.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
        until(READY_WITHIN, "the cluster has settled", || {
            server.ask::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
        });
        server
    }

    /// A server that copies another one.
    #[track_caller]
    fn replica_of(master: &Self) -> Self {
        let port = master.port.to_string();
        let replica = Self::started(Scratch::new("redis"), &["--replicaof", "127.0.0.1", &port], DATABASE);
        until(READY_WITHIN, "the replica has caught up", || {
            replica.ask::<String>(&["INFO", "replication"]).contains("master_link_status:up")
        });
        replica
    }

    #[track_caller]
    fn started(dir: Scratch, more: &[&str], database: u32) -> Self {
        assert!(
            find("redis-server").is_some(),
            "no redis-server: run scripts/setup, which installs what the tests need"
        );
        let port = free_port();
        let (socket, folder) = (dir.join("socket").display().to_string(), dir.path().display().to_string());
        let mut arguments = vec!["--port".to_owned(), port.to_string()];
        let always = [
            ["--bind", "127.0.0.1"],
            ["--unixsocket", &socket],
            ["--dir", &folder],
            ["--save", ""],
            // A replica that asks for all data again gets it without a pause in which more are waited for.
            ["--repl-diskless-sync-delay", "0"],
        ];
        arguments.extend(always.iter().flatten().chain(more).map(|word| (*word).to_owned()));
        let process = Mutex::new(Process::start(server(&arguments), &dir.join("log")));
        let guarded = more.contains(&"--requirepass");
        let connection = Mutex::new(None);
        let server = Self { port, tls_port: None, database, guarded, arguments, process, connection, dir };
        server.wait_until_ready();
        server
    }

    #[track_caller]
    fn wait_until_ready(&self) {
        eventually(READY_WITHIN, "Redis is ready", || {
            let (ended, output) = {
                let mut process = self.process.lock().unwrap();
                (process.ended(), process.output())
            };
            assert!(ended.is_none(), "Redis ended with {ended:?}:\n{}", tail(&output));
            let ping = redis::cmd("PING");
            (TcpStream::connect(("127.0.0.1", self.port)).is_ok() && self.try_ask::<String>(&ping).is_ok())
                .then_some(())
        });
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(&self) {
        self.process.lock().unwrap().kill();
    }

    /// Starts a killed server again, on its old port; a [`Redis::durable`] one has all that it had.
    #[track_caller]
    pub(crate) fn start_again(&self) {
        *self.process.lock().unwrap() = Process::start(server(&self.arguments), &self.dir.join("log"));
        self.wait_until_ready();
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn database(&self) -> u32 {
        self.database
    }

    /// The address for `broker.url` and for Celery.
    pub(crate) fn url(&self) -> String {
        if self.guarded { self.url_as("", PASSWORD, self.port) } else { self.url_at(self.port) }
    }

    /// The address by another port, where a proxy listens.
    pub(crate) fn url_at(&self, port: u16) -> String {
        format!("redis://127.0.0.1:{port}/{}", self.database)
    }

    /// The address as this user; "" is the default one.
    pub(crate) fn url_as(&self, user: &str, password: &str, port: u16) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{port}/{}", self.database)
    }

    /// The address of its socket file.
    pub(crate) fn socket_url(&self) -> String {
        format!("redis+socket://{}?virtual_host={}", self.dir.join("socket").display(), self.database)
    }

    /// The address of its port with TLS.
    #[track_caller]
    pub(crate) fn tls_url(&self) -> String {
        let port = self.tls_port.expect("started with certificates");
        format!("rediss://127.0.0.1:{port}/{}?ssl_cert_reqs=required", self.database)
    }

    /// What a client needs that comes to [`Redis::tls_url`].
    pub(crate) fn certificates(&self) -> Certificates {
        let file = |name: &str| self.dir.join(name);
        Certificates { ca: file("ca.pem"), certificate: file("client.pem"), key: file("client.key") }
    }

    /// Adds a user with [`PASSWORD`] and these rules of ACL SETUSER.
    #[track_caller]
    pub(crate) fn add_user(&self, name: &str, rules: &[&str]) {
        let password = format!(">{PASSWORD}");
        let command = [&["ACL", "SETUSER", name, "on", &password], rules].concat();
        let () = self.ask(&command);
    }

    /// One command, on our own connection; panics if the server refuses it.
    #[track_caller]
    pub(crate) fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::Cmd::new();
        command.arg(words);
        // A server that was started again, or made the master, has ended our connection; the next one is a new one.
        let answer = self.try_ask(&command).or_else(|e| if e.is_io_error() { self.try_ask(&command) } else { Err(e) });
        answer.unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    fn try_ask<T: FromRedisValue>(&self, command: &redis::Cmd) -> RedisResult<T> {
        let mut connection = self.connection.lock().unwrap();
        let open = match &mut *connection {
            Some(open) => open,
            none => none.insert(self.connect()?),
        };
        let answer = command.query(open);
        if !open.is_open() {
            *connection = None;
        }
        answer
    }

    /// A connection of the caller's own.
    pub(crate) fn connect(&self) -> RedisResult<Connection> {
        let connection = redis::Client::open(self.url())?.get_connection_with_timeout(ANSWERS_WITHIN)?;
        connection.set_read_timeout(Some(ANSWERS_WITHIN))?;
        Ok(connection)
    }

    /// How many messages wait in a queue, in the lists of all its priorities.
    #[track_caller]
    pub(crate) fn waiting(&self, queue: &str) -> u32 {
        // One transaction: between two commands a message may go from one list to the other.
        let mut lengths = redis::pipe();
        lengths.atomic();
        for list in lists(queue) {
            lengths.cmd("LLEN").arg(list);
        }
        let mut connection = self.connect().unwrap();
        lengths.query::<Vec<u32>>(&mut connection).unwrap().iter().sum()
    }

    /// Waits until exactly so many messages wait in a queue.
    #[track_caller]
    pub(crate) fn wait_for_messages(&self, bound: Duration, queue: &str, messages: u32) {
        let mut seen = None;
        let what = format!("{messages} messages in {queue}");
        eventually(bound, &what, || {
            let now = Some(self.waiting(queue));
            if now != seen {
                seen = now;
                eprintln!("{queue}: {seen:?}");
            }
            (now == Some(messages)).then_some(())
        });
    }

    /// What waits in a queue, in the order in which a worker would get it.
    #[track_caller]
    pub(crate) fn messages(&self, queue: &str) -> Vec<Value> {
        let texts = self.texts(queue);
        texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }

    /// The same as the text that it is.
    #[track_caller]
    pub(crate) fn texts(&self, queue: &str) -> Vec<String> {
        let all = lists(queue).into_iter();
        all.flat_map(|list| {
            let newest_first: Vec<String> = self.ask(&["LRANGE", &list, "0", "-1"]);
            newest_first.into_iter().rev()
        })
        .collect()
    }

    /// The ids of the tasks that wait in a queue, in the order in which a worker would get them.
    #[track_caller]
    pub(crate) fn ids(&self, queue: &str) -> Vec<String> {
        self.messages(queue).iter().map(|message| message["headers"]["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Publishes tasks straight to a queue, as kombu does, many at a time.
    #[track_caller]
    pub(crate) fn publish(&self, queue: &str, tasks: impl IntoIterator<Item = Task>) {
        self.publish_from(queue, "", queue, tasks);
    }

    /// The same, as if they had come by this exchange and key.
    #[track_caller]
    pub(crate) fn publish_from(&self, queue: &str, exchange: &str, key: &str, tasks: impl IntoIterator<Item = Task>) {
        let mut connection = self.connect().unwrap();
        let tasks: Vec<Task> = tasks.into_iter().collect();
        for some in tasks.chunks(500) {
            let mut pushes = redis::pipe();
            for task in some {
                let message = task.to_redis(exchange, key);
                pushes.cmd("LPUSH").arg(list(queue, task.priority())).arg(message).ignore();
            }
            let () = pushes.query(&mut connection).unwrap();
        }
    }

    /// The bindings of an exchange in kombu's table, as (key, pattern, queue).
    #[track_caller]
    pub(crate) fn bindings_from(&self, exchange: &str) -> Vec<(String, String, String)> {
        let members: Vec<String> = self.ask(&["SMEMBERS", &format!("_kombu.binding.{exchange}")]);
        let mut all: Vec<_> = (members.iter())
            .map(|member| {
                let mut parts = member.split(SEPARATOR).map(str::to_owned);
                let mut part = || parts.next().unwrap_or_default();
                (part(), part(), part())
            })
            .collect();
        all.sort();
        all
    }
}

/// The list of a queue for messages of this priority.
pub(crate) fn list(queue: &str, priority: u8) -> String {
    match STEPS.iter().rev().find(|step| **step <= priority) {
        None | Some(0) => queue.to_owned(),
        Some(step) => format!("{queue}{SEPARATOR}{step}"),
    }
}

fn lists(queue: &str) -> [String; 4] {
    STEPS.map(|step| list(queue, step))
}

fn server(arguments: &[String]) -> Command {
    let mut command = process::command("redis-server");
    command.args(arguments);
    command
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists())
}

/// An authority, and a server and a client with its signature, in this folder.
#[track_caller]
fn make_certificates(dir: &Scratch) {
    let openssl = |words: &[&str]| {
        let mut command = Command::new("openssl");
        command.current_dir(dir.path()).args(words);
        process::run(command);
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"];
    let authority = ["req", "-x509", "-days", "2", "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(&[&authority[..], &key].concat());
    fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    for name in ["server", "client"] {
        let [key_file, request, file] = ["key", "csr", "pem"].map(|kind| format!("{name}.{kind}"));
        let subject = format!("/CN={name}");
        openssl(&[&["req", "-new", "-subj", &subject, "-keyout", &key_file, "-out", &request][..], &key].concat());
        let sign = ["x509", "-req", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(&[&sign[..], &["-extfile", "names", "-in", &request, "-out", &file]].concat());
    }
}

/// A master, a replica and the one sentinel that decides between them, within a second.
pub(crate) struct Sentinels {
    servers: [Redis; 2],
    port: u16,
    process: Mutex<Process>,
    // Declared last, so that the sentinel is gone before its folder is removed.
    _dir: Scratch,
}

impl Sentinels {
    /// What the sentinel calls the master: `broker.master_name`.
    pub(crate) const MASTER: &str = "mymaster";

    #[track_caller]
    pub(crate) fn start() -> Self {
        let master = Redis::start();
        let replica = Redis::replica_of(&master);
        let (dir, port) = (Scratch::new("sentinel"), free_port());
        let file = dir.join("sentinel.conf");
        let (name, folder) = (Self::MASTER, dir.path().display());
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {folder}\n\
             sentinel monitor {name} 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds {name} 1000\n\
             sentinel failover-timeout {name} 5000\n",
            master = master.port
        );
        fs::write(&file, text).unwrap();
        let mut command = process::command("redis-server");
        command.arg(&file).arg("--sentinel");
        let process = Mutex::new(Process::start(command, &dir.join("log")));
        let sentinels = Self { servers: [master, replica], port, process, _dir: dir };
        until(READY_WITHIN, "the sentinel knows the replica", || {
            sentinels.ask::<Vec<redis::Value>>(&["SENTINEL", "REPLICAS", name]).is_ok_and(|all| all.len() == 1)
        });
        sentinels
    }

    /// The address for `broker.url` and for Celery.
    pub(crate) fn url(&self) -> String {
        format!("sentinel://127.0.0.1:{}/{DATABASE}", self.port)
    }

    /// The first master.
    pub(crate) fn first(&self) -> &Redis {
        &self.servers[0]
    }

    /// Who becomes the master when the first is killed.
    pub(crate) fn second(&self) -> &Redis {
        &self.servers[1]
    }

    /// Kills the first master once the other has all that it has, and waits until the other is the master.
    #[track_caller]
    pub(crate) fn fail_over(&self) {
        // WAIT would only wait for what its own connection has written.
        let offset = |server: &Redis, field: &str| {
            let info: String = server.ask(&["INFO", "replication"]);
            info.lines().find_map(|line| line.strip_prefix(field)?.parse::<u64>().ok())
        };
        let written = offset(self.first(), "master_repl_offset:").unwrap();
        until(READY_WITHIN, "the replica has caught up", || {
            let info: String = self.second().ask(&["INFO", "replication"]);
            info.contains("master_link_status:up") && offset(self.second(), "slave_repl_offset:") >= Some(written)
        });
        self.first().kill();
        let second = self.second().port.to_string();
        until(Duration::from_secs(60), "the sentinel names the other as master", || {
            let command = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::MASTER];
            self.ask::<(String, String)>(&command).is_ok_and(|(_, port)| port == second)
        });
        until(READY_WITHIN, "the other is the master", || {
            self.second().ask::<String>(&["INFO", "replication"]).contains("role:master")
        });
    }

    fn ask<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let ended = self.process.lock().unwrap().ended();
        assert!(ended.is_none(), "the sentinel ended with {ended:?}");
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port))?;
        let mut connection = client.get_connection_with_timeout(ANSWERS_WITHIN)?;
        redis::Cmd::new().arg(words).query(&mut connection)
    }
}
