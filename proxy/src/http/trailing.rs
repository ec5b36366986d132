//! Changes of trailers by filters: known with the head, made when the trailers have come.

use super::headers::Headers;
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

    /// The trailers as they go on.
    pub(super) fn changed<'t>(this: Option<&Self>, trailers: &'t Headers) -> Cow<'t, Headers> {
        match this {
            None => Cow::Borrowed(trailers),
            Some(changes) => {
                let mut trailers = trailers.clone();
                changes.apply(&mut trailers);
                Cow::Owned(trailers)
            }
        }
    }
}
