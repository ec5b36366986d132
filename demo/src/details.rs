//! What a product is, and how many there are.

use crate::{
    Failure, Listen,
    net::{Connector, host_port},
    server,
};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: Listen,
    /// HOST:PORT of the inventory.
    #[arg(long, default_value = "inventory:9000")]
    inventory: String,
}

pub(crate) async fn serve(args: Args) -> Result<(), Failure> {
    let connector = Connector::new()?;
    let (version, inventory) = (args.listen.version.clone(), args.inventory);
    server::serve(args.listen, move |_, _| {
        let (connector, version, inventory) = (connector.clone(), version.clone(), inventory.clone());
        async move {
            let asked = tokio::time::timeout(Duration::from_secs(5), in_stock(&connector, &inventory));
            let stock = asked.await.map_err(|_| format!("{inventory}: no answer within 5 s"))??;
            Ok(server::json(&json!({"version": version, "name": "Leno scarf", "colour": "indigo", "in_stock": stock})))
        }
    })
    .await
}

/// Asks the inventory; the server greets first.
pub(crate) async fn in_stock(connector: &Connector, inventory: &str) -> Result<u64, Failure> {
    let (host, port) = host_port(inventory)?;
    let mut stream = BufReader::new(connector.connect(host, port).await?);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    if !line.starts_with("220 ") {
        return Err(format!("{inventory} greeted with {line:?}, not with 220").into());
    }
    stream.write_all(b"STOCK 1\n").await?;
    line.clear();
    stream.read_line(&mut line).await?;
    line.trim().parse().map_err(|_| format!("{inventory} answered {line:?}, not a number").into())
}
