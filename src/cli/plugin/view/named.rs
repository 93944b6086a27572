//! Lists in a sentence: the first few by name, and how many more there are.

/// So many are named.
pub const MOST_NAMED: usize = 5;

/// `a, b, c, d, e and 3 more`.
pub fn named(all: &[String]) -> String {
    let (named, more) = all.split_at(all.len().min(MOST_NAMED));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    named.join(", ") + &more
}
