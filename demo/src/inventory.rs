//! How many there are: a line protocol on TCP in which the server speaks first, as SMTP and MySQL do.

use crate::{Failure, Listen, server};
use std::time::Duration;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// A line longer than this ends the connection, as does silence longer than [`IDLE`].
const LINE: u64 = 1024;
const IDLE: Duration = Duration::from_secs(3600);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: Listen,
}

pub(crate) async fn serve(args: Args) -> Result<(), Failure> {
    let listener = TcpListener::bind(args.listen.listen).await?;
    let mut end = std::pin::pin!(server::terminated());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { tokio::spawn(answer(stream, args.listen.version.clone())); }
                Err(error) => eprintln!("accept: {error}"),
            },
            () = &mut end => return Ok(()),
        }
    }
}

async fn answer(stream: TcpStream, version: String) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("220 inventory {version}\n").as_bytes()).await?;
    loop {
        let mut line = String::new();
        let mut bounded = (&mut stream).take(LINE);
        let read = tokio::time::timeout(IDLE, bounded.read_line(&mut line));
        if read.await.map_err(std::io::Error::other)?? == 0 {
            return Ok(());
        }
        let reply = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["STOCK", _] => "42\n".to_owned(),
            ["ECHO", word] => format!("{word}\n"),
            ["QUIT"] => return Ok(()),
            _ => "500 say STOCK n, ECHO word or QUIT\n".to_owned(),
        };
        stream.write_all(reply.as_bytes()).await?;
    }
}
