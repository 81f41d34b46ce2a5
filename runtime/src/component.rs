//! A loaded component: which world it targets, and whether this host offers what it imports.

use std::path::Path;

use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime_wasi::{p2, p3};
use wasmtime_wasi_http::{p2 as http_p2, p3 as http_p3};

use crate::context::GuestContext;
use crate::error::HostError;
use crate::lifecycle::{self, LIFECYCLE};
use crate::pool::Pool;

/// What a component is, found out from its exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// Exports `wasi:cli/run`: runs once.
    Command,
    /// Exports a `wasi:http` handler: answers requests.
    Http,
}

impl World {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Command => "a command",
            Self::Http => "a request handler",
        }
    }
}

/// Ready to be instantiated.
#[derive(Clone)]
pub(crate) enum Entry {
    CommandP2(p2::bindings::CommandPre<GuestContext>),
    CommandP3(p3::bindings::CommandPre<GuestContext>),
    HttpP2(http_p2::bindings::ProxyPre<GuestContext>),
    HttpP3(http_p3::bindings::ServicePre<GuestContext>),
}

impl Entry {
    fn world(&self) -> World {
        match self {
            Self::CommandP2(_) | Self::CommandP3(_) => World::Command,
            Self::HttpP2(_) | Self::HttpP3(_) => World::Http,
        }
    }
}

/// A component that can be started any number of times.
pub struct Loaded {
    digest: String,
    pub(crate) engine: Engine,
    pub(crate) entry: Entry,
    /// The same in the pool's engine, for handlers whose instances fit a slot.
    pub(crate) pooled: Option<Entry>,
    pub(crate) hears_stop: bool,
}

impl Loaded {
    pub(crate) fn load<'a>(
        engine: &Engine,
        linker: &Linker<GuestContext>,
        pool: impl FnOnce() -> Option<&'a Pool>,
        digest: &str,
        path: &Path,
    ) -> Result<Self, HostError> {
        let component = lichen_engine::load(engine, path)?;
        let entry = link(engine, linker, &component)?;
        let hears_stop = entry.world() == World::Http
            || component.component_type().imports(engine).any(|(name, _)| interface(name) == LIFECYCLE);
        let pooled = match entry.world() {
            World::Command => None,
            World::Http => pool().and_then(|pool| pooled_entry(pool, path)),
        };
        Ok(Self { digest: digest.to_owned(), engine: engine.clone(), entry, pooled, hears_stop })
    }

    /// The digest it was loaded under.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What it is.
    pub fn world(&self) -> World {
        self.entry.world()
    }
}

/// A component with more memories or tables than a slot has room for runs without the pool.
fn pooled_entry(pool: &Pool, path: &Path) -> Option<Entry> {
    let component = lichen_engine::load(&pool.engine, path)
        .inspect_err(|error| tracing::debug!(%error, "the component does not fit the pool"))
        .ok()?;
    link(&pool.engine, &pool.linker, &component).ok()
}

/// A linker with everything that this host offers.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<GuestContext>> {
    let mut linker = Linker::new(engine);
    p2::add_to_linker_async(&mut linker)?;
    p3::add_to_linker(&mut linker)?;
    http_p2::add_only_http_to_linker_async(&mut linker)?;
    http_p3::add_to_linker(&mut linker)?;
    lifecycle::add_to_linker(&mut linker)?;
    Ok(linker)
}

fn link(engine: &Engine, linker: &Linker<GuestContext>, component: &Component) -> Result<Entry, HostError> {
    let ty = component.component_type();
    let export = ty.exports(engine).find_map(|(name, _)| entry_point(name)).ok_or(HostError::NothingToRun)?;
    let pre = linker.instantiate_pre(component).map_err(|error| missing_import(engine, component, &error))?;
    bind(export, pre).map_err(|error| missing_import(engine, component, &error))
}

fn bind(export: EntryPoint, pre: InstancePre<GuestContext>) -> wasmtime::Result<Entry> {
    Ok(match export {
        EntryPoint::RunP2 => Entry::CommandP2(p2::bindings::CommandPre::new(pre)?),
        EntryPoint::RunP3 => Entry::CommandP3(p3::bindings::CommandPre::new(pre)?),
        EntryPoint::HandlerP2 => Entry::HttpP2(http_p2::bindings::ProxyPre::new(pre)?),
        EntryPoint::HandlerP3 => Entry::HttpP3(http_p3::bindings::ServicePre::new(pre)?),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryPoint {
    RunP2,
    RunP3,
    HandlerP2,
    HandlerP3,
}

fn entry_point(export: &str) -> Option<EntryPoint> {
    let (name, version) = export.split_once('@')?;
    match name {
        "wasi:cli/run" if version.starts_with("0.2.") => Some(EntryPoint::RunP2),
        "wasi:cli/run" if version.starts_with("0.3.") => Some(EntryPoint::RunP3),
        "wasi:http/incoming-handler" if version.starts_with("0.2.") => Some(EntryPoint::HandlerP2),
        "wasi:http/handler" if version.starts_with("0.3.") => Some(EntryPoint::HandlerP3),
        _ => None,
    }
}

fn interface(import: &str) -> &str {
    import.split_once('@').map_or(import, |(name, _)| name)
}

/// wasmtime names the import that it found no match for in its message; the component's own list says which it is.
fn missing_import(engine: &Engine, component: &Component, error: &wasmtime::Error) -> HostError {
    let detail = format!("{error:#}");
    let ty = component.component_type();
    let named = ty.imports(engine).map(|(name, _)| name).find(|name| detail.contains(&format!("`{name}`")));
    HostError::MissingImport { name: named.unwrap_or("something").to_owned(), detail: detail.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_points_are_known_by_name_and_version() {
        let check = |export, expect| assert_eq!(entry_point(export), expect, "{export}");
        check("wasi:cli/run@0.2.0", Some(EntryPoint::RunP2));
        check("wasi:cli/run@0.2.12", Some(EntryPoint::RunP2));
        check("wasi:cli/run@0.3.0", Some(EntryPoint::RunP3));
        check("wasi:http/incoming-handler@0.2.3", Some(EntryPoint::HandlerP2));
        check("wasi:http/handler@0.3.1", Some(EntryPoint::HandlerP3));
        check("wasi:cli/run@0.1.0", None);
        check("wasi:cli/run", None);
        check("example:app/run@0.2.0", None);
    }
}
