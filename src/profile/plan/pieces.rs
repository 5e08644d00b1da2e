//! A text under edit that remembers which of its bytes are the original's.

use std::ops::Range;

use super::{Change, Edit};

/// The text as the pieces it is made of.
pub(super) struct Pieces {
    /// Length of the original, in bytes.
    original_len: usize,
    pieces: Vec<Piece>,
}

struct Piece {
    text: String,
    origin: Origin,
}

enum Origin {
    /// The byte of the original at which it starts.
    Original(usize),
    /// Put in by the plan. A piece that was cut in two keeps its changes in the first part.
    New(Vec<Change>),
}

impl Pieces {
    pub(super) fn new(text: &str) -> Self {
        let whole = Piece { text: text.to_owned(), origin: Origin::Original(0) };
        Self { original_len: text.len(), pieces: vec![whole] }
    }

    /// The text as it is now.
    pub(super) fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }

    /// Replaces bytes of the text as it is now; both ends lie between characters.
    pub(super) fn splice(&mut self, range: Range<usize>, replacement: String, change: Change) {
        let from = self.cut(range.start);
        let to = self.cut(range.end);
        let mut changes = Vec::new();
        for piece in self.pieces.drain(from..to) {
            if let Origin::New(old) = piece.origin {
                changes.extend(old);
            }
        }
        changes.push(change);
        self.pieces.insert(from, Piece { text: replacement, origin: Origin::New(changes) });
    }

    /// Makes a boundary at a byte; returns the index of the piece that begins there.
    fn cut(&mut self, at: usize) -> usize {
        let mut start = 0;
        for index in 0..self.pieces.len() {
            let inside = at - start;
            if inside == 0 {
                return index;
            }
            let piece = &mut self.pieces[index];
            if inside < piece.text.len() {
                let text = piece.text.split_off(inside);
                let origin = match &piece.origin {
                    Origin::Original(byte) => Origin::Original(byte + inside),
                    Origin::New(_) => Origin::New(Vec::new()),
                };
                self.pieces.insert(index + 1, Piece { text, origin });
                return index + 1;
            }
            start += piece.text.len();
        }
        self.pieces.len()
    }

    /// Where a byte of the text as it is now was in the original; for a new byte, where the one after it was.
    pub(super) fn original_byte(&self, at: usize) -> usize {
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.text.len();
            if let Origin::Original(byte) = piece.origin
                && at < end
            {
                return byte + at.saturating_sub(start);
            }
            start = end;
        }
        self.original_len
    }

    /// The differences between the original and now.
    pub(super) fn into_edits(self) -> Vec<Edit> {
        let mut edits = Vec::new();
        let mut done = 0;
        let mut pending = (String::new(), Vec::new());
        let end = Piece { text: String::new(), origin: Origin::Original(self.original_len) };
        for piece in self.pieces.into_iter().chain([end]) {
            match piece.origin {
                Origin::New(changes) => {
                    pending.0.push_str(&piece.text);
                    pending.1.extend(changes);
                }
                Origin::Original(start) => {
                    if start > done || !pending.0.is_empty() {
                        let (replacement, changes) = std::mem::take(&mut pending);
                        edits.push(Edit { range: done..start, replacement, changes });
                    }
                    done = start + piece.text.len();
                }
            }
        }
        edits
    }
}
