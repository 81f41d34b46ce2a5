//! What one instance holds: its view of WASI, and nothing that its guest was not given.

use std::future::Future;

use hyper::{Request, Response};
use tokio::sync::watch;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::error::HostError;
use crate::guest::{Phase, Shared};
use crate::limits::MemoryShare;
use crate::meter::Ticking;
use crate::output::{GuestOutput, Output};
use crate::pool::Slot;

/// The data of a store.
pub(crate) struct GuestContext {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    pub(crate) table: ResourceTable,
    pub(crate) phase: watch::Receiver<Phase>,
    memory: MemoryShare,
    /// What must live as long as the instance: its slot in the pool, and for instances whose polls are not ours, the tick.
    pub(crate) held: (Option<Slot>, Option<Ticking>),
}

impl Shared {
    /// A store for one instance of this guest.
    pub(crate) fn store(&self, engine: &Engine) -> Result<Store<GuestContext>, HostError> {
        let context = GuestContext {
            wasi: self.wasi()?,
            http: WasiHttpCtx::new(),
            hooks: Hooks,
            table: ResourceTable::new(),
            phase: self.phase.clone(),
            memory: MemoryShare::new(&self.memory),
            held: (None, None),
        };
        let mut store = Store::new(engine, context);
        store.limiter(|context| &mut context.memory);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(store)
    }

    fn wasi(&self) -> Result<WasiCtx, HostError> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.args(&self.spec.args)
            .envs(&self.spec.env)
            .stdout(GuestOutput::new(Output::Stdout, &self.sink))
            .stderr(GuestOutput::new(Output::Stderr, &self.sink))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false);
        // Configuration is small and nearly always in the page cache. A trip to another thread for each read of it would
        // cost more than the read, and a slow disk can only hold up guests, which have threads of their own.
        wasi.allow_blocking_current_thread(self.spec.mounts.iter().all(|mount| mount.read_only));
        for mount in &self.spec.mounts {
            let permissions = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            wasi.preopened_dir(&mount.host, &mount.guest, permissions).map_err(|error| HostError::Mount {
                path: mount.host.clone(),
                reason: format!("{error:#}"),
            })?;
        }
        Ok(wasi.build())
    }
}

impl WasiView for GuestContext {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for GuestContext {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Where a guest's own requests pass. Nothing allows any yet, so all are denied.
struct Hooks;

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }
}
