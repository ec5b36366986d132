//! Running other programs: their output kept for the error message, and waiting for a condition with a limit.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::Error;

/// How much of a failed program's output an error message carries, in bytes, from its end.
const KEPT_OUTPUT: usize = 2000;

/// The end of `text`, at most [`KEPT_OUTPUT`] bytes, on one line a line.
fn tail(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    let mut start = text.len().saturating_sub(KEPT_OUTPUT);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

fn failed(command: &Command, output: &Output) -> Error {
    let mut said = tail(&output.stderr);
    if said.is_empty() {
        said = tail(&output.stdout);
    }
    Error::Command { command: describe(command), status: output.status.to_string(), output: said }
}

/// Runs `command` to its end and returns what it wrote to its standard output.
///
/// # Errors
/// [`Error::Command`] where it could not start or ended with a failure.
pub fn output(command: &mut Command) -> Result<String, Error> {
    output_with_input(command, b"")
}

/// As [`output`], with `input` as the program's standard input.
///
/// # Errors
/// As [`output`].
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String, Error> {
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let cannot = |command: &Command, source: std::io::Error| Error::Command {
        command: describe(command),
        status: "could not run".to_owned(),
        output: source.to_string(),
    };
    let mut child = command.spawn().map_err(|source| cannot(command, source))?;
    let pipe = child.stdin.take();
    // A thread of its own feeds the program: it may fill its output pipe before it has read all of its input.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut pipe) = pipe {
                // A program that ends without reading everything says why in its output.
                let _ = pipe.write_all(input);
            }
        });
        child.wait_with_output()
    })
    .map_err(|source| cannot(command, source))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(command, &output))
    }
}

/// Asks `condition` every `pause` until it holds, for `limit` at most.
///
/// # Errors
/// [`Error::Timeout`] with `what` and `hint` where it did not hold in time.
pub fn wait_for(
    what: &str,
    limit: Duration,
    pause: Duration,
    hint: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<(), Error> {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() >= limit {
            return Err(Error::Timeout { what: what.to_owned(), seconds: limit.as_secs(), hint: hint.to_owned() });
        }
        std::thread::sleep(pause);
    }
    Ok(())
}

/// Prints the steps of a long operation to standard error, each with the time it took.
#[derive(Debug)]
pub struct Progress {
    subject: String,
    started: Instant,
    step: Instant,
}

impl Progress {
    /// Starts the clock for an operation on `subject`.
    pub fn new(subject: impl Into<String>) -> Self {
        let now = Instant::now();
        Self { subject: subject.into(), started: now, step: now }
    }

    /// Says that a step is done, with its own duration.
    pub fn done(&mut self, step: &str) {
        eprintln!("{}: {step} ({:.1} s)", self.subject, self.step.elapsed().as_secs_f64());
        self.step = Instant::now();
    }

    /// Says that the operation is done, with the duration of all of it.
    pub fn finished(self, what: &str) {
        eprintln!("{}: {what} ({:.1} s in all)", self.subject, self.started.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_when_the_program_fails_then_the_error_carries_its_words() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
    }

    #[test]
    fn output_when_input_and_output_exceed_a_pipe_then_nothing_blocks() {
        let input = vec![b'x'; 1 << 20];
        assert_eq!(output_with_input(&mut Command::new("cat"), &input).unwrap().len(), input.len());
    }

    #[test]
    fn wait_for_when_the_condition_never_holds_then_it_says_what_was_waited_for() {
        let error = wait_for("the moon", Duration::ZERO, Duration::ZERO, "Look up.", || false).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for the moon. Look up.");
    }

    #[test]
    fn tail_when_the_cut_falls_into_a_character_then_it_moves_on() {
        let text = "ä".repeat(KEPT_OUTPUT);
        assert!(tail(text.as_bytes()).len() <= KEPT_OUTPUT);
    }
}
