//! Which releases may be next to each other.

use std::cmp::Ordering;

/// The annotation of a MeshInstall that allows to skip a minor release when its value is `true`.
pub const ALLOW_SKEW: &str = "mesh.leno.dev/allow-version-skew";

/// Why one release cannot follow another: side by side run only a release and the one before it (the same or the next minor of one
/// major release), in either direction.
pub fn skew(from: &str, to: &str) -> Option<String> {
    let (was, is) = (Release::of(from)?, Release::of(to)?);
    if was.major == is.major && was.minor.abs_diff(is.minor) <= 1 {
        return None;
    }
    Some(format!(
        "spec.version: release {to} cannot follow {from}: a mesh moves by one minor release at a time; go by way of those between, or annotate the MeshInstall {ALLOW_SKEW}: \"true\""
    ))
}

/// Whether a release is older than another. What cannot be read is not.
pub fn is_older(one: &str, other: &str) -> bool {
    matches!((Release::of(one), Release::of(other)), (Some(one), Some(other)) if one < other)
}

/// A release by Semantic Versioning, as far as order is concerned.
#[derive(PartialEq, Eq)]
struct Release<'a> {
    major: u64,
    minor: u64,
    patch: u64,
    pre: Option<&'a str>,
}

impl<'a> Release<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (text, None),
        };
        let mut numbers = numbers.splitn(3, '.').map(|number| number.parse().ok());
        Some(Release { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next()??, pre })
    }
}

impl PartialOrd for Release<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Release<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let pre = match (self.pre, other.pre) {
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (one, other) => one.cmp(&other),
        };
        (self.major, self.minor, self.patch).cmp(&(other.major, other.minor, other.patch)).then(pre)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_when_a_minor_is_skipped_then_refused_with_the_way_out() {
        assert_eq!(skew("0.1.0", "0.2.7"), None);
        assert_eq!(skew("0.2.7", "0.1.0"), None);
        assert_eq!(skew("0.1.0", "0.1.0-rc.1"), None);
        let told = skew("0.1.0", "0.3.0").unwrap();
        assert!(told.starts_with("spec.version:") && told.contains(ALLOW_SKEW), "{told}");
        assert!(skew("0.3.0", "0.1.0").is_some());
        assert!(skew("0.9.0", "1.0.0").is_some());
    }

    #[test]
    fn releases_when_compared_then_by_numbers_and_what_comes_before_a_release_is_older() {
        assert!(is_older("0.9.0", "0.10.0") && !is_older("0.10.0", "0.9.0") && !is_older("0.1.0", "0.1.0"));
        assert!(is_older("0.1.0-rc.1", "0.1.0") && !is_older("nonsense", "0.1.0"));
    }
}
