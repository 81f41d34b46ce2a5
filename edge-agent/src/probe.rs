//! Asking a container, as a probe tells.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::header::{HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use lichen_net::AddressMode;
use lichen_pods::ProbeTarget;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Asks; the error is what the event says.
pub(crate) async fn run(
    target: &ProbeTarget,
    pod_ip: &str,
    mode: AddressMode,
    time: Duration,
) -> Result<(), String> {
    let late = |_| "context deadline exceeded (the probe did not end in time)".to_owned();
    match target {
        ProbeTarget::Unsupported(why) => Err(why.clone()),
        ProbeTarget::Tcp { host, port } => {
            let connect = connect(host.as_deref().unwrap_or(pod_ip), *port, mode);
            timeout(time, connect).await.map_err(late)?.map(drop)
        }
        ProbeTarget::Http { tls: true, .. } => Err("HTTPS probes are not supported on this node".to_owned()),
        ProbeTarget::Http { host, port, path, headers, .. } => {
            let host = host.as_deref().unwrap_or(pod_ip);
            let ask = get(host, *port, path, headers, mode);
            let status = timeout(time, ask).await.map_err(late)??;
            if (200..400).contains(&status) {
                Ok(())
            } else {
                Err(format!("HTTP probe failed with statuscode: {status}"))
            }
        }
    }
}

async fn connect(host: &str, port: u16, mode: AddressMode) -> Result<TcpStream, String> {
    let refused = |error: std::io::Error| format!("dial tcp {host}:{port}: connect: {error}");
    match host.parse() {
        Ok(IpAddr::V4(ip)) => {
            TcpStream::connect(SocketAddr::from((mode.map(ip), port))).await.map_err(refused)
        }
        _ => TcpStream::connect((host, port)).await.map_err(refused),
    }
}

async fn get(
    host: &str,
    port: u16,
    path: &str,
    headers: &[(String, String)],
    mode: AddressMode,
) -> Result<u16, String> {
    let failed = |error: String| format!("Get \"http://{host}:{port}{path}\": {error}");
    let stream = connect(host, port, mode).await.map_err(&failed)?;
    let mut request = Request::get(path);
    let named = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    if !named(HOST.as_str()) {
        request = request.header(HOST, format!("{host}:{port}"));
    }
    if !named(USER_AGENT.as_str()) {
        request = request.header(USER_AGENT, "kube-probe/1.36");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| failed(e.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(e.to_string()))?;
    let ask = async { sender.send_request(request).await.map_err(|e| failed(e.to_string())) };
    tokio::pin!(connection, ask);
    // The connection is driven here and dropped with the answer's head: nobody reads its body.
    let answer = tokio::select! {
        answer = &mut ask => answer?,
        _ = &mut connection => ask.await?,
    };
    Ok(answer.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn server(status: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("has an address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream
                    .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .await;
            }
        });
        port
    }

    async fn ask(target: ProbeTarget, seconds: u64) -> Result<(), String> {
        run(&target, "127.0.0.1", AddressMode::Loopback, Duration::from_secs(seconds)).await
    }

    fn http(port: u16) -> ProbeTarget {
        ProbeTarget::Http { host: None, port, path: "/healthz".into(), tls: false, headers: vec![] }
    }

    #[tokio::test]
    async fn answers_decide() {
        assert_eq!(ask(http(server("200 OK").await), 9).await, Ok(()));
        assert_eq!(ask(http(server("302 Found").await), 9).await, Ok(()));
        let failed = "HTTP probe failed with statuscode: 500".to_owned();
        assert_eq!(ask(http(server("500 Oh").await), 9).await, Err(failed));
        assert_eq!(ask(ProbeTarget::Tcp { host: None, port: server("200 OK").await }, 9).await, Ok(()));
    }

    #[tokio::test]
    async fn silence_and_refusal_are_failures() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("has an address").port();
        let error = ask(http(port), 0).await.expect_err("is silent");
        assert!(error.starts_with("context deadline exceeded"), "{error}");
        drop(listener);
        let error = ask(http(port), 9).await.expect_err("is refused");
        assert!(error.starts_with(&format!("Get \"http://127.0.0.1:{port}/healthz\": dial tcp")), "{error}");
        let error = ask(ProbeTarget::Unsupported("exec".into()), 9).await.expect_err("is unsupported");
        assert_eq!(error, "exec");
    }
}
