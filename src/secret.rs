//! Values that cannot be printed, and text with secrets taken out.

use std::fmt;

mod redact;
mod search;

pub use redact::Redactor;

/// A value that no log, error or event can show: it has no `Display`, and its `Debug` hides it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Secret(String);

impl Secret {
    /// Takes the value in.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// Hands the value to what needs it; the only way to read it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}
