//! The standby's end of the connection between the slots.

use super::sockets::Sockets;
use super::{FAILED, Folder, LEAVING, MAX_LINE_BYTES, SERVING, SlotError, TAKEOVER, WARMING, read_line};
use std::os::unix::net::UnixStream as StdStream;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// What the standby waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The active slot asks to be relieved.
    TakeOver,
    /// The active slot is gone.
    Lost,
}

/// A connection to the active slot.
#[derive(Debug)]
pub struct Standby {
    stream: BufReader<UnixStream>,
}

impl Standby {
    /// Connects and receives the listening sockets.
    ///
    /// # Errors
    /// When nobody is active, or it speaks otherwise.
    pub fn connect(folder: &Folder) -> Result<(Self, Sockets), SlotError> {
        let path = folder.active();
        let stream = StdStream::connect(&path).map_err(|source| SlotError::Path {
            doing: "connecting to",
            path: path.clone(),
            source,
        })?;
        let sockets = Sockets::receive(&stream)?;
        stream.set_nonblocking(true)?;
        Ok((Self { stream: BufReader::new(UnixStream::from_std(stream)?) }, sockets))
    }

    /// Waits until something is asked of the standby. May be dropped and called again.
    pub async fn event(&mut self) -> Event {
        loop {
            match read_line(&mut self.stream).await {
                Ok(Some(line)) if line == TAKEOVER => return Event::TakeOver,
                // From a newer version; what is not understood is not for us.
                Ok(Some(line)) => tracing::debug!(%line, "the active slot says something unknown"),
                Ok(None) | Err(_) => return Event::Lost,
            }
        }
    }

    /// Tells the active slot that this one serves.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn serving(&mut self) -> Result<(), SlotError> {
        self.say(SERVING).await
    }

    /// Tells the active slot not to hand over to this one.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn leaving(&mut self) -> Result<(), SlotError> {
        self.say(LEAVING).await
    }

    /// Tells the active slot what this one waits for before it can serve.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn warming(&mut self, waits_for: &str) -> Result<(), SlotError> {
        self.say(&words(WARMING, waits_for)).await
    }

    /// Tells the active slot why this one does not take over.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn failed(&mut self, why: &str) -> Result<(), SlotError> {
        self.say(&words(FAILED, why)).await
    }

    async fn say(&mut self, line: &str) -> Result<(), SlotError> {
        Ok(self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).await?)
    }
}

/// A word and what follows it, as one line that is short enough.
fn words(word: &str, rest: &str) -> String {
    let room = MAX_LINE_BYTES - word.len() - 2;
    let mut line = format!("{word} ");
    for character in rest.chars().map(|character| if character.is_control() { ' ' } else { character }) {
        if line.len() + character.len_utf8() > room {
            break;
        }
        line.push(character);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_when_they_have_lines_or_are_long_are_one_line_that_fits() {
        assert_eq!(words(FAILED, "a\nb"), "FAILED a b");
        assert!(words(WARMING, &"\u{fc}".repeat(MAX_LINE_BYTES)).len() < MAX_LINE_BYTES);
    }
}
