//! Integers that sum up: proportional division by the method of the largest remainder, in stages.

/// What a pod claims, each stage at least the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// What it may always hold. 0: it gets nothing.
    pub floor: u32,
    /// What its load needs on average.
    pub mean: u32,
    /// What its load needed at most.
    pub peak: u32,
    /// Its part of what nobody needs.
    pub weight: u64,
    /// What it has: of two equal claims the one that has more keeps it.
    pub held: u32,
    /// What it may get at most.
    pub most: u32,
}

/// Divides `whole`: floors, means, peaks, then `headroom` is set aside, then the rest by weight.
///
/// The floors must fit. The sum of the result is `whole` less what was set aside, if any claim has a weight.
pub(super) fn divide(whole: u32, claims: &[Claim], headroom: u32) -> Vec<u32> {
    let mut shares: Vec<u32> = claims.iter().map(|claim| claim.floor).collect();
    let mut left = u64::from(whole).saturating_sub(shares.iter().map(|&share| u64::from(share)).sum());
    for stage in [|claim: &Claim| claim.mean, |claim: &Claim| claim.peak] {
        let wanted: Vec<u64> =
            claims.iter().zip(&shares).map(|(claim, &share)| u64::from(stage(claim).saturating_sub(share))).collect();
        let fits = wanted.iter().sum::<u64>().min(left);
        add(&mut shares, claims, &proportional(fits, &wanted, claims));
        left -= fits;
    }
    left = left.saturating_sub(u64::from(headroom));
    let weights: Vec<u64> = claims.iter().map(|claim| if claim.most > claim.peak { claim.weight } else { 0 }).collect();
    add(&mut shares, claims, &proportional(left, &weights, claims));
    shares
}

fn add(shares: &mut [u32], claims: &[Claim], more: &[u64]) {
    for ((share, claim), &more) in shares.iter_mut().zip(claims).zip(more) {
        *share = u32::try_from(u64::from(*share) + more).unwrap_or(u32::MAX).min(claim.most);
    }
}

/// Divides `whole` in proportion to `weights`; all zero: nobody gets anything.
fn proportional(whole: u64, weights: &[u64], claims: &[Claim]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    if sum == 0 || whole == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: u64| u128::from(whole) * u128::from(weight);
    let mut parts: Vec<u64> = weights.iter().map(|&weight| u64::try_from(exact(weight) / sum).unwrap_or(0)).collect();
    let missing = whole - parts.iter().sum::<u64>();
    let mut by_remainder: Vec<usize> = (0..weights.len()).filter(|&index| weights[index] > 0).collect();
    by_remainder.sort_by_key(|&index| std::cmp::Reverse((exact(weights[index]) % sum, claims[index].held)));
    for &index in by_remainder.iter().take(usize::try_from(missing).unwrap_or(usize::MAX)) {
        parts[index] += 1;
    }
    parts
}

/// Divides `whole` evenly, but nobody gets less than its `least`, which must fit; what is left over goes to those that have more
/// already, so that it does not wander.
pub(super) fn evenly(whole: u64, held: &[u32], least: &[u32]) -> Vec<u32> {
    let mut shares = least.to_vec();
    let (mut even, mut left): (Vec<usize>, u64) = ((0..held.len()).collect(), whole);
    let (each, over) = loop {
        let count = u64::try_from(even.len()).unwrap_or(u64::MAX).max(1);
        let each = u32::try_from(left / count).unwrap_or(u32::MAX);
        let (fit, more): (Vec<usize>, Vec<usize>) = even.iter().partition(|&&index| least[index] <= each);
        if more.is_empty() {
            break (each, left % count);
        }
        left = left.saturating_sub(more.iter().map(|&index| u64::from(least[index])).sum());
        even = fit;
    };
    for &index in &even {
        shares[index] = each;
    }
    even.sort_by_key(|&index| std::cmp::Reverse(held[index]));
    for &index in even.iter().take(usize::try_from(over).unwrap_or(0)) {
        shares[index] = each.saturating_add(1);
    }
    shares
}
