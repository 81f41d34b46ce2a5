//! Counting probe results against thresholds, and when the next probe is due.

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Container, Probe};
use lichen_api::k8s::apimachinery::pkg::util::intstr::IntOrString;

use crate::backoff::after;
use crate::io::{ProbeKind, ProbeTarget};

/// The probes of a running attempt.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Probes {
    list: Vec<Probing>,
}

/// One probe of a running attempt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Probing {
    pub(crate) kind: ProbeKind,
    spec: Probe,
    state: Due,
    successes: u32,
    failures: u32,
    passed: bool,
}

/// When a probe is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    At(Timestamp),
    /// It was sent, and the next one is due then, if it has answered.
    InFlight(Timestamp),
    Done,
}

/// What a probe's result means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing changes.
    Same,
    /// The probe has failed as often as it may.
    Failed,
}

impl Probes {
    /// The probes of an attempt that runs since `started_at`.
    pub(crate) fn new(container: &Container, started_at: Timestamp) -> Self {
        let of = |kind, spec: &Option<Probe>| {
            spec.clone().map(|spec| Probing {
                kind,
                state: Due::At(after(started_at, positive(spec.initial_delay_seconds, 0))),
                spec,
                successes: 0,
                failures: 0,
                passed: false,
            })
        };
        let list = [
            of(ProbeKind::Startup, &container.startup_probe),
            of(ProbeKind::Readiness, &container.readiness_probe),
            of(ProbeKind::Liveness, &container.liveness_probe),
        ];
        Self { list: list.into_iter().flatten().collect() }
    }

    fn passed(&self, kind: ProbeKind) -> bool {
        self.list.iter().find(|p| p.kind == kind).is_none_or(|p| p.passed)
    }

    /// Whether the attempt counts as started.
    pub(crate) fn started(&self) -> bool {
        self.passed(ProbeKind::Startup)
    }

    /// Whether the attempt may get traffic.
    pub(crate) fn ready(&self) -> bool {
        self.started() && self.passed(ProbeKind::Readiness)
    }

    /// Takes the probes that are due at `now`; each is in flight until its result is noted.
    pub(crate) fn take_due(
        &mut self,
        now: Timestamp,
        container: &Container,
    ) -> Vec<(ProbeKind, ProbeTarget, u32)> {
        let started = self.started();
        let mut due = Vec::new();
        for probing in &mut self.list {
            if !started && probing.kind != ProbeKind::Startup {
                continue;
            }
            if let Due::At(at) = probing.state
                && at <= now
            {
                probing.state = Due::InFlight(after(now, positive(probing.spec.period_seconds, 10)));
                due.push((
                    probing.kind,
                    target(&probing.spec, container),
                    positive(probing.spec.timeout_seconds, 1),
                ));
            }
        }
        due
    }

    /// When the next probe is due.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        let started = self.started();
        self.list
            .iter()
            .filter(|p| started || p.kind == ProbeKind::Startup)
            .filter_map(|p| if let Due::At(at) = p.state { Some(at) } else { None })
            .min()
    }

    /// Notes a result.
    pub(crate) fn note(&mut self, kind: ProbeKind, ok: bool) -> Verdict {
        let Some(probing) = self.list.iter_mut().find(|p| p.kind == kind) else { return Verdict::Same };
        let Due::InFlight(next) = probing.state else { return Verdict::Same };
        probing.state = Due::At(next);
        if ok {
            probing.failures = 0;
            probing.successes = probing.successes.saturating_add(1);
            if probing.successes >= positive(probing.spec.success_threshold, 1) {
                probing.passed = true;
                if kind == ProbeKind::Startup {
                    probing.state = Due::Done;
                }
            }
            return Verdict::Same;
        }
        probing.successes = 0;
        probing.failures = probing.failures.saturating_add(1);
        if probing.failures < positive(probing.spec.failure_threshold, 3) {
            return Verdict::Same;
        }
        if kind == ProbeKind::Readiness {
            probing.passed = false;
            return Verdict::Same;
        }
        Verdict::Failed
    }

    /// The grace that the probe itself asks for, when its failure ends the attempt.
    pub(crate) fn grace_s(&self, kind: ProbeKind) -> Option<i64> {
        self.list.iter().find(|p| p.kind == kind)?.spec.termination_grace_period_seconds
    }
}

fn positive(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
}

fn target(probe: &Probe, container: &Container) -> ProbeTarget {
    if let Some(http) = &probe.http_get {
        return match port_number(&http.port, container) {
            Ok(port) => ProbeTarget::Http {
                host: http.host.clone().filter(|h| !h.is_empty()),
                port,
                path: match http.path.as_deref() {
                    None | Some("") => "/".to_owned(),
                    Some(path) if path.starts_with('/') => path.to_owned(),
                    Some(path) => format!("/{path}"),
                },
                tls: http.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
                headers: http
                    .http_headers
                    .iter()
                    .flatten()
                    .map(|header| (header.name.clone(), header.value.clone()))
                    .collect(),
            },
            Err(why) => ProbeTarget::Unsupported(why),
        };
    }
    if let Some(tcp) = &probe.tcp_socket {
        return match port_number(&tcp.port, container) {
            Ok(port) => ProbeTarget::Tcp { host: tcp.host.clone().filter(|h| !h.is_empty()), port },
            Err(why) => ProbeTarget::Unsupported(why),
        };
    }
    let what = if probe.exec.is_some() {
        "exec"
    } else if probe.grpc.is_some() {
        "grpc"
    } else {
        return ProbeTarget::Unsupported("the probe has no handler".to_owned());
    };
    ProbeTarget::Unsupported(format!("{what} probes are not supported on this node"))
}

fn port_number(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_ref() == Some(name))
                .map(|p| p.container_port)
                .ok_or_else(|| format!("couldn't find port: {name:?} in container {:?}", container.name))?,
        },
    };
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lichen_api::k8s::api::core::v1::{ContainerPort, HTTPGetAction, TCPSocketAction};

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).expect("in range")
    }

    fn container(readiness: Probe) -> Container {
        Container {
            name: "c".into(),
            ports: Some(vec![ContainerPort {
                name: Some("web".into()),
                container_port: 8080,
                ..Default::default()
            }]),
            readiness_probe: Some(readiness),
            ..Default::default()
        }
    }

    fn http(port: IntOrString) -> Probe {
        Probe {
            http_get: Some(HTTPGetAction { port, ..Default::default() }),
            initial_delay_seconds: Some(2),
            period_seconds: Some(5),
            success_threshold: Some(2),
            failure_threshold: Some(2),
            ..Default::default()
        }
    }

    #[test]
    fn readiness_follows_its_thresholds() {
        let container = container(http(IntOrString::Int(80)));
        let mut probes = Probes::new(&container, at(0));
        assert_eq!(probes.next_due(), Some(at(2)));
        assert!(probes.take_due(at(1), &container).is_empty());
        let mut now = 2;
        let mut round = |probes: &mut Probes, ok, ready| {
            let due = probes.take_due(at(now), &container);
            assert_eq!(due.len(), 1, "at {now}");
            assert!(probes.take_due(at(now), &container).is_empty(), "never two in flight");
            assert_eq!(probes.note(ProbeKind::Readiness, ok), Verdict::Same);
            assert_eq!(probes.ready(), ready, "at {now}");
            now += 5;
            assert_eq!(probes.next_due(), Some(at(now)));
        };
        for (ok, ready) in [
            (true, false),
            (true, true),
            (false, true),
            (true, true),
            (false, true),
            (false, false),
            (true, false),
        ] {
            round(&mut probes, ok, ready);
        }
    }

    #[test]
    fn the_others_wait_for_the_startup_probe() {
        let mut container = container(http(IntOrString::Int(80)));
        container.startup_probe = Some(Probe {
            tcp_socket: Some(TCPSocketAction { port: IntOrString::Int(1), ..Default::default() }),
            failure_threshold: Some(1),
            ..Default::default()
        });
        let mut probes = Probes::new(&container, at(0));
        let due = probes.take_due(at(100), &container);
        assert_eq!(due.iter().map(|d| d.0).collect::<Vec<_>>(), [ProbeKind::Startup]);
        let mut failed = probes.clone();
        assert_eq!(failed.note(ProbeKind::Startup, false), Verdict::Failed);
        probes.note(ProbeKind::Startup, true);
        let due = probes.take_due(at(100), &container);
        assert_eq!(due.iter().map(|d| d.0).collect::<Vec<_>>(), [ProbeKind::Readiness]);
        assert_eq!(probes.next_due(), None);
    }

    #[test]
    fn targets() {
        let check = |probe: Probe, expect: ProbeTarget| {
            assert_eq!(target(&probe, &container(Probe::default())), expect);
        };
        let web =
            |port| ProbeTarget::Http { host: None, port, path: "/".into(), tls: false, headers: vec![] };
        check(http(IntOrString::Int(80)), web(80));
        check(http(IntOrString::String("web".into())), web(8080));
        check(http(IntOrString::String("81".into())), web(81));
        check(
            http(IntOrString::String("nope".into())),
            ProbeTarget::Unsupported("couldn't find port: \"nope\" in container \"c\"".into()),
        );
        check(http(IntOrString::Int(70000)), ProbeTarget::Unsupported("invalid port number: 70000".into()));
        check(Probe::default(), ProbeTarget::Unsupported("the probe has no handler".into()));
    }
}
