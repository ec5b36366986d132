//! Changes of trailers by filters: known with the head, made when the trailers have come.

use super::{body::Piece, headers::Headers};
use crate::config::HeaderOp;
use std::borrow::Cow;

/// Changes with their values, in order.
#[derive(Debug, Default)]
pub struct Trailing(Vec<(HeaderOp, Vec<u8>)>);

impl Trailing {
    /// Makes these after the others.
    pub(super) fn add(&mut self, changes: Vec<(HeaderOp, Vec<u8>)>) {
        self.0.extend(changes);
    }

    /// Makes them.
    pub(super) fn apply(&self, trailers: &mut Headers) {
        self.0.iter().for_each(|(change, value)| trailers.change(change, value));
    }

    /// The trailers of a body that ends so, as they go on.
    pub(super) fn of<'t>(this: Option<&Self>, end: &Piece<'t>) -> Option<Cow<'t, Headers>> {
        let Piece::Trailers(trailers) = end else { return None };
        Some(match this {
            None => Cow::Borrowed(*trailers),
            Some(changes) => {
                let mut trailers = (*trailers).clone();
                changes.apply(&mut trailers);
                Cow::Owned(trailers)
            }
        })
    }
}
