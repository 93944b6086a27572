//! Minimum, then maximum, then share: the share always wins.

use super::Limit;
use crate::domain::{Bounds, Reason};

/// Brings a wish within the bounds.
pub fn check(wish: u32, bounds: &Bounds) -> Option<Limit> {
    let mut limit = None;
    let mut size = wish;
    if size < bounds.min {
        size = bounds.min;
        limit = Some((Reason::MinSize, format!("at least {size}: the load asks for {wish}")));
    }
    if size > bounds.max {
        size = bounds.max;
        limit = Some((Reason::MaxSize, format!("at most {size}: the load asks for {wish}")));
    }
    if let Some(share) = bounds.share.filter(|&share| size > share) {
        size = share;
        limit = Some((Reason::Share, format!("the share granted is {share}: the load asks for {wish}")));
    }
    limit.map(|(reason, message)| Limit { size, reason, message })
}
