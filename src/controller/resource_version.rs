//! Which of two states of an object came first, by their resourceVersions.
//!
//! Versions of one kind are compared as numbers, as client-go does. That holds within one history of the cluster: etcd that was restored
//! from a backup counts on from there, and what is written then has smaller numbers than what was seen before.

/// Whether this version is of before `than`. False where one of them is no number.
pub fn is_older(version: Option<&str>, than: Option<&str>) -> bool {
    let number = |version: Option<&str>| version.and_then(|version| version.parse::<u64>().ok());
    number(version).zip(number(than)).is_some_and(|(version, than)| version < than)
}

#[cfg(test)]
mod tests {
    use super::is_older;

    #[test]
    fn versions_are_compared_as_numbers_and_what_is_none_is_never_older() {
        assert!(is_older(Some("9"), Some("10")));
        assert!(!is_older(Some("10"), Some("10")) && !is_older(Some("11"), Some("10")));
        assert!(!is_older(None, Some("10")) && !is_older(Some("9"), None) && !is_older(Some("a"), Some("10")));
    }
}
