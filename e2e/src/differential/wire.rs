//! HTTP/1 as it stands on the wire, read by the letter: what proxies send is to be seen, not to be repaired.

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::Read as _,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Heads and bodies longer than this end the reading.
const MOST: usize = 32 << 20;

/// Any connection.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection with what was read ahead.
pub struct Wire {
    /// The connection.
    pub stream: Box<dyn Stream>,
    /// What was read and not used.
    pub buffer: BytesMut,
}

/// Name and value, by the letter.
pub type Field = (String, String);

/// The head of a request or a response.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The first line.
    pub start: String,
    /// The headers, in order.
    pub fields: Vec<Field>,
}

impl Head {
    /// The first value of a header (by its lower-case name).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The status of a response.
    pub fn status(&self) -> Option<u16> {
        self.start.split_whitespace().nth(1)?.parse().ok()
    }
}

/// How a body was cut off, if it was.
#[derive(Debug, Default)]
pub struct Body {
    /// What came.
    pub content: Vec<u8>,
    /// The trailers.
    pub trailers: Vec<Field>,
    /// It ended before its end.
    pub cut: bool,
}

impl Wire {
    /// Of a new connection.
    pub fn new(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: BytesMut::new() }
    }

    /// Reads more; false at the end.
    pub async fn fill(&mut self) -> Result<bool> {
        ensure!(self.buffer.len() < MOST, "more than {MOST} bytes");
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// Writes all of it.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                let line = line.strip_suffix(b"\r\n").or_else(|| line.strip_suffix(b"\n")).unwrap_or(&line);
                return Ok(Some(text(line)));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    async fn fields(&mut self) -> Result<Option<Vec<Field>>> {
        let mut fields = Vec::new();
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            if line.is_empty() {
                return Ok(Some(fields));
            }
            let (name, value) = line.split_once(':').with_context(|| format!("no header: {line:?}"))?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// A head; none where the connection ends first.
    pub async fn head(&mut self) -> Result<Option<Head>> {
        let Some(start) = self.line().await? else { return Ok(None) };
        let fields = self.fields().await?;
        Ok(fields.map(|fields| Head { start, fields }))
    }

    /// So many bytes, or fewer where the connection ends.
    pub async fn exactly(&mut self, count: usize) -> Result<Bytes> {
        while self.buffer.len() < count && self.fill().await? {}
        let count = count.min(self.buffer.len());
        Ok(self.buffer.split_to(count).freeze())
    }

    /// The body of a message with this head; `implied` where neither length nor chunks are told, it ends with the
    /// connection.
    pub async fn body(&mut self, head: &Head, implied: bool) -> Result<Body> {
        let mut body = Body::default();
        if head.get("transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked")) {
            return self.chunks().await;
        }
        if let Some(length) = head.get("content-length") {
            let length: usize = length.parse().with_context(|| format!("length {length}"))?;
            body.content = self.exactly(length).await.unwrap_or_default().to_vec();
            body.cut = body.content.len() < length;
        } else if implied {
            body.cut = self.rest(&mut body.content).await.is_err();
        }
        Ok(body)
    }

    async fn rest(&mut self, content: &mut Vec<u8>) -> Result<()> {
        loop {
            content.extend_from_slice(&self.buffer);
            self.buffer.clear();
            if !self.fill().await? {
                return Ok(());
            }
        }
    }

    async fn chunks(&mut self) -> Result<Body> {
        let mut body = Body { cut: true, ..Body::default() };
        loop {
            let Ok(Some(line)) = self.line().await else { return Ok(body) };
            let size = line.split(';').next().unwrap_or_default().trim();
            let Ok(size) = usize::from_str_radix(size, 16) else { bail!("chunk size {line:?}") };
            if size == 0 {
                if let Ok(Some(trailers)) = self.fields().await {
                    body.trailers = trailers;
                    body.cut = false;
                }
                return Ok(body);
            }
            let Ok(chunk) = self.exactly(size + 2).await else { return Ok(body) };
            body.content.extend_from_slice(&chunk[..size.min(chunk.len())]);
            if chunk.len() < size + 2 {
                return Ok(body);
            }
            ensure!(&chunk[size..] == b"\r\n", "a chunk does not end with its line");
        }
    }
}

/// Bytes as text; what is not UTF-8 becomes `\xNN`.
pub fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// A body as it was before it was compressed: what two libraries make of it differs, and what it means must not.
pub fn undone(coding: Option<&str>, body: Vec<u8>) -> Vec<u8> {
    let mut plain = Vec::new();
    let read = match coding {
        Some("gzip") => flate2::read::MultiGzDecoder::new(&*body).read_to_end(&mut plain),
        Some("br") => brotli::Decompressor::new(&*body, 4096).read_to_end(&mut plain),
        Some("zstd") => {
            zstd::stream::read::Decoder::new(&*body).and_then(|mut decoder| decoder.read_to_end(&mut plain))
        }
        _ => return body,
    };
    if read.is_ok() { plain } else { body }
}

/// A body in a line: itself where it is short, else its length and a sum of it.
pub fn summary(body: &[u8]) -> String {
    if body.len() <= 200 {
        return format!("{:?}", text(body));
    }
    let mut hash = DefaultHasher::new();
    body.hash(&mut hash);
    format!("{} bytes, {:016x}", body.len(), hash.finish())
}
