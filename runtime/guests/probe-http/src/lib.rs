//! Answers as the path says: what tests need of a request handler.
//!
//! `/spin` never ends, `/trap` does at once, `/silent` gives no answer, `/allocate` takes 64 MiB, `/print` prints a line,
//! `/fetch` sends a request of its own and tells how that went, `/echo` sends back the request's body, anything else is 404.

wit_bindgen::generate!({ world: "lichen:workload/http", path: "../../../wit", generate_all });

use exports::wasi::http::incoming_handler::Guest;
use wasi::http::outgoing_handler;
use wasi::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
};
use wasi::io::streams::StreamError;

struct Probe;

impl Guest for Probe {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        match request.path_with_query().unwrap_or_default().as_str() {
            "/spin" => loop {
                std::hint::black_box(());
            },
            "/trap" => core::arch::wasm32::unreachable(),
            "/silent" => {}
            "/allocate" => respond(out, 200, std::hint::black_box(vec![b'x'; 64 << 20]).len().to_string().as_bytes()),
            "/print" => {
                println!("printed");
                respond(out, 200, b"printed\n");
            }
            "/fetch" => respond(out, 200, fetch().as_bytes()),
            "/echo" => match body(&request) {
                Ok(body) => respond(out, 200, &body),
                Err(()) => respond(out, 400, b""),
            },
            _ => respond(out, 404, b""),
        }
    }
}

fn fetch() -> String {
    let request = OutgoingRequest::new(Fields::new());
    let _ = request.set_scheme(Some(&Scheme::Http));
    let _ = request.set_authority(Some("127.0.0.1:1"));
    let _ = request.set_path_with_query(Some("/"));
    match outgoing_handler::handle(request, None) {
        Err(code) => format!("{code:?}"),
        Ok(future) => {
            future.subscribe().block();
            match future.get() {
                Some(Ok(Ok(response))) => format!("status {}", response.status()),
                Some(Ok(Err(code))) => format!("{code:?}"),
                _ => "nothing".to_owned(),
            }
        }
    }
}

fn body(request: &IncomingRequest) -> Result<Vec<u8>, ()> {
    let body = request.consume()?;
    let stream = body.stream()?;
    let mut all = Vec::new();
    loop {
        match stream.blocking_read(64 * 1024) {
            Ok(bytes) => all.extend(bytes),
            Err(StreamError::Closed) => return Ok(all),
            Err(StreamError::LastOperationFailed(_)) => return Err(()),
        }
    }
}

fn respond(out: ResponseOutparam, status: u16, text: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    let _ = response.set_status_code(status);
    let body = response.body();
    ResponseOutparam::set(out, Ok(response));
    if let Ok(body) = body {
        if let Ok(stream) = body.write() {
            // The most that one call takes.
            for piece in text.chunks(4096) {
                let _ = stream.blocking_write_and_flush(piece);
            }
        }
        let _ = OutgoingBody::finish(body, None);
    }
}

export!(Probe);
