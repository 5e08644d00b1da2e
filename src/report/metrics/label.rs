//! The values of labels.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use serde::Serialize;

use crate::model::WorkerName;

/// So many labels, each with its name.
pub(super) type Labels<const N: usize> = [(&'static str, Value); N];

/// A label's value, cheap to clone. A node name may have anything in it; prometheus-client escapes what would end the value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Value(Arc<str>);

impl Value {
    /// The word that this has in records and events.
    pub(super) fn word(of: impl Serialize) -> Self {
        let word = serde_json::to_value(of).unwrap_or_default();
        Self(word.as_str().unwrap_or_default().into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<&WorkerName> for Value {
    fn from(name: &WorkerName) -> Self {
        name.as_str().into()
    }
}

impl EncodeLabelValue for Value {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(&self.0)
    }
}
