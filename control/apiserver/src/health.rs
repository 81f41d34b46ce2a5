//! `/livez`, `/readyz` and `/healthz`: whether this member lives, and whether it can do what it is asked.
//!
//! A member lives until it drains. It is ready when a read sees everything that was acknowledged anywhere, and a write
//! would be taken: without a majority of the members, or with a full disk, it is not. Why is told to administrators.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use lichen_api::Status;
use lichen_registry::Identity;

use crate::respond::{self, Body};
use crate::router::App;

/// How long a read may take of which a member says that it is ready.
const READ_MAX: Duration = Duration::from_secs(2);
const MEDIA: &str = "text/plain; charset=utf-8";

/// Answers how this member is.
pub(crate) async fn answer(
    app: &App,
    identity: &Identity,
    request: &Request<Incoming>,
) -> Result<Response<Body>, Status> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    let endpoint = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
    let verbose = request.uri().query().is_some_and(|query| query.contains("verbose"));
    let shutdown = app.draining.borrow().then(|| "the server is draining".to_owned());
    let mut checks = vec![("ping", None), ("shutdown", shutdown)];
    if endpoint != "livez" {
        checks.push(("store", store(app).await));
    }
    let (code, text) = told(endpoint, &checks, verbose, identity.is_master());
    Ok(respond::full(code, MEDIA, text))
}

/// What keeps the store from serving.
async fn store(app: &App) -> Option<String> {
    if let Some(fault) = app.registry.store().fault() {
        return Some(fault);
    }
    match tokio::time::timeout(READ_MAX, app.registry.barrier()).await {
        Ok(Ok(())) => None,
        Ok(Err(status)) => Some(status.message),
        Err(_) => Some("the members do not agree on who leads".to_owned()),
    }
}

fn told(endpoint: &str, checks: &[(&str, Option<String>)], verbose: bool, reasons: bool) -> (u16, String) {
    let failed = checks.iter().any(|(_, why)| why.is_some());
    if !failed && !verbose {
        return (200, "ok".to_owned());
    }
    let mut text = String::new();
    for (name, why) in checks {
        text += &match why {
            None => format!("[+]{name} ok\n"),
            Some(why) if reasons => format!("[-]{name} failed: {why}\n"),
            Some(_) => format!("[-]{name} failed: reason withheld\n"),
        };
    }
    let (code, verdict) = if failed { (503, "failed") } else { (200, "passed") };
    (code, format!("{text}{endpoint} check {verdict}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told() {
        let check = |why: Option<&str>, verbose, reasons, expect: (u16, &str)| {
            let checks = [("ping", None), ("store", why.map(str::to_owned))];
            let got = told("readyz", &checks, verbose, reasons);
            assert_eq!((got.0, &*got.1), expect);
        };
        check(None, false, true, (200, "ok"));
        check(None, true, false, (200, "[+]ping ok\n[+]store ok\nreadyz check passed\n"));
        let full = Some("no space left");
        check(full, false, true, (503, "[+]ping ok\n[-]store failed: no space left\nreadyz check failed\n"));
        check(
            full,
            true,
            false,
            (503, "[+]ping ok\n[-]store failed: reason withheld\nreadyz check failed\n"),
        );
    }
}
