//! Each gate counts its events (`seq`), so whoever gets them can tell when some are missing.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
};

use serde_json::Value;

use super::{Event, field};
use crate::cli::line::word;

/// So many events are known again by their ids. A broker gives back what was not acknowledged when a link was lost, and that is
/// no more than a window of them.
const REMEMBERED: usize = 1024;

/// How far every gate has come.
#[derive(Debug, Default)]
pub(super) struct Counts {
    gates: HashMap<String, Last>,
    handled: VecDeque<String>,
    ids: HashSet<String>,
}

/// The newest event of a gate.
#[derive(Debug)]
struct Last {
    seq: u64,
    id: String,
}

/// Where an event stands among those of its gate.
#[derive(Debug, PartialEq)]
pub(super) enum Place {
    /// In its place, as far as can be told.
    Next,
    /// Behind a hole.
    After(Missed),
    /// It has been done with already: published again, or delivered again.
    Again,
}

/// Events of a gate that did not come here: dropped on the way because nobody took them, or never published, as when a gate is
/// without a broker for long.
#[derive(Debug, PartialEq)]
pub(super) struct Missed {
    gate: String,
    first: u64,
    last: u64,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gate, first, last } = self;
        let gate = word(&gate.as_str().into());
        match last - first + 1 {
            1 => write!(f, "missed 1 event of gate {gate} (seq {first})"),
            many => write!(f, "missed {many} events of gate {gate} (seq {first} to {last})"),
        }
    }
}

impl Counts {
    /// Takes in an event that has come. A hole is told once, by the event behind it; whether that comes again does not matter.
    pub(super) fn take(&mut self, event: &Event) -> Place {
        let id = field(event, "id");
        if self.ids.contains(id) {
            return Place::Again;
        }
        let (gate, Some(seq)) = (field(event, "gate"), event.get("seq").and_then(Value::as_u64)) else {
            return Place::Next;
        };
        let Some(last) = self.gates.get_mut(gate) else {
            self.gates.insert(gate.to_owned(), Last { seq, id: id.to_owned() });
            return Place::Next;
        };
        // A gate whose state was lost counts anew. Its ids are made of the time, so they grow all the same, and what is old
        // comes with an old one.
        let is_newer = seq > last.seq || id > last.id.as_str();
        if !is_newer {
            return Place::Next;
        }
        let before = std::mem::replace(last, Last { seq, id: id.to_owned() });
        if seq > before.seq + 1 {
            return Place::After(Missed { gate: gate.to_owned(), first: before.seq + 1, last: seq - 1 });
        }
        Place::Next
    }

    /// Remembers that an event is done with.
    pub(super) fn handled(&mut self, event: &Event) {
        let id = field(event, "id");
        if id.is_empty() || !self.ids.insert(id.to_owned()) {
            return;
        }
        self.handled.push_back(id.to_owned());
        if self.handled.len() > REMEMBERED
            && let Some(oldest) = self.handled.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(gate: &str, seq: u64, id: &str) -> Event {
        json!({"gate": gate, "seq": seq, "id": id}).as_object().unwrap().clone()
    }

    /// What is told of events that come in this order, each one done with.
    fn told(events: &[(&str, u64, &str)]) -> Vec<String> {
        let mut counts = Counts::default();
        let mut told = Vec::new();
        for (gate, seq, id) in events {
            let event = event(gate, *seq, id);
            match counts.take(&event) {
                Place::Next => {}
                Place::After(missed) => told.push(missed.to_string()),
                Place::Again => told.push(format!("again {id}")),
            }
            counts.handled(&event);
        }
        told
    }

    #[test]
    fn a_hole_is_told_once_and_for_each_gate_by_itself() {
        let events = [("a", 7, "01"), ("b", 1, "02"), ("a", 8, "03"), ("a", 12, "04"), ("b", 3, "05"), ("a", 13, "06")];
        assert_eq!(
            told(&events),
            ["missed 3 events of gate a (seq 9 to 11)", "missed 1 event of gate b (seq 2)"],
            "the first event of a gate begins the count"
        );
    }

    #[test]
    fn an_event_that_comes_twice_is_known_again_and_is_no_hole() {
        let events = [("a", 1, "01"), ("a", 2, "02"), ("a", 1, "01"), ("a", 2, "02"), ("a", 3, "03")];
        assert_eq!(told(&events), ["again 01", "again 02"]);
    }

    #[test]
    fn an_old_event_that_is_not_known_any_more_changes_no_count() {
        let events = [("a", 5, "05"), ("a", 6, "06"), ("a", 4, "04"), ("a", 7, "07")];
        assert!(told(&events).is_empty());
    }

    #[test]
    fn a_gate_whose_state_was_lost_counts_anew() {
        let events = [("a", 900, "01"), ("a", 1, "02"), ("a", 2, "03"), ("a", 4, "04")];
        assert_eq!(told(&events), ["missed 1 event of gate a (seq 3)"]);
    }

    #[test]
    fn what_is_not_done_with_is_no_repetition() {
        let mut counts = Counts::default();
        let first = event("a", 3, "01");
        assert_eq!((counts.take(&first), counts.take(&first)), (Place::Next, Place::Next));
        counts.handled(&first);
        assert_eq!(counts.take(&first), Place::Again);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut counts = Counts::default();
        for seq in 0..3 * REMEMBERED as u64 {
            counts.handled(&event("a", seq, &seq.to_string()));
        }
        assert_eq!((counts.ids.len(), counts.handled.len()), (REMEMBERED, REMEMBERED));
    }

    #[test]
    fn what_has_no_count_is_never_missing() {
        let foreign = json!({"type": "x"}).as_object().unwrap().clone();
        let mut counts = Counts::default();
        assert_eq!(counts.take(&foreign), Place::Next);
        counts.handled(&foreign);
        assert_eq!(counts.take(&foreign), Place::Next);
    }
}
