//! What our own writes say of a pod.
//!
//! A plan that is made from a cache which lags behind our own writes could hand out the same connections twice, so their
//! answers go into the index at once. An answer says how a pod is that was there when it was written, and nothing more: while it was
//! under way the watch may have told that the pod is gone, or that another one has taken its name. So it changes only what the
//! index has of that very pod, by its uid, and only to something newer. A write whose outcome is unknown leaves a doubt: until the
//! object has changed, the larger of both figures is counted.

use k8s_openapi::api::core::v1::Pod;

use super::index::{PodIndex, key_of};
use crate::{controller::resource_version::is_older, domain::PoolKey};

impl PodIndex {
    /// Takes in the answer to our own write. Nothing changes where the index does not have this very pod any more.
    pub fn answered(&self, pod: &Pod) {
        let key = key_of(pod);
        let mut inner = self.inner.write();
        let is_newer = inner.facts(&key).is_some_and(|facts| {
            Some(&*facts.uid) == pod.metadata.uid.as_deref()
                && !is_older(pod.metadata.resource_version.as_deref(), Some(&facts.resource_version))
        });
        if is_newer {
            if let Some(list) = &mut inner.list {
                list.answered.insert(key.clone());
            }
            inner.take_in(key, pod);
        }
    }

    /// A write was answered with that there is no such pod: it holds nothing any more, whatever the watch has yet to tell.
    pub fn gone(&self, pool: &PoolKey, name: &str, uid: &str) {
        let key = (pool.namespace.clone(), name.to_owned());
        let mut inner = self.inner.write();
        if inner.facts(&key).is_some_and(|known| *known.uid == *uid) {
            inner.remove(&key);
        }
    }

    /// A write that raises what is counted to `granted` has no known outcome: until the object changes, it counts.
    pub fn doubt(&self, pool: &PoolKey, name: &str, uid: &str, resource_version: &str, granted: u32) {
        let mut inner = self.inner.write();
        if let Some(facts) = inner.facts_mut(&(pool.namespace.clone(), name.to_owned()))
            && *facts.uid == *uid
            && facts.resource_version == resource_version
        {
            facts.doubtful_granted = facts.doubtful_granted.max(granted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::index::tests::{grant, pod, share_of, shop},
        *,
    };

    #[test]
    fn an_event_that_is_older_than_our_own_write_does_not_take_it_back() {
        let index = PodIndex::default();
        index.apply(&pod(5, "u", &grant(3)));
        index.answered(&pod(9, "u", &grant(7)));
        assert!(index.apply(&pod(6, "u", &grant(3))).is_empty(), "the watch lags behind");
        assert_eq!(share_of(&index), Some(7));
    }

    #[test]
    fn a_list_that_was_read_before_our_own_write_does_not_take_it_back() {
        let index = PodIndex::default();
        index.apply(&pod(5, "u", &grant(3)));
        index.list_begins();
        index.answered(&pod(9, "u", &grant(7)));
        assert!(index.apply(&pod(6, "u", &grant(3))).is_empty(), "it was on the first page");
        assert!(index.list_ends().is_empty());
        assert_eq!(share_of(&index), Some(7));
        index.list_begins();
        index.apply(&pod(6, "u", &grant(3)));
        assert_eq!(share_of(&index), Some(3), "the next one was read after it");
    }

    #[test]
    fn a_write_of_unknown_outcome_counts_until_the_object_has_changed() {
        let index = PodIndex::default();
        index.apply(&pod(5, "u", &grant(3)));
        index.doubt(&shop(), "a", "u", "5", 12);
        index.apply(&pod(5, "u", &grant(3)));
        assert_eq!(index.of(&shop())[0].doubtful_granted, 12);
        index.apply(&pod(6, "u", &grant(3)));
        assert_eq!(index.of(&shop())[0].doubtful_granted, 0);
    }

    #[test]
    fn an_answer_brings_no_pod_back_that_the_watch_has_seen_end_meanwhile() {
        let index = PodIndex::default();
        index.apply(&pod(5, "u", &grant(3)));
        assert_eq!(index.delete(&pod(8, "u", &grant(3))), Some(shop()));
        index.answered(&pod(7, "u", &grant(9)));
        assert!(index.of(&shop()).is_empty(), "its share is free for others");
    }

    #[test]
    fn an_answer_about_a_pod_that_was_replaced_leaves_its_successor_alone() {
        let index = PodIndex::default();
        index.apply(&pod(5, "old", &grant(3)));
        index.apply(&pod(9, "new", &grant(1)));
        index.answered(&pod(7, "old", &grant(9)));
        index.answered(&pod(12, "old", &grant(9)));
        assert_eq!((share_of(&index), &*index.of(&shop())[0].uid), (Some(1), "new"));
    }

    #[test]
    fn a_pod_that_a_write_does_not_find_is_gone_and_its_successor_is_not() {
        let index = PodIndex::default();
        index.apply(&pod(5, "old", &grant(3)));
        index.gone(&shop(), "a", "old");
        assert!(index.of(&shop()).is_empty());
        index.apply(&pod(9, "new", &grant(1)));
        index.gone(&shop(), "a", "old");
        assert_eq!(share_of(&index), Some(1));
    }

    #[test]
    fn an_answer_with_which_all_containers_have_ended_frees_what_the_pod_had() {
        let index = PodIndex::default();
        index.apply(&pod(5, "u", &grant(3)));
        let mut ended = pod(7, "u", &grant(3));
        ended.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
        index.answered(&ended);
        assert!(index.of(&shop()).is_empty());
    }
}
