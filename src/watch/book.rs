//! Who waits for which events.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::OsString,
};

use nix::sys::inotify::WatchDescriptor;

use super::{SubjectId, walk::Key};

/// Both directions of "this subject waits for that".
#[derive(Debug, Default)]
pub(super) struct Book {
    keys: BTreeMap<SubjectId, HashSet<Key>>,
    watches: HashMap<WatchDescriptor, HashMap<Option<OsString>, BTreeSet<SubjectId>>>,
}

impl Book {
    /// From now on the subject waits for these. Whether one of them is new.
    pub(super) fn replace(&mut self, id: SubjectId, keys: HashSet<Key>) -> bool {
        let before = self.keys.remove(&id).unwrap_or_default();
        for key in before.difference(&keys) {
            self.strike(id, key);
        }
        for key in keys.difference(&before) {
            self.watches.entry(key.watch).or_default().entry(key.name.clone()).or_default().insert(id);
        }
        let is_new = !keys.is_subset(&before);
        self.keys.insert(id, keys);
        is_new
    }

    /// The subject waits for nothing any more.
    pub(super) fn remove(&mut self, id: SubjectId) {
        for key in self.keys.remove(&id).unwrap_or_default() {
            self.strike(id, &key);
        }
    }

    fn strike(&mut self, id: SubjectId, key: &Key) {
        let Some(names) = self.watches.get_mut(&key.watch) else { return };
        let Some(ids) = names.get_mut(&key.name) else { return };
        ids.remove(&id);
        if ids.is_empty() {
            names.remove(&key.name);
        }
    }

    /// Who waits for this.
    pub(super) fn waiting(&self, key: &Key) -> Vec<SubjectId> {
        let ids = self.watches.get(&key.watch).and_then(|names| names.get(&key.name));
        ids.into_iter().flatten().copied().collect()
    }

    /// The kernel has taken the watch away: those who had it.
    pub(super) fn lost(&mut self, watch: WatchDescriptor) -> BTreeSet<SubjectId> {
        let ids: BTreeSet<SubjectId> =
            self.watches.remove(&watch).into_iter().flatten().flat_map(|(_, ids)| ids).collect();
        for id in &ids {
            if let Some(keys) = self.keys.get_mut(id) {
                keys.retain(|key| key.watch != watch);
            }
        }
        ids
    }

    /// Makes sure that the book knows a watch, if only to find that nobody wants it.
    pub(super) fn note(&mut self, watch: WatchDescriptor) {
        self.watches.entry(watch).or_default();
    }

    /// Takes out the watches that nobody waits for.
    pub(super) fn prune(&mut self) -> Vec<WatchDescriptor> {
        let idle: Vec<_> = self.watches.iter().filter(|(_, names)| names.is_empty()).map(|(watch, _)| *watch).collect();
        for watch in &idle {
            self.watches.remove(watch);
        }
        idle
    }
}
