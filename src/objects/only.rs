//! The elements of a list that are wanted, read one after the other: of the others nothing is kept.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

/// Reads the elements of a list of which this is true. No list has none.
///
/// # Errors
/// Of the deserializer.
pub(super) fn only<'de, D, T>(text: D, is_wanted: impl Fn(&T) -> bool) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    text.deserialize_any(Wanted { is_wanted, of: PhantomData })
}

struct Wanted<T, F> {
    is_wanted: F,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, F: Fn(&T) -> bool> Visitor<'de> for Wanted<T, F> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut wanted = Vec::new();
        while let Some(element) = list.next_element::<T>()? {
            if (self.is_wanted)(&element) {
                wanted.push(element);
            }
        }
        Ok(wanted)
    }
}
