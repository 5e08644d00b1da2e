use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

use super::{
    few::{MOST, PATIENCE},
    *,
};
use crate::report::event::tests::record;

const WORKER: &str = "codex-0@host-1";
const LIMIT: Duration = Duration::from_secs(5);

/// The requests' time, in seconds since the machine started.
const NOW: u64 = 1_000;

fn now() -> Mono {
    Mono(Duration::from_secs(NOW))
}

fn ago(seconds: u64) -> Mono {
    Mono(Duration::from_secs(NOW - seconds))
}

fn fit() -> Snapshot {
    let progress = Progress { at: Some(now()), limit: LIMIT };
    let worker = WorkerView { record: record(WORKER), fresh_until: Some(now()) };
    Snapshot { workers: vec![worker], link: progress, checks: progress, audit: Ok(()) }
}

type Change = fn(&mut Snapshot);

struct Site {
    address: String,
    snapshots: watch::Sender<Snapshot>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl Site {
    async fn start(snapshot: Snapshot) -> Self {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (snapshots, receiver) = watch::channel(snapshot);
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move { drop(stopped.await) };
        let metrics = Arc::new(Metrics::new("host-1", Duration::from_secs(300)));
        let served = tokio::spawn(serve(listener, receiver, now, metrics, stopped));
        Self { address, snapshots, stop, served }
    }

    /// The answer as it comes, headers and all.
    async fn text(&self, request: &str, headers: &str) -> String {
        let mut socket = TcpStream::connect(&self.address).await.unwrap();
        socket.write_all(format!("{request} HTTP/1.0\r\n{headers}\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn ask(&self, request: &str) -> (u16, Value) {
        let answer = self.text(request, "").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
    }

    async fn with(&self, change: impl FnOnce(&mut Snapshot), request: &str) -> (u16, Value) {
        let mut snapshot = fit();
        change(&mut snapshot);
        self.snapshots.send(snapshot).unwrap();
        self.ask(request).await
    }
}

#[tokio::test]
async fn workers_are_the_records_in_one_array() {
    let site = Site::start(fit()).await;
    let (status, body) = site.ask("GET /workers").await;
    assert_eq!(status, 200);
    assert_eq!(body, serde_json::to_value([record(WORKER)]).unwrap());
}

#[tokio::test]
async fn a_worker_is_ready_only_if_admission_edge_evidence_and_link_all_say_so() {
    let site = Site::start(fit()).await;
    let ready = format!("GET /readyz?worker={WORKER}");
    assert_eq!(site.ask(&ready).await, (200, json!({"ready": true})));
    assert_eq!(site.ask("GET /readyz?worker=codex-0%40host-1").await.0, 200);

    let changes: [(Change, &str); 6] = [
        (|it| it.workers[0].record.admission = Some(Admission::Quarantined), "it is not admitted"),
        (|it| it.workers[0].record.edge = Some(Edge::Shut), "the broker has not confirmed an open edge"),
        (|it| it.workers[0].record.edge = None, "the broker has not confirmed an open edge"),
        (|it| it.workers[0].fresh_until = None, "there is no evidence yet"),
        (|it| it.workers[0].fresh_until = Some(ago(2)), "its evidence has been stale for 2.0 s"),
        (|it| it.link.at = Some(ago(6)), "the broker link has made no progress for 6.0 s (limit 5.0 s)"),
    ];
    for (change, why) in changes {
        let (status, body) = site.with(change, &ready).await;
        assert_eq!((status, &body["workers"][0]["why"]), (503, &json!([why])));
        assert_eq!(body["workers"][0]["reason"]["code"], "fit");
        assert_eq!(site.ask("GET /readyz").await.0, 503, "without a name it is about all of them");
    }
}

#[tokio::test]
async fn a_worker_of_another_gate_is_not_found() {
    let site = Site::start(fit()).await;
    let (status, body) = site.ask("GET /readyz?worker=codex-9").await;
    assert_eq!(status, 404);
    assert_eq!(body["error"], "this gate has no worker \"codex-9\"; it has codex-0@host-1");
}

#[tokio::test]
async fn the_gate_is_healthy_only_while_link_checks_and_audit_log_work() {
    let site = Site::start(fit()).await;
    assert_eq!(site.ask("GET /healthz").await, (200, json!({"healthy": true})));
    let unfit = |it: &mut Snapshot| it.workers[0].record.admission = Some(Admission::Quarantined);
    assert_eq!(site.with(unfit, "GET /healthz").await.0, 200, "an unfit worker is no fault of the gate");

    let worst = |it: &mut Snapshot| {
        it.link.at = None;
        it.checks.at = Some(ago(7));
        it.audit = Err("failed to write the audit log".into());
    };
    let (status, body) = site.with(worst, "GET /healthz").await;
    assert_eq!(status, 503);
    let problems = [
        "the broker link has made no progress yet",
        "the check loop has made no progress for 7.0 s (limit 5.0 s)",
        "failed to write the audit log",
    ];
    assert_eq!(body["problems"], json!(problems));
}

#[tokio::test]
async fn metrics_come_in_the_form_that_the_reader_asks_for() {
    let site = Site::start(fit()).await;
    let classic = site.text("GET /metrics", "").await;
    assert!(classic.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{classic}");
    assert!(!classic.contains("# EOF"), "{classic}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n";
    let open = site.text("GET /metrics", accept).await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
    for text in [classic, open] {
        assert!(text.contains("\nworker_gate_worker_admission{worker=\"codex-0@host-1\",admission=\"admitted\"} 1\n"));
    }
}

#[tokio::test]
async fn nothing_but_get_is_answered() {
    let site = Site::start(fit()).await;
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        assert_eq!(site.ask(&format!("{method} /workers")).await.0, 405);
    }
    assert_eq!(site.ask("GET /").await.0, 404);
}

#[tokio::test]
async fn a_stop_waits_for_no_client_that_does_not_finish() {
    let site = Site::start(fit()).await;
    let mut slow = TcpStream::connect(&site.address).await.unwrap();
    slow.write_all(b"GET /workers HTTP/1.1\r\n").await.unwrap();
    site.stop.send(()).unwrap();
    tokio::time::timeout(STOP_GRACE * 10, site.served).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(&site.address).await.is_err(), "the address is free again");
}

#[tokio::test]
async fn a_client_that_does_not_ask_is_shown_out() {
    let site = Site::start(fit()).await;
    let connect = async || TcpStream::connect(&site.address).await.unwrap();
    let (mut silent, mut kept, slow) = (connect().await, connect().await, connect().await);
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_ne!(kept.read(&mut [0; 1024]).await.unwrap(), 0);
    tokio::time::pause();
    let begun = Instant::now();
    // One that never finishes to ask.
    while slow.try_write(b"x").is_ok() && begun.elapsed() < PATIENCE * 3 {
        sleep(Duration::from_secs(1)).await;
    }
    for client in [&mut silent, &mut kept] {
        let end = tokio::time::timeout(PATIENCE, client.read(&mut [0; 1024])).await;
        assert_eq!(end.unwrap().unwrap(), 0);
    }
    assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn more_clients_than_there_is_room_for_wait_until_one_goes() {
    let site = Site::start(fit()).await;
    let mut clients = Vec::new();
    for _ in 0..MOST {
        clients.push(TcpStream::connect(&site.address).await.unwrap());
    }
    let asked = tokio::time::timeout(Duration::from_millis(300), site.ask("GET /healthz")).await;
    assert!(asked.is_err(), "{asked:?}");
    clients.pop();
    assert_eq!(site.ask("GET /healthz").await.0, 200);
}

#[tokio::test]
async fn an_address_that_is_about_to_be_free_is_waited_for() {
    let before = bind("127.0.0.1:0").await.unwrap();
    let address = before.local_addr().unwrap().to_string();
    let gone = tokio::spawn(async move {
        sleep(LOOK_AGAIN * 3).await;
        drop(before);
    });
    bind(&address).await.unwrap();
    gone.await.unwrap();
}

#[tokio::test]
async fn an_address_that_cannot_be_used_is_named_with_its_setting() {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    for bad in [taken.as_str(), "9464", "192.0.2.1:80", "127.0.0.1:99999"] {
        let err = bind(bad).await.unwrap_err().to_string();
        assert!(err.starts_with(&format!("listen on {bad:?} (gate.listen): expected a free address")), "{err}");
    }
}
