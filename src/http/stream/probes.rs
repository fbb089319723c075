//! Views of the cursors of an event stream, one for each source of its route.
//!
//! As [`Cursors`](super::cursors::Cursors), without an allocation for a route with one source. The
//! other case is one pointer, so that a state with its lock fits its size class.

use std::ops::Deref;

use smallvec::SmallVec;

use crate::feed::CursorProbe;

/// Views in the order of the route's sources.
#[derive(Clone, Debug)]
pub(in crate::http) enum Probes {
    /// Of a route with one source.
    One(CursorProbe),
    /// Of a route with several.
    Several(Box<SmallVec<[CursorProbe; 4]>>),
}

impl FromIterator<CursorProbe> for Probes {
    fn from_iter<T: IntoIterator<Item = CursorProbe>>(probes: T) -> Self {
        let mut probes: SmallVec<[CursorProbe; 4]> = probes.into_iter().collect();
        match (probes.pop(), probes.is_empty()) {
            (Some(only), true) => Self::One(only),
            (last, _) => {
                probes.extend(last);
                Self::Several(Box::new(probes))
            }
        }
    }
}

impl Deref for Probes {
    type Target = [CursorProbe];

    fn deref(&self) -> &[CursorProbe] {
        match self {
            Self::One(probe) => std::slice::from_ref(probe),
            Self::Several(probes) => probes,
        }
    }
}
