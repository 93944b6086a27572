//! Which pods a pool selects, and whose a pod is when several pools select it.

use std::collections::BTreeMap;

use super::{ConnectionPool, LabelOperator, LabelRequirement, Selector, Topology};

impl Selector {
    /// Whether all of it holds for these labels, with the meaning that Kubernetes gives a label selector: `NotIn` holds
    /// for an absent label too. An empty selector, which the schema refuses, selects nothing.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let empty = self.match_labels.is_empty() && self.match_expressions.is_empty();
        !empty
            && self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }
}

impl ConnectionPool {
    /// The selector of the application's pods. None: no pod of an application gets a pooler of this pool.
    pub fn selector(&self) -> Option<&Selector> {
        let workload = self.spec.workload.as_ref().filter(|_| self.spec.topology == Topology::Sidecar);
        workload.map(|workload| &workload.selector)
    }

    /// Whether pods with these labels are meant to get a pooler of this pool.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector().is_some_and(|selector| selector.matches(labels))
    }
}

impl LabelRequirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            LabelOperator::In => value.is_some_and(|value| self.values.contains(value)),
            LabelOperator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

/// The pool that a pod with these labels belongs to, out of the pools of its namespace: of several that select it the
/// oldest, and of those created in one second the first by name. Pools that are being deleted or that put no pooler into
/// pods select nothing.
pub fn pool_of_labels<'a>(
    labels: &BTreeMap<String, String>,
    pools: impl IntoIterator<Item = &'a ConnectionPool>,
) -> Option<&'a ConnectionPool> {
    pools.into_iter().filter(|pool| pool.metadata.deletion_timestamp.is_none() && pool.selects(labels)).min_by_key(
        |pool| {
            // A pool without a creation time has not been stored yet: it is the youngest.
            let created = pool.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created.is_none(), created, pool.metadata.name.as_deref())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pool(name: &str, created: &str, selector: &str) -> ConnectionPool {
        serde_yaml::from_str(&format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {{name: {name}, creationTimestamp: {created}}}\n\
             spec: {{workload: {{selector: {selector}}}, upstream: {{host: pg, database: d, credentialsRef: {{name: s}}}}}}"
        ))
        .expect("the fixture is a pool")
    }

    #[test]
    fn every_operator_means_what_it_means_in_kubernetes() {
        let selects = |expression: &str, pairs: &[(&str, &str)]| {
            let selector: Selector =
                serde_yaml::from_str(&format!("{{matchExpressions: [{expression}]}}")).expect("a selector");
            selector.matches(&labels(pairs))
        };
        let app = [("app", "shop")];
        assert!(selects("{key: app, operator: In, values: [shop, cart]}", &app));
        assert!(!selects("{key: app, operator: In, values: [cart]}", &app));
        assert!(!selects("{key: tier, operator: In, values: [web]}", &app));
        assert!(selects("{key: app, operator: NotIn, values: [cart]}", &app));
        assert!(selects("{key: tier, operator: NotIn, values: [web]}", &app), "an absent label is in no set");
        assert!(selects("{key: app, operator: Exists}", &app));
        assert!(selects("{key: tier, operator: DoesNotExist}", &app));
        assert!(!Selector::default().matches(&labels(&app)), "an empty selector must not take every pod");
    }

    #[test]
    fn of_two_pools_that_select_a_pod_the_older_has_it() {
        let old = pool("zebra", "'2026-01-01T00:00:00Z'", "{matchLabels: {app: shop}}");
        let new = pool("ant", "'2026-01-02T00:00:00Z'", "{matchLabels: {app: shop}}");
        let shop = labels(&[("app", "shop")]);
        assert_eq!(pool_of_labels(&shop, [&new, &old]), Some(&old));
        assert_eq!(pool_of_labels(&labels(&[("app", "cart")]), [&new, &old]), None);
        let twin = pool("yak", "'2026-01-01T00:00:00Z'", "{matchLabels: {app: shop}}");
        assert_eq!(pool_of_labels(&shop, [&old, &twin]), Some(&twin), "born in one second: by name");
    }
}
