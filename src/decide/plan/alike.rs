//! What most pods of a pool have alike is looked at once.

use std::sync::Arc;

/// A question about a value that pods share, asked of one pod after the other: anew only where a pod has another value than the one
/// before it. Of thousands of pods the comparison of what each was injected with would take longer than all else that is asked of them.
pub(super) struct AskedOnce<'a, T> {
    last: Option<(&'a Arc<T>, bool)>,
}

impl<T> Default for AskedOnce<'_, T> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl<'a, T> AskedOnce<'a, T> {
    /// The answer for this value.
    pub(super) fn of(&mut self, value: &'a Arc<T>, ask: impl FnOnce(&T) -> bool) -> bool {
        match self.last {
            Some((known, answer)) if Arc::ptr_eq(known, value) => answer,
            _ => self.last.insert((value, ask(value))).1,
        }
    }
}
