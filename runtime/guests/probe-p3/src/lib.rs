//! A request handler in terms of WASI 0.3: answers with how many requests this instance has seen. `/trap` ends it.

use std::sync::atomic::{AtomicU64, Ordering};

wit_bindgen::generate!({ world: "lichen:workload-p3/http", path: "../../../wit/p3", generate_all });

use exports::wasi::http::handler::Guest;
use wasi::http::types::{ErrorCode, Fields, Request, Response};

static SEEN: AtomicU64 = AtomicU64::new(0);

struct Probe;

impl Guest for Probe {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        if request.get_path_with_query().as_deref() == Some("/trap") {
            core::arch::wasm32::unreachable();
        }
        let text = format!("request {}\n", SEEN.fetch_add(1, Ordering::Relaxed) + 1);
        let (mut body, contents) = wit_stream::new();
        let (trailers, no_trailers) = wit_future::new(|| Ok(None));
        let (response, _) = Response::new(Fields::new(), Some(contents), no_trailers);
        drop(trailers);
        wit_bindgen::spawn_local(async move {
            body.write_all(text.into_bytes()).await;
        });
        Ok(response)
    }
}

export!(Probe);
