//! Places in the repository that documents and sources name are there.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where names are looked for, and what a name begins with that means a place in the repository.
const ROOTS: [&str; 8] = ["src", "tests", "benches", "examples", "docs", "charts", "crds", "findings"];
/// Made when something runs, or data: nobody writes about places there.
const LEFT_OUT: [&str; 4] = ["benches/results", "tests/pure/golden", "examples/traces", "findings"];

/// All files below, but those left out.
fn files(root: &Path, below: &Path) -> Vec<PathBuf> {
    let inside = below.strip_prefix(root).expect("inside");
    if LEFT_OUT.iter().any(|out| inside == Path::new(out)) {
        return Vec::new();
    }
    if below.is_file() {
        return vec![below.to_owned()];
    }
    let entries = fs::read_dir(below).expect("the directory is there");
    entries.flat_map(|entry| files(root, &entry.expect("an entry").path())).collect()
}

/// The places of the repository that a text names. What has a variable in it (`benches/results/NAME`) is none.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "./_-$<{".contains(c)));
    words.filter_map(|word| {
        // a link from docs to what stands beside it
        let place = word.trim_start_matches("../").trim_end_matches(['.', '/', '-']);
        let (first, rest) = place.split_once('/')?;
        let is_variable =
            |part: &str| part.contains(['$', '<', '{']) || !part.contains(|c: char| c.is_ascii_lowercase());
        (ROOTS.contains(&first) && !rest.split('/').any(is_variable)).then_some(place)
    })
}

#[test]
fn every_place_that_is_named_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    let texts = ROOTS
        .iter()
        .map(|place| root.join(place))
        .chain(["README.md", "Cargo.toml", "CHANGELOG.md"].map(|file| root.join(file)));
    for file in texts.flat_map(|place| files(root, &place)) {
        // binary files name nothing
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let inside = file.strip_prefix(root).expect("inside");
        let is_left_out = |place: &str| LEFT_OUT.iter().any(|out| Path::new(place).starts_with(out));
        let gone = named(&text).filter(|place| !is_left_out(place) && !root.join(place).exists());
        missing.extend(gone.map(|place| format!("{}: {place}", inside.display())));
    }
    assert!(missing.is_empty(), "places that are named and are not there:\n{}", missing.join("\n"));
}

#[test]
fn places_are_found_in_prose_links_and_comments_and_variables_are_none() {
    let text = "see `tests/pure/main.rs`, [it](../src/objects/mod.rs), //! docs/operator.md. And benches/results/NAME or src/{a,b}, x/src/d";
    let found: Vec<&str> = named(text).collect();
    assert_eq!(found, ["tests/pure/main.rs", "src/objects/mod.rs", "docs/operator.md"]);
}
