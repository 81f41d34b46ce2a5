//! Answers every HTTP request with a greeting and with where it runs.
//!
//! The greeting is the content of the file `GREETING_FILE` names (by default `/config/greeting`, where a ConfigMap is
//! mounted), else the environment variable `GREETING`, else `Hello`. `POD_NAME` and `NODE_NAME` tell the copies apart.
//! `/healthz` answers `ok`.

use std::env;

wit_bindgen::generate!({ world: "lichen:workload/http", path: "../../../wit", generate_all });

use exports::wasi::http::incoming_handler::Guest;
use wasi::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Hello;

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let text = match path.as_str() {
            "/healthz" => "ok\n".to_owned(),
            _ => greeting_line(),
        };
        respond(out, &text);
    }
}

fn greeting_line() -> String {
    let pod = env::var("POD_NAME").unwrap_or_else(|_| "an unnamed pod".to_owned());
    let node = env::var("NODE_NAME").unwrap_or_else(|_| "an unnamed node".to_owned());
    format!("{} from {pod} on {node}\n", greeting())
}

fn greeting() -> String {
    let file = env::var("GREETING_FILE").unwrap_or_else(|_| "/config/greeting".to_owned());
    match std::fs::read_to_string(file) {
        Ok(text) => text.trim_end().to_owned(),
        Err(_) => env::var("GREETING").unwrap_or_else(|_| "Hello".to_owned()),
    }
}

fn respond(out: ResponseOutparam, text: &str) {
    let headers = Fields::new();
    // Appending to fresh headers is refused for names and values that no header may have; these may.
    let _ = headers.append("content-type", b"text/plain; charset=utf-8");
    let _ = headers.append("content-length", text.len().to_string().as_bytes());
    let response = OutgoingResponse::new(headers);
    let body = response.body();
    ResponseOutparam::set(out, Ok(response));
    // A client that is gone is nothing to report.
    if let Ok(body) = body {
        if let Ok(stream) = body.write() {
            let _ = stream.blocking_write_and_flush(text.as_bytes());
        }
        let _ = OutgoingBody::finish(body, None);
    }
}

export!(Hello);
