//! Which release this is.
//!
//! One source tree is built into images of several versions (an upgrade test needs two), so the image says which it is:
//! `LENO_VERSION`, set in the Dockerfile, wins over what Cargo compiled in.

/// The release that this process is, for example `0.1.0`.
pub fn version() -> String {
    non_empty("LENO_VERSION").unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())
}

/// The release before this one, which this one can still render; `None` for a first release.
pub fn previous_version() -> Option<String> {
    non_empty("LENO_PREVIOUS_VERSION")
}

fn non_empty(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    #[test]
    fn version_when_nothing_is_set_then_is_the_crates() {
        assert_eq!(super::version(), env!("CARGO_PKG_VERSION"));
        assert_eq!(super::previous_version(), None);
    }
}
