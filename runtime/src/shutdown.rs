//! One token that says "leave", cancelled by SIGTERM or SIGINT; and signals that end a process only where nobody hears them.

use tokio::signal::unix::{SignalKind, signal as on};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT. A second signal of either kind ends the process at once,
/// with status 1, so that a person can always get out. Must be called inside a tokio runtime.
///
/// # Errors
///
/// When the kernel refuses a signal handler.
pub fn signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = on(SignalKind::terminate())?;
    let mut interrupt = on(SignalKind::interrupt())?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = next().await;
        tracing::info!(signal = name, "shutting down");
        cancelled.cancel();
        let name = next().await;
        tracing::warn!(signal = name, "a second signal: leaving at once");
        std::process::exit(1);
    });
    Ok(token)
}

/// From now on SIGHUP does nothing, and `reopen` is called at every SIGUSR1: by then somebody has moved files away to which this
/// process writes. Must be called inside a tokio runtime.
///
/// # Errors
///
/// When the kernel refuses a signal handler.
pub fn stay(reopen: impl Fn() + Send + 'static) -> std::io::Result<()> {
    let mut hangup = on(SignalKind::hangup())?;
    let mut first_user = on(SignalKind::user_defined1())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                _ = first_user.recv() => {
                    tracing::info!("SIGUSR1: files are opened anew");
                    reopen();
                }
            }
        }
    });
    Ok(())
}
