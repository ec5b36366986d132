//! The format `profile.proto` of pprof: the part of it that a profile of CPU time needs.

use super::stacks::Stacks;
use super::{Counted, RATE};
use std::collections::HashMap;
use std::time::SystemTime;

/// A profile.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub(super) sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub(super) sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub(super) mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    pub(super) location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub(super) function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub(super) string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub(super) time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub(super) duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub(super) period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub(super) period: i64,
    #[prost(int64, repeated, tag = "13")]
    pub(super) comment: Vec<i64>,
}

/// What is counted, and in which unit: places in the table of texts.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct ValueType {
    #[prost(int64, tag = "1")]
    pub(super) name: i64,
    #[prost(int64, tag = "2")]
    pub(super) unit: i64,
}

/// A stack, innermost first, and how often it was seen.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    pub(super) location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) value: Vec<i64>,
}

/// A program in memory.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Mapping {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint64, tag = "2")]
    pub(super) memory_start: u64,
    #[prost(uint64, tag = "3")]
    pub(super) memory_limit: u64,
    #[prost(int64, tag = "5")]
    pub(super) filename: i64,
    #[prost(int64, tag = "6")]
    pub(super) build_id: i64,
    #[prost(bool, tag = "7")]
    pub(super) has_functions: bool,
}

/// An address in it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Location {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint64, tag = "2")]
    pub(super) mapping_id: u64,
    #[prost(uint64, tag = "3")]
    pub(super) address: u64,
    #[prost(message, repeated, tag = "4")]
    pub(super) line: Vec<Line>,
}

/// The function that it is in.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct Line {
    #[prost(uint64, tag = "1")]
    pub(super) function_id: u64,
}

/// A function.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct Function {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(int64, tag = "2")]
    pub(super) name: i64,
    #[prost(int64, tag = "3")]
    pub(super) system_name: i64,
}

/// Texts by number; the first one is empty.
struct Texts {
    all: Vec<String>,
    places: HashMap<String, i64>,
}

impl Texts {
    fn place(&mut self, text: &str) -> i64 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = i64::try_from(self.all.len()).unwrap_or(0);
        self.all.push(text.to_owned());
        self.places.insert(text.to_owned(), place);
        place
    }
}

/// The profile, encoded.
pub(super) fn profile(stacks: &Stacks, counted: &Counted) -> Vec<u8> {
    let mut texts = Texts { all: Vec::new(), places: HashMap::new() };
    texts.place("");
    let count = ValueType { name: texts.place("samples"), unit: texts.place("count") };
    let time = ValueType { name: texts.place("cpu"), unit: texts.place("nanoseconds") };
    let period = i64::from(1_000_000_000 / RATE);
    let mut locations: HashMap<u64, Location> = HashMap::new();
    let mut functions: HashMap<i64, Function> = HashMap::new();
    let mut samples = Vec::with_capacity(counted.stacks.len());
    for (calls, seen) in &counted.stacks {
        let mut ids = Vec::with_capacity(calls.len());
        for address in calls {
            let next = locations.len() as u64 + 1;
            let location = locations.entry(*address).or_insert_with(|| {
                let ours = stacks.range.contains(address);
                let name = stacks.name(*address);
                // A name that is an address is none: whoever reads the profile may know better.
                let line = (!name.starts_with("0x")).then(|| {
                    let name = texts.place(&name);
                    let id = functions.len() as u64 + 1;
                    let function = functions.entry(name).or_insert(Function { id, name, system_name: name });
                    Line { function_id: function.id }
                });
                Location { id: next, mapping_id: u64::from(ours), address: *address, line: line.into_iter().collect() }
            });
            ids.push(location.id);
        }
        let seen = i64::try_from(*seen).unwrap_or(i64::MAX);
        samples.push(Sample { location_id: ids, value: vec![seen, seen.saturating_mul(period)] });
    }
    let mapping = Mapping {
        id: 1,
        memory_start: stacks.range.start,
        memory_limit: stacks.range.end,
        filename: texts.place(&stacks.file),
        build_id: texts.place(&stacks.build),
        has_functions: !functions.is_empty(),
    };
    let lost = format!("{} samples were lost", counted.lost);
    let comment = if counted.lost > 0 { vec![texts.place(&lost)] } else { Vec::new() };
    let nanos = |span: std::time::Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
    let profile = Profile {
        sample_type: vec![count, time],
        sample: samples,
        mapping: vec![mapping],
        location: locations.into_values().collect(),
        function: functions.into_values().collect(),
        time_nanos: nanos(counted.began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
        duration_nanos: nanos(counted.took),
        period_type: Some(time),
        period,
        comment,
        string_table: texts.all,
    };
    prost::Message::encode_to_vec(&profile)
}
