//! What is wrong with a build.

use std::str::FromStr;

/// The environment variable of the image that names the fault.
pub const VARIABLE: &str = "LENO_FAULT";

/// What is wrong with a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ends at its start.
    Crashes,
    /// Runs and never gets ready.
    Unready,
    /// A proxy that answers one request in ten with 500.
    Errors,
    /// A proxy that takes 200 ms more for each request.
    Slow,
    /// A proxy that refuses part of its configuration: what is named `rejected`. A control plane whose routes every proxy refuses.
    Rejects,
    /// A proxy that loses 4 MiB a second while it serves, 256 MiB at most.
    Leaks,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 6] =
        [Fault::Crashes, Fault::Unready, Fault::Errors, Fault::Slow, Fault::Rejects, Fault::Leaks];

    /// As it is written in [`VARIABLE`].
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Crashes => "crashes",
            Fault::Unready => "unready",
            Fault::Errors => "errors",
            Fault::Slow => "slow",
            Fault::Rejects => "rejects",
            Fault::Leaks => "leaks",
        }
    }

    /// The fault of this image.
    ///
    /// # Errors
    /// When [`VARIABLE`] names none.
    pub fn of_this_image() -> Result<Fault, String> {
        std::env::var(VARIABLE).unwrap_or_default().parse()
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let known = || Self::ALL.map(Fault::as_str).join(", ");
        Self::ALL
            .into_iter()
            .find(|fault| fault.as_str() == text)
            .ok_or_else(|| format!("{VARIABLE}={text:?} is no fault of a bad build; there are {}", known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_when_written_then_is_read_again_and_others_are_refused() {
        for fault in Fault::ALL {
            assert_eq!(fault.as_str().parse(), Ok(fault));
        }
        assert!("".parse::<Fault>().unwrap_err().contains("crashes, unready"));
    }
}
