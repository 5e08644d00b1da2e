//! Which requests are let in. Pure: time comes in, and nothing is asked here.
//!
//! Without a key every request that can be read is let in: whoever may publish on the broker may also ask. With one it has to be
//! signed, of this moment, and new. Whatever was asked before this gate began it may have been asked before, so that is old, too;
//! for as long as it could otherwise pass for one of this moment, and no longer: a clock may be set back.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use jiff::SignedDuration;
use tokio::sync::watch;

use super::{Ask, LONGEST, MOST_WORKERS, Request, Wish, key::Key};
use crate::model::{Code, Mono, Now, Reason};

/// How far a request's time may be from this gate's. Hosts that keep their time by NTP differ by milliseconds.
const WINDOW: Duration = Duration::from_secs(30);
/// How long an id is remembered: after that a request with it is old.
const MEMORY: Duration = Duration::from_secs(61);
/// So many ids are remembered. The desk takes at most a hundred requests in a second.
const MOST_IDS: usize = 10_000;
/// So many characters of a reason, or of an asker's name, are told on.
const LONGEST_TEXT: usize = 500;
/// An id is a UUID, with room for other ways to make one.
const LONGEST_ID: usize = 64;
/// Refusals of one kind that come within this time are told together.
const TOGETHER: Duration = Duration::from_secs(60);

/// Why a request is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is no request.
    Malformed(String),
    /// It has no signature.
    Unsigned,
    /// Its signature is not its own, or was made with another key.
    Forged,
    /// Its time is too far from now; by so much.
    Old(SignedDuration),
    /// It was let in before.
    Replayed,
    /// More requests are remembered than there is room for.
    Crowded,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "it is not a request: {why}"),
            Self::Unsigned => f.write_str("it is not signed, and this gate wants a signature (control.key_file)"),
            Self::Forged => f.write_str("its signature was not made with this gate's key (control.key_file)"),
            Self::Old(by) => write!(
                f,
                "its time is {:.1} s from this gate's, or from before its start; see that the clocks of both hosts are right",
                by.as_secs_f64().abs()
            ),
            Self::Replayed => f.write_str("it was sent before"),
            Self::Crowded => f.write_str("too many requests have come within a minute"),
        }
    }
}

impl Refusal {
    /// What is counted together.
    fn kind(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Unsigned => "unsigned",
            Self::Forged => "forged",
            Self::Old(_) => "old",
            Self::Replayed => "replayed",
            Self::Crowded => "crowded",
        }
    }
}

/// Lets requests in.
#[derive(Debug)]
pub struct Guard {
    /// The newest.
    key: watch::Receiver<Option<Key>>,
    began: Now,
    ids: HashMap<String, Mono>,
}

impl Guard {
    /// From now on, for whoever has the key; for everybody, if there is none.
    pub fn new(key: watch::Receiver<Option<Key>>, now: Now) -> Self {
        Self { key, began: now, ids: HashMap::new() }
    }

    /// Reads a request.
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn admit(&mut self, now: Now, body: &[u8], signature: Option<&str>) -> Result<Request, Refusal> {
        if body.len() > LONGEST {
            return Err(Refusal::Malformed(format!("it has {} bytes, and may have {LONGEST}", body.len())));
        }
        let key = self.key.borrow().clone();
        if let Some(key) = &key {
            let signature = signature.ok_or(Refusal::Unsigned)?;
            if !key.is_signature(body, signature) {
                return Err(Refusal::Forged);
            }
        }
        let request = read(body)?;
        if key.is_some() {
            self.is_new(now, &request)?;
        }
        Ok(request)
    }

    fn is_new(&mut self, now: Now, request: &Request) -> Result<(), Refusal> {
        let age = now.wall.duration_since(request.at);
        let has_just_begun = now.mono.since(self.began.mono) <= WINDOW;
        if age.unsigned_abs() > WINDOW || has_just_begun && request.at < self.began.wall {
            return Err(Refusal::Old(age));
        }
        if self.ids.contains_key(&request.id) {
            return Err(Refusal::Replayed);
        }
        if self.ids.len() >= MOST_IDS {
            self.ids.retain(|_, heard| now.mono.since(*heard) < MEMORY);
            if self.ids.len() >= MOST_IDS {
                return Err(Refusal::Crowded);
            }
        }
        self.ids.insert(request.id.clone(), now.mono);
        Ok(())
    }
}

fn read(body: &[u8]) -> Result<Request, Refusal> {
    let malformed = |why: &str| Refusal::Malformed(why.to_owned());
    let request: Request = serde_json::from_slice(body).map_err(|error| malformed(&error.to_string()))?;
    if request.id.len() > LONGEST_ID || request.by.chars().count() > LONGEST_TEXT {
        return Err(malformed("its id or its sender's name is too long"));
    }
    if let Ask::Hold(wish) | Ask::Release(wish) | Ask::Recheck(wish) = &request.ask {
        let Wish { workers, reason, .. } = wish;
        if workers.len() > MOST_WORKERS || reason.chars().count() > LONGEST_TEXT {
            return Err(malformed(&format!(
                "it names more than {MOST_WORKERS} workers, or its reason has more than {LONGEST_TEXT} characters"
            )));
        }
    }
    Ok(request)
}

/// Refusals on their way to the audit log: the first of a kind at once, those after it once a minute, with their number. A burst
/// of ten thousand is two lines.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<&'static str, Counted>);

#[derive(Debug)]
struct Counted {
    told_at: Mono,
    untold: u64,
    last: (Refusal, String),
}

impl Refusals {
    /// Takes one in; `who` is what is known of its sender.
    pub fn take(&mut self, now: Mono, refusal: Refusal, who: String) -> Option<Reason> {
        let kind = refusal.kind();
        if let Some(counted) = self.0.get_mut(kind) {
            counted.untold += 1;
            counted.last = (refusal, who);
            return None;
        }
        let reason = reason(&refusal, &who, 1);
        self.0.insert(kind, Counted { told_at: now, untold: 0, last: (refusal, who) });
        Some(reason)
    }

    /// What is to be told now of those that were not told at once.
    pub fn due(&mut self, now: Mono) -> Vec<Reason> {
        let mut reasons = Vec::new();
        self.0.retain(|_, counted| {
            if now.since(counted.told_at) < TOGETHER {
                return true;
            }
            if counted.untold == 0 {
                return false;
            }
            reasons.push(reason(&counted.last.0, &counted.last.1, counted.untold));
            (counted.told_at, counted.untold) = (now, 0);
            true
        });
        reasons
    }
}

fn reason(refusal: &Refusal, who: &str, times: u64) -> Reason {
    let detail = match times {
        1 => format!("a request by {who} was refused: {refusal}"),
        _ => format!("{times} requests were refused within a minute, the last one by {who}: {refusal}"),
    };
    let remedy = match refusal {
        Refusal::Unsigned | Refusal::Forged => {
            "give the operator's host the same key (control.key_file); if nobody asked, find out who may publish to \
             worker-gate.control"
        }
        Refusal::Malformed(_) | Refusal::Replayed | Refusal::Crowded => {
            "find out who publishes to worker-gate.control, and take the right to it away"
        }
        Refusal::Old(_) => "set the clocks of both hosts, and ask again",
    };
    Reason::new(Code::CommandRefused, detail, remedy)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::control::key::tests::key;

    fn at(seconds: u64) -> Now {
        let wall = Timestamp::from_second(1_795_341_600 + i64::try_from(seconds).unwrap()).unwrap();
        Now { mono: Mono(Duration::from_secs(seconds)), wall }
    }

    fn guard(key: Option<Key>) -> Guard {
        Guard::new(watch::channel(key).1, at(1000))
    }

    fn request(id: &str, seconds: u64) -> Vec<u8> {
        let ask = Ask::Hold(Wish { workers: vec!["codex-0".into()], reason: "x".into(), until: None });
        let request = Request { id: id.to_owned(), at: at(seconds).wall, by: "me@host".into(), ask };
        serde_json::to_vec(&request).unwrap()
    }

    #[test]
    fn a_request_reads_as_json_that_anybody_can_write() {
        let text = br#"{"id":"1","at":"2026-11-22T10:00:00Z","by":"me","ask":"status"}"#;
        assert_eq!(read(text).unwrap().ask, Ask::Status);
        let text = br#"{"id":"1","at":"2026-11-22T10:00:00Z","by":"me","ask":{"release":{"workers":["a"],"reason":"","until":null}}}"#;
        assert!(matches!(read(text).unwrap().ask, Ask::Release(wish) if wish.workers == ["a"]));
    }

    #[test]
    fn without_a_key_whatever_can_be_read_is_let_in() {
        let mut guard = guard(None);
        for _ in 0..2 {
            assert!(guard.admit(at(1000), &request("1", 1), None).is_ok());
        }
        for text in ["", "[]", "{}", "{\"id\":1}", "null", "\u{0}", r#"{"id":"1","at":"x","by":"","ask":"status"}"#] {
            let refused = guard.admit(at(1000), text.as_bytes(), None);
            assert!(matches!(refused, Err(Refusal::Malformed(_))), "{text}");
        }
        assert!(matches!(guard.admit(at(1000), &vec![b' '; LONGEST + 1], None), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn with_a_key_a_request_is_signed_fresh_and_new() {
        let mut guard = guard(Some(key()));
        let mut admit = |seconds, body: &[u8], signature: Option<&str>| guard.admit(at(seconds), body, signature);
        let body = request("1", 1010);
        assert_eq!(admit(1010, &body, None), Err(Refusal::Unsigned));
        assert_eq!(admit(1010, &body, Some("00")), Err(Refusal::Forged));
        let signature = key().sign(&body);
        assert_eq!(admit(1010, &request("2", 1010), Some(&signature)), Err(Refusal::Forged));
        assert!(admit(1010, &body, Some(&signature)).is_ok());
        assert_eq!(admit(1011, &body, Some(&signature)), Err(Refusal::Replayed));
        assert!(matches!(admit(1041, &body, Some(&signature)), Err(Refusal::Old(_))));
        // From before the gate's start: it may have been let in by the process before this one.
        let before = request("3", 999);
        assert!(matches!(admit(1001, &before, Some(&key().sign(&before))), Err(Refusal::Old(_))));
        let ahead = request("4", 1100);
        assert!(matches!(admit(1060, &ahead, Some(&key().sign(&ahead))), Err(Refusal::Old(_))));
    }

    #[test]
    fn a_clock_that_is_set_back_shuts_nobody_out() {
        let mut guard = guard(Some(key()));
        let body = request("1", 10);
        let signature = key().sign(&body);
        let mut admit = |mono, wall| guard.admit(Now { mono: at(mono).mono, ..at(wall) }, &body, Some(&signature));
        assert!(matches!(admit(1030, 10), Err(Refusal::Old(_))), "it may have come to the process before this one");
        assert!(matches!(admit(1031, 41), Err(Refusal::Old(_))));
        assert!(admit(1031, 11).is_ok());
        assert_eq!(admit(1032, 12), Err(Refusal::Replayed));
    }

    #[test]
    fn ids_are_forgotten_when_their_requests_are_old() {
        let mut guard = guard(Some(key()));
        for n in 0..MOST_IDS {
            let body = request(&n.to_string(), 1010);
            guard.admit(at(1010), &body, Some(&key().sign(&body))).unwrap();
        }
        let more = request("more", 1020);
        assert_eq!(guard.admit(at(1020), &more, Some(&key().sign(&more))), Err(Refusal::Crowded));
        let later = request("later", 1080);
        assert!(guard.admit(at(1080), &later, Some(&key().sign(&later))).is_ok());
        assert_eq!(guard.ids.len(), 1);
    }

    #[test]
    fn a_burst_of_refusals_is_told_once_and_then_with_its_number() {
        let mut refusals = Refusals::default();
        let mut take = |second, refusal| refusals.take(at(second).mono, refusal, "it".into()).map(|told| told.detail);
        assert!(take(0, Refusal::Unsigned).unwrap().contains("not signed"));
        for _ in 0..9_999 {
            assert_eq!(take(1, Refusal::Unsigned), None);
        }
        assert!(take(2, Refusal::Replayed).is_some());
        assert!(refusals.due(at(59).mono).is_empty());
        let told = refusals.due(at(61).mono);
        assert!(matches!(&told[..], [told] if told.detail.starts_with("9999 requests were refused")), "{told:?}");
        assert!(refusals.due(at(200).mono).is_empty());
        assert!(refusals.0.is_empty());
    }
}
