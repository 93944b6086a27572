//! A page of a list, read up to a size.

use futures::AsyncReadExt as _;
use http::Request;
use kube::Client;
use serde::de::DeserializeOwned;

/// Sends a request and decodes the answer, unless it has more bytes than `most`: then there is none.
///
/// # Errors
/// Of the API server, or of what reads its answer.
pub async fn page<T: DeserializeOwned>(
    client: &Client,
    request: Request<Vec<u8>>,
    most: usize,
) -> Result<Option<T>, kube::Error> {
    let one_more = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let mut body = std::pin::pin!(client.request_stream(request).await?.take(one_more));
    let mut text = Vec::new();
    body.read_to_end(&mut text).await.map_err(kube::Error::ReadEvents)?;
    if text.len() > most {
        return Ok(None);
    }
    serde_json::from_slice(&text).map(Some).map_err(kube::Error::SerdeError)
}

#[cfg(test)]
mod tests {
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_up_to_the_size_that_was_said_and_a_larger_one_is_none() {
        let service = tower::service_fn(|_: Request<Body>| async {
            let text = format!("\"{}\"", "x".repeat(1000)).into_bytes();
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(text)))
        });
        let client = Client::new(service, "default");
        let ask = async |most| {
            let request = Request::get("/api/v1/pods").body(Vec::new()).expect("a request");
            page::<Value>(&client, request, most).await.expect("an answer").is_some()
        };
        assert!(ask(1002).await);
        assert!(!ask(1001).await);
    }
}
