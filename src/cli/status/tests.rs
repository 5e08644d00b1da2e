use tokio::{net::TcpListener, sync::watch};

use super::*;
use crate::{
    model::{Admission, CheckRecord, CheckStatus, Code, Edge, Mono, Reason, Record},
    report::{
        event::tests::record,
        http::{Progress, Snapshot, WorkerView, bind, serve},
    },
};

fn fit() -> Record {
    let check = CheckRecord {
        status: CheckStatus::Passed,
        required: true,
        outcome: None,
        duration_ms: Some(90.0),
        version: Some("0.169.0".into()),
        fingerprint: None,
        message: None,
        checked_at: None,
    };
    let mut record = record("codex-0@host-1");
    record.checks.insert("codex_cli".into(), check.clone());
    record.checks.insert("spec_kit".into(), CheckRecord { version: None, ..check });
    record
}

fn unfit() -> Record {
    let reason = Reason::new(Code::ProfileDrifted, "approval_policy is \"on-request\"", "worker-gate profile apply");
    Record {
        admission: Some(Admission::Quarantined),
        edge: Some(Edge::Shut),
        reason: Some(reason),
        last_checked_at: None,
        ..record("codex-1")
    }
}

/// A gate with these workers, served over a real socket.
async fn gate(records: Vec<Record>) -> String {
    let workers = records.into_iter().map(|record| WorkerView { record, fresh_until: None }).collect();
    let progress = Progress { at: None, limit: TIMEOUT };
    let (_, snapshots) = watch::channel(Snapshot { workers, link: progress, checks: progress, audit: Ok(()) });
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(serve(listener, snapshots, Mono::default, std::future::pending()));
    address
}

async fn shown(address: &str, json: bool) -> (bool, String) {
    let mut out = Vec::new();
    let now = "2026-11-22T10:00:42Z".parse().unwrap();
    let admitted = status(Some(address), json, now, &mut out).await.unwrap();
    (admitted, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn the_table_shows_state_evidence_versions_reason_and_remedy() {
    let address = gate(vec![fit(), unfit()]).await;
    let (admitted, text) = shown(&address, false).await;
    assert!(!admitted);
    insta::assert_snapshot!(text, @r#"
    WORKER          ADMISSION    EDGE  EVIDENCE  VERSIONS           REASON
    codex-0@host-1  admitted     open  42 s      codex_cli 0.169.0  fit: every required check passed
    codex-1         quarantined  shut  none      -                  profile_drifted: approval_policy is "on-request"
        -> worker-gate profile apply
    "#);
}

#[tokio::test]
async fn json_is_the_array_of_records_as_the_gate_gives_it() {
    let address = gate(vec![fit()]).await;
    let (admitted, text) = shown(&address, true).await;
    assert!(admitted);
    assert_eq!(text, format!("{}\n", serde_json::to_string(&[fit()]).unwrap()));
}

#[tokio::test]
async fn no_gate_is_an_error_that_says_what_to_look_at() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let err = status(Some(&address), false, Timestamp::UNIX_EPOCH, &mut Vec::new()).await.unwrap_err();
    let expected = format!("ask the gate at {address} (gate.listen): is it running");
    assert!(matches!(err, StatusError::Unreachable { .. }) && err.to_string().starts_with(&expected), "{err}");

    let err = status(None, false, Timestamp::UNIX_EPOCH, &mut Vec::new()).await.unwrap_err();
    assert!(matches!(err, StatusError::NoListener), "{err}");
}

#[tokio::test]
async fn another_program_on_the_port_is_told_from_a_gate() {
    let answers = [
        "HTTP/1.0 500 Oh\x1b no\r\n\r\n[]",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.0 200 OK\r\n\r\n{\"not\":\"an array\"}",
        "",
    ];
    for answer in answers {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let other = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            assert!(socket.read(&mut asked).await.unwrap() > 0);
            socket.write_all(answer.as_bytes()).await.unwrap();
        });
        let err = status(Some(&address), false, Timestamp::UNIX_EPOCH, &mut Vec::new()).await.unwrap_err();
        assert!(matches!(err, StatusError::NotAGate { .. }), "{err}");
        assert!(!err.to_string().contains('\x1b'), "{err}");
        other.await.unwrap();
    }
}
