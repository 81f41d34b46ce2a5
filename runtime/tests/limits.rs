//! What a guest may not do, and how it is told.

mod support;

use std::sync::Arc;
use std::time::Duration;

use lichen_engine::{Baseline, CompileError, ProfileId, Target, compile};
use lichen_runtime::{GuestExit, GuestSpec, HostError};
use support::{Bench, Collect};

/// A command whose `run` executes these instructions.
fn command(body: &str) -> String {
    command_of("wasi:cli/run@0.2.0", "", body)
}

fn command_of(export: &str, kind: &str, body: &str) -> String {
    format!(
        r#"(component
            (core module $m
                (memory (export "memory") 1)
                (func (export "run") (result i32) {body} i32.const 0))
            (core instance $i (instantiate $m))
            (func $run {kind} (result (result)) (canon lift (core func $i "run")))
            (instance $exports (export "run" (func $run)))
            (export "{export}" (instance $exports)))"#
    )
}

const GROW_FOREVER: &str = "(loop $more (drop (memory.grow (i32.const 16))) (br $more))";
const SPIN: &str = "(loop $more (br $more))";

fn limited(memory_bytes: u64) -> GuestSpec {
    GuestSpec { memory_bytes: Some(memory_bytes), ..GuestSpec::default() }
}

async fn run(bench: &Bench, name: &str, body: &str, spec: GuestSpec) -> GuestExit {
    let component = bench.text(name, &command(body)).unwrap();
    bench.host.run(&component, spec, Arc::new(Collect::default())).unwrap().wait().await
}

#[tokio::test]
async fn exits_and_traps_are_told_apart() {
    let bench = Bench::new();
    let check = async |name: &str, body: &str, expect: GuestExit| {
        assert_eq!(run(&bench, name, body, GuestSpec::default()).await, expect, "{name}");
    };
    check("fine", "", GuestExit::Code(0)).await;
    check("error", "(return (i32.const 1))", GuestExit::Code(1)).await;
    check(
        "unreachable",
        "unreachable",
        GuestExit::Trap("wasm trap: wasm `unreachable` instruction executed".to_owned()),
    )
    .await;
    let outside = "(drop (i32.load (i32.const -4)))";
    check("outside", outside, GuestExit::Trap("wasm trap: out of bounds memory access".to_owned())).await;
}

#[tokio::test]
async fn memory_beyond_the_limit_ends_the_guest() {
    let bench = Bench::new();
    assert_eq!(run(&bench, "bomb", GROW_FOREVER, limited(8 << 20)).await, GuestExit::OutOfMemory);
    // Not even its first page.
    assert_eq!(run(&bench, "small", "", limited(1 << 10)).await, GuestExit::OutOfMemory);
    assert_eq!(run(&bench, "enough", "", limited(1 << 16)).await, GuestExit::Code(0));
}

#[tokio::test]
async fn guests_that_compute_forever_share_the_threads_and_can_be_ended() {
    let bench = Bench::new();
    let spin = bench.text("spin", &command(SPIN)).unwrap();
    let threads = std::thread::available_parallelism().unwrap().get();
    let spinning: Vec<_> = (0..threads * 2)
        .map(|_| bench.host.run(&spin, GuestSpec::default(), Arc::new(Collect::default())).unwrap())
        .collect();
    // With all threads taken by guests that never pause, another one still runs.
    assert_eq!(run(&bench, "fine", "", GuestSpec::default()).await, GuestExit::Code(0));
    for guest in spinning {
        assert_eq!(guest.stop(Duration::from_secs(60)).await, GuestExit::Killed);
        assert!(guest.usage().cpu_ns > 0);
    }
}

#[tokio::test]
async fn an_import_that_is_not_offered_is_named_before_the_start() {
    let bench = Bench::new();
    let asks = r#"(component
        (import "example:device/gpio@1.0.0" (instance (export "read" (func (result bool)))))
        (core module $m (func (export "run") (result i32) i32.const 0))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $exports (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $exports)))"#;
    match bench.text("asks", asks).err() {
        Some(HostError::MissingImport { name, .. }) => assert_eq!(name, "example:device/gpio@1.0.0"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(bench.text("empty", "(component)").err(), Some(HostError::NothingToRun)));
}

#[test]
fn what_is_no_component_is_not_compiled() {
    let host = ProfileId::host();
    assert_eq!(compile(b"", &host), Err(CompileError::NotWasm));
    assert_eq!(compile(b"#!/bin/sh\n", &host), Err(CompileError::NotWasm));
    assert_eq!(compile(&wat::parse_str("(module)").unwrap(), &host), Err(CompileError::CoreModule));
    let component = wat::parse_str("(component)").unwrap();
    assert!(matches!(compile(&component[..6], &host), Err(CompileError::NotWasm)));
    let mut damaged = support::guest_bytes("worker");
    damaged.truncate(damaged.len() / 2);
    assert!(matches!(compile(&damaged, &host), Err(CompileError::Invalid(_))));
}

#[tokio::test]
async fn a_command_of_wasi_0_3_runs() {
    let bench = Bench::new();
    let check = async |name: &str, body: &str, expect: GuestExit| {
        let component = bench.text(name, &command_of("wasi:cli/run@0.3.0", "async", body)).unwrap();
        let guest = bench.host.run(&component, limited(1 << 20), Arc::new(Collect::default())).unwrap();
        assert_eq!(guest.wait().await, expect, "{name}");
    };
    check("fine", "", GuestExit::Code(0)).await;
    check("error", "(return (i32.const 1))", GuestExit::Code(1)).await;
    check("bomb", GROW_FOREVER, GuestExit::OutOfMemory).await;
}

#[tokio::test]
async fn only_artifacts_that_fit_this_machine_are_loaded() {
    let bench = Bench::new();
    let wasm = wat::parse_str(command("")).unwrap();
    let load = |name: &str, bytes: &[u8]| {
        let path = bench.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        bench.host.load(name, &path)
    };
    let least = ProfileId::new(Target::host(), Baseline::Base);
    let plain = load("base", &compile(&wasm, &least).unwrap()).unwrap();
    let guest = bench.host.run(&plain, GuestSpec::default(), Arc::new(Collect::default())).unwrap();
    assert_eq!(guest.wait().await, GuestExit::Code(0));

    // Wasmtime's own defaults instead of this project's settings: it runs without epochs.
    let other = lichen_engine::wasmtime::Engine::default().precompile_component(&wasm).unwrap();
    match load("other", &other).err() {
        Some(HostError::Load(error)) => assert!(error.reason.contains("compiled"), "{error}"),
        unexpected => panic!("{unexpected:?}"),
    }
    let mut torn = compile(&wasm, &least).unwrap();
    torn.truncate(100);
    for (name, bytes) in [("torn", &torn[..]), ("empty", b""), ("text", b"not an artifact"), ("wasm", &wasm)]
    {
        assert!(matches!(load(name, bytes).err(), Some(HostError::Load(_))), "{name}");
    }
    let absent = bench.host.load("absent", &bench.dir.path().join("absent.cwasm"));
    assert!(matches!(absent.err(), Some(HostError::Load(_))));
}

#[test]
fn a_target_that_this_compiler_lacks_is_said_to_be() {
    let wasm = wat::parse_str(command("")).unwrap();
    let foreign = match Target::host() {
        Target::Riscv64 => Target::X86_64,
        _ => Target::Riscv64,
    };
    let refused = compile(&wasm, &ProfileId::new(foreign, Baseline::Base));
    // A compiler with all targets is welcome to it.
    assert!(matches!(refused, Ok(_) | Err(CompileError::Setup { .. })), "{refused:?}");
}
