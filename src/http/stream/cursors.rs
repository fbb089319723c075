//! Cursors of an event stream, one for each source of its route.
//!
//! Nearly every route has one source. [`Cursors`] is a slice of cursors that needs no allocation and
//! no length for that case: an idle event stream fits a smaller size class of the allocator.

use std::ops::{Deref, DerefMut};

use crate::feed::Cursor;

/// Cursors in the order of the route's sources.
#[derive(Debug)]
pub(in crate::http) enum Cursors {
    /// Of a route with one source.
    One(Cursor),
    /// Of a route with several.
    Several(Box<[Cursor]>),
}

impl FromIterator<Cursor> for Cursors {
    fn from_iter<T: IntoIterator<Item = Cursor>>(cursors: T) -> Self {
        let mut cursors: Vec<Cursor> = cursors.into_iter().collect();
        match (cursors.pop(), cursors.is_empty()) {
            (Some(only), true) => Self::One(only),
            (last, _) => {
                cursors.extend(last);
                Self::Several(cursors.into())
            }
        }
    }
}

impl Deref for Cursors {
    type Target = [Cursor];

    fn deref(&self) -> &[Cursor] {
        match self {
            Self::One(cursor) => std::slice::from_ref(cursor),
            Self::Several(cursors) => cursors,
        }
    }
}

impl DerefMut for Cursors {
    fn deref_mut(&mut self) -> &mut [Cursor] {
        match self {
            Self::One(cursor) => std::slice::from_mut(cursor),
            Self::Several(cursors) => cursors,
        }
    }
}
