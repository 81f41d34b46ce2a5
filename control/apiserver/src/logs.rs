//! `pods/log`: a container's log, through whoever carries it from the node.

use std::future::ready;

use futures_util::{StreamExt as _, stream};
use hyper::Response;
use jiff::{SignedDuration, Timestamp};
use lichen_api::{FieldError, Status};
use lichen_registry::{LogRequest, object_of};
use serde_json::Value;

use crate::options;
use crate::query::Query;
use crate::respond::{self, Body, BodyError};
use crate::router::Call;

/// The annotation that names the container which a log without a container means.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Answers with a container's log.
pub(crate) async fn answer(call: Call, name: &str) -> Result<Response<Body>, Status> {
    let registry = &call.app.registry;
    let namespace = call.namespace().unwrap_or_default();
    let record = registry.get(call.resource, Some(namespace), name).await?;
    let pod = object_of(call.resource, &record)?;
    let container = container(&pod, name, call.query.get("container"))?;
    let (tail_lines, since, limit_bytes) = bounds(&call.query, registry.now())?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let request = LogRequest {
        namespace: namespace.to_owned(),
        pod: name.to_owned(),
        uid: record.uid().to_owned(),
        container,
        follow: call.query.flag("follow"),
        tail_lines,
        since,
        timestamps: call.query.flag("timestamps"),
        previous: call.query.flag("previous"),
        limit_bytes,
    };
    let Some(streams) = &call.app.streams else {
        return Err(Status::service_unavailable("this server has no way to its nodes"));
    };
    let pieces = streams.logs(node, request).await?;
    let mut draining = call.app.draining.clone();
    // Nobody is to take the server's end for the container's: it breaks off.
    let drained = stream::once(async move {
        // An error means that the server is gone, which ends the stream as well.
        let _ = draining.wait_for(|draining| *draining).await;
        Some(Err(BodyError::from("the server is stopping")))
    });
    let pieces = pieces.map(|piece| Some(piece.map_err(|status| BodyError::from(status.to_string()))));
    let pieces = stream::select(pieces.chain(stream::once(ready(None))), drained);
    let pieces = pieces.take_while(|piece| ready(piece.is_some())).filter_map(ready);
    Ok(respond::stream(200, "text/plain", pieces))
}

fn container(pod: &Value, name: &str, asked: Option<&str>) -> Result<String, Status> {
    let names = |field: &str| {
        let list = pod["spec"][field].as_array();
        list.into_iter()
            .flatten()
            .filter_map(|one| one["name"].as_str())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut all = names("containers");
    let init = names("initContainers");
    if let Some(asked) = asked {
        return match all.iter().chain(&init).any(|known| known == asked) {
            true => Ok(asked.to_owned()),
            false => Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
    }
    let preferred = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
    match preferred.filter(|preferred| all.iter().any(|known| known == preferred)) {
        Some(preferred) => Ok(preferred.to_owned()),
        None if all.len() == 1 => Ok(all.remove(0)),
        None => {
            let mut choice = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                all.join(" ")
            );
            if !init.is_empty() {
                choice.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(choice))
        }
    }
}

type Bounds = (Option<u64>, Option<Timestamp>, Option<u64>);

fn bounds(query: &Query, now: Timestamp) -> Result<Bounds, Status> {
    let mut errors = Vec::new();
    let mut number = |name: &str, least: i64| {
        let text = query.get(name)?;
        match text.parse::<i64>() {
            Ok(number) if number >= least => u64::try_from(number).ok(),
            _ => {
                let why = format!("must be greater than or equal to {least}");
                errors.push(FieldError::invalid(name, text, why));
                None
            }
        }
    };
    let tail_lines = number("tailLines", 0);
    let limit_bytes = number("limitBytes", 1);
    let seconds = number("sinceSeconds", 1);
    let time = match query.get("sinceTime").map(str::parse::<Timestamp>) {
        None => None,
        Some(Ok(time)) => Some(time),
        Some(Err(_)) => {
            errors.push(FieldError::invalid(
                "sinceTime",
                query.get("sinceTime"),
                "must be a time as RFC 3339 has it",
            ));
            None
        }
    };
    if seconds.is_some() && time.is_some() {
        errors.push(FieldError::forbidden(
            "sinceSeconds",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if !errors.is_empty() {
        return Err(options::invalid("PodLogOptions", errors));
    }
    let ago = seconds.and_then(|seconds| i64::try_from(seconds).ok()).map(SignedDuration::from_secs);
    let since = ago.map(|ago| now.checked_sub(ago).unwrap_or(Timestamp::MIN));
    Ok((tail_lines, since.or(time), limit_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn which_container() {
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        let mut annotated = two.clone();
        annotated["metadata"] = json!({"annotations": {DEFAULT_CONTAINER: "b"}});
        let cases = [
            (&one, None, Ok("a")),
            (&one, Some("x"), Err("container x is not valid for pod p")),
            (
                &two,
                None,
                Err(
                    "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]",
                ),
            ),
            (&two, Some("i"), Ok("i")),
            (&annotated, None, Ok("b")),
        ];
        for (pod, asked, expect) in cases {
            let got = container(pod, "p", asked).map_err(|status| status.message);
            assert_eq!(got.as_deref().map_err(String::as_str), expect);
        }
    }

    #[test]
    fn which_part() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let (lines, since, bytes) =
            bounds(&Query::parse("tailLines=0&sinceSeconds=60&limitBytes=5"), now).unwrap();
        assert_eq!((lines, bytes), (Some(0), Some(5)));
        assert_eq!(since.unwrap().to_string(), "2026-01-01T00:00:00Z");
        for bad in [
            "tailLines=-1",
            "tailLines=x",
            "limitBytes=0",
            "sinceTime=yesterday",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
        ] {
            assert_eq!(bounds(&Query::parse(bad), now).unwrap_err().code, 422, "{bad}");
        }
    }
}
