//! A process that ends with its owner, and whose last words are kept.

use anyhow::{Context, Result, bail};
use std::{
    fs::File,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A running process with its output in a file.
pub(crate) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts it, with its output in `folder`.
    pub(crate) fn start(name: &str, folder: &Path, mut command: Command) -> Result<Process> {
        let log = folder.join(format!("{name}.log"));
        File::create(&log)?;
        // Appending: who opens its standard output by path writes beside what comes through the descriptor.
        let file = File::options().append(true).open(&log)?;
        // Envoy opens its own standard output by path, as another user.
        file.set_permissions(std::fs::Permissions::from_mode(0o666))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("{name} does not start"))?;
        Ok(Process { child, name: name.to_owned(), log })
    }

    /// Fails with its last words when it has ended.
    pub(crate) fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, self.tail(40)),
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that it wrote.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of what it wrote, at most so many lines.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// `GET path` of a plain HTTP server, for health and admin pages; gives status and body.
pub(super) fn get(space: &super::space::Space, port: u16, path: &str) -> Result<(u16, String)> {
    use std::io::{Read, Write};
    let patience = std::time::Duration::from_secs(3);
    let mut stream = space.connect_blocking(([127, 0, 0, 1], port).into(), patience)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of head")?;
    let status =
        head.split_whitespace().nth(1).and_then(|status| status.parse().ok()).context("the answer has no status")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { unchunked(body).context("the answer's chunks do not parse")? } else { body.to_owned() }))
}

/// The content of a chunked body (RFC 9112, section 7.1).
fn unchunked(body: &str) -> Option<String> {
    let (mut content, mut rest) = (String::new(), body);
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        match usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()? {
            0 => return Some(content),
            size => {
                content.push_str(after.get(..size)?);
                rest = after.get(size..)?.strip_prefix("\r\n")?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchunked_when_whole_then_the_content_and_when_cut_then_nothing() {
        assert_eq!(unchunked("3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n").as_deref(), Some("abcde"));
        assert_eq!(unchunked("3\r\nab"), None);
    }
}
