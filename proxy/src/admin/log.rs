//! Who asked the admin server for what: a line each, in the format that Envoy has where nothing is said.

use hyper::{Method, StatusCode, Version, header::HeaderMap};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use time::{OffsetDateTime, macros::format_description};

/// The logs of the admin server.
#[derive(Debug, Clone, Default)]
pub struct AdminLogs(Arc<[File]>);

/// What a line tells.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
}

impl AdminLogs {
    /// Opens them, to be added to.
    ///
    /// # Errors
    /// Names the file that cannot be opened.
    pub fn open(paths: &[String]) -> Result<Self, (String, std::io::Error)> {
        let open = |path: &String| {
            let file = OpenOptions::new().append(true).create(true).open(path);
            file.map_err(|error| (path.clone(), error))
        };
        paths.iter().map(open).collect::<Result<Vec<_>, _>>().map(|files| Self(files.into()))
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes a line. What cannot be written is lost.
    pub(super) fn write(&self, asked: &Asked, status: StatusCode, sent: usize, took: Duration) {
        let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        let now = OffsetDateTime::from(SystemTime::now()).format(form).unwrap_or_default();
        let header = |name: &str| {
            let value = asked.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or("-").escape_default().to_string()
        };
        let line = format!(
            "[{now}] \"{} {} {:?}\" {} - 0 {sent} {} - \"{}\" \"{}\" \"{}\" \"{}\" \"-\"\n",
            asked.method,
            asked.path.escape_default(),
            asked.version,
            status.as_u16(),
            took.as_millis(),
            header("x-forwarded-for"),
            header("user-agent"),
            header("x-request-id"),
            header("host"),
        );
        for mut file in self.0.iter() {
            let _ = file.write_all(line.as_bytes());
        }
    }
}
