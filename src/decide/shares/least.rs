//! What the limit of each pod is never below: its part of `minAllowed`.

use super::{Member, PodPhase, SharingRule, to_u32};

/// The least limit of each member within the share that it reaches, in the order of `members`; 0 where the floor says it already.
///
/// Together they are `minAllowed` or more, as far as the shares are; a pod with a small share leaves the rest to the others. Each
/// change is a write, so a part that was written stays between what is needed and the double of that, and what is written has room
/// for a quarter of the pods to go: a rolling update rewrites no pod that it does not replace.
pub(super) fn of(members: &[Member], reached: &[u32], floors: &[u32], rule: SharingRule) -> Vec<u32> {
    let with_shares = || members.iter().zip(reached);
    let old = |member: &Member, share: u32| member.grant.map_or(0, |grant| grant.least).min(share);
    let min_allowed = match rule {
        SharingRule::ByDemand { min_allowed, .. } => min_allowed,
        // what was promised stays
        SharingRule::Kept { .. } => return with_shares().map(|(member, &share)| old(member, share)).collect(),
        // limit and share are the same
        SharingRule::Target { .. } | SharingRule::Fixed { .. } => return vec![0; members.len()],
    };
    let is_running = |member: &Member| member.phase == PodPhase::Running;
    let mut shares: Vec<u32> =
        with_shares().filter(|(member, _)| is_running(member)).map(|(_, &share)| share).collect();
    shares.sort_unstable();
    let needed = level(&shares, min_allowed);
    let most = needed.saturating_mul(2);
    let with_room = level(&shares[..shares.len() - shares.len() / 4], min_allowed).clamp(needed, most);
    let of = |((member, &share), &floor): ((&Member, &u32), &u32)| {
        let old = old(member, share);
        let is_kept = old <= most && floor.max(old) >= needed.min(share);
        let least = if is_kept || !is_running(member) { old } else { with_room.min(share) };
        if least > floor { least } else { 0 }
    };
    with_shares().zip(floors).map(of).collect()
}

/// The smallest number of which every one of `shares`, smallest first, can have that much or all it has, and all together `wanted`.
fn level(shares: &[u32], wanted: u32) -> u32 {
    let mut left = wanted;
    for (index, &share) in shares.iter().enumerate() {
        let even = left.div_ceil(to_u32(shares.len() - index));
        if even <= share {
            return even;
        }
        left -= share;
    }
    shares.last().copied().unwrap_or_default()
}
