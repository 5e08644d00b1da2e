//! Finds where any of many texts stands in another one, in one pass over it.
//!
//! This is the automaton of Aho and Corasick, each state of which knows nothing but the longest text that ends in it. The
//! crate of that name keeps all of them, which for texts that end in one another (`aaaa`, `aaaaa`, ...) is a number for each
//! pair of them; and its search for the longest ones skips those that begin in one it has found, whose rest would be seen.

use std::{collections::VecDeque, fmt, ops::Range};

/// What has been read so far leads to a state: to that of its longest end with which any of the texts begins.
#[derive(Clone)]
pub(super) struct Search {
    states: Vec<State>,
}

/// 20 bytes for each byte of the texts. No state leads to [`ROOT`], so that its number also stands for none.
#[derive(Clone, Copy, Default)]
struct State {
    /// The last byte of what leads here.
    byte: u8,
    /// The first of those with one byte more.
    child: u32,
    /// The next one with another last byte.
    sibling: u32,
    /// That of the longest end of what leads here, less than the whole.
    fallback: u32,
    /// How long the longest of the texts is with which what leads here ends, in bytes; 0 if there is none.
    longest: u32,
}

const ROOT: u32 = 0;

impl Search {
    /// Looks for these, none of which is empty.
    pub(super) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut search = Self { states: vec![State::default()] };
        for text in texts {
            search.add(text);
        }
        search.link();
        search
    }

    /// The parts of the text that belong to any of the texts, also where these overlap; in order, and each as long as it can be.
    pub(super) fn covered(&self, text: &str) -> Vec<Range<usize>> {
        let mut covered: Vec<Range<usize>> = Vec::new();
        let mut at = ROOT;
        for (index, byte) in text.bytes().enumerate() {
            at = self.next(at, byte);
            let longest = self.state(at).longest as usize;
            if longest == 0 {
                continue;
            }
            let end = index + 1;
            let mut start = end - longest;
            while let Some(last) = covered.pop_if(|last| last.end >= start) {
                start = start.min(last.start);
            }
            covered.push(start..end);
        }
        covered
    }

    fn add(&mut self, text: &str) {
        let mut at = ROOT;
        for byte in text.bytes() {
            at = match self.child(at, byte) {
                ROOT => self.grow(at, byte),
                child => child,
            };
        }
        self.state_mut(at).longest = number(text.len());
    }

    fn grow(&mut self, at: u32, byte: u8) -> u32 {
        let new = number(self.states.len());
        let sibling = std::mem::replace(&mut self.state_mut(at).child, new);
        self.states.push(State { byte, sibling, ..State::default() });
        new
    }

    /// Finds each state's fallback, the shorter ones first.
    fn link(&mut self) {
        let mut todo = VecDeque::from([ROOT]);
        while let Some(at) = todo.pop_front() {
            let State { mut child, fallback, .. } = *self.state(at);
            while child != ROOT {
                let State { byte, sibling, longest, .. } = *self.state(child);
                let fallback = if at == ROOT { ROOT } else { self.next(fallback, byte) };
                let longest = longest.max(self.state(fallback).longest);
                *self.state_mut(child) = State { fallback, longest, ..*self.state(child) };
                todo.push_back(child);
                child = sibling;
            }
        }
    }

    /// Where one byte more leads.
    fn next(&self, mut at: u32, byte: u8) -> u32 {
        loop {
            let child = self.child(at, byte);
            if child != ROOT || at == ROOT {
                return child;
            }
            at = self.state(at).fallback;
        }
    }

    fn child(&self, at: u32, byte: u8) -> u32 {
        let mut child = self.state(at).child;
        while child != ROOT && self.state(child).byte != byte {
            child = self.state(child).sibling;
        }
        child
    }

    fn state(&self, at: u32) -> &State {
        &self.states[at as usize]
    }

    fn state_mut(&mut self, at: u32) -> &mut State {
        &mut self.states[at as usize]
    }
}

/// Settings and profiles have some megabytes at most.
fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Default for Search {
    fn default() -> Self {
        Self::new([])
    }
}

/// Shows nothing, as it looks for secrets.
impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, without any cleverness.
    fn plainly(texts: &[String], text: &str) -> Vec<Range<usize>> {
        let mut covered = vec![false; text.len()];
        for known in texts {
            for start in (0..text.len()).filter(|start| text[*start..].starts_with(known.as_str())) {
                covered[start..start + known.len()].fill(true);
            }
        }
        let edge = |at: &usize| *at == 0 || *at == covered.len() || covered[*at - 1] != covered[*at];
        let edges: Vec<usize> = (0..=covered.len()).filter(edge).collect();
        edges.windows(2).map(|part| part[0]..part[1]).filter(|part| covered[part.start]).collect()
    }

    proptest! {
        #[test]
        fn it_is_what_it_is_by_definition(
            texts in prop::collection::vec("[ab]{1,5}", 0..8), text in "[abc]{0,24}",
        ) {
            let search = Search::new(texts.iter().map(String::as_str));
            prop_assert_eq!(search.covered(&text), plainly(&texts, &text));
        }
    }
}
