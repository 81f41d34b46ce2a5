//! The profile: what a compiled component and the engine that loads it must agree on.

use std::fmt;
use std::str::FromStr;

use wasmtime::{Config, Engine};

/// The wasmtime major whose artifacts this build makes and loads. A test compares it with the linked wasmtime.
pub const WASMTIME_MAJOR: u32 = 48;

/// Address space reserved for each linear memory. Small enough that hundreds of instances fit the 39-bit address space of
/// small boards; a memory that grows beyond it is moved.
pub const MEMORY_RESERVATION_BYTES: u64 = 128 << 20;

/// Unmapped space after each reservation. Accesses with a static offset below this need one bounds check for the base only.
pub const MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// On 32-bit targets address space is as scarce as memory, so nothing is reserved.
const MEMORY_RESERVATION_32_BYTES: u64 = 0;
const MEMORY_GUARD_32_BYTES: u64 = 0;

/// Raised by hand when [`config`] changes in a way the text of [`tunables`] does not show.
const CONFIG_REVISION: u32 = 1;

/// The machine that artifacts of a profile are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// 64-bit x86 Linux.
    X86_64,
    /// 64-bit ARM Linux.
    Aarch64,
    /// 64-bit RISC-V Linux.
    Riscv64,
    /// Pulley bytecode for 32-bit hosts that Cranelift has no backend for.
    Pulley32,
    /// Pulley bytecode for other 64-bit hosts.
    Pulley64,
}

impl Target {
    const ALL: [Self; 5] = [Self::X86_64, Self::Aarch64, Self::Riscv64, Self::Pulley32, Self::Pulley64];

    /// The target's name as wasmtime takes it.
    pub fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
            Self::Riscv64 => "riscv64gc-unknown-linux-gnu",
            Self::Pulley32 => "pulley32",
            Self::Pulley64 => "pulley64",
        }
    }

    /// What this process can run.
    pub fn host() -> Self {
        match (cfg!(target_os = "linux"), std::env::consts::ARCH) {
            (true, "x86_64") => Self::X86_64,
            (true, "aarch64") => Self::Aarch64,
            (true, "riscv64") => Self::Riscv64,
            _ if cfg!(target_pointer_width = "32") => Self::Pulley32,
            _ => Self::Pulley64,
        }
    }

    fn is_32_bit(self) -> bool {
        self == Self::Pulley32
    }

    fn is_bytecode(self) -> bool {
        matches!(self, Self::Pulley32 | Self::Pulley64)
    }
}

/// The instructions that artifacts of a profile may use beyond the target's least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Baseline {
    /// What every machine of the target has.
    Base,
    /// x86-64-v3: AVX2, BMI, FMA, POPCNT, LZCNT (Haswell, 2013, and later).
    V3,
}

impl Baseline {
    fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::V3 => "v3",
        }
    }

    /// The best one that this machine has.
    pub fn host() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let v3 = [
                std::is_x86_feature_detected!("sse3"),
                std::is_x86_feature_detected!("ssse3"),
                std::is_x86_feature_detected!("sse4.1"),
                std::is_x86_feature_detected!("sse4.2"),
                std::is_x86_feature_detected!("popcnt"),
                std::is_x86_feature_detected!("avx"),
                std::is_x86_feature_detected!("avx2"),
                std::is_x86_feature_detected!("fma"),
                std::is_x86_feature_detected!("bmi1"),
                std::is_x86_feature_detected!("bmi2"),
                std::is_x86_feature_detected!("lzcnt"),
            ];
            if v3.iter().all(|has| *has) {
                return Self::V3;
            }
        }
        Self::Base
    }

    /// The compiler's names for these instructions.
    #[cfg(feature = "compile")]
    pub(crate) fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Base => &[],
            Self::V3 => &[
                "has_sse3",
                "has_ssse3",
                "has_sse41",
                "has_sse42",
                "has_popcnt",
                "has_avx",
                "has_avx2",
                "has_fma",
                "has_bmi1",
                "has_bmi2",
                "has_lzcnt",
            ],
        }
    }
}

/// Names everything that an artifact and an engine must agree on:
/// `wasmtime<major>-<target>-<baseline>-<hash of the settings>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileId {
    target: Target,
    baseline: Baseline,
}

/// Why a text names no profile that this build knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no profile of this version, whose profiles read like {example}", example = ProfileId::host())]
pub struct InvalidProfile(pub String);

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up wasmtime for {profile}: {reason}")]
pub struct EngineError {
    /// For which profile.
    pub profile: ProfileId,
    /// What wasmtime says.
    pub reason: String,
}

impl EngineError {
    fn new(profile: &ProfileId, error: &wasmtime::Error) -> Self {
        Self { profile: profile.clone(), reason: format!("{error:#}") }
    }
}

impl ProfileId {
    /// The profile of a target with a baseline; only x86-64 has more than one baseline.
    pub fn new(target: Target, baseline: Baseline) -> Self {
        Self { target, baseline: if target == Target::X86_64 { baseline } else { Baseline::Base } }
    }

    /// The profile of this machine.
    pub fn host() -> Self {
        Self::new(Target::host(), Baseline::host())
    }

    /// The machine it is for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The instructions it may use.
    pub fn baseline(&self) -> Baseline {
        self.baseline
    }

    /// Whether artifacts of this profile run on this machine.
    pub fn runs_here(&self) -> bool {
        let host = Self::host();
        self.target == host.target && self.baseline <= host.baseline
    }
}

impl fmt::Display for ProfileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = fnv1a(tunables(self.target).as_bytes());
        write!(
            f,
            "wasmtime{WASMTIME_MAJOR}-{}-{}-{:08x}",
            self.target.triple(),
            self.baseline.name(),
            hash >> 32
        )
    }
}

impl FromStr for ProfileId {
    type Err = InvalidProfile;

    fn from_str(text: &str) -> Result<Self, InvalidProfile> {
        let known = Target::ALL
            .into_iter()
            .flat_map(|target| [Self::new(target, Baseline::Base), Self::new(target, Baseline::V3)]);
        known
            .into_iter()
            .find(|profile| profile.to_string() == text)
            .ok_or_else(|| InvalidProfile(text.to_owned()))
    }
}

/// The settings that code generation depends on, as text: the same text on two machines means the same settings.
fn tunables(target: Target) -> String {
    let (reservation, guard) = reservation_and_guard(target);
    format!(
        "revision={CONFIG_REVISION} reservation={reservation} guard={guard} epochs component-model-async no-gc no-threads"
    )
}

fn reservation_and_guard(target: Target) -> (u64, u64) {
    match target.is_32_bit() {
        true => (MEMORY_RESERVATION_32_BYTES, MEMORY_GUARD_32_BYTES),
        false => (MEMORY_RESERVATION_BYTES, MEMORY_GUARD_BYTES),
    }
}

/// FNV-1a. Not for security: it tells settings apart, and must give the same number in every build.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The one place that makes a [`Config`]. Everything here decides what code is generated, so a change of any line changes
/// [`ProfileId`], by its number in the tunables text or by [`CONFIG_REVISION`].
fn config(profile: &ProfileId) -> wasmtime::Result<Config> {
    let (reservation, guard) = reservation_and_guard(profile.target);
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .memory_reservation(reservation)
        .memory_guard_size(guard)
        .memory_may_move(true);
    if profile.target.is_bytecode() {
        // An interpreter's traps are its own; and both sides have to name it, since it is nobody's native machine.
        config.signals_based_traps(false).target(profile.target.triple())?;
    }
    Ok(config)
}

/// The configuration of an engine that loads and runs, in a process with a compiler or without: it never uses one. What
/// does not influence generated code (pools, stack sizes) may still be set on it.
pub fn running_config() -> Result<Config, EngineError> {
    let profile = ProfileId::host();
    let config = config(&profile).map_err(|error| EngineError::new(&profile, &error))?;
    #[cfg(feature = "compile")]
    let config = without_compiler(config);
    Ok(config)
}

#[cfg(feature = "compile")]
fn without_compiler(mut config: Config) -> Config {
    config.enable_compiler(false);
    config
}

/// An engine that runs this machine's artifacts.
pub fn engine(config: &Config) -> Result<Engine, EngineError> {
    Engine::new(config).map_err(|error| EngineError::new(&ProfileId::host(), &error))
}

/// The configuration of an engine that compiles for a profile.
#[cfg(feature = "compile")]
pub(crate) fn compiling_config(profile: &ProfileId) -> wasmtime::Result<Config> {
    let mut config = config(profile)?;
    // Naming the target switches off what Cranelift finds out about this machine, which is not the one that will run it.
    config.target(profile.target.triple())?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_back_from_its_text() {
        for target in Target::ALL {
            for baseline in [Baseline::Base, Baseline::V3] {
                let profile = ProfileId::new(target, baseline);
                assert_eq!(profile.to_string().parse(), Ok(profile));
            }
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let host = ProfileId::host().to_string();
        for text in [
            "",
            "x",
            &host.replace("wasmtime48", "wasmtime47"),
            &host.replace("x86_64", "sparc"),
            &format!("{host}0"),
        ] {
            let refused = text.parse::<ProfileId>();
            assert!(refused.is_err() || text == host, "{text}");
        }
    }

    #[test]
    fn this_machine_runs_its_own_profile() {
        assert!(ProfileId::host().runs_here());
        assert!(ProfileId::new(Target::host(), Baseline::Base).runs_here());
        assert!(
            !ProfileId::new(Target::Pulley32, Baseline::Base).runs_here()
                || Target::host() == Target::Pulley32
        );
    }

    #[test]
    fn profiles_differ_where_the_code_would() {
        let mut seen: Vec<String> = Target::ALL
            .into_iter()
            .map(|target| ProfileId::new(target, Baseline::Base).to_string())
            .collect();
        seen.push(ProfileId::new(Target::X86_64, Baseline::V3).to_string());
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }

    #[test]
    fn an_engine_can_be_made() {
        engine(&running_config().unwrap()).unwrap();
    }
}
