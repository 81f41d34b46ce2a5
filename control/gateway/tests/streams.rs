//! Logs and artifacts travel through a node's session.

mod common;

use bytes::Bytes;
use common::{Agent, Seen, World};
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use lichen_artifacts::{Artifacts, Digest, Transport, TransportError, push};
use lichen_registry::{LogRequest, NodeStreams};
use lichen_wire::session::StreamId;
use lichen_wire::stream::{
    ARTIFACT_SIGNING_CONTEXT, ArtifactHead, REQUEST_BYTES_MAX, StreamError, StreamErrorCode, StreamRequest,
};

const COMPONENT: &[u8] = include_bytes!("../../../runtime/guests/hello.wasm");

fn request() -> LogRequest {
    LogRequest {
        namespace: "default".to_owned(),
        pod: "one".to_owned(),
        uid: "uid-1".to_owned(),
        container: "main".to_owned(),
        follow: true,
        tail_lines: Some(10),
        ..LogRequest::default()
    }
}

async fn opened(agent: &mut Agent) -> StreamId {
    let Seen::Opened(id, asked) = agent.until(|seen| matches!(seen, Seen::Opened(..))).await else {
        panic!()
    };
    let StreamRequest::Logs { pod, uid, container, follow, tail_lines, .. } =
        StreamRequest::read(&asked).unwrap()
    else {
        panic!()
    };
    assert_eq!((pod, uid, container, follow, tail_lines), ("one", "uid-1", "main", true, Some(10)));
    id
}

#[tokio::test]
async fn a_log_streams_until_its_reader_leaves() {
    let world = World::new().await;
    let links = world.gateway.as_ref().unwrap().links();
    let mut agent = world.node("edge-1").await;
    let asking = tokio::spawn(async move { links.logs("edge-1", request()).await });
    let id = opened(&mut agent).await;
    assert_eq!(agent.session.stream_write(id, b"first\n"), Ok(6));
    let mut log = agent.during(asking).await.unwrap().unwrap();
    assert_eq!(agent.during(log.next()).await.unwrap().unwrap(), "first\n");
    // More than a stream's credit: it goes on only as the reader takes it.
    let lines = vec![b'x'; 1 << 20];
    let (mut written, mut read) = (0, 0);
    while read < lines.len() {
        written += agent.session.stream_write(id, &lines[written..]).unwrap();
        read += agent.during(log.next()).await.unwrap().unwrap().len();
    }
    assert_eq!(written, lines.len());
    drop(log);
    let ended = agent.until(|seen| matches!(seen, Seen::Ended(..))).await;
    assert!(matches!(ended, Seen::Ended(ended, Some(_)) if ended == id));
}

#[tokio::test]
async fn a_log_ends_with_its_node_s_word_or_breaks_with_its_session() {
    let mut world = World::new().await;
    let mut agent = world.node("edge-1").await;
    let links = world.gateway.as_ref().unwrap().links();
    let ask =
        |links: lichen_gateway::NodeLinks| tokio::spawn(async move { links.logs("edge-1", request()).await });

    let asking = ask(links.clone());
    let id = opened(&mut agent).await;
    let error = StreamError { code: StreamErrorCode::NotFound, message: "no container main" };
    agent.session.stream_reset(id, &error.to_string()).unwrap();
    let status = agent.during(asking).await.unwrap().err().unwrap();
    assert_eq!((status.code, status.message.as_str()), (404, "no container main"));

    let asking = ask(links.clone());
    let id = opened(&mut agent).await;
    agent.session.stream_write(id, b"all").unwrap();
    agent.session.stream_finish(id).unwrap();
    let mut log = agent.during(asking).await.unwrap().unwrap();
    assert_eq!(agent.during(log.next()).await.unwrap().unwrap(), "all");
    assert!(agent.during(log.next()).await.is_none());

    let asking = ask(links.clone());
    let id = opened(&mut agent).await;
    agent.session.stream_write(id, b"some").unwrap();
    let mut log = agent.during(asking).await.unwrap().unwrap();
    assert_eq!(agent.during(log.next()).await.unwrap().unwrap(), "some");
    world.gateway.take().unwrap().shutdown().await;
    assert_eq!(log.next().await.unwrap().unwrap_err().code, 503, "never silently");

    let status = links.logs("edge-1", request()).await.err().unwrap();
    assert_eq!(status.code, 503);
    let status = links.logs("nobody", request()).await.err().unwrap();
    assert_eq!(status.code, 503);
}

struct Local(Artifacts);

impl Transport for Local {
    async fn send(&self, request: hyper::Request<Bytes>) -> Result<hyper::Response<Bytes>, TransportError> {
        let (parts, body) = self.0.handle(request.map(Full::new)).await.into_parts();
        Ok(hyper::Response::from_parts(parts, body.collect().await?.to_bytes()))
    }
}

/// Pulls, and yields the bytes of the stream or the error that it ended with.
async fn pull(agent: &mut Agent, image: &str, profile: &str, offset: u64) -> Result<Vec<u8>, String> {
    let mut out = [0; REQUEST_BYTES_MAX];
    let len = StreamRequest::Artifact { image, profile, offset }.write(&mut out).unwrap();
    let id = agent.session.stream_open(&out[..len]).unwrap();
    let mut all = Vec::new();
    loop {
        match agent.until(|seen| matches!(seen, Seen::Data(..) | Seen::Ended(..))).await {
            Seen::Data(of, data) if of == id => all.extend(data),
            Seen::Ended(of, None) if of == id => {
                agent.session.stream_finish(id).unwrap();
                return Ok(all);
            }
            Seen::Ended(of, Some(error)) if of == id => return Err(error),
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_artifact_is_compiled_signed_and_pulled() {
    let world = World::new().await;
    let mut agent = world.node("edge-1").await;
    // Large enough to need credit more than once.
    let padding = vec![7u8; 1 << 20];
    let mut component = COMPONENT.to_vec();
    component.extend([0x00, 0x85, 0x80, 0x40, 0x04]);
    component.extend(b"fill");
    component.extend(&padding);
    let reference = "team/hello:v1".parse().unwrap();
    let pushed = push(&Local(world.artifacts.clone()), &reference, component.clone().into()).await.unwrap();

    let all = pull(&mut agent, "team/hello:v1", "p1", 0).await.unwrap();
    let (head, at) = ArtifactHead::read(&all).unwrap().unwrap();
    assert_eq!(&all[at..], component, "the fake compiler copies");
    assert_eq!((head.len, head.sha256), (component.len() as u64, *Digest::of(&all[at..]).as_bytes()));
    assert_eq!((head.manifest, head.component), (*pushed.manifest.as_bytes(), *pushed.layer.as_bytes()));
    let verify = |profile: &str| {
        let statement = head.statement(profile).unwrap();
        lichen_pki::verify(world.authority.ca_pem(), ARTIFACT_SIGNING_CONTEXT, &statement, head.signature.0)
    };
    verify("p1").unwrap();
    verify("p2").unwrap_err();

    let rest = pull(&mut agent, "team/hello:v1", "p1", 1_000_000).await.unwrap();
    let (_, at) = ArtifactHead::read(&rest).unwrap().unwrap();
    assert_eq!(&rest[at..], &component[1_000_000..]);

    for (image, profile, code, say) in [
        ("team/hello:v2", "p1", StreamErrorCode::NotFound, "team/hello:v2: not found"),
        ("ghcr.io/a:v1", "p1", StreamErrorCode::NotFound, "ghcr.io"),
        ("Not An Image", "p1", StreamErrorCode::Invalid, "Not An Image"),
        ("team/hello:v1", "other", StreamErrorCode::Unusable, "no such profile"),
        ("team/hello:v1", "../p", StreamErrorCode::Invalid, "profile"),
    ] {
        let error = pull(&mut agent, image, profile, 0).await.unwrap_err();
        let error = StreamError::parse(&error);
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(say), "{error}");
    }
}
