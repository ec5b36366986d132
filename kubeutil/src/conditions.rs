//! Status conditions, by the Kubernetes API conventions: the transition time moves only when the status does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Longest message that the API conventions allow, in bytes.
pub const MAX_MESSAGE: usize = 32_768;

/// What a condition should say now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it is about, for example `Ready`.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: Status,
    /// Why, one CamelCase word of a bounded set.
    pub reason: String,
    /// Why and what to do about it, for people.
    pub message: String,
}

impl Wanted {
    /// The condition holds.
    pub fn yes(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Wanted { kind, status: Status::True, reason: reason.to_owned(), message: message.into() }
    }

    /// The condition does not hold.
    pub fn no(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Wanted { kind, status: Status::False, reason: reason.to_owned(), message: message.into() }
    }

    /// Nobody knows yet.
    pub fn unknown(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Wanted { kind, status: Status::Unknown, reason: reason.to_owned(), message: message.into() }
    }
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody knows.
    Unknown,
}

impl Status {
    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::True => "True",
            Status::False => "False",
            Status::Unknown => "Unknown",
        }
    }
}

/// What changed in a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// The message or the generation, which is no news to anyone.
    Text,
    /// The status or the reason: worth an event.
    Transition,
}

/// Sets a condition in `conditions`, keeping its place; other conditions are left alone. `now` is used only when the status
/// is new.
pub fn set(conditions: &mut Vec<Condition>, wanted: &Wanted, generation: i64, now: Timestamp) -> Change {
    let mut message = wanted.message.clone();
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    let mut new = Condition {
        type_: wanted.kind.to_owned(),
        status: wanted.status.as_str().to_owned(),
        reason: wanted.reason.clone(),
        message,
        observed_generation: Some(generation),
        last_transition_time: Time(now),
    };
    let Some(present) = conditions.iter_mut().find(|condition| condition.type_ == wanted.kind) else {
        conditions.push(new);
        return Change::Transition;
    };
    if present.status == new.status {
        new.last_transition_time = present.last_transition_time.clone();
    }
    let change = if present.status != new.status || present.reason != new.reason {
        Change::Transition
    } else if *present != new {
        Change::Text
    } else {
        Change::None
    };
    *present = new;
    change
}

/// Whether the condition of this type is `True` for this generation.
pub fn is_true(conditions: &[Condition], kind: &str, generation: i64) -> bool {
    conditions.iter().any(|condition| {
        condition.type_ == kind && condition.status == "True" && condition.observed_generation == Some(generation)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn condition_when_only_the_message_changes_then_keeps_its_transition_time() {
        let mut conditions = Vec::new();
        assert_eq!(set(&mut conditions, &Wanted::no("Ready", "Starting", "0 of 2"), 1, at(10)), Change::Transition);
        assert_eq!(set(&mut conditions, &Wanted::no("Ready", "Starting", "1 of 2"), 1, at(20)), Change::Text);
        assert_eq!(conditions[0].last_transition_time, Time(at(10)));
        assert_eq!(conditions[0].message, "1 of 2");
    }

    #[test]
    fn condition_when_its_status_flips_then_the_transition_time_moves() {
        let mut conditions = Vec::new();
        set(&mut conditions, &Wanted::no("Ready", "Starting", ""), 1, at(10));
        assert_eq!(set(&mut conditions, &Wanted::yes("Ready", "Ready", ""), 1, at(20)), Change::Transition);
        assert_eq!(conditions[0].last_transition_time, Time(at(20)));
    }

    #[test]
    fn condition_when_its_reason_changes_then_is_a_transition_at_the_old_time() {
        let mut conditions = Vec::new();
        set(&mut conditions, &Wanted::no("Ready", "Starting", ""), 1, at(10));
        assert_eq!(set(&mut conditions, &Wanted::no("Ready", "ImagePull", ""), 1, at(20)), Change::Transition);
        assert_eq!(conditions[0].last_transition_time, Time(at(10)));
    }

    #[test]
    fn condition_when_nothing_changes_then_nothing_is_reported_and_others_stay() {
        let mut conditions = Vec::new();
        set(&mut conditions, &Wanted::yes("Other", "Fine", ""), 1, at(1));
        set(&mut conditions, &Wanted::yes("Ready", "Ready", ""), 2, at(10));
        let before = conditions.clone();
        assert_eq!(set(&mut conditions, &Wanted::yes("Ready", "Ready", ""), 2, at(99)), Change::None);
        assert_eq!(conditions, before);
        assert!(is_true(&conditions, "Ready", 2) && !is_true(&conditions, "Ready", 3));
    }

    #[test]
    fn condition_when_the_message_is_too_long_then_is_cut_at_a_character() {
        let mut conditions = Vec::new();
        set(&mut conditions, &Wanted::no("Ready", "Long", "ä".repeat(40_000)), 1, at(1));
        assert!(conditions[0].message.len() <= MAX_MESSAGE && conditions[0].message.ends_with('…'));
    }
}
