//! What apply would change, for people.

use std::fmt::Write as _;

use super::{ApplyError, Target, apply, plan::Edit, policy, read, text::shown_path, value};

/// The keys that [`super::apply()`] would set, in the manner of a unified diff; `None` if there is nothing to do.
///
/// The lines are written anew from key and value, with the number of the line they stand on: a line of the file may
/// hold other keys and comments, and an old value that is not short and plain may be a secret.
pub fn diff(target: Target<'_>) -> Result<Option<String>, ApplyError> {
    let (place, snapshot) = read::look(target.path, target.home).map_err(ApplyError::Read)?;
    let path = shown_path(&place.path());
    let Some(snapshot) = snapshot else {
        let plan = apply::plan_for_new(&target)?;
        let from = match target.template {
            Some(template) => format!("# a copy of {}, with\n", shown_path(template)),
            None => String::new(),
        };
        return Ok(Some(format!("--- /dev/null\n+++ {path}\n{from}{}", hunks(&plan.edits, "", &plan.text))));
    };
    let plan = apply::plan_for(&target, &place.path(), &snapshot)?;
    if plan.edits.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&snapshot.bytes);
    Ok(Some(format!("--- {path}\n+++ {path}\n{}", hunks(&plan.edits, &text, &plan.text))))
}

fn hunks(edits: &[Edit], before: &str, after: &str) -> String {
    let mut out = String::new();
    // How much further on a byte stands after the edits before it.
    let mut shift = 0_isize;
    for edit in edits {
        let was = policy::position(before, edit.range.start).0;
        let at = edit.range.start.saturating_add_signed(shift);
        // An insertion may begin with the newline that the line above lacked.
        let lead = edit.replacement.len() - edit.replacement.trim_start_matches(['\r', '\n']).len();
        let now = policy::position(after, at + lead).0;
        shift = shift.saturating_add_unsigned(edit.replacement.len()).saturating_sub_unsigned(edit.range.len());
        let removed: Vec<_> = edit.changes.iter().filter_map(|c| Some((&c.key, c.was.as_ref()?))).collect();
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(out, "@@ -{was},{} +{now},{} @@", removed.len(), edit.changes.len());
        for (key, value) in removed {
            let _ = writeln!(out, "-{key} = {}", value::shown(value));
        }
        for change in &edit.changes {
            let _ = writeln!(out, "+{} = {}", change.key, value::literal(&change.now));
        }
    }
    out
}
