//! Compiling a component for a profile. Only the process that compiles has this.

use wasmtime::Engine;

use crate::profile::{ProfileId, compiling_config};

/// The largest component that is compiled, in bytes.
pub const COMPONENT_BYTES_MAX: usize = 256 << 20;

/// Why a file was not compiled. All but [`CompileError::Setup`] are faults of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The file is something else.
    #[error("not a WebAssembly file")]
    NotWasm,
    /// A core module: what compilers made before the component model, and what `wasm32-wasip1` still makes.
    #[error(
        "a core WebAssembly module, not a component (build it for wasm32-wasip2, or wrap it with `wasm-tools component new`)"
    )]
    CoreModule,
    /// A component by its first bytes, but not a valid one.
    #[error("not a valid component: {0}")]
    Invalid(String),
    /// Too large to compile.
    #[error("{len} bytes are more than the {COMPONENT_BYTES_MAX} that are compiled")]
    TooLarge {
        /// The file's length.
        len: usize,
    },
    /// The compiler cannot make code for the profile.
    #[error("cannot compile for {profile}: {reason}")]
    Setup {
        /// For which profile.
        profile: String,
        /// Why not.
        reason: String,
    },
}

/// Compiles a component to the bytes of a `.cwasm` file that an engine of that profile loads.
pub fn compile(bytes: &[u8], profile: &ProfileId) -> Result<Vec<u8>, CompileError> {
    match bytes {
        // The magic number, then a version (16 bits) and a layer (16 bits): layer 0 is a core module, 1 a component.
        [0x00, b'a', b's', b'm', _, _, 0x00, 0x00, ..] => return Err(CompileError::CoreModule),
        [0x00, b'a', b's', b'm', _, _, _, _, ..] => {}
        _ => return Err(CompileError::NotWasm),
    }
    if bytes.len() > COMPONENT_BYTES_MAX {
        return Err(CompileError::TooLarge { len: bytes.len() });
    }
    let engine = compiling_engine(profile).map_err(|error| CompileError::Setup {
        profile: profile.to_string(),
        reason: format!("{error:#}"),
    })?;
    engine.precompile_component(bytes).map_err(|error| CompileError::Invalid(format!("{error:#}")))
}

fn compiling_engine(profile: &ProfileId) -> wasmtime::Result<Engine> {
    let mut config = compiling_config(profile)?;
    for flag in profile.baseline().flags() {
        enable_instructions(&mut config, flag);
    }
    Engine::new(&config)
}

#[allow(
    unsafe_code,
    reason = "the flags are fixed names of instruction sets, and a loader checks each against the machine"
)]
fn enable_instructions(config: &mut wasmtime::Config, flag: &str) {
    // SAFETY: wasmtime calls this unsafe because a flag could change what the generated code assumes of its host. These
    // flags only allow instructions, are stored in the artifact, and are checked when it is loaded.
    unsafe { config.cranelift_flag_enable(flag) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Baseline, Target, engine, load, running_config};

    /// A component with one function, so that there is machine code.
    const COMPONENT: &str = r#"(component
        (core module $m (func (export "f") (param i32) (result i32) (i32.mul (local.get 0) (i32.const 3))))
        (core instance $i (instantiate $m))
        (func (export "f") (param "x" u32) (result u32) (canon lift (core func $i "f"))))"#;

    /// The machine that an ELF file is for, as its header has it.
    fn elf_machine(file: &[u8]) -> u16 {
        assert_eq!(&file[..4], b"\x7fELF");
        u16::from_le_bytes([file[18], file[19]])
    }

    #[test]
    fn every_target_is_compiled_for_and_only_this_machine_s_is_loaded() {
        let component = wat::parse_str(COMPONENT).unwrap();
        let engine = engine(&running_config().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let check = |target: Target, machine: u16| {
            let profile = ProfileId::new(target, Baseline::Base);
            let code = compile(&component, &profile).unwrap();
            assert_eq!(elf_machine(&code), machine, "{profile}");
            let path = dir.path().join(target.triple());
            std::fs::write(&path, code).unwrap();
            let loaded = load(&engine, &path);
            assert_eq!(loaded.is_ok(), profile.runs_here(), "{profile}: {:?}", loaded.err());
        };
        check(Target::X86_64, 62);
        check(Target::Aarch64, 183);
        check(Target::Riscv64, 243);
        // Bytecode is nobody's machine code: wasmtime puts it into files that say RISC-V, and tells them apart by a flag.
        check(Target::Pulley32, 243);
        check(Target::Pulley64, 243);
    }

    #[test]
    fn what_is_no_component_is_refused() {
        let host = ProfileId::host();
        assert_eq!(compile(b"#!/bin/sh", &host), Err(CompileError::NotWasm));
        assert_eq!(compile(b"\0asm\x01\0\0\0", &host), Err(CompileError::CoreModule));
        assert!(matches!(compile(b"\0asm\x0d\0\x01\0rest", &host), Err(CompileError::Invalid(_))));
    }
}
