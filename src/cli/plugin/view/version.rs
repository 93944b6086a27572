//! Versions, as the plugin compares its own with others.

use std::cmp::Ordering;

/// That this plugin and the operator are of different versions, and what follows from it; none where they are of the same.
pub fn skew(operator: &str) -> Option<(String, &'static str)> {
    let plugin = env!("CARGO_PKG_VERSION");
    match order(plugin, operator) {
        Ordering::Equal => None,
        Ordering::Greater => Some((
            format!("this plugin {plugin} is newer than the operator {operator}"),
            "it may show nothing where the operator says nothing yet: use the plugin of its version, or upgrade the release",
        )),
        Ordering::Less => Some((
            format!("this plugin {plugin} is older than the operator {operator}"),
            "it may not know what the operator says: use the plugin of its version",
        )),
    }
}

/// Which of two versions is the later one, number by number.
fn order(one: &str, other: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u64> {
        let core = version.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
        core.split('.').map(|number| number.parse().unwrap_or(0)).collect()
    };
    numbers(one).cmp(&numbers(other)).then_with(|| if one == other { Ordering::Equal } else { one.cmp(other) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(order("0.10.0", "0.9.1"), Ordering::Greater);
        assert_eq!(order("0.1.0", "v0.1.0-rc1"), order("0.1.0", "v0.1.0-rc1"));
        assert_eq!(order("0.1.0", "0.2.0"), Ordering::Less);
        assert_eq!(order("0.1.0", "0.1.0"), Ordering::Equal);
    }
}
