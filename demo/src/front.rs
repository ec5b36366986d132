//! The front page: which version of each service answered is there to be seen.

use crate::{Failure, Listen, net, server};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use serde_json::Value;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: Listen,
    /// HOST:PORT of the reviews.
    #[arg(long, default_value = "reviews:9080")]
    reviews: String,
    /// HOST:PORT of the details.
    #[arg(long, default_value = "details:9080")]
    details: String,
}

pub(crate) async fn serve(args: Args) -> Result<(), Failure> {
    let client = net::client(false, true)?;
    let (reviews, details) = (args.reviews, args.details);
    server::serve(args.listen, move |request, _| {
        let client = client.clone();
        let (reviews, details) = (format!("http://{reviews}/reviews/1"), format!("http://{details}/details/1"));
        async move {
            if request.uri().path() == "/healthz" {
                return Ok(Response::new(Full::new(Bytes::from_static(b"ok\n"))));
            }
            let headers = server::passed_on(request.headers());
            let user = headers.get("x-user").and_then(|user| user.to_str().ok()).unwrap_or("nobody").to_owned();
            let (reviews, details) = tokio::join!(
                server::get_json(&client, &reviews, headers.clone()),
                server::get_json(&client, &details, headers),
            );
            let mut answer = Response::new(Full::new(page(&user, &reviews, &details).into()));
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
            if let Ok((version, _)) = &reviews {
                answer.headers_mut().insert("x-reviews-version", HeaderValue::from_str(version)?);
            }
            Ok(answer)
        }
    })
    .await
}

type Asked = Result<(String, Value), Failure>;

fn page(user: &str, reviews: &Asked, details: &Asked) -> String {
    let product = match details {
        Ok((version, details)) => format!(
            "<h1>{}</h1><p>Colour: {}. In stock: {}. <span class=v>details {}</span></p>",
            text(&details["name"]),
            text(&details["colour"]),
            details["in_stock"],
            escape(version)
        ),
        Err(error) => format!("<h1>Leno scarf</h1><p class=bad>details: {}</p>", escape(&error.to_string())),
    };
    let said = match reviews {
        Ok((version, answer)) => {
            let rows = answer["reviews"].as_array().into_iter().flatten().map(|review| {
                let stars = "★".repeat(review["stars"].as_u64().unwrap_or(0).min(5) as usize);
                format!(
                    "<li>{} <i>{}</i> <b style=\"color:{}\">{stars}</b></li>",
                    text(&review["text"]),
                    text(&review["reviewer"]),
                    text(&answer["colour"])
                )
            });
            let rows: String = rows.collect();
            format!("<h2>Reviews <span class=v>reviews {}</span></h2><ul>{rows}</ul>", escape(version))
        }
        Err(error) => format!("<h2>Reviews</h2><p class=bad>reviews: {}</p>", escape(&error.to_string())),
    };
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>The Leno shop</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}}\
         .v{{font-size:.8rem;background:#234;color:#fff;border-radius:.6rem;padding:.1rem .6rem}}.bad{{color:#a00}}</style>\
         {product}{said}<footer>You are {}.</footer></html>\n",
        escape(user)
    )
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or("?"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn page_with_markup_in_an_answer_shows_it_as_text() {
        let details: Asked = Ok(("v1".into(), json!({"name": "<script>", "colour": "x", "in_stock": 1})));
        let page = page("a&b", &Err("down".into()), &details);
        assert!(page.contains("&lt;script&gt;") && page.contains("You are a&amp;b") && !page.contains("<script>"));
        assert!(page.contains("reviews: down"));
    }
}
