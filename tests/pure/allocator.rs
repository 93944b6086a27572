//! Whole connections are handed out in one place, over the pools of a server as over the pods of a pool.

use std::{fs, path::Path};

use crate::source::{Token, sources, tokens, without_tests};

/// The one way to divide.
const ALLOCATOR: &str = "src/decide/filling.rs";
/// What it is used for: what pools are entitled to, what they lend, what pods are entitled to.
const USERS: [&str; 3] =
    ["src/decide/budget/entitlement.rs", "src/decide/budget/moves.rs", "src/decide/shares/divide.rs"];
/// Settings that are counted through, and no connections.
const OTHER_REMAINDERS: [&str; 1] = ["src/decide/sizing/adaptive.rs"];

/// Files below `src/decide` (without tests) in which something stands.
fn files_with(stands: impl Fn(&[Token]) -> bool) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = sources(&root.join("src/decide"));
    assert!(!files.is_empty(), "src/decide is empty");
    let mut found: Vec<String> = files
        .into_iter()
        .filter(|file| file.file_stem().is_none_or(|stem| stem != "tests"))
        .filter(|file| stands(&without_tests(&tokens(&fs::read_to_string(file).expect("a file")))))
        .map(|file| file.strip_prefix(root).expect("inside").display().to_string())
        .collect();
    found.sort();
    found
}

/// Whoever rounds by what a division leaves over has a way to divide of his own.
fn takes_a_remainder(tokens: &[Token]) -> bool {
    tokens.iter().any(|token| match token {
        Token::Mark(mark) => *mark == '%',
        Token::Word(word) => ["_rem", "_rem_euclid"].iter().any(|end| word.ends_with(end)) || word == "rem_euclid",
        Token::Path => false,
    })
}

#[test]
fn connections_are_divided_by_one_function_and_nobody_hands_out_remainders_of_his_own() {
    assert_eq!(files_with(takes_a_remainder), OTHER_REMAINDERS);
    let names_it =
        |tokens: &[Token]| tokens.windows(2).any(|pair| pair == [Token::Word("filling".to_owned()), Token::Path]);
    assert_eq!(files_with(names_it), USERS);
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(ALLOCATOR).exists(), "{ALLOCATOR} is gone");
}

#[test]
fn the_check_finds_the_ways_to_round() {
    for way in ["let over = left % count;", "left %= 3;", "exact.checked_rem(sum)", "whole.rem_euclid(3)"] {
        assert!(takes_a_remainder(&tokens(way)), "{way}");
    }
    assert!(!takes_a_remainder(&tokens("let each = left / count; // 10 % of it\n let text = \"5 %\";")));
}
