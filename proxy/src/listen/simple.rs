//! What needs no endpoint: a fixed answer, an echo.

use super::Stream;
use crate::http::buffer::Buffer;
use std::{future::poll_fn, sync::Arc, time::Duration};
use tokio::io::AsyncWriteExt;

/// How long a client may take to read a fixed answer, and to end an echo that does not move.
const LIMIT: Duration = Duration::from_secs(60);

/// Says something and closes.
pub(super) async fn direct(mut stream: Stream, bytes: Arc<[u8]>) {
    let all = async {
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        stream.shutdown().await?;
        // What the client still says is read, or its end would be a reset that overtakes the answer.
        let mut rest = Buffer::default();
        while poll_fn(|cx| rest.poll_read(&mut stream, cx)).await? > 0 {
            rest.consume(rest.len());
        }
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LIMIT, all).await;
}

/// Sends back what comes, until the client ends or rests for too long.
pub(super) async fn echo(mut stream: Stream, mut first: Buffer) {
    loop {
        let step = async {
            stream.write_all(first.bytes()).await?;
            stream.flush().await?;
            first.consume(first.len());
            poll_fn(|cx| first.poll_read(&mut stream, cx)).await
        };
        match tokio::time::timeout(LIMIT, step).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => break,
        }
    }
    let _ = tokio::time::timeout(LIMIT, stream.shutdown()).await;
}
