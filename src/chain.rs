//! How an error and its causes are printed, in one place.

use std::error::Error;

/// The error and its causes on one line, `outer: cause: cause`. A message that repeats its cause is said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
