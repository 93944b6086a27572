use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};

use super::*;

fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn anchor(name: &str) -> Anchor {
    anchors(authority(name).1.as_bytes()).remove(0)
}

#[test]
fn the_anchors_of_a_bundle_are_those_that_signed_themselves_each_with_its_own_text() {
    let (root, root_pem) = authority("Root of ours");
    let (_, other_pem) = authority("another");
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let between = params.signed_by(&KeyPair::generate().unwrap(), &root).unwrap().pem();
    let bundle = format!("# of ours\n{root_pem}\n{between}Subject: x\n{other_pem}");
    let found = anchors(bundle.as_bytes());
    assert_eq!(found.iter().map(Anchor::name).collect::<Vec<_>>(), ["Root of ours", "another"]);
    assert_eq!(String::from_utf8_lossy(found[0].pem()).trim(), root_pem.trim());
    assert_eq!(anchors(found[1].pem()), found[1..]);
    assert_eq!(size(bundle.as_bytes()).certificates, 3, "each server connection has a copy of that one too");
    assert!(found[0].is_in(bundle.as_bytes()) && !found[0].is_in(other_pem.as_bytes()));
}

#[test]
fn one_certificate_stands_for_the_bundle_once_it_was_found_and_another_one_when_the_database_shows_another() {
    let (first, second) = (anchor("first"), anchor("second"));
    let mut anchoring = Anchoring::new(None);
    assert!(anchoring.wants_look(0));
    anchoring.looks(0);
    assert!(!anchoring.wants_look(10), "it is being looked at");
    assert!(anchoring.saw(20, vec![first.clone()]));
    assert_eq!(anchoring.anchor(), Some(&first));
    assert!(!anchoring.wants_look(1_000_000), "nobody doubts it");
    anchoring.failed(UNDER_WAY);
    assert!(!anchoring.wants_look(UNDER_WAY), "that connection was under way with the one before");
    anchoring.failed(50_000);
    assert!(anchoring.wants_look(50_000));
    assert!(anchoring.saw(50_010, vec![second.clone()]));
    assert_eq!(anchoring.anchor(), Some(&second));
}

#[test]
fn what_pgbouncer_refuses_twice_gives_way_to_the_next_and_then_to_the_whole_bundle_until_there_is_another_one() {
    let (first, second) = (anchor("first"), anchor("second"));
    let both = || vec![first.clone(), second.clone()];
    let mut anchoring = Anchoring::new(None);
    anchoring.saw(0, both());
    let mut now = 0;
    let mut refuse = |anchoring: &mut Anchoring| {
        for _ in 0..STRIKES {
            now += 10_000;
            anchoring.failed(now);
            assert!(anchoring.wants_look(now));
            anchoring.saw(now, both());
        }
    };
    refuse(&mut anchoring);
    assert_eq!(anchoring.anchor(), Some(&second));
    refuse(&mut anchoring);
    assert_eq!(anchoring.trust(), &Trust::Whole(Why::Refused("first".to_owned())));
    assert!(!anchoring.saw(90_000, both()), "it is not tried again");
    let large = |anchors: &[&Anchor]| {
        let others = (0..FEW).map(|number| authority(&format!("stranger {number}")).1.into_bytes());
        anchors.iter().map(|anchor| anchor.pem().to_owned()).chain(others).collect::<Vec<_>>().concat()
    };
    assert!(!anchoring.bundle_is(100_000, &large(&[&first, &second])), "it is the whole one still");
    assert!(anchoring.wants_look(100_000) && anchoring.saw(100_000, both()));
    assert!(!anchoring.bundle_is(200_000, &large(&[&first])), "the same one is part of the next bundle");
    assert_eq!(anchoring.anchor(), Some(&first));
    assert!(anchoring.bundle_is(300_000, &large(&[&second])));
    assert_eq!(anchoring.trust(), &Trust::Whole(Why::NotSeen));
}

#[test]
fn a_small_bundle_is_given_whole_so_that_a_database_may_go_from_one_of_its_cas_to_another() {
    let (old, new) = (anchor("old"), anchor("new"));
    let mut anchoring = Anchoring::new(None);
    assert!(!anchoring.bundle_is(0, &[old.pem(), new.pem()].concat()), "it is the whole one still");
    anchoring.failed(10_000);
    assert!(!anchoring.wants_look(10_000) && !anchoring.saw(10_000, vec![old.clone()]));
    assert_eq!(anchoring.trust(), &Trust::Whole(Why::Few));
    let mut anchoring = Anchoring::new(Some(old.clone()));
    assert!(
        anchoring.bundle_is(0, &[old.pem(), new.pem()].concat()),
        "what a larger one was replaced by is too little now"
    );
    assert_eq!(anchoring.trust(), &Trust::Whole(Why::Few));
}

#[test]
fn a_failure_that_is_explained_or_followed_by_a_login_is_held_against_nobody() {
    let first = anchor("first");
    let mut anchoring = Anchoring::new(Some(first.clone()));
    for round in 1..10 {
        anchoring.failed(round * 10_000);
        if round % 2 == 0 {
            anchoring.was_not_verified();
            assert!(!anchoring.wants_look(round * 10_000));
        } else {
            anchoring.saw(round * 10_000, vec![first.clone()]);
            anchoring.verified();
        }
        assert_eq!(anchoring.anchor(), Some(&first));
    }
}

#[test]
fn where_no_certificate_stands_for_the_bundle_it_is_looked_for_ever_more_seldom() {
    let mut anchoring = Anchoring::new(None);
    let mut looks = 0;
    for now in (0..7_200_000).step_by(1000) {
        if anchoring.wants_look(now) {
            looks += 1;
            anchoring.looks(now);
            anchoring.saw(now, Vec::new());
        }
    }
    assert!((15..25).contains(&looks), "{looks} in two hours");
    assert_eq!(anchoring.trust(), &Trust::Whole(Why::NoAnchor));
}

proptest! {
    #[test]
    fn no_bundle_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..400usize) {
        let _ = (element(&bytes), names(&bytes), anchors(&bytes));
        let der = anchor("cut").der;
        let _ = names(&der[..cut.min(der.len())]);
    }
}
