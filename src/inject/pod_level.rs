//! PURE: requests and limits of the pod as a whole (Kubernetes 1.34 has them on by default), which must hold those of all its
//! containers: with a sidecar more in the pod they grow by what it asks for, or the API server refuses the pod.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::patch::PatchBuilder;

/// What can be asked for the pod as a whole and has an amount of the sidecar's in it.
const RESOURCES: [&str; 2] = ["cpu", "memory"];

/// Whether requests and limits of the pod as a whole make it Guaranteed; None: it has none.
pub fn is_guaranteed(spec: &PodSpec) -> Option<bool> {
    let whole = spec.resources.as_ref().filter(|whole| whole.requests.is_some() || whole.limits.is_some())?;
    let amount = |amounts: &Option<BTreeMap<String, Quantity>>, resource: &str| {
        amounts.as_ref().and_then(|amounts| amounts.get(resource)).cloned()
    };
    Some(RESOURCES.iter().all(|resource| {
        let (request, limit) = (amount(&whole.requests, resource), amount(&whole.limits, resource));
        limit.as_ref().is_some_and(|limit| milli(&limit.0) != Some(0)) && (request.is_none() || request == limit)
    }))
}

/// Adds what the sidecar asks for to what the pod asks for as a whole. Where the sidecar has no limit, the limit of the pod grows
/// by its request: what the application was promised stays its own.
pub fn make_room(builder: &mut PatchBuilder, spec: &PodSpec, sidecar: &ResourceRequirements) {
    let Some(whole) = &spec.resources else { return };
    let requests = sidecar.requests.as_ref();
    let of_sidecar = |resource: &str, limits: Option<&BTreeMap<String, Quantity>>| {
        limits
            .and_then(|limits| limits.get(resource))
            .or_else(|| requests?.get(resource))
            .map(|amount| amount.0.clone())
    };
    for (field, amounts, limits) in
        [("requests", &whole.requests, None), ("limits", &whole.limits, sidecar.limits.as_ref())]
    {
        for resource in RESOURCES {
            let before = amounts.as_ref().and_then(|amounts| amounts.get(resource));
            let sum = before.zip(of_sidecar(resource, limits)).and_then(|(before, more)| sum(&before.0, &more));
            if let Some(sum) = sum {
                builder.replace(["spec", "resources", field, resource], Quantity(sum));
            }
        }
    }
}

/// Two quantities in one; None where one cannot be read, which the API server refuses itself.
fn sum(one: &str, other: &str) -> Option<String> {
    const MEBIBYTE: i128 = 1 << 20;
    let milli = milli(one)?.checked_add(milli(other)?)?;
    let whole = milli / 1000;
    Some(match (milli % 1000, whole % MEBIBYTE) {
        (0, 0) if whole > 0 => format!("{}Mi", whole / MEBIBYTE),
        (0, _) => whole.to_string(),
        _ => format!("{milli}m"),
    })
}

/// A quantity in thousandths, rounded up. None: it is none, or larger than any machine.
fn milli(quantity: &str) -> Option<i128> {
    const SUFFIXES: [(&str, i128); 14] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
        ("m", 0),
        ("", 1),
    ];
    let (digits, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((quantity.strip_suffix(suffix)?, *factor)))?;
    // thousandths of a thousandth are none
    let factor = if factor == 0 { 1 } else { factor.checked_mul(1000)? };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
    if digits.is_empty() || fraction.len() > 9 || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let places = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let number: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scaled = number.checked_mul(factor)?;
    Some(scaled / places + i128::from(scaled % places != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_added_by_what_they_stand_for() {
        for (one, other, expected) in [
            ("100m", "10m", "110m"),
            ("1", "250m", "1250m"),
            ("1.5", "500m", "2"),
            ("128Mi", "64Mi", "192Mi"),
            ("1Gi", "64Mi", "1088Mi"),
            ("1G", "64Mi", "1067108864"),
            ("0.5Gi", "32Mi", "544Mi"),
            ("0", "10m", "10m"),
        ] {
            assert_eq!(sum(one, other).as_deref(), Some(expected), "{one} + {other}");
        }
        for wrong in ["", "Mi", "-1", "1 Gi", "1e", "x", "1.2.3"] {
            assert_eq!(sum(wrong, "1"), None, "{wrong}");
        }
    }
}
