//! What is kept of a refusal's message.

/// Most characters of a message that are kept, of its beginning and of its end.
const MAX_MESSAGE: (usize, usize) = (160, 350);

/// The message, of a long one its beginning and its end: Envoy names the resource first, then writes all of it out, and says
/// last what is wrong with it.
pub(super) fn told(message: &str) -> String {
    let (begin, end) = MAX_MESSAGE;
    let count = message.chars().count();
    if count <= begin + end {
        return message.to_owned();
    }
    let beginning = message.chars().take(begin);
    beginning.chain(" … ".chars()).chain(message.chars().skip(count - end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_when_long_then_beginning_and_end_are_kept() {
        let message = format!("route a: {}: value must be greater than 0s", "\u{fc}".repeat(2000));
        let told = told(&message);
        assert!(told.starts_with("route a: ") && told.ends_with("value must be greater than 0s"), "{told}");
        assert!(told.chars().count() <= 513);
        assert_eq!(super::told("short"), "short");
    }
}
