//! One noun, one type: whoever reads a name knows which thing is meant, without looking where it was imported from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::source::{Token, sources, tokens, without_tests};

/// Names that several public types may have, and why.
const SHARED: &[(&str, &str)] = &[];

/// The types that code defines for others: whatever is `pub`, as far as that may reach.
fn public_types(source: &str) -> Vec<String> {
    let tokens = without_tests(&tokens(source));
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_public = tokens[at] == Token::Word("pub".to_owned());
        at += 1;
        if !is_public {
            continue;
        }
        if tokens.get(at) == Some(&Token::Mark('(')) {
            at += tokens[at..].iter().take_while(|token| **token != Token::Mark(')')).count() + 1;
        }
        if let (Some(Token::Word(keyword)), Some(Token::Word(name))) = (tokens.get(at), tokens.get(at + 1))
            && ["struct", "enum", "union", "trait", "type"].contains(&keyword.as_str())
        {
            found.push(name.clone());
        }
    }
    found
}

/// Where each public type of `src` is defined.
fn places() -> BTreeMap<String, Vec<String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources(&src) {
        // a file of tests is declared under #[cfg(test)] by the module that it belongs to
        if file.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        let inside = file.strip_prefix(&src).expect("inside").display().to_string();
        for name in public_types(&fs::read_to_string(&file).expect("a file")) {
            places.entry(name).or_default().push(inside.clone());
        }
    }
    places
}

#[test]
fn no_two_public_types_have_the_same_name() {
    let known: BTreeSet<&str> = SHARED.iter().map(|(name, _)| *name).collect();
    let twice = places().into_iter().filter(|(name, places)| places.len() > 1 && !known.contains(name.as_str()));
    let twice: Vec<String> = twice.map(|(name, places)| format!("{name}: {}", places.join(", "))).collect();
    assert!(
        twice.is_empty(),
        "name each of these types by what it is, or say in SHARED why they may have one name:\n{}",
        twice.join("\n")
    );
}

#[test]
fn the_list_of_shared_names_has_only_names_that_are_shared() {
    let places = places();
    let is_shared = |name: &str| places.get(name).is_some_and(|places| places.len() > 1);
    let others: Vec<&str> = SHARED.iter().map(|(name, _)| *name).filter(|name| !is_shared(name)).collect();
    assert!(others.is_empty(), "no two types have these names: take them off the list: {others:?}");
}

#[test]
fn public_types_are_found_whatever_their_visibility_and_private_and_test_ones_are_not() {
    let source = "pub struct A<T>(T);\npub(crate) enum B { C }\npub(in crate::x) type D = u8;\nstruct E;\n\
                  mod inner { pub(super) trait F { type G; } }\n#[cfg(test)]\nmod tests { pub struct H; }\n// pub struct I;\n\
                  impl X { pub const fn j() {} }";
    assert_eq!(public_types(source), ["A", "B", "D", "F"]);
}
