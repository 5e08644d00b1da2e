//! Who comes past a shut edge: each source is told of once a minute, however many messages it sends.

use std::{collections::BTreeMap, time::Duration};

use crate::model::{Mono, Way};

/// Between two facts about one source.
const REPEAT: Duration = Duration::from_secs(60);
/// So many sources are told apart. A producer that makes up a key for each message is one problem and not a million.
const MOST: usize = 16;
const OTHERS: &str = "other exchanges and keys";

/// The sources that were heard of within the last [`REPEAT`].
#[derive(Debug, Default)]
pub(super) struct Bypasses {
    sources: BTreeMap<String, Source>,
}

#[derive(Debug)]
struct Source {
    /// What has come and was not told of yet; `None` if nothing has.
    untold: Option<Way>,
    /// Before this it is not told of again.
    next: Mono,
}

impl Bypasses {
    pub(super) fn take(&mut self, now: Mono, ways: Vec<Way>) {
        for mut way in ways {
            if !self.sources.contains_key(&way.by) && self.sources.len() >= MOST {
                OTHERS.clone_into(&mut way.by);
            }
            let source = self.sources.entry(way.by.clone()).or_insert(Source { untold: None, next: now });
            match &mut source.untold {
                Some(untold) => untold.messages += way.messages,
                untold @ None => *untold = Some(way),
            }
        }
    }

    /// What is to be told now.
    pub(super) fn due(&mut self, now: Mono) -> Vec<Way> {
        let mut due = Vec::new();
        self.sources.retain(|_, source| {
            if now < source.next {
                return true;
            }
            let Some(way) = source.untold.take() else { return false };
            due.push(way);
            source.next = now + REPEAT;
            true
        });
        due
    }

    /// When the next of those that wait is to be told.
    pub(super) fn wake_at(&self) -> Option<Mono> {
        self.sources.values().filter(|source| source.untold.is_some()).map(|source| source.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    fn way(by: &str, messages: u64) -> Way {
        Way { by: by.to_owned(), remedy: "mend it".to_owned(), messages }
    }

    fn told(bypasses: &mut Bypasses, now: u64) -> Vec<(String, u64)> {
        bypasses.due(at(now)).into_iter().map(|way| (way.by, way.messages)).collect()
    }

    #[test]
    fn a_source_is_told_of_at_once_and_then_once_a_minute_with_all_that_came_meanwhile() {
        let mut bypasses = Bypasses::default();
        bypasses.take(at(10), vec![way("a", 1)]);
        assert_eq!(told(&mut bypasses, 10), [("a".to_owned(), 1)]);
        assert_eq!(bypasses.wake_at(), None);
        for second in 11..70 {
            bypasses.take(at(second), vec![way("a", 50)]);
            assert_eq!(told(&mut bypasses, second), []);
        }
        assert_eq!(bypasses.wake_at(), Some(at(70)));
        assert_eq!(told(&mut bypasses, 70), [("a".to_owned(), 59 * 50)]);
        assert_eq!(told(&mut bypasses, 200), []);
        assert!(bypasses.sources.is_empty(), "who is quiet is forgotten");
    }

    #[test]
    fn sources_are_told_of_apart_and_a_made_up_key_for_each_message_is_one_source() {
        let mut bypasses = Bypasses::default();
        bypasses.take(at(1), vec![way("a", 1), way("b", 2)]);
        assert_eq!(told(&mut bypasses, 1), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        for n in 0..1000 {
            bypasses.take(at(2), vec![way(&format!("key-{n}"), 1)]);
        }
        let told = told(&mut bypasses, 2);
        assert_eq!(told.len(), MOST - 1);
        assert_eq!(told.iter().map(|(_, messages)| messages).sum::<u64>(), 1000);
    }

    #[test]
    fn a_way_that_was_undone_before_a_message_took_it_is_told_of_too() {
        let mut bypasses = Bypasses::default();
        bypasses.take(at(1), vec![way("a", 0)]);
        assert_eq!(told(&mut bypasses, 1), [("a".to_owned(), 0)]);
    }
}
