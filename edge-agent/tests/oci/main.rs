//! OCI containers of a real engine (runc, crun): the conformance suite, and what only processes do. The program under test
//! is its own shim.

mod bench;

use std::time::Duration;

use bench::{benches, text};
use futures_util::StreamExt;
use lichen_workload::conformance;
use lichen_workload::{
    ContainerId, ContainerSpec, ExecRequest, Exit, Limits, LogLimits, LogOptions, Mount, Runtime,
    RuntimeError, State,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than any step takes; reaching it means that something hangs.
const LONG: Duration = Duration::from_secs(60);

fn id(text: &str) -> ContainerId {
    ContainerId::new(text).unwrap()
}

#[test]
fn crun_does_all_of_it_where_control_groups_are_hybrid() {
    bench::crun_alone("crun_does_all_of_it_where_control_groups_are_hybrid");
}

#[tokio::test]
async fn oci_containers_conform() {
    for bench in benches("conformance") {
        conformance::test_all(&bench).await;
        assert_eq!(bench.left(), [""; 0], "{}", bench.engine);
    }
}

#[tokio::test]
async fn a_container_has_what_it_asked_for_and_nothing_else() {
    for bench in benches("inside") {
        let volume = bench.folder.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("file"), "from the node").unwrap();
        let inside = async |name: &str, script: &str, change: &dyn Fn(&mut ContainerSpec)| {
            let mut spec = bench.sh(id(name), script);
            spec.process.hostname = "its-name".into();
            change(&mut spec);
            let (exit, log) = bench.run(spec).await;
            assert_eq!(exit, Exit::Code(0), "{script}: {log}");
            log
        };
        let status = inside("status", "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status", &|_| {}).await;
        assert_eq!(status, "CapEff:\t0000000000000000\nNoNewPrivs:\t1\n");
        let asked = |spec: &mut ContainerSpec| spec.process.capabilities = vec!["CHOWN".into()];
        assert_eq!(
            inside("caps", "grep CapEff /proc/self/status", &asked).await,
            "CapEff:\t0000000000000001\n"
        );
        assert_eq!(inside("name", "hostname; cat /etc/hostname", &|_| {}).await, "its-name\nits-name\n");
        assert_eq!(
            inside("pid", "echo $$; ls /proc | grep -c '^[0-9]'", &|_| {}).await.lines().next(),
            Some("1")
        );
        let interfaces =
            inside("net", "ls /sys/class/net; ip -o addr show lo up | grep -c inet", &|_| {}).await;
        assert!(interfaces.starts_with("lo\n") && !interfaces.contains("\n0\n"), "{interfaces}");
        let own = |spec: &mut ContainerSpec| {
            spec.env = vec![("A".into(), "b c".into())];
            spec.mounts = vec![Mount { host: volume.clone(), guest: "/v".into(), read_only: true }];
            spec.process.user = Some(7);
            spec.process.group = Some(8);
            spec.process.working_dir = Some("/v".into());
        };
        let seen = inside("own", "echo $A; pwd; id -u; id -g; cat file; touch /v/x 2>&1; true", &own).await;
        assert_eq!(seen, "b c\n/v\n7\n8\nfrom the nodetouch: /v/x: Read-only file system\n");
        // What one container writes no other sees, nor the image.
        inside("writes", "echo x > /written; ls /written", &|_| {}).await;
        inside("sees", "! ls /written 2>/dev/null", &|_| {}).await;
        let read_only = |spec: &mut ContainerSpec| spec.process.read_only_root = true;
        inside("ro", "! echo x > /written 2>/dev/null", &read_only).await;
    }
}

#[tokio::test]
async fn ends_are_told_apart() {
    for bench in benches("ends") {
        let mut hungry = bench.sh(id("hungry"), "exec tail /dev/zero");
        hungry.limits = Limits { memory_bytes: Some(16 << 20), cpu_millis: Some(500) };
        assert_eq!(bench.run(hungry).await.0, Exit::OutOfMemory, "{}", bench.engine);
        // A process ends itself by any signal it can, but the first of its namespace can't by its own hand.
        assert_eq!(bench.run(bench.sh(id("signal"), "sh -c 'kill -9 $$'; exit $?")).await.0, Exit::Code(137));

        let runtime = &bench.runtime;
        let deaf = id("deaf");
        runtime
            .create(bench.sh(deaf.clone(), "trap '' TERM; echo started; while :; do sleep 1; done"))
            .await
            .unwrap();
        runtime.start(&deaf).await.unwrap();
        bench.says(&deaf, "started\n").await;
        assert_eq!(runtime.stop(&deaf, Duration::from_millis(300)).await.unwrap(), Exit::Killed);
        assert!(matches!(runtime.state(&deaf), Ok(State::Exited { exit: Exit::Killed, .. })));
        runtime.remove(&deaf).await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_made_leaves_nothing() {
    for bench in benches("refused") {
        let refused = async |change: &dyn Fn(&mut ContainerSpec), expect: &str| {
            let mut spec = bench.sh(id("refused"), "true");
            change(&mut spec);
            let error = bench.runtime.create(spec).await.unwrap_err();
            assert!(matches!(error, RuntimeError::InvalidSpec(_)), "{error:?}");
            assert!(error.to_string().contains(expect), "{error}");
            assert_eq!(bench.left(), [""; 0]);
            assert!(bench.runtime.list().is_empty());
        };
        refused(&|spec| spec.command = vec!["/no/such/program".into()], "/no/such/program").await;
        refused(&|spec| spec.process.capabilities = vec!["SYS_ADMIN".into()], "SYS_ADMIN").await;
        refused(&|spec| spec.process.not_root = true, "runAsNonRoot").await;
        let absent = Mount { host: "/no/such/volume".into(), guest: "/v".into(), read_only: true };
        refused(&|spec| spec.mounts = vec![absent.clone()], "/no/such/volume").await;
        let mut none = bench.config.clone();
        none.engine = Some("/no/such/engine".into());
        let error = lichen_workload::OciRuntime::new(none, std::time::SystemTime::now)
            .prepare(&bench.sh(id("none"), "true").artifact)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Unavailable(why) if why.contains("/no/such/engine")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn another_program_runs_inside() {
    for bench in benches("exec") {
        let runtime = &bench.runtime;
        let id = id("host");
        runtime.create(bench.sleeps(id.clone())).await.unwrap();
        let request = |script: &str, stdin| ExecRequest {
            command: vec!["sh".into(), "-c".into(), script.into()],
            stdin,
            tty: false,
        };
        let early = runtime.exec(&id, request("true", false)).await.err();
        assert!(matches!(early, Some(RuntimeError::WrongState { state: "created", .. })));
        runtime.start(&id).await.unwrap();
        bench.says(&id, "started\n").await;
        let mut session =
            runtime.exec(&id, request("cat; hostname; echo err >&2; exit 7", true)).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"typed\n").await.unwrap();
        drop(stdin);
        let (mut out, mut err) = (String::new(), String::new());
        session.stdout.read_to_string(&mut out).await.unwrap();
        session.stderr.unwrap().read_to_string(&mut err).await.unwrap();
        assert_eq!((out.as_str(), err.as_str()), ("typed\nhost\n", "err\n"));
        assert_eq!(session.exit.await.unwrap(), Exit::Code(7));
        let terminal = runtime.exec(&id, ExecRequest { tty: true, ..request("true", false) }).await;
        assert!(matches!(terminal.err(), Some(RuntimeError::Unsupported { .. })));
        let stats = runtime.stats(&id).unwrap();
        assert!(stats.memory_bytes > 0 && stats.cpu_ns > 0, "{stats:?}");
        bench.end(&id).await;
    }
}

#[tokio::test]
async fn a_log_goes_on_whoever_the_agent_is() {
    for mut bench in benches("log") {
        bench.limit_logs(LogLimits { bytes_max: 8 << 10 });
        let id = id("counts");
        // It prints on as long as something keeps its gate open, which is a file of the node.
        let gate = bench.folder.path().join("gate");
        std::fs::create_dir(&gate).unwrap();
        std::fs::write(gate.join("open"), "").unwrap();
        let script =
            "i=0; while [ -e /gate/open ]; do i=$((i+1)); echo $i; done; echo end; printf 'no line end'";
        let mut spec = bench.sh(id.clone(), script);
        spec.mounts = vec![Mount { host: gate.clone(), guest: "/gate".into(), read_only: true }];
        bench.runtime.create(spec).await.unwrap();
        bench.runtime.start(&id).await.unwrap();
        let next = lichen_workload::OciRuntime::new(bench.config.clone(), std::time::SystemTime::now);
        next.adopt().await.unwrap();
        let mut events = next.events();
        let mut follower = next
            .logs(&id, LogOptions { follow: true, tail_lines: Some(0), ..LogOptions::default() })
            .unwrap();
        // From the first line on it misses nothing.
        follower.next().await.unwrap().unwrap();
        std::fs::remove_file(gate.join("open")).unwrap();
        let followed = text(follower).await;
        assert!(followed.ends_with("end\nno line end\n"), "{followed}");
        events.recv().await.unwrap();
        let kept = text(next.logs(&id, LogOptions::default()).unwrap()).await;
        let numbers: Vec<u64> = kept.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is missing or twice");
        let size =
            |name: &str| std::fs::metadata(bench.folder.path().join(name)).map_or(0, |file| file.len());
        assert!(size("counts.log") <= 8 << 10 && size("counts.log.1") <= 8 << 10);
        next.remove(&id).await.unwrap();
    }
}

#[tokio::test]
async fn a_container_whose_shim_was_killed_is_lost_and_ends() {
    for bench in benches("shim") {
        let runtime = &bench.runtime;
        let mut events = runtime.events();
        let id = id("lost");
        runtime.create(bench.sleeps(id.clone())).await.unwrap();
        runtime.start(&id).await.unwrap();
        bench.says(&id, "started\n").await;
        let record = std::fs::read(bench.config.dir.join("lost/shim.json")).unwrap();
        let shim: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let init = bench.init(&id);
        bench::kill("-KILL", &shim["pid"].to_string());
        let exit = loop {
            match tokio::time::timeout(LONG, events.recv()).await.unwrap().unwrap() {
                lichen_workload::Event::Exited { exit, .. } => break exit,
                lichen_workload::Event::Started { .. } => {}
            }
        };
        assert_eq!(exit, Exit::Lost);
        assert!(!bench::lives(&init), "the container ended with it");
        runtime.remove(&id).await.unwrap();
        assert_eq!(bench.left(), [""; 0]);
    }
}
