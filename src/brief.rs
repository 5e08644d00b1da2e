//! Texts that somebody else has made, and that may be long.

/// At most so many bytes of the text, from its beginning.
pub(crate) fn beginning(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}
