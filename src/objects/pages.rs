//! Lists in pages, each read up to a size.

use futures::AsyncReadExt as _;
use http::Request;
use kube::{Client, api::ListParams};
use serde::{Deserialize, de::DeserializeOwned};

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

/// What is read of a page of a list; all else is skipped in the text.
#[derive(Deserialize)]
pub struct Page<T> {
    #[serde(default)]
    metadata: PageMetadata,
    /// The API server says `null` where there is none.
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(rename = "continue")]
    continue_: Option<String>,
}

/// The pages of one list, one after the other. Where objects are too large for a page, fewer are asked for.
pub struct ListPages {
    params: ListParams,
    /// Objects in the next one.
    size: u32,
    /// How many may still be asked for.
    left: usize,
    is_whole: bool,
}

impl ListPages {
    /// A list of what `params` select: so many objects in a page at most, and so many pages, those that were too large among them.
    pub fn new(params: ListParams, size: u32, pages: usize) -> Self {
        Self { params, size, left: pages, is_whole: false }
    }

    /// What is in the next page; None at the end, and where a single object is too large. `ask` yields none of a page that is too large.
    ///
    /// # Errors
    /// Of `ask`.
    pub async fn next<T, E, F>(&mut self, ask: impl Fn(ListParams) -> F) -> Result<Option<Vec<T>>, E>
    where
        F: Future<Output = Result<Option<Page<T>>, E>>,
    {
        while !self.is_whole && self.left > 0 {
            self.left -= 1;
            self.params.limit = Some(self.size);
            match ask(self.params.clone()).await? {
                Some(Page { metadata, items }) => {
                    self.params.continue_token = metadata.continue_.filter(|token| !token.is_empty());
                    self.is_whole = self.params.continue_token.is_none();
                    return Ok(Some(items.unwrap_or_default()));
                }
                None if self.size == 1 => self.left = 0,
                None => self.size = (self.size / 4).max(1),
            }
        }
        Ok(None)
    }

    /// Whether the last page was read.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_up_to_the_size_that_was_said_and_a_larger_one_is_none() {
        let service = tower::service_fn(|_: Request<Body>| async {
            let text = format!("\"{}\"", "x".repeat(1000)).into_bytes();
            Ok::<_, Infallible>(http::Response::new(Body::from(text)))
        });
        let client = Client::new(service, "default");
        let ask = async |most| {
            let request = Request::get("/api/v1/pods").body(Vec::new()).expect("a request");
            page::<Value>(&client, request, most).await.expect("an answer").is_some()
        };
        assert!(ask(1002).await);
        assert!(!ask(1001).await);
    }

    #[tokio::test]
    async fn of_what_is_too_large_for_a_page_a_quarter_is_asked_for_and_the_list_is_whole_at_its_last_page() {
        let asked = Mutex::new(Vec::new());
        let mut pages = ListPages::new(ListParams::default(), 9, 10);
        let mut found = Vec::new();
        let ask = |params: ListParams| {
            let (limit, token) = (params.limit.expect("a limit"), params.continue_token);
            asked.lock().push((limit, token.clone()));
            let next = if token.is_none() { "more" } else { "" };
            let page = json!({"metadata": {"continue": next}, "items": [limit]});
            let page = serde_json::from_value::<Page<u32>>(page).expect("a page");
            async move { Ok::<_, Infallible>(Some(page).filter(|_| limit <= 2)) }
        };
        while let Some(items) = pages.next(&ask).await.expect("an answer") {
            found.extend(items);
        }
        assert_eq!((found, pages.is_whole()), (vec![2, 2], true));
        assert_eq!(*asked.lock(), [(9, None), (2, None), (2, Some("more".to_owned()))]);
        let mut pages = ListPages::new(ListParams::default(), 9, 10);
        let nothing = |_| async { Ok::<Option<Page<u32>>, Infallible>(None) };
        assert_eq!(pages.next(nothing).await.expect("an answer"), None, "a single one is too large");
        assert!(!pages.is_whole());
    }
}
