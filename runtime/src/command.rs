//! Runs a command: one instance, from its start to its end.

use std::sync::Arc;

use wasmtime::Store;

use crate::component::Entry;
use crate::context::GuestContext;
use crate::guest::{GuestExit, Shared, exit_of_error};
use crate::meter::Metered;

/// Runs the command to its end, or until it is aborted. Its store, and with it its memory and its last unfinished lines,
/// is gone when this answers.
pub(crate) async fn run(shared: Arc<Shared>, entry: Entry, store: Store<GuestContext>) -> GuestExit {
    let running = Metered::new(&shared.ticker, &shared.cpu_ns, call(entry, store));
    tokio::select! {
        result = running => match result {
            Ok(Ok(())) => GuestExit::Code(0),
            Ok(Err(())) => GuestExit::Code(1),
            Err(error) => exit_of_error(&error),
        },
        () = shared.aborted() => GuestExit::Killed,
    }
}

async fn call(entry: Entry, mut store: Store<GuestContext>) -> wasmtime::Result<Result<(), ()>> {
    match entry {
        Entry::CommandP2(pre) => {
            let command = pre.instantiate_async(&mut store).await?;
            command.wasi_cli_run().call_run(&mut store).await
        }
        Entry::CommandP3(pre) => {
            let command = pre.instantiate_async(&mut store).await?;
            store.run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await).await?
        }
        // The host starts a handler with `serve`, and checks before it comes here.
        Entry::HttpP2(_) | Entry::HttpP3(_) => Err(wasmtime::Error::msg("a request handler cannot be run")),
    }
}
