//! `worker-gate status`: every worker of the gate of this machine, as its HTTP listener tells it.

use std::{
    io::{self, Write},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::line::{text, word};

/// The gate answers out of memory; what takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A record is some 2 KiB, with long lists of settings and exposed tasks some 100: this is for a hundred such workers.
const LONGEST_ANSWER: u64 = 16 * 1024 * 1024;

/// Why there is no status. All but [`StatusError::Output`] mean exit code 69.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// `gate.listen` is empty.
    #[error(
        "ask the gate: it has no HTTP listener; set gate.listen, for example to \"127.0.0.1:9464\", and restart it"
    )]
    NoListener,
    /// Nothing answers.
    #[error("ask the gate at {address} (gate.listen): is it running (worker-gate run), and with the same gate.listen?")]
    Unreachable {
        /// `gate.listen`
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something answers, and it is no gate, or a broken one.
    #[error("understand the answer from {address} (gate.listen): {detail}; does another program listen there?")]
    NotAGate {
        /// `gate.listen`
        address: String,
        /// What was wrong with it.
        detail: String,
    },
    /// Nobody takes the output. Of the kind `BrokenPipe` when its reader has gone, which is no failure.
    #[error("write the output")]
    Output(#[from] io::Error),
}

/// Writes the workers as a table, or as one JSON array. `Ok(true)` if all are admitted (exit code 0), `Ok(false)` if not
/// (1). `now` is what evidence ages are counted to.
///
/// # Errors
/// When no gate answers.
pub async fn status(
    listen: Option<&str>,
    json: bool,
    now: Timestamp,
    out: &mut (dyn Write + Send),
) -> Result<bool, StatusError> {
    let workers = ask(listen.ok_or(StatusError::NoListener)?).await?;
    if json {
        writeln!(out, "{}", Value::from(workers.clone()))?;
    } else {
        table(&workers, now, out)?;
    }
    let admitted = |worker: &Value| worker.get("admission").and_then(Value::as_str) == Some("admitted");
    Ok(workers.iter().all(admitted))
}

async fn ask(listen: &str) -> Result<Vec<Value>, StatusError> {
    let address = listen.to_owned();
    let answer = match timeout(TIMEOUT, get(listen)).await.unwrap_or_else(|late| Err(late.into())) {
        Ok(answer) => answer,
        Err(source) => return Err(StatusError::Unreachable { address, source }),
    };
    let not_a_gate = |detail: &str| StatusError::NotAGate { address: listen.to_owned(), detail: detail.to_owned() };
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(|| not_a_gate("it is not HTTP"))?;
    let (head, body) = (String::from_utf8_lossy(&answer[..end]), &answer[end + 4..]);
    let line = head.lines().next().unwrap_or_default();
    if !line.starts_with("HTTP/1.") || line.split(' ').nth(1) != Some("200") {
        return Err(not_a_gate(&word(&line.into())));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Array(workers)) => Ok(workers),
        Ok(_) | Err(_) => Err(not_a_gate("it is not an array of worker records")),
    }
}

/// HTTP/1.0, so that the answer is not chunked and ends with the connection.
async fn get(address: &str) -> io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET /workers HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

const HEADINGS: [&str; 6] = ["WORKER", "ADMISSION", "EDGE", "EVIDENCE", "VERSIONS", "REASON"];

fn table(workers: &[Value], now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let records: Vec<_> = workers.iter().filter_map(Value::as_object).collect();
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(records.iter().map(|record| {
        let state = |name: &str| record.get(name).map_or_else(|| "-".to_owned(), word);
        let [worker, admission, edge] = ["worker_name", "admission", "edge"].map(state);
        [worker, admission, edge, age(record, now), versions(record), reason(record)]
    }));
    // The last column is as wide as it is.
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2), width(3), width(4), 0];
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
        let record = at.checked_sub(1).and_then(|at| records.get(at));
        if let Some(moving) = record.and_then(|record| record.get("moving")?.as_object()) {
            let [moved, before] = ["moved", "before"].map(|name| text(moving, name));
            writeln!(out, "    moving messages: {moved} of {before}")?;
        }
        let remedy = record.and_then(|record| record.get("reason")?.get("remedy")).map(word).unwrap_or_default();
        if !remedy.is_empty() {
            writeln!(out, "    -> {remedy}")?;
        }
    }
    Ok(())
}

fn age(record: &Map<String, Value>, now: Timestamp) -> String {
    let checked = record.get("last_checked_at").and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok());
    let Some(checked) = checked else { return "none".to_owned() };
    match now.duration_since(checked).as_secs().max(0) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

fn versions(record: &Map<String, Value>) -> String {
    let Some(checks) = record.get("checks").and_then(Value::as_object) else { return "-".to_owned() };
    let version = |(name, check): (&String, &Value)| {
        let version = check.get("version").filter(|version| !version.is_null())?;
        Some(format!("{} {}", word(&name.as_str().into()), word(version)))
    };
    let versions: Vec<_> = checks.iter().filter_map(version).collect();
    if versions.is_empty() { "-".to_owned() } else { versions.join(", ") }
}

fn reason(record: &Map<String, Value>) -> String {
    let reason = record.get("reason").and_then(Value::as_object);
    reason.map_or_else(|| "-".to_owned(), |reason| format!("{}: {}", text(reason, "code"), text(reason, "detail")))
}

#[cfg(test)]
mod tests;
