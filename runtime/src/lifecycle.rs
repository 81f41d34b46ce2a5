//! `lichen:workload/lifecycle`: how a guest hears that it should end.

use tokio::sync::watch;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

use crate::context::GuestContext;
use crate::guest::Phase;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit",
        inline: "package lichen:runtime; world imports { import lichen:workload/lifecycle@0.1.0; }",
        imports: { default: trappable },
        require_store_data_send: true,
        with: { "wasi:io": wasmtime_wasi::p2::bindings::io },
    });
}

/// The interface's name, without its version.
pub(crate) const LIFECYCLE: &str = "lichen:workload/lifecycle";

/// Offers the interface.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestContext>) -> wasmtime::Result<()> {
    bindings::lichen::workload::lifecycle::add_to_linker::<_, HasContext>(linker, |context| context)
}

struct HasContext;

impl wasmtime::component::HasData for HasContext {
    type Data<'a> = &'a mut GuestContext;
}

impl bindings::lichen::workload::lifecycle::Host for &mut GuestContext {
    fn stopping(&mut self) -> wasmtime::Result<Resource<DynPollable>> {
        let stopping = Stopping { phase: self.phase.clone() };
        let resource = self.table.push(stopping)?;
        subscribe(&mut self.table, resource)
    }
}

struct Stopping {
    phase: watch::Receiver<Phase>,
}

#[async_trait]
impl Pollable for Stopping {
    async fn ready(&mut self) {
        // A guest whose owner is gone is about to be ended anyway, so both outcomes mean the same.
        let _ = self.phase.wait_for(|phase| *phase != Phase::Run).await;
    }
}
