//! Which statistics are shown, and how.

use super::super::convert::{Converted, Refused, Within as _, matcher, refuse};
use crate::config::StringMatch;
use crate::telemetry::display::{Bounds, Display, Shown};
use crate::telemetry::tags::Tags;
use leno_xds::envoy::config::bootstrap::v3::bootstrap::{StatsEviction, StatsFlush};
use leno_xds::envoy::config::metrics::v3 as xds;
use leno_xds::envoy::config::metrics::v3::{stats_matcher, tag_specifier};
use leno_xds::envoy::r#type::matcher::v3::ListStringMatcher;

pub(super) fn stats_config(value: xds::StatsConfig) -> Converted<Display> {
    let xds::StatsConfig {
        stats_tags,
        use_all_default_tags,
        stats_matcher,
        histogram_bucket_settings,
        allow_default_tag_overrides,
    } = value;
    refuse!(allow_default_tag_overrides);
    let shown = match stats_matcher {
        Some(value) => shown(value).within("stats_matcher")?,
        None => Shown::All,
    };
    let (tags, fixed) = tags(stats_tags, use_all_default_tags)?;
    let mut buckets = Vec::with_capacity(histogram_bucket_settings.len());
    for (index, value) in histogram_bucket_settings.into_iter().enumerate() {
        buckets.push(bounds(value).within(format_args!("histogram_bucket_settings[{index}]"))?);
    }
    Ok(Display { shown, tags, fixed, buckets })
}

fn shown(value: xds::StatsMatcher) -> Converted<Shown> {
    let patterns = |value: ListStringMatcher, field: &str| -> Converted<Vec<StringMatch>> {
        let all = value.patterns.into_iter().enumerate();
        all.map(|(index, one)| matcher::string(one).within(format_args!("{field}.patterns[{index}]"))).collect()
    };
    match value.stats_matcher {
        Some(stats_matcher::StatsMatcher::RejectAll(true)) => Ok(Shown::None),
        Some(stats_matcher::StatsMatcher::RejectAll(false)) => Ok(Shown::All),
        Some(stats_matcher::StatsMatcher::ExclusionList(list)) => Ok(Shown::AllBut(patterns(list, "exclusion_list")?)),
        Some(stats_matcher::StatsMatcher::InclusionList(list)) => Ok(Shown::Only(patterns(list, "inclusion_list")?)),
        None => Err(Refused::new("stats_matcher", "is missing")),
    }
}

/// Labels of all statistics.
type Fixed = Vec<(Box<str>, Box<str>)>;

/// Rules for labels, where there are other ones than the usual; else only what all are given besides.
fn tags(values: Vec<xds::TagSpecifier>, usual: Option<bool>) -> Converted<(Option<Tags>, Fixed)> {
    let usual = usual.unwrap_or(true);
    let (mut tags, mut fixed, mut own) = (Tags::default(), Fixed::new(), !usual);
    if usual {
        tags.add_usual();
    }
    for (index, value) in values.into_iter().enumerate() {
        let xds::TagSpecifier { tag_name: name, tag_value } = value;
        let within = format!("stats_tags[{index}]");
        if name.is_empty() {
            return Err(Refused::new("tag_name", "is empty").within(within));
        }
        let regex = match tag_value {
            Some(tag_specifier::TagValue::FixedValue(value)) => {
                tags.add_fixed(&name, &value);
                fixed.push((name.replace(|c: char| !c.is_ascii_alphanumeric(), "_").into(), value.into()));
                continue;
            }
            Some(tag_specifier::TagValue::Regex(regex)) => regex,
            None => String::new(),
        };
        own = true;
        let added = if regex.is_empty() { tags.add_named(&name) } else { tags.add_regex(&name, &regex) };
        added.map_err(|error| Refused::new("regex", error.to_string())).within(within)?;
    }
    Ok((own.then_some(tags), fixed))
}

fn bounds(value: xds::HistogramBucketSettings) -> Converted<(StringMatch, Bounds)> {
    // How exactly values are kept before they are told is not for this proxy to say: it keeps buckets.
    let xds::HistogramBucketSettings { r#match: wanted, buckets, bins: _ } = value;
    let wanted = wanted.ok_or_else(|| Refused::new("match", "is missing"))?;
    let bounds = Bounds::new(&buckets).map_err(|bound| {
        let known = crate::telemetry::histogram::BOUNDS.map(|bound| bound.to_string()).join(", ");
        Refused::new("buckets", format!("{bound} is no bound that this proxy counts; those are {known}"))
    })?;
    Ok((matcher::string(wanted).within("match")?, bounds))
}

/// Statistics are told when they are asked for, whatever is said of intervals; what contradicts itself is refused all the same.
pub(super) fn flushes(
    every: Option<prost_types::Duration>,
    flush: Option<StatsFlush>,
    eviction: Option<StatsEviction>,
) -> Converted<()> {
    const DEFAULT: i128 = 5_000_000_000;
    if every.is_some() && flush.is_some() {
        return Err(Refused::new(
            "stats_flush_on_admin",
            "and `stats_flush_interval` exclude each other; leave one out",
        ));
    }
    let nanos = |value: prost_types::Duration| i128::from(value.seconds) * 1_000_000_000 + i128::from(value.nanos);
    let every = every.map_or(DEFAULT, nanos);
    match eviction {
        Some(StatsEviction::StatsEvictionInterval(value)) if nanos(value) % every.max(1) != 0 => {
            Err(Refused::new("stats_eviction_interval", "is no multiple of `stats_flush_interval`, by default 5s"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_when_intervals_contradict_each_other_then_the_field_is_named() {
        let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
        let evict = |value| Some(StatsEviction::StatsEvictionInterval(seconds(value)));
        for (every, flush, eviction, refused) in [
            (Some(5), Some(StatsFlush::StatsFlushOnAdmin(true)), None, Some("stats_flush_on_admin")),
            (None, Some(StatsFlush::StatsFlushOnAdmin(true)), evict(10), None),
            (None, None, evict(3), Some("stats_eviction_interval")),
            (Some(3), None, evict(9), None),
        ] {
            let field = flushes(every.map(seconds), flush, eviction).err().map(|refused| refused.field);
            assert_eq!(field.as_deref(), refused);
        }
    }
}
