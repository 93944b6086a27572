//! What an annotation says of each pool of its pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Values by the name of their pool, in the order of the names; in JSON an object.
///
/// A pod has one pool, seldom a few, and the operator keeps what the annotations of thousands of pods say: a `BTreeMap` has room for
/// eleven values as soon as it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByPool<T>(Box<[(String, T)]>);

impl<T> ByPool<T> {
    /// Where a pool stands, or would stand.
    fn place(&self, pool: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(name, _)| name.as_str().cmp(pool))
    }

    /// The value of a pool.
    pub fn get(&self, pool: &str) -> Option<&T> {
        self.place(pool).ok().map(|at| &self.0[at].1)
    }

    /// Sets the value of a pool.
    pub fn insert(&mut self, pool: String, value: T) {
        let place = self.place(&pool);
        let mut all = std::mem::take(&mut self.0).into_vec();
        match place {
            Ok(at) => all[at].1 = value,
            Err(at) => all.insert(at, (pool, value)),
        }
        self.0 = all.into();
    }

    /// Takes the value of a pool out.
    pub fn remove(&mut self, pool: &str) -> Option<T> {
        let at = self.place(pool).ok()?;
        let mut all = std::mem::take(&mut self.0).into_vec();
        let (_, value) = all.remove(at);
        self.0 = all.into();
        Some(value)
    }

    /// All pools and their values.
    pub fn iter(&self) -> std::slice::Iter<'_, (String, T)> {
        self.0.iter()
    }

    /// The names of all pools.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The values of all pools.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }
}

impl<T> Default for ByPool<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T> FromIterator<(String, T)> for ByPool<T> {
    /// Of several values of one pool the last counts.
    fn from_iter<I: IntoIterator<Item = (String, T)>>(all: I) -> Self {
        let sorted: BTreeMap<String, T> = all.into_iter().collect();
        Self(sorted.into_iter().collect())
    }
}

impl<T, const N: usize> From<[(String, T); N]> for ByPool<T> {
    fn from(all: [(String, T); N]) -> Self {
        all.into_iter().collect()
    }
}

impl<'a, T> IntoIterator for &'a ByPool<T> {
    type Item = &'a (String, T);
    type IntoIter = std::slice::Iter<'a, (String, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: Serialize> Serialize for ByPool<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByPool<T> {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(text).map(|all: BTreeMap<String, T>| all.into_iter().collect())
    }
}

#[cfg(test)]
impl<T> ByPool<T> {
    /// The value of a pool, to be changed.
    pub fn get_mut(&mut self, pool: &str) -> Option<&mut T> {
        self.place(pool).ok().map(|at| &mut self.0[at].1)
    }
}

#[cfg(test)]
impl<T> std::ops::Index<&str> for ByPool<T> {
    type Output = T;

    fn index(&self, pool: &str) -> &T {
        self.get(pool).expect("it has this pool")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_and_writes_as_a_map_does_whatever_the_order_and_of_one_pool_the_last_counts() {
        let text = r#"{"shop":1,"cart":2,"shop":3}"#;
        let map: BTreeMap<String, u32> = serde_json::from_str(text).expect("a map");
        let mut pools: ByPool<u32> = serde_json::from_str(text).expect("one too");
        assert_eq!(serde_json::to_string(&pools).expect("JSON"), serde_json::to_string(&map).expect("JSON"));
        assert_eq!((pools.get("shop"), pools["cart"], pools.get("stock")), (Some(&3), 2, None));
        pools.insert("shop".to_owned(), 4);
        pools.insert("admin".to_owned(), 5);
        assert_eq!(pools.keys().collect::<Vec<_>>(), ["admin", "cart", "shop"]);
        assert_eq!((pools.remove("cart"), pools.remove("cart")), (Some(2), None));
        assert_eq!(pools, ByPool::from([("shop".to_owned(), 4), ("admin".to_owned(), 5)]));
    }

    #[test]
    fn what_no_map_is_is_refused_as_one_refuses_it() {
        for text in ["[]", "null", "7", r#"{"shop":"x"}"#] {
            let refused = serde_json::from_str::<ByPool<u32>>(text).expect_err("refused");
            let of_map = serde_json::from_str::<BTreeMap<String, u32>>(text).expect_err("refused");
            assert_eq!(refused.to_string(), of_map.to_string());
        }
    }
}
